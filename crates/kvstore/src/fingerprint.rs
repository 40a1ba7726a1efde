//! What cached bytes depend on. Two processes share a folder only if every part is equal.
//!
//! The file `fingerprint` of a folder is text, for people too:
//!
//! ```text
//! what people call the model
//! kvstore: 2
//! weights: 6f1e…
//! layout: 16 tokens, full 24576
//! ```
//!
//! The first line is a label: it is not compared. The others are hashed (XXH3, 128 bits) for the
//! folder's name and compared in full when it is opened, so that a collision costs a cache and
//! never gives a wrong one.

use xxhash_rust::xxh3;

/// The version of all formats of this crate; a change makes every fingerprint another one.
pub(crate) const VERSION: u32 = 2;

/// A file of text that is longer is none of ours.
pub(crate) const MAX_TEXT_BYTES: u64 = 1 << 16;

/// Everything that cached bytes depend on, as named strings in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    label: String,
    text: String,
}

impl Fingerprint {
    /// `label` is what people call the model; `parts` are all that must be equal: digest of the
    /// weights, tokenizer, template, layout, dtype, version of what computes …
    pub fn new<'a>(label: &str, parts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut text = format!("kvstore: {VERSION}\n");
        for (name, value) in parts {
            text += &format!("{}: {}\n", escaped(name, ":"), escaped(value, ""));
        }
        Self { label: escaped(label, ""), text }
    }

    /// What it says, a line for each part, without the label.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The name of its folder: 32 hexadecimal digits.
    pub fn folder(&self) -> String {
        format!("{:032x}", self.hash())
    }

    pub(crate) fn hash(&self) -> u128 {
        xxh3::xxh3_128(self.text.as_bytes())
    }

    /// What its file holds.
    pub(crate) fn file(&self) -> String {
        format!("{}\n{}", self.label, self.text)
    }

    /// What a file holds.
    pub(crate) fn parse(file: &[u8]) -> Option<Self> {
        let (label, text) = std::str::from_utf8(file).ok()?.split_once('\n')?;
        Some(Self { label: label.to_owned(), text: text.to_owned() })
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }
}

/// One line, and no two texts the same.
fn escaped(text: &str, also: &str) -> String {
    let is_plain = |c: char| !c.is_control() && c != '\\' && !also.contains(c);
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if is_plain(c) => line.push(c),
            '\\' => line.push_str("\\\\"),
            _ => line.extend(c.escape_unicode()),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_its_name_and_the_order_count_and_the_label_does_not() {
        let of = |label, parts: &[(&str, &str)]| Fingerprint::new(label, parts.iter().copied());
        let one = of("a", &[("weights", "1"), ("dtype", "bf16")]);
        assert_eq!(one.folder(), of("b", &[("weights", "1"), ("dtype", "bf16")]).folder());
        for other in [
            of("a", &[("weights", "2"), ("dtype", "bf16")]),
            of("a", &[("dtype", "bf16"), ("weights", "1")]),
            of("a", &[("weights", "1")]),
            of("a", &[("weights", "1\ndtype: bf16")]),
            of("a", &[("weights: 1\ndtype", "bf16")]),
            of("a", &[("weights", "1\\u{a}dtype: bf16")]),
        ] {
            assert_ne!(one.folder(), other.folder(), "{other:?}");
            assert_ne!(one.text(), other.text());
        }
        assert_eq!(one.folder().len(), 32);
    }

    #[test]
    fn a_file_says_what_it_was_made_of() {
        let one = Fingerprint::new("org/name\n", [("a b: c", "d\\\n")]);
        assert_eq!(Fingerprint::parse(one.file().as_bytes()), Some(one.clone()));
        assert_eq!(one.file().lines().count(), 3, "{}", one.file());
        assert_eq!(Fingerprint::parse(b"no line"), None);
        assert_eq!(Fingerprint::parse(b"\xff\n"), None);
    }
}
