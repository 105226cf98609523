//! A client that somebody blocklisted for a short time, before any fence.

use std::time::Duration;

use lab::{WriteLog as _, Writer, monotonic, wait_for};

use super::Site;
use super::history::{Epoch, ip_of};

const SOON: Duration = Duration::from_secs(60);
pub const POOL: &str = "images";
/// As krbd's lock breaker adds them, but sooner over.
pub const SHORT_SECONDS: f64 = 60.0;

/// A writer at work, on a new image.
pub fn writer(site: &Site, host: &str, image: &str) -> Writer {
    site.lab.image(POOL, image, 8).unwrap();
    let writer = site.lab.host(host).writer(POOL, image, 2).unwrap();
    writer.wait_for_acks(20, SOON).unwrap();
    writer
}

/// When a writer has been refused ten times in a row: from here on, an acknowledgement means that it was let in again.
fn shut_out(writer: &Writer) -> Duration {
    wait_for("ten refusals in a row", SOON, || {
        let log = writer.log()?;
        let refused = log.iter().rev().take_while(|entry| entry.error.is_some()).count();
        Ok((refused >= 10).then(monotonic))
    })
    .unwrap()
}

/// A writer that somebody shut out with short entries, before any fence.
pub struct ShortFirst<'s> {
    site: &'s Site,
    pub writer: Writer,
    image: String,
    /// The epoch of the last short entry, the instant from which they were felt, and what was on the image then.
    epoch: u64,
    since: Duration,
    hash: [u8; 32],
}

impl<'s> ShortFirst<'s> {
    /// Short entries for the writer's client, and for its whole host if asked for.
    pub fn new(site: &'s Site, host: &str, image: &str, whole_host: bool) -> Self {
        let writer = writer(site, host, image);
        let mut epoch = site.add_short(writer.client_address(), SHORT_SECONDS);
        if whole_host {
            epoch = site.add_short(&host_entry(writer.client_address()), SHORT_SECONDS);
        }
        Self {
            since: shut_out(&writer),
            hash: site.lab.content_hash(POOL, image).unwrap(),
            image: image.to_owned(),
            writer,
            epoch,
            site,
        }
    }

    pub fn client(&self) -> &str {
        self.writer.client_address()
    }

    /// Nothing got through, in no epoch and to no attempt. Returns the history.
    pub fn never_free(&self) -> Vec<Epoch> {
        let history = self.site.history(self.epoch);
        let free: Vec<u64> =
            history.iter().filter(|epoch| !epoch.refuses(self.client())).map(|epoch| epoch.number).collect();
        assert!(free.is_empty(), "{} is free in the epochs {free:?}", self.client());
        self.writer.wait_for_error(monotonic(), SOON).unwrap();
        assert_eq!(self.writer.acks_after(self.since).unwrap(), 0);
        let hash = self.site.lab.content_hash(POOL, &self.image).unwrap();
        assert!(hash == self.hash, "{} changed", self.image);
        println!(
            "{}: refused in all of {} epochs; 0 of {} attempts taken",
            self.client(),
            history.len(),
            self.writer.log().unwrap().iter().filter(|entry| entry.at > self.since).count()
        );
        history
    }
}

/// The entry of a client's whole host.
pub fn host_entry(client: &str) -> String {
    format!("{}:0/0", ip_of(client))
}
