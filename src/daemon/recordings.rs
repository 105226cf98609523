//! Recordings of the core as files, for whoever wants to know why it decided as it did.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rbd_guardian_core::guardian::report::Level;
use rbd_guardian_core::recording::recorder::Recorder;

use super::log;
use crate::clock;

/// How many recordings are kept, the newest: at most 64 MiB.
const KEPT: usize = 16;
const BEGINNING: &str = "recording-";
const ENDING: &str = ".jsonl.gz";
const UNFINISHED: &str = ".jsonl.part";

/// Where they go.
#[derive(Debug, Clone)]
pub(super) struct Recordings {
    folder: PathBuf,
}

impl Recordings {
    /// In a folder that is there. What an earlier process did not finish there goes.
    pub(super) fn new(folder: PathBuf) -> Self {
        let entries = fs::read_dir(&folder).into_iter().flatten();
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if is_ours(&path, UNFINISHED) {
                let _ = fs::remove_file(path);
            }
        }
        Self { folder }
    }

    /// Says so if it is not there: what led to an incident would be lost.
    pub(super) fn look(&self) {
        if let Err(error) = fs::read_dir(&self.folder) {
            let folder = self.folder.display();
            let text = format!(
                "recordings cannot be saved in {folder}: {error} (daemon.recordings; mkdir -m 0700 {folder})"
            );
            log::line(Level::Warn, "recording", None, &text);
        }
    }

    /// Saves one, on a thread of its own: the loop waits for no disk.
    pub(super) fn begin_to_save(&self, recording: Vec<u8>, why: &'static str) {
        let this = self.clone();
        let begun = thread::Builder::new().spawn(move || this.save(&recording, why));
        if let Err(error) = begun {
            log::line(Level::Warn, "recording", None, &format!("not saved: {error}"));
        }
    }

    /// Saves one, and says where. One that cannot be saved changes nothing but the log.
    pub(super) fn save(&self, recording: &[u8], why: &str) {
        match self.write(recording, why, clock::wall()) {
            Ok(path) => {
                let text = format!(
                    "{why}: the recording of what led to it is {} (`rbd-guardian replay`)",
                    path.display()
                );
                log::line(Level::Info, "recording", None, &text);
            }
            Err(error) => {
                let text =
                    format!("{why}: not saved in {}: {error} (daemon.recordings)", self.folder.display());
                log::line(Level::Warn, "recording", None, &text);
            }
        }
    }

    fn write(&self, recording: &[u8], why: &str, now: Timestamp) -> io::Result<PathBuf> {
        let path =
            self.folder.join(format!("{BEGINNING}{}-{why}{ENDING}", now.strftime("%Y%m%dT%H%M%S%.3fZ")));
        // An unfinished file must not be taken for a whole one.
        let part = path.with_extension("part");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        if let Err(error) = file.write_all(recording).and_then(|()| fs::rename(&part, &path)) {
            // On a full disk what was written of it keeps the next one from being written as well.
            let _ = fs::remove_file(&part);
            return Err(error);
        }
        forget(&self.folder)?;
        Ok(path)
    }
}

/// A core on its way, with the folder for what led to what became of it.
#[derive(Debug)]
pub(super) struct RecordedGuardian {
    core: Recorder,
    recordings: Option<Recordings>,
    /// When it was last saved what led to something of this kind, by the boot clock.
    saved: BTreeMap<(&'static str, Option<String>), Duration>,
}

impl RecordedGuardian {
    pub(super) fn new(core: Recorder, recordings: Option<Recordings>) -> Self {
        Self { core, recordings, saved: BTreeMap::new() }
    }

    /// SIGUSR1 asked for it.
    pub(super) fn save(&mut self) {
        self.begin_to_save("asked");
    }

    /// The core told this of a member: what led to a refusal or a breach is saved. A reason whose words change by the
    /// second is still one.
    pub(super) fn told(&mut self, code: &'static str, member: Option<String>) {
        const AGAIN: Duration = Duration::from_secs(600);
        if !["refused", "breached"].contains(&code) {
            return;
        }
        let now = clock::boot();
        let before = self.saved.get(&(code, member.clone()));
        if before.is_none_or(|before| now.saturating_sub(*before) >= AGAIN) {
            self.saved.insert((code, member), now);
            self.begin_to_save(code);
        }
    }

    fn begin_to_save(&mut self, why: &'static str) {
        if let Some(recordings) = &self.recordings {
            recordings.begin_to_save(self.core.recording(), why);
        }
    }
}

impl Deref for RecordedGuardian {
    type Target = Recorder;

    fn deref(&self) -> &Recorder {
        &self.core
    }
}

impl DerefMut for RecordedGuardian {
    fn deref_mut(&mut self) -> &mut Recorder {
        &mut self.core
    }
}

/// A core that panics takes the process with it; what it panicked on is kept.
impl Drop for RecordedGuardian {
    fn drop(&mut self) {
        if let Some(recordings) = self.recordings.as_ref().filter(|_| thread::panicking()) {
            recordings.save(&self.core.recording(), "crash");
        }
    }
}

fn is_ours(path: &Path, ending: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(BEGINNING) && name.ends_with(ending))
}

/// Removes what is too much. The names are in the order of time.
fn forget(folder: &Path) -> io::Result<()> {
    let all = fs::read_dir(folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = all.filter(|path| is_ours(path, ENDING)).collect();
    files.sort();
    let much = files.len().saturating_sub(KEPT);
    files.into_iter().take(much).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use rbd_guardian_core::guardian::io::Input;
    use rbd_guardian_core::guardian::io::Now;
    use rbd_guardian_core::guardian::settings::Settings;
    use rbd_guardian_core::model::member::Members;
    use rbd_guardian_core::model::policy::Policy;
    use rbd_guardian_core::model::record::Records;
    use rbd_guardian_core::recording::recorder::LIMIT;
    use rbd_guardian_core::recording::replay::replay;

    #[test]
    fn the_newest_are_kept_and_only_their_owner_reads_them() {
        let folder = std::env::temp_dir().join(format!("recordings-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("other"), "").unwrap();
        let recordings = Recordings::new(folder.clone());
        let at = |second| Timestamp::from_second(second).unwrap();
        let written: Vec<PathBuf> =
            (1..=20).map(|s| recordings.write(b"x", "asked", at(s)).unwrap()).collect();
        let mut kept: Vec<PathBuf> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        kept.sort();
        assert_eq!(kept, [&[folder.join("other")], &written[4..]].concat());
        assert_eq!(written[0].file_name().unwrap(), "recording-19700101T000001.000Z-asked.jsonl.gz");
        assert_eq!(fs::metadata(&written[19]).unwrap().permissions().mode() & 0o777, 0o600);
        fs::remove_dir_all(&folder).unwrap();
        assert!(recordings.write(b"x", "asked", at(1)).is_err());
        // Nothing but a line in the log.
        recordings.save(b"x", "asked");
    }

    #[test]
    fn what_cannot_be_finished_leaves_nothing() {
        let folder = std::env::temp_dir().join(format!("unfinished-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let at = Timestamp::from_second(1).unwrap();
        // Where the whole file should be, there is something else.
        let taken = folder.join("recording-19700101T000001.000Z-asked.jsonl.gz");
        fs::create_dir(&taken).unwrap();
        assert!(Recordings::new(folder.clone()).write(b"x", "asked", at).is_err());
        let left: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [taken]);
        // A process that was killed.
        let part = folder.join("recording-19700101T000001.000Z-asked.jsonl.part");
        fs::write(&part, "").unwrap();
        Recordings::new(folder.clone());
        assert!(!part.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_core_panicked_on_is_kept() {
        let folder = std::env::temp_dir().join(format!("crash-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let now = Now { boot: Duration::from_secs(9), wall: Timestamp::UNIX_EPOCH };
        let settings = Settings::new("g1", "boot", Policy::default(), Members::default());
        let core = Recorder::new(settings, Records::default(), now, LIMIT);
        let mut flight = RecordedGuardian::new(core, Some(Recordings::new(folder.clone())));
        flight.handle(now, Input::Tick);
        let ended = thread::Builder::new().spawn(move || {
            let _flight = flight;
            panic!("on purpose");
        });
        assert!(ended.unwrap().join().is_err());
        let files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() == 1 && files[0].to_str().unwrap().ends_with("-crash.jsonl.gz"), "{files:?}");
        let replayed = replay(fs::File::open(&files[0]).unwrap()).unwrap();
        assert_eq!(replayed.inputs, 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
