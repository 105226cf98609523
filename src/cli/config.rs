//! `config show`: what is configured, and where each value comes from. It needs no cluster.

use std::path::Path;

use clap::{Args, Subcommand};
use serde::Serialize;
use toml::{Table, Value};

use super::answer::table;
use super::error::CliError;
use super::{Common, Exit, Format, output};
use crate::config::files::{ConfigFile, MergedConfig};
use crate::config::{Config, DEFAULT_PATH, SAMPLE, files, merge};

#[derive(Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Show the configured values and the file each of them is in
    ///
    /// Reads the configuration file, then the files `*.toml` in the folder `conf.d` beside it in the order of their names. Later
    /// files override earlier ones, key by key; their `[[member]]` tables come together. Options of the command line (--conf,
    /// --cluster, --id, --keyring) override all of them.
    Show {
        /// Show every key: also those that no file sets, with their defaults
        #[arg(long)]
        effective: bool,
    },
}

#[derive(Debug, PartialEq, Serialize)]
struct ConfigValue {
    key: String,
    /// `null`: not set, and what it then is depends on the host or the cluster.
    value: Option<Value>,
    /// A file's path, or `default`.
    from: String,
}

pub(super) fn run(common: &Common, args: &ConfigArgs) -> Result<Exit, CliError> {
    let ConfigVerb::Show { effective } = args.verb;
    let main = common.config.as_deref();
    let read = files::read(main.unwrap_or(Path::new(DEFAULT_PATH)), main.is_some())?;
    let merged = merge(&read)?;
    // What cannot be used is an error here as for every verb.
    Config::checked(&merged)?;
    let values = values(&merged, effective)?;
    let answer = match common.format() {
        Format::Json => serde_json::to_string(&values).map_err(std::io::Error::from)?,
        Format::Table => shown(&values, &read),
    };
    output::print(&format!("{answer}\n"))?;
    Ok(Exit::Done)
}

fn values(merged: &MergedConfig, effective: bool) -> Result<Vec<ConfigValue>, CliError> {
    let mut values = Vec::new();
    for (key, default) in if effective { defaults()? } else { Vec::new() } {
        if merged.origin(&key).is_none() {
            values.push(ConfigValue { key, value: default, from: "default".to_owned() });
        }
    }
    for (key, value) in flat(&merged.table) {
        let from = merged.origin(&key).unwrap_or(DEFAULT_PATH).to_owned();
        values.push(ConfigValue { key, value: Some(value), from });
    }
    values.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(values)
}

/// Each key of the sample configuration with its default. Keys that it only shows in a comment have none.
fn defaults() -> Result<Vec<(String, Option<Value>)>, CliError> {
    let sample = ConfigFile { path: "the sample configuration".to_owned(), text: SAMPLE.to_owned() };
    let all = ConfigFile { text: uncommented(SAMPLE), ..sample.clone() };
    let set = flat(&merge(&[sample])?.table);
    let known = flat(&merge(&[all])?.table).into_iter().filter(|(key, _)| !key.starts_with("member "));
    let default = |key: &str| set.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
    Ok(known.map(|(key, _)| (key.clone(), default(&key))).collect())
}

/// With the keys that the sample shows in comments: `# name = "mon1"`.
fn uncommented(sample: &str) -> String {
    let line = |line: &str| {
        let key = line.strip_prefix("# ").filter(|rest| {
            rest.split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        });
        key.unwrap_or(line).to_owned() + "\n"
    };
    sample.lines().map(line).collect()
}

/// `policy.expire` and its value; of members `member 'n1' addresses`.
fn flat(table: &Table) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => {
                all.extend(inner.iter().map(|(key, value)| (format!("{name}.{key}"), value.clone())));
            }
            Value::Array(members) => {
                for member in members {
                    let whose = member.get("name").and_then(Value::as_str).unwrap_or_default();
                    let addresses = member.get("addresses").cloned().unwrap_or(Value::Array(Vec::new()));
                    all.push((format!("{name} '{whose}' addresses"), addresses));
                }
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_) => {
                all.push((name.clone(), value.clone()));
            }
        }
    }
    all
}

fn shown(values: &[ConfigValue], read: &[ConfigFile]) -> String {
    let mut rows = table(["KEY", "VALUE", "FROM"]);
    for one in values {
        let value = one.value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
        rows.add_row([one.key.clone(), value, one.from.clone()]);
    }
    let files = match read {
        [] => format!("no configuration file ({DEFAULT_PATH}): every value is the default"),
        read => format!("read: {}", read.iter().map(|file| &*file.path).collect::<Vec<_>>().join(", ")),
    };
    if rows.is_empty() { files } else { format!("{rows}\n\n{files}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_shown_with_its_default_or_its_file() {
        let text = "[policy]\nexpire = \"4years\"\nmin_remaining = \"1year\"\n[[member]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\n";
        let merged = merge(&[ConfigFile { path: "x.toml".to_owned(), text: text.to_owned() }]).unwrap();
        let all = values(&merged, true).unwrap();
        let of =
            |key: &str| all.iter().find(|one| one.key == key).unwrap_or_else(|| panic!("{key}: {all:#?}"));
        assert_eq!(
            (of("policy.expire").from.as_str(), of("policy.fail_over").from.as_str()),
            ("x.toml", "default")
        );
        assert_eq!(of("policy.fail_over").value, Some(Value::Boolean(true)));
        assert_eq!(of("policy.max_fenced_members").value, None, "a comment of the sample sets nothing");
        assert_eq!(of("member 'a' addresses").from, "x.toml");
        assert!(!all.iter().any(|one| one.key.contains("incus-n1")), "members of the sample are no defaults");
        let set: Vec<_> = values(&merged, false).unwrap().into_iter().map(|one| one.key).collect();
        assert_eq!(set, ["member 'a' addresses", "policy.expire", "policy.min_remaining"]);
    }
}
