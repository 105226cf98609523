//! Why a member would be fenced now, or why not: what `plan` adds to the entries.

use crate::guardian::Guardian;
use crate::guardian::settings::Trigger;
use crate::model::incus_snapshot::MemberStatus;
use crate::model::target::Target;

impl Guardian {
    /// What the guardian that leads would do with this member by itself now, and on what grounds, in sentences.
    pub fn why(&self, name: &str) -> Vec<String> {
        if let Some(fence) = self.fence_of(name) {
            let (id, state, by) = (fence.id(), fence.record().state, &fence.record().by);
            let grounds = fence.record().evidence.first().map_or_else(String::new, |why| format!(": {why}"));
            return vec![format!("{name} is fenced already: {id} is {state}, asked for by {by}{grounds}")];
        }
        if !self.settings.platform {
            return vec![
                "no Incus is configured here: nothing is known of members, and only operators fence"
                    .to_owned(),
            ];
        }
        let Some(view) = self.view.as_ref().filter(|_| self.view_is_fresh()) else {
            let why = self.view_failed.as_deref().unwrap_or("it was not asked yet");
            return vec![format!(
                "Incus does not answer ({why}): whether {name} is lost is unknown, and nothing is fenced by itself"
            )];
        };
        let Some(member) = view.members.get(name) else {
            return vec![format!("Incus knows no member {name}: nothing fences it by itself")];
        };
        let evidence = self.evidence.get(name).cloned().unwrap_or_default();
        if !evidence.is_lost() {
            let status = String::from(member.status.clone());
            let hides = match member.status {
                MemberStatus::Evacuating | MemberStatus::Evacuated | MemberStatus::Restoring => {
                    ", which hides whether it is reachable"
                }
                MemberStatus::Online
                | MemberStatus::Offline
                | MemberStatus::Blocked
                | MemberStatus::Other(_) => "",
            };
            return vec![format!("Incus says that {name} is {status}{hides}: nothing fences it by itself")];
        }
        let mut said = vec![format!("Incus lost {name}")];
        if self.settings.trigger == Trigger::Manual {
            said.push("only operators fence (trigger.mode = \"manual\")".to_owned());
        }
        if let Some(disarmed) = self.disarmed() {
            let (until, by) = (disarmed.until, &disarmed.by);
            said.push(format!("{by} disarmed the guardians until {until}: nothing is fenced by itself"));
        }
        let doubtful = self.doubtful();
        if !doubtful.is_empty() {
            let names = doubtful.join(", ");
            said.push(format!(
                "{names} look lost at once, more than a minority: nothing is fenced by itself"
            ));
        }
        let target = Target::Member(name.to_owned());
        let due = self.about_to_be_healed().into_iter().find(|(wanted, _)| *wanted == target);
        match (due, view.thresholds.healing) {
            (Some((_, why)), _) => {
                said.push(format!("it is to be fenced now: {why}"));
                let waits = self.wants.get(&target).and_then(|_| self.waits_for_judgement(name));
                said.extend(waits.map(|what| format!("it waits for {what}")));
                let left = self.cools_down();
                if !left.is_zero() {
                    said.push(format!("{} s more of the cool-down after the last fence", left.as_secs() + 1));
                }
            }
            (None, Some(healing)) => said.push(format!(
                "it is fenced when its healing begins, {} s after its last heartbeat{}",
                healing.as_secs(),
                member.heartbeat_age.map_or_else(String::new, |age| format!(" ({} s ago)", age.as_secs()))
            )),
            (None, None) => said.push(
                "Incus heals nothing (cluster.healing_threshold is 0), so nothing fences it by itself"
                    .to_owned(),
            ),
        }
        said
    }
}
