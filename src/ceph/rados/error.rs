//! Why there is no connection to a Ceph cluster.

use nix::errno::Errno;

use crate::ceph::rados::errno::words;
use crate::descriptors::DescriptorsError;

/// Why there is no connection, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No `ceph.conf`.
    #[error("no Ceph configuration at {path}: name the file with --conf")]
    ConfNotFound {
        /// Where it was looked for.
        path: String,
    },
    /// A `ceph.conf` or an option that librados does not take.
    #[error("Ceph does not accept {what} ({errno}): correct it")]
    BadConf {
        /// The file or the option.
        what: String,
        /// What librados said.
        errno: Errno,
    },
    /// No file with the client's key.
    #[error(
        "no keyring for {client} at {path}: create it with `ceph auth get {client} -o FILE`, or name it with --keyring"
    )]
    KeyringNotFound {
        /// `client.guardian`.
        client: String,
        /// Where it was looked for.
        path: String,
    },
    /// Bytes that librados' parser does not survive, or cannot read.
    #[error(
        "{path}, line {line}: {what}, which Ceph's parser does not accept: remove it, or put the value in quotes"
    )]
    ConfText { path: String, line: usize, what: String },
    /// No monitor is named anywhere.
    #[error("the Ceph configuration names no monitors: set mon_host, or name the right file with --conf")]
    NoMonitors,
    /// Names that DNS does not know.
    #[error("cannot resolve {names}, which mon_host names as monitors: correct mon_host, or this host's DNS")]
    UnknownMonitors { names: String },
    /// The file is there and cannot be read.
    #[error("cannot read the keyring {path}: {why}")]
    KeyringUnreadable { path: String, why: String },
    /// Another client's keyring.
    #[error(
        "the keyring {path} has no key of {client}: add it with `ceph auth get {client} -o FILE`, or name another with --keyring"
    )]
    NoKey {
        /// `client.guardian`.
        client: String,
        path: String,
    },
    /// Not what Ceph writes.
    #[error("the key of {client} in {path} is damaged: write it again with `ceph auth get {client} -o FILE`")]
    BrokenKey {
        /// `client.guardian`.
        client: String,
        path: String,
    },
    /// The library is older than the key.
    #[error(
        "the key of {client} in {path} is of the type {kind}, which this host's librados is too old to use: install librados 19.2.6, \
         20.2.4 or later, or give {client} a key of the type aes"
    )]
    NewerKey {
        /// `client.guardian`.
        client: String,
        path: String,
        kind: String,
    },
    /// The mons answered, and said no.
    #[error(
        "the Ceph monitors refuse {client} ({errno}): compare its key and caps with `ceph auth get {client}`"
    )]
    Refused {
        /// `client.guardian`.
        client: String,
        /// `EACCES` or `EPERM`.
        errno: Errno,
    },
    /// No answer.
    #[error(
        "no Ceph monitor answered within {seconds} s: check that {mons} can be reached and that the mons have a quorum"
    )]
    Unreachable {
        /// How long was waited.
        seconds: u64,
        /// The mons as the configuration names them.
        mons: String,
    },
    /// librados would end the process.
    #[error(transparent)]
    TooFewFiles(#[from] DescriptorsError),
    #[error("cannot connect to Ceph as {client}: {}", words(*errno))]
    Other {
        /// `client.guardian`.
        client: String,
        /// What librados said.
        errno: Errno,
    },
}
