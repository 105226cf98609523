//! A connection to a member's API.

use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::endpoint::Endpoint;
use super::error::RequestError;
use super::tls::{self, Tls};

/// A connection over TLS or over a Unix socket.
pub(super) type Stream = Box<dyn Duplex>;

/// What can be read from and written to.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Connects to an endpoint, with TLS where it is remote. The caller bounds the time.
///
/// # Errors
/// The endpoint cannot be reached, or TLS failed.
pub(super) async fn connect(endpoint: &Endpoint, tls: &Tls) -> Result<Stream, RequestError> {
    match endpoint {
        Endpoint::Https { host, port } => Ok(Box::new(connect_tls(host, *port, tls).await?)),
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await;
            Ok(Box::new(stream.map_err(|error| RequestError::Unreachable(error.to_string()))?))
        }
    }
}

/// Connects over TCP and TLS. The caller bounds the time.
///
/// # Errors
/// The host cannot be reached, or TLS failed.
pub(super) async fn connect_tls(
    host: &str,
    port: u16,
    tls: &Tls,
) -> Result<TlsStream<TcpStream>, RequestError> {
    let unreachable = |error: std::io::Error| RequestError::Unreachable(error.to_string());
    let tcp = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    // A request is written in one piece, so waiting for more to send only delays it.
    tcp.set_nodelay(true).map_err(unreachable)?;
    // The certificate is compared with the pinned ones, not with the name; servers may still choose by the name.
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => ServerName::try_from(host.to_owned())
            .map_err(|error| RequestError::Unreachable(error.to_string()))?,
    };
    TlsConnector::from(tls.client()?).connect(name, tcp).await.map_err(|error| tls::cause(&error))
}
