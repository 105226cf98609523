//! What an errno of librados means to the guardian.

use nix::errno::Errno;

/// Classes of answers that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrnoMeaning {
    /// The key or its capabilities do not allow it.
    Denied,
    /// The arguments were rejected: nothing was done.
    Rejected,
    /// No answer: what was asked for is unknown.
    Silence,
    /// This client is blocklisted itself (`EBLOCKLISTED` is `ESHUTDOWN`, `include/rados.h`).
    Blocklisted,
    /// The pool is marked `eio`: the client answers itself.
    MadeUp,
    Other,
}

/// What is said of [`ErrnoMeaning::Blocklisted`].
pub const BLOCKLISTED: &str = "this guardian is blocklisted itself: Ceph refuses its host, which is fenced";

/// An errno in words, where librados has none for it.
pub fn words(errno: Errno) -> String {
    if meaning(errno) == ErrnoMeaning::Blocklisted { BLOCKLISTED.to_owned() } else { errno.to_string() }
}

#[allow(clippy::wildcard_enum_match_arm)] // No state of ours: the kernel's list, of which these matter.
pub fn meaning(errno: Errno) -> ErrnoMeaning {
    match errno {
        Errno::EACCES | Errno::EPERM => ErrnoMeaning::Denied,
        Errno::EINVAL => ErrnoMeaning::Rejected,
        Errno::ETIMEDOUT | Errno::EINTR | Errno::ENOTCONN => ErrnoMeaning::Silence,
        Errno::ESHUTDOWN => ErrnoMeaning::Blocklisted,
        Errno::EIO => ErrnoMeaning::MadeUp,
        _ => ErrnoMeaning::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_guardian_is_told_so_and_not_of_a_socket() {
        assert_eq!(words(Errno::ESHUTDOWN), BLOCKLISTED);
        assert_eq!(words(Errno::ENOENT), Errno::ENOENT.to_string());
    }
}
