//! `/api/v1/events`: the newest picture each time it changes, each line of the log about it, and a sign of life.
//!
//! A reader that is slow gets fewer pictures: nothing waits for it and nothing is kept for it but the newest lines.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::deadline::rest;
use crate::serve::published::Published;

/// Between two looks at what was published: a fence that takes a second is some events.
const PACE: Duration = Duration::from_millis(250);
/// Looks between two signs of life, and between two pictures that differ in ages alone.
const BEAT: u64 = 8;
const REFRESH: u64 = 40;

/// What a reader is sent as its picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wants {
    /// The JSON of `status`.
    Status,
    /// The changing part of the page.
    Page,
}

#[derive(Debug)]
pub(crate) struct EventStream {
    published: watch::Receiver<Arc<Published>>,
    wants: Wants,
    last_line: u64,
    last_picture: Option<u64>,
    looks: u64,
    waiting: VecDeque<String>,
    _place: OwnedSemaphorePermit,
}

impl EventStream {
    /// After this line; without it, from now on.
    pub(crate) fn new(
        published: watch::Receiver<Arc<Published>>,
        wants: Wants,
        after: Option<u64>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let newest = published.borrow().lines.after(0).next_back().map_or(0, |line| line.seq);
        let last_line = after.unwrap_or(newest);
        Self {
            published,
            wants,
            last_line,
            last_picture: None,
            looks: 0,
            waiting: VecDeque::new(),
            _place: place,
        }
    }

    pub(crate) fn body(self) -> UnsyncBoxBody<Bytes, Infallible> {
        let frames = stream::unfold(self, |mut this| async move {
            let event = this.next().await?;
            Some((Ok(Frame::data(Bytes::from(event))), this))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// `None` when the daemon ends.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.looks > 0 {
                rest(PACE).await;
            }
            if self.published.has_changed().is_err() {
                return None;
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let published = Arc::clone(&self.published.borrow_and_update());
        for line in published.lines.after(self.last_line) {
            self.waiting.push_back(event("line", Some(line.seq), &json!(line).to_string()));
            self.last_line = line.seq;
        }
        let steady = published.steady();
        if self.last_picture != Some(steady) || self.looks.is_multiple_of(REFRESH) {
            self.last_picture = Some(steady);
            let picture = match self.wants {
                Wants::Status => event("status", None, &published.status().to_string()),
                Wants::Page => {
                    let main = String::from_utf8_lossy(&published.main()).into_owned();
                    event("page", None, &json!(main).to_string())
                }
            };
            self.waiting.push_back(picture);
        }
        if self.looks.is_multiple_of(BEAT) {
            let beat = json!({"at": published.wall, "word": published.outlook().word});
            self.waiting.push_back(event("beat", None, &beat.to_string()));
        }
        self.looks += 1;
    }
}

/// JSON has no line break, so one line of data is enough.
fn event(name: &str, id: Option<u64>, data: &str) -> String {
    let id = id.map_or_else(String::new, |id| format!("id: {id}\n"));
    format!("event: {name}\n{id}data: {data}\n\n")
}
