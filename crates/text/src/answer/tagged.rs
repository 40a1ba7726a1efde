//! Calls whose arguments stand between tags: Qwen3-Coder's and GLM's.
//!
//! The values of strings are not escaped, so a value ends at a closing tag behind which the call
//! goes on; any other closing tag belongs to the value.

use super::call::{Found, MAX_NAME_BYTES, Step, is_in_name};
use super::schema::ToolTypes;

/// The literals of one such syntax.
#[derive(Debug)]
pub(super) struct Tags {
    /// Ends the name; without it the name ends at a blank or a tag.
    name_end: Option<char>,
    key_open: &'static str,
    key_close: &'static str,
    value_open: &'static str,
    value_close: &'static str,
    /// Any of them ends the call.
    ends: &'static [&'static str],
    /// Values have a line of their own.
    values_in_lines: bool,
}

pub(super) static QWEN: Tags = Tags {
    name_end: Some('>'),
    key_open: "<parameter=",
    key_close: ">",
    value_open: "",
    value_close: "</parameter>",
    ends: &["</function>", "</tool_call>"],
    values_in_lines: true,
};

pub(super) static GLM: Tags = Tags {
    name_end: None,
    key_open: "<arg_key>",
    key_close: "</arg_key>",
    value_open: "<arg_value>",
    value_close: "</arg_value>",
    ends: &["</tool_call>"],
    values_in_lines: false,
};

/// Where the reader stands; positions are bytes of the call's text.
#[derive(Debug, Clone, Copy)]
enum At {
    Name {
        from: usize,
    },
    /// Before the next tag, which begins at `tag`. A value that ended before it counts once the
    /// tag turns out to be one.
    Between {
        tag: usize,
        value: Option<(usize, usize)>,
    },
    Key {
        from: usize,
    },
    ValueTag {
        from: usize,
    },
    Value {
        from: usize,
    },
}

/// Reads one call.
#[derive(Debug)]
pub(super) struct Tagged {
    tags: &'static Tags,
    at: At,
    name: String,
    key: String,
    arguments: Vec<(String, String)>,
}

impl Tagged {
    /// The name begins at byte `from`.
    pub(super) fn new(tags: &'static Tags, from: usize) -> Tagged {
        let at = At::Name { from };
        Tagged { tags, at, name: String::new(), key: String::new(), arguments: Vec::new() }
    }

    pub(super) fn step(&mut self, raw: &str, c: char, types: &ToolTypes) -> Step {
        let tags = self.tags;
        match self.at {
            At::Name { from } => return self.name(raw, c, from),
            At::Between { tag, value } => return self.between(raw, c, tag, value, types),
            At::Key { from } if raw.ends_with(tags.key_close) => {
                self.key = raw[from..raw.len() - tags.key_close.len()].trim().to_owned();
                let from = raw.len();
                self.at = match tags.value_open {
                    "" => At::Value { from },
                    _ => At::ValueTag { from },
                };
            }
            At::Key { from } if raw.len() - from > MAX_NAME_BYTES => return Step::Bad,
            At::Key { .. } => {}
            At::ValueTag { from } if from + c.len_utf8() == raw.len() && c.is_whitespace() => {
                self.at = At::ValueTag { from: raw.len() };
            }
            At::ValueTag { from } => match &raw[from..] {
                tag if tag == tags.value_open => self.at = At::Value { from: raw.len() },
                tag if tags.value_open.starts_with(tag) => {}
                _ => return Step::Bad,
            },
            At::Value { from } if raw[from..].ends_with(tags.value_close) => {
                let value = Some((from, raw.len() - tags.value_close.len()));
                self.at = At::Between { tag: raw.len(), value };
            }
            At::Value { .. } => {}
        }
        Step::More
    }

    fn name(&mut self, raw: &str, c: char, from: usize) -> Step {
        let name = &raw[from..raw.len() - c.len_utf8()];
        let ends = match self.tags.name_end {
            Some(end) => c == end,
            None => c == '<' || c == '\n',
        };
        if ends && !name.trim().is_empty() && !name.trim().contains(' ') {
            self.name = name.trim().to_owned();
            let tag = if c == '<' { raw.len() - 1 } else { raw.len() };
            self.at = At::Between { tag, value: None };
            return Step::More;
        }
        let is_blank_behind = self.tags.name_end.is_none() && matches!(c, ' ' | '\r');
        let fits = is_in_name(c) || is_blank_behind;
        if fits && name.len() < MAX_NAME_BYTES { Step::More } else { Step::Bad }
    }

    fn between(
        &mut self,
        raw: &str,
        c: char,
        from: usize,
        value: Option<(usize, usize)>,
        types: &ToolTypes,
    ) -> Step {
        if from + c.len_utf8() == raw.len() && c.is_whitespace() {
            self.at = At::Between { tag: raw.len(), value };
            return Step::More;
        }
        let tag = &raw[from..];
        let opens = tag == self.tags.key_open;
        if opens || self.tags.ends.contains(&tag) {
            if let Some((start, end)) = value {
                let value = self.argument(&raw[start..end], types);
                self.arguments.push((std::mem::take(&mut self.key), value));
            }
            self.at = At::Key { from: raw.len() };
            return if opens { Step::More } else { Step::Done(self.found()) };
        }
        let mut literals = self.tags.ends.iter().chain([&self.tags.key_open]);
        match value {
            _ if literals.any(|literal| literal.starts_with(tag)) => Step::More,
            Some((from, _)) => {
                self.at = At::Value { from };
                Step::More
            }
            None => Step::Bad,
        }
    }

    fn argument(&self, value: &str, types: &ToolTypes) -> String {
        let value = match self.tags.values_in_lines {
            true => {
                let value = value.strip_prefix('\n').unwrap_or(value);
                value.strip_suffix('\n').unwrap_or(value)
            }
            false => value,
        };
        types.json(&self.name, &self.key, value)
    }

    fn found(&mut self) -> Found {
        let arguments = super::schema::object(&self.arguments);
        Found { id: None, name: std::mem::take(&mut self.name), arguments }
    }
}
