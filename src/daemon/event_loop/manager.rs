//! What the service manager is told and what it wishes: its status, SIGHUP, SIGUSR1, SIGTERM.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;

use crate::ceph::lane;
use crate::config::{CephConfig, Config};
use crate::daemon::election::Lookout;
use crate::daemon::event_loop::{Driver, Stage};
use crate::daemon::{DaemonError, log};
use crate::deadline::within;
use crate::ledger::NotLeased;

/// How long the end may take: the lease is given up, nothing else.
const ENDING: Duration = Duration::from_millis(1500);

impl Driver {
    pub(super) fn tell_manager(&mut self, now: Duration) {
        if !self.manager.is_due(now) {
            return;
        }
        self.manager.pet();
        let status = match (&self.stage, &self.trouble) {
            (Stage::Leading(leading), _) => {
                let held = leading.guardian.held_fences();
                let fenced = if held.is_empty() {
                    "no fence stands".to_owned()
                } else {
                    format!("fenced: {}", held.join(", "))
                };
                let holds = self.lookout.as_ref().and_then(Lookout::holds);
                let how = holds.unwrap_or_else(|| "leading".to_owned());
                format!("{how} (epoch {}); {fenced}", leading.hands.tenure.leader().epoch)
            }
            (Stage::Connecting | Stage::Bidding, Some(trouble)) => trouble.clone(),
            (Stage::Connecting, None) => "connecting to Ceph".to_owned(),
            (Stage::Bidding, None) => "bidding for the lead".to_owned(),
        };
        self.manager.status(status);
    }

    /// SIGHUP: a file that is refused changes nothing.
    pub(super) fn reload(&mut self) {
        self.manager.reloading();
        match self.origin.load() {
            Err(error) => {
                let text = format!("the configuration is refused, the old one stays: {error}");
                log::line(Level::Error, "bad-configuration", None, &text);
            }
            Ok(config) => {
                // Which pools are excepted is part of the policy.
                let ceph = |config: &Config| CephConfig { except_pools: Vec::new(), ..config.ceph.clone() };
                let fixed = |config: &Config| (ceph(config), config.ledger.clone(), config.daemon.clone());
                let stays = fixed(&config) != fixed(&self.config);
                let (ceph, ledger, daemon) = fixed(&self.config);
                self.config = Config { ceph, ledger, daemon, ..config };
                log::line(Level::Info, "reloaded", None, "the configuration was read again");
                if stays {
                    let text =
                        "[ceph] (apart from except_pools), [ledger] and [daemon] count after a restart only";
                    log::line(Level::Warn, "restart-needed", None, text);
                }
                self.incus_at = Some(Duration::ZERO);
                self.reconfigure();
            }
        }
        self.manager.reloaded();
    }

    /// SIGUSR1.
    pub(super) fn record(&mut self) {
        match &mut self.stage {
            Stage::Leading(leading) => leading.guardian.save(),
            Stage::Connecting | Stage::Bidding => {
                log::line(Level::Info, "recording", None, "it does not lead: there is nothing to record");
            }
        }
    }

    fn reconfigure(&mut self) {
        let Stage::Leading(leading) = &self.stage else { return };
        let settings = self.settings(&leading.hands.tenure);
        let Stage::Leading(leading) = &mut self.stage else { return };
        leading.hands.storage.guarded = settings.policy.guarded.clone();
        leading.hands.storage.expire = settings.policy.expire;
        leading.guardian.reconfigure(settings);
    }

    /// SIGTERM: fences stay, and whoever reads the log knows which; the lease goes, so that another may lead at once.
    pub(super) async fn end(self) -> Result<(), DaemonError> {
        self.manager.stopping();
        if let Stage::Leading(leading) = self.stage {
            let tenure = leading.hands.tenure.clone();
            let held = leading.guardian.held_fences();
            let text = if held.is_empty() {
                "ends; no fence stands".to_owned()
            } else {
                format!(
                    "ends; these fences stand, nobody holds them until a guardian runs again: {}",
                    held.join(", ")
                )
            };
            log::line(Level::Info, "ending", None, &text);
            leading.end("this guardian ends");
            let given_up = match within(ENDING, lane::awaited(move || tenure.give_up())).await {
                Ok(Some(given_up)) => given_up,
                Ok(None) | Err(_) => Err(NotLeased::Unknown),
            };
            if let Err(error) = given_up {
                log::line(Level::Warn, "lease", None, &format!("the lease was not given up: {error}"));
            }
        } else {
            log::line(Level::Info, "ending", None, "ends; it did not lead");
        }
        // Disconnecting may block, and nothing is left to be said.
        std::mem::forget(self.cluster);
        Ok(())
    }
}
