//! The ledger's trail: who wrote what, in one row.

use serde_json::Value;

/// INV-7: the trail has no gap, no leader's epoch comes back, and who writes is who leads. What happened, in words.
#[track_caller]
pub fn told(trail: &[Value]) -> String {
    let (mut epoch, mut leader) = (0, None);
    let mut said = Vec::new();
    for (audit, seq) in trail.iter().zip(trail[0]["seq"].as_u64().unwrap()..) {
        assert_eq!(audit["seq"], seq, "a gap: {trail:#?}");
        let (who, what) = (audit["who"].as_str().unwrap(), audit["what"].as_str().unwrap());
        if let Some(text) = what.strip_prefix("leads with epoch ") {
            let next: u64 = text.parse().unwrap();
            assert!(epoch == 0 || next == epoch + 1, "epoch {next} after {epoch}: {trail:#?}");
            (epoch, leader) = (next, Some(who));
            said.push(format!("{who} leads"));
        } else {
            assert!(
                leader.is_none_or(|leader| leader == who),
                "{who} wrote while {leader:?} led: {trail:#?}"
            );
            said.push(what.split_once(' ').map_or(what, |(_, what)| what).to_owned());
        }
    }
    said.join(", ")
}
