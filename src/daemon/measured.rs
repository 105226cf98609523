//! Words for what is counted and timed. Each stays what it is: dashboards and alert rules name them.

use rbd_guardian_core::fence::step::{Step, StepOutcome};
use rbd_guardian_core::guardian::io::{Effect, Input};
use rbd_guardian_core::model::operator_request::Request;

pub(super) fn effect(effect: &Effect) -> &'static str {
    match effect {
        Effect::ReadView { whole: true } => "read-incus-everything",
        Effect::ReadView { whole: false } => "read-incus",
        Effect::ReadMemberState(_) => "read-member-state",
        Effect::ReadNetworks(_) => "read-networks",
        Effect::Ping(_) => "ping",
        Effect::Look => "look",
        Effect::ReadMaps { .. } => "read-osdmaps",
        Effect::ReadAudit(_) => "read-audit",
        Effect::Sweep(_) => "sweep",
        Effect::Find(_) => "find-images",
        Effect::Record { .. } => "record",
        Effect::Fence(_, asked) | Effect::Release(_, asked) => step(asked),
        Effect::Retire(..) => "retire-entries",
        Effect::PutGate { .. } => "put-gate",
        Effect::PushGate => "push-gate",
        Effect::BreakLock(_) => "break-lock",
        Effect::Start(_) => "start-instance",
    }
}

fn step(step: &Step) -> &'static str {
    match step {
        Step::FailOver(_) => "fail-over",
        Step::ReadDaemons => "read-daemons",
        Step::Add(_) => "add-entries",
        Step::Remove(_) => "remove-entries",
        Step::ReadMap => "read-back",
        Step::Barrier { .. } => "barrier",
        Step::ReadClients => "read-clients",
    }
}

fn outcome(outcome: &StepOutcome) -> &'static str {
    match outcome {
        StepOutcome::FailedOver(..) => "failed-over",
        StepOutcome::Daemons(_) => "daemons",
        StepOutcome::Added(_) => "added",
        StepOutcome::Removed(_) => "removed",
        StepOutcome::Map(_) => "map",
        StepOutcome::Proved(_) => "proved",
        StepOutcome::Clients(_) => "clients",
        StepOutcome::Unread(_) => "unread",
    }
}

pub(super) fn input(input: &Input) -> &'static str {
    match input {
        Input::Tick => "tick",
        Input::Notice(_) => "notice",
        Input::View { .. } => "incus",
        Input::MemberState(..) => "member-state",
        Input::Answered(_) => "answered",
        Input::Networks(..) => "networks",
        Input::Pinged(..) => "pinged",
        Input::Looked(_) => "looked",
        Input::Maps(_) => "osdmaps",
        Input::Audit(..) => "audit",
        Input::Swept { .. } => "swept",
        Input::Found { .. } => "found",
        Input::Recorded(_) => "recorded",
        Input::Step(_, became) => outcome(became),
        Input::Retired(..) => "retired",
        Input::GatePut(_) => "gate-put",
        Input::GatePushed(_) => "gate-pushed",
        Input::LockBroken(..) => "lock-broken",
        Input::Started(..) => "started",
        Input::Request(..) => "request",
        Input::Deposed(_) => "deposed",
    }
}

pub(super) fn verb(request: &Request) -> &'static str {
    match request {
        Request::Fence { .. } => "fence",
        Request::Release { .. } => "release",
        Request::Disarm { .. } => "disarm",
        Request::Arm { .. } => "arm",
        Request::Note { .. } => "note",
    }
}
