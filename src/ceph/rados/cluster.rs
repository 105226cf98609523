//! The connection to a Ceph cluster.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use crate::ceph::rados::data_pools::DataPoolCache;
use crate::ceph::rados::diagnosis;
use crate::ceph::rados::errno::words;
use crate::ceph::rados::error::ConnectError;
use crate::ceph::rados::handle::{c_string, check};
use crate::descriptors;

/// The client used if none is named; its caps are in `deploy/ceph`.
pub const DEFAULT_ID: &str = "guardian";

/// How to connect, in the words of Ceph's own tools.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--conf`; if not given, `$CEPH_CONF` or the usual places.
    pub conf: Option<PathBuf>,
    /// `--cluster`; if not given, `ceph`.
    pub cluster: Option<String>,
    /// `--id`, without `client.`; if not given, [`DEFAULT_ID`].
    pub id: Option<String>,
    /// `--keyring`; if not given, what the configuration says.
    pub keyring: Option<PathBuf>,
    /// The longest wait for the connection, for a mon's answer and for an OSD's; counted in whole seconds, upwards,
    /// and never less than one.
    pub timeout: Duration,
    /// The guardian's program, to ask single monitors in a process of its own each time: what librados loses with such a question comes
    /// back with the end of the process (docs/facts/ceph.md#sessions). If not given, they are asked over this connection.
    pub asks_with: Option<PathBuf>,
}

/// Why a mon did not do what it was told. `ETIMEDOUT` means *unknown*: the command may still be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}{status}", words(*errno), if status.is_empty() { "" } else { ": " })]
pub struct CommandError {
    /// The mon's answer, or librados' own.
    pub errno: Errno,
    /// What the mon said besides, in words.
    pub status: String,
}

/// The longest an operation waits for a PG. Whoever wants to wait longer asks again: operations to PGs that never
/// answer would pile up otherwise.
const OSD_SECONDS: u64 = 15;
/// Time-out of operations on a patient connection, where each PG has one or two operations under way.
const PATIENT_SECONDS: u64 = 600;

/// Ends the process at once. exit(3) would take librados' own data from under its threads, which run on where a connection was not
/// closed because closing it may hang: a verb that had answered died of SIGSEGV.
pub fn leave(status: u8) -> ! {
    // What is buffered here goes out, as exit(3) would have it.
    let _ = io::stdout().flush();
    // SAFETY: _exit uses nothing of this process, and does not return.
    unsafe { libc::_exit(status.into()) }
}

/// A connection; clones share it. The last one dropped ends it, which may block for moments: never inside a librados
/// callback, where it would wait for itself ([`completion`](crate::ceph::rados::completion) says why that cannot happen).
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    raw: ceph_sys::rados_t,
    /// What it was made with, for another one.
    options: Options,
    patient: Mutex<Option<Cluster>>,
    /// A call of [`Cluster::wait_for_latest_osdmap`] is under way.
    awaits_map: AtomicBool,
    /// Gone once the connection has ended.
    alive: Arc<()>,
    /// What headers said of the pools of their data.
    data_pools: DataPoolCache,
}

// SAFETY: librados' cluster handle belongs to no thread.
unsafe impl Send for Inner {}
// SAFETY: librados serves calls on one handle from any number of threads (its own locks guard it); what is not allowed
// so is done before the handle is shared (options, connecting) or when nobody shares it any more (shutdown).
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the last holder lets go; pool handles hold this one, so only those with forgotten operations remain.
        unsafe { ceph_sys::rados_shutdown(self.raw) }
    }
}

impl Cluster {
    /// Connects. Blocks for at most `options.timeout`, and opens neither log file nor admin socket.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn connect(options: &Options) -> Result<Self, ConnectError> {
        Self::connect_with(options, OSD_SECONDS)
    }

    /// Another connection of this guardian, whose operations wait ten minutes for their PG: made when it is first asked
    /// for, and kept. Blocks as [`Cluster::connect`] does. `None` while another call makes it: calls that waited for each
    /// other would each keep a thread and this connection for as long as no monitor answers.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub fn patient(&self) -> Result<Option<Self>, ConnectError> {
        let mut known = match self.0.patient.try_lock() {
            Ok(known) => known,
            Err(TryLockError::Poisoned(known)) => known.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(None),
        };
        if let Some(patient) = &*known {
            return Ok(Some(patient.clone()));
        }
        let patient = Self::connect_with(&self.0.options, PATIENT_SECONDS)?;
        *known = Some(patient.clone());
        Ok(Some(patient))
    }

    /// Ends with this connection, once librados has given back its threads and sockets, and those of its patient one.
    pub fn life(&self) -> Weak<()> {
        Arc::downgrade(&self.0.alive)
    }

    /// What headers said of the pools of their data.
    pub(crate) fn data_pools(&self) -> &DataPoolCache {
        &self.0.data_pools
    }

    /// The patient connection, if there is one: an address of this guardian as well.
    pub fn patient_if_connected(&self) -> Option<Self> {
        // A connection that is being made is not there yet, and its thread may wait for monitors.
        self.0.patient.try_lock().ok()?.clone()
    }

    /// What it was made with.
    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    /// For calls that end before the connection does.
    pub(super) fn raw(&self) -> ceph_sys::rados_t {
        self.0.raw
    }

    /// Are both the same connection?
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn connect_with(options: &Options, osd_seconds: u64) -> Result<Self, ConnectError> {
        descriptors::for_connection()?;
        let client = format!("client.{}", options.id.as_deref().unwrap_or(DEFAULT_ID));
        let mut inner = Inner::create(options.cluster.as_deref().unwrap_or("ceph"), &client)?;
        let name = options.cluster.as_deref().unwrap_or("ceph");
        diagnosis::conf_is_readable(options.conf.as_deref(), name)?;
        inner.read_conf(options.conf.as_deref())?;
        let seconds = options.timeout.as_secs() + u64::from(options.timeout.subsec_nanos() > 0);
        let seconds = seconds.max(1);
        inner.set_options(seconds, osd_seconds)?;
        if let Some(keyring) = &options.keyring {
            let path = keyring.display().to_string();
            if !keyring.is_file() {
                return Err(ConnectError::KeyringNotFound { client, path });
            }
            inner.set("keyring", &path)?;
        }

        // SAFETY: the handle is not connected and nobody else has it.
        let rc = unsafe { ceph_sys::rados_connect(inner.raw) };
        if rc < 0
            && let Some(cause) = inner.cause(-rc, &client)
        {
            return Err(cause);
        }
        match -rc {
            0 => {
                inner.options = options.clone();
                Ok(Self(Arc::new(inner)))
            }
            libc::EACCES | libc::EPERM => Err(ConnectError::Refused { client, errno: Errno::from_raw(-rc) }),
            libc::ETIMEDOUT => Err(ConnectError::Unreachable { seconds, mons: inner.get("mon_host") }),
            libc::ENOENT => Err(ConnectError::KeyringNotFound { client, path: inner.get("keyring") }),
            // So it says when the keyring is there and is no keyring.
            libc::EIO => Err(ConnectError::BadConf {
                what: format!("the keyring {}", inner.get("keyring")),
                errno: Errno::EIO,
            }),
            errno => Err(ConnectError::Other { client, errno: Errno::from_raw(errno) }),
        }
    }

    /// Sends a command to the mons and waits for the answer. Blocks.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn mon_command(&self, cmd: &serde_json::Value) -> Result<Vec<u8>, CommandError> {
        self.command(None, cmd)
    }

    /// Sends a command to one mon (`a`, not `mon.a`), as `ceph tell` does. Blocks.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn mon_command_target(&self, mon: &str, cmd: &serde_json::Value) -> Result<Vec<u8>, CommandError> {
        let mon = c_string(mon).map_err(|errno| CommandError { errno, status: "mon name".to_owned() })?;
        self.command(Some(&mon), cmd)
    }

    fn command(&self, mon: Option<&CStr>, cmd: &serde_json::Value) -> Result<Vec<u8>, CommandError> {
        let cmd =
            c_string(&cmd.to_string()).map_err(|errno| CommandError { errno, status: String::new() })?;
        let (raw, mut cmd) = (self.0.raw, cmd.as_ptr());
        let (cmd, no_input) = (&raw mut cmd, ptr::null());
        let (mut out, mut status) = (Buffer::default(), Buffer::default());
        let (start, len) = (&raw mut out.start, &raw mut out.len);
        let (text, text_len) = (&raw mut status.start, &raw mut status.len);
        let rc = match mon {
            // SAFETY: the handle is connected, `cmd` is one NUL-terminated string, the buffers take what comes.
            None => unsafe {
                ceph_sys::rados_mon_command(raw, cmd, 1, no_input, 0, start, len, text, text_len)
            },
            Some(mon) => {
                let mon = mon.as_ptr();
                // SAFETY: as above; the name is NUL-terminated.
                unsafe {
                    ceph_sys::rados_mon_command_target(
                        raw, mon, cmd, 1, no_input, 0, start, len, text, text_len,
                    )
                }
            }
        };
        check(rc).map_err(|errno| CommandError {
            errno,
            status: String::from_utf8_lossy(status.bytes()).trim_end().to_owned(),
        })?;
        Ok(out.bytes().to_vec())
    }

    /// Waits until this client has the OSD map that is the newest when the mons are asked, so that every later
    /// operation carries at least that epoch. Blocks, and librados puts no limit on it: without a quorum it
    /// returns only when there is one again (measured, 16.2.15), whatever the timeout set at connecting. So one call is
    /// under way at a time: each keeps a thread and the connection.
    ///
    /// # Errors
    /// What librados says; `EBUSY` while another call is under way.
    pub fn wait_for_latest_osdmap(&self) -> Result<(), Errno> {
        if self.0.awaits_map.swap(true, Ordering::SeqCst) {
            return Err(Errno::EBUSY);
        }
        // SAFETY: the handle is connected.
        let rc = unsafe { ceph_sys::rados_wait_for_latest_osdmap(self.0.raw) };
        self.0.awaits_map.store(false, Ordering::SeqCst);
        check(rc)
    }

    /// Our own address, as the blocklist would name it: `10.0.0.9:0/525740053`.
    ///
    /// # Errors
    /// What librados says.
    pub fn addresses(&self) -> Result<String, Errno> {
        let mut buffer = Buffer::default();
        // SAFETY: the handle is connected and the pointer can be written to.
        check(unsafe { ceph_sys::rados_getaddrs(self.0.raw, &raw mut buffer.start) })?;
        Ok(buffer.text())
    }

    /// Our own number: the `4126` of `client.4126`.
    #[must_use]
    pub fn instance_id(&self) -> u64 {
        // SAFETY: the handle is connected.
        unsafe { ceph_sys::rados_get_instance_id(self.0.raw) }
    }

    /// The cluster's identity, a UUID.
    ///
    /// # Errors
    /// What librados says.
    pub fn fsid(&self) -> Result<String, Errno> {
        let mut text = [0; 37]; // 36 characters and the NUL
        // SAFETY: the handle is connected and there is room for `text.len()` bytes.
        check(unsafe { ceph_sys::rados_cluster_fsid(self.0.raw, text.as_mut_ptr(), text.len()) })?;
        Ok(from_nul_terminated(&text))
    }
}

impl Inner {
    fn create(cluster: &str, client: &str) -> Result<Self, ConnectError> {
        let bad = |errno| ConnectError::BadConf {
            what: format!("the client {client} of cluster {cluster}"),
            errno,
        };
        let (name, user) = (c_string(cluster).map_err(bad)?, c_string(client).map_err(bad)?);
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` can be written to and the strings are NUL-terminated.
        check(unsafe { ceph_sys::rados_create2(&raw mut raw, name.as_ptr(), user.as_ptr(), 0) })
            .map_err(bad)?;
        Ok(Self {
            raw,
            options: Options::default(),
            patient: Mutex::new(None),
            awaits_map: AtomicBool::new(false),
            alive: Arc::default(),
            data_pools: DataPoolCache::default(),
        })
    }

    fn read_conf(&self, path: Option<&Path>) -> Result<(), ConnectError> {
        let shown =
            path.map_or_else(|| "the usual places (/etc/ceph)".to_owned(), |path| path.display().to_string());
        let raw = path.map(|path| CString::new(path.as_os_str().as_encoded_bytes())).transpose();
        let raw = raw.map_err(|_| ConnectError::BadConf { what: shown.clone(), errno: Errno::EINVAL })?;
        // SAFETY: the handle is not connected; the path is null or NUL-terminated.
        let rc = unsafe {
            ceph_sys::rados_conf_read_file(self.raw, raw.as_ref().map_or(ptr::null(), |path| path.as_ptr()))
        };
        match -rc {
            0 => Ok(()),
            libc::ENOENT => Err(ConnectError::ConfNotFound { path: shown }),
            errno => Err(ConnectError::BadConf { what: shown, errno: Errno::from_raw(errno) }),
        }
    }

    /// What the guardian needs whatever the file says.
    fn set_options(&self, seconds: u64, osd_seconds: u64) -> Result<(), ConnectError> {
        let osd_seconds =
            if osd_seconds == OSD_SECONDS { seconds.min(OSD_SECONDS) } else { osd_seconds }.to_string();
        let seconds = seconds.to_string();
        for (option, value) in [
            // All three are unlimited or minutes by default, and a call that never returns holds a fence up.
            ("client_mount_timeout", seconds.as_str()),
            ("rados_mon_op_timeout", &seconds),
            ("rados_osd_op_timeout", &osd_seconds),
            // PGs that do not answer keep their operations under way; the default of 1024 would then stop all others.
            ("objecter_inflight_ops", "65536"),
            // Several guardians and commands on a host would fight over one path, and nothing reads it.
            ("admin_socket", ""),
            // What there is to say is said by the guardian; a file would be written to by several at once, as root.
            ("log_file", ""),
            ("log_to_file", "false"),
            ("log_to_stderr", "false"),
        ] {
            self.set(option, value)?;
        }
        // A read proves something about a PG only if its primary answers. Releases without the option do just that.
        if let Err(errno) = self.set_raw("rados_replica_read_policy", "default")
            && errno != Errno::ENOENT
        {
            return Err(ConnectError::BadConf { what: "rados_replica_read_policy".to_owned(), errno });
        }
        Ok(())
    }

    fn set(&self, option: &str, value: &str) -> Result<(), ConnectError> {
        self.set_raw(option, value)
            .map_err(|errno| ConnectError::BadConf { what: format!("{option} = {value}"), errno })
    }

    fn set_raw(&self, option: &str, value: &str) -> Result<(), Errno> {
        let (option, value) = (c_string(option)?, c_string(value)?);
        // SAFETY: the handle is not connected; the strings are NUL-terminated.
        check(unsafe { ceph_sys::rados_conf_set(self.raw, option.as_ptr(), value.as_ptr()) })
    }

    /// What is known to be wrong where librados answered with this errno.
    fn cause(&self, errno: c_int, client: &str) -> Option<ConnectError> {
        let value = |option| self.value(option).unwrap_or_default();
        // Only these have more causes than one; a keyring without the client's key is told as silence.
        if ![libc::ENOENT, libc::EINVAL, libc::EIO, libc::ETIMEDOUT, libc::EACCES, libc::EPERM, libc::EISDIR]
            .contains(&errno)
        {
            return None;
        }
        let keyring = (value("key").is_empty() && value("keyfile").is_empty()).then(|| value("keyring"));
        // The names of a cluster that answered are right.
        let answered = [libc::EACCES, libc::EPERM].contains(&errno);
        let mons = if answered { "127.0.0.1".to_owned() } else { value("mon_host") };
        let cephx = !value("auth_client_required").eq_ignore_ascii_case("none");
        diagnosis::cause(Errno::from_raw(errno), client, &mons, keyring.as_deref().filter(|_| cephx))
    }

    /// An option's value for a message; says so if there is none.
    fn get(&self, option: &str) -> String {
        let value = self.value(option).filter(|value| !value.is_empty());
        value.unwrap_or_else(|| format!("({option} is not set)"))
    }

    fn value(&self, option: &str) -> Option<String> {
        let mut text = [0; 1024];
        let name = c_string(option).ok()?;
        // SAFETY: the handle lives, the name is NUL-terminated, there is room for `text.len()` bytes.
        let rc = unsafe { ceph_sys::rados_conf_get(self.raw, name.as_ptr(), text.as_mut_ptr(), text.len()) };
        check(rc).ok().map(|()| from_nul_terminated(&text))
    }
}

/// What librados returns for us to free.
struct Buffer {
    start: *mut c_char,
    len: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { start: ptr::null_mut(), len: 0 }
    }
}

impl Buffer {
    fn bytes(&self) -> &[u8] {
        if self.start.is_null() {
            return &[];
        }
        // SAFETY: librados wrote a pointer to so many bytes, ours until `rados_buffer_free`.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }

    /// For the functions that return a string and no length.
    fn text(&self) -> String {
        if self.start.is_null() {
            return String::new();
        }
        // SAFETY: such functions return a NUL-terminated string, ours until `rados_buffer_free`.
        unsafe { CStr::from_ptr(self.start) }.to_string_lossy().into_owned()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: null, or returned by librados and freed only here.
        unsafe { ceph_sys::rados_buffer_free(self.start) }
    }
}

/// The text before the NUL, or all of it.
fn from_nul_terminated(text: &[c_char]) -> String {
    let bytes: Vec<u8> = text.iter().take_while(|&&c| c != 0).map(|&c| c.cast_unsigned()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceph::rados::errno::BLOCKLISTED;

    /// The errno of a socket that was shut down says nothing to an operator whose guardian runs on a fenced host.
    #[test]
    fn a_refused_guardian_is_told_so_where_a_monitor_or_the_log_in_says_it() {
        let (errno, client) = (Errno::ESHUTDOWN, "client.guardian".to_owned());
        assert_eq!(CommandError { errno, status: String::new() }.to_string(), BLOCKLISTED);
        assert!(ConnectError::Other { client, errno }.to_string().ends_with(BLOCKLISTED));
        let denied = CommandError { errno: Errno::EACCES, status: "access denied".to_owned() };
        assert_eq!(denied.to_string(), format!("{}: access denied", Errno::EACCES));
    }
}
