//! The daemon's own body, without a cluster: what it writes to may hang, and it goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::print_stdout)]

mod incus;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// For what takes milliseconds, on a machine under load.
const LONG: Duration = Duration::from_secs(30);

/// A daemon that reaches no monitor, and so says that from time to time.
struct Body {
    dir: PathBuf,
    child: Option<Child>,
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Body {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("rbd-guardian-body-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("sock");
        // Nobody listens there.
        fs::write(dir.join("ceph.conf"), "[global]\nmon_host = v2:127.0.0.1:1\n").unwrap();
        fs::write(dir.join("keyring"), "[client.guardian]\nkey = AQBPiVZnAAAAABAAJ0vVPO/E8cN2YmYEYNgnkg==\n")
            .unwrap();
        let config =
            format!("[daemon]\nname = \"body\"\nsocket = {socket:?}\nlog = \"json\"\nlease = \"4s\"\n");
        fs::write(dir.join("config.toml"), config).unwrap();
        Self { dir, child: None }
    }

    fn words(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).to_str().unwrap().to_owned();
        let program = env!("CARGO_BIN_EXE_rbd-guardian").to_owned();
        let (config, conf, keyring) = (path("config.toml"), path("ceph.conf"), path("keyring"));
        let words = ["--config", &config, "--conf", &conf, "--keyring", &keyring, "run"];
        [program].into_iter().chain(words.map(str::to_owned)).collect()
    }

    /// Starts it with this as its stderr.
    fn start(&mut self, stderr: Stdio) {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_remove("JOURNAL_STREAM");
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    }

    /// More lines of its configuration.
    fn configure(&self, more: &str) {
        let mut config = File::options().append(true).open(self.dir.join("config.toml")).unwrap();
        config.write_all(more.as_bytes()).unwrap();
    }

    /// Starts it as a service whose journald is this folder with a socket; an empty one, and there is none.
    fn start_as_service(&mut self, journald: &Path, stderr: Stdio) {
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$0\" /run/systemd/journal \
                      && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(journald).args(self.words());
        command.env("JOURNAL_STREAM", "1:1");
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    }

    fn status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.dir.join("sock")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
        let last = BufReader::new(stream).lines().last()?.ok()?;
        Some(serde_json::from_str::<Value>(&last).ok()?["status"].clone())
    }

    #[track_caller]
    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        let mut last = None;
        while began.elapsed() < LONG {
            last = self.status();
            if last.as_ref().is_some_and(&is) {
                return;
            }
            thread::yield_now();
        }
        panic!("{what}: {last:?}");
    }

    /// SIGTERM; it ends by itself.
    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if began.elapsed() > LONG {
                let _ = child.kill();
                let _ = child.wait();
                panic!("it does not hear SIGTERM");
            }
            thread::yield_now();
        }
    }

    /// It answers and ends, whatever its log does.
    #[track_caller]
    fn lives(&mut self) {
        self.until("it tells that no monitor answers", |status| status["trouble"].is_string());
        self.until("it answers again", |status| status["stage"] == "connecting");
        assert!(self.ends().success());
    }
}

/// A stream that is full: writing to it waits for a reader.
fn full() -> (UnixStream, OwnedFd) {
    let (read, mut write) = UnixStream::pair().unwrap();
    write.set_nonblocking(true).unwrap();
    for size in [512, 1] {
        while write.write(&vec![b'\n'; size]).is_ok() {}
    }
    write.set_nonblocking(false).unwrap();
    (read, write.into())
}

#[test]
fn a_stderr_that_nobody_reads_keeps_nobody_waiting() {
    let mut body = Body::new("pipe");
    let (read, write) = full();
    body.start(write.into());
    body.lives();
    drop(read);
}

#[test]
fn what_was_said_meanwhile_is_written_when_it_is_read_again() {
    let mut body = Body::new("again");
    let (mut read, write) = full();
    body.start(write.into());
    body.until("it tells that no monitor answers", |status| status["trouble"].is_string());
    let reader = thread::spawn(move || {
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        text
    });
    assert!(body.ends().success());
    let text = reader.join().unwrap();
    for code in ["no-ceph", "ending"] {
        assert!(text.contains(&format!("\"code\":\"{code}\"")), "{text}");
    }
}

#[test]
fn a_journald_that_hangs_keeps_nobody_waiting() {
    let mut body = Body::new("journald");
    let journald = body.dir.join("journal");
    fs::create_dir(&journald).unwrap();
    let socket = UnixDatagram::bind(journald.join("socket")).unwrap();
    let fill = UnixDatagram::unbound().unwrap();
    fill.set_nonblocking(true).unwrap();
    while fill.send_to(b"full", journald.join("socket")).is_ok() {}
    body.start_as_service(&journald, Stdio::null());
    body.lives();
    drop(socket);
}

/// A guardian guards all the same, and is there for operators as soon as there is room.
#[test]
fn on_a_full_disk_it_runs_without_its_socket_and_makes_it_later() {
    let mut body = Body::new("full");
    let log = body.dir.join("log");
    let run = body.dir.join("run");
    fs::create_dir(&run).unwrap();
    let config = body.dir.join("config.toml");
    let text = fs::read_to_string(&config).unwrap().replace("/sock\"", "/run/sock\"");
    fs::write(&config, text).unwrap();
    let words = body.words();
    let mut command = Command::new("unshare");
    // Each file and socket takes an inode: there is one for the folder, and one more.
    let script = "mount -t tmpfs -o nr_inodes=2 none \"$0\" && touch \"$0/full\" && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(&run).args(&words);
    let stderr: Stdio = File::create(&log).unwrap().into();
    body.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    let said = |code: &str| {
        let began = Instant::now();
        loop {
            let text = fs::read_to_string(&log).unwrap();
            if text.contains(&format!("\"code\":\"{code}\"")) {
                return text;
            }
            assert!(began.elapsed() < LONG, "{code}: {text}");
            thread::yield_now();
        }
    };
    let text = said("no-socket");
    assert!(text.contains("No space left on device") && text.contains("through the ledger"), "{text}");
    let pid = body.child.as_ref().unwrap().id();
    fs::remove_file(format!("/proc/{pid}/root/{}/full", run.display())).unwrap();
    said("socket");
    assert!(Path::new(&format!("/proc/{pid}/root/{}/sock", run.display())).exists());
    assert!(body.ends().success());
}

#[test]
fn without_a_journald_it_runs_and_logs_to_stderr() {
    let mut body = Body::new("none");
    let journald = body.dir.join("journal");
    fs::create_dir(&journald).unwrap();
    let log = body.dir.join("log");
    body.start_as_service(&journald, File::create(&log).unwrap().into());
    body.lives();
    let text = fs::read_to_string(&log).unwrap();
    for code in ["no-journal", "no-ceph", "ending"] {
        assert!(text.contains(&format!("\"code\":\"{code}\"")), "{text}");
    }
}

/// What a verb's descriptors lead to.
fn pipe_without_a_reader() -> Stdio {
    let (read, write) = nix::unistd::pipe().unwrap();
    drop(read);
    write.into()
}

/// `2>&1 | head -1` ends the reader while a fence goes on: its exit code is the one it would have had, and nothing panics.
#[test]
fn a_verb_whose_output_nobody_reads_ends_as_it_would_have() {
    let body = Body::new("unread");
    let verb = |words: &[&str]| {
        let all = body.words();
        let mut command = Command::new(&all[0]);
        command.args(&all[1..all.len() - 1]).args(["--timeout", "1s"]).args(words).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let cases: [(&[&str], i32); 4] = [
        (&["status"], 5),
        (&["fence", "--address", "10.0.0.5"], 5),
        (&["fence", "--forse"], 2),
        (&["config", "show"], 0),
    ];
    for (words, code) in cases {
        let unread = [
            verb(words).status(),
            verb(words).stderr(pipe_without_a_reader()).status(),
            verb(words).stdout(pipe_without_a_reader()).status(),
            verb(words).stdout(pipe_without_a_reader()).stderr(pipe_without_a_reader()).status(),
        ];
        let codes = unread.map(|ended| ended.unwrap().code());
        // Closed, not only unread.
        let closed = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"].map(|how| {
            let asked = verb(words);
            let mut shell = Command::new("sh");
            shell
                .arg("-c")
                .arg(format!("exec \"$0\" \"$@\" {how}"))
                .arg(asked.get_program())
                .args(asked.get_args());
            shell.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
        });
        println!("{words:?}: {codes:?}, {closed:?}");
        assert!(
            codes.iter().chain(&closed).all(|ended| *ended == Some(code)),
            "{words:?}: {codes:?}, {closed:?}"
        );
    }
}

#[test]
fn a_daemon_with_closed_descriptors_lives() {
    let mut body = Body::new("closed");
    let words = body.words();
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"]).args(words).env_remove("JOURNAL_STREAM");
    body.child = Some(command.spawn().unwrap());
    body.lives();
}

#[test]
fn a_configuration_without_end_is_refused_at_once() {
    let body = Body::new("long");
    let began = Instant::now();
    let sparse = body.dir.join("sparse.toml");
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    for path in [Path::new("/dev/zero"), &sparse] {
        let asked = Command::new(&body.words()[0])
            .arg("--config")
            .arg(path)
            .args(["config", "show"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&asked.stderr).into_owned();
        println!("{said}");
        assert!(asked.status.code() == Some(2) && said.contains("longer than"), "{:?}: {said}", asked.status);
    }
    assert!(began.elapsed() < LONG, "{:?}", began.elapsed());
}
