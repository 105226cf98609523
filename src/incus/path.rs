//! Paths of Incus's API: made here and nowhere else, and taken apart here. Names of projects, instances and members may
//! have any letter in them.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rbd_guardian_core::model::incus_snapshot::InstanceId;

/// What stays as it is in a segment and in a query (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A path with its query, as it is requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPath {
    path: String,
    queried: bool,
}

impl ApiPath {
    /// `/1.0` and names below it.
    pub fn of(names: &[&str]) -> Self {
        Self { path: "/1.0".to_owned(), queried: false }.below(names)
    }

    /// Names below a path that Incus answered with, without its query.
    pub fn under(told: &str, names: &[&str]) -> Self {
        let (path, _) = parts(told);
        Self { path: path.to_owned(), queried: false }.below(names)
    }

    fn below(mut self, names: &[&str]) -> Self {
        for name in names {
            self.path.push('/');
            self.path.extend(utf8_percent_encode(name, ESCAPED));
        }
        self
    }

    /// With one more value in the query.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.path.push(if self.queried { '&' } else { '?' });
        self.queried = true;
        self.path.push_str(key);
        self.path.push('=');
        self.path.extend(utf8_percent_encode(value, ESCAPED));
        self
    }

    /// Asked of this member.
    #[must_use]
    pub fn at(self, member: &str) -> Self {
        self.with("target", member)
    }

    /// Whole objects instead of their paths.
    #[must_use]
    pub fn whole(self) -> Self {
        self.with("recursion", "1")
    }

    /// Of all projects.
    #[must_use]
    pub fn everywhere(self) -> Self {
        self.with("all-projects", "true")
    }

    /// As it is requested.
    pub fn text(self) -> String {
        self.path
    }
}

/// A path and its query, as they are written.
pub fn parts(path: &str) -> (&str, &str) {
    path.split_once('?').unwrap_or((path, ""))
}

/// A name as it was before it became a part of a path.
pub fn decode(name: &str) -> String {
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// The name below a collection: `/1.0/networks/eth0` below `networks`.
pub fn name_of(path: &str, collection: &str) -> Option<String> {
    let below = parts(path).0.strip_prefix("/1.0/")?.strip_prefix(collection)?.strip_prefix('/')?;
    Some(decode(below.split('/').next()?))
}

/// The instance a path names: `/1.0/instances/c1?project=p1`, of project `default` where it names none.
pub fn instance_of(path: &str) -> Option<InstanceId> {
    Some(InstanceId { project: project_of(parts(path).1), name: name_of(path, "instances")? })
}

/// `project=P` of a query, or `default`.
pub fn project_of(query: &str) -> String {
    let named = query.split('&').find_map(|pair| pair.strip_prefix("project="));
    // As a form writes it: a blank is a plus.
    named.map_or_else(|| "default".to_owned(), |name| decode(&name.replace('+', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_on_their_way_out() {
        let text = |names: &[&str]| ApiPath::of(names).text();
        assert_eq!(text(&[]), "/1.0");
        assert_eq!(
            text(&["storage-pools", "a b/c?d#e%f", "volumes"]),
            "/1.0/storage-pools/a%20b%2Fc%3Fd%23e%25f/volumes"
        );
        let path = ApiPath::of(&["instances", "c1", "state"]).with("project", "r&d b\u{fc}ro+1").at("n 1");
        assert_eq!(path.text(), "/1.0/instances/c1/state?project=r%26d%20b%C3%BCro%2B1&target=n%201");
        let told = "/1.0/operations/7f-1?project=r%26d";
        assert_eq!(
            ApiPath::under(told, &["wait"]).with("timeout", "30").text(),
            "/1.0/operations/7f-1/wait?timeout=30"
        );
    }

    #[test]
    fn and_unescaped_on_their_way_in() {
        let of = |path: &str| instance_of(path).map(|id| (id.project, id.name));
        let id = |project: &str, name: &str| Some((project.to_owned(), name.to_owned()));
        assert_eq!(of("/1.0/instances/c1?project=b%C3%BCro"), id("b\u{fc}ro", "c1"));
        assert_eq!(of("/1.0/instances/c1?project=r%26d"), id("r&d", "c1"));
        assert_eq!(of("/1.0/instances/c1?recursion=1&project=a+b%2Bc"), id("a b+c", "c1"));
        assert_eq!(of("/1.0/instances/c%2D1/snapshots/s0"), id("default", "c-1"));
        assert_eq!(of("/1.0/profiles/default?project=p"), None);
        assert_eq!(name_of("/1.0/networks/br%2Fx", "networks").as_deref(), Some("br/x"));
        for name in ["r&d", "b\u{fc}ro", "a b", "100%", "a+b", "x/y", "\u{4e2d}"] {
            let path = ApiPath::of(&["instances", name]).with("project", name).text();
            assert_eq!(of(&path), id(name, name), "{path}");
        }
    }
}
