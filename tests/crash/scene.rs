//! A cluster, a writer on a member, and what must be true of the ledger and the blocklist at any moment.

use std::fs;
use std::time::Duration;

use lab::{Errno, Pool, Topology, WriteLog as _, Writer, monotonic, wait_for};
use rbd_guardian_core::model::fence_id::FenceId;
use serde_json::Value;

use crate::common::history::ip_of;
use crate::common::{LIMIT, Site, trail};
use crate::guard::Guard;

pub(crate) const POOL: &str = "images";
pub(crate) const MEMBERS: [&str; 2] = ["n1", "n2"];
const SOON: Duration = Duration::from_secs(60);

/// Two members and hosts for guardians, with an image for each member.
pub(crate) fn site() -> Site {
    let site = Site::start(Topology::small(&["n1", "n2", "guard", "spare"]), &MEMBERS);
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    for member in MEMBERS {
        site.lab.image(POOL, member, 8).unwrap();
    }
    site
}

/// A ledger that nobody has led yet, and an empty blocklist. No guardian may run.
pub(crate) fn reset(site: &Site) {
    let words = ["-p", "rbd-guardian", "-N", "rbd-guardian", "rm", "ledger"];
    let removed = site.lab.host("admin").bounded("rados", LIMIT).args(words).output().unwrap();
    let said = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(removed.status.success() || said.contains("No such file"), "{said}");
    site.lab.ceph(&["osd", "blocklist", "clear"]).unwrap();
}

/// A member with a writer, from before its fence to after its release.
pub(crate) struct Scene<'s> {
    pub(crate) site: &'s Site,
    pub(crate) writer: Writer,
    pub(crate) host: String,
    pub(crate) client: String,
    from: u64,
}

impl<'s> Scene<'s> {
    /// Everything anew, and a writer at work on `n1`.
    pub(crate) fn new(site: &'s Site, depth: u32) -> Self {
        reset(site);
        let writer = site.lab.host("n1").writer(POOL, "n1", depth).unwrap();
        writer.wait_for_acks(20, SOON).unwrap();
        let client = writer.client_address().to_owned();
        Self { site, host: format!("{}:0/0", ip_of(&client)), client, writer, from: site.epoch() }
    }

    /// The ledger, read by somebody who does not lead.
    pub(crate) fn ledger(&self) -> Value {
        self.site.guardian_on("admin", &["ledger"]).expect(0).json
    }

    /// The newest record of a fence of `n1`; null while there is none.
    pub(crate) fn fence(&self) -> Value {
        let ledger = self.ledger();
        let fences = ledger["fences"].as_array().unwrap().iter();
        let order = |fence: &&Value| {
            let id = FenceId::from(fence["fence"].as_str().unwrap());
            id.read().unwrap().made
        };
        fences.filter(|fence| fence["member"] == "n1").max_by_key(order).cloned().unwrap_or_default()
    }

    /// Waits until the ledger has `n1`'s fence in this state.
    pub(crate) fn until(&self, state: &str, guard: &Guard<'_>) -> Value {
        let mut last = Value::Null;
        let found = wait_for(&format!("{state} in the ledger"), LIMIT, || {
            last = self.fence();
            self.legal(&last);
            Ok((last["state"] == state).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last:#}\n{}", guard.log()))
    }

    /// INV-3, INV-4, INV-8, at any moment: what stands is recorded, and what is recorded stands. The record was read
    /// before the blocklist, so it may be older.
    pub(crate) fn legal(&self, before: &Value) {
        let blocklist = self.site.newest();
        let after = self.fence();
        let (host, client) = (blocklist.entries.contains_key(&self.host), blocklist.refuses(&self.client));
        let seen = format!("{before:#}\n{after:#}\n{blocklist:#?}");
        if host || blocklist.entries.contains_key(&self.client) {
            assert!(after.is_object(), "an entry stands that no record backs: {seen}");
        }
        if before["state"] == "sealed" && after["state"] == "sealed" {
            assert!(blocklist.stands_long(&self.host), "sealed, and the entry does not stand: {seen}");
        }
        if ["sealed", "releasing", "released"].iter().any(|state| before["state"] == **state) {
            assert!(client, "sealed once, and the client is not refused: {seen}");
        }
        if before["state"] == "released" {
            assert!(!host, "released, and the host entry stands: {seen}");
        }
    }

    /// A short entry is replaced under a cover after the seal.
    pub(crate) fn wait_until_long(&self) {
        wait_for("entries that stand for years", LIMIT, || {
            let blocklist = self.site.newest();
            let long = [&self.host, &self.client].iter().all(|entry| blocklist.stands_long(entry));
            Ok((long && blocklist.ranges.is_empty()).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:#?}", self.site.newest()));
    }

    /// Sealed, by what the storage itself shows and does.
    pub(crate) fn is_sealed(&self, record: &Value) {
        let now = monotonic();
        let blocklist = self.site.newest();
        for entry in [&self.host, &self.client] {
            assert!(blocklist.stands_long(entry), "{entry} in {blocklist:#?}");
            let mut entries = record["entries"].as_array().unwrap().iter();
            assert!(entries.any(|known| known["entry"] == **entry), "{record:#}");
        }
        let pools = record["proofs"].as_array().unwrap().iter();
        let proved = pools.filter(|proof| proof["pool"] == POOL && proof["pgs"] == 16);
        assert_eq!(proved.count(), 1, "{record:#}");
        assert_eq!(self.writer.wait_for_error(now, SOON).unwrap(), Errno::ESHUTDOWN);
        assert_eq!(self.writer.taken_after(now, 1).unwrap(), 0, "a write was taken after the seal");
    }

    /// Released: the host may write again, its old client never.
    pub(crate) fn is_released(&self, record: &Value) {
        let now = monotonic();
        let blocklist = self.site.newest();
        assert!(!blocklist.entries.contains_key(&self.host), "{blocklist:#?}");
        assert!(blocklist.stands_long(&self.client), "INV-4: {blocklist:#?}");
        assert_eq!(record["entries"].as_array().unwrap().len(), 1, "{record:#}");
        assert_eq!(self.writer.wait_for_error(now, SOON).unwrap(), Errno::ESHUTDOWN);
        assert_eq!(self.writer.taken_after(now, 1).unwrap(), 0, "the old client writes after the release");
        let mut newcomer = self.site.lab.host("n1").idle_client(POOL).unwrap();
        assert_eq!(newcomer.try_write("newcomer").unwrap(), Ok(()), "{}", newcomer.address());
    }

    /// Nothing was done twice: each entry appeared once, with one end, the host's went once and the client's never.
    /// And the trail has no gap, no leader's epoch comes back, and the fence went from state to state.
    pub(crate) fn nothing_was_done_twice(&self) -> String {
        let history = self.site.history(self.from);
        let ends = |entry: &str| {
            let mut ends: Vec<_> = history.iter().map(|epoch| epoch.entries.get(entry).copied()).collect();
            ends.dedup();
            ends
        };
        let (host, client) = (ends(&self.host), ends(&self.client));
        assert!(matches!(host[..], [None, Some(_), None]), "{host:?}");
        assert!(matches!(client[..], [None, Some(_)]), "{client:?}");
        self.trail()
    }

    /// The client was refused in every epoch from that one on.
    pub(crate) fn refused_since(&self, epoch: u64) -> usize {
        let history = self.site.history(epoch);
        let free: Vec<_> = history.iter().filter(|epoch| !epoch.refuses(&self.client)).collect();
        assert!(free.is_empty(), "epochs in which {} is not refused: {free:#?}", self.client);
        history.len()
    }

    /// Nobody but this guardian wrote to the ledger since it began to lead.
    pub(crate) fn writes_alone(&self, guard: &str) {
        let trail = self.site.guardian_on("admin", &["ledger", "audit"]).expect(0).json;
        let leads = |audit: &&Value| audit["what"].as_str().unwrap().starts_with("leads with epoch ");
        let trail: Vec<_> = trail.as_array().unwrap().iter().rev().collect();
        let since = trail.iter().position(leads).unwrap();
        let others: Vec<_> = trail[..=since].iter().filter(|audit| audit["who"] != guard).collect();
        assert!(others.is_empty(), "others than {guard} wrote since it leads: {others:#?}");
    }

    /// How often the monitor was asked to remove this entry, by its own log.
    pub(crate) fn removals(&self, entry: &str) -> usize {
        let log = fs::read_to_string(self.site.lab.dir().join("log/mon.a.log")).unwrap();
        // `cmd=[{…}]`; 20.2 writes `cmd={…}`.
        let command = format!("{{\"addr\":\"{entry}\",\"blocklistop\":\"rm\"");
        let told =
            |line: &&str| line.contains(" cmd=") && line.contains(&command) && line.ends_with("dispatch");
        log.lines().filter(told).count()
    }

    /// What the trail has, in one line; see [`Scene::nothing_was_done_twice`].
    pub(crate) fn trail(&self) -> String {
        let trail = self.site.guardian_on("admin", &["ledger", "audit"]).expect(0).json;
        trail::told(trail.as_array().unwrap())
    }
}
