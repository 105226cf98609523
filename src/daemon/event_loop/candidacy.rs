//! A guardian that does not lead: how far it came, when it tries again, and what it answers meanwhile.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;

use crate::control::protocol::ControlLine;
use crate::control::socket::Ask;
use crate::daemon::leadership::{BidError, Standby};
use crate::daemon::log;

/// Failed bids in a row before it reconnects to Ceph.
const VAIN_BIDS: u32 = 5;

pub(super) struct Candidacy {
    /// What it knows while another guardian leads.
    waiting: Option<Box<Standby>>,
    /// Why it is not further, in words.
    trouble: Option<String>,
    /// It stays so until somebody does something.
    lasts: bool,
    /// When to try again to get further, by the boot clock; `None` while an attempt is under way.
    retry_at: Option<Duration>,
    /// Bids in a row that ended in silence or in a refusal.
    vain_bids: u32,
    /// It is clear who leads, or why nobody knows. What is asked before waits for that.
    settled: bool,
    /// Asked before it was clear who leads.
    early: Vec<Ask>,
}

impl Candidacy {
    pub(super) fn new() -> Self {
        Self {
            waiting: None,
            trouble: None,
            lasts: false,
            retry_at: Some(Duration::ZERO),
            vain_bids: 0,
            settled: false,
            early: Vec::new(),
        }
    }

    pub(super) fn waiting(&self) -> Option<&Standby> {
        self.waiting.as_deref()
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// When to try again.
    pub(super) fn due(&self) -> Option<Duration> {
        self.retry_at
    }

    /// Is it time to try again? An attempt begins then.
    pub(super) fn begin(&mut self, now: Duration) -> bool {
        self.retry_at.take_if(|at| *at <= now).is_some()
    }

    /// There is a connection to Ceph.
    pub(super) fn connected(&mut self) {
        (self.trouble, self.retry_at) = (None, Some(Duration::ZERO));
    }

    /// There is no connection to Ceph.
    pub(super) fn unconnected(&mut self, why: String, again: Duration) {
        self.lasts = false;
        self.not_further(Level::Error, "no-ceph", why, again);
    }

    /// Another connection to Ceph is used.
    pub(super) fn reconnected(&mut self, again: Duration) {
        (self.waiting, self.retry_at) = (None, Some(again));
    }

    /// Another guardian leads, or may.
    pub(super) fn waits(&mut self, waiting: Box<Standby>, again: Duration) {
        self.vain_bids = 0;
        let words = waiting.words();
        self.waiting = Some(waiting);
        self.not_further(Level::Info, "standby", words, again);
    }

    pub(super) fn bid_failed(&mut self, error: &BidError, again: Duration) {
        // A connection that was itself blocklisted, or has gone astray, never gets better; a new one may.
        self.vain_bids = if error.may_be_the_connection() { self.vain_bids + 1 } else { 0 };
        (self.waiting, self.lasts) = (None, error.lasts());
        self.not_further(Level::Error, "no-ledger", error.to_string(), again);
    }

    /// So many bids failed that the connection is to be replaced, if it may.
    pub(super) fn gives_connection_up(&mut self, may: bool) -> bool {
        let is_vain = self.vain_bids >= VAIN_BIDS && may;
        if is_vain {
            self.vain_bids = 0;
        }
        is_vain
    }

    fn not_further(&mut self, level: Level, code: &str, why: String, again: Duration) {
        if self.trouble.as_ref() != Some(&why) {
            log::line(level, code, None, &why);
            self.trouble = Some(why);
        }
        self.retry_at = Some(again);
    }

    /// It leads.
    pub(super) fn won(&mut self) {
        (self.trouble, self.waiting) = (None, None);
    }

    /// It does not lead any more.
    pub(super) fn deposed(&mut self, why: &str, again: Duration) {
        (self.trouble, self.settled, self.retry_at) = (Some(why.to_owned()), false, Some(again));
    }

    /// It is clear now who leads. Returns what was asked before.
    pub(super) fn settle(&mut self) -> Vec<Ask> {
        self.settled = true;
        std::mem::take(&mut self.early)
    }

    /// Answers that it does not lead; before that is clear, the question waits.
    pub(super) fn refuse(&mut self, ask: Ask) {
        let trouble = self.trouble().unwrap_or("it is bidding for the lead");
        let why = format!("this guardian does not lead: {trouble}");
        let line = if !self.settled {
            return self.early.push(ask);
        } else if self.waiting.is_some() {
            ControlLine::Elsewhere(why)
        } else if self.lasts {
            ControlLine::Failed(why)
        } else {
            ControlLine::Unavailable(why)
        };
        let _ = ask.answers.try_send(line);
    }
}
