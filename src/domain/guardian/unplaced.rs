//! Instances of a sealed member that Incus may place elsewhere, and does not.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Guardian;
use super::report::Alarm;
use crate::domain::view::{InstanceId, MemberStatus, View};
use crate::domain::volume::Expected;

/// Two ticks of healing and the time for one: what is not placed by then, Incus places nowhere.
const HEALS_WITHIN: Duration = Duration::from_secs(150);

impl Guardian {
    /// Which instances with images of ours are where, of the members that are fenced.
    pub(super) fn note_left_behind(&mut self, view: &View) {
        self.left_behind.clear();
        let fenced: BTreeSet<&str> = self.cases.values().filter_map(|case| case.member()).collect();
        if fenced.is_empty() {
            return;
        }
        let all = view.instances.iter().flatten();
        let theirs = all.filter(|(_, instance)| fenced.contains(instance.location.as_str()));
        let theirs: BTreeSet<&InstanceId> = theirs.map(|(id, _)| id).collect();
        for expected in self.images.values() {
            let Expected::Exclusive { instances, locations } = expected else { continue };
            for member in locations.iter().filter(|member| fenced.contains(member.as_str())) {
                let left = instances.iter().filter(|id| theirs.contains(id)).cloned();
                self.left_behind.entry(member.clone()).or_default().extend(left);
            }
        }
    }

    /// The gate has been open for longer than a healing takes, and they are still there: no candidate may take them, or
    /// Incus leaves them alone. Nothing else says so.
    pub(super) fn unplaced(&self) -> Vec<Alarm> {
        let Some(view) = &self.view else { return Vec::new() };
        if view.thresholds.healing.is_none() {
            return Vec::new();
        }
        let mut alarms = Vec::new();
        for case in self.cases.values() {
            let Some(name) = case.member() else { continue };
            let gone = view.members.get(name).is_some_and(|member| match member.status {
                MemberStatus::Offline | MemberStatus::Evacuating | MemberStatus::Evacuated => true,
                MemberStatus::Online
                | MemberStatus::Restoring
                | MemberStatus::Blocked
                | MemberStatus::Other(_) => false,
            });
            let long = case.sealed_at.is_some_and(|sealed| self.now.boot >= sealed + HEALS_WITHIN);
            let read = case.sealed_at.is_some_and(|sealed| self.whole_began >= Some(sealed + HEALS_WITHIN));
            let left = self.left_behind.get(name).filter(|left| !left.is_empty());
            let Some(left) = left.filter(|_| gone && long && read && self.is_open(name)) else { continue };
            let names: Vec<String> = left.iter().map(ToString::to_string).collect();
            alarms.push(Alarm {
                code: "stranded",
                member: Some(name.to_owned()),
                text: format!(
                    "it is sealed, and Incus places these instances nowhere: {}: no member is a candidate (cluster groups, \
                     restricted.cluster.groups, scheduler.instance, architecture), or healing leaves them alone \
                     (cluster.evacuate)",
                    names.join(", ")
                ),
                advice: left
                    .iter()
                    .map(|id| {
                        let InstanceId { project, name } = id;
                        format!("incus move {name} --target MEMBER --project {project}; incus start {name} --project {project}")
                    })
                    .collect(),
            });
        }
        alarms
    }
}
