//! Addresses as operators have them, on real Incus and real Ceph: members with two of them, one that moves between members,
//! and a backup host that opens members' images. Whoever is a member's is refused with it or told not to be; nobody else is.

use std::net::IpAddr;
use std::time::Duration;

use crate::bare::fenced;
use crate::common::guarded::{Guarded, MEMBERS, SOON, member};
use lab::incus::POOL;
use lab::{Errno, IdleClient, Links, Pool, Topology, WriteLog as _, Writer, monotonic, wait_for};
use serde_json::Value;

const VAULT: &str = "vault";
/// For so long a backup has an image open: several sweeps see it.
const OPEN: Duration = Duration::from_secs(4);

fn ip(site: &Guarded, host: &str, words: &str) {
    let mut ip = site.lab().host(host).command("ip");
    let status = ip.args(words.split(' ')).status().unwrap();
    assert!(status.success(), "ip {words} on {host}: {status}");
}

/// Makes a client on this host that has another address than the others there.
fn from_address(site: &Guarded, host: &str, address: IpAddr, image: Option<&str>) -> IdleClient {
    let route = |from: IpAddr| ip(site, host, &format!("route replace 10.77.0.0/24 dev eth0 src {from}"));
    route(address);
    let at = site.lab().host(host);
    let client = image.map_or_else(|| at.idle_client(VAULT), |image| at.idle_user(POOL.1, image));
    let mut client = client.unwrap();
    assert_eq!(client.try_write("lab.before").unwrap(), Ok(()));
    route(at.ip());
    assert!(client.address().starts_with(&format!("{address}:")), "{client:?}");
    client
}

/// Opens the image of a stopped instance on the backup host for a while. The instance runs before and after.
fn backs_up(site: &Guarded, name: &str) {
    let live = site.cluster.live().unwrap();
    let container = site.cluster.container(name);
    live.incus(&["stop", name, "--force"]).unwrap();
    let mut opened = site.lab().host("backup").idle_user(POOL.1, &container.image()).unwrap();
    let until = monotonic() + OPEN;
    wait_for("a while", SOON, || Ok((monotonic() > until).then_some(()))).unwrap();
    opened.close_image().unwrap();
    live.incus(&["start", name]).unwrap();
}

fn entries(answer: &Value) -> Vec<String> {
    let entries = answer["entries"].as_array().into_iter().flatten();
    entries.map(|entry| entry["entry"].as_str().unwrap().to_owned()).collect()
}

/// What goes on all the time, and must not notice anything.
struct Bystanders {
    backup: Writer,
    /// It has the address that moved.
    floater: Option<IdleClient>,
}

impl Bystanders {
    #[track_caller]
    fn write(&mut self, site: &Guarded) {
        self.backup.wait_for_acks(10, SOON).unwrap();
        assert_eq!(self.backup.errors().unwrap(), [], "the backup host");
        if let Some(floater) = &mut self.floater {
            assert_eq!(floater.try_write("lab.floating").unwrap(), Ok(()), "who has the address now");
        }
        let backup = format!("{}:", site.site.ip("backup"));
        let entries = site.site.blocklist();
        assert!(entries.keys().all(|entry| !entry.starts_with(&backup)), "{entries:?}");
    }
}

#[test]
fn inv1_inv6_a_lost_member_is_refused_at_each_of_its_addresses_and_nobody_else_with_it() {
    let site = Guarded::without_daemon(Topology::apart().host("backup", &[]));
    let leader = site.cluster.leader().unwrap();
    let [lost, listed] =
        MEMBERS.into_iter().filter(|name| *name != leader).collect::<Vec<_>>().try_into().unwrap();
    site.configure("[guard]\nevery = \"1s\"\n[trigger]\ncool_down = \"0s\"\n");
    site.cluster.set(&[("cluster.healing_threshold", "0")]).unwrap();
    site.lab().pool(VAULT, Pool::replicated(8, 2)).unwrap();
    site.lab().image(VAULT, "disk", 16).unwrap();
    let backup = site.lab().host("backup").writer(VAULT, "disk", 1).unwrap();
    let mut bystanders = Bystanders { backup, floater: None };
    let [second, floating, unlisted] = [1, 2, 3].map(|number| site.lab().spare_address(number));
    for (host, address) in [(lost, second), (lost, floating), (listed, unlisted)] {
        ip(&site, host, &format!("addr add {address}/24 dev eth0"));
    }
    let list = format!("user.rbd-guardian.ceph-addresses={}", site.site.ip(listed));
    site.cluster.live().unwrap().incus(&["cluster", "set", listed, &list]).unwrap();
    site.guardian(&["gate", "install"]).expect(0);
    site.start_daemon();
    site.wait_until_watching();
    let c1 = site.cluster.launch("c1", lost).unwrap();
    let c2 = site.cluster.launch("c2", listed).unwrap();
    for (name, at) in [("b1", lost), ("b2", listed)] {
        site.cluster.launch(name, at).unwrap();
        site.wait_until_known(at);
    }
    let stale = [(&c1, lost), (&c2, listed)].map(|(one, at)| one.wait_for_writer(at, SOON).unwrap());

    // Clients of their members' images at the second address of each.
    let mut beside = from_address(&site, lost, second, Some(&c1.image()));
    let mut unknown = from_address(&site, listed, unlisted, Some(&c2.image()));
    for name in ["b1", "b2"] {
        backs_up(&site, name);
    }
    let status = site.wait_for_status("the second address to be known", SOON, |status| {
        let line = member(status, lost);
        line["addresses"].as_array().into_iter().flatten().any(|known| known["address"] == second.to_string())
    });
    println!(
        "{lost}: {}\n{listed}: {}",
        member(&status, lost)["addresses"],
        member(&status, listed)["addresses"]
    );
    let own = site.site.ip("backup");
    for name in [lost, listed] {
        let known = member(&status, name)["addresses"].to_string();
        assert!(!known.contains(&own), "{name} has the backup host's address: {known}");
    }

    // It is lost, and another member has the address that moves.
    site.lab().cut_links(lost, Links::Both).unwrap();
    site.cluster.wait_for_status(lost, "Offline", SOON).unwrap();
    ip(&site, lost, &format!("addr del {floating}/24 dev eth0"));
    ip(&site, &leader, &format!("addr add {floating}/24 dev eth0"));
    bystanders.floater = Some(from_address(&site, &leader, floating, None));
    site.wait_for_state(lost, "suspect", SOON);
    let sealed = fenced(&site, lost);
    let at = monotonic();
    println!("{lost}: {} {:?}", sealed["coverage"], entries(&sealed));
    assert_eq!((&sealed["state"], &sealed["coverage"]["verdict"]), (&"sealed".into(), &"whole-host".into()));
    site.lab().heal_links(lost, Links::Both).unwrap();
    assert_eq!(beside.try_write("lab.after").unwrap(), Err(Errno::ESHUTDOWN), "at its second address");
    stale[0].wait_for_error(at, SOON).unwrap();
    assert_eq!(stale[0].taken_after(at, 1).unwrap(), 0, "at its first");
    bystanders.write(&site);
    let fenced = entries(&sealed);
    assert!(!fenced.contains(&format!("{floating}:0/0")), "{fenced:?}");

    // The operator's list is complete: its host is not refused at the other address, the client that is known there is.
    let why = ["--although-reachable", "--over-brake", "--reason", "its storage is replaced"];
    let sealed = site.insist(&[&["fence", listed], &why[..]].concat()).json;
    let at = monotonic();
    let fenced = entries(&sealed);
    println!("{listed}: {} {fenced:?}", sealed["coverage"]);
    assert_eq!(
        (&sealed["state"], &sealed["coverage"]["verdict"]),
        (&"sealed".into(), &"known-clients".into())
    );
    assert!(!fenced.contains(&format!("{unlisted}:0/0")) && fenced.contains(&unknown.address().to_owned()));
    assert_eq!(unknown.try_write("lab.after").unwrap(), Err(Errno::ESHUTDOWN), "at {unlisted}");
    stale[1].wait_for_error(at, SOON).unwrap();
    assert_eq!(stale[1].taken_after(at, 1).unwrap(), 0);
    bystanders.write(&site);
}
