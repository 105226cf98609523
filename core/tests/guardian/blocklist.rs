//! The model's blocklist, as monitors keep it.

use jiff::Timestamp;
use rbd_guardian_core::model::osdmap::OsdMap;

/// Adds an entry, or removes it where there is no end.
pub(crate) fn set(map: &mut OsdMap, addr: String, until: Option<Timestamp>) {
    let addr = addr.parse().unwrap();
    if let Some(until) = until {
        // An entry that stands keeps its end (docs/facts/ceph.md#adding-an-entry-again-does-not-extend-it).
        map.blocklist.entries.entry(addr).or_insert(until);
    } else {
        map.blocklist.entries.remove(&addr);
    }
}
