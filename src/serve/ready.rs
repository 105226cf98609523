//! Could a lost member be fenced now? One check a line.

use serde::Serialize;

use crate::serve::published::Published;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ReadyCheck {
    pub(crate) check: &'static str,
    pub(crate) ok: bool,
    pub(crate) why: Option<String>,
}

/// By what this guardian knows. One that stands by is ready if a leader is known and it could take over.
pub(crate) fn checks(published: &Published) -> Vec<ReadyCheck> {
    let status = published.status();
    let text = |key: &str| status[key].as_str().map(str::to_owned);
    let reading = |key: &str| {
        let trouble =
            status[key]["trouble"].as_str().unwrap_or("no answer within the last seconds").to_owned();
        (status[key]["fresh"] != true).then_some(trouble)
    };
    let check = |check, why: Option<String>| ReadyCheck { check, ok: why.is_none(), why };
    let lead = (status["stage"] != "leading" && status["leader"].is_null())
        .then(|| text("trouble").unwrap_or_else(|| "no guardian leads".to_owned()));
    let gate = status["gate"]["state"].as_str().unwrap_or("unknown");
    let members = status["members"].as_array().into_iter().flatten();
    let nameless = members.filter(|member| member["addresses"].as_array().is_some_and(Vec::is_empty));
    let nameless: Vec<&str> = nameless.filter_map(|member| member["name"].as_str()).collect();
    let mut all = vec![check("leader", lead), check("incus", reading("platform"))];
    if published.leads {
        all.push(check("ceph", reading("storage")));
        all.push(check("gate", (gate != "installed").then(|| format!("the gate is {gate}"))));
    }
    all.push(check("ceph-login", text("ceph_trouble")));
    all.push(check("ledger", text("cannot_record")));
    all.push(check("holds", text("holds")));
    let disarmed = status["disarmed"]["until"].as_str().map(|until| format!("disarmed until {until}"));
    all.push(check("armed", disarmed));
    let named = nameless.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    all.push(check(
        "addresses",
        (!nameless.is_empty()).then(|| format!("no Ceph address is known of {named}")),
    ));
    all
}
