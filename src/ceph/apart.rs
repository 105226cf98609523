//! Asks monitors for their sessions in a process of its own. librados loses the message and the connection of each command to a single
//! monitor, some 16 KiB, and gives them back to nobody before its process ends (docs/facts/ceph.md#sessions): a daemon that asked itself
//! would grow by that each time.

use std::fmt::Display;
use std::io::{self, BufRead as _, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use serde::{Deserialize, Serialize};

use super::command::CephReadError;
use super::sessions::{self, Answer};
use super::{lane, look};
use crate::ceph::rados::cluster::{Cluster, Options};

/// The first word of such a process's command line. It is no verb: nobody but the guardian itself starts one.
pub const WORD: &str = "ask-monitors";

/// A line of its answer.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Which of the monitors it was asked about, from 0.
    index: usize,
    answer: Answer,
}

/// Such a process. It ends with this.
#[derive(Debug)]
pub(super) struct Apart(Child);

impl Drop for Apart {
    fn drop(&mut self) {
        // It may have ended by itself; else it waits for monitors, and nobody for it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Apart {
    /// Starts one, and returns what it says of each monitor.
    ///
    /// # Errors
    /// There is no process or descriptor left for it.
    pub(super) fn start(
        program: &Path,
        options: &Options,
        mons: &[String],
    ) -> io::Result<(Receiver<(usize, Answer)>, Self)> {
        #[allow(clippy::disallowed_methods)] // It is the guardian itself.
        let mut command = Command::new(program);
        command.arg0("rbd-guardian").arg(WORD);
        let paths = [("--conf", &options.conf), ("--keyring", &options.keyring)];
        for (name, path) in paths.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?))) {
            command.arg(name).arg(path);
        }
        let words = [("--id", &options.id), ("--cluster", &options.cluster)];
        for (name, word) in words.into_iter().filter_map(|(name, word)| Some((name, word.as_ref()?))) {
            command.arg(name).arg(word);
        }
        let seconds = options.timeout.as_secs().max(1);
        command.arg("--timeout").arg(format!("{seconds}s")).arg("--").args(mons);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (to, answers) = channel();
        if let Some(output) = child.stdout.take() {
            lane::start(move || pass(output, &to));
        }
        Ok((answers, Self(child)))
    }
}

/// Passes on what it says, until it ends.
fn pass(output: ChildStdout, to: &Sender<(usize, Answer)>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let Ok(Line { index, answer }) = serde_json::from_str(&line) else { return };
        if to.send((index, answer)).is_err() {
            return;
        }
    }
}

/// What such a process does: it asks, and writes each answer as it comes.
///
/// # Errors
/// They cannot be written.
pub fn serve(options: &Options, mons: &[String], out: &mut impl Write) -> io::Result<()> {
    let mut tell = |index: usize, answer: Answer| {
        let line = serde_json::to_string(&Line { index, answer })?;
        writeln!(out, "{line}")
    };
    let connected = Cluster::connect(options).map_err(|error| unasked(&error));
    // This connection is no client that the guardian knows as its own.
    let connected = connected.and_then(|cluster| look::own(&cluster).map(|own| (cluster, own)));
    let (cluster, own) = match connected {
        Ok(connected) => connected,
        Err(error) => return (0..mons.len()).try_for_each(|index| tell(index, Err(error.clone()))),
    };
    for (index, mut answer) in sessions::ask_here(&cluster, mons) {
        if let Ok(sessions) = &mut answer {
            sessions.known.retain(|session| own.iter().all(|own| own.client() != Some(session.client)));
        }
        tell(index, answer)?;
    }
    Ok(())
}

/// Why monitors could not be asked.
fn unasked(error: &dyn Display) -> CephReadError {
    CephReadError::Failed { command: sessions::COMMAND.to_owned(), status: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceph::sessions::{Session, Sessions};
    use rbd_guardian_core::model::addr::EntityAddr;

    #[test]
    fn what_one_process_says_another_understands() {
        let client = "10.0.0.5:0/7".parse::<EntityAddr>().unwrap().client().unwrap();
        let session = Session { client, entity: "client.admin".to_owned() };
        let answers = [
            Ok(Sessions { known: vec![session], unknown: vec!["a\nb".to_owned()] }),
            Err(CephReadError::Denied { command: sessions::COMMAND.to_owned() }),
        ];
        for (index, answer) in answers.into_iter().enumerate() {
            let line = serde_json::to_string(&Line { index, answer: answer.clone() }).unwrap();
            assert!(!line.contains('\n'), "{line}");
            let read: Line = serde_json::from_str(&line).unwrap();
            assert_eq!((read.index, read.answer), (index, answer));
        }
    }
}
