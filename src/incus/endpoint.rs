//! Where a member's API is.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::error::Cause;
use super::exchange::Stream;
use super::tls::{self, Tls};

/// Incus's own default for `core.https_address`.
const DEFAULT_PORT: u16 = 8443;

/// `https://HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A member's API over TLS.
    Https {
        /// A name or an IP; an IPv6 address without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// The socket of the member on this host.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ALLOWED: &str = "write https://10.0.0.11:8443 or unix:/var/lib/incus/unix.socket";
        let bad = |what: &str| format!("'{text}' {what}: {ALLOWED}");
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Self::Unix(path)) } else { Err(bad("is no absolute path")) };
        }
        let uri: Uri = text.parse().map_err(|_| bad("is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("is neither https nor unix"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("has a path"));
        }
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || text.contains('@') {
            return Err(bad("names no host"));
        }
        Ok(Self::Https { host: host.to_owned(), port: uri.port_u16().unwrap_or(DEFAULT_PORT) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https { .. } => write!(f, "https://{}", self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Endpoint {
    /// `HOST:PORT`, as a request names it.
    pub(super) fn authority(&self) -> String {
        match self {
            Self::Https { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Https { host, port } => format!("{host}:{port}"),
            Self::Unix(_) => "incus".to_owned(),
        }
    }

    /// A new connection, with TLS where it is remote. Bounded by the caller.
    pub(super) async fn connect(&self, tls: &Tls) -> Result<Stream, Cause> {
        match self {
            Self::Https { host, port } => Ok(Box::new(connect(host, *port, tls).await?)),
            Self::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                Ok(Box::new(stream.map_err(|error| Cause::Unreachable(error.to_string()))?))
            }
        }
    }
}

/// TCP and TLS.
pub(super) async fn connect(host: &str, port: u16, tls: &Tls) -> Result<TlsStream<TcpStream>, Cause> {
    let unreachable = |error: std::io::Error| Cause::Unreachable(error.to_string());
    let tcp = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    // A request is written whole, and nobody gains from waiting for more of it.
    tcp.set_nodelay(true).map_err(unreachable)?;
    // The name is not what is verified, but the extension is sent where there is one.
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => {
            ServerName::try_from(host.to_owned()).map_err(|error| Cause::Unreachable(error.to_string()))?
        }
    };
    TlsConnector::from(tls.client()?).connect(name, tcp).await.map_err(|error| tls::cause(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_written_as_it_is_read() {
        for text in
            ["https://10.0.0.11:8443", "https://[2001:db8::5]:8443", "https://n1.lan:443", "unix:/x/y"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!("https://n1/".parse::<Endpoint>().unwrap().to_string(), "https://n1:8443");
    }

    #[test]
    fn anything_else_is_told_what_is_allowed() {
        for text in [
            "",
            "n1",
            "10.0.0.1:8443",
            "http://n1:8443",
            "unix:socket",
            "https://",
            "https://n1/1.0",
            "https://a@n1",
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.contains("https://10.0.0.11:8443"), "{error}");
        }
    }
}
