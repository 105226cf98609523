//! docs/json.md as a schema: what a verb prints is compared with it, down to the last part.

use std::collections::BTreeSet;

use serde_json::Value;

/// Keys that no answer has: durations are numbers, and what guardians keep for themselves stays there.
const NEVER: [&str; 6] = ["secs", "nanos", "marks", "marks_ms", "form", "sent"];

/// A row of the page: the keys that are always there, and those that are there where they apply.
struct Row {
    always: BTreeSet<String>,
    at_times: BTreeSet<String>,
}

/// The row whose first cell is this one.
fn row(first: &str) -> Option<Row> {
    let page = include_str!("../../docs/json.md");
    let cells = |line: &str| {
        let (name, value) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((name.to_owned(), value.to_owned()))
    };
    let (_, value) = page.lines().filter_map(cells).find(|(name, _)| name == first)?;
    let (always, at_times) = value.split_once(';').unwrap_or((&value, ""));
    let keys = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some(Row { always: keys(always), at_times: keys(at_times) })
}

/// Everything in this answer of a verb is as the page says.
#[track_caller]
pub fn is_as_documented(verb: &str, answer: &Value) {
    let row = row(&format!("`{verb}`")).unwrap_or_else(|| panic!("docs/json.md has no row for {verb}"));
    if let Err(why) = each(verb, &row, verb, answer) {
        panic!("{verb}: {why}\n{answer:#}");
    }
}

/// An item of a list is as the page says.
#[track_caller]
pub fn is_a_documented_part(verb: &str, part: &str, value: &Value) {
    let row = row(&format!("`{part}`")).unwrap_or_else(|| panic!("docs/json.md has no row for {part}"));
    if let Err(why) = each(verb, &row, part, value) {
        panic!("{part}: {why}\n{value:#}");
    }
}

fn each(verb: &str, row: &Row, path: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| each(verb, row, path, item)),
        Value::Object(fields) => {
            let found: BTreeSet<String> = fields.keys().cloned().collect();
            let missing: Vec<&String> = row.always.difference(&found).collect();
            let unsaid: Vec<&String> = found
                .iter()
                .filter(|key| !row.always.contains(*key) && !row.at_times.contains(*key))
                .collect();
            if !missing.is_empty() || !unsaid.is_empty() {
                return Err(format!(
                    "{path} lacks {missing:?} and has {unsaid:?}, which the page does not name"
                ));
            }
            fields.iter().try_for_each(|(key, value)| part(verb, path, key, value))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            // A list of words, addresses or names.
            Ok(())
        }
    }
}

fn part(verb: &str, path: &str, key: &str, value: &Value) -> Result<(), String> {
    let path = format!("{path}.{key}");
    if NEVER.contains(&key) {
        return Err(format!("{path} is nobody's business"));
    }
    let duration = key.ends_with("_s") || (key.ends_with("_ms") && key != "timings_ms");
    if duration && !(value.is_u64() || value.is_null()) {
        return Err(format!("{path} is a duration and no whole number"));
    }
    let name = match (verb, key) {
        ("watchers", "watchers") => "`watchers` of an image".to_owned(),
        ("watchers", "lock" | "locks") => "`lock`".to_owned(),
        (_, "kept") => "`entries`".to_owned(),
        (_, "storage") => "`platform`".to_owned(),
        ("status" | "ledger" | "gate", "members" | "gate") => format!("`{key}` of `{verb}`"),
        // Names, not keys of ours.
        ("ledger", "unread") => return Ok(()),
        ("gate", "keys" | "project") => return Ok(()),
        // The same word for clients of the member that nothing tells whose they are.
        ("ledger", "others") => return Ok(()),
        _ => format!("`{key}`"),
    };
    match row(&name) {
        Some(_) if verb == "gate" && key == "members" => Ok(()),
        Some(row) => each(verb, &row, &path, value),
        None => match value {
            Value::Object(_) => Err(format!("{path} is an object that the page does not describe")),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                Err(format!("{path} has objects that the page does not describe"))
            }
            Value::Array(items) if items.iter().any(Value::is_array) => {
                Err(format!("{path} has lists without names"))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Ok(()),
        },
    }
}
