//! Images that Incus lists and that are not in the pools that are guarded: one that is gone, or all of them, because Incus
//! uses another Ceph cluster of the same name.

use std::collections::BTreeSet;

use rbd_guardian_core::guardian::io::Effect;
use rbd_guardian_core::guardian::report::Alarm;
use rbd_guardian_core::model::gate_keys::POOLS;
use rbd_guardian_core::model::incus_snapshot::Instance;
use rbd_guardian_core::model::operator_request::Request;
use rbd_guardian_core::model::overrides::Overrides;
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::model::volume::{Content, ImageName, Volume, VolumeKind};

use crate::model::{Model, id};
use crate::{SECOND, healthy, sealed};

fn image(name: &str) -> ImageName {
    ImageName { pool: "incus".into(), namespace: String::new(), name: name.into() }
}

/// Incus keeps its images in another cluster; those that are here have the names of none.
fn of_another_cluster() -> Model {
    let mut model = Model::new();
    model.gone = model.uses.drain(..).map(|one| one.image).collect();
    model
}

fn alarm(model: &Model, code: &str) -> Option<Alarm> {
    model.guardian.alarms().into_iter().find(|alarm| alarm.code == code)
}

fn covers(model: &Model, pool: &str) -> bool {
    model.keys_of("n1").unwrap().get(POOLS).is_some_and(|pools| pools.split(',').any(|one| one == pool))
}

fn lost(model: &mut Model) {
    model.lose("n2");
    model.run(3 * SECOND);
    model.heal_is_refused("n2");
}

fn although_incomplete() -> Request {
    Request::Fence {
        target: Target::Member("n2".into()),
        overrides: Overrides { accept_incomplete: true, ..Overrides::default() },
        reason: Some("I know".into()),
        by: "root@h".into(),
    }
}

fn is_closed_for(model: &mut Model, steps: usize) {
    for _ in 0..steps {
        model.step();
        assert!(model.seals().is_empty(), "{:#?}", model.logs());
    }
}

#[test]
fn inv2_no_gate_opens_in_a_cluster_that_has_none_of_incuss_images() {
    let mut model = of_another_cluster();
    model.until("told", |model| alarm(model, "wrong-cluster").is_some());
    let told = alarm(&model, "wrong-cluster").unwrap();
    assert!(
        told.text.contains("pool 'incus' lacks 3 of 3") && told.text.contains("container_c1"),
        "{told:#?}"
    );
    assert!(told.advice.iter().any(|advice| advice.contains("fsid")), "{told:#?}");
    model.until("not covered", |model| !covers(model, "remote") && !covers(model, "ceph:ceph/incus"));

    // By itself nothing is fenced in a cluster that may be a stranger's, and the operator is told why.
    lost(&mut model);
    model.until("refused", |model| model.state("n2") == "refused");
    assert!(alarm(&model, "refused").is_some_and(|told| told.text.contains("another Ceph cluster")));
    assert!(!model.changed_storage());

    // An operator may; what is covered by the seal is nothing of Incus's.
    model.ask(1, although_incomplete());
    model.until("sealed", |model| model.state("n2") == "sealed");
    for _ in 0..200 {
        model.step();
        assert!(!covers(&model, "remote"));
    }

    // The guardian is configured for the right one, or the images are back.
    model.gone.clear();
    model.until("over", |model| alarm(model, "wrong-cluster").is_none() && covers(model, "remote"));
}

/// Of a pool whose first instance was created a moment ago.
#[test]
fn an_image_that_was_not_seen_yet_is_not_called_another_clusters() {
    let mut model = of_another_cluster();
    let said = |model: &Model| {
        let plan = model.guardian.plan(Target::Member("n2".into()), Overrides::default())?;
        let refusals = plan.err()?.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        refusals.contains("1 of 1 images").then_some(refusals)
    };
    let not_of_n2: BTreeSet<ImageName> = [image("container_c1"), image("container_c3")].into();
    model.gone.retain(|image| !not_of_n2.contains(image));
    let pool = |volume: &Volume| volume.name == "c2";
    model.view.volumes.as_mut().unwrap().retain(pool);
    model.until("judged", |model| said(model).is_some());
    let first = said(&model).unwrap();
    assert!(first.contains("not been seen there yet") && first.contains("within 10 s"), "{first}");
    assert!(!first.contains("another Ceph cluster"), "{first}");
    model.run(30 * SECOND);
    let later = said(&model).unwrap();
    assert!(later.contains("another Ceph cluster"), "{later}");
}

#[test]
fn inv2_a_member_is_closed_before_anybody_knows_that_the_cluster_is_another() {
    let mut model = healthy();
    model.gone = model.uses.iter().map(|one| one.image.clone()).collect();
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_closed_for(&mut model, 200);
    model.until("told", |model| alarm(model, "wrong-cluster").is_some());
    model.gone.clear();
    model.until("open", |model| model.seals().contains("n2") && covers(model, "remote"));
}

#[test]
fn inv2_one_image_that_is_gone_keeps_the_gate_closed_until_the_operator_goes_on_without_it() {
    let mut model = healthy();
    model.gone = [image("container_c2")].into();
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_closed_for(&mut model, 100);
    let told = alarm(&model, "gate-waits").unwrap();
    assert!(told.text.contains("pool 'incus' has no image incus/container_c2"), "{told:#?}");
    assert!(told.advice.iter().any(|advice| advice.contains("--accept-incomplete")), "{told:#?}");
    // One of three says nothing of the cluster.
    assert!(alarm(&model, "wrong-cluster").is_none() && covers(&model, "remote"));
    model.ask(1, although_incomplete());
    model.until("open", |model| model.seals().contains("n2"));
    model.until("over", |model| alarm(model, "gate-waits").is_none());
}

/// It was deleted after the last listing, as any instance may be: the listing is read again before anything is judged.
#[test]
fn an_instance_that_was_just_deleted_holds_nothing_up() {
    let mut model = healthy();
    let all = model.view.volumes.as_mut().unwrap();
    let more = Volume { name: "more".into(), ..all[1].clone() };
    all.push(more);
    let instances = model.view.instances.as_mut().unwrap();
    let instance = Instance { details: None, ..instances[&id("c2")].clone() };
    instances.insert(id("more"), instance);
    model.run(70 * SECOND);
    model.gone = [image("container_more")].into();
    model.view.volumes.as_mut().unwrap().retain(|volume| volume.name != "more");
    model.view.instances.as_mut().unwrap().remove(&id("more"));
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    let sealed = model.boot;
    model.until("open", |model| model.seals().contains("n2"));
    assert!(model.boot - sealed < 10 * SECOND, "{:?}", model.boot - sealed);
    assert!(alarm(&model, "wrong-cluster").is_none());
}

/// Unknown is not no: what cannot be read keeps the gate closed, and accuses nobody.
#[test]
fn inv9_a_directory_that_cannot_be_read_is_neither_here_nor_elsewhere() {
    let mut model = Model::new();
    model.unlisted = vec!["pool incus: no answer".into()];
    model.gone = model.uses.iter().map(|one| one.image.clone()).collect();
    model.run(60 * SECOND);
    assert!(alarm(&model, "wrong-cluster").is_none() && covers(&model, "remote"));
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_closed_for(&mut model, 100);
    assert!(alarm(&model, "gate-waits").is_some_and(|told| told.text.contains("pool incus: no answer")));
    (model.unlisted, model.gone) = (Vec::new(), BTreeSet::new());
    model.until("open", |model| model.seals().contains("n2"));
}

/// The second storage pool names another Ceph cluster, whose pool has the same name. In this one images of its names are
/// somebody else's.
#[test]
fn inv6_a_storage_pool_of_another_cluster_is_neither_learnt_from_nor_covered() {
    let mut model = Model::new();
    let pools = model.view.pools.as_mut().unwrap();
    let mut far = pools["remote"].clone();
    (far.cluster, far.osd_pool) = (Some("far".into()), Some("incus".into()));
    pools.insert("away".into(), far);
    let all = model.view.volumes.as_mut().unwrap();
    let away = Volume { name: "far".into(), pool: "away".into(), ..all[1].clone() };
    all.push(away);
    let instances = model.view.instances.as_mut().unwrap();
    instances.insert(id("far"), instances[&id("c2")].clone());
    let mut foreign = model.uses[1].clone();
    (foreign.image, foreign.watchers) = (image("container_far"), vec!["10.0.0.77:0/7".parse().unwrap()]);
    model.uses.push(foreign);
    model.run(120 * SECOND);
    assert!(covers(&model, "remote") && !covers(&model, "away"));
    let foreign = "10.0.0.77".parse().unwrap();
    assert!(model.guardian.members().0.iter().all(|member| !member.addresses.contains(&foreign)));
    let asked = model
        .effects
        .iter()
        .any(|effect| matches!(effect, Effect::Find(images) if images.contains(&image("container_far"))));
    assert!(!asked, "what lies elsewhere is not looked for here");
    model.lose_until_open("n2");
    assert!(!model.map().blocklist.entries.keys().any(|entry| entry.ip == foreign), "{:?}", model.map());
}

/// A profile could not be read, so whose the volume is nobody knows: not even that it is nobody's.
#[test]
fn inv9_the_gate_waits_for_who_uses_a_volume_whose_users_are_unknown() {
    let mut model = healthy();
    let all = model.view.volumes.as_mut().unwrap();
    let mut half = all[1].clone();
    (half.name, half.kind, half.content) = ("half".into(), VolumeKind::Custom, Content::Filesystem);
    half.unknown = vec!["used by profile web: answered 500".into()];
    all.push(half);
    let mut strange = model.uses[1].clone();
    // Of n1, which is healthy, and of nobody.
    let watchers = ["10.0.0.1:0/100", "10.0.0.77:0/7"].map(|one| one.parse().unwrap());
    (strange.image, strange.watchers) = (image("custom_default_half"), watchers.into());
    model.uses.push(strange);
    model.run(70 * SECOND);
    assert!(alarm(&model, "second-writer").is_none(), "nobody is accused");
    lost(&mut model);
    model.until("sealed", |model| model.state("n2") == "sealed");
    is_closed_for(&mut model, 100);
    let told = alarm(&model, "gate-waits").unwrap().text;
    assert!(told.contains("10.0.0.77:0/7") && told.contains("profile web"), "{told}");
    assert!(!told.contains("10.0.0.1:0/100"), "{told}");
    model.uses.last_mut().unwrap().watchers.pop();
    model.until("open", |model| model.seals().contains("n2"));
}

/// INV-6: what an earlier guardian knew of the pools, its successor does not.
#[test]
fn inv6_a_guardian_that_takes_over_fences_nobody_before_its_first_look_was_judged() {
    let mut model = healthy();
    model.gone = model.uses.iter().map(|one| one.image.clone()).collect();
    model.lose("n2");
    model.restart("boot-2");
    model.run(SECOND);
    model.heal_is_refused("n2");
    model.until("refused", |model| model.state("n2") == "refused");
    model.run(60 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    assert!(alarm(&model, "refused").is_some_and(|told| told.text.contains("another Ceph cluster")));
}

/// A pool whose directory nobody can read holds up no fence for ever; the gate stays closed.
#[test]
fn after_a_takeover_a_fence_waits_for_a_silent_storage_for_ten_seconds() {
    let mut model = healthy();
    model.unlisted = vec!["pool incus: no answer".into()];
    model.lose("n2");
    model.restart("boot-2");
    model.run(SECOND);
    model.heal_is_refused("n2");
    let refused = model.boot;
    model.run(8 * SECOND);
    assert!(!model.changed_storage(), "{:#?}", model.logs());
    model.until("sealed", |model| model.state("n2") == "sealed");
    assert!(model.boot - refused < 13 * SECOND, "{:?}", model.boot - refused);
    is_closed_for(&mut model, 100);
    // The next one does not wait again; one that an operator wants never does.
    model.unlisted.clear();
    model.until("open", |model| model.seals().contains("n2"));
}

/// Where Incus was silent at the takeover, its first answer is a listing: it was a minute later.
#[test]
fn a_listing_that_failed_is_asked_for_with_the_next_reading() {
    let mut model = healthy();
    model.platform_down = true;
    model.restart("boot-2");
    model.run(20 * SECOND);
    model.platform_down = false;
    model.effects.clear();
    model.run(3 * SECOND);
    assert!(model.effects.iter().any(|effect| matches!(effect, Effect::Find(_))), "{:#?}", model.effects);
}

/// What is looked for at rest is some of each pool, and seldom.
#[test]
fn at_rest_some_images_are_looked_for_now_and_then() {
    let mut model = Model::with_volumes(1000);
    model.run(1300 * SECOND);
    let looks: Vec<usize> = model
        .effects
        .iter()
        .filter_map(|effect| if let Effect::Find(images) = effect { Some(images.len()) } else { None })
        .collect();
    assert!(looks.len() == 3 && looks.iter().all(|count| (1..=16).contains(count)), "{looks:?}");
    assert_eq!(sealed("n2").effects.iter().filter(|effect| matches!(effect, Effect::Find(_))).count(), 2);
}
