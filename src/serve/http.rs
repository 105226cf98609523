//! Connections and what is asked over them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::clock;
use crate::deadline::rest;
use crate::serve::events::{EventStream, Wants};
use crate::serve::published::Published;
use crate::serve::{Tell, page, ready};

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 256;
/// Of these, streams of events.
const STREAMS: usize = 32;
/// How long the question may take, and all of it.
const ASKED_WITHIN: Duration = Duration::from_secs(5);
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// A stream of events ends then; who reads it connects again.
const STREAM_LASTS: Duration = Duration::from_secs(900);
/// Before an address is tried again that cannot be used, and before the next connection after one that failed.
const RETRY: Duration = Duration::from_secs(2);
const AFTER_FAILURE: Duration = Duration::from_millis(100);
/// A picture that is older was left by a loop that hangs.
pub(crate) const STALE: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What every connection has.
#[derive(Debug, Clone)]
struct Served {
    published: watch::Receiver<Arc<Published>>,
    streams: Arc<Semaphore>,
}

pub(crate) async fn serve(listen: SocketAddr, published: watch::Receiver<Arc<Published>>, tell: Tell) {
    let Some(listener) = bind(listen, &published, tell).await else { return };
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let served = Served { published, streams: Arc::new(Semaphore::new(STREAMS)) };
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let mut ended = served.published.clone();
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The daemon ends.
            () = closed(&mut ended) => return,
        };
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, served.clone(), place))),
            // Too many open files, for one.
            Err(_) => rest(AFTER_FAILURE).await,
        }
    }
}

async fn closed(published: &mut watch::Receiver<Arc<Published>>) {
    while published.changed().await.is_ok() {}
}

async fn bind(
    listen: SocketAddr,
    published: &watch::Receiver<Arc<Published>>,
    tell: Tell,
) -> Option<TcpListener> {
    let mut told = false;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => {
                tell(true, &format!("serves metrics and the status page at http://{listen}/"));
                return Some(listener);
            }
            Err(error) if !told => {
                tell(false, &format!("cannot serve at {listen}: {error} (serve.listen); it is tried again"));
                told = true;
            }
            Err(_) => {}
        }
        rest(RETRY).await;
        if published.has_changed().is_err() {
            return None;
        }
    }
}

/// One question, one answer: so that no reader keeps a place for long.
async fn connection(stream: TcpStream, served: Served, _place: OwnedSemaphorePermit) {
    let streams = Arc::new(AtomicBool::new(false));
    let is_stream = Arc::clone(&streams);
    let service = service_fn(move |request| {
        let answer = answer(&request, &served, &is_stream);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(ASKED_WITHIN)
        .keep_alive(false)
        .max_buf_size(16 * 1024);
    let life = async {
        rest(ANSWERED_WITHIN).await;
        if streams.load(Ordering::Relaxed) {
            rest(STREAM_LASTS).await;
        }
    };
    tokio::select! {
        _ = builder.serve_connection(TokioIo::new(stream), service) => {}
        () = life => {}
    }
}

fn answer(request: &Request<Incoming>, served: &Served, is_stream: &AtomicBool) -> Response<Body> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let published = Arc::clone(&served.published.borrow());
    let age = clock::boot().saturating_sub(published.boot);
    let is_alive = !published.own.is_null() && age < STALE;
    match request.uri().path() {
        "/" => html(&published, is_alive, age),
        "/metrics" => body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", published.metrics()),
        "/healthz" if is_alive => text(StatusCode::OK, "alive\n"),
        "/healthz" => text(StatusCode::SERVICE_UNAVAILABLE, "the event loop has published nothing lately\n"),
        "/readyz" => readiness(&published, is_alive),
        "/leader" if is_alive && published.leads => text(StatusCode::OK, "leads\n"),
        "/leader" => text(StatusCode::SERVICE_UNAVAILABLE, "does not lead\n"),
        "/api/v1/status" => body(StatusCode::OK, "application/json", published.status_text()),
        "/api/v1/events" => events(request, served, is_stream),
        _ => {
            text(StatusCode::NOT_FOUND, "/ /metrics /healthz /readyz /leader /api/v1/status /api/v1/events\n")
        }
    }
}

fn readiness(published: &Published, is_alive: bool) -> Response<Body> {
    let checks = ready::checks(published);
    let ready = is_alive && checks.iter().all(|check| check.ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    body(status, "application/json", Bytes::from(json!({"ready": ready, "checks": checks}).to_string()))
}

fn events(request: &Request<Incoming>, served: &Served, is_stream: &AtomicBool) -> Response<Body> {
    let Ok(place) = Arc::clone(&served.streams).try_acquire_owned() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "enough streams of events are open already\n");
    };
    is_stream.store(true, Ordering::Relaxed);
    let wants = if request.uri().query() == Some("page") { Wants::Page } else { Wants::Status };
    let after = request.headers().get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let stream = EventStream::new(served.published.clone(), wants, after, place);
    Response::builder()
        .header(CONTENT_TYPE, "text/event-stream")
        .header(CACHE_CONTROL, "no-store")
        .body(stream.body())
        .unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, ""))
}

fn html(published: &Published, is_alive: bool, age: Duration) -> Response<Body> {
    let content = if is_alive { published.page() } else { Bytes::from(page::stale(published, age)) };
    let mut response = body(StatusCode::OK, "text/html; charset=utf-8", content);
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(page::policy()) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    body(status, "text/plain; charset=utf-8", Bytes::from_static(text.as_bytes()))
}

fn body(status: StatusCode, kind: &'static str, content: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(content).boxed_unsync());
    *response.status_mut() = status;
    for (name, value) in
        [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-store")] as [(HeaderName, &'static str); 2]
    {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
