//! The gate: a placement scriptlet that lets Incus place nothing elsewhere before its member is sealed.
//!
//! The text is pure and here; the sentences it refuses with are in [`refusal`], what is read and written in [`place`]
//! and [`keys`]. What it does and costs: docs/gate.md.

pub mod keys;
pub mod place;
pub mod refusal;
#[cfg(test)]
mod waiting;

use std::fmt;

use ring::digest;

use refusal::{LOADED, NOT_COVERED, NOT_SEALED, NOWHERE, TARGET_SEALED};

const TEMPLATE: &str = include_str!("gate.star");
const MARK: &str = "# rbd-guardian gate ";
const NO_SITE: &str = "_rbd_guardian_site = None\n";
/// The site's text becomes the body of a function: its names are local to it and clash with nothing, and what it may
/// call to choose a target is handed in. Eight columns are one tab of Starlark, so that mixed indentation still fits.
const BEGIN: &str = "# rbd-guardian: the site's own scriptlet begins\n\
                     def _rbd_guardian_site(set_target, get_cluster_members):\n";
const END: &str = "\n        return instance_placement\n# rbd-guardian: the site's own scriptlet ends\n";
const PAD: &str = "        ";

/// The first line of an installed gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The guardian's version that made it.
    pub version: String,
    /// Which sending of it: no two are alike, because Incus loads a text only where it changes (docs/gate.md).
    pub push: String,
    /// SHA-256 of everything after the first line, in hex.
    pub sha256: String,
}

/// What `instances.placement.scriptlet` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scriptlet {
    /// Nothing.
    Absent,
    /// A scriptlet of the site's, and no gate.
    Site(String),
    Gate {
        /// Its first line.
        marker: Marker,
        /// The site's scriptlet in it.
        site: Option<String>,
        /// Is it as it was installed?
        intact: bool,
    },
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{} push:{} sha256:{}", self.version, self.push, self.sha256)
    }
}

impl Scriptlet {
    /// From the text of the key.
    pub fn parse(text: &str) -> Self {
        if text.trim().is_empty() {
            return Self::Absent;
        }
        let Some(marker) = marker(text) else { return Self::Site(text.to_owned()) };
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        let intact = sha256(rest) == marker.sha256;
        Self::Gate { marker, site: site_of(text), intact }
    }
}

/// The gate around the site's scriptlet, if it has one. `push` must be unlike any before.
pub fn compose(site: Option<&str>, push: &str) -> String {
    let site = site.map_or_else(|| NO_SITE.to_owned(), |site| format!("{BEGIN}{}{END}", indent(site)));
    // The site comes last: nothing is replaced in it.
    let rest = [
        ("@PUSH@", push),
        ("@LOADED@", LOADED),
        ("@NOT_SEALED@", NOT_SEALED),
        ("@NOT_COVERED@", NOT_COVERED),
        ("@TARGET_SEALED@", TARGET_SEALED),
        ("@NOWHERE@", NOWHERE),
        ("@SITE@\n", &site),
    ]
    .iter()
    .fold(TEMPLATE.to_owned(), |text, (name, value)| text.replace(name, value));
    let (version, push) = (env!("CARGO_PKG_VERSION").to_owned(), push.to_owned());
    format!("{}\n{rest}", Marker { version, push, sha256: sha256(&rest) })
}

/// The gate as it is stored, whichever version of the guardian made it, for one more sending.
pub fn again(text: &str, marker: &Marker, push: &str) -> String {
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest).replace(&marker.push, push);
    let (version, push) = (marker.version.clone(), push.to_owned());
    format!("{}\n{rest}", Marker { version, push, sha256: sha256(&rest) })
}

/// Is it a gate, unchanged, and not the one that this version of the guardian installs?
pub fn is_of_another_version(text: &str) -> bool {
    match Scriptlet::parse(text) {
        Scriptlet::Gate { marker, site, intact: true } => compose(site.as_deref(), &marker.push) != text,
        Scriptlet::Gate { intact: false, .. } | Scriptlet::Absent | Scriptlet::Site(_) => false,
    }
}

/// The first line of a gate; `None` for any other text.
pub fn marker(text: &str) -> Option<Marker> {
    let line = text.lines().next()?.strip_prefix(MARK)?;
    let (version, line) = line.split_once(" push:")?;
    let (push, sha256) = line.split_once(" sha256:")?;
    Some(Marker { version: version.to_owned(), push: push.to_owned(), sha256: sha256.to_owned() })
}

/// The site's scriptlet that a gate wraps, byte for byte.
pub fn site_of(text: &str) -> Option<String> {
    marker(text)?;
    // Its own text may hold these lines too, so that the outermost count.
    let from = text.find(BEGIN)? + BEGIN.len();
    let to = text.rfind(END)?;
    unindent(text.get(from..to)?)
}

/// Where two texts differ, line by line: what only the first has with `-`, what only the second has with `+`.
pub fn difference(ours: &str, theirs: &str) -> String {
    let (ours, theirs): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
    let before = ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
    let (ours, theirs) = (&ours[before..], &theirs[before..]);
    let after = ours.iter().rev().zip(theirs.iter().rev()).take_while(|(a, b)| a == b).count();
    let lines = |sign: char, lines: &[&str]| {
        lines[..lines.len() - after].iter().map(|line| format!("{sign} {line}\n")).collect::<String>()
    };
    format!("@ line {}\n{}{}", before + 1, lines('-', ours), lines('+', theirs))
}

fn sha256(text: &str) -> String {
    data_encoding::HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn indent(site: &str) -> String {
    let mut strings = StringState::default();
    let mut padded = String::new();
    for line in site.split_inclusive('\n') {
        if !strings.inside() {
            padded.push_str(PAD);
        }
        padded.push_str(line);
        strings.read(line);
    }
    padded
}

/// `None` if the text was not made by [`indent`].
fn unindent(padded: &str) -> Option<String> {
    let mut strings = StringState::default();
    let mut site = String::new();
    for line in padded.split_inclusive('\n') {
        site.push_str(if strings.inside() { line } else { line.strip_prefix(PAD)? });
        strings.read(line);
    }
    Some(site)
}

/// Whether a line begins inside of a string, where spaces would count (the Starlark specification, "String literals":
/// a backslash keeps a quote, or the end of the line, from ending a string, in raw ones too).
#[derive(Default)]
struct StringState {
    open: Option<String>,
}

impl StringState {
    fn inside(&self) -> bool {
        self.open.is_some()
    }

    fn read(&mut self, line: &str) {
        let mut rest = line;
        while let Some(next) = rest.chars().next() {
            let mut length = next.len_utf8();
            match &self.open {
                Some(_) if next == '\\' => {
                    let escaped = rest[1..].chars().next();
                    length += escaped.map_or(0, char::len_utf8);
                    // The end of a line may be of two characters.
                    length += usize::from(rest[1..].starts_with("\r\n"));
                    if rest.len() == length && escaped.is_some() {
                        return;
                    }
                }
                Some(quote) if rest.starts_with(quote.as_str()) => {
                    length = quote.len();
                    self.open = None;
                }
                // No text of Starlark: it ends with the line, whatever it is.
                Some(quote) if next == '\n' && quote.len() == 1 => self.open = None,
                Some(_) => {}
                None if next == '#' => return,
                None if next == '"' || next == '\'' => {
                    let three = next.to_string().repeat(3);
                    length = if rest.starts_with(&three) { 3 } else { 1 };
                    self.open = rest.get(..length).map(str::to_owned);
                }
                None => {}
            }
            rest = &rest[length..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rbd_guardian_core::model::gate_keys::{self, GateContents, KEYS};

    const SITE: &str = "T = 'it''s # no comment'  # \"\"\" no string\n\ndef instance_placement(request, candidate_members):\n\
                        \tlog_info('''two\nlines''', \"a\\\n b\")\r\n\tset_target(candidate_members[0].server_name)";

    #[test]
    fn the_sites_scriptlet_comes_back_byte_for_byte() {
        let once = compose(Some(SITE), "1");
        assert_eq!(site_of(&once).as_deref(), Some(SITE));
        let twice = compose(Some(&once), "2");
        assert_eq!(site_of(&twice), Some(once), "also one that is a gate itself");
        assert_eq!(site_of(&compose(None, "1")), None);
        assert!(compose(Some(SITE), "1").contains("\nlines''', \"a\\\n b\")"), "strings are left alone");
    }

    #[test]
    fn what_was_edited_is_told_from_what_was_installed() {
        let text = compose(Some(SITE), "p");
        let Scriptlet::Gate { marker, site, intact } = Scriptlet::parse(&text) else { panic!("{text}") };
        assert_eq!((site.as_deref(), intact, marker.push.as_str()), (Some(SITE), true, "p"));
        assert_eq!(text.lines().next(), Some(marker.to_string().as_str()));
        let edited = text.replace("== epoch", "!= \"\"");
        assert!(matches!(Scriptlet::parse(&edited), Scriptlet::Gate { intact: false, .. }));
        let shown = difference(&text, &edited);
        assert!(
            shown.contains("- ") && shown.contains(", \"\") != \"\"") && shown.lines().count() == 3,
            "{shown}"
        );
        assert_eq!(Scriptlet::parse(SITE), Scriptlet::Site(SITE.to_owned()));
        assert_eq!(Scriptlet::parse("\n"), Scriptlet::Absent);
    }

    #[test]
    fn another_versions_gate_is_told_and_sent_again_as_it_is() {
        let (ours, push) = (compose(Some(SITE), "0123456789abcdef"), "fedcba9876543210");
        let marker = |text: &str| marker(text).unwrap();
        assert_eq!(again(&ours, &marker(&ours), push), compose(Some(SITE), push));
        assert!(!is_of_another_version(&ours));
        let (line, rest) = ours.split_once('\n').unwrap();
        let rest = rest.replace("# Refuses", "# This one refuses");
        let line =
            line.replace(env!("CARGO_PKG_VERSION"), "9.0.0").replace(&marker(&ours).sha256, &sha256(&rest));
        let theirs = format!("{line}\n{rest}");
        assert!(is_of_another_version(&theirs));
        let sent = again(&theirs, &marker(&theirs), push);
        let Scriptlet::Gate { marker, site, intact: true } = Scriptlet::parse(&sent) else {
            panic!("{sent}")
        };
        assert_eq!(
            (marker.version.as_str(), marker.push.as_str(), site.as_deref()),
            ("9.0.0", push, Some(SITE))
        );
        assert!(sent.contains("# This one refuses") && sent.contains(&format!("\"{push}\"")));
        assert!(
            !is_of_another_version(&theirs.replace("# This", "# That")),
            "changed by hand, which is told apart"
        );
        assert!(!is_of_another_version(SITE));
    }

    /// As the version of commit 8c4f078 installed it, before the guardian had parts.
    #[test]
    fn a_gate_of_an_earlier_version_is_read_and_its_keys_too() {
        let text = include_str!("../../tests/fixtures/gate/before-parts.star");
        let Scriptlet::Gate { site, intact: true, .. } = Scriptlet::parse(text) else { panic!("{text}") };
        let site = site.unwrap();
        assert!(site.starts_with("def instance_placement(") && site.ends_with(".server_name)\n"), "{site}");
        assert!(is_of_another_version(text), "it is replaced");
        let keys =
            [("epoch", "7"), ("members", "n1,n2"), ("pools", "ceph:ceph/incus,local"), ("seal.n2", "7")];
        let keys = keys.map(|(key, value)| (format!("{KEYS}{key}"), value.to_owned())).into();
        let [open, members, pools] = [vec!["n2"], vec!["n1", "n2"], vec!["ceph:ceph/incus", "local"]]
            .map(|names| names.into_iter().map(str::to_owned).collect());
        let contents = GateContents { open, members, pools, awaited: Default::default() };
        assert_eq!(GateContents::of(&keys), contents);
        assert_eq!(contents.keys(gate_keys::epoch(&keys)), keys, "written the same");
    }

    #[test]
    fn no_placeholder_is_left_and_each_sending_differs() {
        let text = compose(None, "1");
        assert!(!text.contains('@'), "{text}");
        assert_ne!(text, compose(None, "2"));
    }

    proptest! {
        #[test]
        fn any_text_comes_back(site in "[a#\"'\\\\\r\n\t é@]{0,60}") {
            let text = compose(Some(&site), "1");
            prop_assert_eq!(site_of(&text), Some(site));
        }
    }
}
