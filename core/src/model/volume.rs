//! Which RBD image each volume is, and who may use it.
//!
//! Names are Incus's (docs/facts/incus.md#rbd-images-of-volumes; the same in 6.0.4 and 7.x).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::incus_snapshot::{IncusSnapshot, InstanceId, InstanceKind};

/// A storage pool of Incus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoragePool {
    /// `ceph`, `lvmcluster`, `dir`, …
    pub driver: String,
    /// `ceph.osd.pool_name`, for the driver `ceph`.
    pub osd_pool: Option<String>,
    /// `ceph.osd.data_pool_name`, for the driver `ceph`: where the data of its images is, if not beside their headers. Older
    /// recordings did not look at it.
    #[serde(default)]
    pub data_pool: Option<String>,
    /// `ceph.cluster_name`, for the driver `ceph`; without it Incus takes [`CLUSTER`].
    pub cluster: Option<String>,
}

/// The Ceph cluster of a storage pool or disk that names none.
pub const CLUSTER: &str = "ceph";

/// Does what names this Ceph cluster, or none, lie in the guardian's own?
fn is_here(named: Option<&str>, own: &str) -> bool {
    named.filter(|named| !named.is_empty()).unwrap_or(CLUSTER) == own
}

impl StoragePool {
    /// Does it keep its images in this Ceph cluster? Another one may have an OSD pool of the same name.
    pub fn is_in(&self, own: &str) -> bool {
        self.driver == "ceph" && is_here(self.cluster.as_deref(), own)
    }
}

/// An image that a disk device names itself: `source=ceph:POOL/IMAGE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenImage")]
pub struct ExternalImage {
    /// As it is written: `POOL/IMAGE`.
    pub path: String,
    /// `ceph.cluster_name` of the disk; without it Incus takes [`CLUSTER`].
    pub cluster: Option<String>,
}

/// Older recordings have the path alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum WrittenImage {
    Path(String),
    Whole { path: String, cluster: Option<String> },
}

impl From<WrittenImage> for ExternalImage {
    fn from(written: WrittenImage) -> Self {
        match written {
            WrittenImage::Path(path) => Self { path, cluster: None },
            WrittenImage::Whole { path, cluster } => Self { path, cluster },
        }
    }
}

/// A volume of a storage pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The storage pool, as Incus names it.
    pub pool: String,
    /// The project it is stored under.
    pub project: String,
    /// Its name; of an instance's volume, the instance's.
    pub name: String,
    /// What it belongs to.
    pub kind: VolumeKind,
    /// What is inside.
    pub content: Content,
    /// `security.shared`: a block volume that several instances may use at once.
    pub shared: bool,
    /// Instances that use it, themselves or through a profile.
    pub used_by: BTreeSet<InstanceId>,
    /// What else uses it, in words: a profile whose instances could not be read. Older recordings did not look at profiles.
    #[serde(default)]
    pub unknown: Vec<String>,
}

/// `type` of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// The root disk of an instance.
    Instance(InstanceKind),
    /// A custom volume.
    Custom,
    /// An image that instances are made from.
    Image,
}

/// `content_type` of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    Filesystem,
    /// A block device.
    Block,
    /// An ISO image, which any number of VMs may read.
    Iso,
}

/// An RBD image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImageName {
    /// The OSD pool.
    pub pool: String,
    /// The RBD namespace; empty for none.
    pub namespace: String,
    pub name: String,
}

/// Who may use an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// The member where its instances are placed, and nobody else. More than one location is a contradiction that
    /// only ever lasts while Incus moves one of them.
    Exclusive {
        /// The instances, each once. A list: a set of one takes ten times as much, and there is one for each image.
        instances: Vec<InstanceId>,
        /// Where they are placed, each member once.
        locations: Vec<String>,
    },
    /// Any member: an image being unpacked or cloned, an ISO, a shared block volume, a volume no instance uses.
    AnyMember,
    /// Nobody knows: not all users of the volume could be read. Nothing is learnt from its clients, and none of them is
    /// accused; the gate of a member waits for one that may be that member's.
    Unknown {
        /// What was not read, in words.
        why: String,
    },
}

impl Expected {
    /// Why its users are not known.
    pub fn unknown(&self) -> Option<&str> {
        match self {
            Expected::Unknown { why } => Some(why),
            Expected::Exclusive { .. } | Expected::AnyMember => None,
        }
    }

    /// The instances that it is for alone.
    pub fn instances(&self) -> &[InstanceId] {
        match self {
            Expected::Exclusive { instances, .. } => instances,
            Expected::AnyMember | Expected::Unknown { .. } => &[],
        }
    }

    /// Is it for instances that are located at this member?
    pub fn is_at(&self, member: &str) -> bool {
        matches!(self, Expected::Exclusive { locations, .. } if locations.iter().any(|one| one == member))
    }
}

/// All images Incus has a use for.
pub type Images = BTreeMap<ImageName, Expected>;

/// The images of a reading that lie in this Ceph cluster, with what it says of their users; empty of what was not read.
pub fn images(view: &IncusSnapshot, own: &str) -> Images {
    let (Some(pools), Some(instances)) = (&view.pools, &view.instances) else { return Images::new() };
    let mut images = Vec::new();
    for volume in view.volumes.iter().flatten() {
        let pool = pools.get(&volume.pool).filter(|pool| pool.is_in(own));
        let Some(pool) = pool.and_then(|pool| pool.osd_pool.as_ref()) else { continue };
        let users = volume.users();
        let mut locations = Vec::with_capacity(1);
        for user in users.iter().filter_map(|user| instances.get(user)) {
            add(&mut locations, &user.location);
        }
        let expected = if volume.is_for_any_member() {
            Expected::AnyMember
        } else if !volume.unknown.is_empty() {
            Expected::Unknown { why: volume.unknown.join(", ") }
        } else if users.is_empty() {
            Expected::AnyMember
        } else {
            Expected::Exclusive { instances: users, locations }
        };
        for name in volume.image_names() {
            images.push((ImageName { pool: pool.clone(), namespace: String::new(), name }, expected.clone()));
        }
    }
    // All at once: a map that grows one by one in order is half empty.
    let mut images: Images = images.into_iter().collect();
    for (id, instance) in instances {
        let external = instance.details.iter().flat_map(|details| &details.external_images);
        for disk in external.filter(|disk| is_here(disk.cluster.as_deref(), own)) {
            let Some(image) = ImageName::parse(&disk.path) else { continue };
            let ours = Expected::Exclusive { instances: Vec::new(), locations: Vec::new() };
            if let Expected::Exclusive { instances, locations } = images.entry(image).or_insert(ours) {
                add(instances, id);
                add(locations, &instance.location);
            }
        }
    }
    images
}

fn add<T: Clone + PartialEq>(to: &mut Vec<T>, one: &T) {
    if !to.contains(one) {
        to.push(one.clone());
    }
}

impl Volume {
    /// The instances that use it: an instance's volume belongs to that instance alone.
    fn users(&self) -> Vec<InstanceId> {
        match self.kind {
            VolumeKind::Instance(_) => {
                vec![InstanceId { project: self.project.clone(), name: self.name.clone() }]
            }
            VolumeKind::Custom => self.used_by.iter().cloned().collect(),
            VolumeKind::Image => Vec::new(),
        }
    }

    fn is_for_any_member(&self) -> bool {
        match self.kind {
            VolumeKind::Instance(_) => false,
            VolumeKind::Custom => self.shared || self.content == Content::Iso,
            VolumeKind::Image => true,
        }
    }

    /// The names of its RBD images: two for a VM. Unknown for an image volume, whose name depends on its filesystem;
    /// nobody's exclusivity depends on those.
    pub fn image_names(&self) -> Vec<String> {
        let instance = || {
            if self.project == "default" {
                self.name.clone()
            } else {
                format!("{}_{}", self.project, self.name)
            }
        };
        match (self.kind, self.content) {
            (VolumeKind::Instance(InstanceKind::Container), _) => vec![format!("container_{}", instance())],
            (VolumeKind::Instance(InstanceKind::VirtualMachine), _) => {
                let name = format!("virtual-machine_{}", instance());
                vec![format!("{name}.block"), name]
            }
            (VolumeKind::Custom, content) => {
                let suffix = match content {
                    Content::Filesystem => "",
                    Content::Block => ".block",
                    Content::Iso => ".iso",
                };
                vec![format!("custom_{}_{}{suffix}", self.project, self.name)]
            }
            (VolumeKind::Image, _) => Vec::new(),
        }
    }
}

impl ImageName {
    /// From `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        let (pool, namespace, name) = match parts.as_slice() {
            [pool, name] => (*pool, "", *name),
            [pool, namespace, name] => (*pool, *namespace, *name),
            _ => return None,
        };
        if pool.is_empty() || name.is_empty() {
            return None;
        }
        Some(Self { pool: pool.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.pool, self.name)
        } else {
            write!(f, "{}/{}/{}", self.pool, self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::incus_snapshot::Details;
    use crate::model::incus_snapshot::Instance;

    fn id(project: &str, name: &str) -> InstanceId {
        InstanceId { project: project.to_owned(), name: name.to_owned() }
    }

    fn volume(kind: VolumeKind, content: Content, project: &str, name: &str) -> Volume {
        let (pool, project, name) = ("remote".to_owned(), project.to_owned(), name.to_owned());
        let (used_by, unknown) = (BTreeSet::new(), Vec::new());
        Volume { pool, project, name, kind, content, shared: false, used_by, unknown }
    }

    #[test]
    fn images_are_named_as_the_driver_names_them() {
        let container = VolumeKind::Instance(InstanceKind::Container);
        let vm = VolumeKind::Instance(InstanceKind::VirtualMachine);
        let names = |kind, content, project, name| volume(kind, content, project, name).image_names();
        assert_eq!(names(container, Content::Filesystem, "default", "c1"), ["container_c1"]);
        assert_eq!(names(container, Content::Filesystem, "p1", "c1"), ["container_p1_c1"]);
        assert_eq!(
            names(vm, Content::Block, "default", "v1"),
            ["virtual-machine_v1.block", "virtual-machine_v1"]
        );
        assert_eq!(names(VolumeKind::Custom, Content::Filesystem, "default", "x"), ["custom_default_x"]);
        assert_eq!(names(VolumeKind::Custom, Content::Block, "p1", "x"), ["custom_p1_x.block"]);
        assert_eq!(names(VolumeKind::Custom, Content::Iso, "default", "x"), ["custom_default_x.iso"]);
    }

    fn disk(path: &str, cluster: Option<&str>) -> ExternalImage {
        ExternalImage { path: path.to_owned(), cluster: cluster.map(str::to_owned) }
    }

    /// Two Ceph clusters may have an OSD pool of one name, and images of one name in it.
    #[test]
    fn what_lies_in_another_cluster_is_none_of_ours() {
        let pool = |cluster: Option<&str>| StoragePool {
            driver: "ceph".to_owned(),
            osd_pool: Some("incus".to_owned()),
            data_pool: None,
            cluster: cluster.map(str::to_owned),
        };
        let pools = [("plain", None), ("named", Some("ceph")), ("blank", Some("")), ("far", Some("far"))];
        let container = VolumeKind::Instance(InstanceKind::Container);
        let root = |(name, _): &(&str, _)| {
            let root = volume(container, Content::Filesystem, "default", &format!("c-{name}"));
            Volume { pool: (*name).to_owned(), ..root }
        };
        let external_images = vec![
            disk("incus/plain", None),
            disk("incus/named", Some("ceph")),
            disk("incus/blank", Some("")),
            disk("incus/far", Some("far")),
        ];
        let details = Some(Details { external_images, ..Details::default() });
        let instance = |location: &str, details| Instance {
            kind: InstanceKind::Container,
            location: location.to_owned(),
            details,
        };
        let mut all: BTreeMap<_, _> = pools
            .iter()
            .map(|(name, _)| (id("default", &format!("c-{name}")), instance("n1", None)))
            .collect();
        all.insert(id("default", "disks"), instance("n2", details));
        let view = IncusSnapshot {
            volumes: Some(pools.iter().map(root).collect()),
            pools: Some(pools.map(|(name, cluster)| (name.to_owned(), pool(cluster))).into()),
            instances: Some(all),
            ..IncusSnapshot::default()
        };
        let names = |own: &str| -> Vec<String> {
            images(&view, own).into_keys().map(|image| image.name.replace("container_c-", "c-")).collect()
        };
        assert_eq!(names("ceph"), ["blank", "c-blank", "c-named", "c-plain", "named", "plain"]);
        assert_eq!(names("far"), ["c-far", "far"]);
    }

    #[test]
    fn a_volume_with_a_user_that_could_not_be_read_is_nobodys_and_not_anybodys() {
        let pool = StoragePool {
            driver: "ceph".to_owned(),
            osd_pool: Some("incus".to_owned()),
            data_pool: None,
            cluster: None,
        };
        let mut half = volume(VolumeKind::Custom, Content::Filesystem, "default", "half");
        half.used_by = [id("default", "c1")].into();
        half.unknown = vec!["profile p1: answered 500".to_owned()];
        let view = IncusSnapshot {
            volumes: Some(vec![half]),
            pools: Some([("remote".to_owned(), pool)].into()),
            instances: Some(BTreeMap::new()),
            ..IncusSnapshot::default()
        };
        let unknown = Expected::Unknown { why: "profile p1: answered 500".to_owned() };
        assert_eq!(images(&view, "ceph").into_values().collect::<Vec<_>>(), [unknown]);
    }

    /// What a recording of before says decodes, and a disk without a cluster is in the one that Incus takes then.
    #[test]
    fn an_older_recording_has_disks_without_a_cluster() {
        let old: ExternalImage = serde_json::from_str(r#""other/disk""#).unwrap();
        assert_eq!(old, disk("other/disk", None));
        let new = disk("other/disk", Some("far"));
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<ExternalImage>(&text).unwrap(), new);
    }

    #[test]
    fn who_may_use_an_image_follows_from_its_instances() {
        let mut view = IncusSnapshot::default();
        let pool = |driver: &str, osd: Option<&str>| StoragePool {
            driver: driver.to_owned(),
            osd_pool: osd.map(str::to_owned),
            data_pool: None,
            cluster: None,
        };
        let pools =
            [("remote".to_owned(), pool("ceph", Some("incus"))), ("local".to_owned(), pool("dir", None))];
        view.pools = Some(pools.into());
        let external = Details { external_images: vec![disk("other/ns/disk", None)], ..Details::default() };
        let instance = |location: &str, details| Instance {
            kind: InstanceKind::Container,
            location: location.to_owned(),
            details,
        };
        let instances =
            [(id("default", "c1"), instance("n1", None)), (id("p1", "c2"), instance("n2", Some(external)))];
        view.instances = Some(instances.into());
        let container = VolumeKind::Instance(InstanceKind::Container);
        let mut shared = volume(VolumeKind::Custom, Content::Block, "default", "both");
        shared.shared = true;
        shared.used_by = [id("default", "c1"), id("p1", "c2")].into();
        let mut data = volume(VolumeKind::Custom, Content::Filesystem, "p1", "data");
        data.used_by = [id("p1", "c2")].into();
        let mut local = volume(container, Content::Filesystem, "default", "c9");
        local.pool = "local".to_owned();
        let free = volume(VolumeKind::Custom, Content::Filesystem, "default", "free");
        let root = volume(container, Content::Filesystem, "default", "c1");
        view.volumes = Some(vec![root, shared, data, local, free]);

        let images = images(&view, "ceph");
        let at = |path: &str| images.get(&ImageName::parse(path).unwrap());
        let only = |instance: InstanceId, location: &str| Expected::Exclusive {
            instances: [instance].into(),
            locations: [location.to_owned()].into(),
        };
        assert_eq!(at("incus/container_c1"), Some(&only(id("default", "c1"), "n1")));
        assert_eq!(at("incus/custom_default_both.block"), Some(&Expected::AnyMember));
        assert_eq!(at("incus/custom_p1_data"), Some(&only(id("p1", "c2"), "n2")));
        assert_eq!(at("incus/custom_default_free"), Some(&Expected::AnyMember));
        assert_eq!(at("other/ns/disk"), Some(&only(id("p1", "c2"), "n2")));
        assert_eq!(images.len(), 5, "a volume of another driver is no RBD image: {images:?}");
    }
}
