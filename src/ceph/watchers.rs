//! One sweep: who watches and who has locked each image of some pools.
//!
//! The directory of a pool lists its images; one compound read per header tells watchers and lock. Nothing is opened
//! and nothing is watched (INV-10).

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::errno::Errno;

use super::cluster::Cluster;
use super::completion::{Done, Header, Watcher};
use super::ioctx::IoCtx;
use super::lane;
use super::locks::{self, LockOwner};
use crate::deadline::Deadline;
use crate::domain::addr::EntityAddr;
use crate::domain::map::{Pool, PoolId};

/// One image and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The pool of its header.
    pub pool: String,
    /// Its RBD namespace; empty for the default one.
    pub namespace: String,
    /// Its name.
    pub image: String,
    /// Clients that watch its header.
    pub watchers: Vec<Watch>,
    /// Who holds the exclusive lock.
    pub lock: Option<LockOwner>,
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
pub struct Scope {
    /// Number and name of each pool.
    pub pools: Vec<(PoolId, String)>,
}

impl Scope {
    /// All images of these pools.
    pub fn of(pools: &BTreeMap<PoolId, &Pool>) -> Self {
        Self { pools: pools.iter().map(|(id, pool)| (*id, pool.name.clone())).collect() }
    }
}

/// Between two looks at the answers that came.
const GATHER: Duration = Duration::from_millis(2);
/// Headers of one pool asked for at once.
const WINDOW: usize = 512;
/// Directory entries read at once.
const PAGE: u64 = 1024;
/// Lists a namespace's images: `name_IMAGE` → id (`cls_rbd.cc`, facts/ceph.md §5).
pub(super) const DIRECTORY: &str = "rbd_directory";
/// Lists a pool's namespaces: `name_NAMESPACE`.
const NAMESPACES: &str = "rbd_namespace";
/// An image's header: watchers, lock.
pub(super) const HEADER: &str = "rbd_header.";
pub(super) const NAME_KEY: &str = "name_";

/// Sweeps all pools at the same time, so that one that does not answer holds up no other, and hands over each image
/// as its answer comes; an image deleted meanwhile is left out. Memory is bounded by the requests under way, not
/// by the number of images. Returns what could not be read, in words.
pub fn sweep(
    cluster: &Cluster,
    scope: &Scope,
    deadline: &Deadline,
    found: &mut dyn FnMut(ImageUse),
) -> Vec<String> {
    let (images, receiver) = sync_channel(WINDOW);
    let calls = scope.pools.iter().map(|(id, name)| {
        let mut pool = PoolSweep {
            pool: name.clone(),
            deadline: deadline.clone(),
            images: images.clone(),
            unread: Vec::new(),
        };
        let (cluster, id) = (cluster.clone(), *id);
        move || {
            pool.run(&cluster, id);
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

/// How long the end of a pool's sweep may take to be noticed.
const GRACE: Duration = Duration::from_millis(200);

struct PoolSweep {
    pool: String,
    deadline: Deadline,
    images: SyncSender<ImageUse>,
    unread: Vec<String>,
}

/// Why a directory was not read to its end.
enum Stopped {
    /// Whoever wanted the images is gone.
    Unwanted,
    Late,
    /// The client may not read objects of this prefix.
    Denied(&'static str),
    Failed(Errno),
}

impl PoolSweep {
    fn run(&mut self, cluster: &Cluster, id: PoolId) {
        let mut io = match cluster.pool(id) {
            Ok(io) => io,
            Err(Errno::ENOENT) => return,
            Err(errno) => return self.unread.push(format!("pool {}: {errno}", self.pool)),
        };
        let mut namespaces = vec![String::new()];
        let listed = self.directory(&io, NAMESPACES, |name, _| {
            namespaces.push(name);
            Ok(())
        });
        self.note(listed, "");
        for namespace in namespaces {
            let swept = io.set_namespace(&namespace).map_err(Stopped::Failed);
            let swept = swept.and_then(|()| self.images(&io, &namespace));
            self.note(swept, &namespace);
        }
    }

    fn note(&mut self, end: Result<(), Stopped>, namespace: &str) {
        let separator = if namespace.is_empty() { "" } else { "/" };
        let place = format!("pool {}{separator}{namespace}", self.pool);
        match end {
            Ok(()) | Err(Stopped::Unwanted) => {}
            Err(Stopped::Late) => self.unread.push(format!("{place}: no answer")),
            Err(Stopped::Denied(prefix)) => self
                .unread
                .push(format!("{place}: the key lacks osd `allow r object_prefix {prefix}` (deploy/ceph)")),
            Err(Stopped::Failed(Errno::ESHUTDOWN)) => {
                self.unread.push(format!("{place}: this guardian is itself blocklisted"));
            }
            Err(Stopped::Failed(errno)) => self.unread.push(format!("{place}: {errno}")),
        }
    }

    /// Reads a directory object, asking for the next page before the last one is worked off.
    fn directory(
        &self,
        io: &IoCtx,
        object: &'static str,
        mut entry: impl FnMut(String, Vec<u8>) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        let (to, from) = channel();
        let ask = |after: &str| io.omap_page(object, after, PAGE, 0, &to).map_err(Stopped::Failed);
        ask(NAME_KEY)?;
        loop {
            let page = match self.deadline.receive(&from).map_err(|_| Stopped::Late)? {
                Some(Done { result: Ok(page), .. }) => page,
                Some(Done { result: Err(Errno::ENOENT), .. }) | None => return Ok(()),
                Some(Done { result: Err(Errno::ETIMEDOUT), .. }) => return Err(Stopped::Late),
                Some(Done { result: Err(Errno::EPERM), .. }) => return Err(Stopped::Denied(object)),
                Some(Done { result: Err(errno), .. }) => return Err(Stopped::Failed(errno)),
            };
            let more = page.more && page.entries.last().is_some_and(|(key, _)| key.starts_with(NAME_KEY));
            if let (true, Some((last, _))) = (more, page.entries.last()) {
                ask(last)?;
            }
            for (key, value) in page.entries {
                if let Some(name) = key.strip_prefix(NAME_KEY) {
                    entry(name.to_owned(), value)?;
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn images(&mut self, io: &IoCtx, namespace: &str) -> Result<(), Stopped> {
        let (to, from) = channel();
        let mut under_way = BTreeMap::new();
        let mut next_tag = 0;
        let mut failed = Vec::new();
        let mut listed = self.directory(io, DIRECTORY, |name, value| {
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
            io.header(&format!("{HEADER}{id}"), next_tag, &to).map_err(Stopped::Failed)?;
            under_way.insert(next_tag, name);
            Ok(())
        });
        while listed.is_ok() && !under_way.is_empty() {
            listed = self.take(&from, &mut under_way, &mut failed, namespace);
        }
        if let Err(Stopped::Late) = listed {
            failed.extend(under_way.into_values().map(|name| (name, "no answer".to_owned())));
        }
        let pool = &self.pool;
        let failed = failed.iter().map(|(name, why)| format!("image {}: {why}", path(pool, namespace, name)));
        self.unread.extend(failed);
        listed
    }

    fn take(
        &self,
        from: &Receiver<Done<Header>>,
        under_way: &mut BTreeMap<u64, String>,
        failed: &mut Vec<(String, String)>,
        namespace: &str,
    ) -> Result<(), Stopped> {
        let Some(done) = self.deadline.receive(from).map_err(|_| Stopped::Late)? else {
            return Err(Stopped::Late);
        };
        self.took(done, under_way, failed, namespace)
    }

    /// Lets answers come together: a thread woken for each would cost more than the answers.
    fn gather(&self) -> Result<(), Stopped> {
        self.deadline.pause(GATHER).map_err(|_| Stopped::Late)
    }

    fn took(
        &self,
        done: Done<Header>,
        under_way: &mut BTreeMap<u64, String>,
        failed: &mut Vec<(String, String)>,
        namespace: &str,
    ) -> Result<(), Stopped> {
        let Some(image) = under_way.remove(&done.tag) else {
            return Ok(());
        };
        match done.result {
            Ok(header) => match self.image_use(&image, namespace, header) {
                Some(image_use) => self.images.send(image_use).map_err(|_| Stopped::Unwanted),
                None => {
                    failed.push((image, "its watchers or its lock are not understood".to_owned()));
                    Ok(())
                }
            },
            // Deleted since the directory was read.
            Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EPERM) => Err(Stopped::Denied(HEADER)),
            Err(errno) => {
                failed.push((image, errno.to_string()));
                Ok(())
            }
        }
    }

    /// `None` if an address or the lock has an unknown form: somebody uses it, and nobody could tell who.
    fn image_use(&self, image: &str, namespace: &str, header: Header) -> Option<ImageUse> {
        let watch =
            |w: Watcher| Some(Watch { address: w.address.parse().ok()?, client: w.client, cookie: w.cookie });
        let owners = header.lock.as_deref().map_or(Some(Vec::new()), locks::decode)?;
        Some(ImageUse {
            pool: self.pool.clone(),
            namespace: namespace.to_owned(),
            image: image.to_owned(),
            watchers: header.watchers.into_iter().map(watch).collect::<Option<_>>()?,
            lock: owners.into_iter().next(),
        })
    }
}

/// A string as Ceph encodes it: four bytes of length, little-endian, then the text.
pub(super) fn encoded_text(bytes: &[u8]) -> Option<String> {
    let (len, text) = bytes.split_first_chunk::<4>()?;
    let text = text.get(..usize::try_from(u32::from_le_bytes(*len)).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

impl ImageUse {
    /// `pool/image` or `pool/namespace/image`.
    pub fn path(&self) -> String {
        path(&self.pool, &self.namespace, &self.image)
    }
}

/// An image as `rbd` writes it.
pub fn path(pool: &str, namespace: &str, image: &str) -> String {
    if namespace.is_empty() { format!("{pool}/{image}") } else { format!("{pool}/{namespace}/{image}") }
}
