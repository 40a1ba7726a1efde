//! Answers of gpt-oss: messages of channels, `<|channel|>NAME<|message|>TEXT<|end|>`.
//!
//! The channel `analysis` is the reasoning; a message with a recipient is a call; all else is
//! text. Between two messages of one kind stands an empty line, because the format keeps them
//! apart and parts do not.

use super::call::Found;
use super::markers::{Lexeme, MarkerScanner};
use super::{Kind, Part, Parts, json_call};

pub(super) const START: &str = "<|start|>";
pub(super) const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const END: &str = "<|end|>";
pub(super) const MARKUP: [&str; 7] =
    [START, CHANNEL, CONSTRAIN, MESSAGE, END, "<|call|>", "<|return|>"];

/// Most bytes of a header. A model that writes more without a message writes none.
const MAX_HEADER_BYTES: usize = 512;

#[derive(Debug)]
enum At {
    /// In the header of a message, or between messages.
    Header(String),
    /// In a message that is shown as it comes.
    Shown { kind: Kind, has_begun: bool },
    /// In a call: its header, the function, and what was read of its arguments.
    Call { header: String, name: String, body: String },
}

/// Parses one answer.
#[derive(Debug)]
pub(super) struct HarmonyParser {
    at: At,
    /// The kind of what came last, if the next message has to be kept apart from it.
    last: Option<Kind>,
    finds_calls: bool,
    /// Markup that counts in text, because the tokenizer has no special token for it.
    in_text: Vec<&'static str>,
    scanner: MarkerScanner,
    parts: Parts,
}

impl HarmonyParser {
    pub(super) fn new(special: &[&str], finds_calls: bool, prompt_tail: &str) -> HarmonyParser {
        let mut parser = HarmonyParser {
            at: At::Shown { kind: Kind::Text, has_begun: true },
            last: None,
            finds_calls,
            in_text: MARKUP.into_iter().filter(|literal| !special.contains(literal)).collect(),
            scanner: MarkerScanner::default(),
            parts: Parts::default(),
        };
        if let Some((_, header)) = prompt_tail.rsplit_once(START) {
            let (header, body) = match header.split_once(MESSAGE) {
                Some((header, body)) => (header, Some(body)),
                None => (header, None),
            };
            // The role is the prompt's, not a word of the answer.
            parser.at = At::Header(header.trim_start_matches("assistant").to_owned());
            // A prompt may have begun the message itself; what it says is no part of the answer.
            if body.is_some() {
                parser.markup(MESSAGE);
            }
        }
        parser
    }

    pub(super) fn in_reasoning(&self) -> bool {
        matches!(self.at, At::Shown { kind: Kind::Reasoning, .. })
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Part> {
        for c in text.chars() {
            self.scanner.push(c);
            while let Some(lexeme) = self.scanner.next(self.in_text.iter().map(|l| (*l, *l))) {
                match lexeme {
                    Lexeme::Marker(markup) => self.markup(markup),
                    Lexeme::Char(c) => self.character(c),
                }
            }
        }
        self.parts.take()
    }

    pub(super) fn push_special(&mut self, literal: &str) -> Vec<Part> {
        self.release();
        if let Some(markup) = MARKUP.into_iter().find(|markup| *markup == literal) {
            self.markup(markup);
        }
        self.parts.take()
    }

    pub(super) fn finish(&mut self) -> Vec<Part> {
        self.release();
        match std::mem::replace(&mut self.at, At::Header(String::new())) {
            At::Header(header) => self.cut_off(&header),
            At::Call { header, name, body } => self.call(header, name, &body),
            At::Shown { .. } => {}
        }
        self.parts.take()
    }

    /// What was held back is no markup.
    fn release(&mut self) {
        while let Some(Lexeme::Char(c)) = self.scanner.pop::<()>() {
            self.character(c);
        }
    }

    fn character(&mut self, c: char) {
        let text = c.encode_utf8(&mut [0; 4]).to_owned();
        match &mut self.at {
            At::Header(header) if header.len() < MAX_HEADER_BYTES => header.push(c),
            At::Header(header) => {
                let header = std::mem::take(header);
                self.parts.push(Kind::Text, &(header + &text));
                self.at = At::Shown { kind: Kind::Text, has_begun: true };
            }
            At::Shown { kind, has_begun } => {
                if !*has_begun && self.last == Some(*kind) {
                    self.parts.push(*kind, "\n\n");
                }
                *has_begun = true;
                self.last = Some(*kind);
                self.parts.push(*kind, &text);
            }
            At::Call { body, .. } => body.push(c),
        }
    }

    fn markup(&mut self, markup: &'static str) {
        let goes_on = matches!(markup, CHANNEL | CONSTRAIN);
        let next = At::Header(if goes_on { markup } else { "" }.to_owned());
        match std::mem::replace(&mut self.at, next) {
            At::Header(header) if markup == MESSAGE => self.at = self.message(header),
            At::Header(header) if goes_on => self.at = At::Header(header + markup),
            At::Header(header) => self.cut_off(&header),
            At::Call { header, name, body } => self.call(header, name, &body),
            At::Shown { .. } => {}
        }
    }

    /// A header without a message. One that only opens says nothing; other text was meant to be
    /// read.
    fn cut_off(&mut self, header: &str) {
        let only_opens = matches!(header.trim(), "" | "assistant")
            || (header.contains(CHANNEL) && recipient(header).is_none());
        if !only_opens {
            self.parts.push(Kind::Text, header);
        }
    }

    fn message(&self, header: String) -> At {
        if let Some(name) = recipient(&header).filter(|_| self.finds_calls) {
            let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
            return At::Call { header, name, body: String::new() };
        }
        let channel = header.split(CHANNEL).nth(1).unwrap_or_default().trim_start();
        let kind = if channel.starts_with("analysis") { Kind::Reasoning } else { Kind::Text };
        At::Shown { kind, has_begun: false }
    }

    fn call(&mut self, header: String, name: String, body: &str) {
        self.last = None;
        match json_call::arguments_of(body) {
            Some(arguments) => self.parts.call(Found { id: None, name, arguments }),
            None => self.parts.push(Kind::Text, &[&header, MESSAGE, body].concat()),
        }
    }
}

/// To whom a message goes, if not to the reader.
fn recipient(header: &str) -> Option<&str> {
    let (_, to) = header.split_once("to=")?;
    let name = to.split(|c: char| c.is_whitespace() || c == '<').next()?;
    (!name.is_empty() && name != "assistant" && name != "user").then_some(name)
}
