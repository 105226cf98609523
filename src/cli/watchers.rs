//! `watchers`: one sweep, for people and scripts.

use std::collections::BTreeMap;

use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::member::Members;
use rbd_guardian_core::model::osdmap::{OsdMap, Pool, PoolId};
use rbd_guardian_core::rules::image_verdict::{ImageVerdict, judge};
use serde::Serialize;

use super::answer::{Cell, table};
use super::context::Context;
use super::error::CliError;
use super::output::tell;
use super::seen::known;
use super::{Exit, WatchersArgs};
use crate::ceph::locks::LockOwner;
use crate::ceph::osdmap;
use crate::ceph::watchers::{ImageReading, SweepScope, all, path, sweep};
use crate::cli::output::say;

#[derive(Serialize)]
struct ImageAnswer {
    pool: String,
    namespace: String,
    image: String,
    watchers: Vec<WatcherAnswer>,
    /// The first of `locks`.
    lock: Option<LockOwner>,
    /// Every owner: a shared lock has several.
    locks: Vec<LockOwner>,
    /// Users that are there and were not understood, in words.
    unknown: Vec<String>,
    member: Option<String>,
    /// Where Incus places the instance: not known to this verb.
    location: Option<String>,
    verdict: ImageVerdict,
}

#[derive(Serialize)]
struct WatcherAnswer {
    address: EntityAddr,
    client: String,
    cookie: u64,
}

pub(super) fn run(context: &Context, args: &WatchersArgs) -> Result<Exit, CliError> {
    let map = context.read(osdmap::dump)?.map;
    let pools = wanted(context, args, &map)?;
    let scope = SweepScope::of(&pools);
    let members = known(context)?.map_or_else(|| context.config.members.clone(), |(core, _)| core.members());
    let mut images = Vec::new();
    let unread = sweep(&context.cluster, &scope, &all(), &context.deadline, &mut |image| {
        images.push(answer(&members, &map, image));
    });
    images.sort_by(|a, b| (&a.pool, &a.namespace, &a.image).cmp(&(&b.pool, &b.namespace, &b.image)));
    context.print(&images, |images| text(images))?;
    for image in &images {
        for what in &image.unknown {
            tell!(
                "rbd-guardian: not understood: image {}: {what}",
                path(&image.pool, &image.namespace, &image.image)
            );
        }
    }
    for what in &unread {
        say(&format!("not read: {what}"));
    }
    Ok(if unread.is_empty() { Exit::Done } else { Exit::CannotTell })
}

fn wanted<'m>(
    context: &Context,
    args: &WatchersArgs,
    map: &'m OsdMap,
) -> Result<BTreeMap<PoolId, &'m Pool>, CliError> {
    if args.pools.is_empty() {
        return Ok(context.config.policy.guarded.pools(map));
    }
    let mut wanted = BTreeMap::new();
    for name in &args.pools {
        let Some((id, pool)) = map.pools.iter().find(|(_, pool)| pool.name == *name) else {
            let existing = map.pools.values().map(|pool| pool.name.clone()).collect::<Vec<_>>().join(", ");
            return Err(CliError::NoPool { name: name.clone(), existing });
        };
        wanted.insert(*id, pool);
    }
    Ok(wanted)
}

fn answer(members: &Members, map: &OsdMap, image: ImageReading) -> ImageAnswer {
    let mut users: Vec<EntityAddr> = image.watchers.iter().map(|watch| watch.address).collect();
    users.extend(image.locks.iter().filter_map(|lock| lock.address));
    let nameless = users.is_empty() && !(image.unknown.is_empty() && image.locks.is_empty());
    let (verdict, member) = judge(&users, members, &map.blocklist);
    let watchers = image.watchers.into_iter().map(|watch| WatcherAnswer {
        address: watch.address,
        client: format!("client.{}", watch.client),
        cookie: watch.cookie,
    });
    ImageAnswer {
        pool: image.pool,
        namespace: image.namespace,
        image: image.image,
        watchers: watchers.collect(),
        lock: image.locks.first().cloned(),
        locks: image.locks,
        unknown: image.unknown,
        member: member.map(str::to_owned),
        location: None,
        verdict: if nameless { ImageVerdict::UnknownAddress } else { verdict },
    }
}

fn text(images: &[ImageAnswer]) -> String {
    let mut rows = table(["IMAGE", "WATCHERS", "LOCK", "MEMBER", "VERDICT"]);
    for image in images {
        let path = path(&image.pool, &image.namespace, &image.image);
        let watchers: Vec<String> = image.watchers.iter().map(|watch| watch.address.to_string()).collect();
        let verdict = match image.verdict {
            ImageVerdict::Unused => "unused",
            ImageVerdict::OneMember => "one member",
            ImageVerdict::UnknownAddress => "unknown address",
            ImageVerdict::Fenced => "fenced",
            ImageVerdict::SeveralMembers => "SEVERAL MEMBERS",
        };
        rows.add_row([
            path.into(),
            Cell::lines(watchers),
            Cell::lines(image.locks.iter().map(owner).collect()),
            image.member.clone().unwrap_or_default().into(),
            verdict.into(),
        ]);
    }
    rows.to_string()
}

fn owner(lock: &LockOwner) -> String {
    lock.address.map_or_else(|| format!("{} (no address)", lock.owner), |address| address.to_string())
}
