//! Alert rules: Prometheus understands them, each fires and resolves in its test, each has a page, and each metric exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn values(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim_start).map(|line| line.trim_start_matches("- "));
    lines.filter_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned()).collect()
}

fn promtool(words: &[&str]) {
    let output = Command::new("promtool").args(words).current_dir(root().join("deploy/prometheus")).output();
    let output =
        output.unwrap_or_else(|error| panic!("promtool (Debian's prometheus, tests/lab/setup): {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn prometheus_understands_the_rules_and_each_fires_and_resolves() {
    promtool(&["check", "rules", "rbd-guardian.rules.yml"]);
    promtool(&["test", "rules", "rbd-guardian.test.yml"]);
}

#[test]
fn each_rule_has_a_test_a_page_and_metrics_that_exist() {
    let rules = read("deploy/prometheus/rbd-guardian.rules.yml");
    let tests = read("deploy/prometheus/rbd-guardian.test.yml");
    let metrics = read("docs/metrics.md");
    let names = values(&rules, "alert:");
    let tested: BTreeSet<String> = values(&tests, "alertname:").into_iter().collect();
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(tested, names.iter().cloned().collect());
    let index = read("docs/runbooks/README.md");
    for name in &names {
        let page = read(&format!("docs/runbooks/{name}.md"));
        for section in ["## Meaning", "## Impact", "## Diagnosis", "## What to do"] {
            assert!(page.contains(section), "{name}: {section}");
        }
        assert!(index.contains(&format!("({name}.md)")), "{name} is not in the list of runbooks");
    }
    let pages = fs::read_dir(root().join("docs/runbooks")).unwrap().count();
    assert_eq!(pages, names.len() + 1, "a page without a rule");
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for expr in values(&rules, "expr:") {
        for name in expr.split(|c| !word(c)).filter(|name| name.starts_with("rbd_guardian_")) {
            assert!(metrics.contains(&format!("| `{name}` |")), "{expr}: docs/metrics.md has no {name}");
        }
    }
}
