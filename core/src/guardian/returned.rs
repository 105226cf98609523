//! Whether a fenced member that answers again has rebooted since (INV-5), and what is kept of healthy ones for that.

use std::time::Duration;

use crate::fence::Fence;
use crate::guardian::address_book::AddressBook;
use crate::guardian::context::Ctx;
use crate::model::incus_snapshot::MemberState;
use crate::model::machine::Machine;
use crate::model::now::Now;
use crate::model::record::{FenceState, MemberRecord, UptimeSample};
use crate::rules::reboot_proof::{self, Baseline, NotProved};

/// What tells the member's machine from those of the other members.
pub(super) fn machine_of(ctx: Ctx<'_>, name: &str) -> Machine {
    let marks = |member: &MemberRecord| Machine::parse(member.machine.as_deref().unwrap_or_default());
    // One that is a member no more may have been this machine under another name.
    let current =
        |other: &&MemberRecord| ctx.incus.view().is_none_or(|view| view.members.contains_key(&other.name));
    let others = ctx.book.members.values().filter(|other| other.name != name).filter(current);
    let others: Vec<Machine> = others.map(marks).collect();
    ctx.book.members.get(name).map(marks).unwrap_or_default().apart_from(&others)
}

/// Did the member of this fence reboot since it was sealed, by the state that it told when it was `asked`? Says why; `None`:
/// the fence is not at the point where that counts.
pub(super) fn judge(
    ctx: Ctx<'_>,
    fence: &Fence,
    name: &str,
    state: &MemberState,
    asked: Duration,
) -> Option<Result<String, NotProved>> {
    if fence.record().state != FenceState::Sealed || fence.release().is_some() {
        return None;
    }
    let machine = machine_of(ctx, name).text();
    let mark = fence.record().marks.get(&ctx.settings.boot_id);
    let baseline = Baseline {
        machine: machine.as_deref(),
        uptime: ctx.book.members.get(name).and_then(|member| member.uptime).map(|sample| sample.uptime),
        since_seal: mark.map(|mark| asked.saturating_sub(*mark)),
    };
    let (uptime, since) = (state.uptime.as_secs(), baseline.since_seal.unwrap_or_default().as_secs());
    let why = format!("it booted {uptime} s ago, and was sealed {since} s ago");
    Some(reboot_proof::rebooted(&baseline, state).map(|()| why))
}

/// A healthy member's uptime and identity, for the proof of a reboot. Kept unless it changed by much: a smaller
/// sample only makes the proof stricter.
pub(super) fn remember(now: Now, book: &mut AddressBook, name: &str, state: &MemberState) {
    let member = book.of(name);
    let known = member.uptime.map(|sample| sample.uptime);
    if known.is_none_or(|known| state.uptime < known || state.uptime > known * 3 / 2) {
        member.uptime = Some(UptimeSample { uptime: state.uptime, at: now.wall });
    }
    if state.machine.is_some() {
        member.machine.clone_from(&state.machine);
    }
}

/// The uptime of a machine that is known to be the same, fenced as it is: an uptime below it shows a reboot since, also
/// where the member was fenced soon after a boot.
pub(super) fn remember_longer(now: Now, book: &mut AddressBook, name: &str, state: &MemberState) {
    let sample = &mut book.of(name).uptime;
    if sample.is_some_and(|known| state.uptime > known.uptime * 3 / 2) {
        *sample = Some(UptimeSample { uptime: state.uptime, at: now.wall });
    }
}
