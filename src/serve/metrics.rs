//! `/metrics`: what was published, as samples. Nothing is told of each volume while all is well, and of what is not well
//! at most twenty are named.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rbd_guardian_core::guardian::status::{FenceStatus, Status};
use rbd_guardian_core::model::gate_keys::GateState;
use serde_json::Value;

use crate::serve::catalogue::NAMED;
use crate::serve::families::Families;
use crate::serve::figures::PHASES;
use crate::serve::process::ProcessUse;
use crate::serve::published::Published;
use crate::serve::ready;
use crate::shown::outlook::{WORDS, severity};

pub(crate) fn text(published: &Published) -> String {
    let mut found = Families::default();
    guardian(published, &mut found);
    figures(published, &mut found);
    process(&mut found);
    if let Some(status) = &published.core {
        readings(published, status, &mut found);
        members(status, &mut found);
        fences(status, &mut found);
        gate(status, &mut found);
        alarms(published, &mut found);
    }
    found.text()
}

#[allow(clippy::cast_precision_loss)] // No count comes near 2^53.
fn count(number: usize) -> f64 {
    number as f64
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn guardian(published: &Published, found: &mut Families) {
    let own = &published.own;
    found.put("rbd_guardian_build_info", &[crate::VERSION], 1.0);
    for word in WORDS {
        found.put("rbd_guardian_outlook", &[word.word()], flag(published.outlook().word == word));
    }
    found.put("rbd_guardian_published_timestamp_seconds", &[], seconds(published.wall));
    found.put("rbd_guardian_start_timestamp_seconds", &[], seconds(published.began));
    found.put("rbd_guardian_leading", &[], flag(published.leads));
    for stage in ["connecting", "standby", "leading"] {
        found.put("rbd_guardian_stage", &[stage], flag(own["stage"] == stage));
    }
    let leader = &published.status()["leader"];
    if let (Some(name), Some(host)) = (leader["guardian"].as_str(), leader["host"].as_str()) {
        found.put("rbd_guardian_leader_info", &[name, host], 1.0);
        found.put("rbd_guardian_leader_epoch", &[], leader["epoch"].as_f64().unwrap_or_default());
    }
    found.put("rbd_guardian_ready", &[], flag(ready::checks(published).iter().all(|check| check.ok)));
    found.put("rbd_guardian_cannot_record", &[], flag(published.status()["cannot_record"].is_string()));
    found.put("rbd_guardian_holds", &[], flag(own["holds"].is_string()));
    found.put("rbd_guardian_login_refused", &[], flag(own["ceph_trouble"].is_string()));
    disarmed(published, found);
}

fn disarmed(published: &Published, found: &mut Families) {
    let disarmed = published.core.as_ref().and_then(|status| status.disarmed.as_ref());
    found.put("rbd_guardian_disarmed", &[], flag(disarmed.is_some()));
    if let Some(disarmed) = disarmed {
        found.put("rbd_guardian_disarmed_since_timestamp_seconds", &[], seconds(disarmed.since));
        found.put("rbd_guardian_disarmed_until_timestamp_seconds", &[], seconds(disarmed.until));
    }
}

#[allow(clippy::cast_precision_loss)]
fn figures(published: &Published, found: &mut Families) {
    let figures = &published.figures;
    for (name, counts) in [
        ("rbd_guardian_requests_total", &figures.requests),
        ("rbd_guardian_inputs_total", &figures.inputs),
        ("rbd_guardian_log_lines_total", &figures.lines),
        ("rbd_guardian_fence_changes_total", &figures.changes),
    ] {
        for (label, number) in counts {
            found.put(name, &[label], *number as f64);
        }
    }
    for (effect, spread) in &figures.effects {
        found.spread("rbd_guardian_effect_seconds", &[effect], spread);
    }
    for phase in PHASES {
        let none = Default::default();
        found.spread(
            "rbd_guardian_fence_phase_seconds",
            &[phase],
            figures.phases.get(phase).unwrap_or(&none),
        );
    }
    found.put("rbd_guardian_ledger_write_failures_total", &[], figures.ledger_failures as f64);
    found.put("rbd_guardian_events_lost_total", &[], figures.events_lost as f64);
    found.put("rbd_guardian_leads_total", &[], figures.leads as f64);
    if let Some(at) = figures.logged_in {
        found.put("rbd_guardian_login_timestamp_seconds", &[], seconds(at));
    }
}

#[allow(clippy::cast_precision_loss)]
fn process(found: &mut Families) {
    let ProcessUse { cpu, resident, files, most_files } = ProcessUse::now();
    let values = [
        ("process_cpu_seconds_total", cpu.map(|cpu| cpu.as_secs_f64())),
        ("process_resident_memory_bytes", resident.map(|bytes| bytes as f64)),
        ("process_open_fds", files.map(|files| files as f64)),
        ("process_max_fds", most_files.map(|files| files as f64)),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            found.put(name, &[], value);
        }
    }
}

fn readings(published: &Published, status: &Status, found: &mut Families) {
    found.put("rbd_guardian_reading_fresh", &["incus"], flag(status.platform.fresh));
    found.put("rbd_guardian_reading_fresh", &["ceph"], flag(status.storage.fresh));
    if let Some(epoch) = status.epoch {
        found.put("rbd_guardian_osdmap_epoch", &[], f64::from(epoch.0));
    }
    let Some(sums) = &published.sums else { return };
    for (name, number) in [
        ("rbd_guardian_conflicts", sums.conflicts),
        ("rbd_guardian_ghost_watches", sums.ghost_watches),
        ("rbd_guardian_unreadable_items", sums.unreadable),
        ("rbd_guardian_images", sums.images),
        ("rbd_guardian_images_in_use", sums.images_in_use),
    ] {
        found.put(name, &[], count(number));
    }
    for (name, labels, at) in [
        ("rbd_guardian_sweep_timestamp_seconds", &[][..], sums.swept),
        ("rbd_guardian_osdmap_timestamp_seconds", &[], sums.map_read),
        ("rbd_guardian_incus_timestamp_seconds", &["state"], sums.view_read),
        ("rbd_guardian_incus_timestamp_seconds", &["everything"], sums.whole_read),
    ] {
        if let Some(at) = at {
            found.put(name, labels, seconds(at));
        }
    }
}

fn tally<'i>(
    found: &mut Families,
    name: &'static str,
    always: &[&'static str],
    items: impl Iterator<Item = &'i str>,
) {
    let mut counts: BTreeMap<&str, usize> = always.iter().map(|word| (*word, 0)).collect();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    for (word, number) in counts {
        found.put(name, &[word], count(number));
    }
}

/// At most [`NAMED`] of them; the rest is counted.
fn named(found: &mut Families, name: &'static str, items: &[(Vec<&str>, f64)]) {
    for (labels, value) in items.iter().take(NAMED) {
        found.put(name, labels, *value);
    }
    found.put("rbd_guardian_unnamed", &[name], count(items.len().saturating_sub(NAMED)));
}

fn members(status: &Status, found: &mut Families) {
    let health: Vec<Value> =
        status.members.iter().map(|line| serde_json::to_value(line.health).unwrap_or_default()).collect();
    let always = ["healthy", "control-plane-only", "silent", "unknown"];
    tally(found, "rbd_guardian_members", &always, health.iter().filter_map(Value::as_str));
    let nameless = status.members.iter().filter(|line| line.addresses.is_empty()).count();
    found.put("rbd_guardian_members_without_address", &[], count(nameless));
    let odd = status.members.iter().filter(|line| line.state != "watching");
    let odd: Vec<_> = odd.map(|line| (vec![line.name.as_str(), line.state], 1.0)).collect();
    named(found, "rbd_guardian_member_state", &odd);
}

const STATES: [&str; 6] = ["intended", "committed", "pending", "sealed", "breached", "releasing"];

fn fences(status: &Status, found: &mut Families) {
    let state = |fence: &FenceStatus| fence.record.state.word();
    tally(found, "rbd_guardian_fences", &STATES, status.fences.iter().map(state));
    let since = |fence: &'_ FenceStatus| seconds(fence.record.since);
    let lines: Vec<_> = status
        .fences
        .iter()
        .map(|fence| {
            let member = fence.record.member.as_deref().unwrap_or_default();
            (vec![fence.record.id.as_str(), member, state(fence)], since(fence))
        })
        .collect();
    named(found, "rbd_guardian_fence_since_timestamp_seconds", &lines);
    let coverage: Vec<Value> = status
        .fences
        .iter()
        .map(|fence| serde_json::to_value(fence.record.coverage).unwrap_or_default())
        .collect();
    let always = ["whole-host", "known-clients", "incomplete"];
    tally(found, "rbd_guardian_fence_coverage", &always, coverage.iter().filter_map(Value::as_str));
    let entries = status.fences.iter().flat_map(|fence| fence.record.entries.keys());
    tally(found, "rbd_guardian_fence_entries", &["host", "client"], entries.map(|entry| entry.kind()));
    let breaches = status.fences.iter().map(|fence| fence.record.breaches.len()).sum();
    found.put("rbd_guardian_fence_breaches", &[], count(breaches));
    let mut pending: BTreeMap<&str, usize> = BTreeMap::new();
    for pg in status.fences.iter().flat_map(|fence| &fence.pending) {
        *pending.entry(pg.split('.').next().unwrap_or_default()).or_default() += 1;
    }
    let pending: Vec<_> = pending.into_iter().map(|(pool, pgs)| (vec![pool], count(pgs))).collect();
    named(found, "rbd_guardian_pending_pgs", &pending);
    let origins: Vec<Value> =
        status.others.iter().map(|other| serde_json::to_value(other.origin).unwrap_or_default()).collect();
    tally(found, "rbd_guardian_other_entries", &[], origins.iter().filter_map(Value::as_str));
}

#[allow(clippy::cast_precision_loss)]
fn gate(status: &Status, found: &mut Families) {
    let state = match &status.gate.state {
        GateState::Unknown => "unknown",
        GateState::Absent => "absent",
        GateState::Partial { .. } => "partial",
        GateState::Installed => "installed",
        GateState::Off => "off",
    };
    for word in ["unknown", "absent", "partial", "installed", "off"] {
        found.put("rbd_guardian_gate", &[word], flag(word == state));
    }
    if let GateState::Partial { missing } = &status.gate.state {
        let missing: Vec<_> = missing.iter().map(|name| (vec![name.as_str()], 1.0)).collect();
        named(found, "rbd_guardian_gate_missing", &missing);
    }
    found.put("rbd_guardian_gate_epoch", &[], status.gate.epoch.0 as f64);
    found.put("rbd_guardian_gate_open_members", &[], count(status.gate.open.len()));
}

fn alarms(published: &Published, found: &mut Families) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for alarm in published.core.iter().flat_map(|status| &status.alarms) {
        *counts.entry(alarm.code).or_default() += 1;
    }
    for (code, number) in counts {
        found.put("rbd_guardian_alarms", &[code, severity(code)], count(number));
    }
}
