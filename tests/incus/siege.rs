//! What real Incus may do to a guardian's body: huge commands by the dozen, and another certificate.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::body::Body;
use crate::common::guarded::{Guarded, SOON};
use crate::false_api::Pair;
use anyhow::ensure;
use lab::Topology;

/// Incus tells each listener of the whole body of each of these.
const COMMANDS: usize = 60;
const BYTES: usize = 3_900_000;
/// Longer than the guardian takes Incus for known without a new reading.
const LONG: Duration = Duration::from_secs(15);

#[test]
fn huge_commands_and_a_new_certificate_leave_the_guardian_its_view() {
    let site = Guarded::start(Topology::apart());
    site.cluster.launch("c1", "n1").unwrap();
    huge_commands(&site);
    certificates(&site);
}

/// Runs a command in the container `c1`, whose environment is this long, through the socket of its member.
pub(crate) fn exec(socket: &Path, bytes: usize) -> anyhow::Result<()> {
    let body = json!({"command": ["true"], "environment": {"A": "x".repeat(bytes)}, "interactive": false,
        "wait-for-websocket": false, "record-output": false})
    .to_string();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SOON))?;
    let head = format!(
        "POST /1.0/instances/c1/exec HTTP/1.1\r\nHost: incus\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"HTTP/1.1 202", "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Appends a certificate to those that guardians take for the cluster's.
pub(crate) fn announce(site: &Guarded, pair: &Pair) {
    let mut file = File::options().append(true).open(site.incus().cluster_certificate).unwrap();
    file.write_all(pair.certificate.as_bytes()).unwrap();
}

/// Gives the cluster another certificate.
pub(crate) fn update(site: &Guarded, pair: &Pair) {
    let [certificate, key] = ["next.crt", "next.key"].map(|name| site.path(name));
    fs::write(&certificate, &pair.certificate).unwrap();
    fs::write(&key, &pair.key).unwrap();
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    site.cluster.member("n1").incus(&["cluster", "update-certificate", &certificate, &key]).unwrap();
}

fn huge_commands(site: &Guarded) {
    let pid = site.with_daemon(|daemon| daemon.pid());
    let socket = site.cluster.member("n1").socket();
    let before = Body::measure(pid).unwrap();
    let mut slowest = Duration::ZERO;
    for _ in 0..COMMANDS {
        exec(&socket, BYTES).unwrap();
        let asked = Instant::now();
        assert_eq!(site.status().unwrap()["stage"], "leading");
        slowest = slowest.max(asked.elapsed());
    }
    // One event that is too long for the websocket.
    exec(&socket, 4 * BYTES).unwrap();
    site.wait_until_watching();
    let after = Body::measure(pid).unwrap();
    println!(
        "{COMMANDS} commands of {BYTES} bytes: {before:?}, then {after:?}; status took {slowest:.1?} at most"
    );
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    assert!(after.peak_mib < 512, "{after:?}");
}

fn certificates(site: &Guarded) {
    let file = site.incus().cluster_certificate;
    let [next, other] = [2100, 2101].map(Pair::valid_until);
    let doctor = || {
        let checks = site.guardian(&["doctor"]).json;
        let mut checks = checks.as_array().unwrap().clone().into_iter();
        checks.find(|check| check["check"] == "Incus's certificate").unwrap_or_default()
    };

    // Announced before, and the old one taken out as soon as the new one is in use: nothing is lost.
    announce(site, &next);
    update(site, &next);
    fs::write(&file, &next.certificate).unwrap();
    let began = Instant::now();
    while began.elapsed() < LONG {
        let status = site.status().unwrap();
        assert_eq!(status["platform"]["fresh"], true, "{status:#}\n{}", site.log_text());
    }
    site.wait_until_watching();
    assert!(!site.log_text().contains("\"view-lost\""), "{}", site.log_text());
    let told = doctor();
    assert_eq!(told["verdict"], "ok", "{told:#}");

    // Not announced: what is told has the command, and what it asks for is enough.
    update(site, &other);
    let blind = site.wait_for_status("to see nothing", SOON * 2, |status| {
        status["platform"]["trouble"].as_str().is_some_and(|why| why.contains("cluster.crt"))
    });
    println!("{}", blind["platform"]["trouble"]);
    site.wait_for_status("the alarm", SOON, |status| {
        let mut alarms = status["alarms"].as_array().into_iter().flatten();
        alarms.any(|alarm| alarm["code"] == "view-lost")
    });
    announce(site, &other);
    let announced = Instant::now();
    site.wait_until_watching();
    println!("sees again {:.1?} after the certificate was appended", announced.elapsed());
}
