//! Keys as the newest Ceph makes them: the newest librados reads them, and the guardian says where its own cannot.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use common::{Answer, LIMIT, Site, answer, prepared, program};
use lab::{Errno, Pool, Topology, World, WriteLog as _, monotonic, wait_for};

const SOON: Duration = Duration::from_secs(60);
const CIPHERS: &str = "auth_allowed_ciphers";
const INSECURE: &str = "mon_auth_allow_insecure_key";

/// A site whose operator makes keys with what is in `deploy/ceph`.
struct Keys {
    site: Site,
    create_key: PathBuf,
}

impl Keys {
    fn create(&self, words: &[&str], keyring: &Path) -> Output {
        let mut create = self.site.lab.host("admin").bounded(&self.create_key, LIMIT);
        create.args(words).arg("operator").arg(keyring).output().unwrap()
    }

    fn keyring(&self) -> PathBuf {
        self.site.lab.dir().join("operator.keyring")
    }

    /// Makes a key, and returns its keyring and the key.
    fn key(&self, words: &[&str]) -> (PathBuf, String) {
        let keyring = self.keyring();
        let made = self.create(words, &keyring);
        assert!(made.status.success(), "{words:?}: {made:?}");
        let text = fs::read_to_string(&keyring).unwrap();
        let key = text.lines().find_map(|line| line.trim().strip_prefix("key = ")).unwrap().to_owned();
        println!("create-key {words:?}: {}… ({} characters)", &key[..2], key.len());
        (keyring, key)
    }

    /// The cluster refuses a key of the type `aes`, and create-key says what to set.
    fn refused(&self) {
        let refused = self.create(&["--key-type", "aes"], &self.keyring());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        println!("create-key --key-type aes: {said}");
        assert!(!refused.status.success(), "{refused:?}");
        for word in [CIPHERS, INSECURE] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }

    /// What create-key says to set.
    fn allow_aes(&self) {
        self.site.lab.ceph(&["mon", "set", CIPHERS, "aes,aes256k"]).unwrap();
        self.site.lab.ceph(&["config", "set", "mon", INSECURE, "true"]).unwrap();
    }

    /// A whole fence with this key and one of the two librados: no write after the seal, and none of that client after the release.
    fn fence_and_release(&self, own: bool, keyring: &Path, member: &str) {
        let writer = self.site.lab.host(member).writer("images", member, 4).unwrap();
        writer.wait_for_acks(10, SOON).unwrap();
        let sealed = self.guardian(own, keyring, &["fence", member]).expect(0);
        let at = monotonic();
        assert_eq!(sealed.json["state"], "sealed", "{:#}", sealed.json);
        assert_eq!(writer.wait_for_error(at, SOON).unwrap(), Errno::ESHUTDOWN);
        let host = format!("{}:0/0", self.site.ip(member));
        assert!(self.site.blocklist().contains_key(&host));
        let seen = self.guardian(own, keyring, &["watchers"]).expect(0).json;
        assert!(seen.to_string().contains(member), "{seen:#}");
        let words = ["release", member, "--assert-powered-off", "--reason", "the test killed it"];
        let released = self.guardian(own, keyring, &words).expect(0);
        assert_eq!(released.json["state"], "released", "{:#}", released.json);
        assert!(!self.site.blocklist().contains_key(&host));
        let late = writer.taken_after(at, 4).unwrap();
        println!(
            "{member} sealed and released, this machine's own librados: {own}; {late} writes taken after the seal"
        );
        assert_eq!(late, 0);
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
fn keys_of_both_types_fence_and_what_a_cluster_or_librados_refuses_is_named() {
    if prepared(World::Newest.folder()).is_none() {
        return;
    }
    let site =
        Site::start(Topology::small(&["n1", "n2", "n3", "guard"]).world(World::Newest), &["n1", "n2", "n3"]);
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    let keys = Keys { create_key: site.create_key(), site };

    for member in ["n1", "n2", "n3"] {
        keys.site.lab.image("images", member, 16).unwrap();
    }

    // What the cluster makes by itself.
    keys.refused();
    let (keyring, key) = keys.key(&[]);
    assert!(key.starts_with("Ag"), "{key}");
    keys.fence_and_release(false, &keyring, "n1");

    let unread = keys.guardian(true, &keyring, &["status"]);
    println!("{}", unread.stderr);
    assert_ne!(unread.exit, 0);
    for word in ["librados", "19.2.6", "20.2.4", "aes", "too old"] {
        assert!(unread.stderr.contains(word), "{word}: {unread:#?}");
    }
    keys.refused();
    keys.guardian(false, &keyring, &["status"]).expect(0);

    // The key is replaced by one that both can read, once the cluster may make it. The monitors see the setting a moment later.
    keys.allow_aes();
    wait_for("a key of the type aes", SOON, || {
        Ok(keys.create(&["--key-type", "aes"], &keyring).status.success().then_some(()))
    })
    .unwrap();
    let (keyring, key) = keys.key(&["--key-type", "aes"]);
    assert!(key.starts_with("AQ"), "{key}");
    keys.fence_and_release(true, &keyring, "n2");
    keys.fence_and_release(false, &keyring, "n3");

    let (_, key) = keys.key(&["--key-type", "aes256k"]);
    assert!(key.starts_with("Ag"), "{key}");
    let wrong = keys.create(&["--key-type", "rsa"], &keyring);
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}
