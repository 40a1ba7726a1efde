//! What the tokens of a model spell, in bytes, from its tokenizer.json.
//!
//! Two kinds of vocabularies are known, by their decoders: those whose characters stand for bytes
//! (`ByteLevel`), and those of text with bytes as a fallback (`ByteFallback`, `Metaspace`). How the
//! tokenizer cuts text does not matter: any way of spelling an answer is as good.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use serde::Deserialize;
use serde_json::Value;

/// Most bytes of a tokenizer.json; the largest in use have about 35 MB.
pub const MAX_TOKENIZER_BYTES: usize = 256 << 20;
/// Longer tokens exist (runs of blanks), and no answer needs them.
const MAX_TOKEN_BYTES: usize = 1000;
/// More rows than any model has, and fewer than the trie can number.
const MAX_ROWS: usize = 1 << 21;

/// The tokens of a model.
pub struct Vocabulary {
    env: TokEnv,
    /// Rows of logits; the trie has one token more, which stands for the end of a grammar.
    n_rows: usize,
    /// Rows that have a token.
    known: SimpleVob,
    /// Ordinary tokens of blanks alone.
    blank: SimpleVob,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("n_rows", &self.n_rows).finish_non_exhaustive()
    }
}

/// The parts of a tokenizer.json that count here.
#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    decoder: Value,
}

#[derive(Deserialize)]
struct Model {
    vocab: Entries,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entries {
    ById(HashMap<String, u32>),
    /// Unigram's: pieces with scores, in order.
    Scored(Vec<(String, f64)>),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

/// How entries of a vocabulary are spelled.
#[derive(Clone, Copy)]
enum Spelling {
    /// Each character stands for a byte.
    Bytes,
    /// Text, in which a character stands for a space; `<0x0A>` for bytes.
    Text { space: char },
}

impl Vocabulary {
    /// From the bytes of a tokenizer.json, for logits of `n_rows`. Tokens that have no row are left
    /// out.
    ///
    /// # Errors
    /// The file is none, or of a kind whose tokens' bytes are not known.
    pub fn parse(tokenizer_json: &[u8], n_rows: usize) -> Result<Self, String> {
        if tokenizer_json.len() > MAX_TOKENIZER_BYTES || n_rows > MAX_ROWS {
            return Err(format!("tokenizer.json is too large, or {n_rows} rows are too many"));
        }
        let File { model, added_tokens, decoder } = serde_json::from_slice(tokenizer_json)
            .map_err(|e| format!("tokenizer.json cannot be read: {e}"))?;
        let spelling = spelling(&decoder).ok_or(
            "tokenizer.json has a decoder that grammars do not know (byte-level and byte \
                    fallback are known)",
        )?;
        let mut words = vec![Vec::new(); n_rows];
        let bytes = characters_of_bytes();
        let mut put = |id: usize, word: Vec<u8>| {
            if let Some(place) = words.get_mut(id) {
                *place = word;
            }
        };
        let ordinary = |text: &str| {
            let word = spelled(text, spelling, &bytes);
            // 0xff marks special tokens, and is in no UTF-8.
            let is_usable = word.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
            if is_usable && word.len() <= MAX_TOKEN_BYTES { word } else { Vec::new() }
        };
        match model.vocab {
            Entries::ById(ids) => {
                ids.iter().for_each(|(text, id)| put(*id as usize, ordinary(text)));
            }
            Entries::Scored(list) => {
                list.iter().enumerate().for_each(|(id, (text, _))| put(id, ordinary(text)));
            }
        }
        for Added { id, content, special } in added_tokens {
            let marker = special.then_some(TokTrie::SPECIAL_TOKEN_MARKER);
            let word = marker.into_iter().chain(content.bytes()).take(MAX_TOKEN_BYTES);
            put(id as usize, word.collect());
        }
        Ok(Self::of(words))
    }

    fn of(mut words: Vec<Vec<u8>>) -> Self {
        let n_rows = words.len();
        let set = |holds: &dyn Fn(&[u8]) -> bool| {
            let mut set = SimpleVob::alloc(n_rows + 1);
            let held = words.iter().enumerate().filter(|(_, word)| holds(word));
            held.for_each(|(id, _)| set.allow_token(id as u32));
            set
        };
        let known = set(&|word| !word.is_empty());
        let blank = set(&|word| !word.is_empty() && is_blank(word));
        words.push(b"\xff<end of grammar>".to_vec());
        let info = TokRxInfo::new(words.len() as u32, n_rows as u32);
        let env = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
        Self { env, n_rows, known, blank }
    }

    pub(crate) fn env(&self) -> &TokEnv {
        &self.env
    }

    /// Rows of logits.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The token that stands for the end of a grammar.
    pub(crate) fn end(&self) -> u32 {
        self.n_rows as u32
    }

    pub(crate) fn known(&self) -> &SimpleVob {
        &self.known
    }

    pub(crate) fn blank(&self) -> &SimpleVob {
        &self.blank
    }

    /// Whether a token is special: only a grammar that names it allows it.
    pub(crate) fn is_special(&self, token: u32) -> bool {
        self.env.tok_trie().is_special_token(token)
    }

    /// What an ordinary token spells; nothing for others.
    pub fn text(&self, token: u32) -> &[u8] {
        if self.is_special(token) { &[] } else { self.env.tok_trie().token(token) }
    }
}

/// Whether there are only blanks.
pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| b" \t\r\n".contains(byte))
}

/// By the decoder: itself, or the members of a sequence.
fn spelling(decoder: &Value) -> Option<Spelling> {
    let kind = decoder.get("type")?.as_str()?;
    let text = |pattern: &Value| {
        let mut chars = pattern.as_str()?.chars();
        chars.next().filter(|_| chars.next().is_none()).map(|space| Spelling::Text { space })
    };
    match kind {
        "ByteLevel" => Some(Spelling::Bytes),
        "Metaspace" => text(decoder.get("replacement")?),
        "ByteFallback" => Some(Spelling::Text { space: ' ' }),
        "Replace" if decoder.get("content").and_then(Value::as_str) == Some(" ") => {
            text(decoder.get("pattern")?.get("String")?)
        }
        // The one that says what a space is goes before the one that has none to name.
        "Sequence" => {
            let members = decoder.get("decoders")?.as_array()?.iter();
            let known = members.filter_map(spelling).collect::<Vec<_>>();
            let names = |s: &&Spelling| !matches!(s, Spelling::Text { space: ' ' });
            known.iter().find(names).or(known.first()).copied()
        }
        _ => None,
    }
}

fn spelled(text: &str, spelling: Spelling, bytes: &HashMap<char, u8>) -> Vec<u8> {
    match spelling {
        // What is not spelled in these characters stands for itself.
        Spelling::Bytes => {
            let word = text.chars().map(|c| bytes.get(&c).copied()).collect::<Option<Vec<u8>>>();
            word.unwrap_or_else(|| text.as_bytes().to_vec())
        }
        Spelling::Text { space } => match byte_of(text) {
            Some(byte) => vec![byte],
            None => text.replace(space, " ").into_bytes(),
        },
    }
}

/// `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The characters of byte-level vocabularies: printable ones of Latin-1 stand for themselves, the
/// other bytes for those from U+0100 on (Radford et al., GPT-2, 2019).
fn characters_of_bytes() -> HashMap<char, u8> {
    let mut next = 0x100;
    let of = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            return (char::from(byte), byte);
        }
        next += 1;
        (char::from_u32(next - 1).expect("U+0100 to U+0143 are characters"), byte)
    };
    (0..=255).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(decoder: &str, vocab: &str, added: &str) -> Vocabulary {
        let json = format!(
            r#"{{"model": {{"vocab": {vocab}, "merges": [["a", "b"]]}}, "added_tokens": {added},
                "decoder": {decoder}}}"#
        );
        Vocabulary::parse(json.as_bytes(), 9).unwrap()
    }

    #[test]
    fn tokens_spell_their_bytes_in_every_kind_of_vocabulary() {
        let check = |decoder: &str, vocab: &str, expected: &[&[u8]]| {
            let vocabulary = parsed(decoder, vocab, "[]");
            for (id, bytes) in expected.iter().enumerate() {
                assert_eq!(vocabulary.text(id as u32), *bytes, "{decoder} {id}");
            }
        };
        let level = r#"{"type": "ByteLevel"}"#;
        let in_sequence = format!(r#"{{"type": "Sequence", "decoders": [{level}]}}"#);
        let bytes = r#"{"a": 0, "Ġb": 1, "Ċ": 2, "Ã": 3, "ÿ": 4, "日": 5}"#;
        for decoder in [level, &in_sequence] {
            check(decoder, bytes, &[b"a", b" b", b"\n", b"\xc3", b"", "日".as_bytes(), b""]);
        }
        let fallback = r#"{"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
        check(fallback, r#"{"▁a": 0, "<0x0A>": 1, "<0xZZ>": 2}"#, &[b" a", b"\n", b"<0xZZ>"]);
        let metaspace = r#"{"type": "Metaspace", "replacement": "▁"}"#;
        check(metaspace, r#"[["▁", -1.0], ["é", -2.5]]"#, &[b" ", "é".as_bytes()]);
    }

    #[test]
    fn special_tokens_and_missing_ones_spell_nothing() {
        let added = r#"[{"id": 1, "content": "<|x|>", "special": true},
            {"id": 2, "content": "</t>", "special": false},
            {"id": 99, "content": "no row", "special": true}]"#;
        let vocabulary = parsed(r#"{"type": "ByteLevel"}"#, r#"{"Ġ": 0}"#, added);
        assert_eq!(vocabulary.text(1), b"");
        assert_eq!(vocabulary.text(2), b"</t>");
        assert!(vocabulary.is_special(1) && !vocabulary.is_special(2));
        let set = |set: &SimpleVob| (0..9).filter(|id| set.is_allowed(*id)).collect::<Vec<_>>();
        assert_eq!(set(vocabulary.known()), [0, 1, 2]);
        assert_eq!(set(vocabulary.blank()), [0]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let check = |json: &str, n_rows: usize, wanted: &str| {
            let error = Vocabulary::parse(json.as_bytes(), n_rows).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        };
        check("no json", 9, "cannot be read");
        check(r#"{"model": {}}"#, 9, "vocab");
        check(r#"{"model": {"vocab": {}}}"#, 9, "decoder");
        check(r#"{"model": {"vocab": {}}, "decoder": {"type": "WordPiece"}}"#, 9, "decoder");
        check("{}", 1 << 30, "too many");
    }
}
