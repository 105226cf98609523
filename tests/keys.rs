//! Keys as the newest Ceph makes them: the newest librados reads them, and the guardian says where its own cannot.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use common::{Answer, LIMIT, Site, answer, prepared, program};
use lab::{Pool, Topology, World};

/// A site whose operator makes keys with what is in `deploy/ceph`.
struct Keys {
    site: Site,
    tools: PathBuf,
}

impl Keys {
    fn create(&self, words: &[&str], keyring: &Path) -> Output {
        let mut create = self.site.lab.host("admin").bounded(self.tools.join("create-key"), LIMIT);
        create.args(words).arg("operator").arg(keyring).output().unwrap()
    }

    /// Makes a key, and returns its keyring and the key.
    fn key(&self, words: &[&str]) -> (PathBuf, String) {
        let keyring = self.site.lab.dir().join("operator.keyring");
        let made = self.create(words, &keyring);
        assert!(made.status.success(), "{words:?}: {made:?}");
        let text = fs::read_to_string(&keyring).unwrap();
        let key = text.lines().find_map(|line| line.trim().strip_prefix("key = ")).unwrap().to_owned();
        println!("create-key {words:?}: {}… ({} characters)", &key[..2], key.len());
        (keyring, key)
    }

    /// A verb with this key, by the guardian linked to the newest librados, or to this machine's own.
    fn guardian(&self, own: bool, keyring: &Path, words: &[&str]) -> Answer {
        let guard = self.site.lab.host("guard");
        let mut command = if own { guard.bounded("chroot", LIMIT) } else { guard.bounded(program(), LIMIT) };
        if own {
            command.arg("/host").arg(program());
        }
        let config = self.site.lab.dir().join("rbd-guardian.toml");
        command.arg("--config").arg(config).args(["--id", "operator", "--keyring"]).arg(keyring);
        answer(words, &command.arg("--json").args(words).output().unwrap())
    }
}

#[test]
fn a_key_that_the_cluster_makes_will_do_and_a_librados_that_is_too_old_for_it_is_named() {
    if prepared(World::Newest.folder()).is_none() {
        return;
    }
    let site = Site::start(Topology::small(&["n1", "n2", "guard"]).world(World::Newest), &["n1", "n2"]);
    let tools = site.lab.dir().join("deploy");
    fs::create_dir(&tools).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ceph")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, tools.join(path.file_name().unwrap())).unwrap();
    }
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let keys = Keys { site, tools };

    // What the cluster makes by itself.
    let (keyring, key) = keys.key(&[]);
    assert!(key.starts_with("Ag"), "{key}");
    let sealed = keys.guardian(false, &keyring, &["fence", "n1"]).expect(0);
    assert_eq!(sealed.json["state"], "sealed");

    let unread = keys.guardian(true, &keyring, &["status"]);
    println!("{}", unread.stderr);
    assert_ne!(unread.exit, 0);
    for word in ["librados", "19.2.6", "20.2.4", "aes", "too old"] {
        assert!(unread.stderr.contains(word), "{word}: {unread:#?}");
    }

    let wrong = keys.create(&["--key-type", "rsa"], &keyring);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}
