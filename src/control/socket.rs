//! The control socket: verbs on the same host reach the daemon through it.

use std::io::{self, BufRead as _, BufReader as StdBufReader, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use crate::control::protocol::{ControlLine, Question};
use crate::deadline::{Deadline, within};

/// Questions that wait for the loop, and connections at once: more is nobody typing.
const QUEUE: usize = 64;
/// How long somebody who connected may take to say what for, or to take a line of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request names a member, or some addresses.
const LONGEST: u64 = 256 * 1024;
/// Lines of an answer that wait for a slow reader.
const LINES: usize = 64;

/// A question and where its answer goes.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) question: Question,
    pub(crate) answers: Sender<ControlLine>,
}

/// The socket, while it is open.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    pub(crate) asks: Receiver<Ask>,
    _serving: JoinSet<()>,
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Another daemon answers on it.
    #[error("another guardian runs on this host already: it answers on {}", .0.display())]
    Taken(PathBuf),
}

impl ControlSocket {
    /// Opens it, for its owner alone. One that nobody answers on any more is replaced. Where it cannot be made, on a full
    /// disk say, it is tried again: a guardian guards without it, and operators reach it through the ledger. `tell` hears
    /// how that went.
    ///
    /// # Errors
    /// Another guardian has it.
    pub(crate) fn open(path: &Path, tell: fn(bool, &str)) -> Result<Self, ControlSocketError> {
        if StdUnixStream::connect(path).is_ok() {
            return Err(ControlSocketError::Taken(path.to_owned()));
        }
        let (to, asks) = channel(QUEUE);
        let mut serving = JoinSet::new();
        let first = listen(path);
        let path = path.to_owned();
        let place = path.clone();
        serving.spawn(async move {
            let listener = match first {
                Ok(listener) => listener,
                Err(error) => made_later(&place, &error, tell).await,
            };
            serve(listener, to).await;
        });
        Ok(Self { path, asks, _serving: serving })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn made_later(path: &Path, error: &io::Error, tell: fn(bool, &str)) -> UnixListener {
    let shown = path.display();
    tell(
        false,
        &format!(
            "cannot make the control socket {shown}: {error}; it is tried again each {} s, and verbs on this host go \
             through the ledger meanwhile",
            PATIENCE.as_secs()
        ),
    );
    loop {
        crate::deadline::rest(PATIENCE).await;
        // Another guardian may have been started meanwhile: its socket is left alone.
        if StdUnixStream::connect(path).is_err()
            && let Ok(listener) = listen(path)
        {
            tell(true, &format!("the control socket {shown} is there now"));
            return listener;
        }
    }
}

/// Made under another name and renamed, so that nobody can connect before only its owner can.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

async fn serve(listener: UnixListener, asks: Sender<Ask>) {
    let mut talks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if talks.len() < QUEUE => {
                // Out of file descriptors: whoever ends frees one, and the next attempt waits for that.
                if let Ok((stream, _)) = accepted {
                    talks.spawn(talk(stream, asks.clone()));
                } else if talks.join_next().await.is_none() {
                    crate::deadline::rest(PATIENCE).await;
                }
            }
            Some(_) = talks.join_next() => {}
        }
    }
}

/// One question and its answer.
async fn talk(stream: UnixStream, asks: Sender<Ask>) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(LONGEST));
    let mut text = String::new();
    match within(PATIENCE, reader.read_line(&mut text)).await {
        Ok(Ok(len)) if len > 0 => {}
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    let (to, mut lines) = channel(LINES);
    let refused = match Question::parse(&text) {
        Err(why) => Some(why),
        Ok(question) => asks
            .try_send(Ask { question, answers: to })
            .err()
            .map(|_| "too many requests at once: ask again".to_owned()),
    };
    if let Some(why) = refused {
        let _ = say(&mut writer, &ControlLine::Failed(why)).await;
        return;
    }
    // A request goes on when whoever asked has gone.
    while let Some(line) = lines.recv().await {
        if say(&mut writer, &line).await.is_err() || line.is_last() {
            return;
        }
    }
    // The loop let go of it: the daemon ends.
    let _ = say(&mut writer, &ControlLine::Unavailable("the daemon stopped meanwhile".to_owned())).await;
}

async fn say(writer: &mut tokio::net::unix::OwnedWriteHalf, line: &ControlLine) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    within(PATIENCE, writer.write_all(&text)).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))?
}

/// Why a daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The time is over.
    #[error(transparent)]
    Late(#[from] crate::deadline::DeadlineError),
    /// The connection broke: what was asked for may be done all the same.
    #[error("the daemon at {} closed the connection before its answer was complete ({error}): `rbd-guardian status` shows how far it got", .path.display())]
    Broken { path: PathBuf, error: io::Error },
}

/// Asks the daemon of this host; `None` if none answers there. `progress` hears what happens meanwhile.
///
/// # Errors
/// See [`AskError`].
pub fn ask(
    path: &Path,
    question: &Question,
    deadline: &Deadline,
    progress: &mut dyn FnMut(&str),
) -> Result<Option<ControlLine>, AskError> {
    let broken = |error: io::Error| AskError::Broken { path: path.to_owned(), error };
    // No daemon listens, or this user may not ask it: the command does what it can without it.
    let Ok(mut stream) = StdUnixStream::connect(path) else { return Ok(None) };
    let mut text = question.line().map_err(|error| broken(error.into()))?;
    text.push('\n');
    stream.set_write_timeout(Some(PATIENCE)).map_err(broken)?;
    stream.write_all(text.as_bytes()).map_err(broken)?;
    let mut reader = StdBufReader::new(stream);
    let mut text = Vec::new();
    loop {
        let left = deadline.left()?.min(LOOK);
        reader.get_ref().set_read_timeout(Some(left)).map_err(broken)?;
        match reader.read_until(b'\n', &mut text) {
            Ok(_) if text.last() != Some(&b'\n') => return Err(broken(ErrorKind::UnexpectedEof.into())),
            Ok(_) => {
                let line = serde_json::from_slice(&text).map_err(|error| broken(error.into()))?;
                let ControlLine::Progress(what) = line else { return Ok(Some(line)) };
                progress(&what);
            }
            // What came so far is kept in `text`.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(broken(error)),
        }
        text.clear();
    }
}

/// How often a wait for the answer looks at its deadline.
const LOOK: Duration = Duration::from_millis(100);
