//! Whether the key still opens the cluster. A connection that stands goes on with a key that was replaced, until it breaks, and
//! cannot ask single monitors any more, which a release needs. So the keyring is looked at, and a fresh log-in is tried regularly.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Weak;
use std::time::Duration;

use rbd_guardian_core::guardian::report::Level;

use crate::ceph::lane;
use crate::ceph::rados::cluster::{Cluster, DEFAULT_ID, Options};
use crate::ceph::rados::error::ConnectError;
use crate::daemon::log;

/// Between two looks at the keyring.
const LOOK: Duration = Duration::from_secs(5);
/// Between two log-ins where it did not change.
const EVERY: Duration = Duration::from_secs(60);
/// Time between two log-ins while no monitor answers over the connection in use.
const DEAF_EVERY: Duration = Duration::from_secs(10);

/// Maximum number of replaced connections that have not ended. Each may keep threads and sockets for itself and for its patient one, until the last
/// call on it ends.
const MOST_REPLACED: usize = 2;

/// Connections that were replaced and have not ended.
#[derive(Debug, Default)]
pub(super) struct Replaced(Vec<Weak<()>>);

impl Replaced {
    /// Another one may be replaced.
    pub(super) fn has_room(&self) -> bool {
        self.0.iter().filter(|life| life.strong_count() > 0).count() < MOST_REPLACED
    }

    pub(super) fn note(&mut self, life: Weak<()>) {
        self.0.retain(|life| life.strong_count() > 0);
        self.0.push(life);
    }

    /// For `status`.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        (!self.has_room()).then_some(FULL)
    }
}

const FULL: &str = "two replaced connections to Ceph have not closed: no further connection is opened until one of them has. If this persists, restart the service";

/// A look at the keyring, and a log-in if one is due or the keyring has changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    /// Log in even if the keyring has not changed.
    due: bool,
    /// Hash of the keyring with which the connection in use was made.
    before: Option<u64>,
}

impl Attempt {
    /// Returns the hash of the keyring now, and the log-in, if one was tried.
    pub(super) async fn run(self, options: Options) -> (Option<u64>, Option<Result<Cluster, ConnectError>>) {
        let looked = lane::awaited(move || {
            let key = hash(&options);
            let changed = self.before.is_some_and(|before| before != key);
            (key, (self.due || changed).then(|| Cluster::connect(&options)))
        });
        let (key, login) = looked.await.unzip();
        (key, login.flatten())
    }
}

/// When the last log-in was tried, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// When the last one began, by the boot clock; before the first one, when the connection was made.
    last: Option<Duration>,
    /// When the keyring was looked at last, by the boot clock.
    looked: Option<Duration>,
    under_way: bool,
    /// Hash of the keyring when the connection was made; `None`: it was not looked at then.
    key: Option<u64>,
    /// Why the last one was refused, in words.
    trouble: Option<String>,
}

impl Login {
    /// For `status`.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// A connection was made anew, with what is in the keyring now.
    pub(super) fn forget(&mut self) {
        *self = Self { under_way: self.under_way, ..Self::default() };
    }

    /// What to try now, if anything. `deaf`: no monitor answers the connection in use.
    pub(super) fn begin(&mut self, now: Duration, deaf: bool) -> Option<Attempt> {
        if self.under_way || self.looked.is_some_and(|looked| now.saturating_sub(looked) < LOOK) {
            return None;
        }
        let last = *self.last.get_or_insert(now);
        let due = now.saturating_sub(last) >= if deaf { DEAF_EVERY } else { EVERY };
        (self.looked, self.under_way) = (Some(now), true);
        if due {
            self.last = Some(now);
        }
        Some(Attempt { due, before: self.key })
    }

    /// An attempt ended. Logs a refusal once, and its end. Returns the new connection, and whether the keyring has changed
    /// since the connection in use was made.
    pub(super) fn ended(
        &mut self,
        key: Option<u64>,
        login: Option<Result<Cluster, ConnectError>>,
    ) -> Option<(Cluster, bool)> {
        self.under_way = false;
        self.key = self.key.or(key);
        match login {
            Some(Ok(fresh)) => {
                if self.trouble.take().is_some() {
                    log::line(Level::Info, "key-taken", None, "opening new connections to Ceph again");
                }
                Some((fresh, self.key != key))
            }
            // Silent monitors are reported elsewhere, and say nothing about the key.
            None | Some(Err(ConnectError::Unreachable { .. })) => None,
            Some(Err(error)) => {
                self.refused(&error);
                None
            }
        }
    }

    fn refused(&mut self, error: &ConnectError) {
        let why = format!(
            "a new connection to Ceph would fail: {error}. The current connection works until it breaks; after that this guardian \
             can neither fence nor hold fences. If the key was replaced, write the new one into the keyring, and restart \
             the service if systemd keeps a copy of it (LoadCredential=)"
        );
        if self.trouble.as_ref() != Some(&why) {
            let few = matches!(error, ConnectError::TooFewFiles(_));
            let code = if few { "few-descriptors" } else { "key-refused" };
            log::line(Level::Error, code, None, &why);
            self.trouble = Some(why);
        }
    }

    /// The new connection is used, made with a keyring of this hash.
    pub(super) fn replaced(&mut self, key: Option<u64>) {
        self.key = key;
    }
}

/// What is in the keyring, in short; nothing of it is kept.
fn hash(options: &Options) -> u64 {
    let id = options.id.as_deref().unwrap_or(DEFAULT_ID);
    let usual = || PathBuf::from(format!("/etc/ceph/ceph.client.{id}.keyring"));
    let path = options.keyring.clone().unwrap_or_else(usual);
    let mut hasher = DefaultHasher::new();
    fs::read(path).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn no_connection_is_replaced_while_two_that_were_have_not_ended() {
        let [first, second] = [(); 2].map(Arc::new);
        let mut replaced = Replaced::default();
        replaced.note(Arc::downgrade(&first));
        assert!(replaced.has_room());
        replaced.note(Arc::downgrade(&second));
        assert!(!replaced.has_room());
        assert!(replaced.trouble().is_some());
        drop(first);
        assert!(replaced.has_room());
        assert_eq!(replaced.trouble(), None);
    }
}
