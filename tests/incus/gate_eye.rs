//! What the gate says, looked at from outside all the time, and whether the storage refused whom it let go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::guarded::{Guarded, MEMBERS, SOON};
use jiff::Timestamp;
use lab::{monotonic, wait_for};
use serde_json::Value;

const PACE: Duration = Duration::from_millis(150);
/// A member that is cut off answers no question for the cluster.
const ALIVE: Duration = Duration::from_secs(3);
const SEAL: &str = "user.rbd-guardian.seal.";
const EPOCH: &str = "user.rbd-guardian.epoch";

/// One reading of all members' keys.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// By member, whose instances it may take.
    open: BTreeMap<String, BTreeSet<String>>,
}

impl Sample {
    /// May any member take instances of this one?
    pub(crate) fn opens(&self, member: &str) -> bool {
        self.open.values().any(|open| open.contains(member))
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` with an eye on the gate.
pub(crate) fn watched<T>(site: &Guarded, work: impl FnOnce() -> T) -> (T, Vec<Sample>) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let eye = scope.spawn(|| {
            let (mut samples, mut asked, mut last) = (Vec::new(), 0, Duration::ZERO);
            let looked = wait_for("the end of it", SOON * 20, || {
                // Once more when it is over: what it ended with is seen.
                let ends = done.load(Ordering::Relaxed);
                if ends || monotonic() - last >= PACE {
                    last = monotonic();
                    match look(site, MEMBERS[asked % MEMBERS.len()]) {
                        Ok(sample) => samples.push(sample),
                        Err(_) => asked += 1,
                    }
                }
                Ok(ends.then_some(()))
            });
            looked.unwrap();
            samples
        });
        // The eye has to close however the work ends.
        let ends = Ends(&done);
        let worked = work();
        drop(ends);
        (worked, eye.join().unwrap())
    })
}

fn look(site: &Guarded, asked: &str) -> anyhow::Result<Sample> {
    let from = Timestamp::now();
    let members = site.cluster.member(asked).query_within(ALIVE, "/1.0/cluster/members?recursion=1")?;
    let to = Timestamp::now();
    let members = members.as_array().into_iter().flatten();
    let open =
        members.map(|member| (member["server_name"].as_str().unwrap().to_owned(), opened(&member["config"])));
    let open: BTreeMap<_, _> = open.collect();
    anyhow::ensure!(open.len() == MEMBERS.len());
    Ok(Sample { from, to, open })
}

/// As the scriptlet has it, but for newer epochs of others.
fn opened(config: &Value) -> BTreeSet<String> {
    let keys = config.as_object().into_iter().flatten();
    let seals = keys.filter(|(_, value)| **value == config[EPOCH]);
    seals.filter_map(|(key, _)| key.strip_prefix(SEAL)).map(str::to_owned).collect()
}

/// Whenever the gate was open for a member, an osdmap that refused it was in force; how often it was open.
#[track_caller]
pub(crate) fn nobody_unsealed_was_open(site: &Guarded, lost: &str, from: u64, samples: &[Sample]) -> usize {
    let entry = format!("{}:0/0", site.site.ip(lost));
    let history = site.site.history(from);
    let open: Vec<&Sample> = samples.iter().filter(|sample| sample.opens(lost)).collect();
    for sample in &open {
        let begins = history.iter().rposition(|epoch| epoch.modified <= sample.from).unwrap_or_default();
        let mut in_force = history[begins..].iter().take_while(|epoch| epoch.modified <= sample.to);
        assert!(
            in_force.any(|epoch| epoch.entries.contains_key(&entry)),
            "open, and {entry} does not stand: {sample:?}"
        );
    }
    for sample in samples {
        let others = sample.open.values().flatten().any(|name| name != lost);
        assert!(!others, "open for somebody else: {sample:?}");
    }
    open.len()
}
