//! How long a lease has gone without a renewal, by the own clock of who watches it.
//!
//! A lease ends by the clock of the OSD that keeps it. That clock may be ahead of the next OSD's, or be set back: then a
//! dead holder's lease lasts for as long as the clocks differ. A holder that lives renews several times in each lease,
//! and one that cannot counts its lease as lost by its own clock. So a lease that did not change for more than two of its
//! durations is nobody's, whatever time the OSD has. Who breaks it wrongly deposes a leader, no more: each write of a
//! leader is on the condition of its own epoch (INV-7).

use std::time::Duration;

/// So many durations without a renewal, and a lease is nobody's.
const PATIENCE: u32 = 2;

/// What was seen of one lease.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Silence {
    /// As it was kept when it was last seen to change, and when that was.
    last: Option<(Vec<u8>, Duration)>,
}

impl Silence {
    /// The lease was read: `kept` is it as the storage keeps it, which each renewal changes; empty if nobody ever took
    /// it. Whether it is nobody's by now, a lease lasting for `duration`.
    pub fn look(&mut self, now: Duration, kept: &[u8], duration: Duration) -> bool {
        if let Some((last, since)) = &self.last
            && last == kept
        {
            return now.saturating_sub(*since) > duration * PATIENCE;
        }
        self.last = Some((kept.to_vec(), now));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(4);

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_lease_that_is_renewed_is_never_nobodys() {
        let mut silence = Silence::default();
        for at in 0..1000 {
            // The watcher may sleep for as long as it likes.
            assert!(!silence.look(secs(at * 100), &at.to_le_bytes(), LEASE), "{at}");
        }
    }

    #[test]
    fn a_lease_without_a_renewal_for_more_than_two_durations_is_nobodys_whatever_its_end() {
        let mut silence = Silence::default();
        for at in 10..=18 {
            assert!(!silence.look(secs(at), b"dead, until in ten minutes", LEASE), "{at}");
        }
        assert!(silence.look(secs(19), b"dead, until in ten minutes", LEASE));
        // Broken and taken by another one, it counts from there.
        assert!(!silence.look(secs(20), b"other", LEASE));
        assert!(!silence.look(secs(28), b"other", LEASE));
        assert!(silence.look(secs(29), b"other", LEASE));
    }

    /// Two guardians and an OSD whose clock jumps by minutes at any time: whoever dies, the other one has the lease within
    /// three of its durations; and while the holder lives it keeps it.
    #[test]
    fn whatever_the_clock_of_the_osd_does_a_dead_holder_is_followed_and_a_live_one_is_not() {
        for seed in 0..500_u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut draw = |below: u64| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % below
            };
            let (mut osd_ahead, dies_at) = (draw(2000), secs(20 + draw(20)));
            // Holder and end by the clock of the OSD.
            let mut kept = (0_u64, 0_u64);
            let mut silence = Silence::default();
            let mut taken = None;
            for step in 0..400_u64 {
                let now = Duration::from_millis(step * 250);
                if draw(40) == 0 {
                    osd_ahead = draw(2000);
                }
                let clock = u64::try_from(now.as_millis()).unwrap() + osd_ahead * 1000;
                let end = clock + u64::try_from(LEASE.as_millis()).unwrap();
                // The holder renews a second after it had it.
                if now < dies_at && step % 4 == 0 {
                    kept = (1, end);
                }
                // The other one bids each second: free by the OSD's clock, or silent by its own.
                if step % 4 == 2 {
                    let bytes = [kept.0.to_le_bytes(), kept.1.to_le_bytes()].concat();
                    let silent = silence.look(now, &bytes, LEASE);
                    assert!(!(silent && now < dies_at), "seed {seed}: broken while its holder lives");
                    if silent || (now > dies_at && kept.1 < clock) {
                        taken = Some(now);
                        break;
                    }
                }
            }
            let taken = taken.unwrap_or_else(|| panic!("seed {seed}: never taken"));
            assert!(taken <= dies_at + LEASE * 3, "seed {seed}: {taken:?} after {dies_at:?}");
        }
    }
}
