//! Answers that stream: a dialect writes parts as frames, this sends them, with signs of life while
//! nothing comes.
//!
//! Nothing is made ahead of the reader: a client that does not read stops this, fills the bounded
//! channels behind it, and has its work cancelled there.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use futures_util::stream;
use serde_json::Value;

use crate::generation::{Answers, Part};

/// Server-sent events.
pub const EVENTS: &str = "text/event-stream; charset=utf-8";
/// Lines of JSON.
pub const LINES: &str = "application/x-ndjson";
/// Between two signs of life.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a request may take to fail with a status of its own.
pub const SETTLE_PATIENCE: Duration = Duration::from_secs(3);

/// Bytes that are to be sent together.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

impl Frames {
    /// A server-sent event.
    pub fn event(&mut self, name: Option<&str>, data: &Value) {
        if let Some(name) = name {
            self.0.extend(format!("event: {name}\n").into_bytes());
        }
        self.data(&data.to_string());
    }

    /// A server-sent event of this text, which has one line.
    pub fn data(&mut self, text: &str) {
        self.0.extend(format!("data: {text}\n\n").into_bytes());
    }

    /// A comment, which readers of events skip.
    pub fn comment(&mut self, text: &str) {
        self.0.extend(format!(": {text}\n\n").into_bytes());
    }

    /// A line of JSON.
    pub fn line(&mut self, value: &Value) {
        self.0.extend(format!("{value}\n").into_bytes());
    }

    /// All of them as text.
    #[cfg(test)]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// Progress of a load or a prefill, as a comment. False for other parts.
    pub fn progress(&mut self, part: &Part) -> bool {
        match part {
            Part::Loading { done_bytes, total_bytes } => {
                self.comment(&format!("loading {done_bytes}/{total_bytes}"));
            }
            Part::Prefill { done_tokens, total_tokens } => {
                self.comment(&format!("prefill {done_tokens}/{total_tokens}"));
            }
            _ => return false,
        }
        true
    }
}

/// What a dialect makes of the parts of answers.
pub trait Writer: Send + 'static {
    /// Before the first part.
    fn begin(&mut self, _: &mut Frames) {}

    /// A part of the answer of this index. What fails is told in the stream; false ends it there.
    fn part(&mut self, idx: usize, part: Part, frames: &mut Frames) -> bool;

    /// After the last part.
    fn end(&mut self, _: &mut Frames) {}

    /// Nothing has come for a while.
    fn idle(&mut self, frames: &mut Frames) {
        frames.comment("ping");
    }
}

/// A form of streams.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// Server-sent events.
    Events,
    /// Lines of JSON.
    Lines,
}

struct State<W> {
    answers: Answers,
    writer: W,
    has_begun: bool,
    has_ended: bool,
}

/// A response that streams answers.
pub fn stream(answers: Answers, writer: impl Writer, form: Form) -> Response {
    let state = State { answers, writer, has_begun: false, has_ended: false };
    let body = Body::from_stream(stream::unfold(state, next));
    let mut response = Response::new(body);
    let form = match form {
        Form::Events => EVENTS,
        Form::Lines => LINES,
    };
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(form));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

type Item = Result<Bytes, std::convert::Infallible>;

async fn next<W: Writer>(mut state: State<W>) -> Option<(Item, State<W>)> {
    let mut frames = Frames::default();
    if !state.has_begun {
        state.has_begun = true;
        state.writer.begin(&mut frames);
    }
    while frames.0.is_empty() {
        if state.has_ended {
            return None;
        }
        match tokio::time::timeout(PING_INTERVAL, state.answers.next()).await {
            Err(_) => state.writer.idle(&mut frames),
            Ok(Some((idx, part))) => {
                state.has_ended = !state.writer.part(idx, part, &mut frames);
            }
            Ok(None) => {
                state.writer.end(&mut frames);
                state.has_ended = true;
            }
        }
    }
    Some((Ok(Bytes::from(frames.0)), state))
}
