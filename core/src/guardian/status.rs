//! What `status` shows: everything the guardian knows, in one piece.

use std::cell::LazyCell;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use crate::guardian::Guardian;
use crate::guardian::gate::{self, GateState};
use crate::guardian::identity::ways_back;
use crate::guardian::io::Now;
use crate::guardian::readings::NOT_PLACED_LASTS;
use crate::guardian::report::Alarm;
use crate::guardian::settings::Trigger;
use crate::model::addr::{ClientAddr, Entry};
use crate::model::epoch::{GateEpoch, OsdEpoch};
use crate::model::fence_id::FenceId;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{InstanceId, MemberStatus};
use crate::model::listed::Listed;
use crate::model::member::Member;
use crate::model::record::{DisarmRecord, FenceRecord, FenceState, Source};
use crate::model::target::Target;
use crate::model::volume::Expected;
use crate::rules::entry_origin::{EntryOrigin, OtherEntry, others};
use crate::rules::loss_evidence::{Health, LossEvidence};
use crate::rules::refusal::Refusal;
use crate::rules::single_writer::Conflict;

/// The whole picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// This guardian.
    pub guardian: String,
    /// Why it decides nothing, if it does not lead.
    pub deposed: Option<String>,
    /// The cluster of members.
    pub platform: ReadingStatus,
    pub storage: ReadingStatus,
    /// Who may begin a fence: `auto`, `manual`; `none` where no cluster of members is watched, so operators alone.
    pub trigger: &'static str,
    /// An operator lets no fence begin by itself for a while.
    pub disarmed: Option<DisarmRecord>,
    /// Why nothing can be recorded, if so.
    pub cannot_record: Option<String>,
    /// The newest osdmap epoch that was examined.
    pub epoch: Option<OsdEpoch>,
    pub gate: GateStatus,
    /// Members, by name.
    pub members: Vec<MemberLine>,
    /// Fences in force.
    pub fences: Vec<FenceStatus>,
    /// Entries of the blocklist that no fence accounts for.
    pub others: Vec<OtherEntry>,
    /// What is not as it should be.
    pub alarms: Vec<Alarm>,
}

/// Whether a source of readings answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReadingStatus {
    /// It answered within the last seconds.
    pub fresh: bool,
    /// How old the last good reading is, in whole seconds.
    pub age_s: Option<u64>,
    /// Why the last one failed.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateStatus {
    /// Where it stands.
    #[serde(flatten)]
    pub state: GateState,
    /// The last epoch that was written or read.
    pub epoch: GateEpoch,
    /// Members whose instances may be placed elsewhere, as it says now at one member or more.
    pub open: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberLine {
    pub name: String,
    /// As its cluster says.
    pub status: Option<MemberStatus>,
    /// What the evidence comes to.
    pub health: Health,
    /// `watching`, or the state of its fence, or `returned-stale`, `stranded`, `suspect`, `refused`.
    pub state: &'static str,
    /// Its addresses, and what says so.
    pub addresses: Vec<AddressStatus>,
    pub fence: Option<FenceId>,
    /// Why it is not fenced yet though it is about to be healed, in words.
    pub waits: Option<String>,
}

/// An address of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressStatus {
    pub address: IpAddr,
    /// What says so.
    pub sources: BTreeSet<Source>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FenceStatus {
    /// As it should be in the ledger.
    #[serde(flatten)]
    pub record: FenceRecord,
    /// PGs that have not answered.
    pub pending: Vec<String>,
    /// What it waits for, in words.
    pub waits: Option<String>,
}

/// Of more items the number tells enough.
const SHOWN: usize = 5;
/// A reading of the storage is fresh for so long: at rest the osdmap is read each 10 s.
const STORAGE_FRESH: Duration = Duration::from_secs(25);

impl Guardian {
    /// Everything, at this moment.
    pub fn status(&self, now: Now) -> Status {
        let age = |at: Duration| now.boot.saturating_sub(at);
        let told = |fresh: bool, age: Option<Duration>, trouble: &Option<String>| ReadingStatus {
            fresh,
            age_s: age.map(|age| age.as_secs()),
            trouble: trouble.clone(),
        };
        let gate = self.view.as_ref().and_then(|view| view.gate.as_ref());
        Status {
            guardian: self.settings.name.clone(),
            deposed: self.deposed.clone(),
            platform: told(
                self.view_is_fresh(),
                self.view.as_ref().map(|_| age(self.view_began)),
                &self.view_failed,
            ),
            storage: told(
                self.map.is_some() && age(self.map_read) < STORAGE_FRESH && self.map_failed.is_none(),
                self.map.as_ref().map(|_| age(self.map_read)),
                &self.map_failed,
            ),
            trigger: match self.settings.trigger {
                _ if !self.settings.platform => "none",
                Trigger::Auto => "auto",
                Trigger::Manual => "manual",
            },
            disarmed: self.disarmed().cloned(),
            cannot_record: self.cannot_record.clone(),
            epoch: self.map.as_ref().map(|map| map.epoch),
            gate: GateStatus {
                state: self.gate_state(),
                epoch: gate
                    .map_or(GateEpoch::default(), |gate| gate::last_epoch(gate, self.recorded_gate_epoch()))
                    .max(self.desk.epoch),
                open: gate.map(gate::sealed_anywhere).unwrap_or_default(),
            },
            members: self.member_statuses(),
            fences: self.fence_statuses(),
            others: self.others.clone().unwrap_or_default(),
            alarms: self.alarms(),
        }
    }

    fn member_statuses(&self) -> Vec<MemberLine> {
        let one = |name: String, ips: Vec<IpAddr>| {
            let evidence = self.evidence.get(&name).cloned().unwrap_or_default();
            let sources = self.book.members.get(&name).map(|member| &member.addresses);
            let source = |ip: IpAddr| {
                sources
                    .and_then(|sources| sources.get(&ip))
                    .cloned()
                    .unwrap_or_else(|| [Source::Operator].into())
            };
            MemberLine {
                status: self.view.as_ref().and_then(|view| view.members.get(&name)).map(|m| m.status.clone()),
                health: evidence.health(self.view_is_fresh(), self.now.boot),
                state: self.state_of(&name, &evidence),
                addresses: ips
                    .into_iter()
                    .map(|ip| AddressStatus { address: ip, sources: source(ip) })
                    .collect(),
                fence: self.fence_of(&name).map(|fence| fence.id().clone()),
                waits: self.waits_to_be_fenced(&name),
                name,
            }
        };
        self.members().0.into_iter().map(|member| one(member.name, member.addresses)).collect()
    }

    /// What holds back the fence of a member that is about to be healed.
    fn waits_to_be_fenced(&self, name: &str) -> Option<String> {
        let target = Target::Member(name.to_owned());
        let begun = self.fence_of(name).is_some() || self.wants.contains_key(&target);
        let left = self.cools_down();
        let disarmed = self.disarmed().map(|disarmed| disarmed.until);
        if begun
            || (left.is_zero() && disarmed.is_none())
            || !self.about_to_be_healed().iter().any(|(wanted, _)| *wanted == target)
        {
            return None;
        }
        if let Some(until) = disarmed {
            return Some(format!(
                "the end of an operator's disarm at {until}; at once: `rbd-guardian fence {name}`, or `rbd-guardian arm`"
            ));
        }
        Some(format!(
            "{} s more of the cool-down after the last fence (trigger.cool_down); at once: `rbd-guardian fence {name}`",
            left.as_secs() + 1
        ))
    }

    fn state_of(&self, name: &str, evidence: &LossEvidence) -> &'static str {
        let target = Target::Member(name.to_owned());
        if let Some(fence) = self.fence_of(name) {
            let sealed = fence.record().state == FenceState::Sealed;
            // Who is stranded is back without a reboot as well; its instances run nowhere, and that comes first.
            return if sealed && !self.stranded(name).is_empty() {
                "stranded"
            } else if sealed && self.returned.contains_key(name) {
                "returned-stale"
            } else {
                fence.record().state.word()
            };
        }
        if self.refused.contains_key(&target) {
            "refused"
        } else if self.wants.contains_key(&target) || evidence.is_lost() {
            "suspect"
        } else {
            "watching"
        }
    }

    fn fence_statuses(&self) -> Vec<FenceStatus> {
        let waits = |fence: &crate::fence::Fence| {
            let trouble = || fence.trouble().map(str::to_owned);
            let wait = || Some(self.waits.get(fence.id().as_str())?.what.clone());
            let asked = || {
                let member = fence
                    .member()
                    .filter(|_| !fence.record().overrides.accept_incomplete && !self.opens_gate(fence))?;
                Some(format!("; `rbd-guardian fence {member} --accept-incomplete`"))
            };
            let wait = trouble().or_else(wait)?;
            let hint = if wait.starts_with("an operator") { asked() } else { None };
            Some(wait + &hint.unwrap_or_default())
        };
        let one = |fence: &crate::fence::Fence| FenceStatus {
            record: fence.record().clone(),
            pending: fence.pending(),
            waits: waits(fence),
        };
        self.fences.values().map(one).collect()
    }

    /// Instances of a sealed member that run nowhere: its healing never came or did not end, or it left them where they were.
    pub(super) fn stranded(&self, name: &str) -> BTreeSet<InstanceId> {
        let Some(view) = self.view.as_ref().filter(|_| self.is_open(name)) else { return BTreeSet::new() };
        let Some(member) = view.members.get(name) else { return BTreeSet::new() };
        let here = |(_, instance): &(&InstanceId, &crate::model::incus_snapshot::Instance)| {
            instance.location == name
        };
        let instances = view.instances.iter().flatten().filter(here).map(|(id, _)| id);
        match member.status {
            MemberStatus::Online | MemberStatus::Restoring => instances.cloned().collect(),
            MemberStatus::Evacuated if self.was_healed(name) => {
                // An instance on storage of the member alone is never moved, and no seal keeps it from its disk.
                let sealed: BTreeSet<&InstanceId> =
                    self.images.values().flat_map(Expected::instances).collect();
                instances.filter(|id| sealed.contains(id)).cloned().collect()
            }
            MemberStatus::Offline
            | MemberStatus::Evacuating
            | MemberStatus::Evacuated
            | MemberStatus::Blocked
            | MemberStatus::Other(_) => BTreeSet::new(),
        }
    }

    /// Incus has moved what it was going to move of a lost member.
    fn was_healed(&self, name: &str) -> bool {
        self.evidence.get(name).is_some_and(|evidence| evidence.is_evacuated(self.now.boot))
    }

    /// Storage pools of this storage cluster with a part that the configuration excepts.
    fn excepted(&self) -> Vec<(&str, &str)> {
        let except = &self.settings.policy.guarded.except;
        let storage = &self.settings.storage;
        let pools = self.view.iter().filter_map(|view| view.pools.as_ref()).flatten();
        let here = pools.filter(|(_, pool)| pool.is_in(storage));
        let parts = here.clone().flat_map(|(name, pool)| {
            pool.osd_pool.iter().chain(&pool.data_pool).map(move |part| (name.as_str(), part.as_str()))
        });
        let parts = parts.filter(|(_, part)| except.iter().any(|excepted| excepted == part));
        let of_headers = self.map.iter().flat_map(|map| {
            let guarded = &self.settings.policy.guarded;
            let headers =
                here.clone().filter_map(|(name, pool)| Some((name.as_str(), pool.osd_pool.as_deref()?)));
            headers.flat_map(move |(name, osd_pool)| {
                guarded.excepted_data(osd_pool, map).map(move |part| (name, part))
            })
        });
        parts.chain(of_headers).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Items of the last osdmap and sweep that were not understood.
    fn not_understood(&self) -> Vec<String> {
        let map = self.map.iter().flat_map(|map| map.not_understood.iter().cloned());
        let uses = self.sweep.iter().flat_map(|sweep| &sweep.uses);
        let users =
            uses.flat_map(|one| one.unknown.iter().map(|what| format!("image {}: {what}", one.image)));
        map.chain(users).collect()
    }

    /// What is not as it should be, with what to do.
    pub fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = self.unidentified();
        let mut alarm = |code, member: Option<&str>, text: String, advice: Vec<String>| {
            alarms.push(Alarm { code, member: member.map(str::to_owned), text, about: None, advice });
        };
        for fence in self.fences.values() {
            let Some(name) = fence.member() else { continue };
            if fence.record().state == FenceState::Breached {
                let ended = fence.record().breaches.last().and_then(|breach| breach.ended);
                let (text, advice) = match ended {
                    None => ("was removed".to_owned(), "who did it is told as soon as it is known"),
                    Some(end) => {
                        (format!("ended at {end} by the monitors' clock"), "is that clock right? ceph status")
                    }
                };
                let text = format!("an entry of its fence {text}; it is being re-asserted");
                alarm("breached", Some(name), text, vec![advice.to_owned()]);
            }
            if let Some(last) = fence.record().removals.last() {
                let count = fence.record().removals.len();
                let text = format!("an entry of its fence was removed, {count} times; last, {last}");
                let advice = vec![last.advice()];
                alarm("tampered", Some(name), text, advice);
            }
            if let Some(why) = fence.trouble() {
                alarm("fence-trouble", Some(name), why.to_owned(), Vec::new());
            }
            if !self.settings.platform && self.is_named(name) {
                let text = "the gate lets its instances go, by the ledger, and this guardian has no [incus] to close \
                            it: its release waits for a guardian that has";
                let advice = vec!["configure [incus] here, or start a guardian that has it".to_owned()];
                alarm("gate-unseen", Some(name), text.to_owned(), advice);
            }
            if let Some(not) = self.returned.get(name) {
                let advice = ways_back(name, not);
                alarm("returned-stale", Some(name), not.to_string(), advice);
            }
            let stranded = self.stranded(name);
            if !stranded.is_empty() {
                let names: Vec<String> = stranded.iter().map(ToString::to_string).collect();
                let names = names.join(", ");
                let text = if self.was_healed(name) {
                    format!(
                        "Incus has healed it and moved everything but {names}, which it found no member for (restricted.cluster.groups of \
                         the project, the instance's cluster group, its architecture, scheduler.instance) or which is not to be moved \
                         (cluster.evacuate); sealed, they run nowhere"
                    )
                } else {
                    format!("it is sealed and back before its instances were healed: {names} cannot write")
                };
                alarm("stranded", Some(name), text, self.rescue(name, &stranded));
            }
        }
        for (target, refused) in &self.refused {
            let Target::Member(name) = target else { continue };
            let text = refused.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            alarm(
                "refused",
                Some(name),
                format!("it is lost and not fenced: {text}"),
                self.ways_out(name, &refused.reasons),
            );
        }
        let doubtful = self.doubtful();
        if self.view_is_fresh() && !doubtful.is_empty() {
            let text = format!(
                "{} look lost at once, and a cluster that lost so many could not say so: nothing is fenced by itself",
                doubtful.join(", ")
            );
            let fence = |name: &&str| format!("if {name} is lost for certain: rbd-guardian fence {name}");
            alarm("view-doubtful", None, text, doubtful.iter().map(fence).collect());
        }
        for (storage, part) in self.excepted() {
            let text = format!(
                "storage pool {storage} keeps images in the pool '{part}', which ceph.except_pools excepts: it is not covered, and no \
                 instance on it is placed elsewhere"
            );
            let advice = vec![format!("take '{part}' out of ceph.except_pools, and reload")];
            alarm("pool-excepted", None, text, advice);
        }
        let unclear = self.not_understood();
        if !unclear.is_empty() {
            let count = unclear.len();
            let shown = unclear.into_iter().take(SHOWN).collect::<Vec<_>>().join("; ");
            let text = format!("{count} items of the storage's answers are not understood: {shown}");
            alarm("not-understood", None, text, vec!["report them with the Ceph release in use".to_owned()]);
        }
        for other in self.orphans() {
            let whom = other.member.as_deref().unwrap_or("a host that is no member");
            let text =
                format!("{} refuses {whom}, and no fence is held on it ({})", other.entry, other.origin);
            let advice = vec![format!("if nobody needs it: {}", other.entry.removal())];
            alarm("orphan-entry", other.member.as_deref(), text, advice);
        }
        for conflict in &self.conflicts {
            let member = conflict.member.as_deref();
            let placed = conflict.placed.iter().cloned().collect::<Vec<_>>().join(", ");
            let whose = member.map_or_else(|| "no known member".to_owned(), |name| format!("member {name}"));
            let text = format!(
                "{} is used by {} of {whose}, and is placed on {placed}",
                conflict.image, conflict.client
            );
            let advice = match member {
                Some(_) => vec![format!("rbd-guardian fence --address {}", conflict.client)],
                None => ways_to_tell_whose(conflict),
            };
            alarm("second-writer", member, text, advice);
        }
        for contradiction in self.book.contradictions() {
            let names = contradiction.members.iter().cloned().collect::<Vec<_>>().join(" and ");
            let text = format!("{} is an address of {names}: neither can be fenced by it", contradiction.ip);
            let advice = vec!["set user.rbd-guardian.ceph-addresses on the members".to_owned()];
            alarm("address-contradiction", None, text, advice);
        }
        alarms.extend(self.crowds());
        alarms.extend(self.wrong_clusters());
        alarms.extend(self.waiting_alarms());
        alarms.extend(self.disarm_alarm());
        let mut alarm = |code, member: Option<&str>, text: String, advice: Vec<String>| {
            alarms.push(Alarm { code, member: member.map(str::to_owned), text, about: None, advice });
        };
        match self.gate_state() {
            GateState::Off => {
                let text =
                    format!("the gate is switched off ({}=off): nothing holds up a healing", gate::OVERRIDE);
                alarm(
                    "gate-off",
                    None,
                    text,
                    vec![format!("incus project unset default {}", gate::OVERRIDE)],
                );
            }
            GateState::Partial { missing } => {
                let names = missing.into_iter().collect::<Vec<_>>().join(", ");
                let text = format!(
                    "{names} would heal without asking the gate: lost members are fenced before healing meanwhile"
                );
                alarm("gate-partial", None, text, vec!["rbd-guardian gate install".to_owned()]);
            }
            GateState::Absent if self.view.as_ref().is_some_and(|view| view.thresholds.healing.is_some()) => {
                let text = "healing is on and no gate is installed: lost members are fenced before healing"
                    .to_owned();
                alarm("gate-absent", None, text, vec!["rbd-guardian gate install".to_owned()]);
            }
            GateState::Absent | GateState::Unknown | GateState::Installed => {}
        }
        let gate = self.view.as_ref().and_then(|view| view.gate.as_ref());
        if let Some(gate) = gate.filter(|gate| !gate.other_version.is_empty()) {
            let names = gate.other_version.iter().cloned().collect::<Vec<_>>().join(", ");
            let text =
                format!("the gate at {names} is not that of this guardian's version, {}", crate::VERSION);
            let advice = "once every guardian is of one version, with that: rbd-guardian gate install";
            alarm("gate-other-version", None, text, vec![advice.to_owned()]);
        }
        if let Some(gate) = gate.filter(|gate| gate::stray(gate).next().is_some()) {
            let text = format!(
                "project default has {}: keys of the gate are without effect there",
                gate::stray(gate).collect::<Vec<_>>().join(", ")
            );
            let unset = |key| format!("incus project unset default {key}");
            alarm("gate-stray-keys", None, text, gate::stray(gate).map(unset).collect());
        }
        let recent = |at: &Duration| self.now.boot.saturating_sub(*at) < NOT_PLACED_LASTS;
        for why in self.not_placed.iter().filter(|(_, at)| recent(at)).map(|(why, _)| why) {
            alarm("not-placed", None, why.clone(), Vec::new());
        }
        if let Some(why) = &self.cannot_record {
            alarm("cannot-record", None, why.clone(), vec!["rbd-guardian doctor".to_owned()]);
        }
        if self.settings.platform && !self.view_is_fresh() {
            // A question that is not answered takes a while to fail.
            let yet = if self.view.is_some() {
                "the last question has no answer yet"
            } else {
                "nothing was read yet"
            };
            let why = self.view_failed.as_deref().unwrap_or(yet);
            alarm(
                "view-lost",
                None,
                format!("no member answers with a quorum behind it, so no fence is begun: {why}"),
                vec!["incus cluster list".to_owned()],
            );
        }
        if let Some(why) = &self.map_failed {
            alarm(
                "storage-lost",
                None,
                format!("the storage does not answer: {why}"),
                vec!["ceph -s".to_owned()],
            );
        }
        for (name, member) in self.view.iter().flat_map(|view| &view.members) {
            if let Err(why) = &member.addresses {
                alarm("bad-addresses", Some(name), why.clone(), Vec::new());
            }
        }
        alarms.sort();
        alarms.dedup();
        alarms
    }

    /// What an operator can do about a refusal.
    fn ways_out(&self, name: &str, reasons: &[Refusal]) -> Vec<String> {
        let mut ways = vec![format!("rbd-guardian plan {name}")];
        if let [Refusal::Brake { .. }] = reasons {
            let over =
                format!("if it is lost for certain: rbd-guardian fence {name} --over-brake --reason TEXT");
            ways.push(over);
        }
        ways
    }

    /// Tells whose the entries are that no fence accounts for.
    pub(super) fn tell_entries_apart(&mut self) {
        if self.others.is_some() {
            return;
        }
        let Some(map) = &self.map else { return };
        let recorded: BTreeSet<Entry> =
            self.records.fences.values().flat_map(|fence| fence.entries.keys().copied()).collect();
        let ours = |entry: Entry| {
            recorded.contains(&entry) || self.fences.values().any(|fence| fence.accounts_for(entry))
        };
        let clock = map.clock(self.now.wall);
        let required = self.settings.policy.required_until(clock);
        self.others = Some(others(&map.blocklist, ours, &self.members(), clock, required));
    }

    /// Entries that no fence accounts for and that may refuse somebody who should not be: whole hosts that are members,
    /// or that look like a guardian's; and clients that look like a guardian's and are alive. What others add is theirs.
    fn orphans(&self) -> impl Iterator<Item = &OtherEntry> {
        let wanted = |name: &String| self.wants.contains_key(&Target::Member(name.clone()));
        // A network refuses members that no fence is held on, whoever else it refuses.
        let members = self.members();
        let refused = move |range: &IpNet| {
            let hit = |member: &&Member| member.addresses.iter().any(|ip| range.contains(ip));
            members.0.iter().filter(hit).any(|member| self.fence_of(&member.name).is_none())
        };
        let swept = || self.sweep.iter().flat_map(|sweep| &sweep.uses).flat_map(ImageUse::clients);
        let alive = LazyCell::new(move || swept().collect::<BTreeSet<ClientAddr>>());
        let orphaned = move |other: &&OtherEntry| {
            let leftover = other.origin == EntryOrigin::Leftover;
            match other.entry.entry() {
                Some(Entry::Host(_) | Entry::HostRange(_)) => {
                    other.member.as_ref().map_or(leftover, |name| !wanted(name))
                }
                Some(Entry::Client(client)) => leftover && alive.contains(&client),
                None => matches!(other.entry, Listed::Range(range) if refused(&range)),
            }
        };
        self.others.iter().flatten().filter(orphaned)
    }

    /// How to bring a stranded member's instances back to life.
    fn rescue(&self, name: &str, stranded: &BTreeSet<InstanceId>) -> Vec<String> {
        let online = |m: &&String| *m != name && self.is_online(m) && self.fence_of(m).is_none();
        let target = self.view.iter().flat_map(|view| view.members.keys()).find(online);
        let mut advice =
            vec![format!("either reboot {name}: it is released by itself then, and its instances started")];
        if let Some(target) = target {
            advice.push(
                "or move each by hand; what the commands say of a read-only or busy disk there does not matter".to_owned(),
            );
            for id in stranded {
                let project = if id.project == "default" {
                    String::new()
                } else {
                    format!(" --project {}", id.project)
                };
                let InstanceId { name, .. } = id;
                advice.push(format!(
                    "or incus stop --force {name}{project}; incus move {name} --target {target}{project}; incus start {name}{project}"
                ));
            }
        }
        advice
    }
}

/// What to do about a client that nothing shows to be anybody's: it may be a second client of the member itself.
fn ways_to_tell_whose(conflict: &Conflict) -> Vec<String> {
    let ip = conflict.client.ip;
    let own = |name: &String| {
        format!(
            "if it is a client of {name} as well: set user.rbd-guardian.ceph-addresses of {name} to all its addresses, {ip} \
             among them"
        )
    };
    let other = format!("if {ip} is a host that may use any image: add it to guard.admin_hosts");
    conflict.placed.iter().map(own).chain([other]).collect()
}
