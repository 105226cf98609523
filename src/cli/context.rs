//! What every verb has: the configuration, a connection, and so much time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rbd_guardian_core::model::ceph_snapshot::CephSnapshot;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::error::CliError;
use super::{Common, Format};
use crate::ceph::command::CephReadError;
use crate::ceph::lane;
use crate::ceph::look::look;
use crate::ceph::rados::cluster::{Cluster, Options};
use crate::cli::output;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::printable::lines;

pub(super) struct Context {
    pub(super) config: Config,
    pub(super) cluster: Cluster,
    pub(super) deadline: Deadline,
    /// The file the key was read from, where it was named or is where Ceph looks for it.
    pub(super) keyring: Option<PathBuf>,
    timeout: Duration,
    pub(super) format: Format,
}

impl Context {
    pub(super) fn open(common: &Common) -> Result<Self, CliError> {
        let config = Config::load(common.config.as_deref())?;
        Self::connect(common, config, Deadline::after(common.timeout, interrupted()?))
    }

    /// Connects with a configuration that the command has read already.
    pub(super) fn connect(common: &Common, config: Config, deadline: Deadline) -> Result<Self, CliError> {
        let options = options(common, &config, common.timeout);
        let id = options.id.as_deref().unwrap_or("guardian");
        let usual = PathBuf::from(format!("/etc/ceph/ceph.client.{id}.keyring"));
        let keyring = options.keyring.clone().or_else(|| usual.exists().then_some(usual));
        // librados counts whole seconds from now, the deadline began before: its own message is the better one.
        let patient = deadline.later_by(Duration::from_secs(1));
        let cluster = lane::one(move || Cluster::connect(&options), &patient)??;
        let format = if common.json { Format::Json } else { common.format };
        Ok(Self { config, cluster, deadline, keyring, timeout: common.timeout, format })
    }

    /// Gives what comes the whole time again: for verbs that repeat.
    pub(super) fn restart(&mut self) {
        self.deadline = self.deadline.anew(self.timeout);
    }

    /// Runs blocking reads on a thread of their own, so that the deadline and Ctrl-C count.
    pub(super) fn read<T, F>(&self, read: F) -> Result<T, CliError>
    where
        T: Send + 'static,
        F: FnOnce(&Cluster) -> Result<T, CephReadError> + Send + 'static,
    {
        self.read_within(&self.deadline, read)
    }

    /// Reads within the caller's deadline.
    pub(super) fn read_within<T, F>(&self, deadline: &Deadline, read: F) -> Result<T, CliError>
    where
        T: Send + 'static,
        F: FnOnce(&Cluster) -> Result<T, CephReadError> + Send + 'static,
    {
        let cluster = self.cluster.clone();
        Ok(lane::one(move || read(&cluster), deadline)??)
    }

    pub(super) fn look(&self) -> Result<CephSnapshot, CliError> {
        let (guarded, deadline) = (self.config.policy.guarded.clone(), self.deadline.clone());
        self.read(move |cluster| look(cluster, &guarded, &deadline))
    }

    /// Prints the answer in the format that was asked for.
    pub(super) fn print<T: Serialize>(
        &self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<bool, CliError> {
        print(self.format, answer, text)
    }
}

/// Prints the answer: as JSON, or as the text made of it. A reader that went away is no error; tells whether it is
/// still there.
pub(super) fn print<T: Serialize>(
    format: Format,
    answer: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<bool, CliError> {
    let mut printed = match format {
        Format::Json => serde_json::to_string(answer).map_err(std::io::Error::from)?,
        Format::Table => lines(text(answer).trim_end()).into_owned(),
    };
    printed.push('\n');
    Ok(output::print(&printed)?)
}

/// How to connect; what the command line says wins.
pub(super) fn options(common: &Common, config: &Config, timeout: Duration) -> Options {
    Options {
        conf: common.conf.clone().or_else(|| config.ceph.conf.clone()),
        cluster: common.cluster.clone().or_else(|| config.ceph.cluster.clone()),
        id: common.id.clone().or_else(|| config.ceph.id.clone()),
        keyring: common.keyring.clone().or_else(|| config.ceph.keyring.clone()),
        timeout,
        // A verb ends soon.
        asks_with: None,
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second one ends the process at once.
pub(super) fn interrupted() -> Result<Arc<AtomicBool>, std::io::Error> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}
