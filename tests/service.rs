//! The unit as it is shipped, started by the real systemd, with a real cluster behind it.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{Answer, Site, answer, prepared, program};
use lab::systemd::{Files, Systemd};
use lab::{Pool, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNIT: &str = "rbd-guardian.service";
const SOON: Duration = Duration::from_secs(60);
/// `TimeoutStopSec=`.
const STOPS: Duration = Duration::from_secs(5);
/// `WatchdogSec=`, and what a machine under load needs beside it.
const WATCHED: Duration = Duration::from_secs(15 + 30);
/// Of ten; what docs/security.md says of it, and no more.
const EXPOSURE: &str = "16";
const CAP_NET_RAW: &str = "0000000000002000";

struct Service {
    systemd: Systemd,
}

impl Service {
    fn boot(site: &Site) -> Self {
        let host = site.lab.host("guard");
        let files = Files::new(host).unwrap();
        files.program("/usr/bin/rbd-guardian", &program()).unwrap();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
        let shipped = |name: &str| fs::read(deploy.join(name)).unwrap();
        files.put(&format!("/etc/systemd/system/{UNIT}"), shipped(UNIT), 0o644).unwrap();
        files.put("/usr/lib/sysusers.d/rbd-guardian.conf", shipped("rbd-guardian.sysusers"), 0o644).unwrap();
        files.put("/etc/ceph/ceph.conf", fs::read(site.lab.conf()).unwrap(), 0o644).unwrap();
        let keyring = fs::read(&site.keyring).unwrap();
        files.put("/etc/ceph/ceph.client.guardian.keyring", keyring, 0o600).unwrap();
        let config = format!("[[member]]\nname = \"n1\"\naddresses = [\"{}\"]\n", site.ip("n1"));
        files.put("/etc/rbd-guardian/rbd-guardian.toml", config, 0o644).unwrap();
        Self { systemd: Systemd::boot(host, &files, &[UNIT]).unwrap() }
    }

    fn systemctl(&self, words: &[&str]) -> Output {
        self.systemd.run(&[&["systemctl"], words].concat()).unwrap()
    }

    /// A verb as an operator runs it on that host.
    fn verb(&self, words: &[&str]) -> Answer {
        let answered = self.systemd.run(&[&["rbd-guardian", "--json"], words].concat()).unwrap();
        answer(words, &answered)
    }

    #[track_caller]
    fn wait(&self, what: &str, within: Duration, is: impl Fn(&Self) -> bool) {
        let found = wait_for(what, within, || Ok(is(self).then_some(())));
        let journal = || self.systemd.journal(UNIT).unwrap();
        found.unwrap_or_else(|error| {
            panic!(
                "{error:#}\n{}{}",
                String::from_utf8_lossy(&self.systemctl(&["status", UNIT]).stdout),
                journal()
            )
        });
    }

    fn is(&self, property: &str, value: &str) -> bool {
        self.systemd.property(UNIT, property).unwrap() == value
    }

    fn process(&self) -> Pid {
        self.systemd.main_process(UNIT).unwrap().unwrap()
    }

    fn leads(&self) {
        self.wait("systemd to hear that it leads", SOON, |service| {
            service.is("ActiveState", "active")
                && service.systemd.property(UNIT, "StatusText").unwrap().starts_with("leading")
        });
    }
}

/// What the kernel says of a process.
fn facts(pid: Pid, of: &[&str]) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let fact = |field: &&str| {
        let line = status.lines().find_map(|line| line.strip_prefix(*field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().to_owned()
    };
    of.iter().map(fact).collect()
}

/// The hard limit.
fn limit(process: &str, name: &str) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap_or(u64::MAX)
}

#[test]
fn the_shipped_unit_guards_is_watched_and_ends_under_a_real_systemd() {
    let site = Site::small();
    site.lab.pool("images", Pool::replicated(8, 2)).unwrap();
    if prepared(Systemd::available(site.lab.host("guard"))).is_none() {
        return;
    }
    let service = Service::boot(&site);
    service.leads();

    // Its own user has the key, one capability, and nothing else.
    let process = service.process();
    let user = fs::metadata(format!("/proc/{process}")).unwrap().uid();
    assert_ne!(user, 0);
    let confined = facts(process, &["CapEff", "CapBnd", "NoNewPrivs", "Seccomp"]);
    assert_eq!(confined, [CAP_NET_RAW, CAP_NET_RAW, "1", "2"]);
    let key = service.systemd.root().join("etc/ceph/ceph.client.guardian.keyring");
    assert_eq!(fs::metadata(key).unwrap().uid(), 0);
    // A machine whose root may not raise limits has what it has.
    let most = limit("self", "Max open files").min(131_072);
    assert_eq!(limit(&process.to_string(), "Max open files"), most);
    assert_eq!(limit(&process.to_string(), "Max core file size"), 0);

    assert_eq!(service.verb(&["fence", "n1"]).expect(0).json["state"], "sealed");
    let recordings = service.systemd.root().join("var/lib/rbd-guardian");
    kill(process, Signal::SIGUSR1).unwrap();
    service.wait("a recording", SOON, |_| {
        let names = fs::read_dir(&recordings).unwrap().map(|entry| entry.unwrap().file_name());
        names.into_iter().any(|name| name.to_string_lossy().ends_with(".jsonl.gz"))
    });
    let reloaded = service.systemctl(&["reload", UNIT]);
    assert!(reloaded.status.success(), "{reloaded:?}");
    assert_eq!(service.process(), process);

    // It hangs: systemd ends it, and starts it again.
    kill(process, Signal::SIGSTOP).unwrap();
    service.wait("systemd to miss the sign of life", WATCHED, |service| !service.is("NRestarts", "0"));
    service.leads();
    assert!(service.is("NRestarts", "1"));
    assert_ne!(service.process(), process);
    let journal = service.systemd.journal(UNIT).unwrap();
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    let status = service.verb(&["status"]).expect(0).json;
    assert_eq!(status["members"][0]["state"], "sealed", "{status:#}");

    let exposure =
        service.systemd.run(&["systemd-analyze", "security", "--no-pager", "--threshold", EXPOSURE, UNIT]);
    let exposure = exposure.unwrap();
    assert!(exposure.status.success(), "{}", String::from_utf8_lossy(&exposure.stdout));

    let began = Instant::now();
    let stopped = service.systemctl(&["stop", UNIT]);
    assert!(stopped.status.success() && began.elapsed() < STOPS, "{stopped:?} after {:?}", began.elapsed());
    println!("it ended in {:.1?}", began.elapsed());
    assert!(service.is("Result", "success") && service.is("ExecMainStatus", "0"));
    assert!(site.blocklist().contains_key(&format!("{}:0/0", site.ip("n1"))), "fences stay");
}
