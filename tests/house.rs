//! The house rules that a compiler does not know (docs/design.md#house-rules).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

#[path = "common/shape.rs"]
mod shape;

/// One file, one noun.
const LONGEST: usize = 700;

#[test]
fn the_core_performs_nothing() {
    // What the package does not depend on it cannot name (core/Cargo.toml); this is what the standard library offers.
    let words = ["fs", "process", "thread", "env", "Instant", "SystemTime", "TcpStream"];
    let mut seen = 0;
    let mut wrong = Vec::new();
    // `env!` of the version is the one name that it needs; deliberate errors are in no program that is used.
    let may =
        |file: &PathBuf| ["core/src/lib.rs", "core/src/mutants.rs"].iter().any(|own| file.ends_with(own));
    for file in rust_files(&["core/src"]).into_iter().filter(|file| !may(file)) {
        for name in names(&tokens(&file)) {
            seen += 1;
            if words.contains(&name.as_str()) {
                wrong.push(format!("{}: {name}", file.display()));
            }
        }
    }
    println!("{seen} names in core/src");
    assert!(seen > 1000 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    let mut wrong = Vec::new();
    let files = rust_files(&["src", "core/src", "ceph-sys/src"]);
    for file in files.iter().filter(|file| !is_a_test_module(file)) {
        let all: Vec<_> = flat(without_tests(tokens(file)));
        for pair in all.windows(2) {
            let [before, name] = pair else { continue };
            if before == "." && ["unwrap", "expect"].contains(&name.as_str()) {
                wrong.push(format!("{}: .{name}(", file.display()));
            }
        }
    }
    println!("{} files", files.len());
    assert!(files.len() > 30 && wrong.is_empty(), "{wrong:#?}");
}

/// A name that is put into a path as it is ends it, or names something else.
#[test]
fn paths_of_the_api_are_built_by_their_builder_alone() {
    let own = Path::new("src/incus/path.rs");
    let of_a_path = |text: &str| {
        let formed = text.contains("{}") || text.contains("{") && text.contains('}');
        let query = ["?", "&"].iter().any(|begin| {
            text.split(begin).skip(1).any(|rest| {
                let name = rest.split('=').next().unwrap_or_default();
                rest.contains("={") && name.chars().all(|c| c.is_ascii_alphabetic() || c == '-')
            })
        });
        let path = text.trim_start_matches('"');
        formed && (path.starts_with("/1.0") || query || path.contains("}/wait") || path.contains("}/state"))
    };
    let (mut built, mut wrong) = (0, Vec::new());
    for file in rust_files(&["src"]) {
        if file.ends_with(own) {
            continue;
        }
        for token in flat(without_tests(tokens(&file))) {
            built += usize::from(token == "ApiPath");
            // Also what is put together without a macro: it ends where a name is to follow.
            let open = token.starts_with("\"/1.0/") && (token.ends_with("/\"") || token.ends_with("=\""));
            let taken_apart = token == "\"/1.0/\"";
            if token.starts_with('"') && (of_a_path(&token) || (open && !taken_apart)) {
                wrong.push(format!("{}: {token}", file.display()));
            }
        }
    }
    println!("{built} mentions of the builder");
    assert!(built > 10 && wrong.is_empty(), "{wrong:#?}");
    assert!(
        of_a_path("\"/1.0/instances/{}/state?project={}\"") && of_a_path("\"{operation}/wait?timeout={N}\"")
    );
}

/// Folders, and files beside them, of the core and of the package at the root. Each uses only those before it.
const CORE: &[&str] = &["model", "rules", "fence", "guardian", "recording"];
const SHELL: &[&str] = &[
    "clock",
    "deadline",
    "descriptors",
    "printable",
    "ceph::rados",
    "ceph",
    "incus",
    "ledger",
    "config",
    "control",
    "shown",
    "serve",
    "daemon",
    "cli",
];

#[test]
fn a_folder_uses_only_those_before_it() {
    let mut uses = 0;
    let mut wrong = Vec::new();
    for (source, order) in [("core/src", CORE), ("src", SHELL)] {
        let place = |path: &str| {
            let of = |name: &&str| path == *name || path.starts_with(&format!("{name}::"));
            order.iter().position(of)
        };
        for (file, imported) in import_graph(source) {
            let Some(here) = place(&file) else { continue };
            uses += imported.len();
            let later = imported.iter().filter(|path| place(path).is_some_and(|there| there > here));
            wrong.extend(later.map(|path| format!("{source}: {file} uses {path}")));
        }
    }
    println!("{uses} uses");
    assert!(uses > 300 && wrong.is_empty(), "{wrong:#?}");
}

/// Files that import each other in a circle, and why. What is here is to become less.
const CIRCLES: &[(&str, &str)] = &[(
    "model::incus_snapshot",
    "an instance's image names come from its volumes, and a volume names its instances",
)];

#[test]
fn files_import_each_other_in_one_direction() {
    let mut imports = 0;
    let mut wrong = Vec::new();
    for source in ["core/src", "src"] {
        let graph = import_graph(source);
        imports += graph.values().map(BTreeSet::len).sum::<usize>();
        for (file, all) in &graph {
            for other in all {
                let back = reachable(&graph, other).contains(file);
                let listed = CIRCLES.iter().any(|(part, _)| {
                    [file, other].iter().all(|file| file.starts_with(part)) || file == part || other == part
                });
                if back && !listed {
                    wrong.push(format!("{source}: {file} imports {other}, which leads back to it"));
                }
            }
        }
    }
    println!("{imports} imports");
    assert!(imports > 300 && wrong.is_empty(), "{wrong:#?}");
}

/// Of each file of a package, by its module path, the files that it imports. A child module is no import of its parent.
fn import_graph(source: &str) -> BTreeMap<String, BTreeSet<String>> {
    let module = |file: &Path| {
        let below = file.strip_prefix(root().join(source)).unwrap().with_extension("");
        below.to_string_lossy().replace('/', "::").trim_end_matches("::mod").to_owned()
    };
    let files: BTreeMap<String, PathBuf> =
        rust_files(&[source]).into_iter().map(|file| (module(&file), file)).collect();
    let mut graph = BTreeMap::new();
    for (name, file) in &files {
        let mut paths = Vec::new();
        used_paths(&without_tests(tokens(file)), name.split("::").map(str::to_owned).collect(), &mut paths);
        let mut imported = BTreeSet::new();
        for path in paths {
            let longest =
                (1..=path.len()).rev().map(|n| path[..n].join("::")).find(|path| files.contains_key(path));
            imported.extend(longest.filter(|other| other != name));
        }
        graph.insert(name.clone(), imported);
    }
    graph
}

/// All paths that begin with `crate` or `super`, those in braces one by one.
fn used_paths(tokens: &[TokenTree], module: Vec<String>, paths: &mut Vec<Vec<String>>) {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token {
            TokenTree::Ident(name) if name == "crate" => at = path_from(tokens, at, Vec::new(), paths),
            // `pub(in crate::cli)` imports nothing.
            TokenTree::Ident(name) if name == "pub" => {
                at += usize::from(matches!(tokens.get(at), Some(TokenTree::Group(_))));
            }
            TokenTree::Ident(name) if name == "super" => {
                let parent = module[..module.len().saturating_sub(1)].to_vec();
                at = path_from(tokens, at, parent, paths);
            }
            // `mod inner { … }`: `super` is this module there.
            TokenTree::Ident(name) if name == "mod" => {
                if let (Some(TokenTree::Ident(inner)), Some(TokenTree::Group(group))) =
                    (tokens.get(at), tokens.get(at + 1))
                {
                    let inner = [module.clone(), vec![inner.to_string()]].concat();
                    used_paths(&group.stream().into_iter().collect::<Vec<_>>(), inner, paths);
                    at += 2;
                }
            }
            TokenTree::Group(group) => {
                used_paths(&group.stream().into_iter().collect::<Vec<_>>(), module.clone(), paths);
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
}

/// The rest of a path, `::a::{b, c::d}`; returns where it ends.
fn path_from(
    tokens: &[TokenTree],
    mut at: usize,
    mut path: Vec<String>,
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let is_colon =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(colon)) if colon.as_char() == ':');
    let begin = path.len();
    while is_colon(at) && is_colon(at + 1) {
        match tokens.get(at + 2) {
            Some(TokenTree::Ident(name)) if name == "super" => drop(path.pop()),
            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
            Some(TokenTree::Group(group)) => {
                let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                let is_comma =
                    |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
                for part in inside.split(is_comma) {
                    if let Some(TokenTree::Ident(name)) = part.first() {
                        let of_self = name == "self";
                        let name = (!of_self).then(|| name.to_string());
                        path_from(part, 1, path.iter().cloned().chain(name).collect(), paths);
                    }
                }
                return at + 3;
            }
            _ => break,
        }
        at += 3;
    }
    if path.len() > begin {
        paths.push(path);
    }
    at
}

fn reachable<'g>(graph: &'g BTreeMap<String, BTreeSet<String>>, from: &'g String) -> BTreeSet<&'g String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(file) = open.pop() {
        if seen.insert(file) {
            open.extend(graph.get(file).into_iter().flatten());
        }
    }
    seen
}

#[test]
fn unsafe_code_is_where_librados_is() {
    let room = root().join("src/ceph/rados");
    let mut inside = 0;
    let mut wrong = Vec::new();
    for file in rust_files(&["src", "core/src"]) {
        let count = names(&without_tests(tokens(&file))).iter().filter(|name| *name == "unsafe").count();
        if file.starts_with(&room) {
            inside += count;
        } else if count > 0 {
            wrong.push(format!("{}: {count}", file.display()));
        }
    }
    println!("{inside} in src/ceph/rados");
    assert!(inside > 20 && wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_architecture_lists_every_folder() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let is_nested = |folder: &Path| !folder.ends_with("core/src") && !folder.ends_with("src");
    let sources = rust_files(&["core/src", "src"]);
    let folders = sources.iter().filter_map(|file| file.parent()).filter(|folder| is_nested(folder));
    let shown = |folder: &Path| format!("`{}/`", folder.strip_prefix(root()).unwrap().display());
    let folders: BTreeSet<String> = folders.map(shown).collect();
    let missing: Vec<_> = folders.iter().filter(|folder| !text.contains(folder.as_str())).collect();
    assert!(folders.len() > 18 && missing.is_empty(), "{missing:?}");
}

/// INV-8 rests on it: the record of a fence changes in its own folder alone, by one method of `DueRecord`.
#[test]
fn a_fence_shows_no_field() {
    for (file, name) in [("core/src/fence/mod.rs", "Fence"), ("core/src/fence/due_record.rs", "DueRecord")] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let after = text.split_once(&format!("struct {name}")).expect("it is there").1;
        let body = after.split("\n}\n").next().unwrap().split(";\n\n").next().unwrap();
        assert!(!body.contains("pub"), "{name}: {body}");
    }
    let text = fs::read_to_string(root().join("core/src/fence/due_record.rs")).unwrap();
    assert_eq!(text.matches("(&mut self,").count(), 1, "one way to change a record");
    assert!(!text.contains("DerefMut"));
}

#[test]
fn no_file_is_too_long() {
    let files = rust_files(&["src", "core", "ceph-sys", "tests"]);
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    let (longest, file) = files.iter().map(|file| (lines(file), file)).max().unwrap();
    println!("{} files; the longest, {}: {longest} lines", files.len(), file.display());
    assert!(longest <= LONGEST, "{} has {longest} lines", file.display());
}

#[test]
fn what_a_whole_file_is_allowed_has_a_reason() {
    let mut wrong = Vec::new();
    for file in rust_files(&["src", "core/src", "ceph-sys/src", "tests/lab/src"]) {
        let text = fs::read_to_string(&file).unwrap();
        let mut before = "";
        for line in text.lines() {
            let reason = |line: &str| line.contains("// ") && !line.trim_start().starts_with("//!");
            if line.starts_with("#![allow(") && !reason(line) && !reason(before) {
                wrong.push(format!("{}: {line}", file.display()));
            }
            before = line;
        }
    }
    assert!(wrong.is_empty(), "a comment above or behind says why: {wrong:#?}");
}

/// A citation is the id in a test program, or in the `#[cfg(test)]` part of a source file. A test that
/// docs/guarantees.md names as `tests/FILE.rs::NAME` is there under that name.
#[test]
fn every_guarantee_has_a_test_that_cites_it() {
    let text = fs::read_to_string(root().join("docs/guarantees.md"))
        .expect("docs/guarantees.md: what is guaranteed, and the test that shows it");
    let mut cited = BTreeSet::new();
    for file in rust_files(&["src", "core", "tests"]) {
        let source = fs::read_to_string(&file).unwrap();
        let tests = if ["src", "core/src"].iter().any(|folder| file.starts_with(root().join(folder))) {
            source.split_once("#[cfg(test)]").map_or("", |(_, tests)| tests).to_owned()
        } else {
            source
        };
        cited.extend(invariants(&tests));
    }
    let promised = invariants(&text);
    println!("promised {promised:?}, cited by tests {cited:?}");
    let uncited: Vec<_> = promised.difference(&cited).collect();
    assert!(!promised.is_empty() && uncited.is_empty(), "no test cites {uncited:?}");

    let named = text
        .split(|c: char| !(c.is_alphanumeric() || "_/.:".contains(c)))
        .filter_map(|word| word.split_once(".rs::"));
    for (file, test) in named {
        let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
        let there = source.contains(&format!("fn {}(", test.trim_end_matches([':', '.'])));
        assert!(there, "docs/guarantees.md names {file}.rs::{test}: there is no such test");
    }
}

/// Each row of the table of threats names at least one test, and each that the page names is there.
#[test]
fn every_threat_has_a_test_that_is_there() {
    let text = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let rows: Vec<_> = text.lines().skip_while(|line| !line.starts_with("|---")).skip(1).collect();
    let rows: Vec<_> = rows.into_iter().take_while(|line| line.starts_with('|')).collect();
    let (mut named, mut wrong) = (0, Vec::new());
    for row in &rows {
        let before = named;
        for word in row.split('`') {
            let Some((file, test)) = word.split_once(".rs::") else { continue };
            named += 1;
            let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
            if !source.contains(&format!("fn {test}(")) {
                wrong.push(word.to_owned());
            }
        }
        if named == before {
            wrong.push(format!("no test: {row}"));
        }
    }
    println!("{} threats, {named} tests", rows.len());
    assert!(rows.len() > 10 && wrong.is_empty(), "{wrong:#?}");
}

/// Cited are `docs/FILE.md` and `docs/FILE.md#section` anywhere, and what a link of a page names.
#[test]
fn every_document_that_is_cited_exists_and_has_the_section() {
    let sources = ["src", "core", "ceph-sys", "tests", "benches", "examples", "deploy", "config"];
    let mut wrong = Vec::new();
    let mut cited = 0;
    let rust = rust_files(&sources).into_iter().filter(|file| !file.ends_with(file!()));
    for file in rust.chain(files(&["deploy", "config"], |_| true)) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for citation in citations(&text) {
            cited += 1;
            if let Err(why) = resolve(root(), citation) {
                wrong.push(format!("{}: {citation}: {why}", file.display()));
            }
        }
    }
    let pages = files(&["docs"], |path| path.extension().is_some_and(|end| end == "md"));
    for page in pages.iter().chain(&[root().join("README.md"), root().join("CHANGELOG.md")]) {
        let text = fs::read_to_string(page).unwrap();
        for path in source_files(&text).filter(|_| !page.ends_with("CHANGELOG.md")) {
            cited += 1;
            if !root().join(path).exists() {
                wrong.push(format!("{}: there is no {path}", page.display()));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            cited += 1;
            let of_this_page = format!("{}{link}", page.file_name().unwrap().to_string_lossy());
            let path = if link.starts_with('#') { of_this_page.as_str() } else { link };
            if !link.contains("://")
                && let Err(why) = resolve(page.parent().unwrap(), path)
            {
                wrong.push(format!("{}: {link}: {why}", page.display()));
            }
        }
    }
    println!("{cited} citations");
    assert!(cited > 50 && wrong.is_empty(), "{wrong:#?}");
    assert!(resolve(root(), "docs/design.md#no-such-section").is_err());
}

/// `docs/FILE.md` with the section behind `#`, if there is one.
fn citations(text: &str) -> impl Iterator<Item = &str> {
    let of_a_path = |c: char| c.is_ascii_alphanumeric() || "/._-#".contains(c);
    text.split(move |c| !of_a_path(c)).map(|word| word.trim_end_matches('.')).filter(|word| {
        let page = word.split('#').next().unwrap_or_default();
        word.starts_with("docs/") && page.ends_with(".md")
    })
}

/// Files of the repository that a page names: `core/src/lib.rs`, and `tests/fence.rs` of `tests/fence.rs::NAME`.
fn source_files(text: &str) -> impl Iterator<Item = &str> {
    let folders = ["core/", "src/", "tests/", "deploy/", "config/", "ceph-sys/"];
    let of_a_path = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    text.split(move |c| !of_a_path(c)).filter(move |word| {
        folders.iter().any(|folder| word.starts_with(folder))
            && (word.ends_with(".rs") || word.ends_with(".toml"))
    })
}

/// Is there such a file, and such a heading in it?
fn resolve(folder: &Path, citation: &str) -> Result<(), String> {
    let (page, section) =
        citation.split_once('#').map_or((citation, None), |(page, name)| (page, Some(name)));
    let path = folder.join(page);
    let Some(section) = section else {
        return path.exists().then_some(()).ok_or_else(|| "there is no such file".to_owned());
    };
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let anchor = |title: &str| {
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        title.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    let titles = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    let there = titles.map(anchor).any(|title| title == section);
    there.then_some(()).ok_or_else(|| "there is no such section".to_owned())
}

/// `INV-n` in a text; `INV-3/4` names two.
fn invariants(text: &str) -> BTreeSet<u32> {
    let after = text.split("INV-").skip(1);
    let numbers = after.map(|rest| rest.split(|c: char| !c.is_ascii_digit() && c != '/').next().unwrap());
    numbers.flat_map(|numbers| numbers.split('/').filter_map(|number| number.parse().ok())).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folders: &[&str]) -> Vec<PathBuf> {
    files(folders, |path| path.extension().is_some_and(|end| end == "rs"))
}

fn files(folders: &[&str], wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.is_file() && wanted(&path) {
                files.push(path);
            }
        }
    }
    files
}

/// The code as the compiler sees it: without comments.
fn tokens(file: &Path) -> Vec<TokenTree> {
    let code: TokenStream = fs::read_to_string(file)
        .unwrap()
        .parse()
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    code.into_iter().collect()
}

/// A file that its parent declares as `#[cfg(test)] mod NAME;`.
fn is_a_test_module(file: &Path) -> bool {
    let Some((folder, name)) = file.parent().zip(file.file_stem().and_then(|name| name.to_str())) else {
        return false;
    };
    let declared = format!("#[cfg(test)]\nmod {name};");
    [folder.join("mod.rs"), folder.join("lib.rs"), folder.with_extension("rs")]
        .iter()
        .any(|parent| fs::read_to_string(parent).is_ok_and(|text| text.contains(&declared)))
}

/// Leaves out what follows `#[cfg(test)]`, up to the end of that item.
fn without_tests(tokens: Vec<TokenTree>) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        if token.to_string().replace(' ', "") == "[cfg(test)]" {
            // To the braces of `mod tests { … }`, or the end of `mod tests;`.
            let is_end = |token: &TokenTree| {
                let text = token.to_string();
                text == ";" || matches!(token, TokenTree::Group(_)) && text.starts_with('{')
            };
            tokens.by_ref().find(is_end);
        } else {
            kept.push(token);
        }
    }
    kept
}

/// All tokens in order, those inside of brackets too.
fn flat(tokens: Vec<TokenTree>) -> Vec<String> {
    let mut flat_tokens = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => flat_tokens.extend(flat(group.stream().into_iter().collect())),
            TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {
                flat_tokens.push(token.to_string());
            }
        }
    }
    flat_tokens
}

/// Identifiers only: neither text nor doc comments, which the compiler turns into text.
fn names(tokens: &[TokenTree]) -> Vec<String> {
    let mut found = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) => found.extend(names(&group.stream().into_iter().collect::<Vec<_>>())),
            TokenTree::Ident(name) => found.push(name.to_string()),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    found
}

/// What scripts may meet is written down.
#[test]
fn every_code_of_a_refusal_is_in_the_documentation() {
    let (source, docs) = (include_str!("../core/src/rules/refusal.rs"), include_str!("../docs/json.md"));
    let codes: Vec<&str> = source
        .lines()
        .filter(|line| line.contains("Self::") && line.contains("=> \""))
        .filter_map(|line| line.split('"').nth(1))
        .collect();
    assert!(codes.len() > 20, "{codes:?}");
    for code in codes {
        assert!(docs.contains(&format!("`{code}`")), "{code} is not in docs/json.md");
    }
}
