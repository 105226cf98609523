//! The guardian and a real Incus cluster: enrolled, reading, listening, and what it sees when a member is lost.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lab::{Links, Topology};
use rbd_guardian::deadline::within;
use rbd_guardian::incus::client::Client;
use rbd_guardian::incus::endpoint::Endpoint;
use rbd_guardian::incus::error::RequestError;
use rbd_guardian::incus::events::{EventKind, Listener, Signal};
use rbd_guardian::incus::options::IncusConfig;
use rbd_guardian::incus::{block_on, read};
use rbd_guardian_core::model::incus_snapshot::{InstanceId, MemberStatus};
use rbd_guardian_core::model::volume::{ImageName, images};
use serde_json::{Value, json};

use crate::common::guarded::{Guarded, MEMBERS};
use crate::from;

/// For anything that happens at once, on a machine under load.
const SOON: Duration = Duration::from_secs(30);
/// For anything that is only noticed by silence.
const NOTICED: Duration = Duration::from_secs(60);

fn id(name: &str) -> InstanceId {
    InstanceId { project: "default".to_owned(), name: name.to_owned() }
}

/// The first signal that this has a use for.
async fn until<T>(listener: &mut Listener, limit: Duration, mut want: impl FnMut(&Signal) -> Option<T>) -> T {
    let wait = async {
        loop {
            let signal = listener.next().await;
            if let Some(found) = want(&signal) {
                return found;
            }
        }
    };
    within(limit, wait).await.expect("the signal did not come")
}

fn started(signal: &Signal, name: &str) -> Option<String> {
    let Signal::Event(event) = signal else { return None };
    let EventKind::Lifecycle(what) = &event.what else { return None };
    (what.action == "instance-started" && what.name == name).then(|| event.location.clone())
}

#[test]
fn a_guardian_enrolls_reads_and_listens() {
    let mut site = Guarded::unenrolled(Topology::apart());
    let [token, unused] = ["used", "unused"].map(|_| site.cluster.trust("rbd-guardian").unwrap());
    site.enroll(&token);
    tokens_are_good_once(&site, &unused);
    let config = site.incus();
    site.cluster.launch("c1", "n1").unwrap();
    from(site.lab().host("guard"), || block_on(reads(&site, &config)).unwrap());
    from(site.lab().host("guard"), || block_on(listens(&site, &config)).unwrap());
}

fn tokens_are_good_once(site: &Guarded, unused: &str) {
    let enroll = |token: &str, more: &[&str]| site.guardian(&[&["incus", "enroll", token], more].concat());
    // Trusted already: nothing is used up, and the files stay.
    let key = fs::read(site.incus().key).unwrap();
    let answer = enroll(unused, &[]).expect(0);
    assert_eq!(answer.json["already"], json!(true));
    assert_eq!(fs::read(site.incus().key).unwrap(), key, "enrolling again made another key");
    // So it is good for another certificate, and then for no other.
    let answer = enroll(unused, &["--force"]).expect(0);
    assert_eq!(answer.json["already"], json!(false));
    assert_ne!(fs::read(site.incus().key).unwrap(), key);
    let said = enroll(unused, &["--force"]).expect(1).stderr;
    assert!(said.contains("refuses the token") && said.contains("incus config trust add"), "{said}");
    let again = site.cluster.trust("rbd-guardian").unwrap();
    // After a refusal, another token and the same key.
    enroll(&again, &[]).expect(0);
}

async fn reads(site: &Guarded, config: &IncusConfig) {
    let client = Client::open(config).unwrap();
    let began = Instant::now();
    let reading = read::read(&client, None).await.unwrap();
    println!("a reading took {:?}", began.elapsed());
    assert_eq!(reading.missing, []);
    let view = &reading.view;
    assert!(MEMBERS.contains(&view.from.as_str()), "{view:?}");
    assert_eq!(view.members.keys().collect::<Vec<_>>(), MEMBERS);
    assert!(view.members.values().all(|member| member.status == MemberStatus::Online), "{view:?}");
    assert_eq!(view.members.values().filter(|member| member.leads).count(), 1);
    assert_eq!(view.thresholds.offline, Duration::from_secs(11));
    assert_eq!(view.thresholds.healing, Some(Duration::from_secs(15)));
    let c1 = &view.instances.as_ref().unwrap()[&id("c1")];
    assert_eq!(c1.location, "n1");
    let details = c1.details.as_ref().unwrap();
    assert!(details.running, "{details:?}");
    let image = ImageName::parse("incus/container_c1").unwrap();
    let images = images(view, "ceph");
    assert!(images.contains_key(&image), "{images:?}");
    let gate = view.gate.as_ref().unwrap();
    assert_eq!(gate.scriptlets.len(), 3);
    assert!(gate.scriptlets.values().all(|scriptlet| scriptlet.as_deref() == Ok("")), "{gate:?}");

    for member in MEMBERS {
        let state = read::member_state(&client, member).await.unwrap();
        assert_eq!(state.machine, Some(site.cluster.member(member).uuid().to_string()));
        let networks = read::member_addresses(&client, member).await.unwrap();
        let addresses: Vec<_> = networks.iter().map(|network| network.addr()).collect();
        assert!(addresses.contains(&site.lab().host(member).ip()), "{member}: {addresses:?}");
        assert!(addresses.contains(&site.cluster.member(member).address()), "{member}: {addresses:?}");
    }

    // The same through a member's socket, whose owner is root.
    let socket = Endpoint::Unix(site.cluster.member("n2").socket());
    let local = Client::open(&IncusConfig { endpoints: vec![socket], ..IncusConfig::default() }).unwrap();
    let reading = read::read(&local, None).await.unwrap();
    assert_eq!((reading.view.from.as_str(), &reading.missing), ("n2", &Vec::new()));
    assert_eq!(reading.view.volumes, view.volumes);
}

async fn listens(site: &Guarded, config: &IncusConfig) {
    let client = Client::open(config).unwrap();
    let mut listener = Listener::start(&client);
    let mut connected = Vec::new();
    until(&mut listener, SOON, |signal| {
        if let Signal::Connected { endpoint } = signal {
            connected.push(endpoint.clone());
        }
        (connected.len() == 3).then_some(())
    })
    .await;

    // Each member tells, and it is heard once.
    let live = site.cluster.live().unwrap();
    live.incus(&["stop", "--force", "c1"]).unwrap();
    live.incus(&["start", "c1"]).unwrap();
    live.incus(&["project", "create", "after"]).unwrap();
    let mut starts = Vec::new();
    until(&mut listener, SOON, |signal| {
        starts.extend(started(signal, "c1"));
        let Signal::Event(event) = signal else { return None };
        let EventKind::Lifecycle(what) = &event.what else { return None };
        (what.action == "project-created").then_some(())
    })
    .await;
    // The order is not kept, so the start may yet come; a second telling of it must not.
    let late = within(Duration::from_secs(2), async {
        loop {
            starts.extend(started(&listener.next().await, "c1"));
        }
    });
    let _: Result<(), _> = late.await;
    println!("c1 started on {starts:?}");
    assert_eq!(starts, ["n1"], "told by three, heard once");

    // A lost member is noticed by its silence, and heard again when it is back.
    let lost: Endpoint = site.cluster.member("n3").url().parse().unwrap();
    // A member that was healed is Evacuated, whether it is there or not.
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.lab().cut_links("n3", Links::Incus).unwrap();
    let began = Instant::now();
    let why = until(&mut listener, NOTICED, |signal| {
        let Signal::Lost { endpoint, why } = signal else { return None };
        (*endpoint == lost).then(|| why.clone())
    })
    .await;
    println!("lost after {:?}: {why}", began.elapsed());
    assert!(
        matches!(why.cause, RequestError::Late { .. } | RequestError::Lost(_) | RequestError::Unreachable(_)),
        "{why}"
    );

    // Of the rest, the view is whole, the lost one's part of it is known to be missing.
    let before = read::read(&client, None).await.unwrap();
    assert_eq!(before.view.members["n3"].status, MemberStatus::Offline, "{:?}", before.view.members);
    assert!(before.view.members["n3"].heartbeat_age.is_some(), "{:?}", before.view.members);
    assert!(before.view.gate.unwrap().scriptlets["n3"].is_err());
    let asked = client.on(&lost).get::<Value>("/1.0").await.unwrap_err();
    assert!(asked.surely_not_done(), "{asked}");

    site.lab().heal_links("n3", Links::Incus).unwrap();
    let back =
        |signal: &Signal| matches!(signal, Signal::Connected { endpoint } if *endpoint == lost).then_some(());
    until(&mut listener, NOTICED, back).await;
}

#[test]
#[ignore = "writes tests/fixtures/incus anew"]
fn record() {
    let site = Guarded::unenrolled(Topology::apart());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/incus/6.0.4");
    fs::create_dir_all(&folder).unwrap();
    let n1 = site.cluster.member("n1");
    n1.incus(&["storage", "volume", "create", "remote", "data"]).unwrap();
    n1.incus(&["storage", "volume", "create", "remote", "disk", "--type=block", "security.shared=true"])
        .unwrap();
    site.cluster.launch("c1", "n1").unwrap();
    site.cluster.launch("c2", "n3").unwrap();
    n1.incus(&["storage", "volume", "attach", "remote", "data", "c1", "/srv"]).unwrap();
    let write = |name: &str, value: &Value| {
        fs::write(folder.join(name), serde_json::to_string_pretty(value).unwrap() + "\n").unwrap();
    };
    let all = "recursion=1&all-projects=true";
    let paths = [
        ("server", "/1.0".to_owned()),
        ("members", "/1.0/cluster/members?recursion=1".to_owned()),
        ("member-state", "/1.0/cluster/members/n2/state".to_owned()),
        ("resources", "/1.0/resources?target=n2".to_owned()),
        ("instances", format!("/1.0/instances?{all}")),
        ("instance-names", "/1.0/instances?all-projects=true".to_owned()),
        ("pools", "/1.0/storage-pools?recursion=1".to_owned()),
        ("volumes", format!("/1.0/storage-pools/remote/volumes?{all}")),
        ("project", "/1.0/projects/default".to_owned()),
        ("operations", format!("/1.0/operations?{all}")),
        ("networks", "/1.0/networks?target=n2".to_owned()),
        ("network-state", "/1.0/networks/eth0/state?target=n2".to_owned()),
    ];
    for (name, path) in paths {
        let mut answer = n1.query(&path).unwrap();
        // What tells of the machine it was recorded on, and of nothing that is read.
        if let Some(environment) = answer.get_mut("environment").and_then(Value::as_object_mut) {
            environment.retain(|key, _| key.starts_with("server"));
        }
        if let Some(machine) = answer.as_object_mut().filter(|_| name == "resources") {
            machine.retain(|key, _| key == "system");
        }
        write(&format!("{name}.json"), &answer);
    }
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.lab().cut_links("n3", Links::Incus).unwrap();
    site.cluster.wait_for_status("n3", "Offline", NOTICED).unwrap();
    let live = site.cluster.live().unwrap();
    write("members-one-lost.json", &live.query("/1.0/cluster/members?recursion=1").unwrap());
    write("instances-one-lost.json", &live.query(&format!("/1.0/instances?{all}")).unwrap());
}
