//! A fence's name, which carries what its release needs to know.
//!
//! Where there is no ledger nothing but the blocklist remembers a fence, so the ID holds the member and the whole-host
//! addresses (or the clients, where no host is fenced); the same fence asked for again has the same ID. A fence of the
//! ledger also has the time at which it was made, so that no other has its ID.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::addr::{ClientAddr, Entry};

/// A fence's ID as it is printed: `F-`, and [`FenceContent`] as text. Sorted as text.
///
/// One that no guardian made, found in the ledger or typed, is an ID as well; [`FenceId::read`] tells.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FenceId(String);

/// What a fence's ID says of the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceContent {
    /// The member, if one was named.
    pub member: Option<String>,
    /// What it rests on: host entries, or client entries where there are no host entries.
    pub entries: BTreeSet<Entry>,
    /// Milliseconds since 1970; later than those of all fences that the ledger held when it was made. `None` where no
    /// ledger has it, or an older guardian made it.
    pub made: Option<u64>,
}

/// The text is no fence ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' is not a fence ID: copy it whole from the output of `fence` or `status` (it begins with F-)"
)]
pub struct BadFenceIdError {
    /// What was given.
    pub text: String,
}

const VERSION: u8 = 1;
/// With the time at which it was made.
const MADE: u8 = 2;
const CHECKSUM_BYTES: usize = 4;

impl FenceId {
    /// What it says.
    ///
    /// # Errors
    /// It is no ID of a fence.
    pub fn read(&self) -> Result<FenceContent, BadFenceIdError> {
        self.0.parse()
    }

    /// As it is printed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for FenceId {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for FenceId {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<&FenceContent> for FenceId {
    fn from(content: &FenceContent) -> Self {
        Self(content.to_string())
    }
}

impl Borrow<str> for FenceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for FenceId {
    fn eq(&self, text: &str) -> bool {
        self.0 == text
    }
}

impl PartialEq<&str> for FenceId {
    fn eq(&self, text: &&str) -> bool {
        self.0 == *text
    }
}

impl fmt::Display for FenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FenceContent {
    /// Names a fence of these entries.
    pub fn new(member: Option<&str>, entries: &BTreeSet<Entry>) -> Self {
        let hosts: BTreeSet<Entry> = entries.iter().copied().filter(|entry| entry.is_host()).collect();
        let entries = if hosts.is_empty() { entries.clone() } else { hosts };
        Self { member: member.map(str::to_owned), entries, made: None }
    }

    /// Is it of the same member and the same entries, whenever it was made?
    pub fn is_same_target(&self, other: &Self) -> bool {
        (&self.member, &self.entries) == (&other.member, &other.entries)
    }

    fn bytes(&self) -> Vec<u8> {
        let name = self.member.as_deref().unwrap_or_default().as_bytes();
        let version = if self.made.is_some() { MADE } else { VERSION };
        let mut bytes = vec![version, u8::try_from(name.len()).unwrap_or(u8::MAX)];
        bytes.extend(name.iter().take(usize::from(u8::MAX)));
        bytes.extend(self.made.map(u64::to_be_bytes).into_iter().flatten());
        for entry in &self.entries {
            let (tag, nonce) = match entry {
                Entry::Host(_) => (b'h', None),
                Entry::HostRange(_) => (b'r', None),
                Entry::Client(client) => (b'c', Some(client.nonce)),
            };
            match entry.ip() {
                IpAddr::V4(ip) => bytes.extend([tag, 4].into_iter().chain(ip.octets())),
                IpAddr::V6(ip) => bytes.extend([tag, 16].into_iter().chain(ip.octets())),
            }
            bytes.extend(nonce.map(u32::to_be_bytes).into_iter().flatten());
        }
        bytes
    }
}

impl fmt::Display for FenceContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.bytes();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        write!(f, "F-{}", BASE32_NOPAD.encode(&bytes))
    }
}

impl FromStr for FenceContent {
    type Err = BadFenceIdError;

    fn from_str(text: &str) -> Result<Self, BadFenceIdError> {
        let bad = || BadFenceIdError { text: text.to_owned() };
        let code = text.strip_prefix("F-").ok_or_else(bad)?;
        let bytes = BASE32_NOPAD.decode(code.to_ascii_uppercase().as_bytes()).map_err(|_| bad())?;
        let (body, checksum) =
            bytes.split_at_checked(bytes.len().saturating_sub(CHECKSUM_BYTES)).ok_or_else(bad)?;
        if checksum != crc32fast::hash(body).to_be_bytes() {
            return Err(bad());
        }
        parse(body).ok_or_else(bad)
    }
}

fn parse(body: &[u8]) -> Option<FenceContent> {
    let (&[version, name_len], rest) = body.split_first_chunk::<2>()?;
    let (name, mut rest) = rest.split_at_checked(usize::from(name_len))?;
    let name = std::str::from_utf8(name).ok()?;
    let made = match version {
        VERSION => None,
        MADE => {
            let (made, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            Some(u64::from_be_bytes(*made))
        }
        _ => return None,
    };
    let mut entries = BTreeSet::new();
    while let Some((&[tag, len], after)) = rest.split_first_chunk::<2>() {
        let (ip, after) = after.split_at_checked(usize::from(len))?;
        let ip = match len {
            4 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
            _ => return None,
        };
        rest = after;
        entries.insert(match tag {
            b'h' => Entry::Host(ip),
            b'r' => Entry::HostRange(ip),
            b'c' => {
                let (nonce, after) = after.split_first_chunk::<4>()?;
                rest = after;
                Entry::Client(ClientAddr { ip, nonce: u32::from_be_bytes(*nonce) })
            }
            _ => return None,
        });
    }
    let member = (!name.is_empty()).then(|| name.to_owned());
    (rest.is_empty() && !entries.is_empty()).then_some(FenceContent { member, entries, made })
}

impl Serialize for FenceContent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FenceContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::addr::parse_target;
    use proptest::prelude::*;

    fn entries(texts: &[&str]) -> BTreeSet<Entry> {
        texts.iter().map(|text| parse_target(text).unwrap()).collect()
    }

    #[test]
    fn carries_member_and_hosts_and_is_the_same_each_time() {
        let id = FenceContent::new(Some("n1"), &entries(&["10.0.0.5", "fd77::5", "10.0.0.5:0/7"]));
        assert_eq!(
            id.entries,
            entries(&["10.0.0.5", "fd77::5"]),
            "clients are kept by a release: not needed"
        );
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!(id.to_string().to_lowercase().replace("f-", "F-").parse(), Ok(id));
    }

    #[test]
    fn names_the_clients_where_no_host_is_fenced() {
        let id = FenceContent::new(None, &entries(&["10.0.0.5:0/7", "[fd77::5]:0/8"]));
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_typing_error_is_noticed() {
        let text = FenceContent::new(Some("n1"), &entries(&["10.0.0.5"])).to_string();
        for at in 2..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            let wrong = String::from_utf8(wrong).unwrap();
            assert!(wrong.parse::<FenceContent>().is_err(), "{wrong}");
        }
        assert!("F-".parse::<FenceContent>().is_err());
        assert!("n1".parse::<FenceContent>().is_err());
    }

    #[test]
    fn one_that_was_made_at_another_time_is_another_of_the_same_target() {
        let id = FenceContent::new(Some("n1"), &entries(&["10.0.0.5", "fd77::5"]));
        let made = |made| FenceContent { made: Some(made), ..id.clone() };
        assert_eq!(made(7).to_string().parse(), Ok(made(7)));
        assert!(made(7) != made(8) && made(7) != id);
        assert!(made(7).is_same_target(&made(8)) && made(7).is_same_target(&id));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(version in VERSION..=MADE, mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            bytes.insert(0, version);
            let _ = parse(&bytes);
        }
    }
}
