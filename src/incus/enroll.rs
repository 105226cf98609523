//! Becoming a client that the cluster trusts, by a token of `incus config trust add`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use data_encoding::{BASE64, BASE64_NOPAD};
use jiff::Timestamp;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P384_SHA384,
};
use serde::Deserialize;
use serde_json::json;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::api::{Member, Server};
use super::client::Client;
use super::connection::connect_tls;
use super::endpoint::Endpoint;
use super::error::{Fingerprint, IncusError, RequestError, SetupError};
use super::path::ApiPath;
use super::tls::{Tls, read_certificate, read_pins};
use crate::deadline::within;
use crate::incus::options::IncusConfig;

/// What `incus config trust add` prints: base64 of JSON (shared/api/certificate.go, `CertificateAddToken`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    text: String,
    fingerprint: Fingerprint,
    endpoints: Vec<Endpoint>,
    expires_at: Option<Timestamp>,
    name: String,
}

/// What enrolment led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// The cluster's members, or what the token named.
    pub endpoints: Vec<Endpoint>,
    /// The name under which the guardian is trusted.
    pub name: String,
    /// Of the guardian's certificate, as `incus config trust list` shows it.
    pub fingerprint: Fingerprint,
    /// It was trusted before, and the token was not used.
    pub already: bool,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The text is not a token.
    #[error("this is not a token ({0}): paste what `incus config trust add rbd-guardian` prints")]
    BadToken(String),
    /// It cannot be read.
    #[error("cannot read the token from {from}: {error}")]
    NoToken { from: String, error: io::Error },
    /// Its time is over.
    #[error("the token expired at {0}: create another with `incus config trust add rbd-guardian`")]
    Expired(Timestamp),
    /// Something is in the way.
    #[error("{} {why}: use --force to replace it", .path.display())]
    InTheWay { path: PathBuf, why: &'static str },
    /// A file cannot be written.
    #[error("cannot write {}: {error}", .path.display())]
    Unwritable { path: PathBuf, error: io::Error },
    /// Our own files.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    NoKey(#[from] rcgen::Error),
    /// It did not take the token.
    #[error(
        "{endpoint} refuses the token ({message}): was it used before? Create another with `incus config trust add rbd-guardian`"
    )]
    Refused { endpoint: Endpoint, message: String },
    /// No address in the token presented the certificate that the token names.
    #[error("no address in the token can be used: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NoAddress(Vec<IncusError>),
    /// It answered, and then did not.
    #[error(transparent)]
    Incus(#[from] IncusError),
}

#[derive(Deserialize)]
struct RawToken {
    #[serde(default)]
    client_name: String,
    fingerprint: String,
    addresses: Vec<String>,
    #[allow(dead_code)] // Sent as a part of the token's text; here only so that other base64 is no token.
    secret: String,
    expires_at: Option<String>,
}

impl Token {
    /// Reads what was pasted.
    ///
    /// # Errors
    /// It is no token.
    pub fn parse(text: &str) -> Result<Self, EnrollError> {
        let bad = |what: String| EnrollError::BadToken(what);
        let text: String = text.split_whitespace().collect();
        let padded = BASE64.decode(text.as_bytes());
        let json =
            padded.or_else(|_| BASE64_NOPAD.decode(text.as_bytes())).map_err(|e| bad(e.to_string()))?;
        let raw: RawToken = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        let fingerprint = Fingerprint::parse(&raw.fingerprint)
            .ok_or_else(|| bad(format!("'{}' is no fingerprint", raw.fingerprint)))?;
        let endpoints = raw.addresses.iter().map(|address| format!("https://{address}").parse());
        let endpoints: Vec<_> = endpoints.collect::<Result<_, _>>().map_err(bad)?;
        if endpoints.is_empty() {
            return Err(bad("it names no address: is core.https_address set?".to_owned()));
        }
        // Go writes year 1 for "never".
        let expires_at = raw.expires_at.and_then(|at| at.parse::<Timestamp>().ok());
        let expires_at = expires_at.filter(|at| *at > Timestamp::UNIX_EPOCH);
        Ok(Self { text, fingerprint, endpoints, expires_at, name: raw.client_name })
    }
}

/// Makes key and certificate where there are none, has the cluster trust them, and saves the cluster's certificate.
/// Stopped half-way it goes on when it is run again: a certificate that is trusted by then is left at that.
///
/// # Errors
/// See [`EnrollError`].
pub async fn enroll(
    token: &Token,
    config: &IncusConfig,
    force: bool,
    now: Timestamp,
) -> Result<Enrolled, EnrollError> {
    if let Some(at) = token.expires_at.filter(|at| *at <= now) {
        return Err(EnrollError::Expired(at));
    }
    let cluster = &config.cluster_certificate;
    if cluster.exists() && !force && !read_pins(cluster)?.contains(&token.fingerprint) {
        return Err(EnrollError::InTheWay {
            path: cluster.clone(),
            why: "is the certificate of another cluster",
        });
    }
    if !force {
        return enroll_with(token, config).await;
    }
    // What works is replaced only once the new pair is trusted.
    let next = IncusConfig {
        certificate: next_to(&config.certificate),
        key: next_to(&config.key),
        cluster_certificate: next_to(cluster),
        ..config.clone()
    };
    if next.certificate.exists() != next.key.exists() {
        for half in [&next.certificate, &next.key] {
            let _ = fs::remove_file(half);
        }
    }
    let enrolled = enroll_with(token, &next).await?;
    for (new, path) in [
        (&next.key, &config.key),
        (&next.certificate, &config.certificate),
        (&next.cluster_certificate, cluster),
    ] {
        fs::rename(new, path).map_err(|error| EnrollError::Unwritable { path: path.clone(), error })?;
    }
    Ok(enrolled)
}

/// Beside a file, until it is seen to work.
fn next_to(path: &Path) -> PathBuf {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    next.into()
}

async fn enroll_with(token: &Token, config: &IncusConfig) -> Result<Enrolled, EnrollError> {
    let cluster = &config.cluster_certificate;
    keep_or_make(config)?;
    let tls = Tls::pinned(&config.certificate, &config.key, token.fingerprint.clone())?;
    let ours = read_certificate(&config.certificate)?;
    let (endpoint, presented) = reachable(token, &tls, config).await?;
    // Before the token is used up: without this file all would be in vain.
    // A certificate that is pinned already may have others beside it.
    if !cluster.exists() || !read_pins(cluster)?.contains(&token.fingerprint) {
        save(cluster, &pem("CERTIFICATE", &presented), 0o644, true)?;
    }

    let client = Client::new(vec![endpoint.clone()], tls, config.timeout);
    let already = client.get::<Server>("/1.0").await?.auth == "trusted";
    if !already {
        let body = json!({
            "type": "client",
            "name": token.name,
            "certificate": BASE64.encode(&ours),
            "trust_token": token.text,
        });
        let refused =
            |message: &String| EnrollError::Refused { endpoint: endpoint.clone(), message: message.clone() };
        client.post("/1.0/certificates", &body).await.map_err(|error| match &error.cause {
            RequestError::Forbidden(message) | RequestError::Status { code: 400..500, message } => {
                refused(message)
            }
            RequestError::Unreachable(_)
            | RequestError::Late { .. }
            | RequestError::Lost(_)
            | RequestError::Certificate(_)
            | RequestError::Setup(_)
            | RequestError::Status { .. }
            | RequestError::TooLarge { .. }
            | RequestError::TooMany { .. }
            | RequestError::Withheld { .. }
            | RequestError::Garbage(_) => EnrollError::Incus(error),
        })?;
    }
    let server: Server = client.get("/1.0").await?;
    let endpoints = if server.environment.server_clustered {
        let members: Vec<Member> = client.get(&ApiPath::of(&["cluster", "members"]).whole().text()).await?;
        members.iter().filter_map(|member| member.url.parse().ok()).collect()
    } else {
        vec![endpoint]
    };
    Ok(Enrolled { endpoints, name: token.name.clone(), fingerprint: Fingerprint::of(&ours), already })
}

/// The first of the token's addresses that presents the token's certificate, and that certificate.
async fn reachable(
    token: &Token,
    tls: &Tls,
    config: &IncusConfig,
) -> Result<(Endpoint, CertificateDer<'static>), EnrollError> {
    let mut failures = Vec::new();
    for endpoint in &token.endpoints {
        let Endpoint::Https { host, port } = endpoint else { continue };
        let connected = within(config.timeout, connect_tls(host, *port, tls)).await;
        let stream = connected.unwrap_or(Err(RequestError::Late { timeout: config.timeout, sent: false }));
        let presented = stream.and_then(|stream| {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let first = certificates
                .first()
                .ok_or_else(|| RequestError::Garbage("it has no certificate".to_owned()))?;
            Ok(first.clone().into_owned())
        });
        match presented {
            Ok(presented) => return Ok((endpoint.clone(), presented)),
            Err(cause) => {
                failures.push(IncusError {
                    endpoint: endpoint.clone(),
                    request: "connecting".to_owned(),
                    cause,
                });
            }
        }
    }
    Err(EnrollError::NoAddress(failures))
}

/// A pair that is there is used, so that enrolling again after a failure does not end with another one.
fn keep_or_make(config: &IncusConfig) -> Result<(), EnrollError> {
    let (certificate, key) = (&config.certificate, &config.key);
    match (certificate.exists(), key.exists()) {
        (true, true) => return Ok(()),
        (true, false) => return Err(in_the_way(certificate, "has no key beside it")),
        (false, true) => return Err(in_the_way(key, "has no certificate beside it")),
        (false, false) => {}
    }
    let made = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
    // Valid from 1975 to 4096, rcgen's default: what ends the trust is `incus config trust remove`, and a date would
    // only be a day on which no member can be fenced.
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "rbd-guardian");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let signed = params.self_signed(&made)?;
    save(key, &made.serialize_pem(), 0o600, false)?;
    save(certificate, &signed.pem(), 0o644, false)
}

fn in_the_way(path: &Path, why: &'static str) -> EnrollError {
    EnrollError::InTheWay { path: path.to_owned(), why }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    // Base64 is ASCII: a chunk of bytes is a chunk of text.
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// Whole or not at all, with its mode from the first byte on, and on disk when this returns.
fn save(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), EnrollError> {
    let unwritable = |error: io::Error| EnrollError::Unwritable { path: path.to_owned(), error };
    if !replace && path.exists() {
        return Err(in_the_way(path, "is there already"));
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(unwritable)?;
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let written = (|| {
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(unwritable)
}
