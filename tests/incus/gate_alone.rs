//! The gate while nobody can seal: all guardians die between the loss of a member, for which they told it to wait, and the
//! healing.

use std::time::Duration;

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON};
use crate::common::monitor::Monitor;
use lab::{Topology, monotonic, wait_for};
use rbd_guardian::incus::gate::refusal::{RefusalReason, refusal};
use serde_json::Value;

/// Incus ends a scriptlet after 5 s; with what is around it.
const LIMIT: Duration = Duration::from_millis(5500);
/// A refusal without a wait takes less.
const A_MOMENT: Duration = Duration::from_millis(500);
const NAMES: [&str; 2] = ["c1", "c2"];

#[test]
fn inv2_a_gate_whose_guardian_died_refuses_in_its_time_and_incus_goes_on_healing() {
    let site = Guarded::start(Topology::apart());
    let leader = site.cluster.leader().unwrap();
    let lost = MEMBERS.into_iter().find(|name| *name != leader).unwrap();
    let containers = NAMES.map(|name| site.cluster.launch(name, lost).unwrap());
    for container in &containers {
        container.wait_for_writer(lost, SOON).unwrap();
    }
    site.wait_until_known(lost);
    let monitor = Monitor::start(&site, &leader);
    let cut = monotonic();
    site.lab().cut(lost).unwrap();
    let key = format!("user.rbd-guardian.wait.{lost}");
    let looks = wait_for("the gate to be told to wait", SOON, || {
        let told = site.cluster.member(&leader).query(&format!("/1.0/cluster/members/{leader}"))?;
        Ok(told["config"][&key].as_str().map(str::to_owned))
    });
    site.kill_daemon();

    // Each attempt ends with the gate's own words and not by Incus's limit, and healings go on.
    let begun = || monitor.said(cut, |line| line["metadata"]["message"] == "Starting cluster healing");
    let refused = |line: &Value| {
        refusal(&line.to_string()).is_some_and(|refusal| refusal.why == RefusalReason::NotSealed)
    };
    let refused = || monitor.said(cut, refused);
    wait_for("the second healing's refusal", HEALED, || {
        let second = begun().get(1).copied();
        Ok(second.filter(|second| refused().iter().any(|at| at > second)))
    })
    .unwrap();
    let (starts, mut refusals) = (begun(), refused());
    refusals.sort();
    println!("{} looks: begun at {starts:.2?}, refused at {refusals:.2?}", looks.unwrap());
    let first = refusals.iter().take_while(|at| **at < starts[1]);
    let attempts: Vec<Duration> = starts.iter().take(1).chain(first).copied().collect();
    let longest = attempts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!((A_MOMENT..LIMIT).contains(&longest), "the longest attempt took {longest:?}");
    for name in NAMES {
        assert_eq!(site.listed(name), lost);
    }

    // A guardian that comes back seals, and the next healing takes all of them.
    site.start_daemon();
    for (name, container) in NAMES.into_iter().zip(&containers) {
        let owner = wait_for("another location", HEALED, || {
            let at = site.listed(name);
            Ok((at != lost).then_some(at))
        });
        container.wait_for_writer(&owner.unwrap(), SOON).unwrap();
    }
    assert!(!site.logged("sealed", lost).is_empty());
}
