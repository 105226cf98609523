//! The last readings of Incus, and how old they are.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guardian::report::{Alarm, Level, Reports};
use crate::model::incus_snapshot::{
    GateView, IncusSnapshot, InstanceId, MemberStatus, MemberView, OperationKind,
};
use crate::model::now::Now;
use crate::model::pairs;
use crate::model::volume::{ImageName, Images, images};

/// How long a reading counts as fresh.
const FRESH: Duration = Duration::from_secs(5);
/// How long a listing may fail before that is an alarm.
const UNLISTED: Duration = Duration::from_secs(10);

/// The last reading of Incus; where it leaves something out, an earlier full reading counts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct IncusReadings {
    view: Option<Arc<IncusSnapshot>>,
    /// When the last good reading began, and the last whole one; and why the last one failed.
    pub(super) view_began: Duration,
    pub(super) whole_began: Option<Duration>,
    pub(super) view_failed: Option<String>,
    #[serde(with = "pairs")]
    pub(super) images: Images,
    /// Since when the listing of instances or volumes fails, and which.
    #[serde(default)]
    unlisted: Option<(Duration, String)>,
    /// The reading in flight, or the last one, is a full reading.
    #[serde(default)]
    whole_asked: bool,
    /// Operations of the last reading that could start an instance, and whether they could be read.
    pub(super) starting: BTreeSet<String>,
    pub(super) starting_known: bool,
}

/// What a reading changed.
pub(super) struct IncusChange {
    /// Instances that are at another member now, each with the member that it left.
    pub(super) moved: Vec<(InstanceId, String)>,
    /// The reading lists instances and volumes.
    pub(super) whole: bool,
}

impl IncusReadings {
    pub(super) fn view(&self) -> Option<&Arc<IncusSnapshot>> {
        self.view.as_ref()
    }

    pub(super) fn member(&self, name: &str) -> Option<&MemberView> {
        self.view.as_ref()?.members.get(name)
    }

    pub(super) fn gate(&self) -> Option<&GateView> {
        self.view.as_ref()?.gate.as_ref()
    }

    /// The images that instances located at this member use.
    pub(super) fn images_of<'a>(&'a self, member: &'a str) -> impl Iterator<Item = &'a ImageName> {
        self.images.iter().filter(|(_, expected)| expected.is_at(member)).map(|(image, _)| image)
    }

    /// Why the last listing is not complete.
    pub(super) fn listing_failure(&self) -> Option<&str> {
        self.unlisted.as_ref().map(|(_, why)| why.as_str())
    }

    /// Is the last reading by a member with a quorum fresh?
    pub(super) fn is_fresh(&self, now: Now) -> bool {
        self.view.is_some() && now.boot.saturating_sub(self.view_began) < FRESH
    }

    /// The last reading, if it is fresh.
    pub(super) fn fresh(&self, now: Now) -> Option<&Arc<IncusSnapshot>> {
        self.view.as_ref().filter(|_| self.is_fresh(now))
    }

    pub(super) fn is_online(&self, now: Now, name: &str) -> bool {
        self.is_fresh(now) && self.member(name).is_some_and(|member| member.status == MemberStatus::Online)
    }

    /// Why Incus does not answer, in words.
    pub(super) fn trouble(&self) -> String {
        format!("Incus: {}", self.view_failed.as_deref().unwrap_or("the last question has no answer yet"))
    }

    pub(super) fn ask(&mut self, whole: bool) {
        self.whole_asked = whole;
    }

    /// No member answered. Was a full reading requested?
    pub(super) fn handle_failure(&mut self, why: String, reports: &mut Reports) -> bool {
        if self.view_failed.is_none() {
            let text = format!("no member answers with a quorum behind it: {why}");
            reports.log(Level::Warn, "view-lost", None, text);
        }
        self.view_failed = Some(why);
        self.whole_asked
    }

    /// A reading ended. `storage`: how Incus names this Ceph cluster.
    pub(super) fn handle_view(
        &mut self,
        now: Now,
        began: Duration,
        view: IncusSnapshot,
        storage: &str,
        reports: &mut Reports,
    ) -> IncusChange {
        if self.view_failed.take().is_some() {
            reports.log(Level::Info, "view-back", None, format!("{} answers for the cluster", view.from));
        }
        let whole = view.volumes.is_some() && view.instances.is_some();
        if self.whole_asked {
            self.note_listing(now, &view);
        }
        let before = self.view.take();
        let moved = before.as_deref().map(|before| moves(before, &view)).unwrap_or_default();
        let mut merged = merge(before.map(Arc::unwrap_or_clone), view);
        if whole {
            self.whole_began = Some(began);
            self.images = images(&merged, storage);
            // `images` has what is needed of them.
            merged.volumes = None;
        }
        let starts = |kind: OperationKind| match kind {
            OperationKind::Heal | OperationKind::Migrate | OperationKind::Start => true,
            OperationKind::Evacuate | OperationKind::Other => false,
        };
        let starting = merged.operations.iter().flatten().filter(|operation| starts(operation.kind));
        self.starting = starting.map(|operation| operation.id.clone()).collect();
        self.starting_known = merged.operations.is_some();
        self.view = Some(Arc::new(merged));
        self.view_began = began;
        IncusChange { moved, whole }
    }

    /// Notes which parts a full reading lacks.
    fn note_listing(&mut self, now: Now, view: &IncusSnapshot) {
        let parts = [
            (view.instances.is_none(), "instances"),
            (view.volumes.is_none(), "storage volumes"),
            (view.pools.is_none(), "storage pools"),
        ];
        let missing: Vec<&str> =
            parts.into_iter().filter(|(missing, _)| *missing).map(|(_, what)| what).collect();
        self.unlisted = (!missing.is_empty()).then(|| {
            let since = self.unlisted.as_ref().map_or(now.boot, |(since, _)| *since);
            (since, format!("{} asked for its {} and did not give them", view.from, missing.join(", ")))
        });
    }

    pub(super) fn alarms(&self, now: Now) -> Vec<Alarm> {
        let mut alarms = Vec::new();
        if let Some((began, why)) = &self.unlisted
            && now.boot.saturating_sub(*began) >= UNLISTED
        {
            let text = format!(
                "the last listings of the cluster failed, so what is known of its instances is old: {why}"
            );
            let advice = vec!["incus list --all-projects".to_owned(), "incus storage list".to_owned()];
            alarms.push(Alarm::new("listing-lost", None, text, advice));
        }
        if !self.is_fresh(now) {
            // A question without an answer takes a while to fail.
            let yet = if self.view.is_some() {
                "the last question has no answer yet"
            } else {
                "nothing was read yet"
            };
            let why = self.view_failed.as_deref().unwrap_or(yet);
            let text = format!("no member answers with a quorum behind it, so no fence is begun: {why}");
            alarms.push(Alarm::new("view-lost", None, text, vec!["incus cluster list".to_owned()]));
        }
        for (name, member) in self.view.iter().flat_map(|view| &view.members) {
            if let Err(why) = &member.addresses {
                alarms.push(Alarm::new("bad-addresses", Some(name), why.clone(), Vec::new()));
            }
        }
        alarms
    }
}

fn moves(before: &IncusSnapshot, after: &IncusSnapshot) -> Vec<(InstanceId, String)> {
    let (Some(before), Some(after)) = (&before.instances, &after.instances) else { return Vec::new() };
    let moved = after.iter().filter_map(|(id, instance)| {
        let old = before.get(id).filter(|old| old.location != instance.location)?;
        Some((id.clone(), old.location.clone()))
    });
    moved.collect()
}

/// Fills in from the earlier reading what the new one leaves out. Instances of members that could not be asked keep their
/// details.
fn merge(before: Option<IncusSnapshot>, mut view: IncusSnapshot) -> IncusSnapshot {
    let Some(before) = before else { return view };
    view.pools = view.pools.or(before.pools);
    let Some(instances) = &mut view.instances else {
        view.instances = before.instances;
        return view;
    };
    for (id, old) in before.instances.into_iter().flatten() {
        if let Some(instance) = instances.get_mut(&id)
            && instance.details.is_none()
        {
            instance.details = old.details;
        }
    }
    view
}
