//! Fences on the page: each as a timeline, with what is proved.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::Value;

use super::escape::escape;
use super::{SHOWN, list, more, text, when};

pub(super) fn section(status: &Value, now: Timestamp, page: &mut String) {
    let fences = list(status, "fences");
    page.push_str("<section><h2>Fences</h2>");
    if fences.is_empty() {
        page.push_str("<p>No fence is in force.</p></section>");
        return;
    }
    for fence in fences.iter().take(SHOWN) {
        one(status, fence, now, page);
    }
    more(fences.len(), "fences", page);
    page.push_str("</section>");
}

fn one(status: &Value, fence: &Value, now: Timestamp, page: &mut String) {
    let (state, id) = (text(fence, "state"), text(fence, "fence"));
    let whom = fence["member"].as_str().unwrap_or(id);
    let class = match state {
        "sealed" => "",
        "breached" | "pending" => " critical",
        _ => " warning",
    };
    let _ = write!(
        page,
        "<div class=\"card{class}\"><h3>{} is {}</h3><p class=\"soft\">{}, asked for by {}{}</p>",
        escape(whom),
        escape(state),
        escape(id),
        escape(text(fence, "by")),
        fence["reason"].as_str().map(|why| format!(": {}", escape(why))).unwrap_or_default()
    );
    steps(status, fence, now, page);
    if let Some(why) = fence["waits"].as_str() {
        let _ = write!(page, "<p class=\"warn\">waits for {}</p>", escape(why));
    }
    for why in list(fence, "evidence").iter().filter_map(Value::as_str).take(3) {
        let _ = write!(page, "<p>{}</p>", escape(why));
    }
    proved(fence, page);
    breaches(fence, now, page);
    entries(fence, id, now, page);
    page.push_str("</div>");
}

/// What happened and what is to come. A time is shown where the record has it.
fn steps(status: &Value, fence: &Value, now: Timestamp, page: &mut String) {
    let state = text(fence, "state");
    let member = fence["member"].as_str().unwrap_or_default();
    let line = list(status, "members").iter().find(|line| text(line, "name") == member);
    let open = list(&status["gate"], "open").iter().any(|name| name == member);
    let returned = line.is_some_and(|line| ["returned-stale", "stranded"].contains(&text(line, "state")));
    let committed = state != "intended";
    let sealed = fence["sealed"].is_string();
    let steps = [
        ("intended", true, fence["since"].as_str()),
        ("committed", committed, None),
        ("sealed", sealed, fence["sealed"].as_str()),
        ("open for placement", open, None),
        ("returned", returned || state == "releasing", None),
        ("released", state == "released", fence["released"].as_str()),
    ];
    page.push_str("<ol class=\"steps\">");
    for (step, done, at) in steps {
        let class = match (done, step == state) {
            (true, true) => "done now",
            (true, false) => "done",
            (false, true) => "now",
            (false, false) => "",
        };
        let at = at.map(|at| format!(" {}", when(at, now))).unwrap_or_default();
        let said = if done { "" } else { " <span class=\"soft\">(not yet)</span>" };
        let _ = write!(page, "<li class=\"{class}\">{step}{at}{said}</li>");
    }
    page.push_str("</ol>");
}

fn proved(fence: &Value, page: &mut String) {
    let proofs = list(fence, "proofs");
    if !proofs.is_empty() {
        let pgs: u64 = proofs.iter().filter_map(|proof| proof["pgs"].as_u64()).sum();
        let pools: Vec<&str> = proofs.iter().map(|proof| text(proof, "pool")).take(SHOWN).collect();
        let _ = write!(
            page,
            "<p>Proved at the last seal: {pgs} PGs of {} pools ({}) refuse it since osdmap epoch {}</p>",
            proofs.len(),
            escape(&pools.join(", ")),
            fence["epoch"]
        );
    }
    let pending: Vec<&str> = list(fence, "pending").iter().filter_map(Value::as_str).collect();
    if !pending.is_empty() {
        let named = pending.iter().take(SHOWN).copied().collect::<Vec<_>>().join(" ");
        let _ = write!(
            page,
            "<p class=\"bad\">{} PGs have not answered, and may accept its writes still: {}</p>",
            pending.len(),
            escape(&named)
        );
    }
}

fn breaches(fence: &Value, now: Timestamp, page: &mut String) {
    for breach in list(fence, "breaches").iter().rev().take(3) {
        let until = breach["committed"].as_u64().map_or_else(|| "now".to_owned(), |epoch| epoch.to_string());
        let _ = write!(
            page,
            "<p class=\"bad\">Lifted from osdmap epoch {} to {until}, seen {}</p>",
            breach["gone"],
            when(text(breach, "seen"), now)
        );
    }
}

fn entries(fence: &Value, id: &str, now: Timestamp, page: &mut String) {
    let entries = list(fence, "entries");
    let _ = write!(page, "<details id=\"e-{}\"><summary>{} entries</summary><ul>", escape(id), entries.len());
    for entry in entries.iter().take(SHOWN) {
        let until = entry["until"]
            .as_str()
            .map_or_else(|| "not seen".to_owned(), |until| format!("ends {}", when(until, now)));
        let _ = write!(page, "<li><code>{}</code> {until}</li>", escape(text(entry, "entry")));
    }
    page.push_str("</ul>");
    more(entries.len(), "entries", page);
    page.push_str("</details>");
}
