//! Reading the view from recorded answers, and from members of which parts do not answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rbd_guardian::incus::block_on;
use rbd_guardian::incus::client::Client;
use rbd_guardian::incus::endpoint::Endpoint;
use rbd_guardian::incus::error::RequestError;
use rbd_guardian::incus::options::IncusConfig;
use rbd_guardian::incus::read::{IncusReading, glance, member_addresses, member_answers, member_state, read};
use rbd_guardian_core::model::blocklist::Blocklist;
use rbd_guardian_core::model::image_users::ImageUse;
use rbd_guardian_core::model::incus_snapshot::{
    IncusSnapshot, InstanceId, InstanceKind, MemberStatus, OperationKind,
};
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::volume::{Content, Expected, ImageName, Images, VolumeKind, images};
use rbd_guardian_core::rules::single_writer::{SingleWriterFacts, conflicts};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

const ALL: &str = "recursion=1&all-projects=true";

/// How a path is answered.
#[derive(Clone)]
enum Answer {
    Metadata(Value),
    Refused(u16),
    Never,
}

/// A member behind a unix socket, which answers by path.
struct Member {
    socket: PathBuf,
    answers: BTreeMap<String, Answer>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/incus").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn recorded(name: &str) -> Answer {
    Answer::Metadata(fixture(&format!("6.0.4/{name}.json")))
}

impl Member {
    /// Answers as `n1` of the recorded cluster did.
    fn recorded() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("rbd-guardian-view-{}-{number}.socket", std::process::id());
        let mut member = Self { socket: std::env::temp_dir().join(name), answers: BTreeMap::new() };
        for (path, name) in [
            ("/1.0", "server"),
            ("/1.0/cluster/members?recursion=1", "members"),
            ("/1.0/cluster/members/n2/state", "member-state"),
            ("/1.0/resources?target=n2", "resources"),
            ("/1.0/instances?all-projects=true", "instance-names"),
            ("/1.0/storage-pools?recursion=1", "pools"),
            ("/1.0/projects/default", "project"),
            ("/1.0/networks?target=n2", "networks"),
            ("/1.0/networks/eth0/state?target=n2", "network-state"),
        ] {
            member.set(path, recorded(name));
        }
        member.set(&format!("/1.0/instances?{ALL}"), recorded("instances"));
        member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), recorded("volumes"));
        member.set(&format!("/1.0/operations?{ALL}"), recorded("operations"));
        for name in ["n2", "n3"] {
            let mut server = fixture("6.0.4/server.json");
            server["environment"]["server_name"] = json!(name);
            server["config"]["instances.placement.scriptlet"] = json!("x");
            member.set(&format!("/1.0?target={name}"), Answer::Metadata(server));
        }
        member
    }

    fn set(&mut self, path: &str, answer: Answer) {
        self.answers.insert(path.to_owned(), answer);
    }

    /// What comes of it, with so much time for a request.
    fn ask<T>(&self, timeout: Duration, ask: impl AsyncFnOnce(Client) -> T) -> T {
        let config = IncusConfig {
            endpoints: vec![Endpoint::Unix(self.socket.clone())],
            timeout,
            ..IncusConfig::default()
        };
        let serve = async {
            let _ = fs::remove_file(&self.socket);
            let listener = UnixListener::bind(&self.socket).unwrap();
            let answers = Arc::new(self.answers.clone());
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let answers = Arc::clone(&answers);
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                                return;
                            }
                        }
                        let head = String::from_utf8(head).unwrap();
                        let path = head.split(' ').nth(1).unwrap();
                        let (status, body) = match answers.get(path).unwrap_or(&Answer::Refused(404)) {
                            Answer::Metadata(metadata) => {
                                (200, json!({"type": "sync", "status_code": 200, "metadata": metadata}))
                            }
                            Answer::Refused(code) => {
                                (*code, json!({"type": "error", "error_code": code, "error": path}))
                            }
                            Answer::Never => std::future::pending().await,
                        };
                        let (body, end) = (body.to_string(), "Connection: close");
                        let text = format!(
                            "HTTP/1.1 {status} X\r\n{end}\r\nContent-Length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        let _ = stream.write_all(text.as_bytes()).await;
                    });
                }
            });
            ask(Client::open(&config).unwrap()).await
        };
        block_on(serve).unwrap()
    }

    fn read(&self, timeout: Duration, previous: Option<&IncusSnapshot>) -> IncusReading {
        self.ask(timeout, async |client| read(&client, previous).await.unwrap())
    }
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_secs(1);

fn id(project: &str, name: &str) -> InstanceId {
    InstanceId { project: project.to_owned(), name: name.to_owned() }
}

#[test]
fn a_recorded_cluster_is_read_whole() {
    let member = Member::recorded();
    let IncusReading { view, missing } = member.read(LONG, None);
    assert_eq!(missing, []);
    assert_eq!((view.from.as_str(), view.members.len()), ("n1", 3));
    assert_eq!(view.members.values().filter(|member| member.leads).count(), 1);
    assert_eq!(view.members["n1"].addresses, Ok([].into()));
    assert_eq!(view.thresholds.offline, Duration::from_secs(11));
    assert_eq!(view.thresholds.healing, Some(Duration::from_secs(15)));
    let pool = &view.pools.as_ref().unwrap()["remote"];
    assert_eq!((pool.driver.as_str(), pool.osd_pool.as_deref()), ("ceph", Some("incus")));
    assert_eq!(pool.cluster.as_deref(), Some("ceph"));

    let instances = view.instances.as_ref().unwrap();
    let c1 = &instances[&id("default", "c1")];
    assert_eq!((c1.kind, c1.location.as_str(), instances.len()), (InstanceKind::Container, "n1", 2));
    let details = c1.details.as_ref().unwrap();
    assert!(details.running && details.ran && details.autostart.is_none(), "{details:?}");

    let volumes = view.volumes.as_ref().unwrap();
    let of = |kind: VolumeKind, name: &str| {
        volumes.iter().find(|volume| volume.kind == kind && volume.name == name)
    };
    assert!(of(VolumeKind::Instance(InstanceKind::Container), "c2").is_some(), "{volumes:?}");
    let data = of(VolumeKind::Custom, "data").unwrap();
    assert_eq!((data.content, data.shared), (Content::Filesystem, false));
    assert_eq!(data.used_by, [id("default", "c1")].into());
    let disk = of(VolumeKind::Custom, "disk").unwrap();
    assert_eq!((disk.content, disk.shared, disk.used_by.len()), (Content::Block, true, 0));

    assert_eq!(view.operations, Some(Vec::new()), "what has ended is not under way");
    let gate = view.gate.unwrap();
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(
        gate.scriptlets,
        [("n1", ""), ("n2", "x"), ("n3", "x")].map(|(m, s)| (m.to_owned(), ok(s))).into()
    );
    let keys = gate.members.iter().map(|(name, keys)| (name.as_str(), keys.len())).collect::<Vec<_>>();
    assert_eq!((keys, gate.project.len()), (vec![("n1", 0), ("n2", 0), ("n3", 0)], 0));

    let state = member.ask(LONG, async |client| member_state(&client, "n2").await.unwrap());
    let uptime = fixture("6.0.4/member-state.json")["sysinfo"]["uptime"].as_u64().unwrap();
    assert_eq!(state.uptime, Duration::from_secs(uptime));
    assert_eq!(state.machine.as_deref(), fixture("6.0.4/resources.json")["system"]["uuid"].as_str());
    assert!(state.machine.is_some());
    let addresses = member.ask(LONG, async |client| member_addresses(&client, "n2").await.unwrap());
    assert_eq!(addresses, ["10.77.0.13/24".parse().unwrap()].into(), "link-local ones are none of them");
}

/// What a live migration of a VM looks like, which the lab cannot run: answers in the recorded form.
#[test]
fn a_vm_that_migrates_live_is_used_by_both_members_and_afterwards_by_one() {
    let mut member = Member::recorded();
    let mut instances = fixture("6.0.4/instances.json");
    let mut vm = instances[0].clone();
    (vm["name"], vm["type"]) = (json!("v1"), json!("virtual-machine"));
    instances.as_array_mut().unwrap().push(vm);
    let mut volumes = fixture("6.0.4/volumes.json");
    let disk = json!({"name": "v1", "type": "virtual-machine", "content_type": "block", "project": "default",
        "config": {}, "used_by": ["/1.0/instances/v1"], "location": ""});
    volumes.as_array_mut().unwrap().push(disk);
    member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), Answer::Metadata(volumes));
    let names = json!(["/1.0/instances/c1", "/1.0/instances/c2", "/1.0/instances/v1"]);
    member.set("/1.0/instances?all-projects=true", Answer::Metadata(names));
    let mut operation = fixture("6.0.4/operations.json")["success"][0].clone();
    (operation["description"], operation["status"]) = (json!("Migrating instance"), json!("Running"));
    operation["status_code"] = json!(103);
    let (source, target, other) = ("10.77.0.12:0/7", "10.77.0.13:0/8", "10.77.0.14:0/9");
    // Container c1 has 10.77.0.12 for n1 and so on; conflicts of the VM's disk as the guard judges them.
    let mut judge = |at: &str, migrating: Option<&str>, users: &[&str]| {
        instances.as_array_mut().unwrap().last_mut().unwrap()["location"] = json!(at);
        member.set(&format!("/1.0/instances?{ALL}"), Answer::Metadata(instances.clone()));
        operation["resources"]["instances"] =
            json!([format!("/1.0/instances/{}", migrating.unwrap_or("v1"))]);
        let running = if migrating.is_some() { json!({"running": [operation]}) } else { json!({}) };
        member.set(&format!("/1.0/operations?{ALL}"), Answer::Metadata(running));
        let IncusReading { view, missing } = member.read(LONG, None);
        assert_eq!(missing, []);
        let addresses = |(name, ip): (&str, &str)| rbd_guardian_core::model::member::Member {
            name: name.to_owned(),
            addresses: vec![ip.parse().unwrap()],
        };
        let members = [("n1", "10.77.0.12"), ("n2", "10.77.0.13"), ("n3", "10.77.0.14")].map(addresses);
        let watchers = users.iter().map(|user| user.parse().unwrap()).collect();
        let image = ImageName::parse("incus/virtual-machine_v1.block").unwrap();
        let uses = [ImageUse { image, watchers, locks: vec![], unknown: vec![] }];
        let images = images(&view, "ceph");
        assert!(images.contains_key(&uses[0].image), "{images:?}");
        let grounds = SingleWriterFacts {
            images: &images,
            members: &Members(members.into()),
            clients: &BTreeMap::new(),
            blocklist: &Blocklist::default(),
            operations: view.operations.as_deref().unwrap(),
            admin_hosts: &[],
            own: &[],
        };
        conflicts(&uses, grounds).into_iter().map(|one| one.client.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(judge("n1", None, &[source]), [""; 0], "before");
    assert_eq!(judge("n1", Some("v1"), &[source, target]), [""; 0], "while it migrates");
    assert_eq!(judge("n2", Some("v1"), &[source, target]), [""; 0], "and is placed there already");
    assert_eq!(judge("n1", Some("c2"), &[source, target]), [target], "another one migrates");
    assert_eq!(judge("n2", None, &[target]), [""; 0], "afterwards");
    assert_eq!(judge("n2", None, &[source, target]), [source], "a source that went on");
    assert_eq!(judge("n2", None, &[target, other]), [other]);
}

#[test]
fn of_a_lost_member_the_place_is_known_and_nothing_else() {
    let mut member = Member::recorded();
    member.set("/1.0/cluster/members?recursion=1", recorded("members-one-lost"));
    member.set(&format!("/1.0/instances?{ALL}"), recorded("instances-one-lost"));
    let IncusReading { view, missing } = member.read(LONG, None);
    assert_eq!(missing, []);
    let lost = &view.members["n3"];
    assert_eq!(lost.status, MemberStatus::Offline);
    assert!(lost.heartbeat_age.unwrap() > Duration::from_secs(11), "{lost:?}");
    let instances = view.instances.unwrap();
    let c2 = &instances[&id("default", "c2")];
    assert_eq!((c2.location.as_str(), &c2.details), ("n3", &None));
    assert!(instances[&id("default", "c1")].details.is_some());
    assert!(view.gate.unwrap().scriptlets["n3"].as_ref().unwrap_err().contains("No heartbeat"));
}

#[test]
fn what_does_not_answer_is_unknown_and_not_none() {
    let mut member = Member::recorded();
    let before = member.read(LONG, None).view;
    let listing = format!("/1.0/instances?{ALL}");
    member.set(&listing, Answer::Never);
    member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), Answer::Refused(500));
    member.set("/1.0/projects/default", Answer::Refused(500));
    let told = |reading: &IncusReading| -> Vec<String> {
        reading.missing.iter().map(|error| error.request.clone()).collect()
    };
    let reading = member.read(SHORT, None);
    let IncusReading { view, .. } = &reading;
    assert_eq!((&view.instances, &view.volumes, &view.gate), (&None, &None, &None));
    assert!(view.pools.is_some() && view.operations.is_some(), "{view:?}");
    assert_eq!(told(&reading).len(), 3, "{:?}", reading.missing);

    // Where they were before, and no more than that.
    let reading = member.read(SHORT, Some(&before));
    let instances = reading.view.instances.as_ref().unwrap();
    assert_eq!(instances[&id("default", "c1")].location, "n1");
    assert!(instances.len() == 2 && instances.values().all(|instance| instance.details.is_none()));
    assert!(told(&reading).contains(&format!("GET {listing}")), "{:?}", reading.missing);
    // One that was not there before is somewhere, and nobody knows where.
    member.set(
        "/1.0/instances?all-projects=true",
        Answer::Metadata(json!(["/1.0/instances/c1", "/1.0/instances/new"])),
    );
    assert_eq!(member.read(SHORT, Some(&before)).view.instances, None);

    // Without the members' listing there is no quorum, whatever else answers.
    member.set("/1.0/cluster/members?recursion=1", Answer::Refused(500));
    let error = member.ask(SHORT, async |client| read(&client, Some(&before)).await.unwrap_err());
    assert_eq!(error.request, "GET /1.0/cluster/members?recursion=1");
}

#[test]
fn the_gates_keys_are_read_from_each_member_and_what_project_default_has_beside_them() {
    let mut member = Member::recorded();
    let mut members = fixture("6.0.4/members.json");
    let seal = "user.rbd-guardian.seal.n3";
    members[1]["config"] = json!({"user.rbd-guardian.epoch": "7", seal: "7", "user.rbd-guardian.ceph-addresses": "10.0.0.2", "user.x": "y"});
    member.set("/1.0/cluster/members?recursion=1", Answer::Metadata(members));
    let mut project = fixture("6.0.4/project.json");
    project["config"]["user.rbd-guardian.gate"] = json!("off");
    member.set("/1.0/projects/default", Answer::Metadata(project));
    let gate = member.read(LONG, None).view.gate.unwrap();
    let keys = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(gate.members["n2"], keys(&[("user.rbd-guardian.epoch", "7"), (seal, "7")]));
    assert_eq!(gate.members["n1"], keys(&[]));
    assert_eq!(gate.project, keys(&[("user.rbd-guardian.gate", "off")]));
}

#[test]
fn a_member_that_answers_for_another_says_nothing_of_its_gate() {
    let mut member = Member::recorded();
    member.set("/1.0?target=n2", recorded("server"));
    let gate = member.read(LONG, None).view.gate.unwrap();
    assert_eq!(gate.scriptlets["n2"], Err("n1 answered in its place".to_owned()));
}

#[test]
fn a_glance_hardly_waits_for_a_member_that_is_known_to_be_silent() {
    let mut member = Member::recorded();
    for name in ["n2", "n3"] {
        member.set(&format!("/1.0?target={name}"), Answer::Never);
    }
    let silent = ["n3".to_owned()].into();
    let reading = member.ask(SHORT, async |client| glance(&client, &silent).await.unwrap());
    let gate = reading.view.gate.unwrap();
    let why = |name: &str| gate.scriptlets[name].clone().unwrap_err();
    assert!(why("n2").contains("within 125ms") && why("n3").contains("within 25ms"), "{gate:?}");
}

#[test]
fn words_of_a_newer_version_are_kept_or_told() {
    let mut member = Member::recorded();
    let newer = |name: &str| Answer::Metadata(fixture(&format!("7.x/{name}.json")));
    let mut server = fixture("6.0.4/server.json");
    server["environment"]["server_name"] = json!("m1");
    member.set("/1.0", Answer::Metadata(server));
    member.set("/1.0/cluster/members?recursion=1", newer("members"));
    member.set(&format!("/1.0/instances?{ALL}"), newer("instances"));
    member.set(&format!("/1.0/operations?{ALL}"), newer("operations"));
    member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), newer("volumes"));
    let IncusReading { view, missing } = member.read(LONG, None);

    assert_eq!(view.members["m2"].heartbeat_age, Some(Duration::from_secs(91)));
    assert_eq!(view.members["m3"].status, MemberStatus::Evacuating);
    assert_eq!(view.members["m4"].status, MemberStatus::Other("Dreaming".to_owned()));
    let addresses = ["10.0.0.5", "2001:db8::5"].map(|ip| ip.parse().unwrap());
    assert_eq!(view.members["m1"].addresses, Ok(addresses.into()));
    assert!(view.members["m3"].addresses.as_ref().unwrap_err().contains("'m3'"));

    let instances = view.instances.unwrap();
    let v1 = instances[&id("p1", "v1")].clone();
    let details = v1.details.unwrap();
    assert_eq!((v1.kind, details.autostart), (InstanceKind::VirtualMachine, Some(false)));
    let disks: Vec<_> = details.external_images.iter().map(|disk| disk.path.as_str()).collect();
    assert_eq!(disks, ["other/ns/disk"]);
    assert_eq!(instances.len(), 2, "one is of a kind that nobody knows");

    let operations = view.operations.unwrap();
    let kinds: Vec<_> = operations.iter().map(|operation| operation.kind).collect();
    assert_eq!(kinds, [OperationKind::Heal, OperationKind::Migrate]);
    assert_eq!(operations[1].instances, [id("p1", "c1"), id("default", "c2")].into());

    let volumes = view.volumes.unwrap();
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["v1", "both"], "a snapshot is no volume of its own");
    assert_eq!(volumes[1].used_by, [id("default", "c1"), id("p1", "v1")].into());
    let told: Vec<_> = missing.iter().map(|error| error.cause.clone()).collect();
    let garbage = |what: &str| RequestError::Garbage(what.to_owned());
    assert_eq!(
        told,
        [garbage("w1 of type 'wasm-module'"), garbage("volume odd of kind 'custom', content 'tape'")]
    );
}

/// Incus names the profile as the user of a volume, and the profile its instances. One profile that cannot be read costs no
/// other volume its users, and its own are unknown, not none.
#[test]
fn a_volume_that_a_profile_attaches_is_used_by_the_profiles_instances() {
    let mut member = Member::recorded();
    let volume = |name: &str, used_by: Value| {
        json!({"name": name, "type": "custom", "content_type": "filesystem", "project": "default", "config": {},
            "used_by": used_by, "location": ""})
    };
    let volumes = json!([
        volume("web", json!(["/1.0/profiles/web?project=b%C3%BCro", "/1.0/instances/c2"])),
        volume("lost", json!(["/1.0/profiles/broken", "/1.0/instances/c1"])),
        volume("gone", json!(["/1.0/profiles/gone"])),
        volume("odd", json!(["/2.0/things/x"])),
        volume("own", json!(["/1.0"])),
    ]);
    member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), Answer::Metadata(volumes));
    let profile =
        json!({"name": "web", "used_by": ["/1.0/instances/c1", "/1.0/instances/x?project=b%C3%BCro"]});
    member.set("/1.0/profiles/web?project=b%C3%BCro", Answer::Metadata(profile));
    member.set("/1.0/profiles/broken?project=default", Answer::Refused(500));
    let IncusReading { view, missing } = member.read(LONG, None);
    assert_eq!(missing.len(), 1, "{missing:?}");
    let volumes = view.volumes.as_ref().unwrap();
    let of = |name: &str| volumes.iter().find(|volume| volume.name == name).unwrap();
    let used_by = [id("default", "c1"), id("default", "c2"), id("b\u{fc}ro", "x")];
    assert_eq!((&of("web").used_by, of("web").unknown.len()), (&used_by.into(), 0));
    assert!(
        of("lost").unknown[0].contains("profile broken") && of("odd").unknown[0].contains("/2.0/things/x")
    );
    assert!(["gone", "own"].iter().all(|name| of(name).used_by.is_empty() && of(name).unknown.is_empty()));
    let images = images(&view, "ceph");
    let image = |name: &str| &images[&ImageName::parse(&format!("incus/custom_default_{name}")).unwrap()];
    assert_eq!(image("web").instances().len(), 3);
    assert!(image("lost").unknown().is_some() && image("odd").unknown().is_some());
    assert_eq!(image("own"), &Expected::AnyMember);
}

/// A disk of another Ceph cluster says so.
#[test]
fn a_disk_device_names_its_cluster() {
    let mut member = Member::recorded();
    let mut instances = fixture("6.0.4/instances.json");
    let disk = |source: &str| json!({"type": "disk", "path": "/x", "source": source});
    let mut far = disk("ceph:incus/b");
    far["ceph.cluster_name"] = json!("far");
    instances[0]["expanded_devices"]["a"] = disk("ceph:incus/a");
    instances[0]["expanded_devices"]["b"] = far;
    member.set(&format!("/1.0/instances?{ALL}"), Answer::Metadata(instances));
    let IncusReading { view, missing } = member.read(LONG, None);
    assert_eq!(missing, []);
    let here = images(&view, "ceph");
    let has = |images: &Images, path: &str| images.contains_key(&ImageName::parse(path).unwrap());
    assert!(has(&here, "incus/a") && !has(&here, "incus/b"), "{here:?}");
    let there = images(&view, "far");
    assert!(!has(&there, "incus/a") && has(&there, "incus/b") && there.len() == 1, "{there:?}");
}

/// Projects and members may have any letter in their names; Incus escapes them on its way out, and expects that.
#[test]
fn names_with_any_letter_are_read_and_asked_for() {
    let mut member = Member::recorded();
    let mut volumes = fixture("6.0.4/volumes.json");
    volumes.as_array_mut().unwrap().push(json!({"name": "büro", "type": "custom", "content_type": "filesystem",
        "project": "büro", "config": {}, "location": "",
        "used_by": ["/1.0/instances/c9?project=b%C3%BCro", "/1.0/instances/c8?project=r%26d", "/1.0/instances/c7?project=a+b"]}));
    member.set(&format!("/1.0/storage-pools/remote/volumes?{ALL}"), Answer::Metadata(volumes));
    let mut operation = fixture("6.0.4/operations.json")["success"][0].clone();
    (operation["description"], operation["status"]) = (json!("Migrating instance"), json!("Running"));
    operation["resources"]["instances"] = json!(["/1.0/instances/c9?project=r%26d"]);
    member.set(&format!("/1.0/operations?{ALL}"), Answer::Metadata(json!({"running": [operation]})));
    let view = member.read(LONG, None).view;
    let volume = view.volumes.unwrap().into_iter().find(|volume| volume.name == "büro").unwrap();
    assert_eq!(volume.used_by, [id("büro", "c9"), id("r&d", "c8"), id("a b", "c7")].into());
    assert_eq!(view.operations.unwrap()[0].instances, [id("r&d", "c9")].into());

    member.set("/1.0/networks?target=n%262", Answer::Metadata(json!(["/1.0/networks/br%2F0"])));
    let state = fixture("6.0.4/network-state.json");
    member.set("/1.0/networks/br%2F0/state?target=n%262", Answer::Metadata(state));
    let addresses = member.ask(LONG, async |client| member_addresses(&client, "n&2").await.unwrap());
    assert_eq!(addresses.len(), 1);
}

/// A command in an instance may be as long as its caller likes, and is in its operation's metadata.
#[test]
fn operations_are_read_however_long_the_commands_are_that_they_tell() {
    let mut member = Member::recorded();
    let command = json!({"id": "1", "class": "websocket", "description": "Executing command", "status": "Running",
        "location": "n1", "resources": {"instances": ["/1.0/instances/c1"]},
        "metadata": {"command": ["x".repeat(24 * 1024 * 1024)]}});
    let mut migration = command.clone();
    (migration["id"], migration["description"]) = (json!("2"), json!("Migrating instance"));
    let running = json!({"running": [command, command, command, migration]});
    member.set(&format!("/1.0/operations?{ALL}"), Answer::Metadata(running));
    let IncusReading { view, missing } = member.read(3 * LONG, None);
    assert_eq!(missing, []);
    let operations = view.operations.unwrap();
    assert_eq!(operations.len(), 4);
    assert_eq!(operations[3].kind, OperationKind::Migrate);
    member.set(&format!("/1.0/operations?{ALL}"), Answer::Refused(500));
    let IncusReading { view, missing } = member.read(LONG, None);
    assert_eq!((view.operations, missing.len()), (None, 1));
    assert!(matches!(missing[0].cause, RequestError::Status { code: 500, .. }), "{missing:?}");
}

#[test]
fn a_machine_is_told_by_whatever_it_shows() {
    let mut member = Member::recorded();
    let machine =
        |member: &Member| member.ask(LONG, async |client| member_state(&client, "n2").await.unwrap()).machine;
    let port = |address: &str| json!({"ports": [{"id": "eth0", "address": address}]});
    let blank = json!({"uuid": "03000200-0400-0500-0006-000700080009", "serial": "Default string",
        "motherboard": null, "chassis": {"serial": ""}});
    let cards = json!([port("b0:7b:25:00:00:01"), {"ports": null}, port("00:00:00:00:00:00")]);
    member.set(
        "/1.0/resources?target=n2",
        Answer::Metadata(json!({"system": blank, "network": {"cards": cards}})),
    );
    assert_eq!(machine(&member).as_deref(), Some("mac=b0:7b:25:00:00:01"));
    member.set("/1.0/resources?target=n2", Answer::Metadata(json!({"system": blank, "network": null})));
    assert_eq!(machine(&member), None);
    let system = json!({"uuid": "", "serial": "PF2X", "motherboard": {"serial": "L1"}, "chassis": null});
    member.set("/1.0/resources?target=n2", Answer::Metadata(json!({"system": system})));
    assert_eq!(machine(&member).as_deref(), Some("system=pf2x board=l1"));
}

#[test]
fn whether_a_member_answers_is_asked_of_itself_and_briefly() {
    let mut member = Member::recorded();
    let answers = |member: &Member| {
        let began = std::time::Instant::now();
        let answers = member.ask(LONG, async |client| member_answers(&client, "n2").await);
        (answers, began.elapsed())
    };
    assert!(answers(&member).0.is_ok());
    member.set("/1.0?target=n2", recorded("server"));
    assert!(answers(&member).0.unwrap_err().to_string().contains("answered in its place"));
    member.set("/1.0?target=n2", Answer::Never);
    let (silent, after) = answers(&member);
    assert!(silent.is_err() && after < Duration::from_secs(3), "{after:?}");
}
