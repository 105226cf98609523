//! `disarm` and `arm`: whether fences begin by themselves.

use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::model::operator_request::Request;
use serde::Serialize;

use super::context::print;
use super::error::CliError;
use super::{ArmArgs, Common, DisarmArgs, Exit};
use crate::cli::dispatch::{VerbOutcome, VerbStart, operator, otherwise};
use crate::cli::output::say;
use crate::clock;
use crate::control::protocol::ControlLine;

#[derive(Serialize)]
struct DisarmAnswer {
    state: &'static str,
    until: Option<Timestamp>,
    by: String,
    reason: Option<String>,
}

pub(super) fn disarm(common: &Common, args: &DisarmArgs) -> Result<Exit, CliError> {
    let wall = clock::wall();
    // Whole seconds: people read it.
    let until =
        Timestamp::from_second(wall.as_second()).unwrap_or(wall).saturating_add(args.span).unwrap_or(wall);
    let by = operator();
    let reason = Some(args.reason.clone());
    let request = Request::Disarm { until, reason: reason.clone(), by: by.clone() };
    let answer = DisarmAnswer { state: "disarmed", until: Some(until), by, reason };
    ask(common, request, &answer, |answer| {
        let until = answer.until.map(|until| until.to_string()).unwrap_or_default();
        format!(
            "DISARMED until {until}: no fence begins by itself\nheld fences are held, the gate stays closed, and \
             `rbd-guardian fence MEMBER` works\nwhen the work is done: rbd-guardian arm\n"
        )
    })
}

pub(super) fn arm(common: &Common, args: &ArmArgs) -> Result<Exit, CliError> {
    let by = operator();
    let request = Request::Arm { reason: args.reason.clone(), by: by.clone() };
    let answer = DisarmAnswer { state: "armed", until: None, by, reason: args.reason.clone() };
    ask(common, request, &answer, |_| "ARMED: fences begin by themselves\n".to_owned())
}

fn ask(
    common: &Common,
    request: Request,
    answer: &DisarmAnswer,
    text: impl FnOnce(&DisarmAnswer) -> String,
) -> Result<Exit, CliError> {
    match VerbStart::new(common)?.request(request)? {
        VerbOutcome::Answered(ControlLine::Noted) => {
            print(common.format(), answer, text)?;
            Ok(Exit::Done)
        }
        VerbOutcome::Alone(_) => {
            say(
                "no guardian keeps a ledger here, so no fence begins by itself: there is nothing to disarm or arm",
            );
            Ok(Exit::Failed)
        }
        VerbOutcome::Underway { .. } => Ok(Exit::CannotTell),
        VerbOutcome::Answered(line) => otherwise(common, None, line),
    }
}

/// For how long.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|error| format!("{error}; write 2h or 90min"))?;
    let bounds = Duration::from_secs(60)..=Duration::from_secs(7 * 86_400);
    if bounds.contains(&span) { Ok(span) } else { Err("between 1min and 7days".to_owned()) }
}
