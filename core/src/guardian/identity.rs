//! What is said of members whose machine cannot be told from another, and of those that are back without a proof.

use crate::guardian::Guardian;
use crate::guardian::report::Alarm;
use crate::model::machine::Machine;
use crate::model::record::MemberRecord;
use crate::rules::reboot_proof::NotProved;

impl Guardian {
    /// Healthy members whose API shows nothing that tells their machine from another: a fence of one is never released by
    /// proof, and that is to be known before.
    pub(super) fn unidentified(&self) -> Vec<Alarm> {
        let alarm = |name: &String| {
            Alarm {
            code: "no-machine-identity",
            member: Some(name.clone()),
            text: "nothing that its API shows tells its machine from another (a UUID, a serial number or a network card \
                   that no other member has): if it is fenced, no reboot proves that it may be released"
                .to_owned(),
            about: None,
            advice: vec![
                format!("see what it shows: incus info --resources --target {name}"),
                format!("after a fence and a reboot, release it by hand: {}", assert_off(name)),
            ],
        }
        };
        self.unidentified.iter().map(alarm).collect()
    }

    /// Whether the machine of a healthy member can be told from those of the others, now that it told its state.
    pub(super) fn note_identity(&mut self, name: &str) {
        if self.machine_of(name).is_known() {
            self.unidentified.remove(name);
        } else {
            self.unidentified.insert(name.to_owned());
        }
    }

    /// What tells the member's machine from those of the other members.
    pub(super) fn machine_of(&self, name: &str) -> Machine {
        let marks = |member: &MemberRecord| Machine::parse(member.machine.as_deref().unwrap_or_default());
        // One that is a member no more may have been this machine under another name.
        let current = |other: &&MemberRecord| {
            self.view.as_ref().is_none_or(|view| view.members.contains_key(&other.name))
        };
        let others = self.book.members.values().filter(|other| other.name != name).filter(current);
        let others: Vec<Machine> = others.map(marks).collect();
        self.book.members.get(name).map(marks).unwrap_or_default().apart_from(&others)
    }
}

/// How a member that is back without a proof of a reboot comes back to life.
pub(super) fn ways_back(name: &str, not: &NotProved) -> Vec<String> {
    let waits = format!(
        "do not run `incus cluster restore {name}` before it is released: its old instances may still run"
    );
    let by_proof = match not {
        NotProved::BootedBeforeSeal { .. } => {
            Some(format!("reboot {name}: it is released by itself when it has"))
        }
        NotProved::SameBoot { .. } => Some(format!(
            "reboot {name}, also if it was rebooted since the fence: it is released by itself when it tells a shorter uptime"
        )),
        NotProved::NoSample | NotProved::NoSeal | NotProved::NoIdentity | NotProved::OtherMachine { .. } => {
            None
        }
    };
    let by_hand = || {
        format!("if you know that {name} was powered off or rebooted since the fence: {}", assert_off(name))
    };
    vec![by_proof.unwrap_or_else(by_hand), waits]
}

fn assert_off(name: &str) -> String {
    format!("rbd-guardian release {name} --assert-powered-off --reason TEXT")
}
