//! A cluster of members.

use std::io::Write as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cache;
use crate::incus::member::Member;
use crate::lab::Lab;
use crate::pool::Pool;
use crate::wait::{report, wait_for};

/// The storage pool of the cluster and the OSD pool below it.
pub const POOL: (&str, &str) = ("remote", "incus");
/// The alias of the image whose containers write, see [`crate::incus::Container`].
pub const IMAGE: &str = "writer";

const DEADLINE: Duration = Duration::from_secs(60);
/// How soon a member that is asked must answer to be taken for one that is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// An Incus cluster. Dropping it ends its members; their lab goes on.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
}

impl Lab {
    /// Starts an Incus cluster on these hosts: a Ceph storage pool, a default profile whose root disk is on it, the image of a container
    /// that writes, `offline_threshold` 11 s (the least there is) and `healing_threshold` 15 s.
    ///
    /// # Errors
    /// No Incus here, or it does not come up in time; its logs are `log/incusd-*.out`.
    pub fn incus(&self, hosts: &[&str]) -> Result<Cluster> {
        Cluster::start(self, hosts).inspect_err(|_| self.keep())
    }
}

impl Cluster {
    fn start(lab: &Lab, hosts: &[&str]) -> Result<Cluster> {
        let members: Vec<_> = hosts.iter().map(|host| Member::new(lab.host(host))).collect::<Result<_>>()?;
        // The pool is made while the daemons start.
        thread::scope(|scope| {
            let mut started: Vec<_> =
                members.iter().map(|member| scope.spawn(|| member.first_boot())).collect();
            started.push(scope.spawn(|| lab.pool(POOL.1, Pool::replicated(16, 2))));
            started
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a start-up thread panicked")))
        })?;
        report("members started");
        let cluster = Cluster { members };
        cluster.form(lab)?;
        report("cluster formed");
        let image = cache::prepared("incus")?.join("container.tar.gz");
        cluster.first().incus(&["image", "import", &image.display().to_string(), "--alias", IMAGE])?;
        // Before a cluster is one, setting this makes incusd 6.0.4 panic.
        cluster.set(&[("cluster.offline_threshold", "11"), ("cluster.healing_threshold", "15")])?;
        report("image imported, thresholds set");
        Ok(cluster)
    }

    fn form(&self, lab: &Lab) -> Result<()> {
        let first = self.first();
        let log = lab.dir().join("incus/here/log");
        preseed(
            first,
            &json!({
                "config": {"core.https_address": first.endpoint(), "cluster.https_address": first.endpoint()},
                "storage_pools": [{"name": POOL.0, "driver": "ceph", "config": {"source": POOL.1, "volume.size": "64MiB"}}],
                "profiles": [{"name": "default",
                    "config": {
                        // No maps of users, which the machine may not have.
                        "security.privileged": "true",
                        // Not as a device: Incus would not move an instance that has one.
                        "raw.lxc": format!("lxc.mount.entry = {} log none bind,create=dir 0 0", log.display()),
                    },
                    "devices": {"root": {"path": "/", "pool": POOL.0, "type": "disk"}}}],
                "cluster": {"server_name": first.name(), "enabled": true},
            }),
        )?;
        report("first member is a cluster");
        for member in &self.members[1..] {
            let token = first.incus(&["cluster", "add", member.name(), "--quiet"])?;
            preseed(
                member,
                &json!({"cluster": {"enabled": true, "server_name": member.name(), "server_address": member.endpoint(),
                    "cluster_token": token.trim(), "member_config": []}}),
            )?;
            report(&format!("{} has joined", member.name()));
        }
        Ok(())
    }

    fn first(&self) -> &Member {
        &self.members[0]
    }

    /// All members.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member.
    ///
    /// # Panics
    /// There is none of this name: the test is wrong.
    #[must_use]
    pub fn member(&self, name: &str) -> &Member {
        self.members
            .iter()
            .find(|member| member.name() == name)
            .unwrap_or_else(|| panic!("the cluster has no member {name}"))
    }

    /// A member that sees a quorum of the cluster.
    ///
    /// # Errors
    /// There is none.
    pub fn live(&self) -> Result<&Member> {
        wait_for("a member with quorum", DEADLINE, || {
            Ok(self.members.iter().find(|member| {
                member.socket().exists()
                    && member.query_within(ALIVE, "/1.0/cluster/members?recursion=1").is_ok()
            }))
        })
    }

    /// The member that leads, by its name: the one that heals.
    ///
    /// # Errors
    /// No quorum.
    pub fn leader(&self) -> Result<String> {
        let members = self.live()?.query("/1.0/cluster/members?recursion=1")?;
        let leads = |member: &&Value| {
            member["roles"].as_array().is_some_and(|roles| roles.iter().any(|role| role == "database-leader"))
        };
        let leader = members.as_array().into_iter().flatten().find(leads);
        Ok(leader.and_then(|member| member["server_name"].as_str()).context("no leader")?.to_owned())
    }

    /// What a member is said to be by one that sees a quorum: `Online`, `Offline`, `Evacuated`.
    ///
    /// # Errors
    /// No quorum.
    pub fn status(&self, member: &str) -> Result<String> {
        let seen = self.live()?.query_within(ALIVE, &format!("/1.0/cluster/members/{member}"))?;
        Ok(seen["status"].as_str().context("no status")?.to_owned())
    }

    /// Waits for a status.
    ///
    /// # Errors
    /// It did not come before the deadline.
    pub fn wait_for_status(&self, member: &str, status: &str, deadline: Duration) -> Result<()> {
        wait_for(&format!("{member} to be {status}"), deadline, || {
            let seen = self.status(member)?;
            ensure!(seen == status, "it is {seen}");
            Ok(Some(()))
        })
    }

    /// Waits until every member is `Online`: after the loss of a leader, others seem offline too for a while, and refuse instances.
    ///
    /// # Errors
    /// They are not after a minute; with what was seen last.
    pub fn wait_until_online(&self) -> Result<()> {
        wait_for("all members to be online", DEADLINE, || {
            let members = self.live()?.query_within(ALIVE, "/1.0/cluster/members?recursion=1")?;
            let members = members.as_array().context("no list")?;
            let online = members.iter().filter(|member| member["status"] == "Online").count();
            ensure!(online == self.members.len(), "{online} of {} are", self.members.len());
            Ok(Some(()))
        })
    }

    /// Sets keys of the cluster's configuration, as in `("cluster.healing_threshold", "30")`.
    ///
    /// # Errors
    /// Incus's.
    pub fn set(&self, keys: &[(&str, &str)]) -> Result<()> {
        let words: Vec<_> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let words: Vec<_> = ["config", "set"].into_iter().chain(words.iter().map(String::as_str)).collect();
        self.live()?.incus(&words).map(drop)
    }

    /// A token with which a client of this name may enrol.
    ///
    /// # Errors
    /// Incus's.
    pub fn trust(&self, name: &str) -> Result<String> {
        let said = self.live()?.incus(&["config", "trust", "add", "--quiet", name])?;
        Ok(said.lines().last().context("no token")?.trim().to_owned())
    }
}

fn preseed(member: &Member, seed: &Value) -> Result<()> {
    let mut client = member.client(DEADLINE);
    client.args(["admin", "init", "--preseed"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = client.spawn()?;
    // YAML is a superset of JSON.
    child.stdin.take().context("no pipe")?.write_all(seed.to_string().as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{} refuses its preseed: {}",
        member.name(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
