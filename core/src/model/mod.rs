//! Plain data: what Ceph and Incus show, what the ledger holds, and what is asked.
//!
//! Nothing here decides; each type can be written down and read back.

pub mod addr;
pub mod barrier;
pub mod blocklist;
pub mod ceph_snapshot;
pub mod epoch;
pub mod fence_id;
pub mod gate_keys;
pub mod image_users;
pub mod incus_snapshot;
pub mod listed;
pub mod machine;
pub mod member;
pub mod now;
pub mod operator_request;
pub mod osdmap;
pub mod overrides;
pub mod pairs;
pub mod policy;
pub mod record;
pub mod span;
pub mod sweep_part;
pub mod target;
pub mod volume;
