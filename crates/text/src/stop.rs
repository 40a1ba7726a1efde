//! Stop strings over a stream of text.
//!
//! Invariants: 1. text of a stop string, and text after it, is never emitted; 2. text is held
//! back only while it is the beginning of a stop string; 3. the match that ends first wins, and
//! of those that end together the longest; 4. work is linear in the text, times the number of
//! stop strings. What is emitted is independent of how the text was cut into pieces.

use crate::{Error, Result};

/// Most stop strings that one request may have.
pub const MAX_STOPS: usize = 64;
/// Most bytes of one stop string.
const MAX_STOP_BYTES: usize = 4096;

/// What [`StopMatcher::push`] lets through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that may be shown.
    pub text: String,
    /// Index of the stop string that was found; nothing more comes out after it.
    pub stopped: Option<usize>,
}

/// Watches a stream for stop strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Needle>,
    held: String,
    stopped: Option<usize>,
}

#[derive(Debug, Clone)]
struct Needle {
    bytes: Vec<u8>,
    /// For each matched length, the longest shorter prefix that is also a suffix of it.
    fallback: Vec<usize>,
    n_matched: usize,
}

impl Needle {
    fn new(stop: &str) -> Needle {
        let bytes = stop.as_bytes().to_vec();
        let mut fallback = vec![0; bytes.len() + 1];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = fallback[length];
            }
            length += usize::from(bytes[at] == bytes[length]);
            fallback[at + 1] = length;
        }
        Needle { bytes, fallback, n_matched: 0 }
    }

    /// Takes one byte; true when the whole needle ends with it.
    fn step(&mut self, byte: u8) -> bool {
        while self.n_matched > 0 && self.bytes[self.n_matched] != byte {
            self.n_matched = self.fallback[self.n_matched];
        }
        self.n_matched += usize::from(self.bytes[self.n_matched] == byte);
        self.n_matched == self.bytes.len()
    }
}

impl StopMatcher {
    /// A matcher for `stops`; empty and oversized ones are the caller's error.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<StopMatcher> {
        if stops.len() > MAX_STOPS {
            let n_stops = stops.len();
            return Err(Error::Request(format!(
                "stop: {n_stops} stop strings, at most {MAX_STOPS} are allowed"
            )));
        }
        for (idx, stop) in stops.iter().enumerate() {
            let n_bytes = stop.as_ref().len();
            if n_bytes == 0 {
                return Err(Error::Request(format!("stop[{idx}] is empty; leave it out")));
            }
            if n_bytes > MAX_STOP_BYTES {
                return Err(Error::Request(format!(
                    "stop[{idx}] has {n_bytes} bytes, at most {MAX_STOP_BYTES} are allowed"
                )));
            }
        }
        let stops = stops.iter().map(|stop| Needle::new(stop.as_ref())).collect();
        Ok(StopMatcher { stops, held: String::new(), stopped: None })
    }

    /// Takes the next text and returns what may be shown.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped.is_some() {
            return StopOutput { text: String::new(), stopped: self.stopped };
        }
        let n_before = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            // Every needle takes the byte, also when an earlier one is complete already.
            let n_complete =
                self.stops.iter_mut().filter_map(|s| s.step(byte).then_some(())).count();
            if n_complete > 0 {
                return self.stop_at(n_before + at + 1);
            }
        }
        let n_held = self.stops.iter().map(|stop| stop.n_matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - n_held);
        StopOutput { text: std::mem::replace(&mut self.held, tail), stopped: None }
    }

    /// The stop strings that are complete end at byte `end` of the held text.
    fn stop_at(&mut self, end: usize) -> StopOutput {
        let complete = self.stops.iter().enumerate().filter(|(_, s)| s.n_matched == s.bytes.len());
        // `max_by_key` takes the last of equals; reversed, the first of equal strings wins.
        let longest = complete.rev().max_by_key(|(_, stop)| stop.bytes.len());
        let (idx, n_bytes) = longest.map_or((0, 0), |(idx, stop)| (idx, stop.bytes.len()));
        let mut text = std::mem::take(&mut self.held);
        text.truncate(end - n_bytes);
        self.stopped = Some(idx);
        StopOutput { text, stopped: self.stopped }
    }

    /// The stream ends: returns what was held back for a stop string that never came.
    pub fn finish(&mut self) -> String {
        for stop in &mut self.stops {
            stop.n_matched = 0;
        }
        std::mem::take(&mut self.held)
    }
}
