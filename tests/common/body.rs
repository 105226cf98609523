//! The body of a daemon: what it writes to, what it may have, and how big it is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde::Serialize;

/// Starts a daemon as a service: `/run` has nothing but journald's socket in it, recordings go to a disk of their own.
const SERVICE: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$0\" /run/systemd/journal \
    && mount -t tmpfs -o size=256k none \"$1\" && log=$2 && shift 2 && exec \"$@\" 2>\"$log\"";

/// What is around one daemon, and reads what it says.
pub struct Body {
    dir: PathBuf,
    journald: bool,
    hangs: Arc<AtomicBool>,
    ends: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

/// How big a daemon is.
#[derive(Debug, Serialize)]
pub struct Size {
    pub files: usize,
    pub threads: usize,
    /// To Ceph: librados has one thread of this name for each.
    pub connections: usize,
    pub resident_mib: usize,
    /// Of these, what it allocated: pages of the program's files are not among them.
    pub own_mib: usize,
    pub peak_mib: usize,
}

/// Where its log comes out.
enum Source {
    Journal(UnixDatagram),
    Pipe(File),
}

impl Source {
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self {
            Self::Journal(socket) => socket.recv(buffer).ok(),
            Self::Pipe(pipe) => pipe.read(buffer).ok(),
        }
    }
}

impl Body {
    /// In a folder of its own in `dir`. Its log goes to a journald that is this test, or to a pipe.
    pub fn new(dir: &Path, name: &str, journald: bool) -> Self {
        let dir = dir.join(format!("body-{name}"));
        fs::create_dir(&dir).unwrap();
        for folder in ["journal", "recordings"] {
            fs::create_dir(dir.join(folder)).unwrap();
        }
        let pipe = dir.join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        // Open for both, it never ends while a daemon starts anew.
        let pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(pipe)
            .unwrap();
        let socket = UnixDatagram::bind(dir.join("journal/socket")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let sources = if journald {
            vec![Source::Journal(socket), Source::Pipe(pipe)]
        } else {
            vec![Source::Pipe(pipe)]
        };
        let [hangs, ends] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let reader = {
            let (hangs, ends) = (Arc::clone(&hangs), Arc::clone(&ends));
            let log = File::create(dir.join("log")).unwrap();
            thread::spawn(move || read(sources, log, &hangs, &ends))
        };
        Self { dir, journald, hangs, ends, reader: Some(reader) }
    }

    /// What starts a daemon in it, before its own words.
    pub fn words(&self) -> Vec<OsString> {
        let stream = self.journald.then(|| OsString::from("JOURNAL_STREAM=1:1"));
        let words = ["unshare", "--mount", "sh", "-c", SERVICE].map(OsString::from);
        let paths = ["journal", "recordings", "pipe"].map(|name| self.dir.join(name).into_os_string());
        stream.into_iter().chain(words).chain(paths).collect()
    }

    /// The lines of its configuration.
    pub fn config(&self) -> String {
        format!("recordings = {:?}\n", self.dir.join("recordings"))
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap()).into_owned()
    }

    /// Nobody reads its log any more, and there is no room for a line.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
        if self.journald {
            let fill = UnixDatagram::unbound().unwrap();
            fill.set_nonblocking(true).unwrap();
            while fill.send_to(b"full\n", self.dir.join("journal/socket")).is_ok() {}
        } else {
            let pipe = self.dir.join("pipe");
            let mut pipe =
                OpenOptions::new().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(pipe).unwrap();
            for size in [512, 1] {
                while pipe.write(&vec![b'\n'; size]).is_ok() {}
            }
        }
    }

    pub fn go_on(&self) {
        self.hangs.store(false, Ordering::SeqCst);
    }

    /// The disk of its recordings, as the daemon sees it.
    fn disk(&self, pid: Pid) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root{}", self.dir.join("recordings").display()))
    }

    pub fn fill_disk(&self, pid: Pid) {
        let mut file = File::create(self.disk(pid).join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    pub fn empty_disk(&self, pid: Pid) {
        fs::remove_file(self.disk(pid).join("filler")).unwrap();
    }

    /// Nothing is left of a recording that could not be finished.
    pub fn has_no_parts(&self, pid: Pid) -> bool {
        let mut left = fs::read_dir(self.disk(pid)).unwrap();
        left.all(|entry| entry.unwrap().path().extension().is_none_or(|ending| ending != "part"))
    }

    /// It may open no more than so many more files; `None`: as many as ever.
    pub fn limit_files(&self, pid: Pid, more: Option<usize>) {
        let soft = more.map(|more| Self::measure(pid).unwrap().files + more);
        let soft = soft.map_or_else(|| "--nofile=4096:".to_owned(), |soft| format!("--nofile={soft}:"));
        let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &soft]).output().unwrap();
        assert!(set.status.success(), "{set:?}");
    }

    /// How big is this process?
    ///
    /// # Errors
    /// It ended.
    pub fn measure(pid: Pid) -> anyhow::Result<Size> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
            line.split_whitespace().find_map(|word| word.parse::<usize>().ok()).unwrap_or_default()
        };
        Ok(Size {
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number("Threads:"),
            connections: named(pid, "ms_dispatch")?,
            resident_mib: number("VmRSS:") / 1024,
            own_mib: number("RssAnon:") / 1024,
            peak_mib: number("VmHWM:") / 1024,
        })
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// How many threads have this name?
fn named(pid: Pid, name: &str) -> io::Result<usize> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    Ok(names.filter(|known| known.trim() == name).count())
}

/// Reads until it ends, and reads nothing while it hangs.
fn read(mut sources: Vec<Source>, mut log: File, hangs: &AtomicBool, ends: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while !ends.load(Ordering::SeqCst) {
        let mut idle = true;
        if !hangs.load(Ordering::SeqCst) {
            for source in &mut sources {
                if let Some(length) = source.read(&mut buffer) {
                    let text = buffer.get(..length).unwrap_or_default();
                    let _ = log.write_all(text);
                    idle = false;
                }
            }
        }
        if idle {
            // Not a wait for anything: how often it looks.
            thread::sleep(Duration::from_millis(10));
        }
    }
}
