//! Words for what is counted and timed. Each stays what it is: dashboards and alert rules name them.

use rbd_guardian_core::fence::releasing::ReleasingEffect;
use rbd_guardian_core::fence::sealing::SealingEffect;
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
        Effect::Sweep => "sweep",
        Effect::Find(_) => "find-images",
        Effect::Record { .. } => "record",
        Effect::Fence(_, step) => sealing(step),
        Effect::Release(_, step) => releasing(step),
        Effect::Retire(..) => "retire-entries",
        Effect::PutGate { .. } => "put-gate",
        Effect::PushGate => "push-gate",
        Effect::BreakLock(_) => "break-lock",
        Effect::Start(_) => "start-instance",
    }
}

fn sealing(step: &SealingEffect) -> &'static str {
    match step {
        SealingEffect::FailOver(_) => "fail-over",
        SealingEffect::ReadDaemons => "read-daemons",
        SealingEffect::Add(_) => "add-entries",
        SealingEffect::Remove(_) => "remove-entries",
        SealingEffect::ReadMap => "read-back",
        SealingEffect::Barrier { .. } => "barrier",
    }
}

fn releasing(step: &ReleasingEffect) -> &'static str {
    match step {
        ReleasingEffect::ReadMap => "read-back",
        ReleasingEffect::ReadClients => "read-clients",
        ReleasingEffect::Add(_) => "add-entries",
        ReleasingEffect::Remove(_) => "remove-entries",
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
        Input::FailedOver(..) => "failed-over",
        Input::Daemons(..) => "daemons",
        Input::Added(..) => "added",
        Input::Removed(..) => "removed",
        Input::Retired(..) => "retired",
        Input::Map(..) => "map",
        Input::Proved(..) => "proved",
        Input::Clients(..) => "clients",
        Input::Unread(..) => "unread",
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
