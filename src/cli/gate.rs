//! `gate`: puts the placement scriptlet into Incus, shows where it stands, takes it out again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rbd_guardian_core::model::gate_keys::{GateContents, OVERRIDE, REMOVE, epoch, is_plausible, seals};
use rbd_guardian_core::model::operator_request;
use rbd_guardian_core::model::volume::StoragePool;
use rbd_guardian_core::rules::refusal::gate_removal;
use serde::Serialize;

use super::answer::table;
use super::context::{Context, interrupted, print};
use super::error::CliError;
use super::output::tell;
use super::seen::{Memory, memory};
use super::{Common, Exit, GateArgs, GateVerb, machines};
use crate::cli::dispatch::{self, VerbOutcome, VerbStart, operator};
use crate::cli::output::say;
use crate::config::Config;
use crate::control::protocol::{ControlLine, Reason};
use crate::deadline::{Deadline, within};
use crate::incus::api::{self, Keys};
use crate::incus::client::Client;
use crate::incus::gate::keys::{self, KeysWrite, local_pools, put_keys, remove_keys};
use crate::incus::gate::place::{EXTENSION, InstalledGate, new_push, push, standings, stored};
use crate::incus::gate::{Scriptlet, compose, difference};
use crate::incus::{self};
use rbd_guardian_core::model::epoch::GateEpoch;

#[derive(Serialize)]
struct GateAnswer {
    /// `installed`, `partial`, `absent`, `edited`, or `off` by the operator's override.
    state: &'static str,
    /// The first line of the stored gate.
    marker: Option<String>,
    /// What each member runs.
    members: BTreeMap<String, String>,
    /// What each member is told, in its own configuration.
    keys: BTreeMap<String, Keys>,
    /// What project `default` has of that name: the override, and what is without effect there.
    project: Keys,
    /// The site's own, which the gate wraps; or, without a gate, what is there.
    site_scriptlet: Option<String>,
    /// 0 while Incus heals nothing.
    healing_threshold_s: u64,
}

pub(super) fn run(common: &Common, args: &GateArgs) -> Result<Exit, CliError> {
    let config = Config::load(common.config.as_deref())?;
    let client = Client::open(&config.incus)?;
    let format = common.format();
    match &args.verb {
        GateVerb::Show => {}
        GateVerb::Install { .. } => note(common, "gate install", None),
        GateVerb::Remove { force, reason } => {
            let held = held(common, config);
            let read = async { keys::read(&client).await };
            let (keys, _) = incus::block_on(within(common.timeout, read))???;
            let named = keys.values().flat_map(seals).collect();
            let held = held.as_ref().map_err(String::as_str);
            if let Err(refusal) = gate_removal(&named, held, *force, reason.as_deref()) {
                return dispatch::refuse(format, None, [Reason::from(&refusal)]);
            }
            note(common, REMOVE, reason.clone());
        }
    }
    let work = async {
        let refused = match &args.verb {
            GateVerb::Install { force } => install(&client, *force).await?,
            GateVerb::Remove { force, .. } => remove(&client, *force).await?,
            GateVerb::Show => None,
        };
        if refused.is_none() && matches!(args.verb, GateVerb::Install { .. }) {
            identities(&client).await;
        }
        Ok::<_, CliError>(match refused {
            Some(exit) => Err(exit),
            None => Ok(look(&client).await?),
        })
    };
    let answer = match incus::block_on(within(common.timeout, work))??? {
        Ok(answer) => answer,
        Err(exit) => return Ok(exit),
    };
    print(format, &answer, text)?;
    Ok(match (&args.verb, answer.state) {
        (_, "partial") => Exit::Pending,
        (GateVerb::Install { .. }, "absent") | (_, "edited") => Exit::Failed,
        _ => Exit::Done,
    })
}

/// From now on members are fenced by themselves: which of them no reboot will release is told first.
async fn identities(client: &Client) {
    match machines::shown(client).await {
        Ok(told) => {
            let warnings = told.iter().filter_map(|(name, shown)| Some((name, shown.warning(name)?)));
            warnings.for_each(|(name, warning)| say(&format!("warning: member {name}: {warning}")));
        }
        Err(error) => say(&format!("warning: what tells members' machines apart was not read: {error}")),
    }
}

/// `Some` is how it ended before anything was changed.
async fn install(client: &Client, force: bool) -> Result<Option<Exit>, CliError> {
    let (server, scriptlet) = stored(client).await?;
    if !server.environment.server_clustered || !server.api_extensions.iter().any(|name| name == EXTENSION) {
        tell!(
            "rbd-guardian: refused: the gate needs a cluster of Incus 6.0.3 or 6.6 and later on every member ({EXTENSION}), \
             this is {}: nothing was changed",
            server.environment.server_version
        );
        return Ok(Some(Exit::Refused));
    }
    let site = match scriptlet {
        Scriptlet::Absent => None,
        Scriptlet::Site(site) => Some(site),
        Scriptlet::Gate { marker, site, intact } => {
            if !intact && !force {
                return Ok(Some(edited(&compose(site.as_deref(), &marker.push), server.scriptlet())));
            }
            let same = compose(site.as_deref(), &marker.push) == server.scriptlet();
            let runs =
                |standing: &Result<InstalledGate, String>| matches!(standing, Ok(InstalledGate::Runs(_)));
            if same && standings(client, |_| true).await?.values().all(runs) {
                publish(client).await?;
                tell!("rbd-guardian: every member runs this gate already");
                return Ok(None);
            }
            site
        }
    };
    let kept = if site.is_some() {
        "the site's own scriptlet is kept inside of it"
    } else {
        "there was none before"
    };
    tell!("rbd-guardian: installing instances.placement.scriptlet; {kept}");
    // First what it reads: without the members it takes seconds for each thousand instances.
    publish(client).await?;
    push(client, &compose(site.as_deref(), &new_push()?)).await?;
    Ok(None)
}

async fn remove(client: &Client, force: bool) -> Result<Option<Exit>, CliError> {
    let (server, scriptlet) = stored(client).await?;
    if let Scriptlet::Gate { marker, site, intact } = scriptlet {
        if !intact && !force {
            return Ok(Some(edited(&compose(site.as_deref(), &marker.push), server.scriptlet())));
        }
        push(client, site.as_deref().unwrap_or_default()).await?;
    }
    if let Some(threshold) = server.healing_threshold() {
        tell!(
            "rbd-guardian: warning: Incus heals after {}, and from now on nothing keeps it from doing so before the \
             member is sealed: `incus config set cluster.healing_threshold=0`, or install the gate again",
            humantime::format_duration(threshold)
        );
    }
    // A guardian that leads may have a write on its way, which comes after the removal.
    for _ in 0..REMOVALS {
        settle(remove_keys(client).await)?;
        let (keys, project) = keys::read(client).await?;
        if keys.values().all(BTreeMap::is_empty) && project.is_empty() {
            return Ok(None);
        }
    }
    Err(CliError::Raced)
}

/// Members, or fences of addresses, that are held; or why that is unknown.
fn held(common: &Common, config: Config) -> Result<BTreeSet<String>, String> {
    let interrupted = interrupted().map_err(|error| error.to_string())?;
    let deadline = Deadline::after(common.timeout.min(PATIENCE), interrupted);
    let context = Context::connect(common, config, deadline).map_err(|fault| fault.to_string())?;
    match memory(&context) {
        Memory::None => Ok(BTreeSet::new()),
        Memory::Unread(why) => Err(why),
        Memory::Ledger(records) => {
            let held = records.fences.into_values().filter(|fence| fence.state.is_in_force());
            Ok(held.map(|fence| fence.name().to_owned()).collect())
        }
    }
}

/// Has it recorded who does this and why. Where no guardian keeps a ledger, or none can be written, that is said and no
/// more: the gate is Incus's.
fn note(common: &Common, what: &str, reason: Option<String>) {
    let request = operator_request::Request::Note { what: what.to_owned(), reason, by: operator() };
    let asked = VerbStart::new(common).and_then(|mut opening| {
        opening.deadline = opening.deadline.at_most(PATIENCE);
        opening.request(request)
    });
    let why = match asked {
        Ok(VerbOutcome::Answered(ControlLine::Noted)) => return,
        Ok(VerbOutcome::Alone(_)) => "no guardian keeps a ledger here".to_owned(),
        Ok(VerbOutcome::Answered(
            ControlLine::Failed(why) | ControlLine::Unavailable(why) | ControlLine::Elsewhere(why),
        )) => why,
        Ok(VerbOutcome::Answered(_) | VerbOutcome::Underway { .. }) => {
            "the guardian gave another answer".to_owned()
        }
        Err(fault) => fault.to_string(),
    };
    say(&format!("`{what}` is not in the audit trail: {why}"));
}

/// How long the ledger may take to tell whether a member is fenced, or to record what is done.
const PATIENCE: Duration = Duration::from_secs(10);
/// Removals of keys until none is left.
const REMOVALS: usize = 3;

fn edited(ours: &str, theirs: &str) -> Exit {
    tell!(
        "rbd-guardian: refused: the gate was changed by hand since it was installed (- as installed, + as it is):\n{}\
         rbd-guardian: nothing was changed; --force goes on without these changes",
        difference(ours, theirs)
    );
    Exit::Refused
}

/// What the scriptlet needs from the beginning, beside what a member has.
async fn publish(client: &Client) -> Result<(), CliError> {
    let (told, _) = keys::read(client).await?;
    let pools: Vec<api::Pool> = client.get("/1.0/storage-pools?recursion=1").await?;
    let pools: BTreeMap<String, StoragePool> = pools
        .into_iter()
        .map(|pool| {
            (pool.name, StoragePool { driver: pool.driver, osd_pool: None, data_pool: None, cluster: None })
        })
        .collect();
    let local = local_pools(&pools);
    // No guardian is asked here what it recorded; it overwrites what it does not know.
    let last = told
        .values()
        .map(epoch)
        .filter(|epoch| is_plausible(*epoch, GateEpoch::default()))
        .max()
        .unwrap_or_default();
    let wanted = |found| {
        let mut contents = GateContents::of(found);
        contents.members = told.keys().cloned().collect();
        contents.pools.extend(local.iter().cloned());
        contents
    };
    // All or none: what has an older epoch than others opens nothing.
    if told.values().all(|found| wanted(found) == GateContents::of(found) && epoch(found) == last) {
        return Ok(());
    }
    for (name, found) in &told {
        settle(put_keys(client, name, &wanted(found), last.next(), || true).await)?;
    }
    Ok(())
}

fn settle(written: KeysWrite) -> Result<(), CliError> {
    match written {
        KeysWrite::Applied => Ok(()),
        KeysWrite::Changed | KeysWrite::Stale { .. } | KeysWrite::Withheld => Err(CliError::Raced),
        KeysWrite::Refused(error) | KeysWrite::Unknown(error) => Err(error.into()),
    }
}

async fn look(client: &Client) -> Result<GateAnswer, CliError> {
    let (server, scriptlet) = stored(client).await?;
    let standings = standings(client, |_| true).await?;
    let (told, project) = keys::read(client).await?;
    let runs = |standing: &Result<InstalledGate, String>| matches!(standing, Ok(InstalledGate::Runs(_)));
    let none = |standing: &Result<InstalledGate, String>| matches!(standing, Ok(InstalledGate::None));
    let (marker, site, state) = match scriptlet {
        Scriptlet::Gate { marker, site, intact: false } => (Some(marker), site, "edited"),
        Scriptlet::Gate { marker, site, intact: true } => {
            let state = if !standings.values().all(runs) {
                "partial"
            } else if project.get(OVERRIDE).is_some_and(|value| value == "off") {
                "off"
            } else {
                "installed"
            };
            (Some(marker), site, state)
        }
        Scriptlet::Site(site) => {
            (None, Some(site), if standings.values().all(none) { "absent" } else { "partial" })
        }
        Scriptlet::Absent => (None, None, if standings.values().all(none) { "absent" } else { "partial" }),
    };
    let says = |standing: Result<InstalledGate, String>| match standing {
        Ok(InstalledGate::Runs(_)) => "runs it".to_owned(),
        Ok(InstalledGate::Shows(_)) => "shows it, but does not run it: install again".to_owned(),
        Ok(InstalledGate::None) => "no gate".to_owned(),
        Err(why) => format!("not known: {why}"),
    };
    Ok(GateAnswer {
        state,
        marker: marker.map(|marker| marker.to_string()),
        members: standings.into_iter().map(|(name, standing)| (name, says(standing))).collect(),
        keys: told,
        project,
        site_scriptlet: site,
        healing_threshold_s: server.healing_threshold().map_or(0, |threshold| threshold.as_secs()),
    })
}

fn text(answer: &GateAnswer) -> String {
    let mut text = format!("gate: {}\n", answer.state);
    if answer.state == "off" {
        text.push_str(
            "SWITCHED OFF by user.rbd-guardian.gate=off: Incus re-places instances of unsealed members\n",
        );
    }
    if let Some(marker) = &answer.marker {
        text.push_str(&format!("{marker}\n"));
    }
    let mut rows = table(["MEMBER", "GATE"]);
    for (name, says) in &answer.members {
        rows.add_row([name, says]);
    }
    text.push_str(&format!("{rows}\n"));
    for (name, keys) in &answer.keys {
        for (key, value) in keys {
            text.push_str(&format!("{name}: {key}={value}\n"));
        }
    }
    for (key, value) in &answer.project {
        let effect = if key == OVERRIDE { "" } else { " (without effect)" };
        text.push_str(&format!("project default: {key}={value}{effect}\n"));
    }
    let healing = match answer.healing_threshold_s {
        0 => "Incus heals nothing (cluster.healing_threshold=0)".to_owned(),
        seconds => format!("Incus heals after {seconds} s"),
    };
    let lines = answer.site_scriptlet.as_ref().map(|site| site.lines().count());
    let site = lines.map_or_else(|| "none".to_owned(), |lines| format!("{lines} lines"));
    text.push_str(&format!("{healing}\nscriptlet of the site: {site}\n"));
    text
}
