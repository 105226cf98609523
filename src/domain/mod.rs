//! What is decided, without performing anything: no I/O, no clock, no thread.
//!
//! A machine here is asked for its next effect (`next_effect`), and what became of it is handed back
//! (`handle_…`); a failed effect is an input like any other. The same machines run in the verbs, in the daemon
//! and in tests, and a test (`tests/house.rs`) keeps this folder free of the libraries that perform effects.

pub mod addr;
pub mod barrier;
pub mod blocklist;
pub mod fence;
pub mod fence_id;
pub mod guard;
pub mod guardian;
pub mod machine;
pub mod map;
pub mod member;
pub mod origin;
pub mod outlook;
pub mod pairs;
pub mod permits;
pub mod plan;
pub mod policy;
pub mod record;
pub mod refusal;
pub mod release;
pub mod request;
pub mod silence;
pub mod span;
pub mod unread;
pub mod verdict;
pub mod view;
pub mod volume;
pub mod wanted;
pub mod world;
