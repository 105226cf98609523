//! The package in real Debian roots: installed, upgraded, removed and purged. `make packages` builds it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::World;

/// What `make packages` built last.
fn package() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/packages");
    let files = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make packages`", folder.display()));
    let mut debs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    debs.retain(|path| path.extension().is_some_and(|end| end == "deb"));
    debs.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    debs.pop().expect("run `make packages`")
}

fn is_installed_and_purged(root: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages/install.sh");
    let mut command = Command::new("unshare");
    // What it mounts and starts ends with it.
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    let done = command.arg(script).arg(root).arg(package()).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{}:\n{said}", root.display());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn this_machines_debian_installs_upgrades_and_purges_the_package() {
    is_installed_and_purged(Path::new("/"));
}

#[test]
fn debian_13_installs_upgrades_and_purges_the_package() {
    is_installed_and_purged(&World::Second.folder().unwrap().unwrap());
}

#[test]
fn the_next_debian_installs_upgrades_and_purges_the_package() {
    is_installed_and_purged(&World::Newest.folder().unwrap().unwrap());
}
