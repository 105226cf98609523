//! What the guardian took in and decided, written down and decided again.

pub mod format;
pub mod maps;
pub mod recorder;
pub mod replay;
