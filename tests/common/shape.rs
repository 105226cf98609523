//! The shape of both packages, with what they do not meet yet. A list may only shrink.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::rust_files;

/// Longer than [`FUNCTION`], how long, and why.
const LONG: &[(&str, usize, &str)] = &[
    ("plan", 112, "one refusal after another, in the order in which an operator reads them"),
    ("uses", 75, "whose a client is: one decision, whose cases exclude each other"),
    ("gate_waits", 69, "one sentence a condition"),
    ("update", 70, "one state machine, whose arms exclude each other"),
    ("keep", 63, "what is kept of one member, in one pass"),
    ("parse", 66, "one field of the osdmap's dump after another"),
    ("exit", 81, "one arm an error: the compiler asks for each"),
    ("text", 64, "one section of the ledger after another"),
    ("perform", 117, "one arm an effect"),
];
const FUNCTION: usize = 60;
/// More fields than [`FIELDS`], how many, and why.
const WIDE: &[(&str, usize, &str)] = &[
    ("Guardian", 29, "one line a part, with what all of them look at"),
    ("Fence", 24, "what a sweep said of it is no type of its own yet"),
    ("Sealing", 16, "one machine"),
    ("FenceRecord", 21, "a record of the ledger"),
    ("FenceShown", 23, "a record of the ledger as JSON, one field a key of docs/json.md"),
];
const FIELDS: usize = 15;
/// Names that stand for several types, how many, and why.
const NAMESAKES: &[(&str, usize, &str)] = &[
    ("Instance", 2, API),
    ("Member", 2, API),
    ("MemberState", 2, API),
    ("Operation", 2, API),
    ("Pool", 2, API),
    ("Volume", 2, API),
];
const API: &str = "as Incus's JSON has it, always written with its module: `api::`";
/// Types with an inherent `impl` outside of their file and of the folder of their module.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "IoCtx",
        "its locks and its omaps are files of their own: all three have `unsafe` code to be reviewed by itself",
    ),
    ("Ledger", "reading, writing and the lease are each a file of their own"),
];
/// The only files of `impl Guardian`: it hands inputs to its parts, settles them and asks them for effects.
const GUARDIAN: [&str; 2] = ["core/src/guardian/inputs.rs", "core/src/guardian/mod.rs"];
/// What a function fails with, and what is not called an error.
const NO_ERROR: &[(&str, &str)] = &[
    ("Failure", "where a sealing or a release ends up: its state shows it"),
    ("Difference", "what a replay finds"),
    ("Refusal", "a decision"),
    ("NotProved", "a decision"),
];

/// Files of both packages, without their tests.
fn sources() -> Vec<(PathBuf, String)> {
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        (file, text.split("#[cfg(test)]").next().unwrap().to_owned())
    };
    rust_files(&["core/src", "src"]).into_iter().map(read).collect()
}

/// The name behind a keyword, whoever may see the item.
fn named<'a>(line: &'a str, keywords: &[&str]) -> Option<&'a str> {
    let line =
        line.strip_prefix("pub").map_or(line, |rest| rest.split_once(' ').map_or(rest, |(_, rest)| rest));
    let rest = keywords.iter().find_map(|keyword| line.strip_prefix(keyword)?.strip_prefix(' '))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// What is above the limit is listed with at most that much, and what is listed is above it.
fn assert_listed(found: &[(String, usize)], limit: usize, listed: &[(&str, usize, &str)]) {
    for (name, count) in found.iter().filter(|(_, count)| *count > limit) {
        let most = listed.iter().find(|(listed, ..)| listed == name).map_or(limit, |(_, most, _)| *most);
        assert!(*count <= most, "{name} has {count}, at most {most} are allowed");
    }
    for (name, ..) in listed {
        let above = found.iter().any(|(found, count)| found == name && *count > limit);
        assert!(above, "{name} is no longer above {limit}: it goes from the list");
    }
}

#[test]
fn functions_are_short_or_have_a_reason() {
    let mut found = Vec::new();
    for (_, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let indent = &line[..line.len() - line.trim_start().len()];
            let Some(name) = named(line.trim_start(), &["fn", "const fn", "async fn"]) else { continue };
            let end = lines[at..].iter().position(|line| *line == format!("{indent}}}"));
            found.extend(end.map(|end| (name.to_owned(), end + 1)));
        }
    }
    println!("{} functions", found.len());
    assert!(found.len() > 1200);
    assert_listed(&found, FUNCTION, LONG);
}

#[test]
fn structs_are_small_and_types_have_names_of_their_own() {
    let (mut fields, mut names) = (Vec::new(), Vec::new());
    for (_, text) in sources() {
        names.extend(text.lines().filter_map(|line| named(line, &["struct", "enum"])).map(str::to_owned));
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(name) = named(line, &["struct"]).filter(|_| line.ends_with('{')) else { continue };
            let body = lines[at + 1..].iter().take_while(|line| **line != "}");
            let field = |line: &&&str| {
                let line = line.trim_start();
                !line.starts_with(['/', '#']) && line.contains(": ") && line.ends_with(',')
            };
            fields.push((name.to_owned(), body.filter(field).count()));
        }
    }
    assert!(names.len() > 150, "{}", names.len());
    assert_listed(&fields, FIELDS, WIDE);
    let count = |name: &String| names.iter().filter(|other| *other == name).count();
    let shared: BTreeSet<_> = names.iter().map(|name| (name.clone(), count(name))).collect();
    assert_listed(&shared.into_iter().collect::<Vec<_>>(), 1, NAMESAKES);
}

#[test]
fn an_inherent_impl_is_where_its_type_is() {
    let sources = sources();
    let (mut seen, mut wrong, mut used) = (0, Vec::new(), BTreeSet::new());
    for (file, text) in &sources {
        for line in text.lines().filter(|line| line.starts_with("impl") && !line.contains(" for ")) {
            let line = line.strip_prefix("impl").unwrap();
            let line = if line.starts_with('<') { line.split_once("> ").unwrap().1 } else { line };
            let name = line.trim_start().split(|c: char| !c.is_alphanumeric()).next().unwrap();
            seen += 1;
            // The type's own file; of a `mod.rs` also those beside it, of `events.rs` those in `events/`.
            let home = |(path, text): &&(PathBuf, String)| {
                let is_here = path == file
                    || (path.ends_with("mod.rs") && path.parent() == file.parent())
                    || Some(path.with_extension("").as_path()) == file.parent();
                is_here && text.lines().any(|line| named(line, &["struct", "enum"]) == Some(name))
            };
            let excepted = ELSEWHERE.iter().find(|(listed, _)| *listed == name);
            let at_home = sources.iter().find(home).filter(|(path, _)| path == file || excepted.is_none());
            match (at_home, excepted) {
                (Some(_), _) => {}
                (None, Some((listed, _))) => drop(used.insert(*listed)),
                (None, None) => wrong.push(format!("{}: {name}", file.display())),
            }
        }
    }
    println!("{seen} impls");
    assert!(seen > 200 && wrong.is_empty(), "{wrong:#?}");
    assert_eq!(used.len(), ELSEWHERE.len(), "what is at home goes from the list: {used:?}");
}

#[test]
fn the_guardian_has_parts_instead_of_files() {
    let has_impl = |text: &str| text.lines().any(|line| line == "impl Guardian {");
    let files = sources().into_iter().filter(|(_, text)| has_impl(text));
    let found: BTreeSet<PathBuf> = files.map(|(file, _)| file).collect();
    let only = GUARDIAN.map(|file| super::root().join(file));
    assert_eq!(found, BTreeSet::from(only));
}

#[test]
fn errors_are_called_so() {
    let mut names = Vec::new();
    for (_, text) in sources() {
        for item in text.split("thiserror::Error").skip(1) {
            names.extend(item.lines().find_map(|line| named(line, &["struct", "enum"])).map(str::to_owned));
        }
    }
    let listed = |name: &&String| NO_ERROR.iter().any(|(listed, _)| listed == name);
    let wrong: Vec<_> = names.iter().filter(|name| !name.ends_with("Error") && !listed(name)).collect();
    assert!(names.len() > 4 && wrong.is_empty(), "{wrong:?} of {names:?}");
    assert!(NO_ERROR.iter().all(|(listed, _)| names.iter().any(|name| name == listed)), "{names:?}");
}

/// A comment has a reason, a unit, a source or a rule; what the name says already is noise.
#[test]
fn no_documentation_repeats_the_name() {
    let words = |text: &str| -> Vec<String> {
        let (mut spaced, mut before) = (String::new(), ' ');
        for c in text.chars() {
            if before.is_lowercase() && c.is_uppercase() {
                spaced.push(' ');
            }
            spaced.push(c);
            before = c;
        }
        let words = spaced.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    const SMALL: [&str; 15] = [
        "the", "a", "an", "of", "its", "it", "is", "to", "and", "that", "this", "what", "which", "for", "one",
    ];
    let (mut seen, mut wrong) = (0, Vec::new());
    for (file, text) in sources() {
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (at, line) in lines.iter().enumerate() {
            let is_alone = at == 0 || !lines[at - 1].starts_with("///");
            let Some(comment) = line.strip_prefix("///").filter(|text| is_alone && !text.contains('`'))
            else {
                continue;
            };
            let item = lines[at + 1..].iter().find(|line| !line.starts_with('#')).unwrap();
            if item.starts_with("///") {
                continue;
            }
            seen += 1;
            let ignored = ["pub", "fn", "struct", "enum", "const", "static", "type", "super", "crate", "in"];
            let mut name =
                item.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
            let name = words(name.find(|word| !ignored.contains(word)).unwrap_or_default());
            let same = |word: &String| {
                name.iter().any(|part| word.starts_with(part) || part.starts_with(word.as_str()))
            };
            let said = words(comment);
            let mut said =
                said.iter().filter(|word| !SMALL.contains(&word.as_str()) && word.len() > 1).peekable();
            if said.peek().is_some() && said.all(same) {
                wrong.push(format!("{}:{}: {comment} {item}", file.display(), at + 1));
            }
        }
    }
    println!("{seen} comments");
    assert!(seen > 1000 && wrong.is_empty(), "{wrong:#?}");
}
