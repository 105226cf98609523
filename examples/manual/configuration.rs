//! rbd-guardian.toml(5), from the sample configuration: its comments describe the keys below them.

use roff::{Roff, bold, italic, roman};

/// The page for this sample.
pub(crate) fn page(sample: &str) -> String {
    let mut page = Roff::new();
    page.control("TH", ["rbd-guardian.toml", "5", "", "rbd-guardian", "File formats"]);
    page.control("SH", ["NAME"]).text([roman("rbd-guardian.toml - the configuration of rbd-guardian")]);
    page.control("SH", ["SYNOPSIS"]).text([
        italic("/etc/rbd-guardian/rbd-guardian.toml"),
        roman(", "),
        italic("/etc/rbd-guardian/conf.d/*.toml"),
    ]);
    page.control("SH", ["DESCRIPTION"]).text([roman(
        "The files are TOML. Those in conf.d are read after the main one, in the order of their names, and override it key by key; \
         their [[member]] tables come together. `rbd-guardian config show --effective` prints every value and the file it is in. \
         `systemctl reload rbd-guardian` lets the daemon read them again. An unknown key is an error.",
    )]);
    let mut comment = Vec::new();
    for line in sample.lines().skip_while(|line| !line.is_empty()) {
        if let Some(table) = line.strip_prefix('[') {
            let name = format!("[{table}");
            page.control("SH", [name.as_str()]);
            describe(&mut page, &mut comment);
        } else if let Some((key, value)) = key(line) {
            page.control("TP", []).text([bold(key), roman(format!(" = {value}"))]);
            describe(&mut page, &mut comment);
        } else if let Some(text) = line.strip_prefix("# ") {
            comment.push(text.to_owned());
        }
    }
    page.control("SH", ["SEE ALSO"]).text([
        bold("rbd-guardian"),
        roman("(1), "),
        bold("rbd-guardian.service"),
        roman("(8)"),
    ]);
    page.to_roff()
}

fn describe(page: &mut Roff, comment: &mut Vec<String>) {
    if !comment.is_empty() {
        page.text([roman(std::mem::take(comment).join("\n"))]);
    }
}

/// A key and its value; `# name = "mon1"` is a key that is not set by default.
fn key(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some((key, value))
}
