//! The cache's places as the scheduler sees them: what a request finds there, what it needs, taking
//! a place and leaving it.

use std::collections::BTreeMap;

use kvcache::{Capture, Cause, Class};
use protocol::{Event, Fault, RequestId};
use scheduler::{Ahead, Begin, Id, Look, Seats};

use crate::Error;
use crate::cache::PrefixCache;
use crate::found::told;
use crate::sequence::{Sequence, told_drawn};

/// What a plan may do with requests and their places.
pub(crate) struct Seating<'a> {
    pub cache: &'a mut PrefixCache,
    pub sequences: &'a mut BTreeMap<RequestId, Sequence>,
    pub emit: &'a mut dyn FnMut(Event),
    /// Why the last one that found no room did not.
    pub no_room: Option<Error>,
    /// The device failed, or we did: the engine sees to it after the plan.
    pub failure: Option<Error>,
}

impl Seating<'_> {
    fn of(&self, id: Id) -> &Sequence {
        self.sequences.get(&RequestId(id.0)).expect("the scheduler knows what lives")
    }

    /// Keeps what concerns all for the engine; the rest is the request's own end.
    fn fail(&mut self, id: Id, error: Error) {
        let id = RequestId(id.0);
        if error.is_of_device || error.fault == Fault::Ours {
            self.failure.get_or_insert(error);
            return;
        }
        let Error { fault, message, .. } = error;
        (self.emit)(Event::Failed { id: Some(id), fault, message });
        if let Some(mut sequence) = self.sequences.remove(&id) {
            sequence.end(self.cache);
        }
    }
}

impl Seats for Seating<'_> {
    fn look(&mut self, id: Id) -> Look {
        let sequence = self.of(id);
        let found = self.cache.find(sequence.ns(), sequence.tokens());
        let ahead = match found.cause {
            Cause::InFlight { seq, until } if self.cache.resumes_at(until) > found.usable => {
                let is_it = |s: &&Sequence| s.is_seated() && s.seq() == seq;
                let by = self.sequences.values().find(is_it).map(|s| Id(s.request.id.0));
                by.map(|by| Ahead { by, until: self.cache.resumes_at(until) })
            }
            _ => None,
        };
        Look { n_cached: found.usable, ahead }
    }

    fn room_bytes(&self) -> u64 {
        let device = self.cache.stats().tiers[0];
        device.free_bytes + device.cached_bytes
    }

    fn needs_bytes(&self, id: Id, n_tokens: usize) -> u64 {
        let sequence = self.of(id);
        let seq = sequence.is_seated().then(|| sequence.seq());
        self.cache.needed_bytes(seq, sequence.ns(), sequence.tokens(), n_tokens)
    }

    fn begin(&mut self, id: Id) -> Begin {
        let sequence = self.sequences.get_mut(&RequestId(id.0)).expect("what waits lives");
        match sequence.begin(self.cache) {
            Ok(Ok(found)) => {
                if sequence.is_new() {
                    (self.emit)(Event::Matched(told(RequestId(id.0), &found)));
                }
                match sequence.position(self.cache) {
                    Some(at) => Begin::Seated { at },
                    None => Begin::Restoring,
                }
            }
            Ok(Err(no_room)) => {
                let text = format!("{no_room}: give the cache more memory (--cache-memory)");
                self.no_room = Some(Error::world(text));
                Begin::NoRoom
            }
            Err(error) => {
                self.fail(id, error);
                Begin::Failed
            }
        }
    }

    fn reserve(&mut self, id: Id, n_tokens: usize) -> bool {
        let seq = self.of(id).seq();
        match self.cache.reserve(seq, n_tokens) {
            Ok(()) => true,
            Err(error) => {
                if error.is_of_device || error.fault == Fault::Ours {
                    self.failure.get_or_insert(error);
                } else {
                    self.no_room = Some(error);
                }
                false
            }
        }
    }

    fn lost_tokens(&self, id: Id) -> usize {
        let sequence = self.of(id);
        let n = sequence.position(self.cache).unwrap_or(0);
        let needed = self.cache.needed_bytes(None, sequence.ns(), &[], n);
        let below = &self.cache.stats().tiers[1..];
        let has_room = below.iter().any(|t| t.free_bytes + t.cached_bytes >= needed);
        if has_room { 0 } else { n }
    }

    fn pause(&mut self, id: Id) -> Option<usize> {
        let sequence = self.sequences.get_mut(&RequestId(id.0)).expect("what runs lives");
        loop {
            match sequence.read(self.cache) {
                Ok(Some(drawn)) => {
                    if told_drawn(sequence, drawn, self.emit) {
                        let mut ended = self.sequences.remove(&RequestId(id.0))?;
                        ended.end(self.cache);
                        return None;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.fail(id, error);
                    return None;
                }
            }
        }
        sequence.end(self.cache);
        let n = sequence.tokens().len();
        if let Err(error) = self.cache.page_out() {
            self.failure.get_or_insert(error);
        }
        Some(n)
    }

    fn is_room_coming(&self) -> bool {
        self.cache.is_moving()
    }

    fn is_moving(&self) -> bool {
        self.cache.is_moving()
    }

    fn hold(&mut self, _id: Id, by: Id, until: usize) {
        if let Some(by) = self.sequences.get_mut(&RequestId(by.0)) {
            by.also_capture(Capture { at: until, class: Class::BranchPoint });
        }
    }
}
