//! The proof that a member booted after it was sealed (INV-5), without a wall clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::incus_snapshot::MemberState;
use crate::model::machine::{Machine, MachineComparison};
use crate::mutants::{self, Mutant};

/// What was known of the member before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baseline<'a> {
    /// The machine's marks while it was healthy ([`Machine`]), without those that another member has as well.
    pub machine: Option<&'a str>,
    /// The longest uptime that it told while it was healthy, or since.
    pub uptime: Option<Duration>,
    /// How long ago it was sealed, at the moment it was asked: never more than the truth.
    pub since_seal: Option<Duration>,
}

/// Why an answer proves no reboot. Each carries both values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum NotProved {
    /// Nothing to compare with.
    #[error("no uptime of it was recorded while it was healthy")]
    NoSample,
    /// Nobody knows when it was sealed, by a clock that can be trusted.
    #[error("this guardian does not know how long ago it was sealed")]
    NoSeal,
    /// Nothing was known that tells its machine from another.
    #[error(
        "nothing was recorded while it was healthy that tells its machine from another: no UUID, serial number or \
         address of a network card that it alone has"
    )]
    NoIdentity,
    /// Another machine under the same name, or one that does not tell.
    #[error("its machine identity is {now}, and was {before} while it was healthy")]
    OtherMachine { before: String, now: String },
    /// It has run for longer than it had when it last told. Where that was soon after a boot, a paused machine looks like
    /// a rebooted one.
    #[error("it is up for {} s, and had told an uptime of {} s before: that shows no reboot since", .now.as_secs(), .before.as_secs())]
    SameBoot {
        /// The last healthy sample.
        before: Duration,
        /// What it says now.
        now: Duration,
    },
    /// It rebooted, but before the seal: what it started then may still run.
    #[error("it is up for {} s, and was sealed {} s ago: it has not rebooted since", .now.as_secs(), .since_seal.as_secs())]
    BootedBeforeSeal {
        /// What it says now.
        now: Duration,
        since_seal: Duration,
    },
}

/// Uptimes come in whole seconds, rounded down (`sysinfo(2)`).
const ROUNDING: Duration = Duration::from_secs(2);

/// Does what a member says of itself prove that it booted after the seal?
///
/// # Errors
/// The first condition that is not met.
pub fn rebooted(before: &Baseline<'_>, now: &MemberState) -> Result<(), NotProved> {
    let healthy = before.uptime.ok_or(NotProved::NoSample)?;
    let since_seal = before.since_seal.ok_or(NotProved::NoSeal)?;
    if mutants::is(Mutant::AnyAnswerIsReboot) {
        return Ok(());
    }
    is_the_same(before.machine, now.machine.as_deref())?;
    if now.uptime + ROUNDING > healthy && !mutants::is(Mutant::PausedIsReboot) {
        return Err(NotProved::SameBoot { before: healthy, now: now.uptime });
    }
    if now.uptime + ROUNDING > since_seal {
        return Err(NotProved::BootedBeforeSeal { now: now.uptime, since_seal });
    }
    Ok(())
}

/// Is it the machine that was healthy?
///
/// # Errors
/// Another one, or nothing tells.
pub fn is_the_same(before: Option<&str>, now: Option<&str>) -> Result<(), NotProved> {
    if mutants::is(Mutant::OtherMachineAccepted) {
        return Ok(());
    }
    let known = Machine::parse(before.unwrap_or_default());
    if !known.is_known() {
        return Err(NotProved::NoIdentity);
    }
    match known.compare(&Machine::parse(now.unwrap_or_default())) {
        MachineComparison::Same => Ok(()),
        MachineComparison::Other | MachineComparison::Unknown => {
            let told = |machine: Option<&str>| machine.unwrap_or("unknown").to_owned();
            Err(NotProved::OtherMachine { before: told(before), now: told(now) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn state(machine: Option<&str>, uptime: u64) -> MemberState {
        MemberState { uptime: secs(uptime), machine: machine.map(str::to_owned) }
    }

    #[test]
    fn inv5_only_a_boot_after_the_seal_is_a_proof() {
        let before = Baseline { machine: Some("m"), uptime: Some(secs(1000)), since_seal: Some(secs(100)) };
        assert_eq!(rebooted(&before, &state(Some("m"), 50)), Ok(()));
        let refused = |state| rebooted(&before, &state).unwrap_err();
        assert!(matches!(refused(state(Some("m"), 1100)), NotProved::SameBoot { .. }), "still running");
        assert!(matches!(refused(state(Some("m"), 200)), NotProved::BootedBeforeSeal { .. }));
        assert!(matches!(refused(state(Some("m"), 99)), NotProved::BootedBeforeSeal { .. }), "rounding");
        assert!(matches!(refused(state(Some("other"), 50)), NotProved::OtherMachine { .. }), "re-added name");
        assert!(matches!(refused(state(None, 50)), NotProved::OtherMachine { .. }));
        // A paused machine's uptime stands still, or goes on: it never falls below what it was.
        assert!(matches!(refused(state(Some("m"), 1000)), NotProved::SameBoot { .. }));
        let unknown = Baseline { uptime: None, ..before.clone() };
        assert_eq!(rebooted(&unknown, &state(Some("m"), 50)), Err(NotProved::NoSample));
        let unknown = Baseline { since_seal: None, ..before.clone() };
        assert_eq!(rebooted(&unknown, &state(Some("m"), 50)), Err(NotProved::NoSeal));
        let unknown = Baseline { machine: None, ..before };
        assert_eq!(rebooted(&unknown, &state(None, 50)), Err(NotProved::NoIdentity));
    }
}
