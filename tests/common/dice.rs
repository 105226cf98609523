//! Chance that can be repeated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `SplitMix64`: a seed replays everything.
pub struct Dice(u64);

impl Dice {
    /// From `GUARDIAN_SEED`, or from the clock; prints which, so that a failure can be repeated.
    pub fn from_env() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed = number_from_env("GUARDIAN_SEED", now.as_secs());
        println!("GUARDIAN_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    pub fn millis(&mut self, bound: u64) -> Duration {
        Duration::from_millis(self.below(bound))
    }
}

pub fn number_from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// So many, in any order: each of these once before any comes again.
pub fn drawn<T: Copy>(of: &[T], count: usize, dice: &mut Dice) -> Vec<T> {
    let mut drawn = Vec::new();
    while drawn.len() < count {
        let mut left = of.to_vec();
        while !left.is_empty() {
            drawn.push(left.swap_remove(usize::try_from(dice.below(left.len() as u64)).unwrap()));
        }
    }
    drawn.truncate(count);
    drawn
}
