//! The files of a configuration: the main one, and the snippets in the folder `conf.d` beside it. Later files override
//! earlier ones, key by key; their `[[member]]` tables come together.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use toml::{Table, Value};

use crate::config::ConfigError;

/// The longest file of a configuration: the sample has 4 KiB.
const LONGEST: u64 = 1024 * 1024;

/// The folder of the snippets, beside the main file.
pub const SNIPPETS: &str = "conf.d";

/// A file and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    pub path: String,
    pub text: String,
}

/// All files as one table, and which file each value is from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MergedConfig {
    pub table: Table,
    /// The first file, which is named for a value that no file has.
    pub main: String,
    /// The file of each key, written `policy.expire`, and of each member, written `member 'n1'`.
    origins: BTreeMap<String, String>,
}

/// Reads the main file and its snippets, in the order in which they count. Without `required` the main file may be absent.
///
/// # Errors
/// A file that is there cannot be read.
pub fn read(main: &Path, required: bool) -> Result<Vec<ConfigFile>, ConfigError> {
    let unreadable = |path: &Path, error: io::Error| ConfigError::Unreadable { path: shown(path), error };
    let mut files = Vec::new();
    match text(main) {
        Ok(text) => files.push(ConfigFile { path: shown(main), text }),
        Err(error) if !required && error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(main, error)),
    }
    let folder = main.parent().unwrap_or(Path::new("/")).join(SNIPPETS);
    for path in snippets(&folder).map_err(|error| unreadable(&folder, error))? {
        let text = text(&path).map_err(|error| unreadable(&path, error))?;
        files.push(ConfigFile { path: shown(&path), text });
    }
    Ok(files)
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("it is longer than {LONGEST} bytes: is it the right file?")));
    }
    Ok(text)
}

/// What an editor or a package manager leaves beside them (`x.toml~`, `x.toml.dpkg-new`, `.x.toml`) is no snippet.
fn snippets(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let is = |path: &PathBuf| path.extension().is_some_and(|end| end == "toml") && !hidden(path);
    let mut found: Vec<_> = paths.into_iter().filter(is).collect();
    found.sort();
    Ok(found)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

impl MergedConfig {
    pub fn new(main: String) -> Self {
        Self { main, ..Self::default() }
    }

    /// Adds a file's table; what it sets overrides what earlier files set.
    pub fn add(&mut self, table: Table, path: &str) {
        for (key, value) in table {
            match value {
                Value::Table(inner) => self.add_table(&key, inner, path),
                Value::Array(members) => self.add_members(&key, members, path),
                single @ (Value::String(_)
                | Value::Integer(_)
                | Value::Float(_)
                | Value::Boolean(_)
                | Value::Datetime(_)) => {
                    self.origins.insert(key.clone(), path.to_owned());
                    self.table.insert(key, single);
                }
            }
        }
    }

    fn add_table(&mut self, name: &str, inner: Table, path: &str) {
        for key in inner.keys() {
            self.origins.insert(format!("{name}.{key}"), path.to_owned());
        }
        // An empty table is one as well: it is there.
        if let Value::Table(all) = self.table.entry(name).or_insert_with(|| Value::Table(Table::new())) {
            all.extend(inner);
        }
    }

    /// The arrays at the top are those of `[[member]]`.
    fn add_members(&mut self, key: &str, members: Vec<Value>, path: &str) {
        for member in &members {
            if let Some(name) = member.get("name").and_then(Value::as_str) {
                self.origins.insert(format!("{key} '{name}'"), path.to_owned());
            }
        }
        if let Value::Array(all) = self.table.entry(key).or_insert_with(|| Value::Array(Vec::new())) {
            all.extend(members);
        }
    }

    /// The file that a value is from; `None` for a default.
    pub fn origin(&self, key: &str) -> Option<&str> {
        let own = self.origins.get(key);
        // What is said of a member names more than the member: `member 'n1' addresses`.
        let of_it = || self.origins.iter().find(|(known, _)| key.starts_with(&format!("{known} ")));
        own.or_else(|| of_it().map(|(_, path)| path)).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn written(files: &[(&str, &str)]) -> (PathBuf, PathBuf) {
        let folder = std::env::temp_dir().join(format!("guardian-config-{}-{:p}", std::process::id(), files));
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (folder.clone(), folder.join("rbd-guardian.toml"))
    }

    #[test]
    fn snippets_override_in_the_order_of_their_names() {
        let (folder, main) = written(&[
            (
                "rbd-guardian.toml",
                "[policy]\nexpire = \"4years\"\nmin_remaining = \"1year\"\n[[member]]\nname = \"a\"\n",
            ),
            ("conf.d/20-b.toml", "[policy]\nexpire = \"3years\"\n[[member]]\nname = \"b\"\n"),
            ("conf.d/10-a.toml", "[policy]\nexpire = \"2years\"\nfail_over = false\n"),
            ("conf.d/30-c.toml~", "nothing of it counts"),
            ("conf.d/.40-d.toml", "nothing of it counts"),
            ("conf.d/50-e.toml.dpkg-new", "nothing of it counts"),
        ]);
        let config = Config::load(Some(&main)).unwrap();
        let years = |years: u64| std::time::Duration::from_secs(years * 31_557_600);
        assert_eq!((config.policy.expire, config.policy.min_remaining), (years(3), years(1)));
        assert!(!config.policy.fail_over);
        let names: Vec<_> = config.members.0.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_error_names_the_file_that_it_is_in() {
        let cases = [
            ("[policy]\nexpire = \"soon\"\n", "policy.expire"),
            ("[polcy]\n", "line 1"),
            ("[[member]]\nname = \"b\"\naddresses = [\"x\"]\n", "member 'b' addresses"),
        ];
        for (text, what) in cases {
            let (folder, main) =
                written(&[("rbd-guardian.toml", "[policy]\nfail_over = true\n"), ("conf.d/1.toml", text)]);
            let error = Config::load(Some(&main)).unwrap_err().to_string();
            assert!(error.contains("conf.d/1.toml: ") && error.contains(what), "{error}");
            fs::remove_dir_all(folder).unwrap();
        }
    }

    #[test]
    fn a_main_file_that_is_named_must_be_there_and_snippets_alone_are_enough_for_the_default_one() {
        let (folder, main) = written(&[("conf.d/1.toml", "[policy]\nfail_over = false\n")]);
        assert!(matches!(read(&main, true), Err(ConfigError::Unreadable { .. })));
        assert_eq!(read(&main, false).unwrap().len(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
