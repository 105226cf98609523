//! What a step of a fence or release may rely on.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::model::now::Now;
use crate::model::record::FenceRecord;

/// What a step may rely on, as the guardian knows it at this moment.
#[derive(Debug, Clone, Copy)]
pub struct Preconditions<'a> {
    pub now: Now,
    /// The monitors' clock, by which entries end.
    pub storage: Timestamp,
    /// What the ledger holds of this fence.
    pub recorded: Option<&'a FenceRecord>,
    /// Still lost in a reading that began after the intent was recorded, and silent when it was asked itself since; `None`
    /// until both are known. Where nobody but the operator is the judge, always `Some(true)`.
    pub still_wanted: Option<bool>,
    /// No seal key of the member is at the gate, as read back; or closing it failed and cannot be waited for.
    pub gate_closed: GateClosed,
    /// Operations that could start an instance, as of now; `None` if they are not known.
    pub starting: Option<&'a BTreeSet<String>>,
}

/// Whether the gate lets instances of the member go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateClosed {
    /// No seal key is there, as read back after the last write.
    Yes,
    /// One is there, or nobody knows.
    NotYet,
    /// It cannot be told or changed now: the platform does not answer.
    CannotTell,
}
