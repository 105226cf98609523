//! Commands that the documentation shows exist: each is read as the program reads it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::Cli;

/// Lines of code blocks that are commands of this program.
fn commands(page: &str) -> Vec<String> {
    let mut in_block = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block && line.trim_start().starts_with("rbd-guardian ") {
            found.push(line.trim().to_owned());
        }
    }
    found
}

/// As a shell takes a line apart: what is quoted is one word.
fn words(command: &str) -> Vec<String> {
    let parts = command.split('"').enumerate();
    let words = parts.flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    words.collect()
}

fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    found
}

#[test]
fn every_command_of_a_runbook_is_one_that_the_program_understands() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let (mut seen, mut wrong) = (0, Vec::new());
    for page in pages(&docs.join("runbooks")).into_iter().chain(pages(&docs)) {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            seen += 1;
            // What follows a pipe or a comment is not ours.
            let own = command.split(['|', '#']).next().unwrap_or_default();
            if let Err(error) = Cli::try_parse_from(words(own)) {
                wrong.push(format!("{}: {command}: {error}", page.display()));
            }
        }
    }
    println!("{seen} commands");
    assert!(seen > 40 && wrong.is_empty(), "{wrong:#?}");
    assert!(Cli::try_parse_from("rbd-guardian fence MEMBER --over-brakes".split(' ')).is_err());
}
