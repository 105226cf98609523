//! Which releases of Ceph and Incus a lab runs: this machine's own, or those of another Debian that `tests/lab/setup` has unpacked
//! into a folder.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache;

/// The releases of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum World {
    /// This machine's own: on Debian 12, Ceph 16.2 and Incus 6.0.
    #[default]
    Own,
    /// The daemons of Debian 13's Ceph 18.2 beside this machine's own client libraries. Set up for `make soak` alone.
    Second,
    /// Ceph and Incus of Debian's next release, daemons and clients. The lab's processes have that system as their root; this machine's
    /// own lies in `/host` there.
    Newest,
}

impl World {
    /// What `GUARDIAN_WORLD` says: `own`, `second` or `newest`; [`World::Own`] where it says nothing.
    ///
    /// # Panics
    /// It says anything else.
    #[must_use]
    pub fn from_env() -> World {
        match env::var("GUARDIAN_WORLD").as_deref() {
            Err(_) | Ok("" | "own") => World::Own,
            Ok("second") => World::Second,
            Ok("newest") => World::Newest,
            Ok(other) => panic!("GUARDIAN_WORLD is {other:?}, not own, second or newest"),
        }
    }

    /// The folder it was unpacked into, whole and ready; `None` for this machine's own.
    ///
    /// # Errors
    /// It is not there: why, in one line, as set-up left it.
    pub fn folder(self) -> Result<Option<PathBuf>> {
        match self {
            World::Own => Ok(None),
            World::Second => cache::prepared("ceph-trixie").map(Some),
            World::Newest => cache::prepared("newest-forky").map(Some),
        }
    }

    /// The program that stands in for the kernel's rbd driver, built for this world's libraries.
    pub(crate) fn mapper(self) -> Result<PathBuf> {
        match self {
            World::Own => Ok(cache::prepared("incus")?.join("mapper")),
            World::Second => bail!("this world has no Incus"),
            World::Newest => Ok(cache::prepared("newest-forky")?.join("usr/local/bin/rbd-mapper")),
        }
    }
}
