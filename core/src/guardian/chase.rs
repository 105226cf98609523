//! Client instances that appear on a fenced member after its fence was planned (docs/design.md#hold).
//!
//! Where the whole host is refused they are remembered, so that each has an entry of its own before the host is
//! released. Where only known clients are, they are fenced as they appear, and the gate stays closed meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fence::Fence;
use crate::fence::chasing::{CHASED, REMEMBERED};
use crate::guardian::Guardian;
use crate::guardian::report::{Alarm, Level};
use crate::model::addr::ClientAddr;
use crate::model::ceph_snapshot::{Clients, SeenAt};
use crate::model::record::FenceState;
use crate::model::target::Coverage;

/// How often clients are looked for while one could appear that no entry refuses.
const CHASE_EVERY: Duration = Duration::from_secs(5);
/// The same while whole hosts are refused: a monitor forgets a session after five minutes (`mon_session_timeout`). A
/// member that is back without a reboot shows its old clients for as long as nobody reboots it.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);

impl Guardian {
    /// Is a look at clients due for the sake of a held fence?
    pub(super) fn chase_is_due(&self) -> bool {
        let held = |fence: &&Fence| fence.member().is_some() && fence.release().is_none();
        let hunts = self.hunts_ghosts();
        let open = |fence: &Fence| hunts || self.chased_ips(fence).next().is_some();
        let back = |fence: &Fence| fence.member().is_some_and(|name| self.returned.contains_key(name));
        let mut every = self
            .fences
            .values()
            .filter(held)
            .map(|fence| if open(fence) || back(fence) { CHASE_EVERY } else { REMEMBER_EVERY });
        let Some(first) = every.next() else { return false };
        let every = every.fold(first, Duration::min);
        self.looked_at.is_none_or(|at| self.now.boot >= at + every)
    }

    /// Addresses of the member that no whole-host entry of the fence refuses. One that somebody else claims is nobody's.
    fn chased_ips(&self, fence: &Fence) -> impl Iterator<Item = std::net::IpAddr> {
        let name = fence.member().unwrap_or_default();
        let members = self.members();
        let hosts = fence.hosts();
        let mut own = members.get(name).map(|member| member.addresses.clone()).unwrap_or_default();
        let single = self.world.as_ref().map(|world| self.single_addresses(name, world)).unwrap_or_default();
        own.retain(|ip| !single.contains_key(ip));
        let unshared = move |ip: &std::net::IpAddr| {
            members.0.iter().filter(|member| member.addresses.contains(ip)).count() == 1
        };
        own.into_iter().filter(move |ip| !hosts.contains(ip)).filter(unshared)
    }

    /// Takes note of the clients of a look; `before` are those of the look before.
    pub(super) fn chase(&mut self, before: &Clients) {
        let Some(world) = &self.world else { return };
        let strangers = self.strangers();
        let ours = |client: &ClientAddr| {
            world.own.iter().any(|own| own.client() == Some(*client)) || strangers.has(client)
        };
        // A module of a mgr uses images before the mgr has told the monitors of that client; it has no session as a
        // client. Each command of an agent has one, and is gone at the next look. Both are believed when they are seen again.
        let believed = |client: &ClientAddr, seen: &BTreeSet<SeenAt>| {
            let session = seen.iter().any(|at| matches!(at, SeenAt::Session(_)));
            let uses = seen.iter().any(|at| matches!(at, SeenAt::Watch(_) | SeenAt::Lock(_)));
            (session && uses) || before.contains_key(client)
        };
        let clients: BTreeSet<ClientAddr> = world
            .clients
            .iter()
            .filter(|(client, seen)| !ours(client) && believed(client, seen))
            .map(|(client, _)| *client)
            .collect();
        let mut found = Vec::new();
        for (id, fence) in &self.fences {
            let Some(name) = fence.member() else { continue };
            if fence.release().is_some() || fence.record().state == FenceState::Intended {
                continue;
            }
            let open: BTreeSet<_> = self.chased_ips(fence).collect();
            let hosts = fence.hosts();
            let mut free: BTreeSet<ClientAddr> =
                clients.iter().copied().filter(|client| open.contains(&client.ip)).collect();
            // Its clients at other addresses, as its images show them.
            let own = if fence.record().coverage == Coverage::WholeHost {
                self.book.members.get(name).map(|record| record.clients.clone()).unwrap_or_default()
            } else {
                self.known_of(name, world).clients
            };
            free.extend(own.into_iter().filter(|client| !hosts.contains(&client.ip) && !ours(client)));
            let under: Vec<ClientAddr> =
                clients.iter().copied().filter(|client| hosts.contains(&client.ip)).collect();
            found.push((id.clone(), free, under));
        }
        let mut chased = Vec::new();
        for (id, free, under) in found {
            let Some(fence) = self.fences.get_mut(&id) else { continue };
            let new = fence.chase(free.into_iter());
            fence.remember(under.into_iter());
            if !new.is_empty() {
                let names = new.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                chased.push((fence.member().map(str::to_owned), names));
            }
        }
        for (member, names) in chased {
            let text = format!(
                "{names} appeared on it after it was fenced: refused as well, and the gate is closed until that is proved"
            );
            self.log(Level::Warn, "chased", member, text);
        }
    }

    /// Clients beyond what a fence takes.
    pub(super) fn crowds(&self) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        for fence in self.fences.values() {
            let Some(name) = fence.member() else { continue };
            let mut alarm = |text: String, advice: String| {
                let (code, member) = ("too-many-clients", Some(name.to_owned()));
                alarms.push(Alarm { code, member, text, about: None, advice: vec![advice] });
            };
            if fence.crowd().is_beyond() {
                let text = format!(
                    "more than {CHASED} client instances began on it after it was fenced: the others are not refused, and \
                     the gate is closed"
                );
                alarm(text, format!("stop what starts them on {name}, or cut its power"));
            }
            if fence.crowd().is_forgotten() {
                let text = format!(
                    "more than {REMEMBERED} client instances began on it while it is refused: the others get no entry of \
                     their own when it is released"
                );
                alarm(text, format!("reboot {name} before it is released"));
            }
        }
        alarms
    }
}
