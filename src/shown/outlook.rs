//! One word for how things are, and why: the same in `status`, on the status page and in the metrics.

use serde::Serialize;
use serde_json::Value;

/// What would happen if a member were lost now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutlookWord {
    /// A lost member is fenced before its instances start elsewhere.
    Armed,
    /// It is, but something stands in the way of some member, or holds by a weaker means than the gate.
    Partial,
    /// An operator decided that no fence begins by itself.
    Disarmed,
    /// What is fenced stays so, and no fence begins by itself.
    Holding,
    /// Too little is known for any of these.
    Blind,
}

pub(crate) const WORDS: [OutlookWord; 5] = [
    OutlookWord::Armed,
    OutlookWord::Partial,
    OutlookWord::Disarmed,
    OutlookWord::Holding,
    OutlookWord::Blind,
];

impl OutlookWord {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Partial => "partial",
            Self::Disarmed => "disarmed",
            Self::Holding => "holding",
            Self::Blind => "blind",
        }
    }
}

/// The word, and what says so: the worst counts, and each reason is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outlook {
    pub(crate) word: OutlookWord,
    pub(crate) why: Vec<String>,
}

/// Alarms that keep some member from being fenced in time, or its fence from being relied on.
const IMPAIRS: [&str; 16] = [
    "address-contradiction",
    "bad-addresses",
    "breached",
    "gate-absent",
    "gate-off",
    "gate-partial",
    "gate-unseen",
    "gate-waits",
    "listing-lost",
    "not-understood",
    "pending",
    "pool-excepted",
    "refused",
    "too-many-clients",
    "view-doubtful",
    "wrong-cluster",
];

/// Alarms on which somebody must act at once.
const CRITICAL: [&str; 14] = [
    "breached",
    "cannot-record",
    "fence-trouble",
    "gate-unseen",
    "gate-waits",
    "pending",
    "refused",
    "returned-stale",
    "second-writer",
    "storage-lost",
    "stranded",
    "view-doubtful",
    "view-lost",
    "wrong-cluster",
];

pub(crate) fn severity(code: &str) -> &'static str {
    if CRITICAL.contains(&code) { "critical" } else { "warning" }
}

/// Of more of a kind the number tells enough.
const NAMED: usize = 3;

/// Reads it from a status in its documented form, whatever its source.
pub(crate) fn outlook(status: &Value) -> Outlook {
    let mut found: Vec<(OutlookWord, String)> = Vec::new();
    let mut note = |word, why: &str| found.push((word, why.to_owned()));
    for (source, name) in [("platform", "Incus"), ("storage", "Ceph")] {
        let reading = &status[source];
        if source == "platform" && status["trigger"] == "none" {
            continue;
        }
        if reading["fresh"] != true {
            let why = reading["trouble"].as_str().map_or_else(String::new, |why| format!(": {why}"));
            note(OutlookWord::Blind, &format!("{name} does not answer{why}"));
        }
    }
    for (key, about) in
        [("ledger_unread", "the ledger cannot be read"), ("deposed", "this guardian leads no more")]
    {
        if let Some(why) = status[key].as_str() {
            note(OutlookWord::Blind, &format!("{about}: {why}"));
        }
    }
    if let Some(why) = status["cannot_record"].as_str() {
        note(
            OutlookWord::Holding,
            &format!("nothing can be recorded, so nothing is fenced or released: {why}"),
        );
    }
    if let Some(why) = status["holds"].as_str() {
        note(OutlookWord::Holding, why);
    }
    if status["leads"]
        .as_str()
        .is_some_and(|leads| leads.starts_with("NO GUARDIAN") || leads.starts_with("no guardian"))
    {
        note(OutlookWord::Holding, status["leads"].as_str().unwrap_or_default());
    }
    disarmed(status, &mut note);
    impaired(status, &mut note);
    for key in ["ceph_trouble", "incus_trouble"] {
        if let Some(why) = status[key].as_str() {
            note(OutlookWord::Partial, why);
        }
    }
    let word = found.iter().map(|(word, _)| *word).max().unwrap_or(OutlookWord::Armed);
    // The reasons of the word first.
    found.sort_by_key(|(of, _)| std::cmp::Reverse(*of));
    Outlook { word, why: found.into_iter().map(|(_, why)| why).collect() }
}

fn disarmed(status: &Value, note: &mut impl FnMut(OutlookWord, &str)) {
    let disarmed = &status["disarmed"];
    if let Some(until) = disarmed["until"].as_str() {
        let word = |key: &str| disarmed[key].as_str().unwrap_or("unknown").to_owned();
        let why = format!(
            "no fence begins by itself until {until}, by {}: {} (`rbd-guardian arm` ends it)",
            word("by"),
            word("reason")
        );
        note(OutlookWord::Disarmed, &why);
    }
    match status["trigger"].as_str() {
        Some("manual") => note(OutlookWord::Disarmed, "trigger.mode is \"manual\": only operators fence"),
        Some("none") => note(OutlookWord::Disarmed, "no Incus is configured: only operators fence"),
        Some(_) | None => {}
    }
}

fn impaired(status: &Value, note: &mut impl FnMut(OutlookWord, &str)) {
    let list = |key: &str| status[key].as_array().into_iter().flatten();
    let alarms =
        list("alarms").filter(|alarm| alarm["code"].as_str().is_some_and(|code| IMPAIRS.contains(&code)));
    let mut more = 0;
    for (at, alarm) in alarms.enumerate() {
        if at >= NAMED {
            more += 1;
            continue;
        }
        let member = alarm["member"].as_str().map(|member| format!("{member}: ")).unwrap_or_default();
        note(OutlookWord::Partial, &format!("{member}{}", alarm["text"].as_str().unwrap_or_default()));
    }
    if more > 0 {
        note(OutlookWord::Partial, &format!("{more} more alarms of this kind"));
    }
    let nameless: Vec<&str> = list("members")
        .filter(|member| member["addresses"].as_array().is_some_and(Vec::is_empty))
        .filter_map(|member| member["name"].as_str())
        .collect();
    if !nameless.is_empty() {
        let named = nameless.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let rest = nameless.len().saturating_sub(NAMED);
        let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        note(
            OutlookWord::Partial,
            &format!(
                "no Ceph address of {named}{rest} is known, so it cannot be fenced (user.rbd-guardian.ceph-addresses)"
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn healthy() -> Value {
        json!({
            "platform": {"fresh": true}, "storage": {"fresh": true}, "leads": "mon1 on mon1 leads",
            "gate": {"state": "installed"}, "alarms": [],
            "members": [{"name": "n1", "addresses": [{"address": "10.0.0.1"}]}],
        })
    }

    fn with(path: &str, value: Value) -> Outlook {
        let mut status = healthy();
        status[path] = value;
        outlook(&status)
    }

    #[test]
    fn the_worst_reason_gives_the_word_and_all_are_listed() {
        assert_eq!(outlook(&healthy()), Outlook { word: OutlookWord::Armed, why: Vec::new() });
        let mut status = healthy();
        status["disarmed"] = json!({"until": "2026-01-01T00:00:00Z", "by": "root@a", "reason": "switches"});
        assert_eq!(outlook(&status).word, OutlookWord::Disarmed);
        status["members"][0]["addresses"] = json!([]);
        status["storage"]["fresh"] = json!(false);
        let found = outlook(&status);
        assert_eq!(found.word, OutlookWord::Blind);
        assert_eq!(found.why.len(), 3, "{found:?}");
        assert!(
            found.why[0].contains("Ceph does not answer") && found.why[1].contains("switches"),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_absent_is_never_armed() {
        assert_eq!(outlook(&json!({})).word, OutlookWord::Blind);
        assert_eq!(with("platform", Value::Null).word, OutlookWord::Blind);
        assert_eq!(with("cannot_record", json!("no quorum")).word, OutlookWord::Holding);
        assert_eq!(with("leads", json!("NO GUARDIAN LEADS; the last one was a")).word, OutlookWord::Holding);
        assert_eq!(with("ledger_unread", json!("late")).word, OutlookWord::Blind);
        assert_eq!(with("ceph_trouble", json!("the key is refused")).word, OutlookWord::Partial);
        assert_eq!(with("trigger", json!("manual")).word, OutlookWord::Disarmed);
    }

    #[test]
    fn only_what_impairs_a_fence_makes_it_partial_and_many_are_counted() {
        let alarm = |code: &str| json!({"code": code, "member": "n1", "text": code, "advice": []});
        assert_eq!(with("alarms", json!([alarm("orphan-entry")])).word, OutlookWord::Armed);
        let found = with("alarms", json!(vec![alarm("refused"); 9]));
        assert_eq!((found.word, found.why.len()), (OutlookWord::Partial, 4));
        assert!(found.why[3].starts_with("6 more"), "{found:?}");
    }
}
