//! `run`: the daemon.

use std::time::Duration;

use super::context::options;
use super::error::CliError;
use super::{Common, Exit};
use crate::config::Config;
use crate::config::source::ConfigSource;
use crate::daemon;

/// The longest wait for a monitor or an OSD: an election takes half of it, and every effect has a deadline of its own.
const CEPH_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(common: &Common) -> Result<Exit, CliError> {
    let config = Config::load(common.config.as_deref())?;
    let mut origin = origin(common, &config);
    // This program as it runs: the file of its name may be that of another release by now.
    origin.ceph.asks_with = Some("/proc/self/exe".into());
    daemon::run(origin, config)?;
    Ok(Exit::Done)
}

pub(super) fn origin(common: &Common, config: &Config) -> ConfigSource {
    ConfigSource { config: common.config.clone(), ceph: options(common, config, CEPH_TIMEOUT) }
}
