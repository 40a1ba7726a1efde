//! As much of Rust as the rules need: what is code, what is a comment, which lines are tests, where
//! functions begin and end. A scanner of characters, not a parser: it knows strings, raw strings,
//! character literals, lifetimes and nested comments.

/// A scanned file.
pub struct Rust {
    /// The text with comments, strings and character literals blanked; same lines, same columns.
    pub code: String,
    /// The text with everything but comments blanked.
    pub comments: String,
    /// For each line, whether it belongs to tests.
    pub is_test: Vec<bool>,
    /// Modules in files of their own that are compiled for tests only.
    pub test_modules: Vec<String>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Lines from 1, both included.
    pub first_line: usize,
    pub last_line: usize,
}

const TEST_ONLY: &str = "#[cfg(test)]";

impl Rust {
    pub fn scan(path: &str, text: &str) -> Self {
        let (code, comments) = split(text);
        let all_tests =
            path.split('/').any(|part| part == "tests") || code.contains("#![cfg(test)]");
        let mut is_test = vec![all_tests; text.lines().count()];
        let mut test_modules = Vec::new();
        for (start, _) in code.match_indices(TEST_ONLY) {
            let body = start + TEST_ONLY.len();
            let end = item_end(&code, body);
            for line in line_of(&code, start)..=line_of(&code, end.saturating_sub(1)) {
                is_test[line - 1] = true;
            }
            let item = code[body..end].trim();
            if let Some(name) = item.strip_prefix("mod ").and_then(|m| m.strip_suffix(';')) {
                test_modules.push(name.trim().to_owned());
            }
        }
        Self { code, comments, is_test, test_modules }
    }

    /// The code lines outside tests, with their numbers from 1.
    pub fn lines_outside_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, is_test))| !**is_test).map(|(i, (line, _))| (i + 1, line))
    }

    /// The functions that have a body, nested ones too.
    pub fn functions(&self) -> Vec<Function> {
        let starts = words(&self.code, "fn");
        starts.into_iter().filter_map(|start| self.function(start)).collect()
    }

    fn function(&self, start: usize) -> Option<Function> {
        let name = self.code[start + 2..].trim_start();
        let name = name.split(|c: char| !is_ident(c)).next().filter(|name| !name.is_empty())?;
        let end = item_end(&self.code, start);
        let has_body = self.code[..end].ends_with('}');
        has_body.then(|| Function {
            name: name.to_owned(),
            first_line: line_of(&self.code, start),
            last_line: line_of(&self.code, end - 1),
        })
    }
}

/// Whether `c` can stand in an identifier.
pub fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where `word` stands in `text` and is no part of a longer word.
pub fn words(text: &str, word: &str) -> Vec<usize> {
    let is_free = |(start, _): &(usize, &str)| {
        let before = text[..*start].chars().next_back();
        let after = text[start + word.len()..].chars().next();
        !before.is_some_and(is_ident) && !after.is_some_and(is_ident)
    };
    text.match_indices(word).filter(is_free).map(|(start, _)| start).collect()
}

/// The line, from 1, of the byte at `offset`.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|b| **b == b'\n').count() + 1
}

/// Behind the item that starts at `start`: behind its first `;` outside brackets, or behind the
/// braces of its body.
pub fn item_end(code: &str, start: usize) -> usize {
    let (mut depth, mut in_body) = (0_i32, false);
    for (i, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' => {
                in_body |= depth == 0;
                depth += 1;
            }
            b'}' => {
                depth -= 1;
                if in_body && depth == 0 {
                    return i + 1;
                }
            }
            b';' if depth == 0 => return i + 1,
            _ => {}
        }
    }
    code.len()
}

/// Code and comments, each with the rest blanked.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut code = blank(bytes);
    let mut comments = code.clone();
    let mut i = 0;
    while i < bytes.len() {
        let end = if bytes[i..].starts_with(b"//") {
            copied(bytes, &mut comments, i, i + line_length(&bytes[i..]))
        } else if bytes[i..].starts_with(b"/*") {
            copied(bytes, &mut comments, i, block_comment_end(bytes, i))
        } else if let Some(end) = literal_end(bytes, i) {
            end
        } else {
            copied(bytes, &mut code, i, i + 1)
        };
        i = end;
    }
    let text = |bytes| String::from_utf8(bytes).expect("whole characters are copied or blanked");
    (text(code), text(comments))
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| if *b == b'\n' { b'\n' } else { b' ' }).collect()
}

fn copied(from: &[u8], to: &mut [u8], start: usize, end: usize) -> usize {
    to[start..end].copy_from_slice(&from[start..end]);
    end
}

fn line_length(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len())
}

fn block_comment_end(bytes: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if bytes[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// Behind the string or character literal that starts at `i`, if one does.
fn literal_end(bytes: &[u8], i: usize) -> Option<usize> {
    match bytes[i] {
        b'"' => Some(string_end(bytes, i + 1)),
        b'\'' => character_end(bytes, i),
        b'r' if !i.checked_sub(1).is_some_and(|j| is_raw_prefix_blocked(bytes, j)) => {
            let n_hashes = bytes[i + 1..].iter().take_while(|b| **b == b'#').count();
            let quote = i + 1 + n_hashes;
            (bytes.get(quote) == Some(&b'"')).then(|| raw_string_end(bytes, quote + 1, n_hashes))
        }
        _ => None,
    }
}

/// Whether the byte at `j`, before an `r`, makes that `r` part of an identifier. `b` and `c` are
/// prefixes of literals themselves.
fn is_raw_prefix_blocked(bytes: &[u8], j: usize) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_prefix = matches!(bytes[j], b'b' | b'c') && !(j > 0 && is_word(bytes[j - 1]));
    is_word(bytes[j]) && !is_prefix
}

fn string_end(bytes: &[u8], mut i: usize) -> usize {
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

fn raw_string_end(bytes: &[u8], start: usize, n_hashes: usize) -> usize {
    let closes = |i: &usize| {
        let behind = bytes[i + 1..].iter().take(n_hashes);
        bytes[*i] == b'"' && behind.filter(|b| **b == b'#').count() == n_hashes
    };
    (start..bytes.len()).find(closes).map_or(bytes.len(), |i| i + 1 + n_hashes)
}

/// `None` for a lifetime.
fn character_end(bytes: &[u8], i: usize) -> Option<usize> {
    if bytes.get(i + 1) == Some(&b'\\') {
        let close = bytes[i + 3..].iter().position(|b| *b == b'\'')?;
        return Some(i + 3 + close + 1);
    }
    let length = match *bytes.get(i + 1)? {
        b if b < 0x80 => 1,
        b if b < 0xE0 => 2,
        b if b < 0xF0 => 3,
        _ => 4,
    };
    (bytes.get(i + 1 + length) == Some(&b'\'')).then_some(i + 2 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_comments_and_characters_are_no_code() {
        let check = |text: &str, code: &str| {
            assert_eq!(split(text).0.trim_end(), code, "{text}");
        };
        check("let a = \"fn {\"; b", "let a =       ; b");
        check("let a = \"\\\"{\"; b", "let a =      ; b");
        check("a // fn {\nb", "a        \nb");
        check("a /* { /* } */ { */ b", "a                   b");
        check("r\"{\" x", "     x");
        check("r#\"{\"{\"# x", "         x");
        check("br#\"{\"# x", "b       x");
        check("var\"{\" x", "var    x");
        check("'{' x", "    x");
        check("'\\'' x", "     x");
        check("'\\u{7b}' x", "         x");
        check("'ü' x", "     x");
        check("&'a str {", "&'a str {");
    }

    #[test]
    fn comments_keep_their_place() {
        assert_eq!(split("a // b\nc").1, "  // b\n ");
    }

    #[test]
    fn functions_reach_to_their_closing_brace() {
        let text = "fn a(f: fn(i32) -> [u8; 2]) {\n  if x { '}' }\n}\ntrait T {\n  fn b();\n  \
                    fn c() {}\n}\n";
        let functions = Rust::scan("a.rs", text).functions();
        let found = functions.iter().map(|f| (f.name.as_str(), f.first_line, f.last_line));
        assert_eq!(found.collect::<Vec<_>>(), [("a", 1, 3), ("c", 6, 6)]);
    }

    #[test]
    fn test_items_are_marked_to_their_end() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n}\n#[cfg(test)]\nmod fuzz;\nfn b() {}\n";
        let rust = Rust::scan("src/a.rs", text);
        assert_eq!(rust.is_test, [false, true, true, true, true, true, false]);
        assert_eq!(rust.test_modules, ["fuzz"]);
        assert!(Rust::scan("crates/a/tests/b.rs", text).is_test.iter().all(|t| *t));
    }

    #[test]
    fn a_word_inside_a_word_is_not_found() {
        assert_eq!(words("fn fns afn fn", "fn"), [0, 11]);
    }
}
