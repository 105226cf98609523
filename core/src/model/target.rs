//! Whom a fence is for, and how far its entries reach.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::addr::Entry;

/// Whom to fence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A member, by name.
    Member(String),
    /// Bare addresses: hosts and clients.
    Addresses(BTreeSet<Entry>),
}

/// How much of the target a fence covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// Every identity IP, so every client instance, also those that are yet to come.
    WholeHost,
    /// The client instances that were seen; one that appears later is free.
    KnownClients,
    /// Client instances that were seen, while a source did not answer or an address is unknown.
    Incomplete,
}
