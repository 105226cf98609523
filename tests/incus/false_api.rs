//! An API in place of a member's: it can do what a member may do wrong, and be the real one behind it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::TLS13;

/// What it does with whoever connects, and with those who are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is the member behind it.
    Through,
    /// It answers each request with a page for people.
    Garbage,
    /// It answers each request with Incus's own 500.
    Failing,
    /// It answers each listing with an empty one, as no cluster does.
    Empty,
    /// It reads, and says nothing.
    Hanging,
    /// Its certificate is no longer valid.
    Expired,
}

/// Where it is found, on the loopback device of its host.
pub(crate) const ENDPOINT: &str = "https://127.0.0.1:8443";

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    /// A self-signed one.
    pub(crate) fn valid_until(year: i32) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = CertificateParams::new(["cluster".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(year, 1, 1));
        Self { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let certificate = CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Ends with the test program.
pub(crate) struct FalseApi {
    mode: watch::Sender<Mode>,
    /// What it presents when that is no longer valid.
    pub(crate) expired: Pair,
}

impl FalseApi {
    /// Starts it in the network of a process, with a member's socket behind it. The member's certificate lies beside.
    pub(crate) fn start(pid: i32, behind: PathBuf) -> Self {
        let read = |name| fs::read_to_string(behind.with_file_name(name)).unwrap();
        let cluster = Pair { certificate: read("cluster.crt"), key: read("cluster.key") };
        let expired = Pair::valid_until(2001);
        let acceptors = (cluster.acceptor(), expired.acceptor());
        let (mode, modes) = watch::channel(Mode::Through);
        let network = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(accept(acceptors, behind, modes)).unwrap();
        });
        Self { mode, expired }
    }

    /// Does something else from now on, also with those who are connected.
    pub(crate) fn turn(&self, mode: Mode) {
        self.mode.send(mode).unwrap();
    }
}

async fn accept(
    acceptors: (TlsAcceptor, TlsAcceptor),
    behind: PathBuf,
    modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:8443").await?;
    loop {
        let (tcp, _) = listener.accept().await?;
        let (mut modes, behind) = (modes.clone(), behind.clone());
        let mode = *modes.borrow_and_update();
        let tls = if mode == Mode::Expired { acceptors.1.clone() } else { acceptors.0.clone() };
        tokio::spawn(async move {
            tokio::select! {
                // Whoever is gone has his own deadline to tell him.
                _ = serve(tls, tcp, mode, behind) => {}
                _ = modes.changed() => {}
            }
        });
    }
}

async fn serve(tls: TlsAcceptor, tcp: TcpStream, mode: Mode, behind: PathBuf) -> io::Result<()> {
    let mut stream = tls.accept(tcp).await?;
    let (status, body) = match mode {
        Mode::Through | Mode::Expired => {
            copy_bidirectional(&mut stream, &mut UnixStream::connect(behind).await?).await?;
            return Ok(());
        }
        Mode::Hanging => return std::future::pending().await,
        Mode::Garbage => ("200 OK", "<html><body>It works!</body></html>"),
        Mode::Failing => {
            ("500 Internal Server Error", r#"{"type":"error","error":"database is locked","error_code":500}"#)
        }
        Mode::Empty => ("200 OK", r#"{"type":"sync","status":"Success","status_code":200,"metadata":[]}"#),
    };
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}
