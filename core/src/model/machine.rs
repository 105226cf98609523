//! What tells one machine from another of the same name (docs/decisions/0007).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Marks of a machine that outlast a reboot: what firmware says of it, and the addresses of its network cards.
///
/// As text, in the ledger and in recordings: `uuid=… system=… mac=…`. A word without a name is a `system.uuid`, which is
/// all that older versions recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// By what they are of; one of each.
    firmware: BTreeMap<Part, String>,
    /// Of its physical network cards, each found once.
    macs: BTreeSet<String>,
}

/// What firmware numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `system.uuid`.
    Uuid,
    /// The machine's serial number.
    System,
    Board,
    Chassis,
}

const PARTS: [Part; 4] = [Part::Uuid, Part::System, Part::Board, Part::Chassis];
const MAC: &str = "mac";

/// How two sets of marks compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineComparison {
    /// The same machine.
    Same,
    /// Another one: a number of the firmware differs, or it has none of the network cards.
    Other,
    /// Nothing that both have tells.
    Unknown,
}

/// What boards carry whose maker wrote nothing (dmidecode's and vendors' defaults), in lower case without blanks.
const UNWRITTEN: [&str; 22] = [
    "tobefilledbyo.e.m.",
    "tobefilledbyoem",
    "defaultstring",
    "notspecified",
    "notapplicable",
    "notavailable",
    "notprovided",
    "n/a",
    "na",
    "none",
    "null",
    "unknown",
    "invalid",
    "empty",
    "oem",
    "o.e.m.",
    "systemserialnumber",
    "chassisserialnumber",
    "baseboardserialnumber",
    "serialnumber",
    "123456789",
    "0123456789",
];
/// UUIDs that many boards have: of AMI, in both byte orders, of Dell without a service tag, and counted ones.
const UNWRITTEN_UUIDS: [&str; 5] = [
    "03000200040005000006000700080009",
    "00020003000400050006000700080009",
    "4c4c4544002020108020a0c04f202020",
    "4c4c454400002010802080c04f202020",
    "0123456789abcdef0123456789abcdef",
];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::System => "system",
            Self::Board => "board",
            Self::Chassis => "chassis",
        }
    }
}

impl Machine {
    /// From text that [`Machine`] wrote, or an older version.
    pub fn parse(text: &str) -> Self {
        let mut machine = Self::default();
        for word in text.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((Part::Uuid.name(), word));
            if name == MAC {
                machine.add_mac(value);
            } else if let Some(part) = PARTS.into_iter().find(|part| part.name() == name) {
                machine.add(part, value);
            }
        }
        machine
    }

    /// What firmware says; nothing, if that is no number of this machine alone.
    pub fn add(&mut self, part: Part, value: &str) {
        let value: String = value
            .trim()
            .to_lowercase()
            .chars()
            .map(|c| if c.is_whitespace() || c == '=' || c.is_control() { '_' } else { c })
            .collect();
        if is_written(&value) {
            self.firmware.insert(part, value);
        }
    }

    /// The addresses of its network cards. One that several have is a bond's or a bridge's, and says which link came first.
    pub fn add_cards<'a>(&mut self, macs: impl IntoIterator<Item = &'a str>) {
        let mut times: BTreeMap<String, u32> = BTreeMap::new();
        for mac in macs {
            *times.entry(mac.trim().to_lowercase()).or_default() += 1;
        }
        for (mac, _) in times.into_iter().filter(|(_, times)| *times == 1) {
            self.add_mac(&mac);
        }
    }

    fn add_mac(&mut self, mac: &str) {
        let mac = mac.to_lowercase();
        let bytes: Vec<Option<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let whole = bytes.len() >= 6 && bytes.iter().all(Option::is_some);
        let blank = bytes.iter().all(|byte| *byte == Some(0)) || bytes.iter().all(|byte| *byte == Some(0xff));
        let group = bytes.first().copied().flatten().is_some_and(|first| first & 1 == 1) && bytes.len() == 6;
        if whole && !blank && !group {
            self.macs.insert(mac);
        }
    }

    /// Is there anything that tells it from another?
    pub fn is_known(&self) -> bool {
        !self.firmware.is_empty() || !self.macs.is_empty()
    }

    /// As text; `None` if there is nothing to tell.
    pub fn text(&self) -> Option<String> {
        self.is_known().then(|| self.to_string())
    }

    /// Without what another machine has as well: that tells neither from the other.
    #[must_use]
    pub fn apart_from<'a>(mut self, others: impl IntoIterator<Item = &'a Self>) -> Self {
        for other in others {
            self.firmware.retain(|part, value| other.firmware.get(part) != Some(value));
            self.macs.retain(|mac| !other.macs.contains(mac));
        }
        self
    }

    /// Is it this machine that shows these marks now?
    pub fn compare(&self, now: &Self) -> MachineComparison {
        let both = |part: &Part| Some((self.firmware.get(part)?, now.firmware.get(part)?));
        let told: Vec<bool> = PARTS.iter().filter_map(both).map(|(before, now)| before == now).collect();
        // An address that is set by software may be another one after each boot.
        let fixed = |macs: &BTreeSet<String>| macs.iter().filter(|mac| is_fixed(mac)).cloned().collect();
        let (before_fixed, now_fixed): (BTreeSet<String>, BTreeSet<String>) =
            (fixed(&self.macs), fixed(&now.macs));
        let other_cards =
            !before_fixed.is_empty() && !now_fixed.is_empty() && before_fixed.is_disjoint(&now_fixed);
        if other_cards || told.contains(&false) {
            MachineComparison::Other
        } else if told.contains(&true) || !self.macs.is_disjoint(&now.macs) {
            MachineComparison::Same
        } else {
            MachineComparison::Unknown
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As older versions write it and compare it.
        if let (Some(uuid), 1, true) =
            (self.firmware.get(&Part::Uuid), self.firmware.len(), self.macs.is_empty())
        {
            return f.write_str(uuid);
        }
        let firmware = self.firmware.iter().map(|(part, value)| format!("{}={value}", part.name()));
        let words: Vec<String> = firmware.chain(self.macs.iter().map(|mac| format!("{MAC}={mac}"))).collect();
        f.write_str(&words.join(" "))
    }
}

/// Was it written for one machine?
fn is_written(value: &str) -> bool {
    let bare: String = value.chars().filter(|c| !matches!(c, '_' | '-' | '{' | '}')).collect();
    let first = bare.chars().next();
    let mut kinds: Vec<char> = bare.chars().collect();
    kinds.sort_unstable();
    kinds.dedup();
    let is_uuid = bare.len() == 32 && bare.chars().all(|c| c.is_ascii_hexdigit());
    let repeated = first.is_some_and(|first| bare.len() > 1 && bare.chars().all(|c| c == first))
        || (is_uuid && kinds.len() <= 2);
    let counted = is_uuid && bare.starts_with("1234567812345678");
    let unwritten = counted || UNWRITTEN.contains(&bare.as_str()) || UNWRITTEN_UUIDS.contains(&bare.as_str());
    !bare.is_empty() && bare != "0" && !repeated && !unwritten
}

/// Is a MAC address the card's own, by its second bit?
fn is_fixed(mac: &str) -> bool {
    let first = mac.split(':').next().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    first.is_some_and(|first| first & 2 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "4C4C4544-0038-4A10-8052-B7C04F4E3233";

    fn compare(before: &str, now: &str) -> MachineComparison {
        Machine::parse(before).compare(&Machine::parse(now))
    }

    #[test]
    fn what_no_maker_wrote_is_no_identity() {
        for nothing in [
            "",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "fefefefe-fefe-fefe-fefe-fefefefefefe",
            "03000200-0400-0500-0006-000700080009",
            "03000200-0400-0500-0006-000700080009 ",
            "00020003-0004-0005-0006-000700080009",
            "12345678-1234-5678-1234-567812345678",
            "{00000000-0000-0000-0000-000000000000}",
        ] {
            assert!(!Machine::parse(nothing).is_known(), "{nothing}");
            assert_eq!(Machine::parse(nothing).text(), None);
        }
        let mut machine = Machine::default();
        for nothing in [
            "To be filled by O.E.M.",
            "Default string",
            "0123456789",
            "  ",
            "None",
            "0",
            "System Serial Number",
        ] {
            machine.add(Part::System, nothing);
            machine.add(Part::Board, nothing);
        }
        machine.add_cards(["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "", "no address"]);
        assert!(!machine.is_known(), "{machine}");
    }

    #[test]
    fn a_uuid_that_an_older_version_recorded_is_compared_whatever_its_letters() {
        assert_eq!(compare(UUID, &UUID.to_lowercase()), MachineComparison::Same);
        assert_eq!(
            compare(UUID, &format!("uuid={} mac=b0:7b:25:00:00:01", UUID.to_lowercase())),
            MachineComparison::Same
        );
        assert_eq!(compare(UUID, "4C4C4544-0038-4A10-8052-B7C04F4E3234"), MachineComparison::Other);
        assert_eq!(compare(UUID, "mac=b0:7b:25:00:00:01"), MachineComparison::Unknown);
        assert_eq!(Machine::parse(UUID).text(), Some(UUID.to_lowercase()), "as older versions read it");
    }

    #[test]
    fn without_a_uuid_the_serial_numbers_and_the_cards_tell() {
        let mut machine = Machine::default();
        machine.add(Part::System, "PF 2X=7");
        machine.add_cards(["B0:7B:25:00:00:01", "52:54:00:12:34:56"]);
        let text = machine.text().unwrap();
        assert_eq!(text, "system=pf_2x_7 mac=52:54:00:12:34:56 mac=b0:7b:25:00:00:01");
        assert_eq!(Machine::parse(&text), machine);
        assert_eq!(compare(&text, &text), MachineComparison::Same);
        let cards = "mac=b0:7b:25:00:00:01 mac=b0:7b:25:00:00:02";
        assert_eq!(compare(cards, "mac=b0:7b:25:00:00:02"), MachineComparison::Same, "a card less");
        assert_eq!(compare(cards, "mac=b0:7b:25:00:00:03"), MachineComparison::Other);
        assert_eq!(
            compare("mac=52:54:00:12:34:56", "mac=52:54:00:12:34:56"),
            MachineComparison::Same,
            "of a hypervisor"
        );
        assert_eq!(compare("mac=52:54:00:12:34:56", "mac=52:54:00:00:00:01"), MachineComparison::Unknown);
        assert_eq!(compare("mac=52:54:00:12:34:56", ""), MachineComparison::Unknown);
    }

    #[test]
    fn another_machine_is_known_by_whatever_differs() {
        let with = |more: &str| format!("uuid={UUID} {more}");
        assert_eq!(
            compare(&with("board=a1"), &with("board=a2")),
            MachineComparison::Other,
            "one UUID of a whole batch"
        );
        assert_eq!(
            compare(&with("mac=b0:7b:25:00:00:01"), &with("mac=b0:7b:25:00:00:09")),
            MachineComparison::Other
        );
        // What software sets may be another one after each boot.
        assert_eq!(
            compare(&with("mac=02:00:00:00:00:01"), &with("mac=02:00:00:00:00:09")),
            MachineComparison::Same
        );
    }

    #[test]
    fn what_two_members_have_tells_neither() {
        let (one, two) = (Machine::parse(UUID), Machine::parse(&format!("{UUID} mac=b0:7b:25:00:00:01")));
        assert!(!one.clone().apart_from([&two]).is_known());
        assert_eq!(two.apart_from([&one]).to_string(), "mac=b0:7b:25:00:00:01");
    }

    #[test]
    fn the_address_of_a_bond_is_no_card() {
        let mut machine = Machine::default();
        machine.add_cards(["b0:7b:25:00:00:01", "B0:7B:25:00:00:01", "b0:7b:25:00:00:03"]);
        assert_eq!(machine.to_string(), "mac=b0:7b:25:00:00:03");
    }
}
