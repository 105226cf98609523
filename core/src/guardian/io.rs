//! What goes into the guardian and what comes out: plain data, so that a run can be recorded and replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::fence::step::{Sent, Step, StepOutcome};
use crate::model::addr::{ClientAddr, Entry};
use crate::model::ceph_snapshot::CephSnapshot;
use crate::model::epoch::{GateEpoch, OsdEpoch};
use crate::model::fence_id::FenceId;
use crate::model::gate_keys::GateContents;
use crate::model::image_users::ImageUse;
use crate::model::incus_snapshot::{IncusSnapshot, InstanceId, MemberState, Notice};
pub use crate::model::now::Now;
use crate::model::operator_request::Request;
use crate::model::osdmap::{DataPools, OsdMap};
use crate::model::record::{Change, Records, Removal};
use crate::model::sweep_part::SweepPart;
use crate::model::volume::ImageName;

/// Something to perform. Each is answered by exactly one input; nothing waits for it meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Read the members, the gate, operations, and with `whole` also instances, pools and volumes.
    /// Answer: [`Input::View`].
    ReadView {
        /// Everything, or only what changes by the second.
        whole: bool,
    },
    /// Ask a member for its own state, over the API that forwards the question to it. One that was silent before
    /// has less than a second: a fence waits for that. Answer: [`Input::MemberState`] or [`Input::Answered`].
    ReadMemberState(String),
    /// Ask a member for the addresses of its interfaces. Answer: [`Input::Networks`].
    ReadNetworks(String),
    /// Ask whether a member's host answers a ping at its API address, as healing does. Answer: [`Input::Pinged`].
    Ping(String),
    /// Look at the storage as a plan needs it. Answer: [`Input::Looked`].
    Look,
    /// Read the osdmaps after this epoch, oldest first and without a gap, at most
    /// [`MAPS_AT_ONCE`](crate::model::osdmap::MAPS_AT_ONCE) of them, or none where there is none after it; 0: only the newest.
    /// Answer: [`Input::Maps`].
    ReadMaps {
        /// The last epoch that was examined.
        after: OsdEpoch,
    },
    /// Read who removed entries of the blocklist, for this fence that was breached. Answer: [`Input::Audit`].
    ReadAudit(FenceId),
    /// One sweep of watchers and lock owners, of the images that
    /// [`sweep_selection`](crate::guardian::Guardian::sweep_selection) names. Answer: [`Input::Swept`].
    Sweep(SweepPart),
    /// Look whether these images are in the directories of their pools. Answer: [`Input::Found`].
    Find(Vec<ImageName>),
    /// Write records and the reason to the ledger, in one operation that only the leader's own epoch permits.
    /// Answer: [`Input::Recorded`].
    Record {
        changes: Vec<Change>,
        /// What is done, for the trail.
        what: String,
        why: String,
    },
    /// A step of a fence. Answer: [`Input::Step`].
    Fence(FenceId, Step),
    /// A step of a release. Answer: [`Input::Step`].
    Release(FenceId, Step),
    /// Remove entries of dead clients of a released fence. Answer: [`Input::Retired`].
    Retire(FenceId, Vec<Entry>),
    /// Tell the gate this, in the configuration of each of these members. Answer: [`Input::GatePut`].
    PutGate {
        /// Members that do not have it yet.
        at: BTreeSet<String>,
        /// What all are told.
        contents: GateContents,
        /// Greater than any that was ever written.
        epoch: GateEpoch,
    },
    /// Give the gate's scriptlet to the members again, because one lacks it. Answer: [`Input::GatePushed`].
    PushGate,
    /// Break the exclusive lock of an image whose owner is fenced. Answer: [`Input::LockBroken`].
    BreakLock(StaleLock),
    /// Start an instance. Answer: [`Input::Started`].
    Start(InstanceId),
}

/// The exclusive lock of an image, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StaleLock {
    pub image: ImageName,
    /// `client.4126`.
    pub owner: String,
    /// Names the lock within the client.
    pub cookie: String,
    /// Its entity address.
    pub address: ClientAddr,
}

/// Something that happened, or what became of an effect.
// `remote`: recordings name an outcome by itself, `{"added": [FENCE, …]}` (see below).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", remote = "Self")]
pub enum Input {
    /// Time went by. Also given when nothing else happens, at the latest at [`Guardian::wake_at`](crate::guardian::Guardian::wake_at).
    Tick,
    /// Incus announced something.
    Notice(Notice),
    /// A reading of Incus; `Err` if no member with a quorum answered.
    View {
        /// When the reading began.
        began: Duration,
        /// What it says, or why there is none.
        view: Result<IncusSnapshot, String>,
    },
    /// What a member says of itself, or why it says nothing.
    MemberState(String, Result<MemberState, String>),
    /// The member that was asked for its state answers, and has not told its state: asked again, it has more time.
    Answered(String),
    /// A member's addresses with their networks.
    Networks(String, Result<BTreeSet<IpNet>, String>),
    /// Did the member's host answer? `Err` if it could not be asked.
    Pinged(String, Result<bool, String>),
    /// The storage; `Err` if it could not be read.
    Looked(Result<CephSnapshot, String>),
    /// Osdmaps, oldest first; none where none is newer than what was asked with. `Err` if none could be read.
    Maps(Result<Vec<OsdMap>, String>),
    /// Removals that the monitors logged lately, oldest first; `Err` if the log could not be read.
    Audit(FenceId, Result<Vec<Removal>, String>),
    /// Every image that has a user, and what could not be read.
    Swept {
        /// When the sweep began.
        began: Duration,
        /// Images with at least one watcher or a lock.
        uses: Vec<ImageUse>,
        unread: Vec<String>,
        /// Pools that the headers of images name for their data.
        #[serde(default)]
        data_pools: DataPools,
    },
    /// Which of the images that were looked for are not there, and what could not be read. A pool that does not exist
    /// has none.
    Found {
        /// When the look began.
        began: Duration,
        /// Not in the directory of their pool and namespace.
        missing: BTreeSet<ImageName>,
        /// In words, as a sweep says it: of images there nothing is known.
        unread: Vec<String>,
    },
    /// What became of a write to the ledger.
    Recorded(Recorded),
    /// What became of a step of a fence or release.
    Step(FenceId, StepOutcome),
    /// Removals of a released fence's entries were sent.
    Retired(FenceId, Vec<(Entry, Sent)>),
    /// What became of a write to the gate: at which members it failed or nobody can tell, and why. Whatever it says,
    /// the keys are read back.
    GatePut(BTreeMap<String, String>),
    /// The scriptlet was sent to all members, or why not.
    GatePushed(Result<(), String>),
    /// A lock was broken (or was gone), or why not.
    LockBroken(StaleLock, Result<(), String>),
    /// An instance was started, or why not.
    Started(InstanceId, Result<(), String>),
    /// An operator asks. The answer has the same number.
    Request(u64, Request),
    /// This guardian does not lead any more: nothing more is decided or sent.
    Deposed(String),
}

impl Serialize for Input {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Step(fence, outcome) = self else { return Self::serialize(self, serializer) };
        let Value::Object(tagged) = serde_json::to_value(outcome).map_err(S::Error::custom)? else {
            return Err(S::Error::custom("an outcome has a name and fields"));
        };
        let fields = |value| match (outcome, value) {
            (StepOutcome::FailedOver(..), Value::Array(fields)) => fields,
            (_, field) => vec![field],
        };
        let with_fence =
            |value| std::iter::once(Value::from(fence.as_str())).chain(fields(value)).collect::<Vec<_>>();
        serializer.collect_map(tagged.into_iter().map(|(name, value)| (name, with_fence(value))))
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = Value::deserialize(deserializer)?;
        match step_outcome(&read) {
            Some((fence, outcome)) => Ok(Self::Step(fence, outcome)),
            None => Self::deserialize(read).map_err(D::Error::custom),
        }
    }
}

/// `{"added": [FENCE, …]}`
fn step_outcome(read: &Value) -> Option<(FenceId, StepOutcome)> {
    let (name, value) = read.as_object()?.iter().next()?;
    let (fence, fields) = value.as_array()?.split_first()?;
    let value = if let [field] = fields { field.clone() } else { Value::from(fields) };
    let outcome = serde_json::from_value(json!({ name: value })).ok()?;
    Some((FenceId::deserialize(fence).ok()?, outcome))
}

/// What became of a write to the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// It is there.
    Written,
    /// Another guardian leads.
    Deposed(String),
    /// It is not there, or unknown and read back as not there; or the records changed: these are there now.
    Not {
        why: String,
        /// What the ledger holds, where it could be read.
        holds: Option<Box<Records>>,
    },
}

/// The IP of an address with its network.
pub fn ips(networks: &BTreeSet<IpNet>) -> impl Iterator<Item = IpAddr> {
    networks.iter().map(IpNet::addr)
}
