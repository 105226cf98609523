//! What is known without a leader: the ledger's records, Incus and Ceph as they are read now, judged by the same core
//! that leads. So every host gives the same answer, and `plan` is what `fence` does.

use std::time::Duration;

use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::model::incus_snapshot::IncusSnapshot;
use rbd_guardian_core::model::record::{Leader, Records};

use super::context::Context;
use super::error::CliError;
use crate::ceph::look::own;
use crate::ceph::osdmap;
use crate::cli::output::say;
use crate::clock;
use crate::config::identity::Identity;
use crate::deadline::within;
use crate::incus::client::Client;
use crate::incus::gate::{is_of_another_version, marker};
use crate::incus::{self, read};
use crate::ledger::{Ledger, LedgerOpenError};
pub(super) use crate::shown::parts::AnswerSource;

/// What guardians remember.
pub(super) enum Memory {
    /// The ledger holds these records; who has the lease.
    Ledger(Box<Records>),
    /// No guardian ever led here.
    None,
    /// There is a ledger, or may be one, and it cannot be read: nothing is known of fences.
    Unread(String),
}

/// How long the ledger and Incus may take to answer what is shown without them otherwise.
const PATIENCE: Duration = Duration::from_secs(3);

/// Reads what guardians remember.
pub(super) fn memory(context: &Context) -> Memory {
    let within = context.deadline.at_most(PATIENCE);
    let ledger = match Ledger::open(&context.cluster, &context.config.ledger, &within) {
        Ok(ledger) => ledger,
        Err(LedgerOpenError::NoPool { .. }) => return Memory::None,
        Err(error) => return Memory::Unread(error.to_string()),
    };
    match ledger.read(&within) {
        Ok(snapshot) if snapshot.unread().keys().any(|key| key.starts_with("fence/")) => {
            let fences = snapshot.unread().iter().filter(|(key, _)| key.starts_with("fence/"));
            let what: Vec<String> =
                fences.map(|(key, why)| format!("{key} is not understood: {why}")).collect();
            Memory::Unread(what.join("; "))
        }
        Ok(snapshot) if snapshot.records().leader.is_none() => Memory::None,
        Ok(snapshot) => Memory::Ledger(Box::new(snapshot.records().clone())),
        Err(error) => Memory::Unread(error.to_string()),
    }
}

impl Memory {
    /// Why it is not known.
    pub(super) fn unread(&self) -> Option<&str> {
        match self {
            Self::Unread(why) => Some(why),
            Self::Ledger(_) | Self::None => None,
        }
    }
}

/// Is this memory needed to answer? Where no guardian ever led and no Incus is configured, the storage is all there is.
pub(super) fn is_more_than_storage(context: &Context, memory: &Memory) -> bool {
    match memory {
        Memory::Ledger(_) | Memory::Unread(_) => true,
        Memory::None => !context.config.incus.endpoints.is_empty(),
    }
}

/// The core, as if it began to lead now and did nothing, with what Incus says.
pub(super) fn core(context: &Context, records: Records) -> Result<(Guardian, Now), CliError> {
    let identity = Identity::find(&context.config.daemon)?;
    let addresses = context.read(own)?;
    let now = || Now { boot: clock::boot(), wall: clock::wall() };
    let mut core = Guardian::new(context.config.settings(&identity, &addresses), records, now());
    if !context.config.incus.endpoints.is_empty() {
        let began = clock::boot();
        let view = view(context);
        if let Err(why) = &view {
            say(&format!("Incus was not read, so what it would say of members is unknown: {why}"));
        }
        core.handle(now(), Input::View { began, view });
    }
    let map = context.read(osdmap::dump)?.map;
    core.handle(now(), Input::Maps(Ok(vec![map])));
    Ok((core, now()))
}

/// The core by what guardians remember and Incus says; `None` where the configuration and the storage are all there is.
///
/// # Errors
/// What guardians remember may be there and cannot be read.
pub(super) fn known(context: &Context) -> Result<Option<(Guardian, Now)>, CliError> {
    let memory = memory(context);
    let more = is_more_than_storage(context, &memory);
    match memory {
        Memory::Ledger(records) => core(context, *records).map(Some),
        Memory::None if more => core(context, Records::default()).map(Some),
        Memory::None => Ok(None),
        Memory::Unread(why) if context.config.incus.endpoints.is_empty() => {
            // As `fence` does without Incus.
            say(&format!("{why}; continuing with Ceph alone"));
            Ok(None)
        }
        Memory::Unread(why) => Err(CliError::NoMemory { why }),
    }
}

/// As members show the gate, not as they run it: asking for that leaves a trace in their logs.
fn view(context: &Context) -> Result<IncusSnapshot, String> {
    let client = Client::open(&context.config.incus).map_err(|fault| fault.to_string())?.within(PATIENCE);
    let left = context.deadline.left().map_err(|late| late.to_string())?.min(PATIENCE * 2);
    let read = incus::block_on(within(left, async move { read::read(&client, None).await }));
    let reading = read.map_err(|error| error.to_string())?.map_err(|late| late.to_string())?;
    let mut view = reading.map_err(|error| error.to_string())?.view;
    if let Some(gate) = &mut view.gate {
        for (name, text) in &mut gate.scriptlets {
            let Ok(text) = text else { continue };
            if is_of_another_version(text) {
                gate.other_version.insert(name.clone());
            }
            *text = marker(text).map(|marker| marker.to_string()).unwrap_or_default();
        }
    }
    Ok(view)
}

/// Who leads by the ledger, in words; the lease tells whether it does so now.
pub(super) fn who_leads(context: &Context, leader: Option<&Leader>) -> String {
    let within = context.deadline.at_most(PATIENCE);
    let ledger = Ledger::open(&context.cluster, &context.config.ledger, &within).ok();
    let held = ledger.map(|ledger| ledger.holder(&within));
    match (leader, held) {
        (Some(leader), Some(Ok(Some(_)))) => format!("{} on {} leads", leader.guardian, leader.host),
        (Some(leader), Some(Ok(None))) => {
            format!("NO GUARDIAN LEADS; the last one was {} on {}", leader.guardian, leader.host)
        }
        (None, _) => "no guardian has ever led here".to_owned(),
        (Some(_), Some(Err(_)) | None) => {
            "whether a guardian leads is unknown: the lease was not read".to_owned()
        }
    }
}
