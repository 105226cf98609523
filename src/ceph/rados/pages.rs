//! An object's omap, read page by page.

use std::ffi::CStr;
use std::sync::mpsc::{Receiver, channel};

use nix::errno::Errno;

use crate::ceph::rados::completion::{Completed, OmapPage};
use crate::ceph::rados::ioctx::IoCtx;
use crate::deadline::{Deadline, DeadlineError};

/// The entries of a full page; OSDs answer with 1,024 at most (`osd_max_omap_entries_per_request`).
pub const FULL: u64 = 1024;
/// The entries of a first page where values may be long: an OSD takes up to 90 MiB for one (`osd_max_write_size`), and all
/// of a page are in memory at once.
pub const FEW: u64 = 8;
/// Each page may have this many times the entries of the page before it.
const GROWTH: u64 = 8;
/// After a value of more bytes than this, a page has one entry.
pub const LONG: usize = 16 << 20;

/// Why a page could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    #[error(transparent)]
    Late(#[from] DeadlineError),
    #[error(transparent)]
    Failed(#[from] Errno),
}

/// The entries whose keys begin with a prefix, in the order of their keys. Each page is asked for before the one before it
/// is handed out: the less time is between two pages, the more often they are of one moment. An absent object has no entries.
#[derive(Debug)]
pub struct OmapPages<'a> {
    io: &'a IoCtx,
    object: &'a str,
    prefix: &'a str,
    size: u64,
    deadline: &'a Deadline,
    asked: Option<Result<Receiver<Completed<OmapPage>>, Errno>>,
}

impl<'a> OmapPages<'a> {
    /// Begins after the key `after`, with a page of at most `size` entries.
    pub fn new(
        io: &'a IoCtx,
        object: &'a str,
        (after, prefix): (&CStr, &'a str),
        size: u64,
        deadline: &'a Deadline,
    ) -> Self {
        let mut pages = Self { io, object, prefix, size, deadline, asked: None };
        pages.ask(after);
        pages
    }

    /// The most entries that the next page may have.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn ask(&mut self, after: &CStr) {
        let (to, page) = channel();
        self.asked = Some(self.io.omap_page(self.object, after, self.size, 0, &to).map(|()| page));
    }

    fn receive(&mut self, asked: &Receiver<Completed<OmapPage>>) -> Result<OmapPage, PageError> {
        let mut page = match self.deadline.receive(asked)?.map(|done| done.result) {
            Some(Err(Errno::ENOENT)) => return Ok(OmapPage::default()),
            Some(page) => page?,
            None => return Err(DeadlineError::Over.into()),
        };
        let is_long = page.entries.iter().any(|(_, value)| value.len() > LONG);
        self.size = if is_long { 1 } else { FULL.min(self.size * GROWTH) };
        let is_ours = |(key, _): &(String, Vec<u8>)| key.starts_with(self.prefix);
        if let Some(next) = page.next.as_deref().filter(|_| page.entries.last().is_some_and(is_ours)) {
            self.ask(next);
        }
        page.entries.retain(|(key, _)| key.starts_with(self.prefix));
        Ok(page)
    }
}

impl Iterator for OmapPages<'_> {
    type Item = Result<OmapPage, PageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let asked = self.asked.take()?;
        Some(asked.map_err(PageError::from).and_then(|asked| self.receive(&asked)))
    }
}
