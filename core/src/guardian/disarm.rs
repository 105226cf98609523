//! An operator lets no fence begin by itself for a while, for planned work on the network.
//!
//! What is fenced is held all the same, the gate stays closed for a member that is not sealed, and an operator can fence.

use std::time::Duration;

use jiff::Timestamp;

use crate::guardian::context::Ctx;
use crate::guardian::report::{Alarm, Level, Outcome, Reports};
use crate::guardian::trail::DueChange;
use crate::model::overrides::reason;
use crate::model::record::{Change, DisarmRecord, Key, Record};
use crate::rules::refusal::Refusal;

/// Longer is no planned work.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// By how much the clocks of two guardians' hosts may differ.
const SKEW: Duration = Duration::from_secs(60);

/// What an operator decided, as long as it counts: it is in the ledger, and its time is not over. Nor is it before its
/// time: a clock that was set back by a year would let no fence begin by itself for that year. It stays in the ledger then,
/// for a guardian whose clock is right.
pub(super) fn disarmed(ctx: Ctx<'_>) -> Option<&DisarmRecord> {
    let now = ctx.now.wall;
    ctx.records.disarm.as_ref().filter(|disarm| now + SKEW >= disarm.since && now < disarm.until)
}

pub(super) fn handle_disarm(
    ctx: Ctx<'_>,
    until: Timestamp,
    said: Option<String>,
    by: String,
) -> Result<DueChange, Outcome> {
    let Some(reason) = reason(said.as_deref()).map(str::to_owned) else {
        return Err(Refusal::NoReason { flags: vec!["disarm".to_owned()] }.into());
    };
    let since = ctx.now.wall;
    let lasts = Duration::try_from(until.duration_since(since)).unwrap_or_default();
    if lasts.is_zero() || lasts > LONGEST {
        let text = format!("{until} is not within the next seven days by the guardian's clock ({since})");
        return Err(Outcome::Failed(text));
    }
    let why = format!("{by}: {reason}");
    let changes = vec![Change::Put(Record::Disarm(DisarmRecord { since, until, by, reason }))];
    Ok(DueChange { changes, what: format!("disarmed until {until}"), why })
}

/// An operator arms them again. That they are armed needs no record.
pub(super) fn handle_arm(ctx: Ctx<'_>, said: Option<String>, by: &str) -> Result<DueChange, Outcome> {
    let why = reason(said.as_deref()).unwrap_or("no reason given");
    if ctx.records.disarm.is_none() {
        return Err(Outcome::Noted);
    }
    Ok(armed(format!("{by}: {why}")))
}

/// Its time is over: the record goes. That it does not count any more needs no record.
pub(super) fn due_end(ctx: Ctx<'_>, reports: &mut Reports) -> Option<DueChange> {
    let disarm = ctx.records.disarm.as_ref().filter(|disarm| ctx.now.wall >= disarm.until)?;
    let why = format!("the time that {} disarmed it for is over ({})", disarm.by, disarm.until);
    reports.log(Level::Info, "armed", None, format!("fences begin by themselves again: {why}"));
    Some(armed(why))
}

fn armed(why: String) -> DueChange {
    DueChange { changes: vec![Change::Remove(Key::Disarm)], what: "armed".to_owned(), why }
}

pub(super) fn alarm(ctx: Ctx<'_>) -> Option<Alarm> {
    let DisarmRecord { since, until, by, reason } = ctx.records.disarm.as_ref()?;
    if ctx.now.wall >= *until {
        return None;
    }
    if disarmed(ctx).is_none() {
        let text = format!(
            "{by} disarmed the guardians at {since} ({reason}), which is still to come by the clock of this host ({}): \
             fences begin by themselves",
            ctx.now.wall
        );
        let advice = vec!["correct the clock of this host, or disarm again".to_owned()];
        return Some(Alarm::new("disarmed", None, text, advice));
    }
    let text = format!("no fence begins by itself until {until}: {by} disarmed the guardians ({reason})");
    let advice = vec!["when the work is done: rbd-guardian arm".to_owned()];
    Some(Alarm::new("disarmed", None, text, advice))
}
