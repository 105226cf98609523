//! What the operator wants of the guardian, and who this guardian is.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::addr::EntityAddr;
use crate::model::member::Members;
use crate::model::policy::Policy;

/// Everything the guardian goes by that is not read from the world.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// This guardian's name, for the trail.
    pub name: String,
    /// Names this boot of its host (`/proc/sys/kernel/random/boot_id`): [`Now::boot`](crate::guardian::io::Now) counts from it.
    pub boot_id: String,
    /// Is a cluster of members to be watched? Without one, fences are an operator's alone.
    pub platform: bool,
    /// How the platform names the storage cluster (`ceph.cluster_name` of its pools): another one is not covered.
    pub storage: String,
    /// Rules every fence keeps.
    pub policy: Policy,
    /// Members as the configuration knows them; the address book adds to them.
    pub members: Members,
    /// When to fence.
    pub trigger: Trigger,
    /// Without the gate a lost member is fenced so long before healing is due.
    pub lead: Duration,
    /// Between two fences that nobody asked for.
    pub cool_down: Duration,
    /// Release a member that is proved to have rebooted.
    pub auto_release: bool,
    /// The single-writer guard.
    pub guard: GuardPolicy,
}

/// Who may begin a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// The guardian, when a member is about to be healed, and operators.
    #[default]
    Auto,
    /// Only operators fence.
    Manual,
}

/// What the single-writer guard does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardPolicy {
    /// When a client uses an image it should not.
    pub on_conflict: OnConflict,
    /// Between two sweeps.
    pub every: Duration,
    /// Hosts whose use of any image is legitimate.
    pub admin_hosts: Vec<IpNet>,
    /// The guardian's own addresses, as far as known.
    pub own: Vec<EntityAddr>,
}

/// `guard.on_conflict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// Tell.
    #[default]
    Alarm,
    /// Tell, and fence a client all of whose uses are stale.
    FenceStale,
}

impl Settings {
    /// The defaults, for a guardian of this name.
    pub fn new(name: &str, boot_id: &str, policy: Policy, members: Members) -> Self {
        Self {
            name: name.to_owned(),
            boot_id: boot_id.to_owned(),
            platform: true,
            storage: "ceph".to_owned(),
            policy,
            members,
            trigger: Trigger::default(),
            lead: Duration::from_secs(10),
            cool_down: Duration::from_secs(30),
            auto_release: true,
            guard: GuardPolicy {
                on_conflict: OnConflict::default(),
                every: Duration::from_secs(30),
                admin_hosts: Vec::new(),
                own: Vec::new(),
            },
        }
    }
}
