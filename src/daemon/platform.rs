//! What is asked of Incus, in the words of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use serde_json::json;

use crate::clock;
use crate::domain::guardian::gate::Contents;
use crate::domain::guardian::io::Input;
use crate::domain::view::{InstanceId, MemberStatus, View};
use crate::incus::client::{Accepted, Client};
use crate::incus::gate::keys::{Written, put_keys};
use crate::incus::gate::place::{self, Standing};
use crate::incus::gate::{Scriptlet, again, is_of_another_version, marker};
use crate::incus::{api, read};

pub(super) const OVER: &str = "the lease was over before it was sent";
/// How long an instance may take to start before that counts as failed.
const START_SECONDS: u64 = 30;

/// How long a member that was seen to run the gate is believed to, while it shows the same text.
const PROVED_FOR: Duration = Duration::from_secs(60);

/// What each member showed when it was last asked what it runs, and whether it is that; and when all were asked. What
/// one runs does not change while it is silent: after a restart it loads what is stored.
#[derive(Debug, Default)]
pub(super) struct Proved {
    at: Option<Duration>,
    runs: BTreeMap<String, (String, bool)>,
    /// Members that did not say what they run when the view was last read.
    silent: BTreeSet<String>,
}

/// The view, with the gate as members *run* it: what one shows proves nothing (`incus::gate::place`). They are asked
/// when something else is shown than before, and now and then.
pub(super) async fn view(
    incus: &Client,
    whole: bool,
    before: Option<&View>,
    proved: &Mutex<Proved>,
) -> Result<View, String> {
    let silent = held(proved).silent.clone();
    let reading = if whole { read::read(incus, before).await } else { read::glance(incus, &silent).await };
    let mut view = reading.map_err(|error| error.to_string())?.view;
    let Some(gate) = &mut view.gate else { return Ok(view) };
    for (name, text) in &mut gate.scriptlets {
        let Ok(text) = text else { continue };
        if is_of_another_version(text) {
            gate.other_version.insert(name.clone());
        }
        *text = marker(text).map(|marker| marker.to_string()).unwrap_or_default();
    }
    let known = |proved: &Proved| {
        let fresh = proved.at.is_some_and(|at| clock::boot().saturating_sub(at) < PROVED_FOR);
        let mut shown = gate.scriptlets.iter().filter_map(|(name, line)| Some((name, line.as_ref().ok()?)));
        let asked = |name, line| proved.runs.get(name).is_some_and(|(shown, _)| shown == line);
        fresh && shown.all(|(name, line)| line.is_empty() || asked(name, line))
    };
    let silent = |(name, line): (&String, &Result<_, _>)| line.is_err().then(|| name.clone());
    held(proved).silent = gate.scriptlets.iter().filter_map(silent).collect();
    if !known(&held(proved)) {
        let at = clock::boot();
        // Not of one that has just been silent: a fence may wait for this.
        let answer = |name: &String| gate.scriptlets.get(name).is_some_and(Result::is_ok);
        let standings = place::standings(incus, answer).await.map_err(|error| error.to_string())?;
        let runs = standings.into_iter().filter_map(|(name, standing)| match standing.ok()? {
            Standing::Runs(marker) => Some((name, (marker.to_string(), true))),
            Standing::Shows(marker) => Some((name, (marker.to_string(), false))),
            Standing::None => Some((name, (String::new(), false))),
        });
        let runs: Vec<_> = runs.collect();
        let mut proved = held(proved);
        proved.at = Some(at);
        proved.runs.extend(runs);
    }
    let proved = held(proved);
    let members = &view.members;
    for (name, line) in &mut gate.scriptlets {
        // One that was healed is evacuated and may be gone: what was sent since, it does not run.
        let counts = members.get(name).is_some_and(|member| match member.status {
            MemberStatus::Online
            | MemberStatus::Restoring
            | MemberStatus::Blocked
            | MemberStatus::Other(_) => true,
            MemberStatus::Offline | MemberStatus::Evacuating | MemberStatus::Evacuated => false,
        });
        if let (Err(_), Some((shown, true)), true) = (&line, proved.runs.get(name), counts) {
            *line = Ok(shown.clone());
        }
        // Of a member that was never reached when all were asked, nothing is known.
        if let Ok(line) = line
            && !proved.runs.get(name).is_some_and(|(shown, runs)| *runs && shown == line)
        {
            line.clear();
        }
    }
    drop(proved);
    Ok(view)
}

fn held(proved: &Mutex<Proved>) -> MutexGuard<'_, Proved> {
    proved.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Members that answered when they were last asked.
pub(super) type Answering = Mutex<BTreeSet<String>>;

/// What a member says of itself. Only one that answered before has the time that its state takes: a fence of one that is
/// lost waits for this (INV-6).
pub(super) async fn member_state(incus: &Client, member: String, answering: &Answering) -> Input {
    let known =
        |members: &Answering| members.lock().unwrap_or_else(PoisonError::into_inner).contains(&member);
    let answered = if known(answering) {
        read::member_state(incus, &member).await.map(Some)
    } else {
        read::member_answers(incus, &member).await.map(|()| None)
    };
    {
        let mut answering = answering.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = if answered.is_ok() { answering.insert(member.clone()) } else { answering.remove(&member) };
    }
    match answered {
        Ok(Some(state)) => Input::MemberState(member, Ok(state)),
        Ok(None) => Input::Answered(member),
        Err(error) => Input::MemberState(member, Err(error.to_string())),
    }
}

pub(super) async fn networks(incus: &Client, member: &str) -> Result<BTreeSet<IpNet>, String> {
    read::member_addresses(incus, member).await.map_err(|error| error.to_string())
}

/// Tells the gate at each of these members, where `may_send` lets it; where that failed, and why. Whatever this says, the
/// keys are read back by the next view.
pub(super) async fn put_gate(
    incus: &Client,
    at: &BTreeSet<String>,
    contents: &Contents,
    epoch: u64,
    may_send: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    let put = async |member: &String| {
        let why = match put_keys(incus, member, contents, epoch, || may_send(member)).await {
            Written::Applied => return None,
            Written::Changed => "somebody else changed the member meanwhile".to_owned(),
            Written::Stale { found } => {
                format!("it has epoch {found} already, which is not below {epoch}: another guardian wrote it")
            }
            Written::Withheld => OVER.to_owned(),
            Written::Refused(error) => format!("not written: {error}"),
            Written::Unknown(error) => format!("whether it was written is unknown: {error}"),
        };
        Some((member.clone(), why))
    };
    join_all(at.iter().map(put)).await.into_iter().flatten().collect()
}

/// Sends the gate that is stored once more, under a new name, so that every member that is reached loads it. Where none
/// is stored there is nothing to send: installing it is the operator's.
pub(super) async fn push_gate(incus: &Client) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let (server, scriptlet) = place::stored(incus).await.map_err(|error| told(&error))?;
    match scriptlet {
        // Also that of another version: which one it is to be, the operator says with `gate install`.
        Scriptlet::Gate { marker, intact: true, .. } => {
            let push = place::new_push().map_err(|error| told(&error))?;
            let text = again(server.scriptlet(), &marker, &push);
            place::push(incus, &text).await.map_err(|error| told(&error))
        }
        Scriptlet::Gate { intact: false, .. } => {
            Err("the gate was changed by hand: see `rbd-guardian gate show`, then `gate install --force`"
                .to_owned())
        }
        Scriptlet::Absent | Scriptlet::Site(_) => {
            Err("no gate is installed: run `rbd-guardian gate install`".to_owned())
        }
    }
}

/// Starts an instance and waits until it runs. One that runs already is no error.
pub(super) async fn start(incus: &Client, instance: &InstanceId) -> Result<(), String> {
    let path = format!("/1.0/instances/{}/state?project={}", instance.name, instance.project);
    let body = json!({"action": "start", "timeout": START_SECONDS});
    let accepted = incus.put(&path, &body, None).await.map_err(|error| error.to_string())?;
    let Accepted::Operation(operation) = accepted else { return Ok(()) };
    let operation = operation.split('?').next().unwrap_or_default();
    let wait = format!("{operation}/wait?timeout={START_SECONDS}");
    let patient = incus.within(Duration::from_secs(START_SECONDS) + incus.timeout());
    let ended: api::Operation = patient.get(&wait).await.map_err(|error| error.to_string())?;
    match ended.status.as_str() {
        "Success" => Ok(()),
        _ if ended.err.contains("already running") => Ok(()),
        status => Err(format!("{status}: {}", ended.err)),
    }
}
