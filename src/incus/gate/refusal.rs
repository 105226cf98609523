//! What the gate refuses with, and how that is understood: one source for the scriptlet and for who reads its words.

use rbd_guardian_core::model::incus_snapshot::InstanceId;

/// Member, project, instance, member. Mind that `%s` is Starlark's.
pub(super) const NOT_SEALED: &str =
    "rbd-guardian: member %s is not sealed: %s/%s stays there until `rbd-guardian fence %s` has sealed it";
/// Member, project, instance, storage.
pub(super) const NOT_COVERED: &str = "rbd-guardian: member %s is sealed, but %s/%s has a disk on %s, where that member \
                                      could still write: power it off, then see docs/gate.md";
/// Member, project, instance, member.
pub(super) const TARGET_SEALED: &str =
    "rbd-guardian: member %s is sealed and takes no instance, so not %s/%s: `rbd-guardian release %s` first";
/// Project, instance.
pub(super) const NOWHERE: &str =
    "rbd-guardian: %s/%s is on no member that is known: nothing is placed elsewhere, try again";
/// The push: an answer to who asks whether the gate is loaded.
pub(super) const LOADED: &str = "rbd-guardian: gate %s is loaded";

/// Newer versions (6.0.5, 6.12) fail by themselves where the gate asks a member that is not sealed for its resources:
/// only the log has the gate's own sentence then (scriptlet/instance_placement.go).
const FOREIGN: &str = "Invalid member name: ";

/// A placement that the gate refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementRefusal {
    /// Which member stands in the way; none where none is known.
    pub member: Option<String>,
    /// The instance that was to be placed, where the text tells.
    pub instance: Option<InstanceId>,
    pub why: RefusalReason,
}

/// Why a placement was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusalReason {
    /// The instance's member is not available and not sealed.
    NotSealed,
    /// It is sealed, but no seal covers this storage.
    NotCovered(String),
    TargetSealed,
    /// No member is known to hold the instance.
    Nowhere,
}

/// Finds a refusal of the gate in an error, a log line or an operation's outcome.
pub fn refusal(text: &str) -> Option<PlacementRefusal> {
    let id =
        |project: &str, name: &str| Some(InstanceId { project: project.to_owned(), name: name.to_owned() });
    let told = |member: &str, instance, why| {
        Some(PlacementRefusal { member: Some(member.to_owned()), instance, why })
    };
    if let Some([member, project, name, _]) = read(text, NOT_SEALED) {
        return told(member, id(project, name), RefusalReason::NotSealed);
    }
    if let Some([member, project, name, storage]) = read(text, NOT_COVERED) {
        return told(member, id(project, name), RefusalReason::NotCovered(storage.to_owned()));
    }
    if let Some([member, project, name, _]) = read(text, TARGET_SEALED) {
        return told(member, id(project, name), RefusalReason::TargetSealed);
    }
    if let Some([project, name]) = read(text, NOWHERE) {
        return Some(PlacementRefusal {
            member: None,
            instance: id(project, name),
            why: RefusalReason::Nowhere,
        });
    }
    if !text.contains("instance placement scriptlet") {
        return None;
    }
    let member =
        text.split_once(FOREIGN)?.1.split(|c: char| c.is_whitespace() || "\"\\,".contains(c)).next()?;
    let named = read(text, "for instance \"%s\" in project \"%s\"");
    told(member, named.and_then(|[name, project]| id(project, name)), RefusalReason::NotSealed)
}

/// The push of the gate that answered, if a gate did.
pub(super) fn loaded(text: &str) -> Option<&str> {
    read(text, LOADED).map(|[push]| push)
}

/// What stands for each `%s`; none of it is empty.
fn read<'a, const N: usize>(text: &'a str, pattern: &str) -> Option<[&'a str; N]> {
    let mut parts = pattern.split("%s");
    let mut rest = text.split_once(parts.next()?)?.1;
    let mut values = [""; N];
    for (value, part) in values.iter_mut().zip(parts) {
        // The last one may end with the text.
        let (found, after) = if part.is_empty() { (rest, "") } else { rest.split_once(part)? };
        (*value, rest) = (found, after);
    }
    values.iter().all(|value| !value.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Starlark's `%` does.
    fn say(pattern: &str, values: &[&str]) -> String {
        let said = values.iter().fold(pattern.to_owned(), |text, value| text.replacen("%s", value, 1));
        assert!(!said.contains("%s"), "as many values as it has places: {said}");
        format!("Failed instance placement scriptlet: Failed to run: fail: {said}")
    }

    fn c1() -> InstanceId {
        InstanceId { project: "p1".to_owned(), name: "c1".to_owned() }
    }

    #[test]
    fn what_is_said_is_understood() {
        let n1 = || Some("n1".to_owned());
        let told = |member, why| Some(PlacementRefusal { member, instance: Some(c1()), why });
        assert_eq!(
            refusal(&say(NOT_SEALED, &["n1", "p1", "c1", "n1"])),
            told(n1(), RefusalReason::NotSealed)
        );
        assert_eq!(
            refusal(&say(NOT_COVERED, &["n1", "p1", "c1", "ceph:other/rbd"])),
            told(n1(), RefusalReason::NotCovered("ceph:other/rbd".to_owned()))
        );
        assert_eq!(
            refusal(&say(TARGET_SEALED, &["n1", "p1", "c1", "n1"])),
            told(n1(), RefusalReason::TargetSealed)
        );
        assert_eq!(refusal(&say(NOWHERE, &["p1", "c1"])), told(None, RefusalReason::Nowhere));
        assert_eq!(loaded(&say(LOADED, &["af01"])), Some("af01"));
        assert_eq!(refusal(&say(LOADED, &["af01"])), None);
    }

    #[test]
    fn the_words_of_newer_versions_are_understood() {
        let text = "Failed to evacuate instances: Failed instance placement scriptlet for instance \"c1\" in project \
                    \"p1\": Failed to run: Invalid member name: n1";
        let expected = PlacementRefusal {
            member: Some("n1".to_owned()),
            instance: Some(c1()),
            why: RefusalReason::NotSealed,
        };
        assert_eq!(refusal(text), Some(expected));
        let moved =
            refusal("Failed instance placement scriptlet: Failed to run: Invalid member name: n1").unwrap();
        assert_eq!((moved.member.as_deref(), moved.instance), (Some("n1"), None));
    }

    #[test]
    fn anything_else_is_none() {
        for text in ["", "rbd-guardian: member", "Invalid member name: n1", "Instance is already running"] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }
}
