//! Which members answer now: they are not lost, and a fence of one would be a mistake (INV-6).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::guardian::Guardian;
use crate::model::incus_snapshot::MemberStatus;
use crate::rules::plan::MemberAnswer;

/// How long an operator's fence waits for a reading of Incus that tells whether the member answers. An Incus that hangs
/// must not hold up a fence.
const WAITS: Duration = Duration::from_secs(3);
/// How long a member's own answer counts where Incus does not say whether it is reachable: healthy members are asked
/// once a minute.
const ANSWER_LASTS: Duration = Duration::from_secs(65);
/// The same where Incus counts it as offline.
const ANSWER_STANDS: Duration = Duration::from_secs(10);

impl Guardian {
    /// Members that answer Incus or the guardian now, and what they run.
    pub(super) fn reachable(&self) -> BTreeMap<String, MemberAnswer> {
        let names = self.view.iter().flat_map(|view| view.members.keys());
        let answers = |name: &String| {
            let answers = MemberAnswer { seen: self.answers(name)?, runs: self.runs(name) };
            Some((name.clone(), answers))
        };
        names.filter_map(answers).collect()
    }

    /// Is it known which members answer, or not to be known soon?
    pub(super) fn may_judge_reach(&self, wanted: Duration) -> bool {
        let waited = self.now.boot.saturating_sub(wanted) >= WAITS;
        !self.settings.platform || self.view_is_fresh() || self.view_failed.is_some() || waited
    }

    fn answers(&self, name: &str) -> Option<String> {
        let member = self.view.as_ref()?.members.get(name)?;
        let evidence = self.evidence.get(name);
        let state = evidence.and_then(|evidence| evidence.state.as_ref());
        let answered = state.filter(|(_, state)| state.is_ok()).map(|(at, _)| *at);
        let age = |at: Duration| self.now.boot.saturating_sub(at);
        let itself = |at: Duration| format!("answered {} s ago when it was asked itself", age(at).as_secs());
        let lost_since = evidence.and_then(|evidence| evidence.offline_since);
        // Asked while its cluster called it lost.
        let at_last = evidence.and_then(|evidence| evidence.answered);
        match &member.status {
            MemberStatus::Online | MemberStatus::Blocked => self
                .view_is_fresh()
                .then(|| format!("answers Incus ({})", String::from(member.status.clone()))),
            // Maintenance states hide whether it is reachable.
            MemberStatus::Evacuating
            | MemberStatus::Evacuated
            | MemberStatus::Restoring
            | MemberStatus::Other(_)
                if lost_since.is_none() =>
            {
                answered.filter(|at| age(*at) < ANSWER_LASTS).map(itself)
            }
            MemberStatus::Offline
            | MemberStatus::Evacuating
            | MemberStatus::Evacuated
            | MemberStatus::Restoring
            | MemberStatus::Other(_) => {
                if let Some(at) = at_last {
                    return Some(itself(at));
                }
                let since = lost_since?;
                answered.filter(|at| *at > since && age(*at) < ANSWER_STANDS).map(itself)
            }
        }
    }

    /// The instances that run there.
    fn runs(&self, name: &str) -> Option<Vec<String>> {
        let instances = self.view.as_ref()?.instances.as_ref()?;
        let here = instances.iter().filter(|(_, instance)| instance.location == name);
        let running =
            here.filter(|(_, instance)| instance.details.as_ref().is_none_or(|details| details.running));
        Some(running.map(|(id, _)| id.to_string()).collect())
    }
}
