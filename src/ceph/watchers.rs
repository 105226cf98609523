//! One sweep: who watches and who has locked each image of some pools.
//!
//! The directory of a pool lists its images; one compound read per header tells watchers and lock. Nothing is opened
//! and nothing is watched (INV-10).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::errno::Errno;
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::osdmap::{DataPools, OsdMap, Pool, PoolId};
use rbd_guardian_core::model::volume::ImageName;

use super::lane;
use super::locks::{self, LockOwner};
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::completion::{Completed, Header, Watcher};
use crate::ceph::rados::data_pools;
use crate::ceph::rados::errno::words;
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::rados::pages::{FULL, OmapPages, PageError};
use crate::deadline::Deadline;

/// One image and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReading {
    /// The pool of its header.
    pub pool: String,
    /// Its RBD namespace; empty for the default one.
    pub namespace: String,
    pub image: String,
    /// Clients that watch its header.
    pub watchers: Vec<Watch>,
    /// Who holds the lock: several for a shared one.
    pub locks: Vec<LockOwner>,
    /// Users that are there and were not understood, each in words.
    pub unknown: Vec<String>,
    /// The pool that its data lies in, if that is another one.
    pub data_pool: Option<PoolId>,
}

/// A watch on a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The watcher's entity address.
    pub address: EntityAddr,
    /// The number in `client.4126`.
    pub client: i64,
    /// Names the watch within the client.
    pub cookie: u64,
}

/// What a sweep is to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweepScope {
    /// Number and name of each pool.
    pub pools: Vec<(PoolId, String)>,
}

impl SweepScope {
    /// All images of these pools.
    pub fn of(pools: &BTreeMap<PoolId, &Pool>) -> Self {
        Self { pools: pools.iter().map(|(id, pool)| (*id, pool.name.clone())).collect() }
    }
}

/// Is the image of this pool, namespace and name to be read?
pub type Wanted = Arc<dyn Fn(&str, &str, &str) -> bool + Send + Sync>;

/// Every image is.
pub fn all() -> Wanted {
    Arc::new(|_, _, _| true)
}

/// Between two looks at the answers that came.
const GATHER: Duration = Duration::from_millis(2);
/// Headers of one pool asked for at once.
const WINDOW: usize = 512;
/// Lists a namespace's images: `name_IMAGE` → id (`cls_rbd.cc`, docs/facts/ceph.md#images).
pub(super) const DIRECTORY: &str = "rbd_directory";
/// Lists a pool's namespaces: `name_NAMESPACE`.
const NAMESPACES: &str = "rbd_namespace";
/// An image's header: watchers, lock.
pub(super) const HEADER: &str = "rbd_header.";
pub(super) const NAME_KEY: &str = "name_";
/// Before the first of them.
const BEFORE_NAMES: &CStr = c"name_";

/// Sweeps all pools at the same time, so that one that does not answer holds up no other, and hands over each image
/// as its answer comes; an image deleted meanwhile is left out. Memory is bounded by the requests under way, not
/// by the number of images. Images that are not `wanted` cost no read. Returns what could not be read, in words.
pub fn sweep(
    cluster: &Cluster,
    scope: &SweepScope,
    wanted: &Wanted,
    deadline: &Deadline,
    found: &mut dyn FnMut(ImageReading),
) -> Vec<String> {
    let (images, receiver) = sync_channel(WINDOW);
    let calls = scope.pools.iter().map(|(id, name)| {
        let mut pool = PoolSweep {
            cluster: cluster.clone(),
            id: *id,
            pool: name.clone(),
            deadline: deadline.clone(),
            wanted: Arc::clone(wanted),
            images: images.clone(),
            unread: Vec::new(),
        };
        move || {
            pool.run();
            pool.unread
        }
    });
    let ends = lane::each(calls.collect(), scope.pools.len());
    drop(images);
    while let Ok(Some(image)) = deadline.receive(&receiver) {
        found(image);
    }
    drop(receiver);
    let mut silent: Vec<Option<Vec<String>>> =
        scope.pools.iter().map(|(_, name)| Some(vec![format!("pool {name}: no answer")])).collect();
    let mut unread = Vec::new();
    // Past the deadline each pool's sweep ends by itself: a moment more tells how far it came.
    while let Ok((index, end)) = ends.recv_timeout(GRACE) {
        silent[index] = None;
        unread.extend(end);
    }
    unread.extend(silent.into_iter().flatten().flatten());
    unread
}

/// Which of these images are not in the directories of their pools, all pools at the same time, and what could not be read,
/// in words. A pool that the map does not have has none.
pub fn missing(
    cluster: &Cluster,
    map: &OsdMap,
    images: &[ImageName],
    deadline: &Deadline,
) -> (BTreeSet<ImageName>, Vec<String>) {
    let mut missing: BTreeSet<ImageName> = images.iter().cloned().collect();
    let mut places: BTreeMap<PoolId, (String, BTreeSet<String>)> = BTreeMap::new();
    for image in images {
        let id = map.pools.iter().find(|(_, pool)| pool.name == image.pool).map(|(id, _)| *id);
        if let Some(id) = id {
            let (_, namespaces) = places.entry(id).or_insert_with(|| (image.pool.clone(), BTreeSet::new()));
            namespaces.insert(image.namespace.clone());
        }
    }
    let wanted = Arc::new(missing.clone());
    let pools: Vec<String> = places.values().map(|(pool, _)| pool.clone()).collect();
    let calls = places.into_iter().map(|(id, (pool, namespaces))| {
        let (images, _) = sync_channel(0);
        let (cluster, deadline, unread) = (cluster.clone(), deadline.clone(), Vec::new());
        let mut pool = PoolSweep { cluster, id, pool, deadline, wanted: all(), images, unread };
        let wanted = Arc::clone(&wanted);
        move || (pool.listed(namespaces, &wanted), pool.unread)
    });
    let ends = lane::each(calls.collect(), pools.len());
    let mut silent: Vec<Option<String>> =
        pools.into_iter().map(|pool| Some(format!("pool {pool}: no answer"))).collect();
    let mut unread = Vec::new();
    let left = || deadline.left().unwrap_or_default() + GRACE;
    while let Ok((index, (found, end))) = ends.recv_timeout(left()) {
        silent[index] = None;
        missing.retain(|image| !found.contains(image));
        unread.extend(end);
    }
    unread.extend(silent.into_iter().flatten());
    (missing, unread)
}

/// How long the end of a pool's sweep may take to be noticed.
const GRACE: Duration = Duration::from_millis(200);

struct PoolSweep {
    cluster: Cluster,
    id: PoolId,
    pool: String,
    deadline: Deadline,
    wanted: Wanted,
    images: SyncSender<ImageReading>,
    unread: Vec<String>,
}

/// A header that was asked for.
struct HeaderRead {
    name: String,
    /// Its key among [`DataPoolCache`](crate::ceph::rados::data_pools::DataPoolCache), and what it said there before.
    header: u64,
    known: Option<Option<PoolId>>,
}

/// Why a directory was not read to its end.
enum ListingStop {
    /// The receiver of the images is gone.
    Unwanted,
    Late,
    /// The client may not read objects of this prefix.
    Denied(&'static str),
    Failed(Errno),
}

impl PoolSweep {
    fn run(&mut self) {
        let mut io = match IoCtx::open(&self.cluster, self.id) {
            Ok(io) => io,
            Err(Errno::ENOENT) => return,
            Err(errno) => return self.unread.push(format!("pool {}: {}", self.pool, words(errno))),
        };
        let mut namespaces = vec![String::new()];
        let listed = self.directory(&io, NAMESPACES, |name, _| {
            namespaces.push(name);
            Ok(())
        });
        self.note(listed, "");
        for namespace in namespaces {
            let swept = io.set_namespace(&namespace).map_err(ListingStop::Failed);
            let swept = swept.and_then(|()| self.images(&io, &namespace));
            self.note(swept, &namespace);
        }
    }

    /// The wanted images that are in the directories of these namespaces.
    fn listed(&mut self, namespaces: BTreeSet<String>, wanted: &BTreeSet<ImageName>) -> BTreeSet<ImageName> {
        let mut found = BTreeSet::new();
        let mut io = match IoCtx::open(&self.cluster, self.id) {
            Ok(io) => io,
            Err(Errno::ENOENT) => return found,
            Err(errno) => {
                self.unread.push(format!("pool {}: {}", self.pool, words(errno)));
                return found;
            }
        };
        for namespace in namespaces {
            let set = io.set_namespace(&namespace).map_err(ListingStop::Failed);
            let listed = set.and_then(|()| {
                self.directory(&io, DIRECTORY, |name, _| {
                    let (pool, namespace) = (self.pool.clone(), namespace.clone());
                    let image = ImageName { pool, namespace, name };
                    if wanted.contains(&image) {
                        found.insert(image);
                    }
                    Ok(())
                })
            });
            self.note(listed, &namespace);
        }
        found
    }

    fn note(&mut self, end: Result<(), ListingStop>, namespace: &str) {
        let separator = if namespace.is_empty() { "" } else { "/" };
        let place = format!("pool {}{separator}{namespace}", self.pool);
        match end {
            Ok(()) | Err(ListingStop::Unwanted) => {}
            Err(ListingStop::Late) => self.unread.push(format!("{place}: no answer")),
            Err(ListingStop::Denied(prefix)) => self
                .unread
                .push(format!("{place}: the key lacks osd `allow r object_prefix {prefix}` (deploy/ceph)")),
            Err(ListingStop::Failed(errno)) => self.unread.push(format!("{place}: {}", words(errno))),
        }
    }

    /// Reads a directory object.
    fn directory(
        &self,
        io: &IoCtx,
        object: &'static str,
        mut entry: impl FnMut(String, Vec<u8>) -> Result<(), ListingStop>,
    ) -> Result<(), ListingStop> {
        for page in OmapPages::new(io, object, (BEFORE_NAMES, NAME_KEY), FULL, &self.deadline) {
            let page = page.map_err(|error| match error {
                PageError::Late(_) | PageError::Failed(Errno::ETIMEDOUT) => ListingStop::Late,
                PageError::Failed(Errno::EPERM) => ListingStop::Denied(object),
                PageError::Failed(errno) => ListingStop::Failed(errno),
            })?;
            for (key, value) in page.entries {
                if let Some(name) = key.strip_prefix(NAME_KEY) {
                    entry(name.to_owned(), value)?;
                }
            }
        }
        Ok(())
    }

    fn images(&mut self, io: &IoCtx, namespace: &str) -> Result<(), ListingStop> {
        let (to, from) = channel();
        let mut under_way = BTreeMap::new();
        let mut next_tag = 0;
        let mut failed = Vec::new();
        let mut listed = self.directory(io, DIRECTORY, |name, value| {
            if !(self.wanted)(&self.pool, namespace, &name) {
                return Ok(());
            }
            // In bursts: one answer and one question at a time would be a thread switch for each.
            if under_way.len() >= WINDOW {
                while under_way.len() > WINDOW / 2 {
                    self.gather()?;
                    self.take(&from, &mut under_way, &mut failed, namespace)?;
                    while let Ok(done) = from.try_recv() {
                        self.took(done, &mut under_way, &mut failed, namespace)?;
                    }
                }
            }
            let Some(id) = encoded_text(&value) else {
                return Ok(());
            };
            next_tag += 1;
            // It never changes: read once for each header.
            let header = data_pools::key(self.id, namespace, &id);
            let known = self.cluster.data_pools().get(header);
            io.header(&format!("{HEADER}{id}"), known.is_none(), next_tag, &to)
                .map_err(ListingStop::Failed)?;
            under_way.insert(next_tag, HeaderRead { name, header, known });
            Ok(())
        });
        while listed.is_ok() && !under_way.is_empty() {
            listed = self.take(&from, &mut under_way, &mut failed, namespace);
        }
        if let Err(ListingStop::Late) = listed {
            failed.extend(under_way.into_values().map(|asked| (asked.name, "no answer".to_owned())));
        }
        let pool = &self.pool;
        let failed = failed.iter().map(|(name, why)| format!("image {}: {why}", path(pool, namespace, name)));
        self.unread.extend(failed);
        listed
    }

    fn take(
        &self,
        from: &Receiver<Completed<Header>>,
        under_way: &mut BTreeMap<u64, HeaderRead>,
        failed: &mut Vec<(String, String)>,
        namespace: &str,
    ) -> Result<(), ListingStop> {
        let Some(done) = self.deadline.receive(from).map_err(|_| ListingStop::Late)? else {
            return Err(ListingStop::Late);
        };
        self.took(done, under_way, failed, namespace)
    }

    /// Lets answers come together: a thread woken for each would cost more than the answers.
    fn gather(&self) -> Result<(), ListingStop> {
        self.deadline.pause(GATHER).map_err(|_| ListingStop::Late)
    }

    fn took(
        &self,
        done: Completed<Header>,
        under_way: &mut BTreeMap<u64, HeaderRead>,
        failed: &mut Vec<(String, String)>,
        namespace: &str,
    ) -> Result<(), ListingStop> {
        let Some(HeaderRead { name: image, header: key, known }) = under_way.remove(&done.tag) else {
            return Ok(());
        };
        match done.result {
            Ok(header) => {
                let said = data_pools::decode(header.data_pool.as_deref());
                let mut image_use = image_use(&self.pool, namespace, &image, header);
                match (known, said) {
                    (Some(known), _) => image_use.data_pool = known,
                    (None, Ok(said)) => {
                        self.cluster.data_pools().put(key, said);
                        image_use.data_pool = said;
                    }
                    (None, Err(what)) => image_use.unknown.push(what.to_owned()),
                }
                self.images.send(image_use).map_err(|_| ListingStop::Unwanted)
            }
            // Deleted since the directory was read.
            Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EPERM) => Err(ListingStop::Denied(HEADER)),
            Err(errno) => {
                failed.push((image, words(errno)));
                Ok(())
            }
        }
    }
}

/// What a header says. An address or a lock of unknown form is noted, and costs none of the others.
fn image_use(pool: &str, namespace: &str, image: &str, header: Header) -> ImageReading {
    let mut unknown = Vec::new();
    let mut watchers = Vec::new();
    for Watcher { address, client, cookie, .. } in header.watchers {
        match address.parse() {
            Ok(address) => watchers.push(Watch { address, client, cookie }),
            Err(_) => unknown.push(format!("watcher client.{client} with the address '{address}'")),
        }
    }
    let owners = header.lock.as_deref().map_or(Some(Vec::new()), locks::decode);
    if owners.is_none() {
        unknown.push("a lock whose encoding is not understood".to_owned());
    }
    let mut locks = owners.unwrap_or_default();
    for lock in locks.iter_mut().filter(|lock| lock.address.is_none()) {
        // The number of a client is its own in the whole cluster.
        let same = |watch: &&Watch| lock.owner == format!("client.{}", watch.client);
        lock.address = watchers.iter().find(same).map(|watch| watch.address);
    }
    let (pool, namespace, image) = (pool.to_owned(), namespace.to_owned(), image.to_owned());
    ImageReading { pool, namespace, image, watchers, locks, unknown, data_pool: None }
}

/// A string as Ceph encodes it: four bytes of length, little-endian, then the text.
pub(super) fn encoded_text(bytes: &[u8]) -> Option<String> {
    let (len, text) = bytes.split_first_chunk::<4>()?;
    let text = text.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

impl ImageReading {
    /// Adds the pool of its data to those of the pool of its header.
    pub fn note_data_pool(&self, data_pools: &mut DataPools) {
        if let Some(id) = self.data_pool {
            data_pools.entry(self.pool.clone()).or_default().insert(id);
        }
    }

    /// `pool/image` or `pool/namespace/image`.
    pub fn path(&self) -> String {
        path(&self.pool, &self.namespace, &self.image)
    }
}

/// An image as `rbd` writes it.
pub fn path(pool: &str, namespace: &str, image: &str) -> String {
    if namespace.is_empty() { format!("{pool}/{image}") } else { format!("{pool}/{namespace}/{image}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(address: &str, client: i64) -> Watcher {
        Watcher { address: address.to_owned(), client, cookie: 7, timeout: 30 }
    }

    fn used(watchers: Vec<Watcher>, lock: Option<&str>) -> ImageReading {
        let lock = lock.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap());
        image_use("images", "", "one", Header { watchers, lock, data_pool: None })
    }

    /// `client.4125` with a blank address.
    const BLANK: &str = "01015d00000001000000010121000000081d10000000000000140000006175746f203134303134343331333139\
                         3135383401011f00000000000000000000000101010c0000000000000000000000000000000000000001080000\
                         00696e7465726e616c";

    #[test]
    fn an_item_that_is_not_understood_costs_no_other() {
        let one = used(vec![watcher("10.0.0.5:0/7", 4125), watcher("-", 4126)], Some("ff"));
        assert_eq!(one.watchers.len(), 1);
        assert_eq!(one.unknown.len(), 2, "{:?}", one.unknown);
        assert!(
            one.unknown[0].contains("client.4126") && one.unknown[0].contains("'-'"),
            "{:?}",
            one.unknown
        );
    }

    #[test]
    fn a_lock_without_an_address_has_that_of_its_owners_watch() {
        let one = used(vec![watcher("10.0.0.5:0/7", 4125)], Some(BLANK));
        assert_eq!((one.unknown.len(), one.locks.len()), (0, 1), "{one:?}");
        assert_eq!(one.locks[0].address, Some("10.0.0.5:0/7".parse().unwrap()));
        let other = used(vec![watcher("10.0.0.6:0/8", 4199)], Some(BLANK));
        assert_eq!((other.watchers.len(), other.locks[0].address), (1, None), "{other:?}");
    }
}
