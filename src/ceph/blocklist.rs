//! Adding and removing blocklist entries.

use rbd_guardian_core::fence::step::Sent;
use rbd_guardian_core::model::addr::Entry;
use serde_json::{Value, json};

use super::lane;
use crate::ceph::rados::cluster::{Cluster, CommandError};
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::deadline::Deadline;

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum EntryChange {
    /// Add it, for so many seconds.
    Add {
        /// Must reach the monitors as a JSON real: an integer is refused with EINVAL (docs/facts/ceph.md#blocklist-entries).
        seconds: f64,
    },
    Remove,
}

/// Commands under way at once. The monitors commit what arrives within one proposal interval together.
const WIDTH: usize = 64;

/// Sends one change for all entries at the same time, each from a thread of its own, and waits for the answers.
/// An entry without an answer in time is [`Sent::Unknown`].
pub fn change(
    cluster: &Cluster,
    entries: &[Entry],
    change: EntryChange,
    deadline: &Deadline,
) -> Vec<(Entry, Sent)> {
    let calls = entries.iter().map(|entry| {
        let (cluster, command) = (cluster.clone(), command(*entry, change));
        move || match cluster.mon_command(&command) {
            Ok(_) => Sent::Acknowledged,
            Err(error) => sent(&error, "osd blocklist"),
        }
    });
    let answers = lane::each(calls.collect(), WIDTH);
    let mut sent: Vec<_> = entries.iter().map(|entry| (*entry, Sent::Unknown)).collect();
    while let Ok(Some((index, answer))) = deadline.receive(&answers) {
        sent[index].1 = answer;
    }
    sent
}

/// Refused means not done; every other error leaves it open.
pub fn sent(error: &CommandError, command: &str) -> Sent {
    match meaning(error.errno) {
        ErrnoMeaning::Denied => {
            Sent::Refused(format!("the key lacks mon `allow command \"{command}\"` (deploy/ceph)"))
        }
        ErrnoMeaning::Rejected => Sent::Refused(error.to_string()),
        ErrnoMeaning::Silence | ErrnoMeaning::Blocklisted | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
            Sent::Unknown
        }
    }
}

fn command(entry: Entry, change: EntryChange) -> Value {
    let mut command = match change {
        EntryChange::Add { seconds } => {
            json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": entry.to_string(), "expire": seconds})
        }
        EntryChange::Remove => {
            json!({"prefix": "osd blocklist", "blocklistop": "rm", "addr": entry.to_string()})
        }
    };
    if let (Entry::HostRange(_), Some(fields)) = (entry, command.as_object_mut()) {
        // Without it `10.0.0.5/32` is taken for a client with nonce 32, and nobody is blocked.
        fields.insert("range".to_owned(), json!("range"));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbd_guardian_core::model::addr::parse_target;

    #[test]
    fn the_end_is_a_real_and_a_range_says_so() {
        let host = parse_target("10.0.0.5").unwrap();
        let add = command(host, EntryChange::Add { seconds: 157_784_760.0 }).to_string();
        assert!(add.contains(r#""expire":157784760.0"#), "{add}");
        assert!(!add.contains("range"), "{add}");
        let range = command(Entry::HostRange("10.0.0.5".parse().unwrap()), EntryChange::Remove).to_string();
        assert!(range.contains(r#""addr":"10.0.0.5/32""#) && range.contains(r#""range":"range""#), "{range}");
    }
}
