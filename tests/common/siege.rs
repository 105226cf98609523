//! What befalls guardians' own bodies, and what is around them.

use lab::{Host, Links, Process};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::Site;
use super::body::Body;
use super::dice::Dice;
use super::fault::monitors_are_cut;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MonitorsCut,
    LogHung,
    DiskFull,
    FewFiles,
    Stopped,
    Hog,
    LedgerSlow,
    MonitorStopped,
    KeyRotated,
    ClocksOff,
    LinkFlaps,
}

pub const KINDS: [Kind; 11] = [
    Kind::MonitorsCut,
    Kind::LogHung,
    Kind::DiskFull,
    Kind::FewFiles,
    Kind::Stopped,
    Kind::Hog,
    Kind::LedgerSlow,
    Kind::MonitorStopped,
    Kind::KeyRotated,
    Kind::ClocksOff,
    Kind::LinkFlaps,
];

/// Guardians that are besieged, by their places.
pub trait Besieged {
    fn site(&self) -> &Site;
    fn pid(&self, which: usize) -> Pid;
    fn host(&self, which: usize) -> Host;
    fn body(&self, which: usize) -> &Body;
}

impl Kind {
    /// Others can fence meanwhile.
    pub fn spares_others(self) -> bool {
        matches!(
            self,
            Self::MonitorsCut
                | Self::LogHung
                | Self::DiskFull
                | Self::FewFiles
                | Self::Stopped
                | Self::LinkFlaps
        )
    }

    /// Begins; what is returned ends with it.
    pub fn begin(self, siege: &impl Besieged, which: usize, dice: &mut Dice) -> Vec<Process> {
        let (pid, host, lab) = (siege.pid(which), siege.host(which), &siege.site().lab);
        match self {
            Self::MonitorsCut => monitors_are_cut(&host, true),
            Self::LogHung => siege.body(which).hang(),
            Self::DiskFull => {
                siege.body(which).fill_disk(pid);
                kill(pid, Signal::SIGUSR1).unwrap();
            }
            Self::FewFiles => siege.body(which).limit_files(pid, Some(2)),
            Self::Stopped => kill(pid, Signal::SIGSTOP).unwrap(),
            Self::Hog => {
                let hog = |number| host.spawn(&format!("hog-{number}"), "sh", ["-c", "while :; do :; done"]);
                return (0..4).map(|number| hog(number).unwrap()).collect();
            }
            Self::LedgerSlow => ledger_osds(siege).iter().for_each(|osd| lab.daemon(osd).stop().unwrap()),
            Self::MonitorStopped => lab.daemon("mon.a").stop().unwrap(),
            Self::KeyRotated => siege.site().rotate_key(true),
            Self::ClocksOff => {
                let minutes = i64::try_from(dice.below(10)).unwrap() - 5;
                lab.step_osd_clocks(minutes * 60).unwrap();
            }
            Self::LinkFlaps => lab.cut_links(host.name(), Links::Ceph).unwrap(),
        }
        Vec::new()
    }

    pub fn end(self, siege: &impl Besieged, which: usize, hogs: Vec<Process>) {
        let (pid, host, lab) = (siege.pid(which), siege.host(which), &siege.site().lab);
        match self {
            Self::MonitorsCut => monitors_are_cut(&host, false),
            Self::LogHung => siege.body(which).go_on(),
            Self::DiskFull => siege.body(which).empty_disk(pid),
            Self::FewFiles => {
                assert!(Body::measure(pid).is_ok(), "it ended: {}", siege.body(which).log());
                siege.body(which).limit_files(pid, None);
            }
            Self::Stopped => kill(pid, Signal::SIGCONT).unwrap(),
            Self::Hog => hogs.into_iter().for_each(|mut hog| hog.kill().unwrap()),
            Self::LedgerSlow => ledger_osds(siege).iter().for_each(|osd| lab.daemon(osd).cont().unwrap()),
            Self::MonitorStopped => lab.daemon("mon.a").cont().unwrap(),
            Self::KeyRotated => {}
            Self::ClocksOff => lab.step_osd_clocks(0).unwrap(),
            Self::LinkFlaps => lab.heal_links(host.name(), Links::Ceph).unwrap(),
        }
    }
}

/// Those that keep the ledger.
fn ledger_osds(siege: &impl Besieged) -> Vec<String> {
    let words = ["osd", "map", "rbd-guardian", "ledger"];
    let acting = siege.site().lab.ceph(&words).unwrap()["acting"].clone();
    let number = |osd: &Value| format!("osd.{}", osd.as_u64().unwrap());
    acting.as_array().unwrap().iter().map(number).collect()
}
