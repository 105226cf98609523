//! Where a member's API is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;

/// Incus's own default for `core.https_address`.
const DEFAULT_PORT: u16 = 8443;

/// `https://HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A member's API over TLS.
    Https {
        /// A name or an IP; an IPv6 address without its brackets.
        host: String,
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
