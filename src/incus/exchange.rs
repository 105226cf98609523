//! One request and its answer over one connection.

use std::error::Error as _;
use std::io::{self, BufReader};
use std::pin::pin;

use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, ETAG, HOST, IF_MATCH, USER_AGENT};
use hyper::http::response::Parts;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::connection::Stream;
use super::error::{ClusterCertificateError, RequestError};
use super::tls;

/// The longest answer: 10,000 instances with all their configuration stay well below.
pub(super) const LONGEST: usize = 64 * 1024 * 1024;
/// The longest answer that is read as it comes: commands in instances bring megabytes each.
const LARGEST: usize = 512 * 1024 * 1024;
/// How much of such an answer is parsed, texts cut: 10,000 operations.
const PARSED: usize = 8 * 1024 * 1024;
/// The longest text of such an answer: what is used of it are names and states.
const LONGEST_TEXT: usize = 16 * 1024;
/// The most items of an answer, of lists and of objects: the smallest take ten times their bytes. 100,000 volumes have fewer.
const ITEMS: usize = 2_000_000;
/// How much of what is no JSON is worth repeating.
const EXCERPT: usize = 200;

/// What is asked.
pub(super) struct ApiRequest<'a> {
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) authority: String,
    pub(super) body: Bytes,
    pub(super) etag: Option<&'a str>,
}

/// A successful answer.
#[derive(Debug)]
pub(super) struct ApiAnswer {
    pub(super) etag: Option<String>,
    pub(super) body: Bytes,
    /// The operation that goes on behind an asynchronous one.
    pub(super) operation: Option<String>,
}

/// Incus's envelope around every answer (docs/facts/incus.md#the-api).
#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_code: Option<u16>,
    metadata: Option<T>,
}

impl ApiAnswer {
    /// What it is about.
    pub(super) fn metadata<T: DeserializeOwned>(&self) -> Result<T, RequestError> {
        let envelope: Envelope<T> =
            serde_json::from_slice(&self.body).map_err(|e| RequestError::Garbage(e.to_string()))?;
        envelope.metadata.ok_or_else(|| RequestError::Garbage("it has no metadata".to_owned()))
    }
}

/// Sends a question and reads its answer. Bounded in time by the caller, in size here.
pub(super) async fn exchange(stream: Stream, question: ApiRequest<'_>) -> Result<ApiAnswer, RequestError> {
    converse(stream, question, async |head, body| {
        let body = collected(body).await?;
        let etag = head.headers.get(ETAG).and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        judge(head.status.as_u16(), etag, body)
    })
    .await
}

/// Like [`exchange`] for a large answer of which little is used: it is parsed as it arrives and never held whole.
pub(super) async fn exchange_large<T: DeserializeOwned + Send + 'static>(
    stream: Stream,
    question: ApiRequest<'_>,
) -> Result<T, RequestError> {
    converse(stream, question, async |head, mut body: Incoming| {
        let status = head.status.as_u16();
        if status != 200 {
            return Err(judge(status, None, collected(body).await?)
                .err()
                .unwrap_or(RequestError::Garbage(format!("status {status}"))));
        }
        let (sender, pieces) = tokio::sync::mpsc::channel(4);
        let reading = tokio::task::spawn_blocking(move || {
            serde_json::from_reader::<_, Envelope<T>>(BufReader::new(Pieces::of(pieces)))
        });
        let mut seen = 0;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| lost(&error))?.into_data() else { continue };
            seen += data.len();
            if seen > LARGEST {
                return Err(RequestError::TooLarge { limit: LARGEST });
            }
            // The parser has failed and needs no more.
            if sender.send(data).await.is_err() {
                break;
            }
        }
        drop(sender);
        let envelope = reading.await.map_err(|error| RequestError::Garbage(error.to_string()))?;
        let envelope = envelope.map_err(|error| match error.io_error_kind() {
            Some(_) => RequestError::TooLarge { limit: PARSED },
            None => RequestError::Garbage(error.to_string()),
        })?;
        if envelope.kind == "error" {
            let code = envelope.error_code.unwrap_or(status);
            return Err(RequestError::Status { code, message: envelope.error.unwrap_or_default() });
        }
        envelope.metadata.ok_or_else(|| RequestError::Garbage("it has no metadata".to_owned()))
    })
    .await
}

/// Pieces of a body, for a thread of their own. Long texts are cut, as the parser would hold them whole; and it is given no more than
/// [`PARSED`].
struct Pieces {
    pieces: tokio::sync::mpsc::Receiver<Bytes>,
    piece: io::Cursor<Vec<u8>>,
    texts: Texts,
    left: usize,
}

impl Pieces {
    fn of(pieces: tokio::sync::mpsc::Receiver<Bytes>) -> Self {
        Self { pieces, piece: io::Cursor::default(), texts: Texts::default(), left: PARSED }
    }
}

impl io::Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = io::Read::read(&mut self.piece, buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let Some(piece) = self.pieces.blocking_recv() else { return Ok(0) };
            let piece: Vec<u8> = piece.into_iter().filter(|byte| self.texts.keep(*byte)).collect();
            self.left = self.left.checked_sub(piece.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            self.piece = io::Cursor::new(piece);
        }
    }
}

/// Where in JSON a byte is, as far as it takes to cut a long text.
#[derive(Default)]
struct Texts {
    /// How long the text is so far.
    inside: Option<usize>,
    /// Of an escape, after its `\\`: how many bytes are to come. The first says how many.
    escape: Option<u8>,
    cut: bool,
}

impl Texts {
    /// Is this byte kept? All but those of a long text's end.
    fn keep(&mut self, byte: u8) -> bool {
        let Some(length) = &mut self.inside else {
            (self.inside, self.cut) = ((byte == b'"').then_some(0), false);
            return true;
        };
        *length += 1;
        // Neither a character nor an escape is cut in its middle.
        let begins = self.escape.is_none() && byte & 0xc0 != 0x80;
        self.cut |= begins && *length > LONGEST_TEXT;
        self.escape = match self.escape {
            None => (byte == b'\\').then_some(0),
            Some(0) => (byte == b'u').then_some(4),
            Some(left) => Some(left - 1).filter(|left| *left > 0),
        };
        if begins && byte == b'"' {
            self.inside = None;
            return true;
        }
        !self.cut
    }
}

async fn collected(body: Incoming) -> Result<Bytes, RequestError> {
    let body = whole(Limited::new(body, LONGEST)).await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            RequestError::TooLarge { limit: LONGEST }
        } else {
            error.downcast_ref::<hyper::Error>().map_or_else(|| RequestError::Lost(error.to_string()), lost)
        }
    })?;
    // Also those of texts, as it is the number that counts.
    if body.iter().filter(|byte| b"[{,".contains(byte)).count() > ITEMS {
        return Err(RequestError::TooMany { limit: ITEMS });
    }
    Ok(body)
}

async fn converse<T>(
    stream: Stream,
    question: ApiRequest<'_>,
    read: impl AsyncFnOnce(Parts, Incoming) -> Result<T, RequestError>,
) -> Result<T, RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| lost(&e))?;
    let mut request = Request::builder()
        .method(question.method)
        .uri(question.path)
        .header(HOST, question.authority)
        .header(USER_AGENT, concat!("rbd-guardian/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close");
    if !question.body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some(etag) = question.etag {
        request = request.header(IF_MATCH, etag);
    }
    let request =
        request.body(Full::new(question.body)).map_err(|error| RequestError::Garbage(error.to_string()))?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
        let (head, body) = response.into_parts();
        read(head, body).await
    };
    // The connection moves the bytes; once it has ended, the answer knows all it ever will.
    match select(pin!(answer), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

/// A body as it comes, into one piece: collected first, it would be there twice, and listings are large.
async fn whole<B: Body<Data = Bytes> + Unpin>(mut body: B) -> Result<Bytes, B::Error> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.into())
}

fn judge(status: u16, etag: Option<String>, body: Bytes) -> Result<ApiAnswer, RequestError> {
    if status >= 400 {
        return Err(refusal(status, &body));
    }
    let envelope: Envelope<IgnoredAny> =
        serde_json::from_slice(&body).map_err(|error| RequestError::Garbage(error.to_string()))?;
    if envelope.kind == "error" {
        return Err(refusal(status, &body));
    }
    if !(200..300).contains(&status) {
        return Err(RequestError::Garbage(format!("status {status}")));
    }
    Ok(ApiAnswer { etag, operation: envelope.operation.filter(|path| !path.is_empty()), body })
}

/// An answer that is an error. What is no envelope comes from a proxy in between, or from no Incus at all: then the
/// status says more than the text.
pub(super) fn refusal(status: u16, body: &[u8]) -> RequestError {
    let envelope = serde_json::from_slice::<Envelope<IgnoredAny>>(body).ok();
    let told =
        envelope.and_then(|envelope| Some((envelope.error_code.filter(|code| *code != 0)?, envelope.error?)));
    let (code, message) = told.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body);
        (status, text.trim().chars().take(EXCERPT).collect())
    });
    if code == 403 { RequestError::Forbidden(message) } else { RequestError::Status { code, message } }
}

/// A failure below HTTP: TLS says more than the connection that broke.
pub(super) fn lost(error: &hyper::Error) -> RequestError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            let cause = tls::cause(io);
            // The handshake was over: whatever else is wrong with TLS now, the request may have been heard.
            return if let RequestError::Certificate(ClusterCertificateError::Other(what)) = cause {
                RequestError::Lost(what)
            } else {
                cause
            };
        }
        source = inner.source();
    }
    if error.is_parse() {
        RequestError::Garbage(error.to_string())
    } else {
        RequestError::Lost(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(json: &str) -> String {
        let mut texts = Texts::default();
        String::from_utf8(json.bytes().filter(|byte| texts.keep(*byte)).collect()).unwrap()
    }

    #[test]
    fn only_the_ends_of_long_texts_are_cut() {
        let short = r#"{"a\"b":["é\u00e9\\",{"c":null}],"d":"\\"}"#;
        assert_eq!(kept(short), short);
        let long = "x".repeat(LONGEST_TEXT);
        for end in ["x", "é", "\\u00e9", "\\\"", "\\\\", "yé\\\"z"] {
            for shift in 0..8 {
                let text = format!(r#"["{}{}","b"]"#, &long[shift..], end.repeat(5));
                let read: Vec<String> = serde_json::from_str(&kept(&text)).unwrap();
                let whole: Vec<String> = serde_json::from_str(&text).unwrap();
                assert!(whole[0].starts_with(&read[0]) && read[0].len() + 8 > LONGEST_TEXT, "{text}");
                assert!(read[0].len() <= LONGEST_TEXT + 8 && read[1] == "b", "{text}");
            }
        }
    }
}
