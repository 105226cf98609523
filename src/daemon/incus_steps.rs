//! What is asked of Incus, in the words of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use rbd_guardian_core::guardian::io::Input;
use rbd_guardian_core::model::gate_keys::GateContents;
use rbd_guardian_core::model::incus_snapshot::{IncusSnapshot, InstanceId, MemberStatus};
use serde_json::json;

use crate::clock;
use crate::incus::client::{Accepted, Client};
use crate::incus::gate::keys::{KeysWrite, put_keys};
use crate::incus::gate::place::{self, InstalledGate};
use crate::incus::gate::{Scriptlet, again, is_of_another_version, marker};
use crate::incus::path::ApiPath;
use crate::incus::{api, read};
use rbd_guardian_core::model::epoch::GateEpoch;

pub(super) const OVER: &str = "the lease was over before it was sent";
/// How long an instance may take to start before that counts as failed.
const START_SECONDS: u64 = 30;

/// How often a member is probed that shows what it showed before: each probe is a failed request in its log.
const PROBE_EVERY: Duration = Duration::from_secs(3600);
/// Between two tries to probe a member that could not be asked.
const TRY_EVERY: Duration = Duration::from_secs(5);

/// What each member showed when it was last probed, and whether it runs that. What one runs does not change while it is
/// silent: after a restart it loads what is stored.
#[derive(Debug, Default)]
pub(super) struct ProbedGates {
    runs: BTreeMap<String, GateProbe>,
    /// When a member was last to be probed.
    tried: BTreeMap<String, Duration>,
    /// Members that did not say what they run when the view was last read.
    silent: BTreeSet<String>,
}

/// What a probe said of a member.
#[derive(Debug, PartialEq, Eq)]
struct GateProbe {
    shown: String,
    runs: bool,
    at: Duration,
    /// It was silent since: it may have been restarted.
    left: bool,
}

impl ProbedGates {
    /// Members to be probed now, by what each shows: after a change, after a restart of one that did not run what it shows,
    /// and now and then.
    fn due(&mut self, shown: &BTreeMap<String, Result<String, String>>, now: Duration) -> BTreeSet<String> {
        self.silent.clear();
        let mut due = BTreeSet::new();
        for (name, line) in shown {
            let run = self.runs.get_mut(name);
            let Ok(line) = line else {
                self.silent.insert(name.clone());
                if let Some(run) = run {
                    run.left = true;
                }
                continue;
            };
            let known = run.is_some_and(|run| {
                run.shown == *line && now.saturating_sub(run.at) < PROBE_EVERY && (run.runs || !run.left)
            });
            let tried = self.tried.get(name).is_some_and(|at| now.saturating_sub(*at) < TRY_EVERY);
            // What is no gate is not probed.
            if !known && !tried && !line.is_empty() {
                self.tried.insert(name.clone(), now);
                due.insert(name.clone());
            }
        }
        due
    }

    fn note(&mut self, name: String, standing: InstalledGate, at: Duration) {
        let (shown, runs) = match standing {
            InstalledGate::Runs(marker) => (marker.to_string(), true),
            InstalledGate::Shows(marker) => (marker.to_string(), false),
            InstalledGate::None => (String::new(), false),
        };
        self.tried.remove(&name);
        self.runs.insert(name, GateProbe { shown, runs, at, left: false });
    }

    /// From what each member shows to what it runs. What one runs that does not answer is remembered.
    fn settle<'a>(
        &self,
        lines: &mut BTreeMap<String, Result<String, String>>,
        status: impl Fn(&str) -> Option<&'a MemberStatus>,
    ) {
        let shown: BTreeSet<String> = lines.values().flatten().cloned().collect();
        for (name, line) in lines {
            let remembered = self.runs.get(name).filter(|run| run.runs).map(|run| &run.shown);
            if let (Err(_), Some(remembered)) = (&line, remembered) {
                let counts = match status(name) {
                    Some(
                        MemberStatus::Online
                        | MemberStatus::Restoring
                        | MemberStatus::Blocked
                        | MemberStatus::Other(_),
                    ) => true,
                    // It may have been healed, and be gone: what was sent since, it does not run. Nothing was while another shows the same.
                    Some(MemberStatus::Evacuating | MemberStatus::Evacuated) => shown.contains(remembered),
                    Some(MemberStatus::Offline) | None => false,
                };
                if counts {
                    *line = Ok(remembered.clone());
                }
            }
            // Of a member that was never reached when all were asked, nothing is known.
            if let Ok(line) = line
                && !self.runs(name, line)
            {
                line.clear();
            }
        }
    }

    /// Was it seen to run what it shows now?
    fn runs(&self, name: &str, line: &str) -> bool {
        self.runs.get(name).is_some_and(|run| run.runs && run.shown == line)
    }
}

/// The view, with the gate as members *run* it: what one shows proves nothing (`incus::gate::place`). They are asked
/// when something else is shown than before, and now and then.
pub(super) async fn view(
    incus: &Client,
    whole: bool,
    before: Option<&IncusSnapshot>,
    proved: &Mutex<ProbedGates>,
) -> Result<IncusSnapshot, String> {
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
    let at = clock::boot();
    // Not of one that has just been silent: a fence may wait for this.
    let due = held(proved).due(&gate.scriptlets, at);
    if !due.is_empty() {
        let standings = place::standings(incus, |name| due.contains(name)).await;
        let mut proved = held(proved);
        for (name, standing) in standings.map_err(|error| error.to_string())? {
            if let Ok(standing) = standing {
                proved.note(name, standing, at);
            }
        }
    }
    held(proved).settle(&mut gate.scriptlets, |name| view.members.get(name).map(|member| &member.status));
    Ok(view)
}

fn held(proved: &Mutex<ProbedGates>) -> MutexGuard<'_, ProbedGates> {
    proved.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Members that answered when they were last asked.
pub(super) type AnsweringMembers = Mutex<BTreeSet<String>>;

/// What a member says of itself. Only one that answered before has the time that its state takes: a fence of one that is
/// lost waits for this (INV-6).
pub(super) async fn member_state(incus: &Client, member: String, answering: &AnsweringMembers) -> Input {
    let known =
        |members: &AnsweringMembers| members.lock().unwrap_or_else(PoisonError::into_inner).contains(&member);
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
    contents: &GateContents,
    epoch: GateEpoch,
    may_send: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    let put = async |member: &String| {
        let why = match put_keys(incus, member, contents, epoch, || may_send(member)).await {
            KeysWrite::Applied => return None,
            KeysWrite::Changed => "someone else changed the member's configuration meanwhile".to_owned(),
            KeysWrite::Stale { found } => {
                format!(
                    "the gate already has epoch {found}, which is not below {epoch}: another guardian wrote it"
                )
            }
            KeysWrite::Withheld => OVER.to_owned(),
            KeysWrite::Refused(error) => format!("not written: {error}"),
            KeysWrite::Unknown(error) => format!("no answer to the write, so its result is unknown: {error}"),
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
    let path = ApiPath::of(&["instances", &instance.name, "state"]).with("project", &instance.project).text();
    let body = json!({"action": "start", "timeout": START_SECONDS});
    let accepted = incus.put(&path, &body, None).await.map_err(|error| error.to_string())?;
    let Accepted::Operation(operation) = accepted else { return Ok(()) };
    let wait = ApiPath::under(&operation, &["wait"]).with("timeout", &START_SECONDS.to_string()).text();
    let patient = incus.within(Duration::from_secs(START_SECONDS) + incus.timeout());
    let ended: api::Operation = patient.get(&wait).await.map_err(|error| error.to_string())?;
    match ended.status.as_str() {
        "Success" => Ok(()),
        _ if ended.err.contains("already running") => Ok(()),
        status => Err(format!("{status}: {}", ended.err)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shown(lines: &[(&str, Result<&str, &str>)]) -> BTreeMap<String, Result<String, String>> {
        let own = |line: &Result<&str, &str>| line.map(str::to_owned).map_err(str::to_owned);
        lines.iter().map(|(name, line)| ((*name).to_owned(), own(line))).collect()
    }

    /// A member probed, in a world where each runs what it shows, or does not.
    struct World {
        proved: ProbedGates,
        now: Duration,
        probes: BTreeMap<String, u32>,
    }

    impl World {
        fn views(&mut self, count: u64, lines: &BTreeMap<String, Result<String, String>>, runs: bool) {
            for _ in 0..count {
                self.now += SECOND;
                for name in self.proved.due(lines, self.now) {
                    *self.probes.entry(name.clone()).or_default() += 1;
                    let run =
                        GateProbe { shown: lines[&name].clone().unwrap(), runs, at: self.now, left: false };
                    self.proved.tried.remove(&name);
                    self.proved.runs.insert(name, run);
                }
            }
        }

        fn probes(&mut self) -> Vec<u32> {
            std::mem::take(&mut self.probes).into_values().collect()
        }
    }

    #[test]
    fn a_member_is_probed_once_after_a_change_and_once_an_hour() {
        let mut world = World { proved: ProbedGates::default(), now: 10 * SECOND, probes: BTreeMap::new() };
        let first = shown(&[("n1", Ok("gate 1 a")), ("n2", Ok("gate 1 a")), ("n3", Ok(""))]);
        world.views(3000, &first, true);
        assert_eq!(world.probes(), [1, 1], "at a takeover, and not of one without a gate");
        world.views(3000, &first, true);
        assert_eq!(world.probes(), [1, 1], "after an hour");
        let second = shown(&[("n1", Ok("gate 1 b")), ("n2", Ok("gate 1 a")), ("n3", Ok(""))]);
        world.views(100, &second, true);
        assert_eq!(world.probes(), [1], "the one that changed");
        let lost = shown(&[("n1", Err("silent")), ("n2", Ok("gate 1 a")), ("n3", Ok(""))]);
        world.views(100, &lost, true);
        world.views(100, &second, true);
        assert_eq!(world.probes(), [0_u32; 0], "what one runs does not change while it is silent");
    }

    /// Incus 7 answers so late while it evacuates a member by hand.
    #[test]
    fn an_evacuated_member_that_answers_late_runs_what_it_ran_while_nothing_else_was_sent() {
        let mut world = World { proved: ProbedGates::default(), now: 10 * SECOND, probes: BTreeMap::new() };
        world.views(1, &shown(&[("n1", Ok("gate 1 a")), ("n2", Ok("gate 1 a"))]), true);
        let settled = |world: &World, first: &str, status: &MemberStatus| {
            let mut lines = shown(&[("n1", Ok(first)), ("n2", Err("silent"))]);
            world.proved.settle(&mut lines, |_| Some(status));
            lines.remove("n2").unwrap().ok()
        };
        let runs = Some("gate 1 a".to_owned());
        for status in [MemberStatus::Evacuating, MemberStatus::Evacuated] {
            assert_eq!(settled(&world, "gate 1 a", &status), runs, "{status:?}");
            assert_eq!(settled(&world, "gate 1 b", &status), None, "{status:?}, and another was sent");
        }
        assert_eq!(settled(&world, "gate 1 b", &MemberStatus::Online), runs);
        assert_eq!(settled(&world, "gate 1 a", &MemberStatus::Offline), None);
    }

    #[test]
    fn one_that_did_not_run_what_it_shows_is_probed_again_once_it_was_away() {
        let mut world = World { proved: ProbedGates::default(), now: 10 * SECOND, probes: BTreeMap::new() };
        let lines = shown(&[("n1", Ok("gate 1 a"))]);
        world.views(600, &lines, false);
        assert_eq!(world.probes(), [1]);
        world.views(3, &shown(&[("n1", Err("restarts"))]), false);
        world.views(600, &lines, true);
        assert_eq!(world.probes(), [1]);
        assert!(world.proved.runs("n1", "gate 1 a"));
    }

    #[test]
    fn one_that_cannot_be_probed_is_tried_now_and_then() {
        let mut proved = ProbedGates::default();
        let lines = shown(&[("n1", Ok("gate 1 a"))]);
        let tries = (0..60).filter(|at| !proved.due(&lines, 10 * SECOND + *at * SECOND).is_empty()).count();
        assert_eq!(tries, 12);
        proved.note("n1".to_owned(), InstalledGate::None, 70 * SECOND);
        assert!(!proved.runs("n1", "gate 1 a"));
    }
}
