//! `replay`: does this version decide as the one that made a recording?

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use rbd_guardian_core::recording::replay::{Difference, Replayed, replay};
use serde_json::json;

use super::error::CliError;
use super::{Common, Exit, Format};
use crate::cli::output;

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// A recording: JSON lines, compressed or not
    file: PathBuf,
}

pub(super) fn run(common: &Common, args: &ReplayArgs) -> Result<Exit, CliError> {
    let unread = |why: io::Error| CliError::NoRecording { file: args.file.clone(), why };
    let replayed = replay(File::open(&args.file).map_err(unread)?);
    output::print(&match common.format() {
        Format::Json => format!("{:#}\n", answer(&replayed)),
        Format::Table => format!("{}\n", text(&args.file, &replayed)),
    })?;
    Ok(match replayed {
        Ok(_) => Exit::Done,
        Err(Difference::Effect { .. } | Difference::State { .. }) => Exit::Failed,
        Err(Difference::Damaged { .. } | Difference::NoBeginning { .. } | Difference::Empty) => Exit::Usage,
    })
}

fn answer(replayed: &Result<Replayed, Difference>) -> serde_json::Value {
    match replayed {
        Ok(replayed) => json!({"replays": true, "recording": replayed}),
        Err(difference) => json!({"replays": false, "difference": difference.to_string()}),
    }
}

fn text(file: &Path, replayed: &Result<Replayed, Difference>) -> String {
    match replayed {
        Ok(Replayed { version, from, to, inputs, effects, .. }) => format!(
            "{} replays exactly: {inputs} inputs, {effects} effects, from {} to {}, recorded by version {version}",
            file.display(),
            from.wall,
            to.wall
        ),
        Err(difference) => format!("{}: {difference}", file.display()),
    }
}
