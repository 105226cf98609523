//! Whether each member's machine can be told from another, as its API shows it now: a fence of one that cannot is never
//! released by a proof, and that is to be known before the first fence.

use std::collections::BTreeMap;

use rbd_guardian_core::model::machine::Machine;

use crate::incus::api;
use crate::incus::client::Client;
use crate::incus::error::IncusError;
use crate::incus::read::member_state;

/// What a member's API shows of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ShownMachine {
    /// What tells it from the others.
    Identity(String),
    /// Nothing does.
    Nothing,
    /// It did not answer: unknown.
    Unread(String),
}

impl ShownMachine {
    /// What to tell of it; `None` where all is well.
    pub(super) fn warning(&self, name: &str) -> Option<String> {
        match self {
            Self::Identity(_) => None,
            Self::Nothing => Some(format!(
                "nothing that its API shows tells its machine from another (a UUID, a serial number or a network card that no \
                 other member has): if it is fenced, no reboot proves that it may be released. See what it shows: `incus info \
                 --resources --target {name}`. After a fence and its reboot: `rbd-guardian release {name} --assert-powered-off \
                 --reason TEXT`"
            )),
            Self::Unread(why) => Some(format!(
                "whether its machine can be told from another is unknown, because it did not answer: {why}"
            )),
        }
    }
}

/// Asks each member itself.
///
/// # Errors
/// The list of members could not be read.
pub(super) async fn shown(client: &Client) -> Result<BTreeMap<String, ShownMachine>, IncusError> {
    let members: Vec<api::Member> = client.get("/1.0/cluster/members?recursion=1").await?;
    let mut told = BTreeMap::new();
    for member in members {
        let state = member_state(client, &member.server_name).await;
        told.insert(member.server_name, state.map(|state| state.machine).map_err(|error| error.to_string()));
    }
    Ok(judge(&told))
}

fn judge(told: &BTreeMap<String, Result<Option<String>, String>>) -> BTreeMap<String, ShownMachine> {
    let machine = |told: &Result<Option<String>, String>| {
        Machine::parse(told.as_ref().ok().and_then(Option::as_deref).unwrap_or_default())
    };
    let one = |(name, state): (&String, &Result<Option<String>, String>)| {
        let others: Vec<Machine> =
            told.iter().filter(|(other, _)| *other != name).map(|(_, state)| machine(state)).collect();
        let shown = match state {
            Err(why) => ShownMachine::Unread(why.clone()),
            Ok(_) => machine(state)
                .apart_from(&others)
                .text()
                .map_or(ShownMachine::Nothing, ShownMachine::Identity),
        };
        (name.clone(), shown)
    };
    told.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_nothing_identifies_is_told_before_it_is_fenced() {
        let told = |text: &str| Ok(Some(text.to_owned()));
        let members = [
            ("empty", Ok(None)),
            ("own", told("uuid=4c4c4544-0038-4a10-8052-b7c04f4e3233")),
            ("placeholder", told("uuid=03000200-0400-0500-0006-000700080009")),
            ("same", told("uuid=11111111-2222-4333-8444-555555555555")),
            ("silent", Err("timed out".to_owned())),
            ("twin", told("uuid=11111111-2222-4333-8444-555555555555")),
        ];
        let shown = judge(&members.into_iter().map(|(name, state)| (name.to_owned(), state)).collect());
        let nothing: Vec<&str> = shown
            .iter()
            .filter(|(_, shown)| **shown == ShownMachine::Nothing)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(nothing, ["empty", "placeholder", "same", "twin"]);
        assert_eq!(shown["own"].warning("own"), None);
        let words = shown["empty"].warning("empty").unwrap();
        assert!(words.contains("rbd-guardian release empty --assert-powered-off --reason TEXT"), "{words}");
        let unknown = shown["silent"].warning("silent").unwrap();
        assert!(
            unknown.contains("unknown") && !unknown.contains("nothing that"),
            "unknown is not none: {unknown}"
        );
    }
}
