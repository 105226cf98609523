//! Asking members.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::select_ok;
use hyper::Method;
use hyper::body::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::connection::{self, Stream};
use super::endpoint::Endpoint;
use super::error::{IncusError, RequestError, SetupError};
use super::exchange::{ApiAnswer, ApiRequest, exchange, exchange_large};
use super::tls::Tls;
use crate::deadline::within;
use crate::incus::options::IncusConfig;

/// Asks one of several members, whichever answers; or one alone, see [`Client::on`].
#[derive(Debug, Clone)]
pub struct Client {
    /// At least one.
    endpoints: Arc<[Endpoint]>,
    /// Which of them answered last: asking a dead one first would cost the whole timeout each time.
    answered: Arc<AtomicUsize>,
    tls: Tls,
    timeout: Duration,
}

/// A write that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    Done,
    /// And goes on as this operation (`/1.0/operations/ID`).
    Operation(String),
}

impl Client {
    /// Reads the files the configuration names. They are read again only by another `open`.
    ///
    /// # Errors
    /// No endpoint is configured, or a file cannot be used.
    pub fn open(config: &IncusConfig) -> Result<Self, SetupError> {
        if config.endpoints.is_empty() {
            return Err(SetupError::NoEndpoints);
        }
        let remote = config.endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Https { .. }));
        let tls = if remote {
            Tls::open(&config.certificate, &config.key, &config.cluster_certificate)?
        } else {
            Tls::default()
        };
        Ok(Self::new(config.endpoints.clone(), tls, config.timeout))
    }

    pub(super) fn new(endpoints: Vec<Endpoint>, tls: Tls, timeout: Duration) -> Self {
        Self { endpoints: endpoints.into(), answered: Arc::default(), tls, timeout }
    }

    /// The error of an answer to `GET path` from the first endpoint that has a shape or a content which Incus never sends.
    pub(super) fn misunderstood(&self, path: &str, what: String) -> IncusError {
        let endpoint = self.endpoints()[0].clone();
        IncusError { endpoint, request: format!("GET {path}"), cause: RequestError::Garbage(what) }
    }

    /// The endpoints that requests go to.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Bounds each request.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// A client of one member alone, which need not be among the configured endpoints.
    #[must_use]
    pub fn on(&self, endpoint: &Endpoint) -> Self {
        Self { endpoints: [endpoint.clone()].into(), answered: Arc::default(), ..self.clone() }
    }

    /// The same with another deadline around connecting, TLS, request and answer. Of each endpoint, where several
    /// are asked.
    #[must_use]
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// Reads an object or a list.
    ///
    /// # Errors
    /// The last endpoint's, when none answered.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, IncusError> {
        Ok(self.read(path).await?.0)
    }

    /// Reads from whoever answers first: the member that answered last is asked, and when it has none within `patience`,
    /// all are. For what must not wait for one that is lost.
    ///
    /// # Errors
    /// The last endpoint's, when none answered.
    pub async fn first<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, IncusError> {
        let usual = &self.endpoints[self.answered.load(Ordering::Relaxed)];
        let mut asked = Box::pin(self.on(usual).into_read(path.to_owned()));
        if let Ok(Ok(object)) = within(patience, &mut asked).await {
            return Ok(object);
        }
        let all = self.endpoints.iter().enumerate().map(|(number, endpoint)| {
            let asked = self.on(endpoint).into_read(path.to_owned());
            Box::pin(async move { Ok((number, asked.await?)) })
        });
        let ((number, object), _) = select_ok(all).await?;
        self.answered.store(number, Ordering::Relaxed);
        Ok(object)
    }

    async fn into_read<T: DeserializeOwned>(self, path: String) -> Result<T, IncusError> {
        self.get(&path).await
    }

    /// Reads what may be large and is hardly used: the answer is never held as a whole.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_large<T>(&self, path: &str) -> Result<T, IncusError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let ask = async |endpoint: &Endpoint| {
            let (sent, body) = (AtomicBool::new(false), Bytes::new());
            let question =
                ApiRequest { method: Method::GET, path, authority: endpoint.authority(), body, etag: None };
            let asked = within(self.timeout, async {
                let stream = self.connect(endpoint).await?;
                sent.store(true, Ordering::Relaxed);
                exchange_large(stream, question).await
            });
            let late = |_| RequestError::Late { timeout: self.timeout, sent: sent.load(Ordering::Relaxed) };
            asked.await.map_err(late)?
        };
        Ok(self.any(&format!("GET {path}"), IncusError::is_the_endpoints, ask).await?.0)
    }

    /// Reads, and stays with the member that answered.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn settle<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Self), IncusError> {
        let (object, _, endpoint) = self.read(path).await?;
        Ok((object, self.on(endpoint)))
    }

    /// Reads an object and the tag that makes a later write conditional on its being unchanged.
    ///
    /// # Errors
    /// As [`Client::get`]; and an answer without a tag is garbage.
    pub async fn get_with_etag<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String), IncusError> {
        let (object, answer, endpoint) = self.read(path).await?;
        let etag = answer.etag.ok_or_else(|| IncusError {
            endpoint: endpoint.clone(),
            request: format!("GET {path}"),
            cause: RequestError::Garbage("it has no ETag".to_owned()),
        })?;
        Ok((object, etag))
    }

    /// Replaces an object, if it still has this tag (412 otherwise).
    ///
    /// # Errors
    /// [`IncusError::surely_not_done`] tells whether it has to be read back.
    pub async fn put<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        etag: Option<&str>,
    ) -> Result<Accepted, IncusError> {
        self.write(Method::PUT, path, body, etag).await
    }

    /// Merges into an object. Mind that Incus merges a project's configuration into nothing (docs/facts/incus.md#writing-configuration).
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn patch<B: Serialize>(
        &self,
        path: &str,
        body: &B,
        etag: Option<&str>,
    ) -> Result<Accepted, IncusError> {
        self.write(Method::PATCH, path, body, etag).await
    }

    /// Creates or does something.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn post<B: Serialize>(&self, path: &str, body: &B) -> Result<Accepted, IncusError> {
        self.write(Method::POST, path, body, None).await
    }

    /// A connection for something other than requests.
    pub(super) async fn connect(&self, endpoint: &Endpoint) -> Result<Stream, RequestError> {
        connection::connect(endpoint, &self.tls).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<(T, ApiAnswer, &Endpoint), IncusError> {
        let ask = async |endpoint: &Endpoint| {
            let answer = self.ask(endpoint, Method::GET, path, Bytes::new(), None).await?;
            Ok((answer.metadata()?, answer))
        };
        let ((object, answer), endpoint) =
            self.any(&format!("GET {path}"), IncusError::is_the_endpoints, ask).await?;
        Ok((object, answer, endpoint))
    }

    async fn write<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: &B,
        etag: Option<&str>,
    ) -> Result<Accepted, IncusError> {
        let request = format!("{method} {path}");
        let body = serde_json::to_vec(body).map(Bytes::from);
        let ask = async |endpoint: &Endpoint| {
            let body = body.as_ref().map_err(|error| RequestError::Garbage(error.to_string()))?.clone();
            self.ask(endpoint, method.clone(), path, body, etag).await
        };
        // Once it may have been heard, another member must not hear it as well.
        let next = |error: &IncusError| error.surely_not_done() && error.is_the_endpoints();
        let (answer, _) = self.any(&request, next, ask).await?;
        Ok(answer.operation.map_or(Accepted::Done, Accepted::Operation))
    }

    /// Asks one after another, first the one that answered last, until one has an answer that counts.
    async fn any<T>(
        &self,
        request: &str,
        next: impl Fn(&IncusError) -> bool,
        ask: impl AsyncFn(&Endpoint) -> Result<T, RequestError>,
    ) -> Result<(T, &Endpoint), IncusError> {
        let mut at = self.answered.load(Ordering::Relaxed);
        let mut left = self.endpoints.len();
        loop {
            let endpoint = &self.endpoints[at];
            match ask(endpoint).await {
                Ok(answer) => {
                    self.answered.store(at, Ordering::Relaxed);
                    return Ok((answer, endpoint));
                }
                Err(cause) => {
                    let error = IncusError { endpoint: endpoint.clone(), request: request.to_owned(), cause };
                    left -= 1;
                    if left == 0 || !next(&error) {
                        return Err(error);
                    }
                }
            }
            at = (at + 1) % self.endpoints.len();
        }
    }

    async fn ask(
        &self,
        endpoint: &Endpoint,
        method: Method,
        path: &str,
        body: Bytes,
        etag: Option<&str>,
    ) -> Result<ApiAnswer, RequestError> {
        let sent = AtomicBool::new(false);
        let question = ApiRequest { method, path, authority: endpoint.authority(), body, etag };
        let asked = within(self.timeout, async {
            let stream = self.connect(endpoint).await?;
            sent.store(true, Ordering::Relaxed);
            exchange(stream, question).await
        });
        let late = |_| RequestError::Late { timeout: self.timeout, sent: sent.load(Ordering::Relaxed) };
        asked.await.map_err(late)?
    }
}
