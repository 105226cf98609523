//! `status` for people: one word and why, members, fences as they went, what is not as it should be.

use jiff::Timestamp;
use rbd_guardian_core::rules::entry_origin::EntryOrigin;
use serde_json::Value;

use crate::cli::answer::{Cell, table};

/// More than so many entries are only counted: the JSON lists all.
const SHOWN: usize = 20;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// The first line, the same on every host: `ARMED: mon1 on mon1 leads, gate installed, 3 members, 1 fence`.
pub(super) fn health_line(status: &Value) -> String {
    let count = |key: &str, one: &str, many: &str| {
        let number = list(status, key).len();
        format!("{number} {}", if number == 1 { one } else { many })
    };
    let epoch =
        status["leader"]["epoch"].as_u64().map_or_else(String::new, |epoch| format!(" (epoch {epoch})"));
    format!(
        "{}: {}{epoch}, gate {}, {}, {}, {}",
        text(&status["outlook"]["word"]).to_uppercase(),
        text(&status["leads"]),
        status["gate"]["state"].as_str().unwrap_or("unknown"),
        count("members", "member", "members"),
        count("fences", "fence", "fences"),
        count("alarms", "alarm", "alarms"),
    )
}

/// How long ago, for people.
pub(super) fn ago(at: &Value, now: Timestamp) -> Option<String> {
    let at: Timestamp = at.as_str()?.parse().ok()?;
    let passed = now.duration_since(at);
    let seconds = passed.as_secs().unsigned_abs();
    let span = match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    };
    Some(if passed.is_negative() { format!("in {span}") } else { format!("{span} ago") })
}

/// The first line and why.
pub(super) fn checked(status: &Value) -> String {
    let mut shown = health_line(status) + "\n";
    for why in list(&status["outlook"], "why") {
        shown.push_str(&format!("  {}\n", text(why)));
    }
    for alarm in list(status, "alarms") {
        let about = alarm["member"].as_str().map(|member| format!("{member}: ")).unwrap_or_default();
        shown.push_str(&format!("  ALARM {about}{}\n", text(&alarm["code"])));
    }
    shown
}

/// Everything.
pub(super) fn served(status: &Value, now: Timestamp) -> String {
    let mut shown = health_line(status) + "\n";
    for why in list(&status["outlook"], "why") {
        shown.push_str(&format!("  {}\n", text(why)));
    }
    if status["stage"] != "leading"
        && let Some(here) = status["here"].as_str()
    {
        shown.push_str(&format!("  {here}\n"));
    }
    members(status, now, &mut shown);
    fences(status, now, &mut shown);
    others(list(status, "others"), now, "entries that no fence accounts for", &mut shown);
    for alarm in list(status, "alarms") {
        let about = alarm["member"].as_str().map(|member| format!("{member}: ")).unwrap_or_default();
        shown.push_str(&format!("\nALARM {about}{}: {}\n", text(&alarm["code"]), text(&alarm["text"])));
        for advice in list(alarm, "advice").iter().filter_map(Value::as_str) {
            shown.push_str(&format!("  {advice}\n"));
        }
    }
    shown
}

fn members(status: &Value, now: Timestamp, shown: &mut String) {
    let mut rows = table(["MEMBER", "INCUS", "STATE", "SINCE", "HEALTH"]);
    for member in list(status, "members") {
        let fence = list(status, "fences")
            .iter()
            .find(|fence| !fence["member"].is_null() && fence["member"] == member["name"]);
        let since = fence.and_then(|fence| ago(&fence["since"], now)).unwrap_or_default();
        let health = match member["health"].as_str().unwrap_or("unknown") {
            "control-plane-only" => "lost by Incus, Ceph clients still seen".to_owned(),
            "silent" => "lost by Incus, Ceph clients gone".to_owned(),
            other => other.to_owned(),
        };
        rows.add_row([text(&member["name"]), text(&member["status"]), text(&member["state"]), since, health]);
    }
    if !rows.is_empty() {
        shown.push_str(&format!("\n{rows}\n"));
    }
    for member in list(status, "members") {
        let name = text(&member["name"]);
        if let Some(waits) = member["waits"].as_str() {
            shown.push_str(&format!("{name}: waits for {waits}\n"));
        }
        for note in list(member, "notes").iter().filter_map(Value::as_str) {
            shown.push_str(&format!("{name}: {note}\n"));
        }
    }
}

/// Each with what happened when, and for whom the gate is open.
fn fences(status: &Value, now: Timestamp, shown: &mut String) {
    for fence in list(status, "fences") {
        let whom = fence["member"].as_str().or(fence["fence"].as_str()).unwrap_or_default();
        let open = list(&status["gate"], "open").iter().any(|name| name == whom);
        let gate = match (fence["member"].is_string(), open) {
            (true, true) => "; its instances may start elsewhere",
            (true, false) => "; its instances start nowhere else",
            (false, _) => "",
        };
        shown.push_str(&format!("\n{whom}: {}{gate}\n", text(&fence["state"]).to_uppercase()));
        let mut steps = Vec::new();
        for (step, key) in [("intended", "since"), ("first sealed", "sealed"), ("released", "released")] {
            steps.extend(ago(&fence[key], now).map(|ago| format!("{step} {ago}")));
        }
        if !steps.is_empty() {
            shown.push_str(&format!("  {}, by {}\n", steps.join(", "), text(&fence["by"])));
        }
        let pgs: u64 = list(fence, "proofs").iter().filter_map(|proof| proof["pgs"].as_u64()).sum();
        let entries = list(fence, "entries").len();
        if pgs > 0 {
            shown.push_str(&format!(
                "  {pgs} PGs of {} pools refuse its {entries} entries since osdmap epoch {}\n",
                list(fence, "proofs").len(),
                fence["epoch"]
            ));
        }
        if fence["member"].is_null() {
            let entries: Vec<String> =
                list(fence, "entries").iter().map(|entry| text(&entry["entry"])).collect();
            shown.push_str(&format!("  {}\n", entries.join(" ")));
        }
        for breach in list(fence, "breaches").iter().rev().take(3) {
            let until =
                breach["committed"].as_u64().map_or_else(|| "now".to_owned(), |epoch| epoch.to_string());
            let seen = ago(&breach["seen"], now).unwrap_or_default();
            shown.push_str(&format!(
                "  lifted from osdmap epoch {} to {until}, seen {seen}\n",
                breach["gone"]
            ));
        }
        let pending = list(fence, "pending");
        if !pending.is_empty() {
            let named: Vec<String> = pending.iter().take(SHOWN).map(text).collect();
            shown.push_str(&format!("  {} PGs have not answered: {}\n", pending.len(), named.join(" ")));
        }
        if let Some(waits) = fence["waits"].as_str() {
            shown.push_str(&format!("  waits for {waits}\n"));
        }
        if fence["over_brake"] == true {
            shown.push_str(&format!("  over the storm brake: {}\n", text(&fence["reason"])));
        }
        shown.push_str(&format!("  {}\n", text(&fence["fence"])));
    }
}

pub(super) fn others(others: &[Value], now: Timestamp, title: &str, shown: &mut String) {
    if others.is_empty() {
        return;
    }
    let mut rows = table(["ENTRY", "ENDS", "MEMBER", "WHOSE"]);
    for other in others.iter().take(SHOWN) {
        let origin = serde_json::from_value::<EntryOrigin>(other["origin"].clone());
        let whose = origin
            .map_or_else(|_| "unknown: the ledger was not read".to_owned(), |origin| origin.to_string());
        let member = other["member"].as_str().unwrap_or_default();
        let ends = ago(&other["until"], now).unwrap_or_default();
        rows.add_row([Cell::from(text(&other["entry"])), ends.into(), member.into(), whose.into()]);
    }
    shown.push_str(&format!("\n{title}:\n{rows}\n"));
    if others.len() > SHOWN {
        shown.push_str(&format!("… and {} more\n", others.len() - SHOWN));
    }
}

/// Before each picture of `--watch`: it replaces the last one where a terminal shows it.
pub(super) fn heading(every: u64, now: Timestamp) -> String {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    format!("every {every} s, {now}, Ctrl-C ends\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_word_is_the_outlook_and_nothing_wraps_at_80_columns_that_need_not() {
        let now: Timestamp = "2026-01-01T01:00:00Z".parse().unwrap();
        let status = json!({
            "outlook": {"word": "partial", "why": ["no address of n3 is known"]}, "leads": "mon1 on mon1 leads",
            "stage": "leading", "leader": {"epoch": 7}, "gate": {"state": "installed", "open": ["n2"]},
            "members": [
                {"name": "incus-n1", "status": "Online", "health": "healthy", "state": "watching", "notes": []},
                {"name": "incus-n2", "status": "Offline", "health": "control-plane-only", "state": "sealed", "notes": []}],
            "fences": [{"fence": "F-x", "member": "incus-n2", "state": "sealed", "since": "2026-01-01T00:56:48Z",
                "sealed": "2026-01-01T00:56:50Z", "by": "the guardian", "epoch": 123,
                "proofs": [{"pgs": 64, "pool": "a"}, {"pgs": 64, "pool": "b"}],
                "entries": [{"entry": "10.0.0.2:0/0"}], "pending": [], "breaches": []}],
            "others": [], "alarms": [],
        });
        let shown = served(&status, now);
        assert!(shown.starts_with("PARTIAL: mon1 on mon1 leads (epoch 7), gate installed, 2 members, 1 fence, 0 alarms\n  no address"), "{shown}");
        assert!(shown.contains("intended 3m12s ago, first sealed 3m10s ago, by the guardian"), "{shown}");
        assert!(shown.contains("128 PGs of 2 pools refuse its 1 entries since osdmap epoch 123"), "{shown}");
        assert!(shown.contains("incus-n2: SEALED; its instances start nowhere else"), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= 80 || line.contains(": ")), "{shown}");
    }

    #[test]
    fn times_are_relative_and_short() {
        let now: Timestamp = "2026-01-03T00:00:00Z".parse().unwrap();
        let of = |at: &str| ago(&json!(at), now).unwrap();
        assert_eq!(of("2026-01-02T23:59:55Z"), "5s ago");
        assert_eq!(of("2026-01-02T20:30:00Z"), "3h30m ago");
        assert_eq!(of("2025-12-01T00:00:00Z"), "33d ago");
        assert_eq!(of("2026-01-03T00:02:00Z"), "in 2m0s");
        assert_eq!(ago(&Value::Null, now), None);
    }
}
