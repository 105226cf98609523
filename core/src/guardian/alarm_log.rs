//! Which alarms were told: each is logged when it begins and when it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::now::Now;
use crate::model::pairs;

/// Alarms whose beginning is told where it happens, with more than the alarm says.
const BEGUN: [&str; 7] =
    ["breached", "returned-stale", "refused", "not-placed", "cannot-record", "view-lost", "storage-lost"];

/// Those of them whose end has a line of its own. A moment without an answer is told by that alone.
const ENDED: [&str; 3] = ["cannot-record", "view-lost", "storage-lost"];
const MOMENT: Duration = Duration::from_secs(5);

/// Code, member and meaning of an alarm.
type AlarmKey = (String, Option<String>, String);

/// The alarms that were told, and last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct AlarmLog {
    /// The words that each was told in.
    #[serde(default, with = "pairs")]
    told: BTreeMap<AlarmKey, String>,
    /// Since when each of them lasts.
    #[serde(default, with = "pairs")]
    told_since: BTreeMap<AlarmKey, Duration>,
}

impl AlarmLog {
    /// Alarms that began or ended. That some begin is told already where it comes from.
    pub(super) fn update(&mut self, now: Now, alarms: Vec<Alarm>, reports: &mut Reports) {
        let mut lasting = BTreeMap::new();
        for alarm in alarms {
            let begun = BEGUN.contains(&alarm.code);
            let about = alarm.about.filter(|_| !begun);
            let about = about.unwrap_or_else(|| if begun { String::new() } else { alarm.text.clone() });
            let key = (alarm.code.to_owned(), alarm.member.clone(), about);
            if lasting.contains_key(&key) {
                continue;
            }
            let told = self.told.remove(&key);
            if told.is_none() {
                self.told_since.insert(key.clone(), now.boot);
            }
            if told.is_none() && !begun {
                let text = format!("{}: {}", alarm.text, alarm.advice.join("; "));
                let text = text.trim_end_matches(": ").to_owned();
                reports.log(Level::Error, alarm.code, alarm.member.as_deref(), text);
            }
            lasting.insert(key, told.unwrap_or(alarm.text));
        }
        for (key, text) in std::mem::replace(&mut self.told, lasting) {
            let since = self.told_since.remove(&key);
            let (code, member, _) = key;
            let lasted = since.map(|since| now.boot.saturating_sub(since));
            if ENDED.contains(&code.as_str()) && lasted.is_none_or(|lasted| lasted < MOMENT) {
                continue;
            }
            // One of a checkpoint of an earlier version has no beginning.
            let after = lasted.map_or_else(String::new, |lasted| format!(" after {} s", lasted.as_secs()));
            let text = format!("over{after}: {code}: {text}");
            reports.log(Level::Info, "alarm-over", member.as_deref(), text);
        }
    }
}
