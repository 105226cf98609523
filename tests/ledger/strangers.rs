//! What no guardian wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use rbd_guardian::ceph::rados::omap::OmapWrite;
use rbd_guardian::ledger::{LedgerWriteError, OBJECT};
use rbd_guardian_core::model::record::{Change, Record, VERSION};
use serde_json::json;

use super::{Guardian, Result, fence, long, member, put};

/// Whoever may write the pool may fill the ledger. What no guardian wrote is told and not kept, the records are read
/// and written as before, and the memory is bounded.
pub(super) fn what_others_write_costs_no_record(a: &Guardian) -> Result<()> {
    const HUGE: usize = 30 << 20;
    let (leadership, before) = a.lead()?;
    let huge = ["gate-2", "leader-2", "member/huge"].map(str::to_owned);
    for key in huge.clone() {
        let set = [(key, vec![b' '; HUGE])].into();
        a.raw(OBJECT, &OmapWrite { set, ..OmapWrite::default() })??;
    }
    let junk = |number: usize| (format!("junk/{number}"), vec![b'x'; 30_000]);
    for part in (0..3000).collect::<Vec<_>>().chunks(1000) {
        let set = part.iter().copied().map(junk).collect();
        a.raw(OBJECT, &OmapWrite { set, ..OmapWrite::default() })??;
    }
    fs::write("/proc/self/clear_refs", "5")?;
    let mut read = a.read()?;
    assert_eq!((read.records(), read.unread().len()), (before.records(), 3003));
    assert_eq!(read.unread()["member/huge"], format!("{HUGE} bytes long, which no record is"));
    a.write(&leadership, &mut read, &[put(fence("F-beside-huge", []))])?;
    let over = Change::Put(Record::Member(member("huge", [])));
    let written = a.write(&leadership, &mut read, &[over]);
    assert!(matches!(written, Err(LedgerWriteError::Damaged { .. })), "{written:?}");
    a.ledger.requests(&mut read, &long())?;
    assert_eq!(read.records(), a.read()?.records());
    let peak = peak()?;
    println!("{peak} MiB at most, 3 values of {} MiB and 3,000 keys of others in the ledger", HUGE >> 20);
    // One such value is in librados' memory and in ours.
    assert!(peak < 450, "{peak} MiB");

    // What looks like records is kept, up to a limit.
    let text = "x".repeat(1_000_000);
    let long_member = |number: usize| {
        let name = format!("long-{number}");
        let record = json!({"v": VERSION, "name": name, "addresses": {}, "clients": [], "machine": text});
        (format!("member/{name}"), record.to_string().into_bytes())
    };
    for part in (0..80).collect::<Vec<_>>().chunks(40) {
        let set = part.iter().copied().map(long_member).collect();
        a.raw(OBJECT, &OmapWrite { set, ..OmapWrite::default() })??;
    }
    let refused = a.read().map(drop).unwrap_err().to_string();
    println!("{refused}");
    assert!(refused.contains("more than 64 MiB") && refused.contains("rmomapkey ledger KEY"), "{refused}");
    let mut remove: BTreeSet<String> = huge.into();
    remove.extend((0..3000).map(|number| junk(number).0).chain((0..80).map(|number| long_member(number).0)));
    a.raw(OBJECT, &OmapWrite { remove, ..OmapWrite::default() })??;
    assert_eq!(a.read()?.unread(), &BTreeMap::new());
    Ok(())
}

/// The most that this process held since its peak was forgotten, in MiB.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse::<u64>()? / 1024)
}
