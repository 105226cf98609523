//! Whether the images that Incus lists are in this Ceph cluster, for `doctor`.

use std::collections::{BTreeMap, BTreeSet};

use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::model::osdmap::OsdMap;
use rbd_guardian_core::model::volume::ImageName;
use rbd_guardian_core::rules::unread::Unread;

use super::context::Context;
use super::doctor::check::{Check, CheckVerdict, check};
use crate::ceph::watchers::missing;

const TITLE: &str = "images of Incus";
/// Of more images that are missing the number tells enough.
const SHOWN: usize = 5;

/// Looks for every image that Incus lists in this Ceph cluster, and tells the storage pools that name another one.
pub(super) fn checks(context: &Context, core: &Guardian, map: &OsdMap) -> Vec<Check> {
    let images = core.exclusive_images();
    let (missing, unread) = missing(&context.cluster, map, &images, &context.deadline);
    let mut checks = judged(&images, &missing, &unread);
    let own = core.storage();
    let pools = core.view().into_iter().flat_map(|view| view.pools.iter().flatten());
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        pools.filter(|(_, pool)| pool.driver == "ceph").partition(|(_, pool)| pool.is_in(own));
    let verdict = if here.is_empty() { CheckVerdict::Warn } else { CheckVerdict::Note };
    checks.extend(elsewhere.into_iter().map(|(name, pool)| {
        let cluster = pool.cluster.as_deref().unwrap_or_default();
        let detail = format!(
            "storage pool {name} is in the Ceph cluster '{cluster}', and this guardian is of '{own}': it is not covered, and no \
             instance on it is placed elsewhere"
        );
        check(TITLE, verdict, detail)
    }));
    checks
}

fn judged(images: &[ImageName], missing: &BTreeSet<ImageName>, unread: &[String]) -> Vec<Check> {
    let not_read = Unread::new(unread);
    let mut pools: BTreeMap<&str, (usize, Vec<&ImageName>)> = BTreeMap::new();
    let mut silent = BTreeSet::new();
    for image in images {
        if let Some(why) = not_read.of(image) {
            silent.insert(why);
            continue;
        }
        let (asked, lacks) = pools.entry(&image.pool).or_default();
        *asked += 1;
        lacks.extend(missing.contains(image).then_some(image));
    }
    let one = |(pool, (asked, lacks)): (&str, (usize, Vec<&ImageName>))| {
        let names: Vec<String> = lacks.iter().take(SHOWN).map(ToString::to_string).collect();
        let names = names.join(", ");
        let count = lacks.len();
        if count == 0 {
            check(TITLE, CheckVerdict::Ok, format!("pool '{pool}' has all {asked} that Incus lists there"))
        } else if count * 2 > asked {
            let detail = format!(
                "pool '{pool}' lacks {count} of {asked} that Incus lists there, {names} among them: does Incus use another Ceph \
                 cluster of the same name? Compare `ceph fsid` here and on a member. Nothing in it is covered"
            );
            check(TITLE, CheckVerdict::Fail, detail)
        } else {
            let detail = format!(
                "pool '{pool}' lacks {count} of {asked} that Incus lists there: {names}. The gates of their members stay closed \
                 until the instances or volumes are deleted in Incus, or a fence goes on without them (--accept-incomplete)"
            );
            check(TITLE, CheckVerdict::Warn, detail)
        }
    };
    let silent =
        silent.into_iter().map(|why| check(TITLE, CheckVerdict::Warn, format!("not looked for: {why}")));
    pools.into_iter().map(one).chain(silent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pool_is_judged_by_what_it_lacks_and_what_is_not_read_is_neither() {
        let image = |path: &str| ImageName::parse(path).unwrap();
        let images = ["all/a", "all/b", "few/a", "few/b", "few/c", "none/a", "none/b", "silent/a"].map(image);
        let missing = ["few/c", "none/a", "none/b", "silent/a"].map(image).into();
        let checks = judged(&images, &missing, &["pool silent: no answer".to_owned()]);
        let verdicts: Vec<CheckVerdict> = checks.iter().map(|check| check.verdict).collect();
        assert_eq!(verdicts, [CheckVerdict::Ok, CheckVerdict::Warn, CheckVerdict::Fail, CheckVerdict::Warn]);
        assert!(
            checks[1].detail.contains("few/c") && checks[2].detail.contains("2 of 2"),
            "{}",
            checks[2].detail
        );
        assert!(checks[3].detail.contains("pool silent: no answer"), "{}", checks[3].detail);
    }
}
