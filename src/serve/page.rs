//! The status page: one file, readable without a script, whose changing part the daemon makes and sends.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use data_encoding::BASE64;
use jiff::Timestamp;
use serde_json::Value;

use crate::serve::page::escape::escape;
use crate::serve::published::Published;
use crate::shown::outlook::severity;

mod escape;
mod fences;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Of more members, entries and alarms the rest is counted: a page of a phone.
const MEMBERS: usize = 60;
const SHOWN: usize = 20;
const LINES: usize = 30;

/// Nothing is loaded from anywhere, and no script runs but the page's own.
pub(crate) fn policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let hash = |text: &str| BASE64.encode(ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref());
        format!(
            "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        )
    })
}

pub(crate) fn whole(published: &Published) -> String {
    let word = published.outlook().word.word();
    around(&title(published, word), &main(published))
}

/// A loop that hangs left what is shown: none of it is told as if it were so now.
pub(crate) fn stale(published: &Published, age: Duration) -> String {
    let said = if published.own.is_null() {
        "this guardian has only just started, or its event loop hangs".to_owned()
    } else {
        format!("the event loop of this guardian has published nothing for {} s", age.as_secs())
    };
    let main = format!(
        "<main class=\"unknown\" data-title=\"unknown: rbd-guardian\" data-at=\"{}\"><h1>unknown</h1><p>{}</p></main>",
        published.wall,
        escape(&said)
    );
    around("unknown: rbd-guardian", &main)
}

fn around(title: &str, main: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>{}</title><style>{STYLE}</style></head><body>\
         <div id=\"stale\" role=\"alert\"></div>{main}<footer>Served by rbd-guardian {}: /metrics, /api/v1/status, \
         /api/v1/events, /readyz, /leader, /healthz.</footer><script>{SCRIPT}</script></body></html>\n",
        escape(title),
        crate::VERSION
    )
}

fn title(published: &Published, word: &str) -> String {
    format!("{word}: rbd-guardian on {}", published.own["host"].as_str().unwrap_or("?"))
}

/// The part that changes.
pub(crate) fn main(published: &Published) -> String {
    let status = published.status();
    let outlook = published.outlook();
    let word = outlook.word.word();
    let mut page = format!(
        "<main class=\"{word}\" data-title=\"{}\" data-at=\"{}\"><h1>{word}</h1>",
        escape(&title(published, word)),
        published.wall
    );
    head(status, &outlook.why, published.leads, &mut page);
    to_do(status, &mut page);
    fences::section(status, published.wall, &mut page);
    members(status, &mut page);
    others(status, published.wall, &mut page);
    guardians(published, &mut page);
    lines(published, &mut page);
    page.push_str("</main>");
    page
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn head(status: &Value, why: &[String], leads: bool, page: &mut String) {
    let meaning = match status["outlook"]["word"].as_str().unwrap_or_default() {
        "armed" => "A lost member is fenced before its instances start elsewhere.",
        "partial" => "Lost members are fenced, but something stands in the way for some.",
        "disarmed" => "No fence begins by itself. What is fenced is held.",
        "holding" => "What is fenced is held. No fence begins by itself.",
        _ => "Too little is known to say whether a lost member would be fenced.",
    };
    let _ = write!(page, "<p>{meaning}</p>");
    if !why.is_empty() {
        page.push_str("<ul id=\"why\">");
        for reason in why {
            let _ = write!(page, "<li>{}</li>", escape(reason));
        }
        page.push_str("</ul>");
    }
    if !leads {
        let here = text(status, "here");
        let _ = write!(
            page,
            "<p class=\"soft\">{}. This guardian stands by: it knows what the ledger and Incus tell it. {}</p>",
            escape(text(status, "leads")),
            escape(here)
        );
    }
}

/// Alarms, the worst first, each with what to do.
fn to_do(status: &Value, page: &mut String) {
    let mut alarms: Vec<&Value> = list(status, "alarms").iter().collect();
    alarms.sort_by_key(|alarm| severity(text(alarm, "code")) != "critical");
    page.push_str("<section><h2>What to do</h2>");
    if alarms.is_empty() {
        page.push_str("<p>Nothing: no alarm lasts.</p></section>");
        return;
    }
    for alarm in alarms.iter().take(SHOWN) {
        let code = text(alarm, "code");
        let member = alarm["member"].as_str().map(|name| format!("{}: ", escape(name))).unwrap_or_default();
        let severity = severity(code);
        let _ = write!(
            page,
            "<div class=\"card {severity}\"><h3>{member}{} <span class=\"soft\">({severity})</span></h3><p>{}</p>",
            escape(code),
            escape(text(alarm, "text"))
        );
        let advice: Vec<&str> = list(alarm, "advice").iter().filter_map(Value::as_str).collect();
        if !advice.is_empty() {
            page.push_str("<ul>");
            for line in advice.iter().take(SHOWN) {
                let _ = write!(page, "<li>{}</li>", command(line));
            }
            more(advice.len(), "lines of advice", page);
            page.push_str("</ul>");
        }
        page.push_str("</div>");
    }
    more(alarms.len(), "alarms", page);
    page.push_str("</section>");
}

fn more(all: usize, what: &str, page: &mut String) {
    if all > SHOWN {
        let _ = write!(page, "<p>{} more {what}: <code>rbd-guardian status</code></p>", all - SHOWN);
    }
}

/// Advice with the command that it ends with, to be copied.
fn command(advice: &str) -> String {
    let begins = |text: &str| ["rbd-guardian ", "incus ", "ceph "].iter().any(|word| text.starts_with(word));
    if begins(advice) {
        return format!("<code class=\"cmd\">{}</code>", escape(advice));
    }
    match advice.split_once(": ") {
        Some((before, rest)) if begins(rest) => {
            format!("{}: <code class=\"cmd\">{}</code>", escape(before), escape(rest))
        }
        Some(_) | None => escape(advice),
    }
}

/// When, for people and for the page's script.
fn when(at: &str, now: Timestamp) -> String {
    let Ok(time) = at.parse::<Timestamp>() else { return escape(at) };
    let passed = now.duration_since(time);
    let seconds = passed.as_secs().unsigned_abs();
    let span = match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    let relative = if passed.is_negative() { format!("in {span}") } else { format!("{span} ago") };
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
    format!("<time datetime=\"{time}\">{relative}</time> <span class=\"abs\">({whole})</span>")
}

fn members(status: &Value, page: &mut String) {
    let mut members: Vec<&Value> = list(status, "members").iter().collect();
    let odd = |member: &Value| text(member, "state") != "watching" || text(member, "health") != "healthy";
    members.sort_by_key(|member| !odd(member));
    page.push_str("<section><h2>Members</h2>");
    if members.is_empty() {
        page.push_str("<p>No member is known to this guardian.</p></section>");
        return;
    }
    page.push_str(
        "<div class=\"wide\" role=\"region\" aria-label=\"Members\" tabindex=\"0\"><table><thead><tr><th>Member</th>\
         <th>State</th><th>Health</th><th>Could be fenced now</th><th>Incus says</th><th>Addresses, and where they were learnt</th></tr></thead><tbody>",
    );
    for member in members.iter().take(MEMBERS) {
        let addresses: Vec<String> = list(member, "addresses")
            .iter()
            .map(|one| {
                let sources: Vec<&str> = list(one, "sources").iter().filter_map(Value::as_str).collect();
                format!("{} ({})", escape(text(one, "address")), escape(&sources.join(", ")))
            })
            .collect();
        let (class, can) = could_be_fenced(status, member);
        let waits = member["waits"]
            .as_str()
            .map(|waits| format!("<br>waits for {}", escape(waits)))
            .unwrap_or_default();
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}{waits}</td><td>{}</td><td class=\"{class}\">{}</td><td>{}</td><td>{}</td></tr>",
            escape(text(member, "name")),
            escape(text(member, "state")),
            escape(health(text(member, "health"))),
            escape(&can),
            escape(member["status"].as_str().unwrap_or("unknown")),
            addresses.join("<br>")
        );
    }
    page.push_str("</tbody></table></div>");
    if members.len() > MEMBERS {
        let _ = write!(
            page,
            "<p>{} more members, none of them worse: <code>rbd-guardian status</code></p>",
            members.len() - MEMBERS
        );
    }
    page.push_str("</section>");
}

fn health(word: &str) -> &str {
    match word {
        "healthy" => "healthy",
        "control-plane-only" => "lost by Incus, its Ceph clients still seen",
        "silent" => "lost by Incus, its Ceph clients gone",
        _ => "unknown",
    }
}

fn could_be_fenced(status: &Value, member: &Value) -> (&'static str, String) {
    if member["fence"].is_string() {
        return ("good", "is fenced".to_owned());
    }
    if list(member, "addresses").is_empty() {
        return ("bad", "no: no Ceph address is known".to_owned());
    }
    if status["storage"]["fresh"] != true {
        return ("bad", "unknown: Ceph is not read here".to_owned());
    }
    if status["cannot_record"].is_string() {
        return ("bad", "no: nothing can be recorded".to_owned());
    }
    if text(member, "state") == "refused" {
        return ("bad", "refused: see above".to_owned());
    }
    ("good", "yes".to_owned())
}

fn others(status: &Value, now: Timestamp, page: &mut String) {
    let others = list(status, "others");
    if others.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>Blocklist entries that no fence accounts for</h2><div class=\"wide\" role=\"region\" aria-label=\"Other entries\" tabindex=\"0\">\
         <table><thead><tr><th>Entry</th><th>Whose</th><th>Ends</th><th>Member</th></tr></thead><tbody>",
    );
    for other in others.iter().take(SHOWN) {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(text(other, "entry")),
            escape(other["origin"].as_str().unwrap_or("unknown")),
            when(text(other, "until"), now),
            escape(text(other, "member"))
        );
    }
    page.push_str("</tbody></table></div>");
    more(others.len(), "entries", page);
    page.push_str("</section>");
}

fn guardians(published: &Published, page: &mut String) {
    let status = published.status();
    let leader = &status["leader"];
    let own = &published.own;
    page.push_str("<section><h2>Guardians</h2><ul>");
    if let Some(name) = leader["guardian"].as_str() {
        let _ = write!(
            page,
            "<li><strong>{}</strong> on {} leads (epoch {}), since {}</li>",
            escape(name),
            escape(text(leader, "host")),
            leader["epoch"],
            when(text(leader, "since"), published.wall)
        );
    } else {
        page.push_str("<li>No leader is known</li>");
    }
    let stage = own["stage"].as_str().unwrap_or("unknown");
    let trouble = own["trouble"].as_str().map(|why| format!(": {}", escape(why))).unwrap_or_default();
    let _ = write!(
        page,
        "<li>This is <strong>{}</strong> on {}, version {}: {}{trouble}</li></ul></section>",
        escape(text(own, "guardian")),
        escape(text(own, "host")),
        escape(text(own, "version")),
        escape(stage)
    );
}

fn lines(published: &Published, page: &mut String) {
    page.push_str("<section><h2>Newest lines of this guardian's log</h2><ul id=\"lines\">");
    for line in published.lines.after(0).rev().take(LINES) {
        let member = line.member.as_ref().map(|name| format!("{}: ", escape(name))).unwrap_or_default();
        let short: String = line.text.chars().take(400).collect();
        let _ = write!(
            page,
            "<li>{} <strong>{}</strong> {member}{}</li>",
            when(&line.at.to_string(), published.wall),
            escape(&line.code),
            escape(&short)
        );
    }
    page.push_str("</ul></section>");
}
