//! Gemma's calls: `NAME{key:value,…}` with bare keys and strings between two quotes that are
//! markup, `<|"|>` (Gemma 4) or `<escape>` (FunctionGemma).
//!
//! The end is found while the text comes; what it says is read once, when it is whole.

use super::call::{Found, MAX_NAME_BYTES, Step, is_in_name};
use super::schema::{self, ToolTypes};

pub(super) const QUOTES: [&str; 2] = ["<|\"|>", "<escape>"];
/// Deepest nesting that is read.
const MAX_DEPTH: usize = 64;

/// Reads one call.
#[derive(Debug)]
pub(super) struct Gemma {
    /// Where the name begins, in bytes of the call's text.
    from: usize,
    /// Where the arguments begin, once the name is over.
    arguments: Option<usize>,
    depth: usize,
    /// The quote that ends the string.
    in_string: Option<&'static str>,
}

impl Gemma {
    /// The name begins at byte `from`.
    pub(super) fn new(from: usize) -> Gemma {
        Gemma { from, arguments: None, depth: 0, in_string: None }
    }

    pub(super) fn step(&mut self, raw: &str, types: &ToolTypes) -> Step {
        let c = raw.chars().next_back().unwrap_or_default();
        let Some(start) = self.arguments else {
            let before = raw.len() - c.len_utf8();
            match c {
                '{' if before > self.from => (self.arguments, self.depth) = (Some(before), 1),
                c if is_in_name(c) && before - self.from < MAX_NAME_BYTES => {}
                _ => return Step::Bad,
            }
            return Step::More;
        };
        let quote = QUOTES.into_iter().find(|quote| c == '>' && raw[start..].ends_with(quote));
        match (self.in_string, quote) {
            (None, Some(_)) => self.in_string = quote,
            (Some(_), quote) if quote == self.in_string => self.in_string = None,
            _ => {}
        }
        match c {
            _ if self.in_string.is_some() => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        match self.depth {
            0 => self.found(raw, start, types).map_or(Step::Bad, Step::Done),
            depth if depth > MAX_DEPTH => Step::Bad,
            _ => Step::More,
        }
    }

    fn found(&self, raw: &str, start: usize, types: &ToolTypes) -> Option<Found> {
        let name = &raw[self.from..start];
        let mut reader = Reader { rest: &raw[start..], types, tool: name, depth: 0 };
        let arguments = reader.object(true)?;
        Some(Found { id: None, name: name.to_owned(), arguments })
    }
}

/// Reads a whole value; makes JSON text of it.
struct Reader<'a> {
    rest: &'a str,
    types: &'a ToolTypes,
    tool: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn object(&mut self, is_outer: bool) -> Option<String> {
        self.skip("{")?;
        let mut members = Vec::new();
        while self.skip("}").is_none() {
            let key = match self.string() {
                Some(key) => key,
                None => self.until(&[':'])?.trim(),
            };
            self.skip(":")?;
            let value = self.value(is_outer.then_some(key))?;
            members.push((key.to_owned(), value));
            if self.skip(",").is_none() && !self.rest.trim_start().starts_with('}') {
                return None;
            }
        }
        Some(schema::object(&members))
    }

    fn value(&mut self, argument: Option<&str>) -> Option<String> {
        self.depth = Some(self.depth + 1).filter(|depth| *depth <= MAX_DEPTH)?;
        let value = self.nested(argument);
        self.depth -= 1;
        value
    }

    fn nested(&mut self, argument: Option<&str>) -> Option<String> {
        self.rest = self.rest.trim_start();
        if self.rest.starts_with('{') {
            return self.object(false);
        }
        if self.skip("[").is_some() {
            let mut items = Vec::new();
            while self.skip("]").is_none() {
                items.push(self.value(None)?);
                if self.skip(",").is_none() && !self.rest.trim_start().starts_with(']') {
                    return None;
                }
            }
            return Some(format!("[{}]", items.join(", ")));
        }
        if let Some(text) = self.string() {
            return Some(schema::string(text));
        }
        let bare = self.until(&[',', '}', ']'])?.trim();
        (!bare.is_empty()).then(|| self.types.json(self.tool, argument.unwrap_or_default(), bare))
    }

    /// A quoted string, if one comes next.
    fn string(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let quote = QUOTES.iter().find(|quote| rest.starts_with(**quote))?;
        let (text, rest) = rest[quote.len()..].split_once(quote)?;
        self.rest = rest;
        Some(text)
    }

    fn until(&mut self, ends: &[char]) -> Option<&'a str> {
        let (text, rest) = self.rest.split_at(self.rest.find(ends)?);
        self.rest = rest;
        Some(text)
    }

    fn skip(&mut self, literal: &str) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(literal)?;
        Some(())
    }
}
