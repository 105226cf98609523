//! Client instances that appear on a fenced member after its fence was planned (DESIGN §3.4).
//!
//! Where the whole host is refused they are remembered, so that each has an entry of its own before the host is
//! released. Where only known clients are, they are fenced as they appear, and the gate stays closed meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Guardian;
use super::case::Case;
use super::report::Level;
use crate::domain::addr::ClientAddr;
use crate::domain::record::FenceState;
use crate::domain::world::{Clients, SeenAt};

/// How often clients are looked for while one could appear that no entry refuses.
const CHASE_EVERY: Duration = Duration::from_secs(5);
/// The same while whole hosts are refused: a monitor forgets a session after five minutes (`mon_session_timeout`). A
/// member that is back without a reboot shows its old clients for as long as nobody reboots it.
const REMEMBER_EVERY: Duration = Duration::from_secs(60);

impl Guardian {
    /// Is a look at clients due for the sake of a held fence?
    pub(super) fn chase_is_due(&self) -> bool {
        let held = |case: &&Case| case.member().is_some() && case.release.is_none();
        let hunts = self.hunts_ghosts();
        let open = |case: &Case| hunts || self.chased_ips(case).next().is_some();
        let back = |case: &Case| case.member().is_some_and(|name| self.returned.contains_key(name));
        let mut every = self
            .cases
            .values()
            .filter(held)
            .map(|case| if open(case) || back(case) { CHASE_EVERY } else { REMEMBER_EVERY });
        let Some(first) = every.next() else { return false };
        let every = every.fold(first, Duration::min);
        self.looked_at.is_none_or(|at| self.now.boot >= at + every)
    }

    /// Addresses of the member that no whole-host entry of the fence refuses. One that somebody else claims is nobody's.
    fn chased_ips(&self, case: &Case) -> impl Iterator<Item = std::net::IpAddr> {
        let name = case.member().unwrap_or_default();
        let members = self.members();
        let hosts = case.hosts();
        let own = members.get(name).map(|member| member.addresses.clone()).unwrap_or_default();
        let unshared = move |ip: &std::net::IpAddr| {
            members.0.iter().filter(|member| member.addresses.contains(ip)).count() == 1
        };
        own.into_iter().filter(move |ip| !hosts.contains(ip)).filter(unshared)
    }

    /// Takes note of the clients of a look; `before` are those of the look before.
    pub(super) fn chase(&mut self, before: &Clients) {
        let Some(world) = &self.world else { return };
        let ours = |client: &ClientAddr| {
            world.own.iter().any(|own| own.client() == Some(*client))
                || world.daemons.iter().any(|daemon| daemon.clients.contains(client))
        };
        // A module of a mgr uses images before the mgr has told the monitors of that client; it has no session as a
        // client. What has none is believed when it is seen again.
        let believed = |client: &ClientAddr, seen: &BTreeSet<SeenAt>| {
            let session = seen.iter().any(|at| matches!(at, SeenAt::Session(_)));
            session || before.contains_key(client)
        };
        let clients: BTreeSet<ClientAddr> = world
            .clients
            .iter()
            .filter(|(client, seen)| !ours(client) && believed(client, seen))
            .map(|(client, _)| *client)
            .collect();
        let mut chased = Vec::new();
        let held: Vec<_> = self.cases.keys().cloned().collect();
        for id in held {
            let Some(case) = self.cases.get(&id) else { continue };
            if case.member().is_none() || case.release.is_some() || case.record.state == FenceState::Intended
            {
                continue;
            }
            let open: BTreeSet<_> = self.chased_ips(case).collect();
            let hosts = case.hosts();
            let Some(case) = self.cases.get_mut(&id) else { continue };
            let new = case.chase(clients.iter().copied().filter(|client| open.contains(&client.ip)));
            case.remember(clients.iter().copied().filter(|client| hosts.contains(&client.ip)));
            if !new.is_empty() {
                let names = new.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                chased.push((case.member().map(str::to_owned), names));
            }
        }
        for (member, names) in chased {
            let text = format!(
                "{names} appeared on it after it was fenced: refused as well, and the gate is closed until that is proved"
            );
            self.log(Level::Warn, "chased", member, text);
        }
    }
}
