//! Where a JSON value in a stream ends, and as early as possible that it is none.
//!
//! Structure is checked character by character; what a scalar or an escape says is left to the
//! parser that reads the whole. Control characters in strings are let through and reported:
//! models write bare newlines there.

/// Deepest nesting that is scanned; parsers of JSON stop at 128.
const MAX_DEPTH: usize = 100;

/// What one more character makes of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    More,
    Done,
    Bad,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    Scalar,
    String { is_key: bool, escaped: bool },
}

/// Scans one object or array.
#[derive(Debug)]
pub(super) struct JsonScanner {
    /// The closing brackets that are due, innermost last.
    closers: Vec<char>,
    expect: Expect,
    /// A string held a bare control character.
    pub(super) has_controls: bool,
}

impl JsonScanner {
    pub(super) fn new() -> JsonScanner {
        JsonScanner { closers: Vec::new(), expect: Expect::Value, has_controls: false }
    }

    /// Whether the outermost object has just got the colon behind a key.
    pub(super) fn is_after_outer_colon(&self) -> bool {
        self.closers.len() == 1 && self.expect == Expect::Value
    }

    pub(super) fn step(&mut self, c: char) -> Scan {
        use Expect::*;
        match (self.expect, c) {
            (String { is_key, escaped: true }, _) => self.now(String { is_key, escaped: false }),
            (String { is_key, .. }, '\\') => self.now(String { is_key, escaped: true }),
            (String { is_key: true, .. }, '"') => self.now(Colon),
            (String { is_key: false, .. }, '"') => self.now(CommaOrEnd),
            (String { .. }, _) => {
                self.has_controls |= c < ' ';
                Scan::More
            }
            (Scalar, 'a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '-' | '.') => Scan::More,
            (Scalar, _) => {
                self.expect = CommaOrEnd;
                self.step(c)
            }
            (_, ' ' | '\t' | '\n' | '\r') => Scan::More,
            (Value | ValueOrEnd, '{') => self.open('}', KeyOrEnd),
            (Value | ValueOrEnd, '[') => self.open(']', ValueOrEnd),
            _ if self.closers.is_empty() => Scan::Bad,
            (KeyOrEnd | CommaOrEnd, '}') | (ValueOrEnd | CommaOrEnd, ']') => self.close(c),
            (Value | ValueOrEnd, '"') => self.now(String { is_key: false, escaped: false }),
            (Value | ValueOrEnd, 'a'..='z' | '0'..='9' | '-') => self.now(Scalar),
            (Key | KeyOrEnd, '"') => self.now(String { is_key: true, escaped: false }),
            (Colon, ':') => self.now(Value),
            (CommaOrEnd, ',') if self.closers.last() == Some(&'}') => self.now(Key),
            (CommaOrEnd, ',') => self.now(Value),
            _ => Scan::Bad,
        }
    }

    fn now(&mut self, expect: Expect) -> Scan {
        self.expect = expect;
        Scan::More
    }

    fn open(&mut self, closer: char, expect: Expect) -> Scan {
        self.closers.push(closer);
        if self.closers.len() > MAX_DEPTH { Scan::Bad } else { self.now(expect) }
    }

    fn close(&mut self, c: char) -> Scan {
        match self.closers.pop() {
            Some(closer) if closer == c && self.closers.is_empty() => Scan::Done,
            Some(closer) if closer == c => self.now(Expect::CommaOrEnd),
            _ => Scan::Bad,
        }
    }
}

/// `json` with the control characters in its strings escaped.
pub(super) fn with_controls_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len() + 16);
    let (mut in_string, mut after_backslash) = (false, false);
    for c in json.chars() {
        match c {
            '\n' if in_string => escaped.push_str("\\n"),
            c if in_string && c < ' ' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
        in_string ^= c == '"' && !after_backslash;
        after_backslash = in_string && c == '\\' && !after_backslash;
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_at_its_last_bracket_and_errors_show_at_once() {
        let check = |json: &str, end: Scan, n_read: usize| {
            let mut scanner = JsonScanner::new();
            let steps = json.chars().map(|c| scanner.step(c)).enumerate();
            let (last, n_steps) = steps
                .map(|(idx, scan)| (scan, idx + 1))
                .find(|(scan, _)| *scan != Scan::More)
                .unwrap_or((Scan::More, json.len()));
            assert_eq!((last, n_steps), (end, n_read), "{json}");
        };
        check("{}x", Scan::Done, 2);
        check(r#" {"a": [1, -2.5e3, {"b": null}], "c": "}\"]"} "#, Scan::Done, 45);
        check("[[], {}]", Scan::Done, 8);
        check("{\"a\": \"line\nbreak\"}", Scan::Done, 19);
        check("{,", Scan::Bad, 2);
        check("{\"a\" 1", Scan::Bad, 6);
        check("{\"a\":1,}", Scan::Bad, 8);
        check("[1 2]", Scan::Bad, 4);
        check("[}", Scan::Bad, 2);
        check("\"text\"", Scan::Bad, 1);
        check("{\"a\": tru", Scan::More, 9);
        check(&"[".repeat(200), Scan::Bad, 101);
    }

    #[test]
    fn bare_controls_are_escaped_in_strings_alone() {
        let mended = with_controls_escaped("{\n\"a\\\"\": \"x\ny\tz\"\n}");
        assert_eq!(mended, "{\n\"a\\\"\": \"x\\ny\\u0009z\"\n}");
    }
}
