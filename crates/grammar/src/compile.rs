//! From the text of a rule to an automaton, within limits: what a caller wrote may be anything.

use std::panic::AssertUnwindSafe;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, panic_utils};
use protocol::{InvalidField, Rule};
use serde_json::{Map, Value};

/// Nested brackets of a rule. A JSON schema needs two levels for each level of its objects.
const MAX_DEPTH: usize = 64;
/// Bytes of a regular expression, and of a Lark grammar.
const MAX_REGEX_BYTES: usize = 16 << 10;
const MAX_LARK_BYTES: usize = 256 << 10;
/// Values in the JSON of a schema, and properties of one object in it: compiling takes time that
/// grows with the square of properties, 0.2 s for the most.
const MAX_SCHEMA_VALUES: usize = 4_000;
const MAX_PROPERTIES: usize = 512;
/// Blanks between two parts of a JSON text: enough to indent, and no way to go on forever.
const JSON_BLANKS: &str = r"[ \t\r\n]{1,64}";
/// Bytes that a symbol of a compiled grammar takes, its rules and its name included.
const SYMBOL_BYTES: usize = 1024;
/// Bytes of what is not shared, whatever the grammar.
const BASE_BYTES: usize = 16 << 10;
/// Of an explanation.
const MAX_REASON_CHARS: usize = 300;

/// A compiled rule at its beginning. It is copied and never goes on itself.
pub struct Compiled {
    pub(crate) matcher: Matcher,
    /// What it takes in memory, about.
    pub(crate) bytes: usize,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiled").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Work and memory of one grammar. Fuel is counted in steps of the lexer's automaton: 14,000 to
/// 50,000 take about a millisecond.
pub(crate) fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // Four for each property that may come next.
        max_items_in_row: 5 * MAX_PROPERTIES,
        max_lexer_states: 25_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// Compiles a rule.
///
/// # Errors
/// It cannot be used; says why.
pub(crate) fn compile(factory: &ParserFactory, rule: &Rule) -> Result<Compiled, InvalidField> {
    let (field, text) = rule.text();
    let refused = |reason: String| InvalidField { field, reason };
    let grammar = parse(rule).map_err(refused)?;
    let compiled = panic_utils::catch_unwind(AssertUnwindSafe(|| {
        let init = GrammarInit::Serialized(grammar);
        let (grammar, lexer) = init.to_internal(Some(factory.tok_env().clone()), limits())?;
        let n_symbols = grammar.num_symbols();
        let init = GrammarInit::Internal(grammar, lexer);
        let parser = factory.create_parser_from_init_default(init)?;
        let lexer_bytes = parser.parser.lexer_stats().num_bytes;
        let bytes = BASE_BYTES + 2 * text.len() + n_symbols * SYMBOL_BYTES + 2 * lexer_bytes;
        Ok(Compiled { matcher: Matcher::new(Ok(parser)), bytes })
    }));
    compiled.map_err(|error| refused(format!("cannot be used: {}", told(&error.to_string()))))
}

fn parse(rule: &Rule) -> Result<TopLevelGrammar, String> {
    match rule {
        Rule::Anything => Ok(TopLevelGrammar::from_regex("(?s:.*)")),
        Rule::JsonSchema(text) => {
            let schema = serde_json::from_str::<Value>(text);
            let schema = schema.map_err(|e| format!("is not JSON: {e}"))?;
            Ok(TopLevelGrammar::from_json_schema(schema_within_limits(schema)?))
        }
        Rule::Regex(text) => {
            check_length(text, MAX_REGEX_BYTES)?;
            check_depth(text.chars())?;
            Ok(TopLevelGrammar::from_regex(text))
        }
        Rule::Lark(text) => {
            check_length(text, MAX_LARK_BYTES)?;
            check_depth(lark_without_literals(text))?;
            check_schemas_in_lark(text)?;
            Ok(TopLevelGrammar::from_lark(lark_with_bounded_blanks(text)?))
        }
    }
}

/// The schemas of all `%json {...}`. One that is no JSON is refused by whoever parses the grammar.
fn check_schemas_in_lark(text: &str) -> Result<(), String> {
    let mut n_values = 0;
    for (at, keyword) in text.match_indices("%json") {
        let schema = serde_json::Deserializer::from_str(&text[at + keyword.len()..]);
        if let Some(Ok(Value::Object(schema))) = schema.into_iter().next() {
            check_map(&schema, 1, &mut n_values)?;
        }
    }
    Ok(())
}

fn check_length(text: &str, max_bytes: usize) -> Result<(), String> {
    let n = text.len();
    if n > max_bytes {
        return Err(format!("has {n} bytes, at most {max_bytes} are allowed"));
    }
    Ok(())
}

/// A schema with bounded blanks, if it is not too deep and refers to nothing outside.
fn schema_within_limits(schema: Value) -> Result<Value, String> {
    let root = match schema {
        Value::Object(root) => root,
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err("is false: no JSON text matches it".to_owned()),
        _ => return Err("must be an object or a boolean".to_owned()),
    };
    let mut n_values = 0;
    check_map(&root, 1, &mut n_values)?;
    schema_with_bounded_blanks(root)
}

fn schema_with_bounded_blanks(mut root: Map<String, Value>) -> Result<Value, String> {
    if root.contains_key(OPTIONS) {
        return Err(format!("has '{OPTIONS}', which is no keyword of JSON Schema"));
    }
    let options = serde_json::json!({ "whitespace_pattern": JSON_BLANKS });
    root.insert(OPTIONS.to_owned(), options);
    Ok(Value::Object(root))
}

/// A Lark grammar in which all `%json {...}` are so. What is no schema is left for whoever parses
/// the grammar.
fn lark_with_bounded_blanks(text: &str) -> Result<String, String> {
    let (mut bounded, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(c) = rest.chars().next() {
        let mut n_bytes = literal_bytes(rest).unwrap_or(c.len_utf8());
        for keyword in ["%json", "%llguidance", "%regex"] {
            let Some(after) = rest.strip_prefix(keyword) else { continue };
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<Value>();
            let root = |value| match value {
                Value::Object(root) => Some(root),
                Value::Bool(true) => Some(Map::new()),
                _ => None,
            };
            match values.next().and_then(Result::ok).map(|value| (root(value), keyword)) {
                Some((Some(root), "%json")) => {
                    let schema = schema_with_bounded_blanks(root)?;
                    bounded.push_str(&format!("{keyword} {schema}"));
                    rest = &after[values.byte_offset()..];
                    n_bytes = 0;
                }
                Some(_) => n_bytes = keyword.len() + values.byte_offset(),
                None => {}
            }
            break;
        }
        bounded.push_str(&rest[..n_bytes]);
        rest = &rest[n_bytes..];
    }
    Ok(bounded)
}

/// The bytes of a string, an expression, a comment or the name of a special token, if the text of a
/// Lark grammar begins with one. One without an end goes on to the end of the line.
fn literal_bytes(text: &str) -> Option<usize> {
    let line_end = || text.find('\n').unwrap_or(text.len());
    let until = |end: u8| {
        let mut is_escaped = false;
        let found = text.bytes().skip(1).position(|byte| {
            let is_end = byte == b'\n' || byte == end && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        });
        // The end of a line is no part of it, and does no harm as one.
        found.map_or(text.len(), |at| at + 2)
    };
    match text.as_bytes().first()? {
        b'#' => Some(line_end()),
        b'/' if text.starts_with("//") => Some(line_end()),
        b'"' => Some(until(b'"')),
        b'/' => Some(until(b'/')),
        b'<' => {
            let is_end = |c: char| c == '>' || c == '<' || c.is_whitespace();
            let at = 1 + text[1..].find(is_end)?;
            text[at..].starts_with('>').then_some(at + 1)
        }
        _ => None,
    }
}

/// Where llguidance looks for options.
const OPTIONS: &str = "x-guidance";

fn check_schema(value: &Value, depth: usize, n_values: &mut usize) -> Result<(), String> {
    *n_values += 1;
    if depth > MAX_DEPTH {
        return Err(format!("is nested more than {MAX_DEPTH} deep"));
    }
    if *n_values > MAX_SCHEMA_VALUES {
        return Err(format!("has more than {MAX_SCHEMA_VALUES} values"));
    }
    match value {
        Value::Array(items) => {
            items.iter().try_for_each(|item| check_schema(item, depth + 1, n_values))
        }
        Value::Object(map) => check_map(map, depth + 1, n_values),
        _ => Ok(()),
    }
}

fn check_map(map: &Map<String, Value>, depth: usize, n_values: &mut usize) -> Result<(), String> {
    if map.len() > MAX_PROPERTIES {
        let n = map.len();
        return Err(format!("has an object with {n} members, at most {MAX_PROPERTIES} may be"));
    }
    check_reference(map)?;
    map.values().try_for_each(|value| check_schema(value, depth, n_values))
}

fn check_reference(map: &Map<String, Value>) -> Result<(), String> {
    for keyword in ["$ref", "$dynamicRef", "$recursiveRef"] {
        match map.get(keyword) {
            Some(Value::String(to)) if !to.starts_with('#') => {
                return Err(format!(
                    "refers to '{}': only references into the schema itself (#/...) are \
                     followed, nothing is fetched",
                    shortened(to)
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_depth(text: impl Iterator<Item = char>) -> Result<(), String> {
    let (mut depth, mut is_escaped) = (0usize, false);
    for c in text {
        match c {
            _ if is_escaped => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        is_escaped = c == '\\' && !is_escaped;
        if depth > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} deep"));
        }
    }
    Ok(())
}

/// The text of a Lark grammar without strings and comments. Expressions between slashes stay: they
/// nest too.
fn lark_without_literals(text: &str) -> impl Iterator<Item = char> {
    let (mut is_string, mut is_comment, mut is_escaped, mut before) = (false, false, false, ' ');
    text.chars().filter(move |c| {
        let was_literal = is_string || is_comment;
        match c {
            '\n' => (is_string, is_comment) = (false, false),
            '"' if !is_comment && !is_escaped => is_string = !is_string,
            '/' if !is_string && before == '/' => is_comment = true,
            '#' if !is_string && before == '\n' => is_comment = true,
            _ => {}
        }
        is_escaped = *c == '\\' && !is_escaped;
        before = *c;
        !was_literal
    })
}

/// What llguidance says, for somebody who does not know it.
pub(crate) fn told(error: &str) -> String {
    if error.contains("coerce_one_of") {
        return "its 'oneOf' has options that may hold at the same time, which cannot be enforced; \
                use 'anyOf'"
            .to_owned();
    }
    if error.starts_with("panic") {
        return "it is of a kind that is not supported".to_owned();
    }
    let lines = error.lines().map(str::trim).filter(|line| !line.starts_with('<'));
    shortened(&lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; "))
}

fn shortened(text: &str) -> String {
    let mut short = text.chars().take(MAX_REASON_CHARS).collect::<String>();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
