//! Locks of the object class `lock`, as leases: whoever holds one renews it, or loses it when its time is over.
//!
//! The time counts by the clock of the primary OSD (`cls/lock/cls_lock.cc` compares with `ceph_clock_now`), and its
//! end stops nobody from acting: what a late holder may do must be refused by other means (INV-7). Where that clock is
//! ahead or is set back, or another OSD with another clock takes over, a dead holder's time may not be over for minutes:
//! who sees that nothing is renewed breaks the lock ([`silence`](rbd_guardian_core::rules::silence)).

use std::ffi::c_char;
use std::time::Duration;

use nix::errno::Errno;
use rbd_guardian_core::model::addr::EntityAddr;

use crate::ceph::rados::handle::{c_string, check};
use crate::ceph::rados::ioctx::IoCtx;

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseHolder {
    /// The client instance: `client.4126`.
    pub client: String,
    /// What it named its lock.
    pub cookie: String,
    /// Its address as the OSD sees it.
    pub address: EntityAddr,
}

/// Whether a lock is taken or kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseWrite {
    /// Take it if it is free, or keep it if this client holds it under the same cookie.
    Bid,
    /// Keep it; `ENOENT` if it was lost meanwhile.
    Renew,
}

/// The longest list of lockers that is read: one exclusive locker, whose cookie is ours or librbd's.
const LIST_BYTES: usize = 4096;

/// These wait for the PG's answer, at most for the timeout set at connecting: call them on a lane. A call that was not
/// answered (`ETIMEDOUT`) may have been done.
impl IoCtx {
    /// Takes or renews the exclusive lock `name` on `object` for so long. Makes the object if it is absent.
    ///
    /// # Errors
    /// `EBUSY`: another client, or this one under another cookie, holds it.
    pub fn lock(
        &self,
        object: &str,
        name: &str,
        cookie: &str,
        duration: Duration,
        take: LeaseWrite,
    ) -> Result<(), Errno> {
        let (object, name, cookie) = (c_string(object)?, c_string(name)?, c_string(cookie)?);
        let mut duration = ceph_sys::timeval {
            tv_sec: duration.as_secs().try_into().map_err(|_| Errno::EINVAL)?,
            tv_usec: duration.subsec_micros().into(),
        };
        let flags = match take {
            LeaseWrite::Bid => ceph_sys::LIBRADOS_LOCK_FLAG_MAY_RENEW,
            LeaseWrite::Renew => ceph_sys::LIBRADOS_LOCK_FLAG_MUST_RENEW,
        };
        // SAFETY: the handle lives, the strings are NUL-terminated, the duration is only read now.
        check(unsafe {
            ceph_sys::rados_lock_exclusive(
                self.raw(),
                object.as_ptr(),
                name.as_ptr(),
                cookie.as_ptr(),
                c"".as_ptr(),
                &raw mut duration,
                flags,
            )
        })
    }

    /// Gives up a lock of this client.
    ///
    /// # Errors
    /// `ENOENT`: it does not hold it under this cookie.
    pub fn unlock(&self, object: &str, name: &str, cookie: &str) -> Result<(), Errno> {
        let (object, name, cookie) = (c_string(object)?, c_string(name)?, c_string(cookie)?);
        // SAFETY: the handle lives, the strings are NUL-terminated.
        check(unsafe { ceph_sys::rados_unlock(self.raw(), object.as_ptr(), name.as_ptr(), cookie.as_ptr()) })
    }

    /// Takes a lock away from `client` (`client.4126`).
    ///
    /// # Errors
    /// `ENOENT`: that client does not hold it under this cookie, or there is no such object. `EPERM`: the key lacks
    /// `allow class lock break_lock`.
    pub fn break_lock(&self, object: &str, name: &str, client: &str, cookie: &str) -> Result<(), Errno> {
        let (object, name) = (c_string(object)?, c_string(name)?);
        let (client, cookie) = (c_string(client)?, c_string(cookie)?);
        // SAFETY: the handle lives, the strings are NUL-terminated.
        check(unsafe {
            ceph_sys::rados_break_lock(
                self.raw(),
                object.as_ptr(),
                name.as_ptr(),
                client.as_ptr(),
                cookie.as_ptr(),
            )
        })
    }

    /// The lock `name` as the OSD keeps it: who holds it, and until when by the OSD's clock. Each renewal changes these
    /// bytes. Nothing where nobody ever took it.
    ///
    /// # Errors
    /// `ERANGE`: more lockers than an exclusive lock can have.
    pub fn lock_as_kept(&self, object: &str, name: &str) -> Result<Vec<u8>, Errno> {
        let (object, name) = (c_string(object)?, c_string(&format!("lock.{name}"))?);
        let mut kept: Vec<c_char> = vec![0; LIST_BYTES];
        // SAFETY: the handle lives, the strings are NUL-terminated, and there is room for as many bytes as the length
        // says.
        let length = unsafe {
            ceph_sys::rados_getxattr(
                self.raw(),
                object.as_ptr(),
                name.as_ptr(),
                kept.as_mut_ptr(),
                kept.len(),
            )
        };
        match usize::try_from(length) {
            Ok(length) => Ok(kept.iter().take(length).map(|byte| byte.cast_unsigned()).collect()),
            Err(_) => {
                let errno = Errno::from_raw(-length);
                if matches!(errno, Errno::ENODATA | Errno::ENOENT) { Ok(Vec::new()) } else { Err(errno) }
            }
        }
    }

    /// Who holds a lock whose time is not over.
    ///
    /// # Errors
    /// `ENOENT`: there is no such object. `ERANGE`: more lockers than an exclusive lock can have. `EBADMSG`: an address
    /// that is none.
    pub fn lockers(&self, object: &str, name: &str) -> Result<Vec<LeaseHolder>, Errno> {
        let (object, name) = (c_string(object)?, c_string(name)?);
        let (mut tag, mut clients, mut cookies, mut addresses) =
            (List::new(), List::new(), List::new(), List::new());
        let mut exclusive = 0;
        // SAFETY: the handle lives, the strings are NUL-terminated, and each list has room for as many bytes as its
        // length says.
        let count = unsafe {
            ceph_sys::rados_list_lockers(
                self.raw(),
                object.as_ptr(),
                name.as_ptr(),
                &raw mut exclusive,
                tag.bytes.as_mut_ptr(),
                &raw mut tag.len,
                clients.bytes.as_mut_ptr(),
                &raw mut clients.len,
                cookies.bytes.as_mut_ptr(),
                &raw mut cookies.len,
                addresses.bytes.as_mut_ptr(),
                &raw mut addresses.len,
            )
        };
        let count = usize::try_from(count)
            .map_err(|_| i32::try_from(-count).map_or(Errno::UnknownErrno, Errno::from_raw))?;
        let found = clients.texts().into_iter().zip(cookies.texts()).zip(addresses.texts());
        found
            .take(count)
            .map(|((client, cookie), address)| {
                let address = address.parse().map_err(|_| Errno::EBADMSG)?;
                Ok(LeaseHolder { client, cookie, address })
            })
            .collect()
    }
}

/// NUL-terminated strings, one after another, as librados writes them.
struct List {
    bytes: Vec<c_char>,
    len: usize,
}

impl List {
    fn new() -> Self {
        Self { bytes: vec![0; LIST_BYTES], len: LIST_BYTES }
    }

    fn texts(&self) -> Vec<String> {
        let text = |bytes: &[c_char]| {
            let bytes: Vec<u8> = bytes.iter().map(|byte| byte.cast_unsigned()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let written = self.bytes.get(..self.len).unwrap_or_default();
        written
            .split_inclusive(|byte| *byte == 0)
            .map(|bytes| text(bytes.strip_suffix(&[0]).unwrap_or(bytes)))
            .collect()
    }
}
