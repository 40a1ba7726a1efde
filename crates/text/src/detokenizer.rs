//! Token ids to text, one by one.
//!
//! Invariants: 1. the pieces, joined, are the decode of all ids at once; 2. no piece ends inside
//! a character, and U+FFFD comes out only where later tokens cannot repair it; 3. work is linear
//! in the text; 4. the bytes of all ids, joined, are the text if they are UTF-8. Byte-fallback
//! tokens are held until their run ends, because the decode of a run depends on all of it;
//! byte-level ones only until their character is complete.

use tokenizers::Tokenizer as Inner;

use crate::{Error, Json, Result};

/// How the tokens of one tokenizer become text.
#[derive(Debug, Clone, Default)]
struct Plan {
    /// Tokens spell bytes in the byte-level alphabet.
    byte_level: bool,
    /// Replacements in each token, in order.
    replaces: Vec<(String, String)>,
    /// Tokens such as `<0xE2>` are bytes.
    byte_fallback: bool,
    /// The character that stands for a space, and whether the first token drops it.
    metaspace: Option<(char, bool)>,
    /// A character, and how many of it the text loses at its start.
    strip_start: Option<(char, usize)>,
    /// Put between tokens when the tokenizer has no decoder at all.
    separator: &'static str,
}

/// Streaming decoder for one sequence.
#[derive(Debug, Clone)]
pub struct Detokenizer<'a> {
    inner: &'a Inner,
    plan: Plan,
    with_special_tokens: bool,
    n_tokens: usize,
    n_to_strip: usize,
    /// Bytes that do not make text yet.
    pending: Vec<u8>,
}

impl<'a> Detokenizer<'a> {
    pub(crate) fn new(
        inner: &'a Inner,
        decoder: &Json,
        with_special_tokens: bool,
    ) -> Result<Detokenizer<'a>> {
        let plan = Plan::new(decoder)?;
        let n_to_strip = plan.strip_start.map_or(0, |(_, count)| count);
        Ok(Detokenizer {
            inner,
            plan,
            with_special_tokens,
            n_tokens: 0,
            n_to_strip,
            pending: Vec::new(),
        })
    }

    /// Takes the next id and returns the text that it completes, often empty.
    pub fn push(&mut self, id: u32) -> String {
        let vocabulary = self.inner.get_added_vocabulary();
        let Some(token) = self.inner.id_to_token(id) else { return String::new() };
        if !self.with_special_tokens && vocabulary.is_special_token(&token) {
            return String::new();
        }
        let is_first = self.n_tokens == 0;
        self.n_tokens += 1;
        match self.plan.spelled(token, is_first) {
            Spelled::Bytes(bytes) => {
                self.pending.extend(bytes);
                if self.plan.byte_level { self.complete_characters() } else { String::new() }
            }
            Spelled::Text(text) => {
                let text = self.end_of_run() + &text;
                self.stripped(text)
            }
        }
    }

    /// The bytes that `id` would add to the text if it came next, be they whole characters or not.
    /// Those of a special token that is left out spell its name; an unknown id has none.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let vocabulary = self.inner.get_added_vocabulary();
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if !self.with_special_tokens && vocabulary.is_special_token(&token) {
            return token.into_bytes();
        }
        let mut bytes = match self.plan.spelled(token, self.n_tokens == 0) {
            Spelled::Bytes(bytes) => bytes,
            Spelled::Text(text) => text.into_bytes(),
        };
        let Some((space, _)) = self.plan.strip_start else { return bytes };
        let is_space = |byte: &&u8| char::from(**byte) == space;
        let n_before = self.pending.iter().take_while(is_space).count();
        let n_to_strip = match n_before == self.pending.len() {
            true => self.n_to_strip.saturating_sub(n_before),
            false => 0,
        };
        let n_stripped = bytes.iter().take(n_to_strip).take_while(is_space).count();
        bytes.split_off(n_stripped)
    }

    /// The sequence ends: bytes that never became a character come out as U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.plan.byte_level {
            let pending = std::mem::take(&mut self.pending);
            return String::from_utf8_lossy(&pending).into_owned();
        }
        let text = self.end_of_run();
        self.stripped(text)
    }

    /// Takes all characters out of `pending` that no later byte can change.
    fn complete_characters(&mut self) -> String {
        let mut text = String::new();
        let mut n_done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            n_done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = n_done + invalid.len() == self.pending.len();
            if invalid.is_empty() || (at_end && may_continue(invalid)) {
                continue;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            n_done += invalid.len();
        }
        self.pending.drain(..n_done);
        text
    }

    /// Text of a run of byte tokens: its characters, or one U+FFFD per byte if it is not UTF-8.
    fn end_of_run(&mut self) -> String {
        let n_bytes = self.pending.len();
        String::from_utf8(std::mem::take(&mut self.pending))
            .unwrap_or_else(|_| "\u{FFFD}".repeat(n_bytes))
    }

    /// Drops what the text loses at its start.
    fn stripped(&mut self, mut text: String) -> String {
        while self.n_to_strip > 0 && !text.is_empty() {
            match self.plan.strip_start {
                Some((space, _)) if text.starts_with(space) => {
                    text.remove(0);
                    self.n_to_strip -= 1;
                }
                _ => self.n_to_strip = 0,
            }
        }
        text
    }
}

/// What a token is in the text.
enum Spelled {
    /// Parts of characters, or whole ones.
    Bytes(Vec<u8>),
    Text(String),
}

impl Plan {
    fn spelled(&self, mut token: String, is_first: bool) -> Spelled {
        if self.byte_level {
            return Spelled::Bytes(byte_level(token));
        }
        for (pattern, content) in &self.replaces {
            token = token.replace(pattern, content);
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(&token)
        {
            return Spelled::Bytes(vec![byte]);
        }
        let mut text = if is_first { String::new() } else { self.separator.to_owned() };
        match self.metaspace {
            None => text.push_str(&token),
            Some((space, drops_first)) => {
                text.extend(token.chars().filter_map(|c| match c == space {
                    true if is_first && drops_first => None,
                    true => Some(' '),
                    false => Some(c),
                }));
            }
        }
        Spelled::Text(text)
    }

    fn new(decoder: &Json) -> Result<Plan> {
        let mut plan = Plan::default();
        if decoder.is_null() {
            plan.separator = " ";
            return Ok(plan);
        }
        let steps = match decoder.get("decoders").and_then(Json::as_array) {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(decoder),
        };
        let mut fused = false;
        for step in steps {
            plan.add(step, &mut fused, steps.len())?;
        }
        Ok(plan)
    }

    fn add(&mut self, step: &Json, fused: &mut bool, n_steps: usize) -> Result<()> {
        let text = |key: &str| step.get(key).and_then(Json::as_str);
        let count = |key: &str| step.get(key).and_then(Json::as_u64);
        match text("type").unwrap_or("?") {
            "ByteLevel" if n_steps == 1 => self.byte_level = true,
            "Fuse" => *fused = true,
            "ByteFallback" if !*fused && self.metaspace.is_none() => self.byte_fallback = true,
            "Metaspace" if !*fused && self.metaspace.is_none() => {
                let space = text("replacement").and_then(|s| s.chars().next());
                let drops_first = text("prepend_scheme") != Some("never");
                self.metaspace = Some((space.unwrap_or('\u{2581}'), drops_first));
            }
            "Replace" if !*fused && !self.byte_fallback && self.metaspace.is_none() => {
                let pattern = step.pointer("/pattern/String").and_then(Json::as_str);
                let (Some(pattern), Some(content)) = (pattern, text("content")) else {
                    return Err(unsupported("Replace with a regular expression"));
                };
                self.replaces.push((pattern.to_owned(), content.to_owned()));
            }
            "Strip" if *fused && count("stop") == Some(0) && self.strip_start.is_none() => {
                let content = text("content").and_then(|s| s.chars().next()).unwrap_or(' ');
                self.strip_start = Some((content, count("start").unwrap_or(0) as usize));
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }
}

fn unsupported(step: &str) -> Error {
    Error::Model(format!(
        "tokenizer.json: its decoder uses {step} in a way that cannot be streamed; \
         this tokenizer is not supported"
    ))
}

/// Whether more bytes could still make `bytes` a character.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}

/// The byte that a token such as `<0xE2>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// The bytes that `token` spells; a token outside the alphabet is its own text.
fn byte_level(token: String) -> Vec<u8> {
    let bytes: Option<Vec<_>> = token.chars().map(byte_of).collect();
    bytes.unwrap_or_else(|| token.into_bytes())
}

/// The byte-level alphabet: printable Latin-1 spells itself, the 68 other bytes are spelled by
/// the characters from U+0100 on, in ascending order.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}
