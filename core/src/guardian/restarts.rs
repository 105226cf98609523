//! Instances that run nowhere: those that could not be started while their member was sealed are started after its
//! release; those of a sealed member that healing left where they were are told of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::guardian::context::Ctx;
use crate::guardian::io::Effect;
use crate::guardian::lanes::Lane;
use crate::guardian::report::{Alarm, Level, Reports};
use crate::guardian::schedule::Schedule;
use crate::model::incus_snapshot::{InstanceId, MemberStatus};
use crate::model::pairs;
use crate::model::volume::Expected;

/// How often starting an instance is tried.
const STARTS: u32 = 12;
/// Between two tries: a member that was fenced when it booted takes its storage for unavailable, and tries that again
/// once a minute (seen on Incus 6.0.4).
const START_AGAIN: Duration = Duration::from_secs(10);

/// Instances to be started after a release, and how often that was tried.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Restarts {
    #[serde(with = "pairs")]
    to_start: BTreeMap<InstanceId, u32>,
}

impl Restarts {
    /// The fence of a member is over: what was running there and could not be started meanwhile is.
    pub(super) fn handle_release(&mut self, ctx: Ctx<'_>, member: &str, schedule: &mut Schedule) {
        let instances = ctx.incus.view().and_then(|view| view.instances.as_ref()).into_iter().flatten();
        let here = instances.filter(|(_, instance)| instance.location == member);
        self.to_start.extend(here.map(|(id, _)| (id.clone(), 0)));
        (schedule.whole, schedule.started) = (ctx.now.boot, ctx.now.boot);
    }

    pub(super) fn handle_started(
        &mut self,
        instance: &InstanceId,
        started: Result<(), String>,
        reports: &mut Reports,
    ) {
        match started {
            Ok(()) => {
                self.to_start.remove(instance);
                reports.log(Level::Info, "started", None, format!("instance {instance} started"));
            }
            Err(why) => {
                let text = format!("instance {instance} did not start: {why}");
                reports.log(Level::Warn, "not-started", None, text);
            }
        }
    }

    pub(super) fn next_effect(&mut self, ctx: Ctx<'_>, schedule: &mut Schedule) -> Option<Effect> {
        let view = ctx.incus.fresh(ctx.now)?;
        if ctx.incus.whole_began.is_none_or(|whole| whole < schedule.started) {
            return None;
        }
        let instances = view.instances.as_ref()?;
        let stopped = |id: &InstanceId| {
            let details = instances.get(id).and_then(|instance| instance.details.as_ref());
            details.map(|details| details.ran && !details.running && details.autostart != Some(false))
        };
        self.to_start.retain(|id, tries| *tries < STARTS && stopped(id) != Some(false));
        let online =
            |id: &InstanceId| instances.get(id).is_some_and(|instance| ctx.is_online(&instance.location));
        let rested = ctx.now.boot >= schedule.started + START_AGAIN;
        let due = |(id, tries): &(&InstanceId, &u32)| {
            (**tries == 0 || rested) && stopped(id) == Some(true) && online(id)
        };
        let next =
            self.to_start.iter().filter(due).min_by_key(|(_, tries)| **tries).map(|(id, _)| id.clone())?;
        if !ctx.may_begin(&Lane::Start) {
            return None;
        }
        schedule.started = ctx.now.boot;
        *self.to_start.entry(next.clone()).or_default() += 1;
        Some(Effect::Start(next))
    }
}

/// Instances of a sealed member that run nowhere: its healing never came or did not end, or it left them where they were.
pub(super) fn stranded(ctx: Ctx<'_>, name: &str) -> BTreeSet<InstanceId> {
    let Some(view) = ctx.incus.view().filter(|_| ctx.is_open(name)) else { return BTreeSet::new() };
    let Some(member) = view.members.get(name) else { return BTreeSet::new() };
    let instances = view.instances.iter().flatten().filter(|(_, instance)| instance.location == name);
    let instances = instances.map(|(id, _)| id);
    match member.status {
        MemberStatus::Online | MemberStatus::Restoring => instances.cloned().collect(),
        MemberStatus::Evacuated if ctx.members.was_healed(ctx.now, name) => {
            // An instance on storage of the member alone is never moved, and no seal keeps it from its disk.
            let sealed: BTreeSet<&InstanceId> =
                ctx.incus.images.values().flat_map(Expected::instances).collect();
            instances.filter(|id| sealed.contains(id)).cloned().collect()
        }
        MemberStatus::Offline
        | MemberStatus::Evacuating
        | MemberStatus::Evacuated
        | MemberStatus::Blocked
        | MemberStatus::Other(_) => BTreeSet::new(),
    }
}

pub(super) fn alarms(ctx: Ctx<'_>) -> Vec<Alarm> {
    let alarm = |name: &str| {
        let stranded = stranded(ctx, name);
        let names: Vec<String> = stranded.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        let text = if ctx.members.was_healed(ctx.now, name) {
            format!(
                "Incus has healed it and moved everything but {names}, which it found no member for (restricted.cluster.groups of \
                 the project, the instance's cluster group, its architecture, scheduler.instance) or which is not to be moved \
                 (cluster.evacuate); sealed, they run nowhere"
            )
        } else {
            format!("it is sealed and back before its instances were healed: {names} cannot write")
        };
        (!stranded.is_empty()).then(|| Alarm::new("stranded", Some(name), text, rescue(ctx, name, &stranded)))
    };
    ctx.fences.all().filter_map(Fence::member).filter_map(alarm).collect()
}

/// How to bring a stranded member's instances back to life.
fn rescue(ctx: Ctx<'_>, name: &str, stranded: &BTreeSet<InstanceId>) -> Vec<String> {
    let online = |m: &&String| *m != name && ctx.is_online(m) && ctx.fences.of(m).is_none();
    let target = ctx.incus.view().into_iter().flat_map(|view| view.members.keys()).find(online);
    let mut advice =
        vec![format!("either reboot {name}: it is released by itself then, and its instances started")];
    if let Some(target) = target {
        advice.push(
            "or move each by hand; what the commands say of a read-only or busy disk there does not matter"
                .to_owned(),
        );
        for InstanceId { name, project, .. } in stranded {
            let project = if project == "default" { String::new() } else { format!(" --project {project}") };
            advice.push(format!(
                "or incus stop --force {name}{project}; incus move {name} --target {target}{project}; incus start {name}{project}"
            ));
        }
    }
    advice
}
