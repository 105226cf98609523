//! The model's clocks: that of the guardian's host, which somebody may set, and that of the monitors.

use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::model::now::Now;

use crate::model::{Model, start};

impl Model {
    pub(crate) fn now(&self) -> Now {
        Now { boot: self.boot, wall: self.true_time() + self.stepped }
    }

    fn true_time(&self) -> Timestamp {
        start() + (self.boot - Duration::from_secs(1000))
    }

    pub(crate) fn storage_clock(&self) -> Timestamp {
        self.true_time() + self.ahead
    }

    /// The monitors drop what is over by their clock, as at each of their ticks (`OSDMonitor::tick`).
    pub(crate) fn drop_what_is_over(&mut self) {
        let now = self.storage_clock();
        self.change(|map| map.blocklist.entries.retain(|_, until| *until >= now));
    }

    /// Nobody looks for so long; then comes an osdmap.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.boot += time;
        self.change(|_| ());
    }
}
