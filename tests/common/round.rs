//! A round of INV-1: a member is fenced under its writers, and no write of theirs is taken after the seal.

use std::collections::BTreeSet;
use std::fmt;
use std::thread;
use std::time::Duration;

use lab::{Content, Entry, Errno, Pool, WriteLog as _, Writer, monotonic};

use super::Site;

const SOON: Duration = Duration::from_secs(60);
const POOL: &str = "images";
/// 2048 blocks: more than any writer has in flight, so what was in flight at the seal is still there to be seen.
const IMAGE_MIB: u32 = 8;

/// When the member's link goes, if it does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    Never,
    Before,
    /// So long after the fence was begun.
    During(Duration),
}

/// What a round is to be like.
pub struct Draw {
    pub writers: usize,
    pub depth: u32,
    pub cut: Cut,
    /// How long the link stays cut after the seal.
    pub healed_after: Duration,
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} writers of depth {}, ", self.writers, self.depth)?;
        match self.cut {
            Cut::Never => write!(f, "not cut"),
            Cut::Before => write!(f, "cut before, healed {:?} after", self.healed_after),
            Cut::During(at) => write!(f, "cut {at:?} into it, healed {:?} after", self.healed_after),
        }
    }
}

/// What a round counted.
#[derive(Default)]
pub struct Counts {
    pub acked_before: usize,
    pub refused_after: usize,
    /// Writes taken and answered before the seal, whose answer got stuck at the cut.
    pub late_answers: usize,
    pub hashes: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acknowledged before the seal, {} refused after it, {} answers heard late, {} images unchanged",
            self.acked_before, self.refused_after, self.late_answers, self.hashes
        )
    }
}

impl Draw {
    /// One at least: nobody's image must not change either.
    fn images(&self) -> usize {
        self.writers.max(1)
    }
}

/// The pool and so many images, one for each writer of the largest round.
pub fn prepare(site: &Site, images: usize) {
    site.lab.pool(POOL, Pool::replicated(16, 2)).unwrap();
    for number in 0..images {
        site.lab.image(POOL, &image(number), IMAGE_MIB).unwrap();
    }
}

fn image(number: usize) -> String {
    format!("disk-{number}")
}

fn contents(site: &Site, images: usize) -> Vec<Content> {
    (0..images).map(|number| site.lab.content(POOL, &image(number)).unwrap()).collect()
}

/// Writers on images of their own, each a client instance of its own, all of them at work.
fn writers(site: &Site, draw: &Draw) -> Vec<Writer> {
    let start = |number| site.lab.host("n1").writer(POOL, &image(number), draw.depth).unwrap();
    let writers: Vec<Writer> = (0..draw.writers).map(start).collect();
    for writer in &writers {
        writer.wait_for_acks(50, SOON).unwrap();
    }
    writers
}

/// A member fenced under its writers, as seen from the instant at which the answer was read.
pub struct Sealed<'s> {
    site: &'s Site,
    writers: Vec<Writer>,
    depth: u32,
    at: Duration,
    /// The link was down before the answer came, so no write could reach the storage after the seal until it is healed.
    was_cut: bool,
    /// Before the link is healed.
    contents: Vec<Content>,
}

/// Fences `n1` under its writers.
pub fn seal<'s>(site: &'s Site, draw: &Draw) -> Sealed<'s> {
    let writers = writers(site, draw);
    if draw.cut == Cut::Before {
        site.lab.cut("n1").unwrap();
    }
    let fence = site.start_guardian(&["fence", "n1"]);
    let cut_at = match draw.cut {
        Cut::Never => None,
        Cut::Before => Some(Duration::ZERO),
        Cut::During(after) => {
            thread::sleep(after);
            site.lab.cut("n1").unwrap();
            Some(monotonic())
        }
    };
    let answer = fence.answer().expect(0);
    let at = monotonic();
    assert_eq!(answer.json["state"], "sealed", "{answer:#?}");
    assert_eq!(answer.json["coverage"]["known_clients"], draw.writers);
    Sealed {
        contents: contents(site, draw.images()),
        was_cut: cut_at.is_some_and(|cut_at| cut_at < at),
        depth: draw.depth,
        site,
        writers,
        at,
    }
}

impl Sealed<'_> {
    /// Waits until each writer was refused once more.
    pub fn wait_for_refusals(&self) {
        let now = monotonic();
        for writer in &self.writers {
            assert_eq!(writer.wait_for_error(now, SOON).unwrap(), Errno::ESHUTDOWN);
        }
    }

    /// No write was taken after the seal, as the images and the writers tell.
    pub fn check(&self, counts: &mut Counts) {
        for (number, sealed) in self.contents.iter().enumerate() {
            let hash = self.site.lab.content_hash(POOL, &image(number)).unwrap();
            assert!(hash == sealed.hash, "{} changed after the seal", image(number));
            counts.hashes += 1;
        }
        for (sealed, writer) in self.contents.iter().zip(&self.writers) {
            let on_disk = sealed.blocks.get(&writer.id()).cloned().unwrap_or_default();
            let log = writer.log().unwrap();
            let (before, after) = log.split_at(log.partition_point(|entry| entry.at <= self.at));
            let issued = before.len() as u64 + u64::from(self.depth);
            let later: Vec<_> = on_disk.range(issued + 1..).collect();
            assert!(later.is_empty(), "issued after the seal, and yet on disk: {later:?}");

            // A write that was under way at the seal may have been taken before it, and its answer be heard after it: a cut
            // held it back, or the writer had to wait for a processor. Then it is on disk, and was issued before.
            let (refused, acked) = numbers(after);
            let bad: Vec<_> = acked.iter().filter(|n| !on_disk.contains(n) || **n > issued).collect();
            assert!(bad.is_empty(), "issued or taken after the seal, and acknowledged: {bad:?}");
            assert!(acked.len() <= self.depth as usize, "more than was under way: {acked:?}");
            let held_back = if self.was_cut { &on_disk } else { &BTreeSet::new() };
            let refused_on_disk = refused.intersection(&on_disk).copied().collect::<BTreeSet<_>>();
            let bad: Vec<_> = refused_on_disk.difference(held_back).collect();
            assert!(bad.is_empty(), "refused after the seal, and yet on disk: {bad:?}");

            counts.acked_before += numbers(before).1.len();
            counts.refused_after += refused.len();
            counts.late_answers += acked.len();
        }
    }

    /// A client that starts only now is refused as well.
    fn refuses_a_newcomer(&self) {
        let mut newcomer = self.site.lab.host("n1").idle_client(POOL).unwrap();
        assert_eq!(newcomer.try_write("newcomer").unwrap(), Err(Errno::ESHUTDOWN), "{}", newcomer.address());
    }
}

/// Blocks refused, and blocks acknowledged.
fn numbers(log: &[Entry]) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let of = |acked: bool| {
        let such = log.iter().filter(move |entry| entry.error.is_none() == acked);
        such.map(|entry| entry.number).collect()
    };
    (of(false), of(true))
}

/// Fences `n1` under its writers, checks, and releases it.
pub fn round(site: &Site, draw: &Draw) -> Counts {
    let mut counts = Counts::default();
    let sealed = seal(site, draw);
    if draw.cut != Cut::Never {
        thread::sleep(draw.healed_after);
        site.lab.heal("n1").unwrap();
    }
    sealed.wait_for_refusals();
    sealed.refuses_a_newcomer();
    sealed.wait_for_refusals();
    sealed.check(&mut counts);

    drop(sealed);
    let release = ["release", "n1", "--assert-powered-off", "--reason", "the round is over"];
    site.guardian(&release).expect(0);
    counts
}
