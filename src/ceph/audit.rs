//! Who removed entries of the blocklist: the audit channel of the cluster log.
//!
//! Monitors log each command that may change something, with the key and the address of who sent it
//! (`Monitor::handle_command`, `src/mon/Monitor.cc`). Reading it takes no more than mon `allow r`.

use jiff::SignedDuration;
use rbd_guardian_core::model::addr::{EntityAddr, Entry};
use rbd_guardian_core::model::record::Removal;
use serde::Deserialize;
use serde_json::json;

use super::command::{CephReadError, read};
use super::item::Item;
use super::osdmap::time;
use crate::ceph::rados::cluster::Cluster;

/// How monitors print an address that they do not know.
const BLANK: [&str; 3] = ["-", ":/0", "?"];
/// How many lines are read. Monitors keep some 10,000 of all channels (`LogSummary`, `src/common/LogEntry.h`).
const LINES: u32 = 1000;
/// Where no line of a command has the sender's address.
const UNTOLD: &str = "an address that the log does not tell";
/// Between the lines of one command.
const SAME: SignedDuration = SignedDuration::from_secs(10);

/// The removals among the last lines of the audit channel, oldest first. A command is logged by the monitor that took
/// it, by the leader that it was forwarded to, which does not know the sender's address, and again when it is done: told
/// once, with the address.
///
/// # Errors
/// See [`CephReadError`].
pub fn removals(cluster: &Cluster) -> Result<Vec<Removal>, CephReadError> {
    let command =
        json!({"prefix": "log last", "num": LINES, "level": "info", "channel": "audit", "format": "json"});
    parse(&read(cluster, &command)?)
}

fn parse(json: &[u8]) -> Result<Vec<Removal>, CephReadError> {
    let lines: Vec<Item<AuditLine>> =
        serde_json::from_slice(json).map_err(|error| CephReadError::unreadable("log last", &error))?;
    let mut removals: Vec<Removal> = Vec::new();
    for removal in lines.iter().filter_map(Item::known).filter_map(removal) {
        let same = |known: &&mut Removal| {
            let close = removal.at.duration_since(known.at).abs() < SAME;
            let nameless = known.address.is_empty() || removal.address.is_empty();
            let what = (&known.entity, &known.entry) == (&removal.entity, &removal.entry);
            close && what && (nameless || known.address == removal.address)
        };
        match removals.iter_mut().find(same) {
            Some(known) if known.address.is_empty() => known.address = removal.address,
            Some(_) => {}
            None => removals.push(removal),
        }
    }
    for removal in removals.iter_mut().filter(|removal| removal.address.is_empty()) {
        UNTOLD.clone_into(&mut removal.address);
    }
    Ok(removals)
}

#[derive(Deserialize)]
struct AuditLine {
    stamp: String,
    message: String,
}

#[derive(Deserialize)]
struct Command {
    prefix: String,
    #[serde(default)]
    blocklistop: Option<String>,
    #[serde(default)]
    blacklistop: Option<String>,
    #[serde(default)]
    addr: Option<String>,
    #[serde(default)]
    range: Option<String>,
}

/// `from='client.4123 10.77.0.3:0/1234' entity='client.admin' cmd=[{"prefix": …}]: dispatch`; with `cmd='[…]'` when it
/// is done, and `access denied` in the place of `dispatch` where it was not allowed. 20.2 writes `cmd={"prefix": …}` at
/// the dispatch.
fn removal(line: &AuditLine) -> Option<Removal> {
    let (head, end) = line.message.rsplit_once(": ")?;
    if !["dispatch", "finished"].contains(&end.trim()) {
        return None;
    }
    let (who, commands) = head.split_once("cmd=")?;
    let quoted = |key: &str| who.split_once(key)?.1.split_once('\'').map(|(text, _)| text.to_owned());
    let commands = commands.trim_matches('\'');
    let one = || serde_json::from_str::<Item<Command>>(commands).map(|command| vec![command]);
    let commands = serde_json::from_str::<Vec<Item<Command>>>(commands).or_else(|_| one()).ok()?;
    let entry = commands.iter().filter_map(Item::known).find_map(removed)?;
    let from = quoted("from='").unwrap_or_default();
    let address = from.split(' ').nth(1).unwrap_or_default().to_owned();
    let address = address.parse::<EntityAddr>().map_or(address, |addr| addr.to_string());
    let address = if BLANK.contains(&address.as_str()) { String::new() } else { address };
    Some(Removal { at: time(&line.stamp)?, entity: quoted("entity='")?, address, entry })
}

/// The entry that a command removes, `Some(None)` for all.
fn removed(command: &Command) -> Option<Option<Entry>> {
    let blocklist = |what: &str| [format!("osd blocklist{what}"), format!("osd blacklist{what}")];
    if blocklist(" clear").contains(&command.prefix) {
        return Some(None);
    }
    let op = command.blocklistop.as_ref().or(command.blacklistop.as_ref())?;
    if !blocklist("").contains(&command.prefix) || op != "rm" {
        return None;
    }
    let addr = command.addr.as_ref()?;
    let entry = if command.range.is_some() {
        addr.parse().ok()?
    } else {
        let addr: EntityAddr = addr.parse().ok()?;
        addr.client().map_or(Entry::Host(addr.ip), Entry::Client)
    };
    Some(Some(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(message: &str) -> Option<String> {
        let line =
            AuditLine { stamp: "2026-11-25T11:40:02.123456+0100".to_owned(), message: message.to_owned() };
        removal(&line).map(|removal| removal.to_string())
    }

    #[test]
    fn a_removal_is_read_as_the_monitors_log_it() {
        let said = |command: &str| {
            format!("from='client.? 10.77.0.2:0/42' entity='client.admin' cmd=[{command}]: dispatch")
        };
        let rm =
            r#"{"prefix": "osd blocklist", "blocklistop": "rm", "addr": "10.77.0.5:0/0", "format": "json"}"#;
        let expected = |what: &str| {
            Some(format!("client.admin at 10.77.0.2:0/42 removed {what} (2026-11-25T10:40:02.123456Z)"))
        };
        assert_eq!(told(&said(rm)), expected("10.77.0.5:0/0"));
        assert_eq!(
            told(&said(rm).replace("cmd=[", "cmd='[").replace("]: dispatch", "]': finished")),
            expected("10.77.0.5:0/0")
        );
        // As 20.2.4 logs what it took.
        let bare = said(rm).replace("cmd=[", "cmd=").replace("]: dispatch", " : dispatch");
        assert_eq!(told(&bare), expected("10.77.0.5:0/0"));
        assert_eq!(told(&said(&rm.replace("blocklist", "blacklist"))), expected("10.77.0.5:0/0"));
        assert_eq!(told(&said(&rm.replace("10.77.0.5:0/0", "10.77.0.5"))), expected("10.77.0.5:0/0"));
        let range =
            rm.replace("10.77.0.5:0/0", "10.77.0.5/32").replace("\"rm\"", "\"rm\", \"range\": \"range\"");
        assert_eq!(told(&said(&range)), expected("10.77.0.5/32"));
        assert_eq!(told(&said(r#"{"prefix": "osd blocklist clear"}"#)), expected("every entry"));
        assert_eq!(told(&said(&rm.replace("\"rm\"", "\"add\""))), None);
        assert_eq!(told(&said(r#"{"prefix": "osd dump"}"#)), None);
        assert_eq!(told(&said(rm).replace("dispatch", "access denied")), None);
        assert_eq!(told("a line of another kind"), None);
    }

    #[test]
    fn one_command_that_is_logged_twice_is_told_once() {
        let line = |second: u32, end: &str| {
            let message = format!(
                r#"from='client.? 10.77.0.2:0/42' entity='client.admin' cmd=[{{\"prefix\":\"osd blocklist clear\"}}]{end}"#
            );
            format!(r#"{{"stamp": "2026-11-25T11:40:{second:02}.0+0000", "message": "{message}"}}"#)
        };
        let log = [line(2, ": dispatch"), line(3, ": finished"), line(40, ": dispatch")].join(",");
        assert_eq!(parse(format!("[{log}]").as_bytes()).unwrap().len(), 2);
    }

    /// Three monitors of 16.2: the peon that took the command, the leader that it was forwarded to, and its end there.
    #[test]
    fn a_removal_through_a_peon_is_told_once_with_the_address() {
        let line = |second: u32, from: &str, end: &str| {
            let message = format!(
                r#"from='{from}' entity='client.admin' cmd=[{{\"prefix\":\"osd blocklist\",\"blocklistop\":\"rm\",\"addr\":\"10.77.0.5:0/0\"}}]{end}"#
            );
            format!(r#"{{"stamp": "2026-11-25T11:40:{second:02}.0+0000", "message": "{message}"}}"#)
        };
        let peon = line(2, "client.? 10.77.0.2:0/42", ": dispatch");
        for blank in ["client.? ", "client.? -", "client.? :/0", "client.?", "client.4123 -"] {
            let leader = [line(2, blank, ": dispatch"), line(3, blank, ": finished")].join(",");
            for log in [format!("[{peon},{leader}]"), format!("[{leader},{peon}]")] {
                let told = parse(log.as_bytes()).unwrap();
                assert_eq!(told.len(), 1, "{log}: {told:?}");
                assert_eq!(told[0].address, "10.77.0.2:0/42", "{log}");
            }
            let alone = parse(format!("[{leader}]").as_bytes()).unwrap();
            assert_eq!((alone.len(), alone[0].address.as_str()), (1, UNTOLD), "{alone:?}");
        }
        let other = line(4, "client.? 10.77.0.3:0/43", ": dispatch");
        assert_eq!(parse(format!("[{peon},{other}]").as_bytes()).unwrap().len(), 2, "two senders");
        let strange = format!(r#"[{{"stamp": 7}}, null, {peon}]"#);
        assert_eq!(parse(strange.as_bytes()).unwrap().len(), 1, "a line of another shape");
    }
}
