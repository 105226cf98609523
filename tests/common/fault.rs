//! Faults drawn at random, for whatever a lab consists of.

use std::time::Duration;
use std::{fmt, thread};

use lab::{Host, Lab, Links};

use super::LIMIT;
use super::dice::Dice;

/// What goes wrong, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL, and started again at once.
    KillGuardian(usize),
    StopGuardian(usize, Duration),
    /// SIGSTOP of a daemon of Ceph, as in `mon.a`.
    Stop(&'static str, Duration),
    /// SIGKILL of one.
    Kill(&'static str, Duration),
    /// Of these cables of a host.
    Flap(&'static str, Links, Duration),
    /// SIGKILL of a member's incusd: its containers go on.
    KillIncus(&'static str, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillGuardian(which) => write!(f, "guardian {which} killed"),
            Self::StopGuardian(which, time) => write!(f, "guardian {which} stopped for {time:.1?}"),
            Self::Stop(daemon, time) => write!(f, "{daemon} stopped for {time:.1?}"),
            Self::Kill(daemon, time) => write!(f, "{daemon} killed for {time:.1?}"),
            Self::Flap(host, links, time) => write!(f, "{host}'s link ({links:?}) flaps for {time:.1?}"),
            Self::KillIncus(member, time) => write!(f, "incusd of {member} killed for {time:.1?}"),
        }
    }
}

/// What faults befall.
pub trait Stage {
    fn lab(&self) -> &Lab;
    /// SIGKILL, and a new start.
    fn kill_guardian(&mut self, which: usize);
    /// SIGSTOP, or SIGCONT.
    fn stop_guardian(&mut self, which: usize, stopped: bool);
    /// SIGKILL of a member's incusd, or a new start.
    fn kill_incus(&mut self, member: &str, killed: bool);
    /// Pulls cables of a host, or plugs them in again.
    fn pull(&mut self, host: &str, links: Links, pulled: bool) {
        let lab = self.lab();
        if pulled { lab.cut_links(host, links) } else { lab.heal_links(host, links) }.unwrap();
    }
}

impl Fault {
    /// From its beginning to its end.
    pub fn befall(self, stage: &mut impl Stage) {
        match self {
            Self::KillGuardian(which) => stage.kill_guardian(which),
            Self::StopGuardian(which, time) => {
                stage.stop_guardian(which, true);
                pass(time);
                stage.stop_guardian(which, false);
            }
            Self::Stop(daemon, time) => {
                stage.lab().daemon(daemon).stop().unwrap();
                pass(time);
                stage.lab().daemon(daemon).cont().unwrap();
            }
            Self::Kill(daemon, time) => {
                stage.lab().daemon(daemon).kill().unwrap();
                pass(time);
                stage.lab().daemon(daemon).start().unwrap();
            }
            Self::Flap(host, links, time) => {
                stage.pull(host, links, true);
                pass(time);
                stage.pull(host, links, false);
            }
            Self::KillIncus(member, time) => {
                stage.kill_incus(member, true);
                pass(time);
                stage.kill_incus(member, false);
            }
        }
    }
}

/// Lets drawn time pass: nothing is waited for.
pub fn pass(time: Duration) {
    thread::sleep(time);
}

/// From 0.1 to 10 s: who is stopped for so long is stopped past a lease, or not.
pub fn span(dice: &mut Dice) -> Duration {
    Duration::from_millis(100) + dice.millis(9_900)
}

/// In words, in their order.
pub fn told(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join(", ")
}

/// All monitors' ports, in the host's own namespace: OSDs answer it, also the ledger's.
pub fn monitors_are_cut(host: &Host, cut: bool) {
    let rules = if cut {
        "table inet deaf {
           chain out { type filter hook output priority 0; tcp dport { 3300, 6789 } drop; }
           chain in { type filter hook input priority 0; tcp sport { 3300, 6789 } drop; }
         }"
    } else {
        "delete table inet deaf"
    };
    let told = host.bounded("nft", LIMIT).arg(rules).output().unwrap();
    assert!(told.status.success(), "{told:?}");
}
