//! Commands to the machine's init, over a virtio port that is qemu's stdin and stdout.
//!
//! A line `TOKEN COMMAND` goes in; `TOKEN STATUS LENGTH`, a line feed and LENGTH bytes come out, in the
//! order in which commands end. The token tells a late answer of a command that was given up from the one
//! that is waited for.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::str;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

#[derive(Debug)]
pub(super) struct Channel {
    stream: UnixStream,
    token: u64,
    /// What has come in and is not a whole answer yet.
    unread: Vec<u8>,
}

/// What a command printed, on stdout and stderr, and its exit status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: i32,
    pub(super) output: String,
}

impl Channel {
    /// A channel, and the end of it that the machine gets.
    pub(super) fn pair() -> Result<(Channel, OwnedFd)> {
        let (stream, theirs) = UnixStream::pair()?;
        Ok((Channel { stream, token: 0, unread: Vec::new() }, theirs.into()))
    }

    /// Waits for what init says when it is ready: the kernel's release.
    pub(super) fn greeting(&mut self, deadline: Duration) -> Result<String> {
        Ok(self.answer(deadline)?.context("no sign of life within the deadline")?.output)
    }

    /// Runs a line of shell; `None` when it has not ended within the deadline. It goes on in the machine
    /// then.
    pub(super) fn run(&mut self, command: &str, deadline: Duration) -> Result<Option<Answer>> {
        ensure!(!command.contains('\n'), "a command is one line: {command:?}");
        self.token += 1;
        writeln!(self.stream, "{} {command}", self.token).context("the machine is gone")?;
        self.answer(deadline)
    }

    fn answer(&mut self, deadline: Duration) -> Result<Option<Answer>> {
        let until = Instant::now() + deadline;
        loop {
            while let Some((token, answer)) = self.take()? {
                if token == self.token {
                    return Ok(Some(answer));
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the machine has ended"),
                Ok(length) => self.unread.extend_from_slice(&chunk[..length]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("the machine's channel"),
            }
        }
    }

    /// The first whole answer of what has come in.
    fn take(&mut self) -> Result<Option<(u64, Answer)>> {
        let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let head = str::from_utf8(&self.unread[..end])?;
        let fields: Vec<&str> = head.split(' ').collect();
        let [token, status, length] = fields[..] else { bail!("not an answer: {head:?}") };
        let bad = || format!("not an answer: {head:?}");
        let token = token.parse().with_context(bad)?;
        let status = status.parse().with_context(bad)?;
        let body = end + 1..end + 1 + length.parse::<usize>().with_context(bad)?;
        let Some(output) = self.unread.get(body.clone()) else {
            return Ok(None);
        };
        let output = String::from_utf8_lossy(output).trim_end().to_owned();
        self.unread.drain(..body.end);
        Ok(Some((token, Answer { status, output })))
    }
}
