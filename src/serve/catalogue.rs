//! Every metric: its name, labels and meaning. docs/metrics.md has the same rows, and a test compares them.

use prometheus::proto::MetricType;

#[derive(Debug, Clone, Copy)]
pub(crate) struct MetricFamilyRow {
    pub(crate) name: &'static str,
    pub(crate) kind: MetricType,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricFamilyRow {
    MetricFamilyRow { name, kind: MetricType::GAUGE, labels, help }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricFamilyRow {
    MetricFamilyRow { name, kind: MetricType::COUNTER, labels, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricFamilyRow {
    MetricFamilyRow { name, kind: MetricType::HISTOGRAM, labels, help }
}

#[rustfmt::skip] // One line a metric, as in the documentation.
pub(crate) const METRICS: &[MetricFamilyRow] = &[
    gauge("rbd_guardian_build_info", &["version"], "Version of this guardian; always 1."),
    gauge("rbd_guardian_outlook", &["word"], "1 for the word that `status` begins with: armed, partial, disarmed, holding or blind."),
    gauge("rbd_guardian_published_timestamp_seconds", &[], "When the event loop published what is served here."),
    gauge("rbd_guardian_start_timestamp_seconds", &[], "When the daemon started."),
    gauge("rbd_guardian_leading", &[], "1 if this guardian leads, 0 if it stands by or is not that far."),
    gauge("rbd_guardian_stage", &["stage"], "1 for the stage of this guardian: connecting, standby or leading."),
    gauge("rbd_guardian_leader_info", &["guardian", "host"], "The leader that this guardian knows of; always 1."),
    gauge("rbd_guardian_leader_epoch", &[], "Raised by each takeover of the lead."),
    counter("rbd_guardian_leads_total", &[], "How often this guardian began to lead."),
    gauge("rbd_guardian_ready", &[], "1 if a lost member could be fenced now: `/readyz` answers 200."),
    gauge("rbd_guardian_reading_fresh", &["source"], "1 if this source answered within the last seconds: incus or ceph."),
    gauge("rbd_guardian_cannot_record", &[], "1 if the ledger cannot be written, so that nothing is fenced or released."),
    gauge("rbd_guardian_holds", &[], "1 if the leader only holds fences, because neither it nor another guardian is fit to begin one."),
    gauge("rbd_guardian_login_timestamp_seconds", &[], "When a new connection to Ceph was made last; each guardian tries it once a minute."),
    gauge("rbd_guardian_login_refused", &[], "1 if Ceph refused the last new connection: the key was replaced, or files are missing."),
    gauge("rbd_guardian_disarmed", &[], "1 while an operator lets no fence begin by itself."),
    gauge("rbd_guardian_disarmed_since_timestamp_seconds", &[], "When the operator disarmed the guardians; absent while they are armed."),
    gauge("rbd_guardian_disarmed_until_timestamp_seconds", &[], "When that ends by itself; absent while they are armed."),
    gauge("rbd_guardian_members", &["health"], "Members by health."),
    gauge("rbd_guardian_members_without_address", &[], "Members of which no Ceph address is known: they cannot be fenced."),
    gauge("rbd_guardian_member_state", &["member", "state"], "1 for each member that is not simply watched; at most 20."),
    gauge("rbd_guardian_fences", &["state"], "Fences in force by state."),
    gauge("rbd_guardian_fence_since_timestamp_seconds", &["fence", "member", "state"], "When each fence in force was recorded; at most 20."),
    gauge("rbd_guardian_fence_coverage", &["coverage"], "Fences in force by coverage."),
    gauge("rbd_guardian_fence_entries", &["kind"], "Blocklist entries of fences in force: host or client."),
    gauge("rbd_guardian_fence_breaches", &[], "Breaches of fences in force."),
    gauge("rbd_guardian_pending_pgs", &["pool"], "PGs that have not proved a fence, by pool; at most 20."),
    counter("rbd_guardian_fence_changes_total", &["state"], "How often a fence came to a state while this guardian led."),
    histogram("rbd_guardian_fence_phase_seconds", &["phase"], "Time from the intent to the entries (commit), from there to the seal (seal), and from a breach to the next seal (mend)."),
    gauge("rbd_guardian_other_entries", &["origin"], "Blocklist entries that no fence accounts for."),
    gauge("rbd_guardian_conflicts", &[], "Uses of images that do not belong where Incus places the instance."),
    gauge("rbd_guardian_ghost_watches", &[], "Clients that watch images and that no monitor knows."),
    gauge("rbd_guardian_unreadable_items", &[], "Items of Ceph's answers that could not be read or understood."),
    gauge("rbd_guardian_images", &[], "Images that Incus lists in guarded pools."),
    gauge("rbd_guardian_images_in_use", &[], "Images with a watcher or a lock, by the last sweep."),
    gauge("rbd_guardian_sweep_timestamp_seconds", &[], "When the last sweep of watchers and locks ended."),
    gauge("rbd_guardian_osdmap_epoch", &[], "The newest osdmap epoch that was examined."),
    gauge("rbd_guardian_osdmap_timestamp_seconds", &[], "When an osdmap was read last."),
    gauge("rbd_guardian_incus_timestamp_seconds", &["scope"], "When the last reading of Incus began: state, or everything."),
    gauge("rbd_guardian_gate", &["state"], "1 for the state of the gate: installed, partial, absent, off or unknown."),
    gauge("rbd_guardian_gate_missing", &["member"], "1 for each member that would heal without asking the gate; at most 20."),
    gauge("rbd_guardian_gate_epoch", &[], "The last epoch of the gate's keys."),
    gauge("rbd_guardian_gate_open_members", &[], "Members whose instances may be placed elsewhere."),
    gauge("rbd_guardian_alarms", &["code", "severity"], "Alarms that last, by code; severity critical or warning."),
    gauge("rbd_guardian_unnamed", &["metric"], "Items that a metric with at most 20 names leaves out."),
    counter("rbd_guardian_requests_total", &["verb"], "Requests of operators that this guardian took as the leader."),
    counter("rbd_guardian_inputs_total", &["input"], "What the core took in."),
    histogram("rbd_guardian_effect_seconds", &["effect"], "What the core had done, and how long it took: sweeps, osdmaps, barriers, ledger and gate writes."),
    counter("rbd_guardian_ledger_write_failures_total", &[], "Writes to the ledger that were not done."),
    counter("rbd_guardian_events_lost_total", &[], "Events of Incus that were not kept, because too many came at once."),
    counter("rbd_guardian_log_lines_total", &["level"], "Lines of the log about members, fences and the lead."),
    counter("process_cpu_seconds_total", &[], "User and system time of the process."),
    gauge("process_resident_memory_bytes", &[], "Resident memory of the process."),
    gauge("process_open_fds", &[], "Open files of the process."),
    gauge("process_max_fds", &[], "Limit on open files of the process."),
];

/// Of more items of one metric the rest is counted.
pub(crate) const NAMED: usize = 20;
