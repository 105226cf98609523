//! What the scriptlet does while it waits for a seal. Its text is Python as well, so that it runs without Incus.

#![allow(clippy::disallowed_methods)] // It runs Python.

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use rbd_guardian_core::model::epoch::GateEpoch;
    use rbd_guardian_core::model::gate_keys::GateContents;
    use serde_json::{Value, json};

    use crate::incus::gate::compose;

    /// What the members `n2` and `n3` are told: n1 is open or not, and for how many looks its seal is waited for.
    fn told(epoch: u64, open: bool, looks: u32) -> Value {
        let open = if open { ["n1".to_owned()].into() } else { [].into() };
        let awaited = (looks > 0).then(|| ("n1".to_owned(), looks)).into_iter().collect();
        let members = ["n1", "n2", "n3"].map(str::to_owned).into();
        let contents = GateContents { open, members, pools: ["remote".to_owned()].into(), awaited };
        let keys = contents.keys(GateEpoch(epoch));
        json!({ "n2": keys, "n3": keys })
    }

    /// An instance of n1, which is lost, is to be placed elsewhere; from each of these looks on the members are told this.
    fn place(site: Option<&str>, reason: &str, pool: &str, told: &BTreeMap<u32, Value>) -> Value {
        place_under("n3", site, reason, pool, told)
    }

    fn place_under(
        leader: &str,
        site: Option<&str>,
        reason: &str,
        pool: &str,
        told: &BTreeMap<u32, Value>,
    ) -> Value {
        let told: Vec<Value> =
            told.iter().map(|(from, told)| json!({"from": from, "members": told})).collect();
        let world = json!({
            "scriptlet": compose(site, "1"),
            "lost": "n1",
            "leader": leader,
            "reason": reason,
            "devices": {"root": {"type": "disk", "path": "/", "pool": pool}},
            "told": told,
        });
        let mut python = Command::new("/usr/bin/python3")
            .args(["-c", include_str!("run.py")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        python.stdin.take().unwrap().write_all(world.to_string().as_bytes()).unwrap();
        let output = python.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refused(answer: &Value) -> u64 {
        let outcome = answer["outcome"].as_str().unwrap();
        assert!(outcome.contains("member n1 is not sealed"), "{outcome}");
        answer["looks"].as_u64().unwrap()
    }

    #[test]
    fn a_healing_that_begins_the_fence_is_let_through_once_it_is_sealed() {
        let answer =
            place(None, "evacuation", "remote", &[(0, told(4, false, 40)), (7, told(5, true, 0))].into());
        assert_eq!(answer, json!({"outcome": "any", "looks": 7, "asked": ["n3"]}), "the leader asks itself");
        // Sealed before.
        let answer = place(None, "evacuation", "remote", &[(0, told(5, true, 0))].into());
        assert_eq!((&answer["outcome"], &answer["looks"]), (&json!("any"), &json!(0)));
    }

    #[test]
    fn it_looks_as_often_as_it_is_told_and_no_longer_than_the_seal_may_come() {
        assert_eq!(refused(&place(None, "evacuation", "remote", &[(0, told(4, false, 40))].into())), 40);
        assert_eq!(refused(&place(None, "evacuation", "remote", &[(0, told(4, false, 0))].into())), 0);
        let ended = [(0, told(4, false, 40)), (3, told(5, false, 0))];
        assert_eq!(refused(&place(None, "evacuation", "remote", &ended.into())), 3);
    }

    #[test]
    fn nobody_waits_but_a_healing_of_what_a_seal_covers() {
        let waits = || [(0, told(4, false, 40)), (1, told(5, true, 0))].into();
        assert_eq!(refused(&place(None, "relocation", "remote", &waits())), 0);
        assert_eq!(refused(&place(None, "evacuation", "elsewhere", &waits())), 0);
    }

    /// Another server that stands still would hold up the healing.
    #[test]
    fn where_the_leader_is_no_target_nobody_waits() {
        let waits = [(0, told(4, false, 40)), (1, told(5, true, 0))].into();
        assert_eq!(refused(&place_under("n9", None, "evacuation", "remote", &waits)), 0);
    }

    /// A number that no guardian wrote, and one that was put back beside a newer epoch.
    #[test]
    fn a_number_that_no_guardian_wrote_is_none() {
        for looks in ["-1", "1000000", "soon", ""] {
            let mut keys = told(4, false, 7);
            for name in ["n2", "n3"] {
                keys[name]["user.rbd-guardian.wait.n1"] = json!(looks);
            }
            assert_eq!(refused(&place(None, "evacuation", "remote", &[(0, keys)].into())), 0, "{looks:?}");
        }
        let mut keys = told(4, false, 7);
        keys["n3"] = told(5, false, 0)["n3"].clone();
        assert_eq!(refused(&place(None, "evacuation", "remote", &[(0, keys)].into())), 0);
    }

    #[test]
    fn a_scriptlet_of_the_sites_is_asked_after_the_wait() {
        let site = "def instance_placement(request, candidate_members):\n    set_target(candidate_members[-1].server_name)\n";
        let waits = [(0, told(4, false, 40)), (2, told(5, true, 0))].into();
        let answer = place(Some(site), "evacuation", "remote", &waits);
        assert_eq!((&answer["outcome"], &answer["looks"]), (&json!("n3"), &json!(2)));
        // A write that has reached one member opens that one alone.
        let mut half = told(4, false, 40);
        half["n2"] = told(5, true, 0)["n2"].clone();
        let waits = [(0, told(4, false, 40)), (2, half)].into();
        assert_eq!(place(Some(site), "evacuation", "remote", &waits)["outcome"], json!("n2"));
    }
}
