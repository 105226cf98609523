//! One fence from its first entry to its last: machines that are asked for their next effect.

pub mod releasing;
pub mod required_entries;
pub mod sealing;
