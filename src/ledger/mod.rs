//! What guardians remember together, kept by the storage itself.
//!
//! One object, `ledger`, in a replicated pool: its omap holds a record for each thing ([`record`](rbd_guardian_core::model::record))
//! as JSON with the version of its form, and the audit trail. All that one write changes is changed by one operation,
//! which the OSD carries out only if the leader record is still the writer's own and each record is still what the
//! writer had read. So a guardian that was deposed without knowing it changes nothing (INV-7), and record and trail
//! cannot disagree (INV-8).
//!
//! | key | value |
//! |---|---|
//! | `audit/<20 digits>` | one thing done; first in order, so that a reader of the records skips the trail |
//! | `fence/<id>`, `gate`, `member/<name>`, `request/<id>` | a record |
//! | `leader` | who leads |
//! | `meta` | the version of the form of all this; compared by every write |
//! | `trail` | the first and the next number of the trail. Written with each entry of it, so it is also the version of everything a leader writes |
//!
//! The calls wait for the PG, but never longer than their deadline: then what was asked for is unknown (INV-9).

mod codec;
mod error;
mod lease;
mod snapshot;
mod store;
mod write;

pub use codec::{NAMESPACE, OBJECT};
pub use error::{LeaseError, LedgerOpenError, LedgerReadError, LedgerWriteError};
pub use lease::Lease;
pub use snapshot::Snapshot;
pub use store::{AUDIT_ENTRIES, DEFAULT_POOL, Ledger, LedgerConfig};
pub use write::{Bid, Leadership, TrailEntry};
