//! The messages of a websocket, each held only while it is not too long.
//!
//! A library that puts messages together ends the connection at one that is too long, and everything has to be read
//! again; here such a message is skipped as it comes, and told.

use std::io::{self, Cursor};
use std::pin::pin;

use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper::header::{
    CONNECTION, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::upgrade::{self, Upgraded};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, FrameHeader};

use super::connection::Stream;
use super::error::RequestError;
use super::exchange::{self, lost};

/// How much is read at once.
const CHUNK: usize = 16 * 1024;
/// A refusal of the connection is a few words.
const REFUSAL: usize = 64 * 1024;
/// A control frame is no longer (RFC 6455, 5.5).
const CONTROL: u64 = 125;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A whole message.
    Message(Vec<u8>),
    /// The end of a message that was too long to be kept.
    TooLong,
    /// A sign of life.
    Alive,
    /// The other side ends it.
    Closed,
}

/// A connection that messages come over.
pub(super) struct Frames {
    io: TokioIo<Upgraded>,
    read: Vec<u8>,
    /// Of the message that is coming.
    message: Vec<u8>,
    too_long: bool,
    /// How much of it is kept at most.
    longest: usize,
}

impl Frames {
    /// Makes a websocket of a connection. Bounded in time by the caller.
    pub(super) async fn open(
        stream: Stream,
        authority: &str,
        path: &str,
        longest: usize,
    ) -> Result<Self, RequestError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
        let key = generate_key();
        let request = Request::builder()
            .uri(path)
            .header(HOST, authority)
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .body(String::new())
            .map_err(|error| RequestError::Garbage(error.to_string()))?;
        let upgraded = async {
            let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status().as_u16();
                let body = Limited::new(response.into_body(), REFUSAL).collect().await;
                let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                return Err(exchange::refusal(status, &body));
            }
            let accepted = response.headers().get(SEC_WEBSOCKET_ACCEPT).and_then(|text| text.to_str().ok());
            if accepted != Some(derive_accept_key(key.as_bytes()).as_str()) {
                return Err(RequestError::Garbage("it is no websocket".to_owned()));
            }
            upgrade::on(response).await.map_err(|error| lost(&error))
        };
        let upgraded = match select(pin!(upgraded), pin!(connection.with_upgrades())).await {
            Either::Left((upgraded, _)) => upgraded,
            Either::Right((_, upgraded)) => upgraded.await,
        }?;
        Ok(Self {
            io: TokioIo::new(upgraded),
            read: Vec::new(),
            message: Vec::new(),
            too_long: false,
            longest,
        })
    }

    /// What comes next. A call that is given up leaves the connection of no further use.
    pub(super) async fn next(&mut self) -> io::Result<Received> {
        let (header, length) = self.header().await?;
        if header.mask.is_some() || header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(broken("a frame of a form that was not agreed on"));
        }
        match header.opcode {
            OpCode::Control(control) => self.control(control, length).await,
            OpCode::Data(_) => {
                self.payload(length).await?;
                if !header.is_final {
                    return Ok(Received::Alive);
                }
                let message = std::mem::take(&mut self.message);
                Ok(if std::mem::take(&mut self.too_long) {
                    Received::TooLong
                } else {
                    Received::Message(message)
                })
            }
        }
    }

    async fn control(&mut self, control: Control, length: u64) -> io::Result<Received> {
        if length > CONTROL {
            return Err(broken("a control frame that is too long"));
        }
        let length = usize::try_from(length).unwrap_or_default();
        while self.read.len() < length {
            self.fill().await?;
        }
        let payload: Vec<u8> = self.read.drain(..length).collect();
        match control {
            Control::Close => Ok(Received::Closed),
            Control::Ping => {
                self.pong(payload).await?;
                Ok(Received::Alive)
            }
            Control::Pong | Control::Reserved(_) => Ok(Received::Alive),
        }
    }

    async fn header(&mut self) -> io::Result<(FrameHeader, u64)> {
        loop {
            let mut cursor = Cursor::new(&self.read);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|error| broken(&error.to_string()))?;
            let used = usize::try_from(cursor.position()).unwrap_or_default();
            if let Some(header) = parsed {
                self.read.drain(..used);
                return Ok(header);
            }
            self.fill().await?;
        }
    }

    /// The rest of a frame, kept as long as the message is not too long.
    async fn payload(&mut self, length: u64) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.read.is_empty() {
                self.fill().await?;
            }
            let here = self.read.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let part = self.read.drain(..here);
            if self.too_long || self.message.len() + here > self.longest {
                drop(part);
                self.too_long = true;
                self.message = Vec::new();
            } else {
                self.message.extend(part);
            }
            left -= here as u64;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        let read = self.io.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read.extend_from_slice(&chunk[..read]);
        Ok(())
    }

    async fn pong(&mut self, payload: Vec<u8>) -> io::Result<()> {
        let mut mask = [0; 4];
        SystemRandom::new().fill(&mut mask).map_err(|_| io::Error::other("no random numbers"))?;
        let mut pong = Frame::pong(payload);
        pong.header_mut().mask = Some(mask);
        let mut bytes = Vec::new();
        pong.format(&mut bytes).map_err(|error| broken(&error.to_string()))?;
        self.io.write_all(&bytes).await?;
        self.io.flush().await
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
