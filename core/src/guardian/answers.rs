//! Whether a member answers when it is asked itself: one that does is not fenced by the guardian (INV-6).

use std::time::Duration;

use crate::fence::{Fence, GUARDIAN};
use crate::guardian::Guardian;
use crate::guardian::pace::Lane;
use crate::model::record::FenceState;
use crate::model::target::Target;
use crate::rules::loss_evidence::LossEvidence;

/// A question that is open for longer counts as unanswered. The shell gives a member that was silent before less.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// A question that is open for longer was lost, and no new one can be asked before it ends.
const HANGS: Duration = Duration::from_secs(2);
/// For how long a member that did not answer counts as silent.
const SILENCE_LASTS: Duration = Duration::from_secs(2);
/// How often a member is asked while a fence of it may depend on its answer.
const ASK_EVERY: Duration = Duration::from_secs(1);

impl Guardian {
    /// Does the member answer, by the questions asked at or after `since`? `None` while there is no telling: none was
    /// asked, or it has not had its time to answer. A member that a fence is wanted of is asked every second.
    pub fn answers_since(&self, member: &str, since: Duration) -> Option<bool> {
        let evidence = self.evidence.get(member)?;
        let state = evidence.state.as_ref().filter(|(asked, _)| *asked >= since);
        if evidence.answered.is_some_and(|asked| asked >= since)
            || state.is_some_and(|(_, state)| state.is_ok())
        {
            return Some(true);
        }
        let open = self.busy.get(&Lane::State(member.to_owned())).filter(|_| evidence.answered.is_none());
        let unanswered = open.is_some_and(|asked| {
            let waited = self.now.boot.saturating_sub(*asked.max(&since));
            waited >= if *asked >= since { ANSWERS_WITHIN } else { HANGS }
        });
        (unanswered || state.is_some()).then_some(false)
    }

    /// Is the member lost by what its cluster says, and silent by what it was asked since?
    pub(super) fn is_silent(&self, member: &str) -> bool {
        let Some(since) = self.evidence.get(member).and_then(|evidence| evidence.offline_since) else {
            return false;
        };
        let lately = self.now.boot.saturating_sub(SILENCE_LASTS);
        self.answers_since(member, since.max(lately)) == Some(false)
    }

    /// Is it still to be fenced, as asked since the intent was recorded? `None` until both its cluster and the member
    /// itself were asked.
    pub(super) fn is_lost_since(&self, member: &str, recorded: Duration) -> Option<bool> {
        if !self.view_is_fresh() || self.view_began < recorded {
            return None;
        }
        if !self.evidence.get(member).is_some_and(LossEvidence::is_lost) {
            return Some(false);
        }
        (self.answers_since(member, recorded) == Some(false)).then_some(true)
    }

    /// It answered, and did not tell its state yet.
    pub(super) fn answered(&mut self, member: &str, asked: Duration) {
        self.evidence.entry(member.to_owned()).or_default().note_answer(asked);
    }

    /// Is the member to be asked again for the sake of a fence, where it was last asked at `asked`?
    pub(super) fn answer_is_due(&self, member: &str, asked: Option<Duration>) -> bool {
        let evidence = self.evidence.get(member);
        let wanted = self.wants.contains_key(&Target::Member(member.to_owned()));
        let unsent = |fence: &&Fence| {
            fence.record().state == FenceState::Intended
                && fence.record().by == GUARDIAN
                && fence.member() == Some(member)
        };
        let intended = self.fences.values().find(unsent).and_then(|fence| fence.recorded_at());
        let asks_on = evidence.is_some_and(LossEvidence::is_asked_on) || wanted || intended.is_some();
        let old = |asked: Duration| {
            self.now.boot >= asked + ASK_EVERY || intended.is_some_and(|recorded| asked < recorded)
        };
        asks_on && asked.is_none_or(old)
    }
}
