//! `doctor`: what would stop a fence from working here. Changes nothing.

pub(super) mod check;
mod incus;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rbd_guardian_core::guardian::Guardian;
use rbd_guardian_core::guardian::io::{Input, Now};
use rbd_guardian_core::model::addr::EntityAddr;
use rbd_guardian_core::model::barrier::{PoolProof, PoolToProve};
use rbd_guardian_core::model::ceph_snapshot::{CephSnapshot, DaemonKind};
use rbd_guardian_core::model::osdmap::{DataPools, Guarded, OsdMap, PoolId};
use rbd_guardian_core::model::record::VERSION;
use rbd_guardian_core::model::target::Target;
use rbd_guardian_core::rules::plan::{PlanRequest, plan};
use serde_json::json;

use super::answer::table;
use super::context::Context;
use super::doctor::check::{Check, CheckVerdict, check};
use super::error::CliError;
use super::seen::known;
use super::{Exit, found};
use crate::ceph::barrier::{Probes, barrier};
use crate::ceph::look::CLIENTS_WITHIN;
use crate::ceph::rados::cluster::Cluster;
use crate::ceph::rados::errno::{ErrnoMeaning, meaning};
use crate::ceph::rados::ioctx::IoCtx;
use crate::ceph::{daemons, osdmap, sessions, watchers};
use crate::ledger::{Ledger, LedgerWriteError, Snapshot};
use crate::{clock, descriptors};

/// How long PGs may take to answer.
const PROVE_WITHIN: Duration = Duration::from_secs(3);

pub(super) fn run(context: &Context) -> Result<Exit, CliError> {
    let mut checks = Vec::new();
    let dump = context.read(osdmap::dump)?;
    let map = dump.map;
    checks.push(check("osdmap", CheckVerdict::Ok, format!("epoch {}", map.epoch)));
    checks.push(files(&dump.osds));
    checks.extend(pools(context, &map));
    checks.extend(keyring(context));
    checks.extend(or_why("capabilities", capabilities(context)));
    checks.extend(or_why("cap `lock break_lock`", breakable(context, &map)));
    checks.extend(or_why("ledger", ledger(context)));
    checks.extend(or_why("sources", readable(context, &map)));
    checks.extend(provable(context, &map));
    checks.push(check("keys that may unfence", CheckVerdict::Note, UNFENCING));
    checks.push(check(
        "keys that may ask guardians",
        CheckVerdict::Note,
        requesting(&context.config.ledger.pool),
    ));
    checks.extend(incus::checks(context));
    checks.extend(or_why("daemons", context.look().map(|world| daemons_and_members(context, &world))));
    context.print(&checks, |checks| {
        let mut rows = table(["CHECK", "VERDICT", "DETAIL"]);
        for Check { check, verdict, detail } in checks {
            let verdict = match verdict {
                CheckVerdict::Ok => "ok",
                CheckVerdict::Note => "note",
                CheckVerdict::Warn => "warn",
                CheckVerdict::Fail => "FAIL",
            };
            rows.add_row([check.as_str(), verdict, detail.as_str()]);
        }
        rows.to_string()
    })?;
    Ok(if checks.iter().any(|check| check.verdict == CheckVerdict::Fail) { Exit::Failed } else { Exit::Done })
}

/// Ceph takes a socket for each OSD.
fn files(osds: &[(i64, EntityAddr)]) -> Check {
    let osds = osds.iter().map(|(number, _)| number).collect::<BTreeSet<_>>().len();
    let (limit, needed) = (descriptors::limit(), descriptors::needed(osds));
    let compared = format!("{limit} allowed, {osds} OSDs need {needed}");
    if limit >= needed {
        return check("file descriptors", CheckVerdict::Ok, compared);
    }
    let detail =
        format!("{compared}: no fence could be sealed; raise LimitNOFILE of the service, or `ulimit -n`");
    check("file descriptors", CheckVerdict::Fail, detail)
}

/// A part that could not be checked is a finding, not the end of the report.
fn or_why(name: &str, checks: Result<Vec<Check>, CliError>) -> Vec<Check> {
    checks.unwrap_or_else(|fault| vec![check(name, CheckVerdict::Fail, fault.cause())])
}

fn pools(context: &Context, map: &OsdMap) -> Vec<Check> {
    let guarded = &context.config.policy.guarded;
    let mut checks = Vec::new();
    for pool in guarded.pools(map).values() {
        let name = format!("pool {}", pool.name);
        checks.push(match pool.overlay {
            Some(_) => check(name, CheckVerdict::Fail, "overlaid by a cache tier: its PGs cannot be proved"),
            None if pool.eio => check(
                name,
                CheckVerdict::Fail,
                "has the eio flag: clients do not ask its PGs, so nothing can be proved",
            ),
            None => check(name, CheckVerdict::Ok, format!("guarded, {} PGs", pool.pg_num)),
        });
    }
    if checks.is_empty() {
        checks.push(check("pools", CheckVerdict::Fail, "no pool could hold images: nothing to prove"));
    }
    for name in &guarded.except {
        if !map.pools.values().any(|pool| pool.name == *name) {
            checks.push(check("except_pools", CheckVerdict::Warn, format!("there is no pool '{name}'")));
        }
    }
    if map.reads_paused {
        checks.push(check(
            "flags",
            CheckVerdict::Fail,
            "reads are paused: no PG can be proved (`ceph osd unpause`)",
        ));
    }
    if !map.knows_ranges {
        let detail = "these monitors have no range entries (Ceph 16.2.11 or later has): a short host entry cannot be replaced";
        checks.push(check("ranges", CheckVerdict::Warn, detail));
    }
    checks
}

/// Commands the guardian must be allowed, tried with arguments the monitors reject: they judge the capability
/// first, so EINVAL or ENOENT is a yes and EACCES a no, and nothing changes either way.
fn capabilities(context: &Context) -> Result<Vec<Check>, CliError> {
    const NOBODY: &str = "rbd-guardian.doctor.nobody";
    let commands = [
        (json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": NOBODY}), "osd blocklist"),
        (json!({"prefix": "mgr fail", "who": NOBODY}), "mgr fail"),
        (json!({"prefix": "mds fail", "role_or_gid": NOBODY}), "mds fail"),
    ];
    let mut checks = Vec::new();
    for (command, name) in commands {
        let answer = context.read(move |cluster: &Cluster| Ok(cluster.mon_command(&command)))?;
        let mut denied = matches!(&answer, Err(error) if meaning(error.errno) == ErrnoMeaning::Denied);
        let title = format!("cap `{name}`");
        if denied && name == "osd blocklist" {
            // A key for the members' addresses alone: each of them is tried.
            let refused = refused_addresses(context)?;
            if refused.as_ref().is_some_and(Vec::is_empty) {
                checks.push(check(
                    title,
                    CheckVerdict::Ok,
                    "allowed for the addresses of the members configured",
                ));
                continue;
            }
            if let Some(refused) = refused.filter(|refused| refused.len() < addresses(context).len()) {
                let detail = format!(
                    "not allowed for {}: run deploy/ceph/create-key with the addresses of all members",
                    refused.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
                );
                checks.push(check(title, CheckVerdict::Fail, detail));
                continue;
            }
            denied = true;
        }
        checks.push(if denied {
            check(
                title,
                CheckVerdict::Fail,
                format!("missing: add mon `allow command \"{name}\"` (deploy/ceph)"),
            )
        } else {
            check(title, CheckVerdict::Ok, "allowed")
        });
    }
    Ok(checks)
}

/// The Ceph addresses of the members that are configured.
fn addresses(context: &Context) -> Vec<IpAddr> {
    context.config.members.0.iter().flat_map(|member| member.addresses.clone()).collect()
}

/// Which of them the key may not add entries for; `None` where there are none. Tried by removing an entry that nobody has: the
/// monitors judge the capability first.
fn refused_addresses(context: &Context) -> Result<Option<Vec<IpAddr>>, CliError> {
    let all = addresses(context);
    let mut refused = Vec::new();
    for ip in &all {
        let addr = EntityAddr { ip: *ip, port: 0, nonce: u32::MAX }.to_string();
        let command = json!({"prefix": "osd blocklist", "blocklistop": "rm", "addr": addr});
        let answer = context.read(move |cluster: &Cluster| Ok(cluster.mon_command(&command)))?;
        if matches!(&answer, Err(error) if meaning(error.errno) == ErrnoMeaning::Denied) {
            refused.push(*ip);
        }
    }
    Ok((!all.is_empty()).then_some(refused))
}

/// Who may read the key? `None` where its file is not named.
fn keyring(context: &Context) -> Option<Check> {
    let path = context.keyring.as_ref()?;
    let mode = match std::fs::metadata(path) {
        Ok(found) => found.permissions().mode() & 0o777,
        Err(error) => {
            return Some(check("keyring", CheckVerdict::Warn, format!("{}: {error}", path.display())));
        }
    };
    Some(if mode & 0o077 == 0 {
        check("keyring", CheckVerdict::Ok, format!("{}: only its owner can read it", path.display()))
    } else {
        let detail = format!(
            "{}: others can read it (mode {mode:03o}): run `chmod 600 {}`, and replace the key if somebody may have read it",
            path.display(),
            path.display()
        );
        check("keyring", CheckVerdict::Warn, detail)
    })
}

/// May stale exclusive locks be broken? Tried on a header that does not exist: ENOENT is a yes.
fn breakable(context: &Context, map: &OsdMap) -> Result<Vec<Check>, CliError> {
    const NOBODY: &str = "rbd_header.rbd-guardian.doctor.nobody";
    let title = "cap `lock break_lock`";
    let Some(id) = context.config.policy.guarded.pools(map).keys().next().copied() else {
        return Ok(Vec::new());
    };
    let answer = context.read(move |cluster: &Cluster| {
        Ok(IoCtx::open(cluster, id).and_then(|io| io.break_lock(NOBODY, "rbd_lock", "client.0", "")))
    })?;
    let denied = answer.is_err_and(|errno| meaning(errno) == ErrnoMeaning::Denied);
    Ok(vec![if denied {
        check(
            title,
            CheckVerdict::Fail,
            "missing: add osd `allow class lock break_lock object_prefix rbd_header.` (deploy/ceph)",
        )
    } else {
        check(title, CheckVerdict::Ok, "allowed")
    }])
}

/// Can what must be recorded be recorded?
fn ledger(context: &Context) -> Result<Vec<Check>, CliError> {
    let ledger = Ledger::open(&context.cluster, &context.config.ledger, &context.deadline)?;
    let pool = &context.config.ledger.pool;
    let mut checks: Vec<Check> =
        ledger.notes().iter().map(|note| check("ledger pool", CheckVerdict::Warn, note)).collect();
    if checks.is_empty() {
        checks.push(check("ledger pool", CheckVerdict::Ok, format!("'{pool}': replicated, safe")));
    }
    let deadline = context.deadline.at_most(PROVE_WITHIN);
    checks.push(match ledger.may_write(&deadline) {
        Ok(()) => check("ledger write", CheckVerdict::Ok, "allowed"),
        Err(error) => check("ledger write", CheckVerdict::Fail, error.to_string()),
    });
    let snapshot = match ledger.read(&deadline) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            checks.push(check("ledger", CheckVerdict::Fail, error.to_string()));
            return Ok(checks);
        }
    };
    if let Some(found) = snapshot.newer() {
        let known = VERSION;
        checks.push(check(
            "ledger",
            CheckVerdict::Fail,
            LedgerWriteError::NewerLedger { found, known }.to_string(),
        ));
    }
    checks.extend(snapshot.unread().iter().map(|(key, why)| {
        check(
            "ledger",
            CheckVerdict::Fail,
            format!("'{key}' is not understood ({why}): guardians do not overwrite it"),
        )
    }));
    checks.push(size(context, &snapshot)?);
    Ok(checks)
}

/// Ceph's warning of large omaps is about an object that is slow to recover.
fn size(context: &Context, snapshot: &Snapshot) -> Result<Check, CliError> {
    const OPTION: &str = "osd_deep_scrub_large_omap_object_key_threshold";
    let keys = snapshot.keys();
    let asked = json!({"prefix": "config get", "who": "osd", "key": OPTION});
    let answer = context.read(move |cluster: &Cluster| Ok(cluster.mon_command(&asked)))?;
    let limit = answer.ok().and_then(|text| String::from_utf8(text).ok()?.trim().parse::<u64>().ok());
    Ok(match limit {
        Some(limit) if keys > limit / 2 => {
            let detail = format!("{keys} keys, and Ceph warns at {limit}: lower ledger.audit_entries");
            check("ledger", CheckVerdict::Warn, detail)
        }
        Some(limit) => check("ledger", CheckVerdict::Ok, format!("{keys} keys (Ceph warns at {limit})")),
        None => check("ledger", CheckVerdict::Ok, format!("{keys} keys")),
    })
}

fn readable(context: &Context, map: &OsdMap) -> Result<Vec<Check>, CliError> {
    let deadline = context.deadline.at_most(CLIENTS_WITHIN);
    let mons = context.read(daemons::mons)?;
    let mut checks = Vec::new();
    let mut unclear: Vec<String> = map.not_understood.iter().chain(&mons.unread).cloned().collect();
    for mon in mons.daemons.iter().filter(|mon| !mons.quorum.contains(&mon.name)) {
        checks.push(check(
            mon.to_string(),
            CheckVerdict::Warn,
            "not in the quorum: the sessions of its clients cannot be listed",
        ));
    }
    for (mon, answer) in sessions::ask(&context.cluster, &mons.quorum).answers(&deadline) {
        let name = format!("sessions of mon.{mon}");
        checks.push(match answer {
            Ok(sessions) => {
                unclear.extend(sessions.unknown.iter().map(|what| format!("a session of mon.{mon}: {what}")));
                check(name, CheckVerdict::Ok, format!("{} clients", sessions.known.len()))
            }
            Err(error) => check(name, CheckVerdict::Fail, error.to_string()),
        });
    }
    let (mut images, mut data_pools) = (0, DataPools::new());
    let scope = watchers::SweepScope::of(&context.config.policy.guarded.pools(map));
    let unread = watchers::sweep(&context.cluster, &scope, &watchers::all(), &deadline, &mut |image| {
        images += 1;
        image.note_data_pool(&mut data_pools);
        unclear.extend(image.unknown.iter().map(|what| format!("image {}: {what}", image.path())));
    });
    checks.push(check("images", CheckVerdict::Ok, format!("{images} read")));
    checks.extend(data_checks(&context.config.policy.guarded, map, data_pools));
    let told = unclear.into_iter().map(|what| check("not understood", CheckVerdict::Warn, what));
    checks.extend(told);
    checks.extend(unread.into_iter().map(|what| check("images", CheckVerdict::Fail, what)));
    Ok(checks)
}

/// The pools that image headers name for their data: guarded whatever their tags say, unless they are excepted.
fn data_checks(guarded: &Guarded, map: &OsdMap, found: DataPools) -> Vec<Check> {
    let mut guarded = guarded.clone();
    let tagged: BTreeSet<PoolId> = guarded.pools(map).into_keys().collect();
    guarded.note_data(&found, true);
    let mut checks = Vec::new();
    for (headers, pools) in &found {
        for excepted in guarded.excepted_data(headers, map) {
            let text = format!(
                "excepted by ceph.except_pools, and images in pool {headers} keep their data there: no instance on it is placed \
                 elsewhere; take it out of ceph.except_pools"
            );
            checks.push(check(format!("pool {excepted}"), CheckVerdict::Fail, text));
        }
        let named =
            guarded.pools(map).into_iter().filter(|(id, _)| pools.contains(id) && !tagged.contains(id));
        checks.extend(named.map(|(_, pool)| {
            let text =
                format!("guarded, {} PGs: images in pool {headers} keep their data there", pool.pg_num);
            check(format!("pool {}", pool.name), CheckVerdict::Ok, text)
        }));
    }
    checks
}

/// Does every PG answer the question that a fence asks it?
fn provable(context: &Context, map: &OsdMap) -> Vec<Check> {
    let guarded = context.config.policy.guarded.pools(map).into_iter();
    let pools: Vec<_> = guarded.map(|(id, pool)| PoolToProve::new(id, pool)).collect();
    let deadline = context.deadline.at_most(PROVE_WITHIN);
    let names = &mut Probes::default();
    let proofs = barrier(&context.cluster, &pools, map.epoch, names, &deadline, &mut |_| {});
    let proof = |proof: &PoolProof| {
        let (verdict, why) = match &proof.trouble {
            _ if proof.is_complete() => (CheckVerdict::Ok, String::new()),
            Some(trouble) => (CheckVerdict::Fail, format!(": {trouble}")),
            None => (CheckVerdict::Fail, format!(": no answer from {}", proof.pending_names().join(" "))),
        };
        let detail = format!("{} of {} PGs answer{why}", proof.proved(), proof.pool.pg_num);
        check(format!("proof {}", proof.pool.name), verdict, detail)
    };
    proofs.iter().map(proof).collect()
}

/// Listing keys takes more than the guardian may.
const UNFENCING: &str = "the guardian's key may not list keys, so check this yourself: no member's key may run `osd blocklist rm`. To list the keys that may: \
    ceph auth ls -f json | jq -r '.auth_dump[] | select(.caps.mon // \"\" | test(\"[*]|allow rw|osd blocklist\")) | .entity'";

/// A key that may write everywhere may write requests to the ledger as well.
fn requesting(ledger_pool: &str) -> String {
    format!(
        "the guardian's key may not list keys, so check this yourself: no member's key may write to the ledger's pool, as \
         `profile rbd` without `pool=` and `allow w` without `pool=` or `tag` allow. To list the keys that may: ceph auth ls -f json | jq -r \
         '.auth_dump[] | select(.caps.osd // \"\" | split(\",\") | any(test(\"[*]|profile rbd *$|allow [rx]*w[rwx]* \
         *$|pool={ledger_pool}\"))) | .entity'; scope a member's key: ceph auth caps client.NAME mon 'profile rbd' osd \
         'profile rbd pool=POOL' mgr 'profile rbd pool=POOL'"
    )
}

fn daemons_and_members(context: &Context, world: &CephSnapshot) -> Vec<Check> {
    let mut checks = Vec::new();
    // The monitors look for that grant only once they know the mds, so it cannot be tried with a name that nobody has
    // (`MDSMonitor::filesystem_command`).
    if world.daemons.iter().any(|daemon| daemon.kind == DaemonKind::Mds) {
        let detail = "`mds fail` also needs mon `allow service mds-failover w`, which only a failover of an mds tries: check it \
                      with `ceph auth get client.ID`";
        checks.push(check("cap `mds-failover`", CheckVerdict::Note, detail));
    }
    checks.extend(members(context, world));
    checks
}

/// Would each member be fenced as a whole, if it were lost now?
fn members(context: &Context, world: &CephSnapshot) -> Vec<Check> {
    let mut core = match known(context) {
        Ok(core) => core.map(|(core, _)| core),
        Err(fault) => return vec![check("members", CheckVerdict::Fail, fault.cause())],
    };
    let now = Now { boot: clock::boot(), wall: clock::wall() };
    if let Some(core) = &mut core {
        core.handle(now, Input::Looked(Ok(world.clone())));
    }
    let members = core.as_ref().map_or_else(|| context.config.members.clone(), Guardian::members);
    let mut checks = core.as_ref().map_or_else(Vec::new, |core| found::checks(context, core, &world.map));
    if members.0.is_empty() {
        checks.push(check(
            "members",
            CheckVerdict::Warn,
            "no member is known: only addresses can be fenced (--address)",
        ));
        return checks;
    }
    for member in &members.0 {
        let mut request = PlanRequest::of(Target::Member(member.name.clone()));
        // If it were lost, it would not answer.
        request.overrides.reachable = true;
        let name = format!("member {}", member.name);
        let planned = match &core {
            Some(core) => core.plan(request.target, request.overrides).unwrap_or_else(|| Err(Vec::new())),
            None => plan(&request, &members, world, &context.config.policy),
        };
        match planned {
            Ok(plan) => {
                let detail =
                    format!("would be fenced as a whole host; {} clients are known", plan.known_clients);
                checks.push(check(name, CheckVerdict::Ok, detail));
            }
            Err(refusals) => checks.extend(
                refusals.iter().map(|refusal| check(name.clone(), CheckVerdict::Fail, refusal.to_string())),
            ),
        }
    }
    let own: Vec<String> = world.own.iter().map(ToString::to_string).collect();
    checks.push(check("own address", CheckVerdict::Ok, format!("{} at {}", own.join(", "), clock::wall())));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `profile rbd` without `pool=` may write requests into the ledger.
    #[test]
    fn every_osd_cap_that_is_recommended_for_a_member_is_scoped_to_its_pool() {
        let asking = requesting("kept");
        assert!(asking.contains("|pool=kept\""), "{asking}");
        let texts = [
            asking.as_str(),
            include_str!("doctor/incus.rs"),
            include_str!("../../docs/operations.md"),
            include_str!("../../docs/security.md"),
        ];
        let mut found = 0;
        for text in texts {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for rest in words.split("osd 'profile rbd").skip(1) {
                found += 1;
                assert!(rest.starts_with(" pool="), "{rest}");
            }
        }
        assert!(found >= 3, "{found}");
    }
}
