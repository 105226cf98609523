//! Images as block devices, without a kernel client: rbd-fuse and a loop device. One client instance per host and pool, as krbd has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::agent::Agent;
use crate::conf::run;
use crate::host::Host;
use crate::process::{Process, describe};
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(60);
/// How long writing back may take when a device goes.
const FLUSH: Duration = Duration::from_secs(5);

/// Detaching a loop device that is still open makes the kernel clear it with its last user: nothing is left when this process is killed.
const HOLD: &str = r#"device=$(losetup --find --show "$0") && exec 3<>"$device" && losetup --detach "$device" && echo "$device" && exec sleep infinity"#;

/// A pool as a folder of files in one host. It goes with the last device that needs it.
#[derive(Debug)]
pub(crate) struct Fuse {
    process: Process,
    folder: PathBuf,
    host: Host,
}

/// An image mapped in a host. Dropping it unmounts and unmaps it.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    mounted: Option<PathBuf>,
    host: Host,
    /// Whoever keeps the loop device open.
    holder: Agent,
    /// After the holder: the loop device has to be gone first.
    fuse: Arc<Fuse>,
}

impl Host {
    /// Maps an image, as a container's host would.
    ///
    /// # Errors
    /// No such image, no FUSE or loop devices here, or no answer within a minute.
    pub fn map(&self, pool: &str, image: &str) -> Result<Device> {
        let fuse = self.fuse(pool)?;
        // rbd-fuse knows only the images it has listed.
        let listed = run(self.bounded("ls", DEADLINE).arg(&fuse.folder))?;
        ensure!(listed.lines().any(|line| line == image), "no image {pool}/{image}");
        let holder = self.agent(
            &format!("loop-{}-{image}", self.name),
            "sh",
            ["-c".as_ref(), HOLD.as_ref(), fuse.folder.join(image).as_os_str()],
        )?;
        let path = PathBuf::from(holder.listen(DEADLINE).context("losetup")?);
        Ok(Device { path, mounted: None, host: self.clone(), holder, fuse })
    }

    fn fuse(&self, pool: &str) -> Result<Arc<Fuse>> {
        let mut fuses = self.fuses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fuse) = fuses.get(pool).and_then(Weak::upgrade) {
            return Ok(fuse);
        }
        let name = format!("fuse-{}-{pool}", self.name);
        let folder = self.dir.join("data").join(&name);
        fs::create_dir_all(&folder)?;
        let conf = self.dir.join("ceph.conf");
        let args = [
            "-f".as_ref(),
            "-c".as_ref(),
            conf.as_os_str(),
            "-p".as_ref(),
            pool.as_ref(),
            folder.as_os_str(),
        ];
        let process = self.spawn(&name, "rbd-fuse", args)?;
        let fuse = Arc::new(Fuse { process, folder, host: self.clone() });
        wait_for(&format!("{name} to be mounted"), DEADLINE, || {
            let mounts = fs::read_to_string(format!("/proc/{}/mounts", self.anchor))?;
            let folder = fuse.folder.display().to_string();
            Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(&folder)).then_some(()))
        })?;
        fuses.insert(pool.to_owned(), Arc::downgrade(&fuse));
        Ok(fuse)
    }
}

impl Device {
    /// The block device, as in `/dev/loop3`. Its name is the same in all hosts and outside: mind whose it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process that is the RADOS client of this mapping, and of all others of the same pool in this host.
    #[must_use]
    pub fn client(&self) -> &Process {
        &self.fuse.process
    }

    /// Makes an ext4 on it.
    ///
    /// # Errors
    /// That of `mkfs.ext4`, or not done within a minute.
    pub fn mkfs_ext4(&self) -> Result<()> {
        run(self.host.bounded("mkfs.ext4", DEADLINE).arg("-q").arg(&self.path)).map(drop)
    }

    /// Mounts it in its host, and nowhere else. The folder is made; from outside it is seen below [`Host::root`].
    ///
    /// # Errors
    /// It is mounted already, or that of `mount`.
    pub fn mount(&mut self, folder: &Path) -> Result<()> {
        ensure!(self.mounted.is_none(), "{} is mounted already", self.path.display());
        fs::create_dir_all(folder)?;
        run(self.host.bounded("mount", DEADLINE).arg(&self.path).arg(folder))?;
        self.mounted = Some(folder.to_owned());
        Ok(())
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// It is not mounted, that of `umount`, or a disk that does not answer for a minute.
    pub fn umount(&mut self) -> Result<()> {
        let folder = self.mounted.as_ref().context("not mounted")?;
        let mut umount = self.host.command("umount").arg(folder).spawn()?;
        let status = wait_for("unmounting", DEADLINE, || Ok(umount.try_wait()?))?;
        ensure!(status.success(), "umount {}: {}", folder.display(), describe(status));
        self.mounted = None;
        Ok(())
    }
}

impl Device {
    /// Waits for the end of an unmounting and of the loop device. In order, this writes back what is still in memory.
    fn close(&mut self, umount: Option<&mut Child>) -> Result<()> {
        if let Some(umount) = umount {
            wait_for("unmounting", FLUSH, || Ok(umount.try_wait()?))?;
        }
        self.holder.process().kill_within(FLUSH)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Not waited for in one go: no signal ends an unmounting whose disk does not answer, only the end of that disk's client does.
        let folder = self.mounted.take();
        let mut umount = folder.and_then(|at| {
            self.host.command("umount").arg("--lazy").arg(at).stderr(Stdio::null()).spawn().ok()
        });
        if self.close(umount.as_mut()).is_err() && Arc::strong_count(&self.fuse) == 1 {
            kill(self.fuse.process.pid(), Signal::SIGKILL).ok();
            self.close(umount.as_mut()).ok();
        }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.host.bounded("umount", Duration::from_secs(10)).arg("--lazy").arg(&self.folder).output().ok();
    }
}
