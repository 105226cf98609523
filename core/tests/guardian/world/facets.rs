//! Facets of the worlds that wait for a mend of the core: each names the point it waits for.

/// What may be in a drawn world only once the core is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Facet {
    /// A VM's second client has an address of its own (point 1).
    SecondAddresses,
    /// A backup host opens images while their instances are down (point 2a).
    Backups,
    /// A member gets other addresses, and its old one is given to a foreign host (point 2b).
    Renumbering,
    /// An operator fences bare addresses of a member, too, and releases one of the two (point 3).
    TwoFences,
    /// A member that answers is not fenced (point 4).
    Answering,
    /// Incus hangs while entries are removed (point 5).
    HangingIncus,
    /// A guardian without Incus leads (point 6).
    WithoutIncus,
    /// Data of images lies in a pool that is excepted or tagged for files (point 7).
    DataPools,
    /// What waits for long is an alarm (point 8).
    WaitsAreAlarms,
    /// PGs that answer late (point 9).
    LatePgs,
    /// Floating addresses (point 10).
    Floating,
    /// Another Ceph cluster with a pool of the same name, or in the place of the guardian's, and images that are gone (point
    /// 11, the fifth row of the table).
    SecondCluster,
}

/// Those that wait.
const WAIT: &[Facet] = &[];

/// Is it drawn? `GUARDIAN_FACETS=all` draws all, `GUARDIAN_FACETS=Backups,Floating` those as well.
pub(crate) fn on(facet: Facet) -> bool {
    let asked = std::env::var("GUARDIAN_FACETS").unwrap_or_default();
    let named = asked == "all" || asked.split(',').any(|name| name == format!("{facet:?}"));
    named || !WAIT.contains(&facet)
}
