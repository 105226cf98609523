//! What the users of one image say about it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::model::addr::EntityAddr;
use crate::model::blocklist::Blocklist;
use crate::model::member::Members;

/// Judged from the addresses of watchers and lock owner. Where the image ought to be used is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageVerdict {
    /// Nobody watches it or holds its lock. That does not prove that nobody writes: a client can write without
    /// either (docs/facts/ceph.md#a-client-after-it-was-blocklisted).
    Unused,
    /// One member uses it.
    OneMember,
    /// An address that belongs to no configured member.
    UnknownAddress,
    /// A user that the blocklist refuses; its watch lapses within half a minute.
    Fenced,
    /// More than one member uses it.
    SeveralMembers,
}

/// The verdict, and the member if it is one.
pub fn judge<'m>(
    users: &[EntityAddr],
    members: &'m Members,
    blocklist: &Blocklist,
) -> (ImageVerdict, Option<&'m str>) {
    let fenced = |addr: &EntityAddr| addr.client().is_some_and(|client| blocklist.refuses(client));
    let owners: BTreeSet<Option<&str>> =
        users.iter().map(|addr| members.owner(addr.ip).map(|member| member.name.as_str())).collect();
    let known: Vec<&str> = owners.iter().copied().flatten().collect();
    let one = match known.as_slice() {
        [one] => Some(*one),
        _ => None,
    };
    let verdict = if users.is_empty() {
        ImageVerdict::Unused
    } else if known.len() > 1 {
        ImageVerdict::SeveralMembers
    } else if users.iter().any(fenced) {
        ImageVerdict::Fenced
    } else if owners.contains(&None) {
        ImageVerdict::UnknownAddress
    } else {
        ImageVerdict::OneMember
    };
    (verdict, one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::member::Member;

    #[test]
    fn tells_one_member_from_several_and_from_strangers() {
        let member =
            |name: &str, ip: &str| Member { name: name.to_owned(), addresses: vec![ip.parse().unwrap()] };
        let members = Members(vec![member("n1", "10.0.0.1"), member("n2", "10.0.0.2")]);
        let mut blocklist = Blocklist::default();
        let judged = |addrs: &[&str], blocklist: &Blocklist| {
            let users: Vec<EntityAddr> = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
            let (verdict, member) = judge(&users, &members, blocklist);
            (verdict, member.map(str::to_owned))
        };
        let n1 = Some("n1".to_owned());
        assert_eq!(judged(&[], &blocklist), (ImageVerdict::Unused, None));
        assert_eq!(
            judged(&["10.0.0.1:0/5", "10.0.0.1:0/6"], &blocklist),
            (ImageVerdict::OneMember, n1.clone())
        );
        assert_eq!(
            judged(&["10.0.0.1:0/5", "10.0.0.2:0/6"], &blocklist),
            (ImageVerdict::SeveralMembers, None)
        );
        assert_eq!(
            judged(&["10.0.0.1:0/5", "10.9.9.9:0/6"], &blocklist),
            (ImageVerdict::UnknownAddress, n1.clone())
        );
        blocklist.entries.insert("10.0.0.1:0/0".parse().unwrap(), jiff::Timestamp::MAX);
        assert_eq!(judged(&["10.0.0.1:0/5"], &blocklist), (ImageVerdict::Fenced, n1));
    }
}
