//! What the service manager is told and what it wishes: its status, SIGHUP, SIGUSR1, SIGTERM.

use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;

use crate::ceph::lane;
use crate::config::{CephConfig, Config};
use crate::daemon::election::ElectionWatch;
use crate::daemon::error::DaemonError;
use crate::daemon::event_loop::{EventLoop, LeadStage};
use crate::daemon::log;
use crate::deadline::within;
use crate::ledger::LeaseError;

/// How long the end may take: the lease is given up, nothing else.
const ENDING: Duration = Duration::from_millis(1500);

impl EventLoop {
    pub(super) fn tell_manager(&mut self, now: Duration) {
        if !self.manager.is_due(now) {
            return;
        }
        self.manager.pet();
        let status = match (&self.stage, self.candidacy.trouble()) {
            (LeadStage::Leading(leading), _) => {
                let held = leading.guardian.held_fences();
                let fenced = if held.is_empty() {
                    "no fence is in place".to_owned()
                } else {
                    format!("fenced: {}", held.join(", "))
                };
                let holds = self.election.as_ref().and_then(ElectionWatch::holds);
                let how = holds.unwrap_or_else(|| "leading".to_owned());
                format!("{how} (epoch {}); {fenced}", leading.executor.held_lead.leader().epoch)
            }
            (LeadStage::Connecting | LeadStage::Bidding, Some(trouble)) => trouble.to_owned(),
            (LeadStage::Connecting, None) => "connecting to Ceph".to_owned(),
            (LeadStage::Bidding, None) => "bidding for the lead".to_owned(),
        };
        self.manager.status(status);
    }

    /// SIGHUP: a file that is refused changes nothing.
    pub(super) fn reload(&mut self) {
        self.manager.reloading();
        match self.origin.load() {
            Err(error) => {
                let text =
                    format!("the new configuration is invalid, the previous one stays in use: {error}");
                log::line(Level::Error, "bad-configuration", None, &text);
            }
            Ok(config) => {
                // Which pools are excepted is part of the policy.
                let ceph = |config: &Config| CephConfig { except_pools: Vec::new(), ..config.ceph.clone() };
                let fixed = |config: &Config| {
                    (ceph(config), config.ledger.clone(), config.daemon.clone(), config.serve)
                };
                let stays = fixed(&config) != fixed(&self.config);
                let (ceph, ledger, daemon, serve) = fixed(&self.config);
                self.config = Config { ceph, ledger, daemon, serve, ..config };
                log::line(Level::Info, "reloaded", None, "configuration reloaded");
                if stays {
                    let text = "changes in [ceph] (except except_pools), [ledger], [daemon] and [serve] take effect only after a restart";
                    log::line(Level::Warn, "restart-needed", None, text);
                }
                self.incus.reopen();
                self.reconfigure();
            }
        }
        self.manager.reloaded();
    }

    /// SIGUSR1.
    pub(super) fn record(&mut self) {
        match &mut self.stage {
            LeadStage::Leading(leading) => leading.guardian.save(),
            LeadStage::Connecting | LeadStage::Bidding => {
                log::line(
                    Level::Info,
                    "recording",
                    None,
                    "this guardian does not lead: there is nothing to record",
                );
            }
        }
    }

    fn reconfigure(&mut self) {
        let LeadStage::Leading(leading) = &self.stage else { return };
        let settings = self.settings(&leading.executor.held_lead);
        let LeadStage::Leading(leading) = &mut self.stage else { return };
        leading.executor.storage.guarded = settings.policy.guarded.clone();
        leading.executor.storage.expire = settings.policy.expire;
        leading.guardian.reconfigure(settings);
    }

    /// SIGTERM: fences stay, and whoever reads the log knows which; the lease goes, so that another may lead at once.
    pub(super) async fn end(self) -> Result<(), DaemonError> {
        self.manager.stopping();
        if let LeadStage::Leading(leading) = self.stage {
            let held_lead = leading.executor.held_lead.clone();
            let held = leading.guardian.held_fences();
            let text = if held.is_empty() {
                "stopping; no fence is in place".to_owned()
            } else {
                format!(
                    "stopping; these fences stay in place, but no guardian holds them until one runs again: {}",
                    held.join(", ")
                )
            };
            log::line(Level::Info, "ending", None, &text);
            leading.end("this guardian ends");
            let given_up = match within(ENDING, lane::awaited(move || held_lead.give_up())).await {
                Ok(Some(given_up)) => given_up,
                Ok(None) | Err(_) => Err(LeaseError::Unknown),
            };
            if let Err(error) = given_up {
                log::line(Level::Warn, "lease", None, &format!("the lease could not be released: {error}"));
            }
        } else {
            log::line(Level::Info, "ending", None, "stopping; this guardian did not lead");
        }
        // Disconnecting may block, and nothing is left to be said.
        std::mem::forget(self.ceph);
        Ok(())
    }
}
