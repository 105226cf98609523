//! Answers as text.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};
use rbd_guardian_core::model::target::Coverage;

use crate::control::protocol::ProvedPool;
use crate::printable::printable;
pub(super) use crate::shown::parts::{CoverageAnswer, EntryAnswer};

/// A table for people. What is in a cell is of others' choosing: it is escaped, line breaks too.
pub(super) struct Rows(Table);

/// What is in a cell: each text is one line of it.
pub(super) struct Cell(Vec<String>);

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self(vec![text.as_ref().to_owned()])
    }
}

impl Cell {
    pub(super) fn lines(lines: Vec<String>) -> Self {
        Self(lines)
    }
}

impl Rows {
    pub(super) fn add_row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) {
        let shown = cells.into_iter().map(|cell| {
            let Cell(lines) = cell.into();
            lines.iter().map(|line| printable(line).into_owned()).collect::<Vec<_>>().join("\n")
        });
        self.0.add_row(shown);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

pub(super) fn table<const N: usize>(header: [&str; N]) -> Rows {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    Rows(table)
}

pub(super) fn entries_table(entries: &[EntryAnswer]) -> Rows {
    let mut rows = table(["ENTRY", "KIND", "UNTIL"]);
    for entry in entries {
        let until = entry.until.map_or_else(|| "not there".to_owned(), |until| until.to_string());
        rows.add_row([entry.entry.to_string(), entry.kind.to_owned(), until]);
    }
    rows
}

pub(super) fn coverage_text(coverage: &CoverageAnswer) -> String {
    let verdict = match coverage.verdict {
        Coverage::WholeHost => "whole host: every client of it, also future ones",
        Coverage::KnownClients => "known clients only: one that appears later is NOT refused",
        Coverage::Incomplete => "INCOMPLETE: not every source answered",
    };
    let mut text = format!("coverage: {verdict} ({} known)\n", coverage.known_clients);
    for note in &coverage.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text
}

pub(super) fn barrier_text(pools: &[ProvedPool]) -> String {
    /// More than this many PGs are only counted: the JSON lists all.
    const SHOWN: usize = 12;
    let mut rows = table(["POOL", "PGS", "PROVED", "PENDING"]);
    for pool in pools {
        let mut pending = pool.pending.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
        if pool.pending.len() > SHOWN {
            pending.push_str(&format!(" … {} in all", pool.pending.len()));
        }
        if let Some(trouble) = &pool.trouble {
            pending.push_str(&format!(" ({trouble})"));
        }
        rows.add_row([pool.pool.clone(), pool.pgs.to_string(), pool.proved.to_string(), pending]);
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_repaints_no_terminal_and_makes_no_row_of_its_own() {
        let mut rows = table(["IMAGE", "WATCHERS"]);
        rows.add_row([
            Cell::from("pool/x\u{1b}[2J\u{1b}[1;1Hpool/fine  none\nforged  none\u{9b}31m\u{202e}"),
            Cell::lines(vec!["10.0.0.5:0/1".to_owned(), "10.0.0.6:0/2\r".to_owned()]),
        ]);
        let text = rows.to_string();
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("forged")), "{text}");
        assert!(
            text.contains(r"x\u{1b}[2J") && text.contains(r"\u{202e}") && text.contains("10.0.0.6:0/2\\u{d}"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 3, "{text}");
    }
}
