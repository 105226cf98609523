//! The lease: who may try to lead. It spreads the work among guardians and proves nothing; what proves the right to
//! write is the leader record. And a second one, by which a guardian that waits says that it could lead better than one
//! that sees nothing ([`outlook`](rbd_guardian_core::rules::leader_fitness)).

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use rbd_guardian_core::rules::leader_fitness::Readiness;

use super::codec::OBJECT;
use super::error::{LeaseError, LedgerReadError};
use super::store::Ledger;
use crate::ceph::lane;
use crate::ceph::rados::errno::{BLOCKLISTED, ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::rados::lock::{LeaseHolder, LeaseWrite};
use crate::clock;
use crate::deadline::{Deadline, DeadlineError};

/// The lock of the one that leads.
const LEADER: &str = "leader";
/// The lock of one that waits and is ready. One is enough.
const READY: &str = "ready";
/// The lock of one that waits, and that the monitors answer, though it is not ready.
const HEARS: &str = "hears";

/// A lease that was held when it was last asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    cookie: String,
    duration: Duration,
}

fn lock_of(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Ready => READY,
        Readiness::Hears => HEARS,
    }
}

impl Ledger {
    /// Bids for the lease. Asked again under the same cookie by the same connection, it is renewed.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn lease(&self, cookie: &str, duration: Duration, deadline: &Deadline) -> Result<Lease, LeaseError> {
        let lease = Lease { cookie: cookie.to_owned(), duration };
        self.bid(LEADER, &lease, deadline)?;
        Ok(lease)
    }

    /// Says how ready this guardian is to lead, for so long; again before that is over, it goes on being so.
    ///
    /// # Errors
    /// See [`LeaseError`]; `Held`: another one says so.
    pub fn ready(
        &self,
        readiness: Readiness,
        cookie: &str,
        duration: Duration,
        deadline: &Deadline,
    ) -> Result<(), LeaseError> {
        self.bid(lock_of(readiness), &Lease { cookie: cookie.to_owned(), duration }, deadline)
    }

    /// Who says that it is ready, so far, and says it again within this time.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn who_is(
        &self,
        readiness: Readiness,
        duration: Duration,
        deadline: &Deadline,
    ) -> Result<Option<LeaseHolder>, LedgerReadError> {
        let lock = lock_of(readiness);
        let locker = self.locker(lock, deadline)?;
        // A guardian that died does not answer, however long its lock lasts by the OSD's clock.
        if locker.is_some() && self.is_silent(lock, duration, deadline) {
            return Ok(None);
        }
        Ok(locker)
    }

    /// Breaks the lease if nobody has renewed it for more than two of its durations, whatever time the OSD has.
    /// Whether it was.
    pub fn break_silent_lease(&self, duration: Duration, deadline: &Deadline) -> bool {
        self.break_silent(LEADER, duration, deadline)
    }

    /// Renews it for its whole duration from now.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn renew(&self, lease: &Lease, deadline: &Deadline) -> Result<(), LeaseError> {
        self.take(LEADER, lease, LeaseWrite::Renew, deadline)
    }

    /// Lets others bid at once. One that was lost already is no error.
    ///
    /// # Errors
    /// See [`LeaseError`].
    pub fn give_up(&self, lease: Lease, deadline: &Deadline) -> Result<(), LeaseError> {
        let answer = self.on_lane(deadline, move |io| io.unlock(OBJECT, LEADER, &lease.cookie));
        match answer {
            Ok(Ok(()) | Err(Errno::ENOENT)) => Ok(()),
            Ok(Err(errno)) => Err(self.not_leased(errno)),
            Err(_) => Err(LeaseError::Unknown),
        }
    }

    /// Who holds it.
    ///
    /// # Errors
    /// See [`LedgerReadError`].
    pub fn holder(&self, deadline: &Deadline) -> Result<Option<LeaseHolder>, LedgerReadError> {
        self.locker(LEADER, deadline)
    }

    fn locker(
        &self,
        lock: &'static str,
        deadline: &Deadline,
    ) -> Result<Option<LeaseHolder>, LedgerReadError> {
        let pool = || self.config.pool.clone();
        let answer = self.on_lane(deadline, move |io| io.lockers(OBJECT, lock));
        match answer.map_err(|late| LedgerReadError::Silent { pool: pool(), late })? {
            Ok(lockers) => Ok(lockers.into_iter().next()),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(match meaning(errno) {
                ErrnoMeaning::Denied => LedgerReadError::Denied { pool: pool() },
                ErrnoMeaning::Silence => LedgerReadError::Silent { pool: pool(), late: DeadlineError::Over },
                ErrnoMeaning::Blocklisted => LedgerReadError::Blocklisted { pool: pool() },
                ErrnoMeaning::Rejected | ErrnoMeaning::MadeUp | ErrnoMeaning::Other => {
                    LedgerReadError::Failed { pool: pool(), errno }
                }
            }),
        }
    }

    /// Takes it if it is free, or nobody's any more ([`silence`](rbd_guardian_core::rules::silence)).
    fn bid(&self, lock: &'static str, lease: &Lease, deadline: &Deadline) -> Result<(), LeaseError> {
        match self.take(lock, lease, LeaseWrite::Bid, deadline) {
            Err(LeaseError::Held) if self.break_silent(lock, lease.duration, deadline) => {
                self.take(lock, lease, LeaseWrite::Bid, deadline)
            }
            taken => taken,
        }
    }

    fn break_silent(&self, lock: &'static str, duration: Duration, deadline: &Deadline) -> bool {
        if !self.is_silent(lock, duration, deadline) {
            return false;
        }
        let Ok(Some(LeaseHolder { client, cookie, .. })) = self.locker(lock, deadline) else { return false };
        let broken = self.on_lane(deadline, move |io| io.break_lock(OBJECT, lock, &client, &cookie));
        matches!(broken, Ok(Ok(()) | Err(Errno::ENOENT)))
    }

    /// What cannot be read is not silent.
    fn is_silent(&self, lock: &'static str, duration: Duration, deadline: &Deadline) -> bool {
        let Ok(Ok(kept)) = self.on_lane(deadline, move |io| io.lock_as_kept(OBJECT, lock)) else {
            return false;
        };
        let mut silences = self.silences.lock().unwrap_or_else(PoisonError::into_inner);
        silences.entry(lock).or_default().look(clock::boot(), &kept, duration)
    }

    fn take(
        &self,
        lock: &'static str,
        lease: &Lease,
        take: LeaseWrite,
        deadline: &Deadline,
    ) -> Result<(), LeaseError> {
        let Lease { cookie, duration } = lease.clone();
        match self.on_lane(deadline, move |io| io.lock(OBJECT, lock, &cookie, duration, take)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(errno)) => Err(self.not_leased(errno)),
            Err(_) => Err(LeaseError::Unknown),
        }
    }

    fn not_leased(&self, errno: Errno) -> LeaseError {
        match (errno, meaning(errno)) {
            (Errno::EBUSY, _) => LeaseError::Held,
            (Errno::ENOENT, _) => LeaseError::Lost,
            (_, ErrnoMeaning::Silence) => LeaseError::Unknown,
            (_, ErrnoMeaning::Denied) => LeaseError::Denied { pool: self.config.pool.clone() },
            (_, ErrnoMeaning::Blocklisted) => LeaseError::Refused { why: BLOCKLISTED.to_owned() },
            (_, ErrnoMeaning::Rejected | ErrnoMeaning::MadeUp | ErrnoMeaning::Other) => {
                LeaseError::Refused { why: errno.to_string() }
            }
        }
    }

    fn on_lane<T: Send + 'static>(
        &self,
        deadline: &Deadline,
        call: impl FnOnce(&IoCtx) -> Result<T, Errno> + Send + 'static,
    ) -> Result<Result<T, Errno>, DeadlineError> {
        let io = Arc::clone(&self.io);
        lane::one(move || call(&io), deadline)
    }
}
