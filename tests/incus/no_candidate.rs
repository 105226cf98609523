//! An instance that may run nowhere else, on the newest Incus: healing ends without it and says nothing, the guardian does.

use crate::common::guarded::{Guarded, HEALED, MEMBERS, SOON, alarm, member};
use crate::in_the_newest_world;
use lab::incus::IMAGE;
use lab::{Topology, World, WriteLog as _, wait_for};

/// Incus 6.0 moves an instance out of its project's groups; from 7.0.1 on such members are no candidates.
#[test]
fn what_no_other_member_may_take_is_shown_as_stranded_with_the_cause() {
    // `make soak` runs it, in the newest world: a third Incus cluster is too much beside the sample of `make test`.
    if !in_the_newest_world() {
        return;
    }
    let site = Guarded::start(Topology::apart().world(World::Newest));
    let leader = site.cluster.leader().unwrap();
    let lost = MEMBERS.into_iter().find(|name| *name != leader).unwrap();
    let live = site.cluster.member(&leader);
    let incus = |words: &[&str]| live.incus(words).unwrap();
    incus(&["cluster", "group", "create", "alone"]);
    incus(&["cluster", "group", "add", lost, "alone"]);
    // A project that is restricted must have profiles of its own.
    let project = ["project", "create", "confined", "-c", "features.images=false"];
    let limits = [
        "-c",
        "restricted=true",
        "-c",
        "restricted.cluster.groups=alone",
        "-c",
        "restricted.cluster.target=allow",
    ];
    let allowed =
        ["-c", "restricted.containers.privilege=allow", "-c", "restricted.containers.lowlevel=allow"];
    incus(&[&project[..], &limits, &allowed].concat());
    let profile = live.query("/1.0/profiles/default").unwrap();
    live.request("PUT", "/1.0/profiles/default?project=confined", &profile).unwrap();
    incus(&["launch", IMAGE, "bound", "--project", "confined", "--target", lost]);
    let free = site.cluster.launch("free", lost).unwrap();
    let bound = site.cluster.container("bound");
    let stale = bound.wait_for_writer(lost, SOON).unwrap();
    stale.wait_for_acks(1, SOON).unwrap();
    site.wait_until_known(lost);

    site.lab().cut(lost).unwrap();
    wait_for("the other one to be healed", HEALED, || {
        let owner = free.location()?;
        (owner != lost).then(|| free.wait_for_writer(&owner, SOON)).transpose()
    })
    .unwrap();
    let status = site.wait_for_status("what was left to be told", HEALED, |status| {
        alarm(status, "stranded", lost).is_object()
    });
    let told = alarm(&status, "stranded", lost);
    println!("{told:#}");
    let text = told["text"].as_str().unwrap();
    assert!(text.contains("confined/bound") && !text.contains("free"), "{text}");
    assert!(text.contains("restricted.cluster.groups"), "{text}");
    assert_eq!(member(&status, lost)["state"], "stranded", "{status:#}");
    let instances = live.query("/1.0/instances?recursion=1&project=confined").unwrap();
    assert_eq!(instances[0]["location"], lost, "Incus says that it has healed it: {instances:#}");

    // It is still the same container, so all of its writes are there when it starts again.
    site.lab().heal(lost).unwrap();
    stale.wait_for_error(std::time::Duration::ZERO, SOON).unwrap();
    site.cluster.member(lost).reboot().unwrap();
    site.wait_for_status("no more of it", HEALED, |status| {
        member(status, lost)["state"] == "watching" && !alarm(status, "stranded", lost).is_object()
    });
}
