//! The single-writer guard: who uses an image against where the platform places its instances.
//!
//! An image of an instance may be used by one member, the one it is placed on. What else is legitimate: a live
//! migration on its way, images and volumes that are for any member, and short openings by hosts the operator
//! names (an admin's `rbd`). Fencing here is of single client instances: one kernel client serves all mappings of
//! its host, so a client is stale only if every use it makes is (docs/design.md#when-to-fence).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::addr::{ClientAddr, EntityAddr};
use crate::model::blocklist::Blocklist;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{InstanceId, Operation, OperationKind};
use crate::model::member::Members;
use crate::model::volume::{Expected, ImageName, Images};

/// A client that uses an image it should not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Conflict {
    pub image: ImageName,
    /// The instances it belongs to.
    pub instances: BTreeSet<InstanceId>,
    pub client: ClientAddr,
    /// The member its address belongs to; `None` for nobody's.
    pub member: Option<String>,
    /// Where the instances are placed.
    pub placed: BTreeSet<String>,
}

/// What the guard goes by.
#[derive(Debug, Clone, Copy)]
pub struct SingleWriterFacts<'a> {
    /// All images and who may use them.
    pub images: &'a Images,
    /// Whose address is whose.
    pub members: &'a Members,
    /// Whose each client is that was learnt, whatever its address: a member may have several.
    pub clients: &'a BTreeMap<ClientAddr, &'a str>,
    /// Clients that are refused already can harm nobody; their watches lapse within half a minute.
    pub blocklist: &'a Blocklist,
    /// Operations under way.
    pub operations: &'a [Operation],
    /// Hosts whose use of any image is nobody's business (`guard.admin_hosts`).
    pub admin_hosts: &'a [IpNet],
    /// The guardian's own addresses.
    pub own: &'a [EntityAddr],
}

/// Every use that no rule explains.
pub fn conflicts(uses: &[ImageUse], grounds: SingleWriterFacts<'_>) -> Vec<Conflict> {
    uses.iter().flat_map(|one| conflicts_of(one, grounds)).collect()
}

fn conflicts_of(one: &ImageUse, grounds: SingleWriterFacts<'_>) -> Vec<Conflict> {
    let Some(Expected::Exclusive { instances, locations }) = grounds.images.get(&one.image) else {
        return Vec::new();
    };
    if grounds.operations.iter().any(|operation| moves(operation, instances)) {
        return Vec::new();
    }
    let ips: BTreeSet<_> = one.clients().iter().map(|client| client.ip).collect();
    // Before its first client is seen a member has no address, and this may be the one.
    let unlearnt = |name: &String| grounds.members.get(name).is_none_or(|member| member.addresses.is_empty());
    let may_be_the_first = ips.len() == 1 && locations.iter().any(unlearnt);
    let owner = |client: &ClientAddr| {
        let of_address = || grounds.members.owner(client.ip).map(|member| member.name.as_str());
        grounds.clients.get(client).copied().or_else(of_address)
    };
    let explained = |client: &ClientAddr| {
        owner(client).map_or(may_be_the_first, |owner| locations.iter().any(|location| location == owner))
            || grounds.blocklist.refuses(*client)
            || grounds.admin_hosts.iter().any(|hosts| hosts.contains(&client.ip))
            || grounds.own.iter().any(|own| own.ip == client.ip && own.nonce == client.nonce)
    };
    let conflict = |client: ClientAddr| Conflict {
        image: one.image.clone(),
        instances: instances.iter().cloned().collect(),
        member: owner(&client).map(str::to_owned),
        client,
        placed: locations.iter().cloned().collect(),
    };
    one.clients().into_iter().filter(|client| !explained(client)).map(conflict).collect()
}

/// An operation that moves one of these instances between members, or opens its image for a moment elsewhere.
fn moves(operation: &Operation, instances: &[InstanceId]) -> bool {
    match operation.kind {
        OperationKind::Migrate => instances.iter().any(|instance| operation.instances.contains(instance)),
        OperationKind::Heal | OperationKind::Evacuate | OperationKind::Start | OperationKind::Other => false,
    }
}

/// Clients whose every use is in conflict, and that belong to a member other than those Incus names.
pub fn stale_clients(uses: &[ImageUse], conflicts: &[Conflict]) -> BTreeMap<ClientAddr, BTreeSet<ImageName>> {
    let mut stale: BTreeMap<ClientAddr, BTreeSet<ImageName>> = BTreeMap::new();
    for conflict in
        conflicts.iter().filter(|conflict| conflict.member.is_some() && !conflict.placed.is_empty())
    {
        stale.entry(conflict.client).or_default().insert(conflict.image.clone());
    }
    stale.retain(|client, images| {
        uses.iter().filter(|one| one.clients().contains(client)).all(|one| images.contains(&one.image))
    });
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::member::Member;

    fn client(text: &str) -> EntityAddr {
        text.parse().unwrap()
    }

    fn uses(image: &str, watchers: &[&str]) -> ImageUse {
        let watchers = watchers.iter().map(|addr| client(addr)).collect();
        ImageUse { image: ImageName::parse(image).unwrap(), watchers, locks: Vec::new(), unknown: Vec::new() }
    }

    struct Case {
        images: Images,
        members: Members,
        blocklist: Blocklist,
        operations: Vec<Operation>,
    }

    fn id(name: &str) -> InstanceId {
        InstanceId { project: "default".to_owned(), name: name.to_owned() }
    }

    fn case() -> Case {
        let member =
            |name: &str, ip: &str| Member { name: name.to_owned(), addresses: vec![ip.parse().unwrap()] };
        let at = |name: &str, location: &str| Expected::Exclusive {
            instances: [id(name)].into(),
            locations: [location.to_owned()].into(),
        };
        let image = |path: &str| ImageName::parse(path).unwrap();
        Case {
            images: [
                (image("p/a"), at("a", "n1")),
                (image("p/b"), at("b", "n2")),
                (image("p/iso"), Expected::AnyMember),
            ]
            .into(),
            members: Members(vec![member("n1", "10.0.0.1"), member("n2", "10.0.0.2")]),
            blocklist: Blocklist::default(),
            operations: Vec::new(),
        }
    }

    impl Case {
        fn judge(&self, uses: &[ImageUse]) -> (Vec<String>, Vec<String>) {
            let admin = ["10.0.0.9/32".parse().unwrap()];
            let grounds = SingleWriterFacts {
                images: &self.images,
                members: &self.members,
                clients: &BTreeMap::new(),
                blocklist: &self.blocklist,
                operations: &self.operations,
                admin_hosts: &admin,
                own: &[],
            };
            let conflicts = conflicts(uses, grounds);
            let stale = stale_clients(uses, &conflicts);
            let told = conflicts.iter().map(|c| format!("{} {}", c.image, c.client)).collect();
            (told, stale.keys().map(ToString::to_string).collect())
        }
    }

    #[test]
    fn a_use_from_elsewhere_is_a_conflict_and_the_stale_client_is_never_the_owner() {
        let case = case();
        let owner_alone = [uses("p/a", &["10.0.0.1:0/1"]), uses("p/b", &["10.0.0.2:0/2"])];
        assert_eq!(case.judge(&owner_alone), (vec![], vec![]));
        let both = [uses("p/a", &["10.0.0.1:0/1"]), uses("p/b", &["10.0.0.2:0/2", "10.0.0.1:0/7"])];
        assert_eq!(case.judge(&both).0, ["p/b 10.0.0.1:0/7"]);
        assert_eq!(case.judge(&both).1, ["10.0.0.1:0/7"]);
    }

    #[test]
    fn a_client_that_also_does_its_duty_stays_an_alarm() {
        let shared_client = [uses("p/a", &["10.0.0.1:0/1"]), uses("p/b", &["10.0.0.2:0/2", "10.0.0.1:0/1"])];
        let (conflicts, stale) = case().judge(&shared_client);
        assert_eq!((conflicts.len(), stale.len()), (1, 0));
    }

    #[test]
    fn an_address_of_nobody_is_told_but_never_fenced() {
        let (conflicts, stale) = case().judge(&[uses("p/a", &["10.0.0.77:0/5"])]);
        assert_eq!((conflicts, stale.len()), (vec!["p/a 10.0.0.77:0/5".to_owned()], 0));
    }

    #[test]
    fn a_member_without_a_known_address_may_have_that_of_nobody() {
        let mut case = case();
        case.members.0[0].addresses.clear();
        assert_eq!(case.judge(&[uses("p/a", &["10.0.0.77:0/5"])]).0.len(), 0, "its first client");
        assert_eq!(case.judge(&[uses("p/a", &["10.0.0.2:0/5"])]).0.len(), 1, "an address of another member");
        assert_eq!(case.judge(&[uses("p/a", &["10.0.0.77:0/5", "10.0.0.78:0/5"])]).0.len(), 2);
        assert_eq!(case.judge(&[uses("p/b", &["10.0.0.77:0/5"])]).0.len(), 1, "that member's is known");
        case.members.0.remove(0);
        assert_eq!(case.judge(&[uses("p/a", &["10.0.0.77:0/5"])]).0.len(), 0, "nor is it listed");
    }

    #[test]
    fn legitimate_second_users_are_told_apart() {
        let mut case = case();
        assert_eq!(case.judge(&[uses("p/iso", &["10.0.0.1:0/1", "10.0.0.2:0/2"])]).0.len(), 0);
        assert_eq!(
            case.judge(&[uses("p/a", &["10.0.0.1:0/1", "10.0.0.9:0/3"])]).0.len(),
            0,
            "an admin's host"
        );
        assert_eq!(case.judge(&[uses("p/unknown", &["10.0.0.1:0/1", "10.0.0.2:0/2"])]).0.len(), 0);
        let live = [uses("p/a", &["10.0.0.1:0/1", "10.0.0.2:0/2"])];
        assert_eq!(case.judge(&live).0.len(), 1);
        case.operations.push(Operation {
            id: "x".to_owned(),
            kind: OperationKind::Migrate,
            location: "n2".to_owned(),
            instances: [id("a")].into(),
        });
        assert_eq!(case.judge(&live).0.len(), 0, "a live migration");
        case.operations[0].instances = [id("b")].into();
        assert_eq!(case.judge(&live).0.len(), 1, "another instance's migration explains nothing");
        case.blocklist.entries.insert(client("10.0.0.2:0/0"), jiff::Timestamp::MAX);
        assert_eq!(case.judge(&live).0.len(), 0, "a fenced client can harm nobody");
    }
}
