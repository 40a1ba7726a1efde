//! Calls whose name stands before JSON arguments: Mistral's since 2503 and DeepSeek's.
//!
//! `NAME[ARGS]{…}`, `NAME[CALL_ID]ID[ARGS]{…}`, `NAME{…}`, `NAME<｜tool▁sep｜>{…}`, and DeepSeek's
//! older `function<｜tool▁sep｜>NAME`, a line break and the object in a fence of three backticks.

use super::call::{MAX_NAME_BYTES, Step, is_in_name};
use super::json_call::JsonArguments;

const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const SEPARATOR: &str = "<｜tool▁sep｜>";
const FENCE: &str = "```json";

/// Where the reader stands; positions are bytes of the call's text.
#[derive(Debug)]
enum At {
    Name {
        from: usize,
    },
    /// In markup that began at `from`.
    Markup {
        from: usize,
    },
    Id {
        from: usize,
    },
    /// Behind the separator: the object, or a name after all.
    Second {
        from: usize,
    },
    /// Before the object, where a fence may stand.
    Fence {
        from: usize,
    },
    Arguments(JsonArguments),
}

/// Reads one call.
#[derive(Debug)]
pub(super) struct Named {
    at: At,
    name: String,
    id: Option<String>,
}

impl Named {
    /// The name begins at byte `from`.
    pub(super) fn new(from: usize) -> Named {
        Named { at: At::Name { from }, name: String::new(), id: None }
    }

    pub(super) fn step(&mut self, raw: &str, c: char) -> Step {
        let before = raw.len() - c.len_utf8();
        match &mut self.at {
            At::Arguments(call) => return call.step(raw, c, &self.name, self.id.as_deref()),
            At::Name { from } => {
                let name = raw[*from..before].trim();
                if matches!(c, '[' | '<' | '{') {
                    if name.is_empty() || name.contains(char::is_whitespace) {
                        return Step::Bad;
                    }
                    self.name = name.to_owned();
                    self.at = At::Markup { from: before };
                    return if c == '{' { self.arguments(raw) } else { Step::More };
                }
                let fits = is_in_name(c) || c == ' ';
                return if fits && before - *from < MAX_NAME_BYTES {
                    Step::More
                } else {
                    Step::Bad
                };
            }
            At::Markup { from } => match &raw[*from..] {
                ARGS => self.at = At::Fence { from: raw.len() },
                CALL_ID => self.at = At::Id { from: raw.len() },
                SEPARATOR => self.at = At::Second { from: raw.len() },
                begun if [ARGS, CALL_ID, SEPARATOR].iter().any(|all| all.starts_with(begun)) => {}
                _ => return Step::Bad,
            },
            At::Id { from } => match c {
                '[' => {
                    self.id = Some(raw[*from..before].trim().to_owned());
                    self.at = At::Markup { from: before };
                }
                c if is_in_name(c) && before - *from < MAX_NAME_BYTES => {}
                _ => return Step::Bad,
            },
            At::Second { from } => match c {
                '{' => return self.arguments(raw),
                '\n' if *from == before => *from = raw.len(),
                '\n' => {
                    self.name = raw[*from..before].trim().to_owned();
                    self.at = At::Fence { from: raw.len() };
                }
                c if is_in_name(c) && before - *from < MAX_NAME_BYTES => {}
                _ => return Step::Bad,
            },
            At::Fence { from } => match &raw[*from..] {
                _ if c == '{' => return self.arguments(raw),
                _ if c.is_whitespace() => *from = raw.len(),
                begun if FENCE.starts_with(begun) => {}
                _ => return Step::Bad,
            },
        }
        Step::More
    }

    /// The object begins with the last byte of `raw`.
    fn arguments(&mut self, raw: &str) -> Step {
        let mut call = JsonArguments::new(raw.len() - 1);
        let step = call.step(raw, '{', &self.name, None);
        self.at = At::Arguments(call);
        step
    }
}
