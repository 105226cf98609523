//! Writes the manual pages and the shell completions into a folder: `manual FOLDER`. Section 1 comes from the command line's
//! own help, section 5 from the sample configuration, so that neither can say anything else.
#![allow(clippy::print_stderr)]

mod configuration;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap_complete::Shell;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: manual FOLDER");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let command = rbd_guardian::cli::command;
    clap_mangen::generate_to(command(), folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command(), "rbd-guardian", folder)?;
    }
    fs::write(folder.join("rbd-guardian.toml.5"), configuration::page(rbd_guardian::config::SAMPLE))?;
    Ok(())
}
