//! The events of a response that streams: each has its name, a type that is the same, and a number.

use serde_json::{Value, json};

use super::answer::Response;
use crate::generation::{Part, Reason};
use crate::http::stream::{Frames, Writer};

/// Writes the events of a stream.
pub struct Events {
    response: Response,
    n_events: u64,
}

impl Events {
    /// The writer of one response.
    pub fn new(response: Response) -> Self {
        Self { response, n_events: 0 }
    }
}

fn write(frames: &mut Frames, n_events: &mut u64, name: &str, data: Value) {
    let mut event = json!({"type": name, "sequence_number": *n_events});
    *n_events += 1;
    if let (Some(event), Value::Object(data)) = (event.as_object_mut(), data) {
        event.extend(data);
    }
    frames.event(Some(name), &event);
}

impl Writer for Events {
    fn begin(&mut self, frames: &mut Frames) {
        for name in ["response.created", "response.in_progress"] {
            let data = json!({"response": self.response.object()});
            write(frames, &mut self.n_events, name, data);
        }
    }

    fn part(&mut self, _: usize, part: Part, frames: &mut Frames) -> bool {
        if frames.progress(&part) {
            return true;
        }
        let Self { response, n_events } = self;
        let emit = &mut |name: &'static str, data| write(frames, n_events, name, data);
        match part {
            Part::Finished(finished) => {
                let object = response.finish(&finished, emit);
                let name = match finished.reason {
                    Reason::Length => "response.incomplete",
                    _ => "response.completed",
                };
                emit(name, json!({"response": object}));
            }
            Part::Failed(failure) => {
                let failure = super::renamed(*failure);
                let object = response.fail(&failure, emit);
                let error = &crate::openai::error(&failure)["error"];
                let code = error["code"].as_str().or(error["type"].as_str());
                let data = json!({"code": code, "message": error["message"],
                                  "param": error["param"]});
                emit("error", data);
                emit("response.failed", json!({"response": object}));
                return false;
            }
            part => response.part(part, emit),
        }
        true
    }
}
