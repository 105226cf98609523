//! What librados still holds is not freed, whatever is dropped when: the program runs under valgrind, on a real cluster
//! whose OSDs are stopped and continued while it has operations under way.
//!
//! Two tests share this file: the first starts the lab and runs the second, in the lab and under valgrind.

mod inside;

use std::env;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

use lab::{Topology, monotonic, wait_for};
use nix::errno::Errno;
use rbd_guardian::ceph::rados::cluster::{Cluster, Options};
use rbd_guardian::ceph::rados::completion::{Completed, Header, OmapPage};
use rbd_guardian::ceph::rados::ioctx::IoCtx;
use rbd_guardian::ceph::rados::omap::OmapWrite;
use serde_json::json;

use inside::Result;

/// Operations of each kind.
const COUNT: u64 = 50;
/// For what only hangs if it is broken; valgrind is slow.
const LONG: Duration = Duration::from_secs(60);
const STOP: &str = "stop osd.0 osd.1 osd.2";
const CONT: &str = "cont osd.0 osd.1 osd.2";

#[test]
fn valgrind_finds_no_use_of_freed_memory() -> Result<()> {
    let lab = Topology::small(&[]).start()?;
    lab.ceph(&["osd", "pool", "create", "images", "8"])?;
    lab.rbd(&["pool", "init", "images"])?;
    lab.rbd(&["create", "images/one", "--size", "8"])?;
    let dump = lab.ceph(&["osd", "dump"])?;
    let pools = dump["pools"].as_array().ok_or("no pools")?;
    let pool = pools.iter().find(|pool| pool["pool_name"] == "images").ok_or("no pool images")?;

    let valgrind = ["valgrind", "--quiet", "--error-exitcode=99", "--fair-sched=yes", "--num-callers=30"];
    // Of interest is memory that is not ours any more; leaks at shutdown are on purpose (src/ceph/rados/completion.rs), and
    // what librados does with uninitialised bytes is its own affair.
    let only_access = ["--leak-check=no", "--undef-value-errors=no"];
    inside::run(
        &lab,
        &[&valgrind[..], &only_access].concat(),
        "inside_the_lab",
        &json!({ "pool": pool["pool"] }),
    )
}

/// Does nothing but in the lab.
#[test]
fn inside_the_lab() -> Result<()> {
    let Some(facts) = inside::facts()? else {
        return Ok(());
    };
    let pool = facts["pool"].as_i64().ok_or("no pool")?;
    a_name_that_is_refused_leaves_nothing(pool)?;
    finished_operations_are_freed(pool)?;
    answers_come_after_everything_but_the_cluster_is_dropped(pool)?;
    the_cluster_goes_while_answers_come(pool)?;
    the_cluster_goes_with_operations_under_way(pool)?;
    operations_time_out(pool)
}

fn a_name_that_is_refused_leaves_nothing(pool: i64) -> Result<()> {
    let io = IoCtx::open(&connect(60)?, pool)?;
    let (to, results) = channel::<Completed<()>>();
    assert_eq!(io.stat("nul\0", 0, &to), Err(Errno::EINVAL));
    drop(to);
    // A context that is still there would hold a sender.
    assert_eq!(results.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
    Ok(())
}

fn finished_operations_are_freed(pool: i64) -> Result<()> {
    let cluster = connect(60)?;
    let io = IoCtx::open(&cluster, pool)?;
    let channels = submit(&io)?;
    // The pool handle goes before its operations end; they have their own hold on it.
    drop(io);
    channels.all_answered()
}

fn answers_come_after_everything_but_the_cluster_is_dropped(pool: i64) -> Result<()> {
    let cluster = connect(60)?;
    // So that the map is here when the OSDs are not.
    let (first, second) = (IoCtx::open(&cluster, pool)?, IoCtx::open(&cluster, pool)?);
    inside::ask(STOP)?;
    drop(submit(&first)?);
    drop(first);
    let awaited = submit(&second)?;
    drop(second);
    inside::ask(CONT)?;
    // Submitted after the others to the same PGs, so answered after them.
    awaited.all_answered()
}

fn the_cluster_goes_while_answers_come(pool: i64) -> Result<()> {
    for round in 0..4 {
        let io = IoCtx::open(&connect(60)?, pool)?;
        let channels = submit(&io)?;
        let _ = channels.stats.recv_timeout(LONG)?;
        if round % 2 == 0 {
            drop(channels);
        }
        drop(io);
    }
    Ok(())
}

fn the_cluster_goes_with_operations_under_way(pool: i64) -> Result<()> {
    let io = IoCtx::open(&connect(600)?, pool)?;
    inside::ask(STOP)?;
    let channels = submit(&io)?;
    let began = monotonic();
    drop(io);
    let spent = monotonic().saturating_sub(began);
    assert!(spent < Duration::from_secs(30), "disconnecting took {spent:?}");
    // Forgotten, not freed: the sender in the context is still there.
    assert_eq!(channels.stats.try_recv(), Err(TryRecvError::Empty));
    drop(channels);
    inside::ask(CONT)
}

fn operations_time_out(pool: i64) -> Result<()> {
    let io = IoCtx::open(&connect(3)?, pool)?;
    inside::ask(STOP)?;
    let channels = submit(&io)?;
    drop(channels.headers);
    for _ in 0..COUNT {
        assert_eq!(channels.stats.recv_timeout(LONG)?.result, Err(Errno::ETIMEDOUT));
    }
    inside::ask(CONT)?;
    // The late answers find nobody.
    wait_for("an answer after the OSDs went on", LONG, || {
        let (to, results) = channel();
        io.stat("absent", 0, &to)?;
        Ok((results.recv_timeout(LONG)?.result == Err(Errno::ENOENT)).then_some(()))
    })?;
    Ok(())
}

struct Channels {
    stats: Receiver<Completed<()>>,
    headers: Receiver<Completed<Header>>,
    pages: Receiver<Completed<OmapPage>>,
    writes: Receiver<Completed<()>>,
}

impl Channels {
    /// Each operation has ended once, and no context is left to hold a sender.
    fn all_answered(self) -> Result<()> {
        fn ended<T>(results: &Receiver<Completed<T>>) -> Result<()> {
            let mut tags = Vec::new();
            loop {
                match results.recv_timeout(LONG) {
                    Ok(done) => {
                        assert_ne!(done.result.err(), Some(Errno::ETIMEDOUT));
                        tags.push(done.tag);
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => return Err(format!("answered: {tags:?}").into()),
                }
            }
            tags.sort_unstable();
            assert_eq!(tags, (0..COUNT).collect::<Vec<_>>());
            Ok(())
        }
        ended(&self.stats)?;
        ended(&self.headers)?;
        ended(&self.pages)?;
        ended(&self.writes)
    }
}

/// Submits operations of every kind, on objects that exist and on such that do not, in many PGs.
fn submit(io: &IoCtx) -> Result<Channels> {
    fn pair<T>() -> (Sender<Completed<T>>, Receiver<Completed<T>>) {
        channel()
    }
    let ((stat, stats), (header, headers), (page, pages), (write, writes)) = (pair(), pair(), pair(), pair());
    for tag in 0..COUNT {
        let object = if tag % 2 == 0 { "rbd_directory".to_owned() } else { format!("absent.{tag}") };
        io.stat(&object, tag, &stat)?;
        io.header(&object, true, tag, &header)?;
        io.omap_page(&object, c"", 10, tag, &page)?;
        // Refused by a comparison, so that nothing changes; what it compares with is freed at once.
        let mut refused = OmapWrite::default();
        refused.unchanged.insert(format!("key.{tag}"), vec![b'x'; 1000]);
        refused.set.insert(format!("key.{tag}"), vec![b'y'; 1000]);
        refused.remove.insert(format!("other.{tag}"));
        io.omap_write(&object, &refused, tag, &write)?;
    }
    Ok(Channels { stats, headers, pages, writes })
}

fn connect(seconds: u64) -> Result<Cluster> {
    let conf = env::var_os("CEPH_CONF").map(Into::into);
    let id = Some("admin".to_owned());
    Ok(Cluster::connect(&Options { conf, id, timeout: Duration::from_secs(seconds), ..Options::default() })?)
}
