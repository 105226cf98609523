//! The client against servers that do everything a member may do wrong, over real TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::env;
use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use data_encoding::BASE64;
use jiff::Timestamp;
use rbd_guardian::deadline::within;
use rbd_guardian::incus::api::{Instance, Operations};
use rbd_guardian::incus::block_on;
use rbd_guardian::incus::client::{Accepted, Client};
use rbd_guardian::incus::endpoint::Endpoint;
use rbd_guardian::incus::enroll::{EnrollError, Token, enroll};
use rbd_guardian::incus::error::{
    ClusterCertificateError, Fingerprint, IncusError, RequestError, SetupError,
};
use rbd_guardian::incus::events::{Listener, Signal};
use rbd_guardian::incus::options::IncusConfig;
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;

/// For what is to time out.
const SHORT: Duration = Duration::from_millis(500);
/// For what is not, on a machine under load.
const LONG: Duration = Duration::from_secs(20);

type Connection = TlsStream<TcpStream>;

/// A folder with a cluster's certificate and a guardian's.
struct Pki {
    folder: PathBuf,
    cluster: (CertificateDer<'static>, PrivateKeyDer<'static>),
}

impl Drop for Pki {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn pair(until: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    // Two certificates of one name would be taken for one another before their keys are looked at.
    static LAST: AtomicUsize = AtomicUsize::new(0);
    let name = format!("n{}", LAST.fetch_add(1, Ordering::Relaxed));
    let mut params = CertificateParams::new([name.clone()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn der((certificate, key): &(String, String)) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    (CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap(), key)
}

impl Pki {
    fn new() -> Self {
        Self::valid_until(2999)
    }

    fn valid_until(year: i32) -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("rbd-guardian-incus-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let (cluster, own) = (pair(year), pair(2999));
        fs::write(folder.join("cluster.crt"), &cluster.0).unwrap();
        fs::write(folder.join("own.crt"), &own.0).unwrap();
        fs::write(folder.join("own.key"), &own.1).unwrap();
        fs::set_permissions(folder.join("own.key"), Permissions::from_mode(0o600)).unwrap();
        Self { folder, cluster: der(&cluster) }
    }

    fn config(&self, endpoints: &[&Endpoint]) -> IncusConfig {
        IncusConfig {
            endpoints: endpoints.iter().map(|endpoint| (*endpoint).clone()).collect(),
            certificate: self.folder.join("own.crt"),
            key: self.folder.join("own.key"),
            cluster_certificate: self.folder.join("cluster.crt"),
            timeout: LONG,
        }
    }

    fn client(&self, endpoints: &[&Endpoint]) -> Client {
        Client::open(&self.config(endpoints)).unwrap()
    }

    /// As Incus is: any client certificate will do, its trust is the API's matter. `trusted`: the handshake's.
    fn server(&self, trusted: Option<&Path>) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(
            tokio_rustls::rustls::crypto::ring::default_provider(),
        ))
        .with_protocol_versions(&[&tokio_rustls::rustls::version::TLS13])
        .unwrap();
        let builder = if let Some(path) = trusted {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(path).unwrap()).unwrap();
            let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let (certificate, key) = (self.cluster.0.clone(), self.cluster.1.clone_key());
        TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![certificate], key).unwrap()))
    }
}

/// A server that does the same to every connection, and how many requests it has had.
struct Server {
    endpoint: Endpoint,
    asked: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F>(tls: TlsAcceptor, act: impl Fn(Connection, String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let act = Arc::new(act);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (tls, count, act) = (tls.clone(), Arc::clone(&count), Arc::clone(&act));
                tokio::spawn(async move {
                    let Ok(mut stream) = tls.accept(tcp).await else { return };
                    let Some(request) = request(&mut stream).await else { return };
                    count.fetch_add(1, Ordering::Relaxed);
                    act(stream, request).await;
                });
            }
        });
        Self { endpoint, asked }
    }

    /// One that gives every request this answer.
    async fn answers(pki: &Pki, answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        let send = move |mut stream: Connection, _| {
            let answer = Arc::clone(&answer);
            async move {
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        };
        Self::start(pki.server(None), send).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Head and body of a request.
async fn request(stream: &mut Connection) -> Option<String> {
    let mut read = Vec::new();
    loop {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
            return Some(text);
        }
    }
}

fn http(status: u16, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn sync(metadata: &Value) -> String {
    json!({"type": "sync", "status": "Success", "status_code": 200, "metadata": metadata}).to_string()
}

fn run(test: impl Future<Output = ()>) {
    block_on(test).unwrap();
}

async fn fails(client: &Client) -> IncusError {
    client.get::<Value>("/1.0").await.unwrap_err()
}

#[test]
fn an_answer_is_read_and_a_write_carries_its_tag() {
    run(async {
        let pki = Pki::new();
        let echo = |mut stream: Connection, request: String| async move {
            let answer = if request.starts_with("GET") {
                http(200, "ETag: abc\r\n", &sync(&json!({"config": null})))
            } else {
                let tag = request.lines().any(|line| line == "if-match: abc");
                let body = request.ends_with(r#"{"a":1}"#);
                if tag && body {
                    http(202, "", &json!({"type": "async", "operation": "/1.0/operations/7"}).to_string())
                } else {
                    http(
                        412,
                        "",
                        &json!({"type": "error", "error": "changed", "error_code": 412}).to_string(),
                    )
                }
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let server = Server::start(pki.server(Some(&pki.folder.join("own.crt"))), echo).await;
        let client = pki.client(&[&server.endpoint]);
        let (value, tag) = client.get_with_etag::<Value>("/1.0/projects/default").await.unwrap();
        assert_eq!((value, tag.as_str()), (json!({"config": null}), "abc"));
        let put = client.put("/1.0/projects/default", &json!({"a": 1}), Some("abc")).await;
        assert_eq!(put, Ok(Accepted::Operation("/1.0/operations/7".to_owned())));
        let error = client.put("/1.0/projects/default", &json!({"a": 1}), Some("abd")).await.unwrap_err();
        assert_eq!(error.cause, RequestError::Status { code: 412, message: "changed".to_owned() });
        assert!(error.surely_not_done());
    });
}

#[test]
fn every_wrong_answer_is_told_for_what_it_is() {
    run(async {
        let pki = Pki::new();
        let error =
            |code: u16, text: &str| json!({"type": "error", "error": text, "error_code": code}).to_string();
        let cases: Vec<(Vec<u8>, &str, bool)> = vec![
            (http(500, "", &error(500, "no leader")).into(), "answered 500: no leader", false),
            (http(200, "", &error(503, "starting")).into(), "answered 503: starting", false),
            (http(404, "", &error(404, "not found")).into(), "answered 404: not found", true),
            (http(403, "", &error(403, "not authorized")).into(), "incus config trust list", true),
            (http(502, "", "<h1>bad gateway</h1>").into(), "answered 502: <h1>bad gateway</h1>", false),
            (http(200, "", "<h1>hello</h1>").into(), "is this Incus?", false),
            (http(200, "", "").into(), "is not understood", false),
            (http(200, "", r#"{"type":"sync"}"#).into(), "no metadata", false),
            (http(302, "Location: /\r\n", &sync(&json!(1))).into(), "status 302", false),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n".into(), "is not understood", false),
            (vec![0xff; 4096], "is not understood", false),
            (Vec::new(), "the connection ended before the answer", false),
            ("HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{\"type\"".into(), "the connection ended", false),
        ];
        for (answer, says, not_done) in cases {
            let server = Server::answers(&pki, answer).await;
            let client = pki.client(&[&server.endpoint]);
            let error = fails(&client).await;
            assert!(error.to_string().contains(says), "{error}, not {says}");
            assert!(error.to_string().contains("GET /1.0") && error.endpoint == server.endpoint, "{error}");
            assert_eq!(error.surely_not_done(), not_done, "{error}");
            assert_eq!(server.asked(), 1);
        }
    });
}

#[test]
fn an_answer_without_end_is_not_kept() {
    run(async {
        let pki = Pki::new();
        let flood = |mut stream: Connection, _| async move {
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 0x0010_0000], b"\r\n"].concat();
            while stream.write_all(&chunk).await.is_ok() {}
        };
        let server = Server::start(pki.server(None), flood).await;
        let client = pki.client(&[&server.endpoint]).within(Duration::from_secs(120));
        assert_eq!(fails(&client).await.cause, RequestError::TooLarge { limit: 64 << 20 });
    });
}

/// The most this process held since it began, in MiB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() / 1024
}

/// Runs the named test in a process of its own, as what other tests hold would count. False in that process, which goes on with it.
fn ran_alone(name: &str) -> bool {
    const ALONE: &str = "GUARDIAN_TEST_ALONE";
    if env::var_os(ALONE).is_some() {
        return false;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("1 passed"), "{printed}");
    print!("{printed}");
    true
}

/// What is read as it comes has no end either: neither operations without end, nor a text of theirs, nor spaces.
#[test]
fn a_listing_without_end_is_not_kept() {
    if ran_alone("a_listing_without_end_is_not_kept") {
        return;
    }
    run(async {
        let pki = Pki::new();
        let item = br#"{"id":"","err":""},"#;
        let cases: [(&[u8], Vec<u8>); 3] = [
            (br#"{"type":"sync","metadata":{"running":["#, item.repeat(50_000)),
            (br#"{"type":"sync","metadata":{"running":[{"id":""#, vec![b'x'; 1 << 20]),
            (b"", vec![b' '; 1 << 20]),
        ];
        for (begin, piece) in cases {
            let sent = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&sent);
            let flood = move |mut stream: Connection, _| {
                let (piece, count) = (piece.clone(), Arc::clone(&count));
                async move {
                    let _ = stream.write_all(b"HTTP/1.1 200 X\r\n\r\n").await;
                    let _ = stream.write_all(begin).await;
                    while stream.write_all(&piece).await.is_ok() {
                        count.fetch_add(piece.len(), Ordering::Relaxed);
                    }
                }
            };
            let server = Server::start(pki.server(None), flood).await;
            let client = pki.client(&[&server.endpoint]).within(Duration::from_secs(120));
            let error = client.get_large::<Operations>("/1.0/operations").await;
            let error = error.map(|all| all.len()).unwrap_err();
            println!(
                "{}: {} MiB of {} MiB sent: {error}",
                begin.len(),
                peak(),
                sent.load(Ordering::Relaxed) >> 20
            );
            assert!(matches!(error.cause, RequestError::TooLarge { .. }), "{error}");
            assert!(peak() < 256, "{} MiB", peak());
        }
    });
}

/// Each item costs more than its bytes: a listing of the smallest items is refused for their number.
#[test]
fn a_listing_of_small_items_is_not_kept() {
    run(async {
        let pki = Pki::new();
        let items = r#"{"name":"","type":""},"#.repeat(2_000_000);
        let answer = format!(r#"{{"type":"sync","metadata":[{}]}}"#, items.trim_end_matches(','));
        let server = Server::answers(&pki, http(200, "", &answer)).await;
        let read = pki.client(&[&server.endpoint]).get::<Vec<Instance>>("/1.0/instances").await;
        let error = read.map(|all| all.len()).unwrap_err();
        println!("{} MiB sent: {error}", answer.len() >> 20);
        assert!(matches!(error.cause, RequestError::TooMany { .. }), "{error}");
    });
}

/// INV-9: what may have been heard is unknown.
#[test]
fn silence_is_unknown_only_once_the_request_has_left() {
    run(async {
        let pki = Pki::new();
        // TCP is up, TLS never comes.
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint: Endpoint = format!("https://{}", mute.local_addr().unwrap()).parse().unwrap();
        let error = fails(&pki.client(&[&endpoint]).within(SHORT)).await;
        assert_eq!(error.cause, RequestError::Late { timeout: SHORT, sent: false });
        assert!(error.surely_not_done());

        let hang = |stream: Connection, _| async move {
            std::future::pending::<()>().await;
            drop(stream);
        };
        let trickle = |mut stream: Connection, _| async move {
            let _ = stream.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000000\r\n\r\n").await;
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let hung = Server::start(pki.server(None), hang).await;
        let slow = Server::start(pki.server(None), trickle).await;
        for server in [&hung, &slow] {
            let error = fails(&pki.client(&[&server.endpoint]).within(SHORT)).await;
            assert_eq!(error.cause, RequestError::Late { timeout: SHORT, sent: true });
            assert!(!error.surely_not_done(), "{error}");
            assert_eq!(server.asked(), 1);
        }
    });
}

#[test]
fn only_the_pinned_certificate_will_do_and_only_while_it_is_valid() {
    run(async {
        let (pki, other, old) = (Pki::new(), Pki::new(), Pki::valid_until(2001));
        let server = Server::answers(&other, http(200, "", &sync(&json!(1)))).await;
        let error = fails(&pki.client(&[&server.endpoint])).await;
        let (found, pinned) = (Fingerprint::of(&other.cluster.0), Fingerprint::of(&pki.cluster.0));
        assert_eq!(
            error.cause,
            RequestError::Certificate(ClusterCertificateError::NotPinned { found, pinned })
        );
        assert!(error.surely_not_done() && error.to_string().contains("--force"), "{error}");
        assert_eq!(server.asked(), 0, "a stranger was asked");

        let server = Server::answers(&old, http(200, "", &sync(&json!(1)))).await;
        let error = fails(&old.client(&[&server.endpoint])).await;
        assert_eq!(error.cause, RequestError::Certificate(ClusterCertificateError::Expired));
        assert_eq!(server.asked(), 0);

        // Recovers as soon as the right one is back.
        let server = Server::answers(&pki, http(200, "", &sync(&json!(1)))).await;
        assert_eq!(pki.client(&[&server.endpoint]).get::<Value>("/1.0").await.unwrap(), json!(1));
    });
}

#[test]
fn a_refused_client_certificate_is_told_apart() {
    run(async {
        let (pki, other) = (Pki::new(), Pki::new());
        let server =
            Server::start(pki.server(Some(&other.folder.join("own.crt"))), |_, _| std::future::ready(()))
                .await;
        let error = fails(&pki.client(&[&server.endpoint])).await;
        let refused =
            matches!(&error.cause, RequestError::Certificate(ClusterCertificateError::OursRefused(_)));
        assert!(refused && error.surely_not_done(), "{error:?}");
        assert_eq!(server.asked(), 0);
    });
}

#[test]
fn the_next_member_is_asked_unless_it_could_be_done_twice() {
    run(async {
        let pki = Pki::new();
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            format!("https://{}", listener.local_addr().unwrap()).parse::<Endpoint>().unwrap()
        };
        let broken = Server::answers(&pki, http(500, "", "")).await;
        let good = Server::answers(&pki, http(200, "", &sync(&json!(7)))).await;
        let client = pki.client(&[&closed, &broken.endpoint, &good.endpoint]);
        let (value, here) = client.settle::<Value>("/1.0").await.unwrap();
        assert_eq!((value, here.endpoints()), (json!(7), [good.endpoint.clone()].as_slice()));
        assert_eq!((broken.asked(), good.asked()), (1, 1));
        // The one that answered is asked first from now on.
        client.get::<Value>("/1.0").await.unwrap();
        assert_eq!((broken.asked(), good.asked()), (1, 2));

        // A write goes on from who was never reached, but not from who may have heard it.
        let client = pki.client(&[&closed, &broken.endpoint, &good.endpoint]);
        let error = client.post("/1.0/instances/c1", &json!({})).await.unwrap_err();
        assert_eq!((error.endpoint.clone(), error.surely_not_done()), (broken.endpoint.clone(), false));
        assert_eq!((broken.asked(), good.asked()), (2, 2), "the write was heard twice");

        // What one member says of the request itself, all would say.
        let missing = Server::answers(&pki, http(404, "", "")).await;
        assert_eq!(fails(&pki.client(&[&missing.endpoint, &good.endpoint])).await.endpoint, missing.endpoint);
        assert_eq!(fails(&pki.client(&[&closed])).await.endpoint, closed);
    });
}

#[test]
fn files_of_no_use_are_told_with_what_to_do() {
    let pki = Pki::new();
    let endpoint: Endpoint = "https://127.0.0.1:1".parse().unwrap();
    let config = pki.config(&[&endpoint]);
    let says = |config: &IncusConfig| Client::open(config).unwrap_err().to_string();
    assert_eq!(Client::open(&pki.config(&[])).unwrap_err(), SetupError::NoEndpoints);
    fs::set_permissions(&config.key, Permissions::from_mode(0o640)).unwrap();
    assert!(says(&config).contains("mode 0640") && says(&config).contains("chmod 600"), "{}", says(&config));
    fs::set_permissions(&config.key, Permissions::from_mode(0o600)).unwrap();
    fs::write(&config.certificate, "x").unwrap();
    assert!(says(&config).contains("own.crt contains no certificate"), "{}", says(&config));
    fs::write(&config.certificate, pair(2999).0).unwrap();
    assert!(says(&config).contains("cannot be used"), "a key of another certificate: {}", says(&config));
    fs::remove_file(&config.cluster_certificate).unwrap();
    assert!(says(&config).contains("incus enroll TOKEN"), "{}", says(&config));
}

fn token(fingerprint: &Fingerprint, addresses: &[&Endpoint], expires_at: &str) -> String {
    let addresses: Vec<_> = addresses.iter().map(|at| at.to_string().replace("https://", "")).collect();
    let token = json!({"client_name": "guardian", "fingerprint": fingerprint.to_string(), "addresses": addresses,
        "secret": "s", "expires_at": expires_at});
    BASE64.encode(token.to_string().as_bytes())
}

#[test]
fn enrolment_refuses_what_is_not_the_tokens() {
    run(async {
        let (pki, other) = (Pki::new(), Pki::new());
        let server = Server::answers(&other, http(200, "", &sync(&json!({"auth": "untrusted"})))).await;
        let config = IncusConfig {
            certificate: pki.folder.join("new.crt"),
            key: pki.folder.join("new.key"),
            cluster_certificate: pki.folder.join("new-cluster.crt"),
            ..pki.config(&[])
        };
        let now: Timestamp = "2026-08-24T12:00:00Z".parse().unwrap();
        let attempt =
            async |text: &str| enroll(&Token::parse(text).unwrap(), &config, false, now).await.unwrap_err();

        let own = Fingerprint::of(&pki.cluster.0);
        let expired = attempt(&token(&own, &[&server.endpoint], "2026-08-24T14:00:00+02:00")).await;
        assert!(matches!(expired, EnrollError::Expired(at) if at == now), "{expired}");
        assert!(!config.key.exists(), "an expired token made a key");

        let never = "0001-01-01T00:00:00Z";
        let error = attempt(&token(&own, &[&server.endpoint], never)).await;
        let EnrollError::NoAddress(why) = &error else { panic!("{error}") };
        let found = Fingerprint::of(&other.cluster.0);
        assert_eq!(
            why[0].cause,
            RequestError::Certificate(ClusterCertificateError::NotPinned { found, pinned: own.clone() })
        );
        assert!(!config.cluster_certificate.exists() && server.asked() == 0);
        assert_eq!(fs::metadata(&config.key).unwrap().permissions().mode() & 0o777, 0o600);

        // A cluster that is known is not exchanged for another without a word.
        let known = IncusConfig { cluster_certificate: pki.folder.join("cluster.crt"), ..config.clone() };
        let theirs = token(&Fingerprint::of(&other.cluster.0), &[&server.endpoint], never);
        let error = enroll(&Token::parse(&theirs).unwrap(), &known, false, now).await.unwrap_err();
        assert!(
            matches!(error, EnrollError::InTheWay { .. }) && error.to_string().contains("--force"),
            "{error}"
        );
        fs::remove_file(&config.certificate).unwrap();
        let error = attempt(&theirs).await;
        assert!(matches!(&error, EnrollError::InTheWay { path, .. } if *path == config.key), "{error}");
        for bad in
            ["", "x", "e30=", &BASE64.encode(b"{\"fingerprint\":\"00\",\"addresses\":[],\"secret\":\"\"}")]
        {
            let error = Token::parse(bad).unwrap_err();
            assert!(error.to_string().contains("incus config trust add"), "{error}");
        }
    });
}

#[test]
fn who_cannot_be_listened_to_is_told_once_and_tried_again() {
    run(async {
        let pki = Pki::new();
        let server =
            Server::answers(&pki, http(403, "", r#"{"type":"error","error":"no","error_code":403}"#)).await;
        let mut listener = Listener::start(&pki.client(&[&server.endpoint]));
        let Signal::Lost { endpoint, why } = listener.next().await else { panic!("no loss") };
        assert_eq!(
            (endpoint, why.cause),
            (server.endpoint.clone(), RequestError::Forbidden("no".to_owned()))
        );
        let again = within(LONG, async {
            while server.asked() < 3 {
                tokio::task::yield_now().await;
            }
        });
        again.await.expect("it is not tried again");
        assert!(within(SHORT, listener.next()).await.is_err(), "told again");
    });
}

#[test]
fn every_certificate_of_the_file_is_one_that_the_cluster_is_known_by() {
    run(async {
        let (pki, next) = (Pki::new(), Pki::new());
        let file = pki.folder.join("cluster.crt");
        let (ours, theirs) =
            [&file, &next.folder.join("cluster.crt")].map(|f| fs::read_to_string(f).unwrap()).into();
        let rotated = Server::answers(&next, http(200, "", &sync(&json!(1)))).await;
        let before = Server::answers(&pki, http(200, "", &sync(&json!(1)))).await;

        // Announced before it is in use.
        fs::write(&file, format!("{ours}{theirs}")).unwrap();
        for server in [&before, &rotated] {
            assert_eq!(pki.client(&[&server.endpoint]).get::<Value>("/1.0").await.unwrap(), json!(1));
        }
        // Added after it is in use, without a reload.
        fs::write(&file, &ours).unwrap();
        let client = pki.client(&[&rotated.endpoint]);
        let told = fails(&client).await.to_string();
        assert!(told.contains("incus.cluster_certificate") && told.contains("cluster.crt"), "{told}");
        fs::write(&file, format!("{ours}{theirs}")).unwrap();
        assert_eq!(client.get::<Value>("/1.0").await.unwrap(), json!(1));
        // A file that is of no use for a moment takes nothing away.
        let client = pki.client(&[&rotated.endpoint]);
        fs::write(&file, "").unwrap();
        assert_eq!(client.get::<Value>("/1.0").await.unwrap(), json!(1));
        // One that was taken out counts until another one is looked for.
        fs::write(&file, &ours).unwrap();
        let client = pki.client(&[&rotated.endpoint]);
        assert!(matches!(
            fails(&client).await.cause,
            RequestError::Certificate(ClusterCertificateError::NotPinned { .. })
        ));
    });
}

#[test]
fn a_working_key_is_replaced_only_once_the_new_one_is_trusted() {
    run(async {
        let pki = Pki::new();
        let config = pki.config(&[]);
        let files = [&config.key, &config.certificate, &config.cluster_certificate];
        let content = || files.map(|file| fs::read(file).unwrap());
        let before = content();
        let now: Timestamp = "2026-08-24T12:00:00Z".parse().unwrap();
        let own = Fingerprint::of(&pki.cluster.0);
        let trusted = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let takes = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (knows, accepts) = (Arc::clone(&trusted), Arc::clone(&takes));
        let server = Server::start(pki.server(None), move |mut stream, request| {
            let posts = request.starts_with("POST");
            let refused = r#"{"type":"error","error":"no","error_code":403}"#;
            let answer = if posts && !accepts.load(Ordering::Relaxed) {
                http(403, "", refused)
            } else {
                knows.fetch_or(posts, Ordering::Relaxed);
                let auth = if knows.load(Ordering::Relaxed) { "trusted" } else { "untrusted" };
                http(200, "", &sync(&json!({"auth": auth, "environment": {"server_clustered": false}})))
            };
            async move {
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        })
        .await;
        let good = token(&own, &[&server.endpoint], "0001-01-01T00:00:00Z");
        let attempt = async |text: &str| enroll(&Token::parse(text).unwrap(), &config, true, now).await;
        // Refused, unreachable, of another cluster: what works goes on to work.
        assert!(matches!(attempt(&good).await.unwrap_err(), EnrollError::Refused { .. }));
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = format!("https://{closed}").parse().unwrap();
        let unreachable = token(&own, &[&nobody], "0001-01-01T00:00:00Z");
        assert!(matches!(attempt(&unreachable).await.unwrap_err(), EnrollError::NoAddress(_)));
        let other = token(&Fingerprint::of(b"another"), &[&server.endpoint], "0001-01-01T00:00:00Z");
        assert!(matches!(attempt(&other).await.unwrap_err(), EnrollError::NoAddress(_)));
        assert!(content() == before, "a file was replaced in vain");
        takes.store(true, Ordering::Relaxed);
        assert!(!attempt(&good).await.unwrap().already);
        assert!(content()[..2] != before[..2], "a new key, once it is trusted");
        assert_eq!(fs::metadata(&config.key).unwrap().permissions().mode() & 0o777, 0o600);
        let left: Vec<_> = fs::read_dir(&pki.folder).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    });
}
