//! The wrapper of librados, on a real cluster: each answer is compared with what Ceph's own tools say.

mod inside;

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use std::{env, fs};

use lab::{Lab, Topology, monotonic, wait_for};
use nix::errno::Errno;
use rbd_guardian::ceph::barrier::{Probes, barrier};
use rbd_guardian::ceph::command::CephReadError;
use rbd_guardian::ceph::rados::cluster::{Cluster, CommandError, Options};
use rbd_guardian::ceph::rados::completion::{Completed, Header};
use rbd_guardian::ceph::rados::error::ConnectError;
use rbd_guardian::ceph::rados::ioctx::IoCtx;
use rbd_guardian::ceph::sessions::{self, Session};
use rbd_guardian::deadline::Deadline;
use rbd_guardian_core::model::barrier::PoolToProve;
use rbd_guardian_core::model::epoch::OsdEpoch;
use serde_json::{Value, json};

use inside::Result;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn librados_says_what_the_tools_say() -> Result<()> {
    let lab = Topology::small(&["n1"]).start()?;
    for pool in ["images", "data"] {
        lab.ceph(&["osd", "pool", "create", pool, "8"])?;
        lab.rbd(&["pool", "init", pool])?;
    }
    lab.rbd(&["create", "images/one", "--size", "8"])?;
    lab.rbd(&["create", "images/split", "--size", "8", "--data-pool", "data"])?;
    lab.rbd(&["namespace", "create", "images/tenant"])?;
    lab.rbd(&["create", "images/tenant/two", "--size", "8"])?;
    lab.rbd(&["lock", "add", "images/one", "holder"])?;
    for number in 0..4_u8 {
        // No tool of RBD writes such a key; whoever may write the directory can.
        let key = OsString::from_vec([b"name_\xff".as_slice(), &[b'0' + number]].concat());
        let mut rados = lab.host("admin").bounded("rados", SOON);
        rados.args(["-p", "images", "setomapval", "rbd_directory"]).arg(key).arg("no image");
        let output = rados.output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    // It watches until it reads a line.
    let watch = ["-c", "tail -f /dev/null | rbd watch images/one"];
    let _watch = lab.host("n1").spawn("watch", "sh", watch)?;
    let watchers = wait_for("the watcher of images/one", SOON, || {
        let status: Value = serde_json::from_str(&lab.rbd(&["status", "images/one", "--format", "json"])?)?;
        Ok(status["watchers"].as_array().filter(|watchers| !watchers.is_empty()).cloned())
    })?;
    let map = lab.ceph(&["osd", "map", "images", "some-object"])?;
    let facts = json!({
        "pool": pool(&lab, "images")?, "data": pool(&lab, "data")?, "fsid": lab.ceph(&["fsid"])?["fsid"],
        "one": header(&lab, "images/one")?, "split": header(&lab, "images/split")?,
        "two": header(&lab, "images/tenant/two")?,
        "watchers": watchers, "pg": map["pgid"], "dir": lab.dir(),
    });
    fs::write(
        lab.dir().join("wrong.keyring"),
        "[client.admin]\nkey = AQAhwLZkAAAAABAAOO4xz8nl0V0Nh0n5Xc4O0g==\n",
    )?;
    fs::write(lab.dir().join("broken.keyring"), "key\n")?;
    fs::write(lab.dir().join("broken.conf"), "[global\n")?;
    inside::run(&lab, &[], "inside_the_lab", &facts)
}

fn pool(lab: &Lab, name: &str) -> Result<Value> {
    let dump = lab.ceph(&["osd", "dump"])?;
    let pools = dump["pools"].as_array().ok_or("no pools")?;
    Ok(pools.iter().find(|pool| pool["pool_name"] == name).ok_or("no such pool")?["pool"].clone())
}

fn header(lab: &Lab, image: &str) -> Result<String> {
    let info: Value = serde_json::from_str(&lab.rbd(&["info", image, "--format", "json"])?)?;
    Ok(format!("rbd_header.{}", info["id"].as_str().ok_or("no id")?))
}

/// Does nothing but in the lab.
#[test]
fn inside_the_lab() -> Result<()> {
    let Some(facts) = inside::facts()? else {
        return Ok(());
    };
    let cluster = Cluster::connect(&options(10))?;
    identity(&cluster, &facts)?;
    commands(&cluster)?;
    headers(&cluster, &facts)?;
    omap_pages(&cluster, &facts)?;
    placement(&cluster, &facts)?;
    refused_connections(&facts)?;
    questions_to_single_monitors_leave_nothing()?;
    calls_without_an_end(number(&facts["pool"])?)?;
    no_quorum(cluster)
}

fn identity(cluster: &Cluster, facts: &Value) -> Result<()> {
    assert_eq!(facts["fsid"], cluster.fsid()?);
    assert_ne!(cluster.instance_id(), 0);
    let address = cluster.addresses()?;
    let sessions = cluster.mon_command_target("a", &json!({ "prefix": "sessions", "format": "json" }))?;
    let (_, nonce) = address.rsplit_once('/').ok_or("no nonce")?;
    assert!(String::from_utf8(sessions)?.contains(nonce), "{address} is not among the mon's sessions");
    Ok(())
}

fn commands(cluster: &Cluster) -> Result<()> {
    let out = cluster.mon_command(&json!({ "prefix": "osd stat", "format": "json" }))?;
    assert_eq!(serde_json::from_slice::<Value>(&out)?["num_osds"], 3);
    let unknown = CommandError { errno: Errno::EINVAL, status: "command not known".to_owned() };
    assert_eq!(cluster.mon_command(&json!({ "prefix": "no such thing" })), Err(unknown));
    let absent = cluster.mon_command_target("z", &json!({ "prefix": "sessions" }));
    assert_eq!(absent.err().map(|error| error.errno), Some(Errno::ENOENT));
    assert_eq!(IoCtx::open(cluster, 1 << 40).err(), Some(Errno::ENOENT));
    Ok(cluster.wait_for_latest_osdmap()?)
}

/// librados loses some 16 KiB with each command to a single monitor: a guardian asks each monitor for its sessions again and again, and grew
/// by that for ever.
fn questions_to_single_monitors_leave_nothing() -> Result<()> {
    let own = || -> Result<u64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
        Ok(line.split_whitespace().next().ok_or("no number")?.parse()?)
    };
    let here = Cluster::connect(&options(10))?;
    let asks_with = Some(env!("CARGO_BIN_EXE_rbd-guardian").into());
    let apart = Cluster::connect(&Options { asks_with, ..options(10) })?;
    let ask = |cluster: &Cluster, times: u32| -> Result<Vec<Session>> {
        let mut known = Vec::new();
        for _ in 0..times {
            let mons = ["a"; 10].map(str::to_owned);
            for (mon, answer) in sessions::ask(cluster, &mons).answers(&Deadline::after(SOON, Arc::default()))
            {
                known = answer.map_err(|error| format!("{mon}: {error}"))?.known;
            }
        }
        Ok(known)
    };
    for cluster in [&here, &apart] {
        let all = ask(cluster, 1)?;
        // Both, and not the process that asked.
        let of_here = [here.addresses()?, apart.addresses()?];
        assert!(
            of_here.iter().all(|own| all.iter().any(|session| *own == session.client.to_string())),
            "{all:?}"
        );
    }
    ask(&apart, 10)?;
    let before = own()?;
    ask(&apart, 50)?;
    let more = own()?.saturating_sub(before);
    assert!(more < 1024, "{more} KiB");
    let nobody = ["z".to_owned()];
    let answers = sessions::ask(&apart, &nobody).answers(&Deadline::after(SOON, Arc::default()));
    assert!(matches!(answers.as_slice(), [(_, Err(CephReadError::Failed { .. }))]), "{answers:?}");
    Ok(())
}

fn headers(cluster: &Cluster, facts: &Value) -> Result<()> {
    let mut io = IoCtx::open(cluster, number(&facts["pool"])?)?;
    let (to, results) = channel();
    let mut tag = 0;
    let mut read = |io: &rbd_guardian::ceph::rados::ioctx::IoCtx, object: &str| {
        tag += 1;
        io.header(object, true, tag, &to)?;
        one(&results, tag)
    };

    let Header { watchers, lock, .. } = read(&io, text(&facts["one"])?)??;
    let expected = facts["watchers"].as_array().ok_or("no watchers")?;
    assert_eq!(watchers.len(), expected.len());
    for (watcher, expected) in watchers.iter().zip(expected) {
        assert_eq!(expected["address"], watcher.address);
        assert_eq!(expected["client"], watcher.client);
        assert_eq!(expected["cookie"], watcher.cookie);
        assert_eq!(watcher.timeout, 30);
    }
    let lock = lock.ok_or("no lock")?;
    assert!(lock.windows(6).any(|bytes| bytes == b"holder"), "no cookie in {lock:?}");

    let data_pool = Some(number(&facts["data"])?.to_le_bytes().to_vec());
    assert_eq!(read(&io, text(&facts["split"])?)??, Header { data_pool, ..Header::default() });
    assert_eq!(read(&io, "rbd_header.absent")?, Err(Errno::ENOENT));

    let two = text(&facts["two"])?;
    assert_eq!(read(&io, two)?, Err(Errno::ENOENT));
    io.set_namespace("tenant")?;
    assert_eq!(read(&io, two)??, Header::default());
    assert_eq!(io.set_namespace("nul\0"), Err(Errno::EINVAL));
    Ok(())
}

fn omap_pages(cluster: &Cluster, facts: &Value) -> Result<()> {
    let io = IoCtx::open(cluster, number(&facts["pool"])?)?;
    let (to, results) = channel();
    let (mut keys, mut after) = (Vec::new(), CString::default());
    for tag in 0..20 {
        io.omap_page("rbd_directory", &after, 3, tag, &to)?;
        let page = one(&results, tag)??;
        keys.extend(page.entries.into_iter().map(|(key, _)| key));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    // An ID and a name for each of two images, and four that are not UTF-8, at which pages go on as well.
    assert_eq!(keys.len(), 8, "{keys:?}");
    assert!(keys.is_sorted());
    for name in ["name_one", "name_split"] {
        assert!(keys.iter().any(|key| key == name), "{name} is not in {keys:?}");
    }
    Ok(())
}

fn placement(cluster: &Cluster, facts: &Value) -> Result<()> {
    let io = IoCtx::open(cluster, number(&facts["pool"])?)?;
    let pg = format!("{}.{:x}", facts["pool"], io.pg_of("some-object")?);
    assert_eq!(facts["pg"], pg);
    let (to, results) = channel();
    io.stat("rbd_directory", 1, &to)?;
    assert_eq!(one(&results, 1)?, Ok(()));
    io.stat("absent", 2, &to)?;
    assert_eq!(one(&results, 2)?, Err(Errno::ENOENT));
    Ok(())
}

fn refused_connections(facts: &Value) -> Result<()> {
    let dir = std::path::Path::new(text(&facts["dir"])?);
    let with = |conf: Option<&str>, id: Option<&str>, keyring: Option<&str>| {
        let mut options = options(5);
        options.conf = conf.map(|file| dir.join(file)).or(options.conf);
        options.id = id.map(str::to_owned).or(options.id);
        options.keyring = keyring.map(|file| dir.join(file));
        let error = Cluster::connect(&options).err();
        assert!(!error.as_ref().is_some_and(|error| error.to_string().contains('\n')), "{error:?}");
        error
    };
    assert!(matches!(with(Some("absent"), None, None), Some(ConnectError::ConfNotFound { .. })));
    assert!(matches!(with(Some("broken.conf"), None, None), Some(ConnectError::BadConf { .. })));
    assert!(matches!(with(None, Some("nobody"), None), Some(ConnectError::KeyringNotFound { .. })));
    assert!(matches!(with(None, None, Some("absent")), Some(ConnectError::KeyringNotFound { .. })));
    assert!(matches!(with(None, None, Some("broken.keyring")), Some(ConnectError::NoKey { .. })));
    let refused = ConnectError::Refused { client: "client.admin".to_owned(), errno: Errno::EACCES };
    assert_eq!(with(None, None, Some("wrong.keyring")), Some(refused));
    Ok(())
}

/// What nothing ends while no monitor answers keeps one thread, however often it is asked for, and its connection until then.
fn calls_without_an_end(pool: i64) -> Result<()> {
    let cluster = Cluster::connect(&options(2))?;
    inside::ask("stop mon.a")?;
    let pools = [PoolToProve { id: pool, name: "images".to_owned(), pg_num: 8 }];
    for _ in 0..4 {
        let deadline = Deadline::after(Duration::from_millis(500), Arc::default());
        let proofs = barrier(&cluster, &pools, OsdEpoch(1), &mut Probes::default(), &deadline, &mut |_| {});
        assert!(proofs.iter().all(|proof| proof.trouble.is_some()), "{proofs:?}");
    }
    assert_eq!(lanes()?, 1, "calls of before that have not ended");
    let life = cluster.life();
    drop(cluster);
    assert_eq!(life.strong_count(), 1);
    inside::ask("cont mon.a")?;
    wait_for("the connection to end", SOON, || Ok((life.strong_count() == 0).then_some(())))?;
    Ok(wait_for("the call to end", SOON, || Ok((lanes()? == 0).then_some(())))?)
}

/// How many calls of librados are under way.
fn lanes() -> std::io::Result<usize> {
    let threads = fs::read_dir("/proc/self/task")?;
    // One that ends meanwhile has no name.
    let names = threads.map(|thread| Ok(fs::read_to_string(thread?.path().join("comm")).unwrap_or_default()));
    let names: std::io::Result<Vec<_>> = names.collect();
    Ok(names?.iter().filter(|name| name.trim() == "lane").count())
}

/// Everything that blocks ends by the time set, and so does disconnecting.
fn no_quorum(cluster: Cluster) -> Result<()> {
    let short = Cluster::connect(&options(2))?;
    inside::ask("stop mon.a")?;
    let began = monotonic();
    let unanswered = short.mon_command(&json!({ "prefix": "osd stat" }));
    assert_eq!(unanswered.err().map(|error| error.errno), Some(Errno::ETIMEDOUT));
    let unreachable = Cluster::connect(&options(2)).err();
    assert!(matches!(unreachable, Some(ConnectError::Unreachable { seconds: 2, .. })), "{unreachable:?}");
    drop((short, cluster));
    let spent = monotonic().saturating_sub(began);
    assert!(spent < Duration::from_secs(15), "{spent:?}");
    inside::ask("cont mon.a")
}

fn one<T>(results: &Receiver<Completed<T>>, tag: u64) -> Result<std::result::Result<T, Errno>> {
    let done = results.recv_timeout(SOON)?;
    assert_eq!(done.tag, tag);
    Ok(done.result)
}

fn options(seconds: u64) -> Options {
    let conf = env::var_os("CEPH_CONF").map(Into::into);
    Options {
        conf,
        id: Some("admin".to_owned()),
        timeout: Duration::from_secs(seconds),
        ..Options::default()
    }
}

fn number(value: &Value) -> Result<i64> {
    value.as_i64().ok_or_else(|| format!("{value} is no number").into())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| format!("{value} is no text").into())
}
