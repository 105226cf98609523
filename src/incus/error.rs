//! What a request may end with instead of an answer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ring::digest::{SHA256, digest};

use super::endpoint::Endpoint;

/// A request that got no usable answer: of whom, what, why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}: {request}: {cause}")]
pub struct IncusError {
    /// Who was asked.
    pub endpoint: Endpoint,
    /// `GET /1.0`.
    pub request: String,
    /// Why there is no answer.
    pub cause: RequestError,
}

impl IncusError {
    /// Is a write that ended with this surely not done? Otherwise it is unknown and has to be read back (INV-9).
    ///
    /// A 4xx counts as surely not done. That holds for a write that is one transaction (a project, a member, an
    /// instance's placement), not for the server's configuration: `PATCH /1.0` is stored first and then announced to
    /// the other members, whose refusal would come back the same way (api_1.0.go:795).
    pub fn surely_not_done(&self) -> bool {
        match &self.cause {
            RequestError::Unreachable(_)
            | RequestError::Certificate(_)
            | RequestError::Setup(_)
            | RequestError::Forbidden(_)
            | RequestError::Withheld { .. } => true,
            RequestError::Late { sent, .. } => !sent,
            RequestError::Status { code, .. } => (400..500).contains(code),
            RequestError::Lost(_)
            | RequestError::TooLarge { .. }
            | RequestError::TooMany { .. }
            | RequestError::Garbage(_) => false,
        }
    }

    /// Could another member do better? Not where the answer is about the request itself.
    pub(super) fn is_the_endpoints(&self) -> bool {
        match &self.cause {
            RequestError::Status { code, .. } => *code >= 500,
            RequestError::Withheld { .. } => false,
            RequestError::Unreachable(_)
            | RequestError::Late { .. }
            | RequestError::Lost(_)
            | RequestError::Certificate(_)
            | RequestError::Setup(_)
            | RequestError::Forbidden(_)
            | RequestError::TooLarge { .. }
            | RequestError::TooMany { .. }
            | RequestError::Garbage(_) => true,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error("cannot connect ({0}): is the member up, and is this its core.https_address?")]
    Unreachable(String),
    /// The time was over.
    #[error("no answer within {}", humantime::format_duration(*.timeout))]
    Late {
        /// How long it was given.
        timeout: Duration,
        /// Had the request left? Then what became of it is unknown.
        sent: bool,
    },
    /// The connection ended without an answer.
    #[error("the connection ended before the answer ({0})")]
    Lost(String),
    /// TLS failed.
    #[error(transparent)]
    Certificate(#[from] ClusterCertificateError),
    /// Our own files cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// 403.
    #[error(
        "refused ({0}): is the guardian's certificate in `incus config trust list`, and not restricted to projects?"
    )]
    Forbidden(String),
    /// Any other status but success.
    #[error("answered {code}: {message}")]
    Status {
        /// HTTP status, or Incus's `error_code`.
        code: u16,
        message: String,
    },
    /// The answer is longer than any that is expected.
    #[error(
        "the answer is longer than {limit} bytes, which is too long for any answer to this request: is this Incus?"
    )]
    TooLarge {
        /// How long an answer may be.
        limit: usize,
    },
    /// Its items would take many times its bytes.
    #[error(
        "the answer has more than {limit} items, which is too many for any answer to this request: is this Incus?"
    )]
    TooMany {
        /// How many an answer may have.
        limit: usize,
    },
    /// A change of the configuration was not sent: a member that counts as alive could not be told of it.
    #[error(
        "not sent: Incus counts {member} as online, and {member} does not answer ({why}). Incus 6.0 loses its configuration \
         when it cannot pass a change on to an online member: try again when {member} answers or is offline"
    )]
    Withheld {
        member: String,
        /// What became of the question.
        why: String,
    },
    /// An answer of another shape than expected.
    #[error("the answer is not understood ({0}): is this Incus? If so, report it with the version in use")]
    Garbage(String),
}

/// What may be wrong with a certificate. Nothing was sent, or nothing was looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterCertificateError {
    /// It presents another certificate than the one it is known by.
    #[error(
        "presents the certificate {found} instead of {pinned}, by which the guardian knows the cluster: if it was renewed on purpose, append the new \
         one to the file that incus.cluster_certificate names, on each guardian's host (on a member: \
         `cat /var/lib/incus/cluster.crt`; its fingerprint: `incus info | grep certificate_fingerprint`); it is used at once. \
         Or enroll again with --force and `systemctl reload rbd-guardian`. Otherwise another host may intercept the connection"
    )]
    NotPinned { found: Fingerprint, pinned: Fingerprint },
    /// The pinned one is no longer valid.
    #[error(
        "the cluster certificate has expired, or this host's clock is wrong: renew it (`incus cluster update-certificate`) \
         and enroll again with --force and `systemctl reload rbd-guardian`"
    )]
    Expired,
    /// The pinned certificate is not valid yet.
    #[error("the cluster certificate is not valid yet: is this host's clock right?")]
    NotYetValid,
    /// The other side refused ours.
    #[error(
        "refuses the guardian's certificate ({0}): enroll again with --force and `systemctl reload rbd-guardian`"
    )]
    OursRefused(String),
    /// Anything else.
    #[error("TLS failed ({0}): is this Incus?")]
    Other(String),
}

/// What is wrong with the files that were configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// A file cannot be read.
    #[error("cannot read {} ({why}): run `rbd-guardian incus enroll TOKEN`, or see [incus] in the configuration", .path.display())]
    Unreadable { path: PathBuf, why: String },
    /// A file holds something else.
    #[error("{} contains no {expected} in PEM form", .path.display())]
    NotPem {
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// Others could read the key.
    #[error("{} is readable by others (mode {mode:04o}): `chmod 600` it", .path.display())]
    KeyExposed { path: PathBuf, mode: u32 },
    /// Key and certificate do not fit, or are of no use to TLS.
    #[error("{} and its key cannot be used ({why}): enroll again with --force and `systemctl reload rbd-guardian`", .certificate.display())]
    Unusable { certificate: PathBuf, why: String },
    /// No endpoint is configured.
    #[error("no Incus is configured: set incus.endpoints, or run `rbd-guardian incus enroll TOKEN`")]
    NoEndpoints,
}

/// SHA-256 of a certificate's DER in lower-case hex, by which Incus names certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(der: &[u8]) -> Self {
        Self(HEXLOWER.encode(digest(&SHA256, der).as_ref()))
    }

    /// From hex, as tokens and `incus config trust list` write it.
    pub fn parse(hex: &str) -> Option<Self> {
        let bytes = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok()?;
        (bytes.len() == SHA256.output_len()).then(|| Self(HEXLOWER.encode(&bytes)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
