//! Where a configuration comes from, so that it can be read again.

use std::path::PathBuf;

use crate::ceph::rados::cluster::Options;
use crate::config::{Config, ConfigError};

/// Where the daemon's configuration comes from.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    /// The file; the default one if not given.
    pub config: Option<PathBuf>,
    /// How to connect to Ceph.
    pub ceph: Options,
}

impl ConfigSource {
    /// Reads the configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref())
    }
}
