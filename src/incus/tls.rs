//! TLS as Incus does it: 1.3, a client certificate, and a cluster known by its certificate alone.
//!
//! All members present the same self-signed certificate (docs/facts/incus.md#the-api), so it is pinned, and with it those that may
//! come after it: neither names nor authorities are looked at, its time is.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError,
    RootCertStore, SignatureScheme,
};

use super::error::{ClusterCertificateError, Fingerprint, RequestError, SetupError};

/// What a connection needs; nothing for a unix socket.
#[derive(Debug, Clone, Default)]
pub struct Tls(Option<Arc<ClientConfig>>);

impl Tls {
    /// From the files the configuration names. Every certificate in `cluster` is one that the cluster is known by, and the
    /// file is read again when another one is presented: the next one can be put there before it is in use, or after.
    ///
    /// # Errors
    /// A file cannot be used, or other users can read the key.
    pub fn open(certificate: &Path, key: &Path, cluster: &Path) -> Result<Self, SetupError> {
        let pins = Pins { known: RwLock::new(read_pins(cluster)?), file: Some(cluster.to_owned()) };
        Self::with(certificate, key, pins)
    }

    /// For a cluster whose certificate is known by its fingerprint only.
    ///
    /// # Errors
    /// As for [`Tls::open`].
    pub fn pinned(certificate: &Path, key: &Path, pinned: Fingerprint) -> Result<Self, SetupError> {
        Self::with(certificate, key, Pins { known: RwLock::new(vec![pinned]), file: None })
    }

    fn with(certificate: &Path, key: &Path, pins: Pins) -> Result<Self, SetupError> {
        let provider = Arc::new(ring::default_provider());
        let ours = (read_certificate(certificate)?, read_key(key)?);
        let verifier = Arc::new(PinVerifier { pins, provider: Arc::clone(&provider) });
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| {
                let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
                builder.with_client_auth_cert(vec![ours.0], ours.1)
            })
            .map_err(|error| SetupError::Unusable {
                certificate: certificate.to_owned(),
                why: error.to_string(),
            })?;
        Ok(Self(Some(Arc::new(config))))
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, SetupError> {
        self.0.clone().ok_or(SetupError::NoEndpoints)
    }
}

/// Reads a file's first certificate.
///
/// # Errors
/// There is none.
pub fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, SetupError> {
    CertificateDer::from_pem_slice(&read(path)?)
        .map_err(|_| SetupError::NotPem { path: path.to_owned(), expected: "certificate" })
}

/// The fingerprints of all certificates of a file, in its order; one at least.
///
/// # Errors
/// There is none, or a part of it is none.
pub fn read_pins(path: &Path) -> Result<Vec<Fingerprint>, SetupError> {
    let no = |_| SetupError::NotPem { path: path.to_owned(), expected: "certificate" };
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let pins: Vec<Fingerprint> = all.map_err(no)?.iter().map(|one| Fingerprint::of(one)).collect();
    if pins.is_empty() {
        return Err(SetupError::NotPem { path: path.to_owned(), expected: "certificate" });
    }
    Ok(pins)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, SetupError> {
    let pem = read(path)?;
    let mode = fs::metadata(path).map_err(|error| unreadable(path, &error))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SetupError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| SetupError::NotPem { path: path.to_owned(), expected: "private key" })
}

fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    fs::read(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> SetupError {
    SetupError::Unreadable { path: path.to_owned(), why: error.to_string() }
}

/// The certificates that a cluster is known by.
#[derive(Debug)]
struct Pins {
    /// At least one.
    known: RwLock<Vec<Fingerprint>>,
    /// Where they were read.
    file: Option<PathBuf>,
}

impl Pins {
    /// Is it one of them, also of those that were put into the file since?
    fn have(&self, found: &Fingerprint) -> bool {
        let known = || self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known().contains(found) {
            return true;
        }
        // A file that is being written is read again the next time.
        let Some(pins) = self.file.as_deref().and_then(|file| read_pins(file).ok()) else { return false };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = pins;
        known().contains(found)
    }

    fn first(&self) -> Fingerprint {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.first().cloned().unwrap_or_else(|| Fingerprint::of(&[]))
    }
}

/// Accepts certificates that are pinned while they are valid, whatever their names and issuers.
#[derive(Debug)]
struct PinVerifier {
    pins: Pins,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = Fingerprint::of(end_entity);
        if !self.pins.have(&found) {
            let fault = ClusterCertificateError::NotPinned { found, pinned: self.pins.first() };
            return Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault)))));
        }
        // Asked only for the time, which is looked at before anything else of the chain: a cluster certificate that
        // an authority signed has its issuer in no store of ours.
        match by_itself(end_entity, now, &self.provider) {
            Err(error) if time_fault(&error).is_some() => Err(error),
            Ok(()) | Err(_) => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate as an authority of its own.
fn by_itself(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let mut itself = RootCertStore::empty();
    itself.add(certificate.clone().into_owned())?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, &itself, &[], now, algorithms)
}

/// Has this certificate (PEM) ended at this time, since 1970? `None` if it is none.
pub fn is_over(pem: &[u8], at: Duration) -> Option<bool> {
    let certificate = CertificateDer::from_pem_slice(pem).ok()?;
    let judged = by_itself(&certificate, UnixTime::since_unix_epoch(at), &ring::default_provider());
    Some(judged.is_err_and(|error| time_fault(&error) == Some(ClusterCertificateError::Expired)))
}

// rustls' errors are others' enums, and grow.
#[allow(clippy::wildcard_enum_match_arm)]
fn time_fault(error: &Error) -> Option<ClusterCertificateError> {
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            Some(ClusterCertificateError::Expired)
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some(ClusterCertificateError::NotYetValid),
        _ => None,
    }
}

/// What a failure of TLS means. With TLS 1.3 the other side refuses our certificate only after the handshake is over
/// for us, so this may come out of reading the answer as well.
#[allow(clippy::wildcard_enum_match_arm)]
pub(super) fn cause(error: &io::Error) -> RequestError {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return RequestError::Lost(error.to_string());
    };
    let fault = time_fault(tls).unwrap_or_else(|| match tls {
        Error::InvalidCertificate(CertificateError::Other(OtherError(fault))) => {
            let fault = fault.downcast_ref::<ClusterCertificateError>().cloned();
            fault.unwrap_or_else(|| ClusterCertificateError::Other(tls.to_string()))
        }
        Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        ) => ClusterCertificateError::OursRefused(tls.to_string()),
        _ => ClusterCertificateError::Other(tls.to_string()),
    });
    RequestError::Certificate(fault)
}
