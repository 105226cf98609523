//! An Incus that does everything wrong at once: it floods, it never ends an answer, its name is never resolved.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::TLS13;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::Body;

/// What the unit allows between two signs of life (`WatchdogSec=`).
const WATCHED: Duration = Duration::from_secs(15);
/// It needs a second; a machine that does ten times what it can, some more.
const STOPS: Duration = Duration::from_secs(15);
/// How long it is flooded at least.
const FLOODED: Duration = Duration::from_secs(8);
const MEMBERS: usize = 3;
const BURST: u32 = 16 * 1024;
/// Of a daemon that is flooded.
const MIB: usize = 128;

/// What it sends to whoever listens for events.
enum Flood {
    /// The same short event, as fast as it is taken.
    Events,
    /// One message that never ends.
    Endless,
}

/// Its members. They end with the test program.
struct FloodingIncus {
    ports: Vec<u16>,
    sent: Arc<AtomicUsize>,
}

impl FloodingIncus {
    fn start(dir: &Path, flood: Flood) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["cluster".to_owned()]).unwrap().self_signed(&key).unwrap();
        for name in ["cluster.crt", "own.crt"] {
            fs::write(dir.join(name), certificate.pem()).unwrap();
        }
        fs::write(dir.join("own.key"), key.serialize_pem()).unwrap();
        fs::set_permissions(dir.join("own.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let pair = (
            CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap(),
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        );
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_no_client_auth();
        let tls = TlsAcceptor::from(Arc::new(config.with_single_cert(vec![pair.0], pair.1).unwrap()));
        let sent = Arc::new(AtomicUsize::new(0));
        let flood = Arc::new(flood);
        let member = |_| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let port = listener.local_addr().unwrap().port();
            let (tls, count, flood) = (tls.clone(), Arc::clone(&sent), Arc::clone(&flood));
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let listener = TcpListener::from_std(listener).unwrap();
                    loop {
                        let (tcp, _) = listener.accept().await.unwrap();
                        let (tls, flood, count) = (tls.clone(), Arc::clone(&flood), Arc::clone(&count));
                        tokio::spawn(async move { serve(&tls, tcp, &flood, &count).await });
                    }
                });
            });
            port
        };
        let ports = (0..MEMBERS).map(member).collect();
        Self { ports, sent }
    }

    fn table(&self, dir: &Path, host: &str) -> String {
        let path = |name: &str| dir.join(name);
        let (own, key, cluster) = (path("own.crt"), path("own.key"), path("cluster.crt"));
        let endpoints: Vec<_> = self.ports.iter().map(|port| format!("\"https://{host}:{port}\"")).collect();
        let endpoints = endpoints.join(", ");
        format!(
            "[incus]\nendpoints = [{endpoints}]\ncertificate = {own:?}\nkey = {key:?}\ncluster_certificate = {cluster:?}\n"
        )
    }
}

/// More events than are remembered, as frames.
fn events() -> Vec<u8> {
    let frame = |number: u32| {
        let event = format!(
            "{{\"type\":\"lifecycle\",\"timestamp\":\"2026-11-28T08:00:00.{number:09}Z\",\"location\":\"n1\",\"metadata\":{{\"action\":\"instance-updated\",\"source\":\"/1.0/instances/c{number}\"}}}}"
        );
        let length = u16::try_from(event.len()).unwrap().to_be_bytes();
        [&[0x81, 126], length.as_slice(), event.as_bytes()].concat()
    };
    (0..BURST).flat_map(frame).collect()
}

/// Until the other side is gone.
async fn serve(
    tls: &TlsAcceptor,
    tcp: tokio::net::TcpStream,
    flood: &Flood,
    sent: &AtomicUsize,
) -> Option<()> {
    let mut stream = tls.accept(tcp).await.ok()?;
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        (stream.read_buf(&mut read).await.ok()? > 0).then_some(())?;
    }
    let text = String::from_utf8(read).ok()?;
    let key = text.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "))?;
    let accept = derive_accept_key(key.as_bytes());
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ";
    stream.write_all(format!("{head}{accept}\r\n\r\n").as_bytes()).await.ok()?;
    match flood {
        Flood::Events => {
            let burst = events();
            loop {
                stream.write_all(&burst).await.ok()?;
                sent.fetch_add(BURST as usize, Ordering::Relaxed);
            }
        }
        Flood::Endless => {
            // As long as a frame may be.
            stream
                .write_all(&[&[0x81, 127], (u64::MAX >> 1).to_be_bytes().as_slice()].concat())
                .await
                .ok()?;
            let piece = vec![b' '; 1 << 16];
            loop {
                stream.write_all(&piece).await.ok()?;
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The service manager's socket.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn bind(dir: &Path) -> Self {
        let socket = UnixDatagram::bind(dir.join("notify")).unwrap();
        socket.set_read_timeout(Some(WATCHED)).unwrap();
        Self { socket }
    }

    /// Hears for so long. The longest silence before a sign of life, and how many there were.
    fn hears(&self, time: Duration) -> (Duration, u32) {
        let began = Instant::now();
        let (mut last, mut longest, mut count) = (began, Duration::ZERO, 0);
        let mut note = [0; 4096];
        while began.elapsed() < time || (count == 0 && began.elapsed() < WATCHED) {
            let length = self.socket.recv(&mut note).unwrap_or(0);
            longest = longest.max(last.elapsed());
            if String::from_utf8_lossy(&note[..length]).contains("WATCHDOG=1") {
                last = Instant::now();
                count += 1;
            }
        }
        (longest, count)
    }
}

/// What the kernel says of a process.
fn number(pid: u32, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
}

/// It gives its signs of life in time, answers, stays small, and ends when it is asked.
fn stands(name: &str, flood: Flood) {
    let mut body = Body::new(name);
    let incus = FloodingIncus::start(&body.dir, flood);
    body.configure(&incus.table(&body.dir, "127.0.0.1"));
    let manager = Manager::bind(&body.dir);
    let words = body.words();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).env_remove("JOURNAL_STREAM").env("NOTIFY_SOCKET", body.dir.join("notify"));
    command.env("WATCHDOG_USEC", WATCHED.as_micros().to_string());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(body.dir.join("log")).unwrap());
    body.child = Some(command.spawn().unwrap());
    let pid = body.child.as_ref().unwrap().id();
    body.until("it is flooded", |_| incus.sent.load(Ordering::Relaxed) > 1000);

    let before = incus.sent.load(Ordering::Relaxed);
    let (silence, signs) = manager.hears(FLOODED);
    let taken = incus.sent.load(Ordering::Relaxed) - before;
    println!("{name}: {taken} taken, {signs} signs of life, {silence:.1?} between two at most");
    assert!(silence < WATCHED / 3 && signs > 0, "{silence:?} without one of {signs} signs of life");
    assert!(taken > 0, "no flood");
    let asked = Instant::now();
    body.until("it answers", |status| status["stage"] == "connecting");
    assert!(asked.elapsed() < STOPS, "{:?}", asked.elapsed());
    let peak = number(pid, "VmHWM") / 1024;
    println!("{name}: {peak} MiB at most");
    assert!(peak < MIB, "{peak} MiB");
    let asked = Instant::now();
    assert!(body.ends().success());
    assert!(asked.elapsed() < STOPS, "{:?}", asked.elapsed());
    let log = fs::read_to_string(body.dir.join("log")).unwrap();
    let lines = log.lines().count();
    assert!(lines < 40, "{lines} lines of log\n{log}");
}

#[test]
fn a_flood_of_events_keeps_neither_systemd_nor_sigterm_waiting() {
    stands("flood", Flood::Events);
}

#[test]
fn a_message_without_end_takes_no_memory_and_no_time() {
    stands("endless", Flood::Endless);
}

/// A name server that takes questions and answers none keeps a thread for each question.
#[test]
fn a_name_that_is_never_resolved_keeps_few_threads_and_nobody_waiting() {
    let mut body = Body::new("names");
    let incus = FloodingIncus::start(&body.dir, Flood::Events);
    body.configure(&incus.table(&body.dir, "member.example.org"));
    fs::write(body.dir.join("resolv.conf"), "nameserver 127.0.0.1\noptions timeout:30 attempts:5\n").unwrap();
    // In a network of its own, where somebody listens at the port and never reads.
    let script = "ip link set lo up; mount --bind \"$0\" /etc/resolv.conf; \
                  exec python3 -c 'import os,socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind((\"127.0.0.1\",53)); os.set_inheritable(s.fileno(), True); os.execvp(sys.argv[1], sys.argv[1:])' \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "sh", "-c", script])
        .arg(body.dir.join("resolv.conf"))
        .args(body.words());
    command.env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stdout(Stdio::null());
    body.child = Some(command.stderr(fs::File::create(body.dir.join("log")).unwrap()).spawn().unwrap());
    let pid = body.child.as_ref().unwrap().id();
    body.until("it tells that no monitor answers", |status| status["trouble"].is_string());
    let began = Instant::now();
    let mut most = 0;
    while began.elapsed() < Duration::from_secs(20) {
        most = most.max(number(pid, "Threads"));
        body.until("it answers", |status| status["stage"] == "connecting");
    }
    println!("names: {most} threads at most");
    let asked = Instant::now();
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGHUP).unwrap();
    assert!(body.ends().success());
    assert!(asked.elapsed() < STOPS, "{:?}", asked.elapsed());
    // A name server takes 150 s of each question here, and each member is asked for each 10 s.
    assert!(most < 96, "{most} threads");
}
