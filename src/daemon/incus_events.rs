//! From what Incus announces to what matters here.

use rbd_guardian_core::model::incus_snapshot::{Notice, OperationKind};

use crate::incus::events::{Event, EventKind, LogMessage, Signal};
use crate::incus::gate::refusal as gate;
use crate::incus::gate::refusal::RefusalReason;

/// What an announcement tells; `None` for all that changes nothing here. A member that is not listened to any more
/// tells nothing either: what is missed meanwhile is read when it is connected again.
pub(super) fn notice(signal: &Signal) -> Option<Notice> {
    match signal {
        Signal::Connected { .. } | Signal::Overflow { .. } => Some(Notice::Missed),
        Signal::Lost { .. } => None,
        Signal::Event(event) => of(event),
    }
}

fn of(event: &Event) -> Option<Notice> {
    match &event.what {
        EventKind::Logging(logging) => of_log(logging),
        EventKind::Operation(operation) => {
            let heals = operation.kind() == OperationKind::Heal;
            if let Some(refused) = refused(&operation.err, heals) {
                return Some(refused);
            }
            // Its end matters as well: the last attempt of a tick was refused, or members were healed.
            heals.then_some(Notice::Healing { member: None })
        }
        EventKind::Lifecycle(lifecycle) => {
            let of_interest = ["project-updated", "cluster-member-", "instance-", "storage-volume-"];
            of_interest.iter().any(|kind| lifecycle.action.starts_with(kind)).then_some(Notice::Changed)
        }
    }
}

fn of_log(logging: &LogMessage) -> Option<Notice> {
    // cmd/incusd/api_cluster_evacuation.go:866 (docs/facts/incus.md#healing).
    if logging.message == "Starting cluster healing" {
        return Some(Notice::Healing { member: logging.context.get("server").cloned() });
    }
    let mut texts = std::iter::once(&logging.message).chain(logging.context.values());
    // The leader logs this line with the cause of each attempt; a manual move is answered to whoever asked.
    let own = logging.message.split("rbd-guardian:").next().unwrap_or_default();
    let healing = own.to_lowercase().contains("heal");
    texts.find_map(|text| refused(text, healing))
}

/// What the gate refused, if that is what a text tells.
fn refused(text: &str, healing: bool) -> Option<Notice> {
    let refusal = gate::refusal(text)?;
    match (refusal.why, refusal.member) {
        (RefusalReason::NotSealed, Some(member)) => Some(Notice::Refused { member, healing }),
        (RefusalReason::NotSealed, None) => None,
        // No seal changes these: they are told.
        (RefusalReason::NotCovered(_) | RefusalReason::TargetSealed | RefusalReason::Nowhere, _) => {
            Some(Notice::NotPlaced { why: text.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::incus::events::Lifecycle;

    /// Incus up to 7.0.1 announces a change of a project before it is written, and one that it then refuses.
    #[test]
    fn an_announced_change_is_a_reason_to_read_whatever_it_says() {
        let announced = |action: &str, source: &str, project: &str| {
            let what = Lifecycle {
                action: action.to_owned(),
                source: source.to_owned(),
                project: project.to_owned(),
                name: "default".to_owned(),
            };
            let event = Event {
                at: Timestamp::UNIX_EPOCH,
                location: "n1".to_owned(),
                what: EventKind::Lifecycle(what),
            };
            notice(&Signal::Event(event))
        };
        for (source, project) in
            [("/1.0/projects/default", "default"), ("/1.0/projects/other", "other"), ("", "")]
        {
            assert_eq!(announced("project-updated", source, project), Some(Notice::Changed));
        }
        assert_eq!(announced("certificate-updated", "/1.0/certificates/a", "default"), None);
    }
}
