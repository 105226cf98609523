//! What `tests/lab/setup` has prepared: folders in a cache that survives the labs.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// A prepared folder. Set-up gives a folder its name only when it is whole.
///
/// # Errors
/// It is not there: why, in one line.
pub(crate) fn prepared(name: &str) -> Result<PathBuf> {
    let cache = env::var_os("RBD_GUARDIAN_LAB_CACHE")
        .map_or_else(|| "/var/cache/rbd-guardian-lab".into(), PathBuf::from);
    let folder = cache.join(name);
    if folder.is_dir() {
        return Ok(folder);
    }
    match fs::read_to_string(cache.join(format!("{name}.why-not"))) {
        Ok(reason) => bail!("{}", reason.trim()),
        Err(_) => bail!("{} is not there: run tests/lab/setup", folder.display()),
    }
}
