//! Parsers of answers: what each format's markup becomes, however it arrives.

mod calls;
mod formats;
mod grammars;
mod hostile;
mod reasoning;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

use text::{AnswerFormat, AnswerParser, AnswerStream, Json, Part, TemplateSource, Tokenizer};

pub const HERMES: &str = include_str!("../../templates/hermes.jinja");
pub const QWEN3: &str = include_str!("../../templates/qwen3.jinja");
pub const QWEN3_CODER: &str = include_str!("../../templates/qwen3_coder.jinja");
pub const GLM: &str = include_str!("../../templates/glm.jinja");
/// GLM since 4.7 writes calls without line breaks.
pub const GLM_COMPACT: &str = "<think></think><tool_call>{{ name }}<arg_key>{{ k }}</arg_key>\
                               <arg_value>{{ v }}</arg_value></tool_call>";
pub const LLAMA3: &str = include_str!("../../templates/llama3.jinja");
pub const MISTRAL_LIST: &str = include_str!("../../templates/mistral.jinja");
pub const MISTRAL: &str = "[THINK]{{ t }}[/THINK][TOOL_CALLS]{{ name }}[ARGS]{{ arguments }}";
pub const HARMONY: &str = include_str!("../../templates/harmony.jinja");
pub const DEEPSEEK_FENCED: &str = include_str!("../../templates/deepseek.jinja");
pub const DEEPSEEK: &str = "<think></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}\
                            <｜tool▁sep｜>{{ arguments }}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
pub const GEMMA: &str = "<|channel>thought\n{{ t }}<channel|><|tool_call>call:{{ name }}{a:<|\"|>}\
                         <tool_call|>";
pub const FUNCTION_GEMMA: &str = "<start_function_call>call:{{ name }}{<escape>}\
                                  <end_function_call>";

/// Markup that the published tokenizers of these formats list as special tokens.
const SPECIAL: [&str; 24] = [
    "<|start|>",
    "<|channel|>",
    "<|constrain|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "[TOOL_CALLS]",
    "[CALL_ID]",
    "[ARGS]",
    "[THINK]",
    "[/THINK]",
    "<|python_tag|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|channel>",
    "<channel|>",
    "<|\"|>",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    "<|eot_id|>",
    "<|im_end|>",
    "<|pad|>",
];
/// Markup that they list as ordinary tokens.
const ADDED: [&str; 5] = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>"];

/// A byte-level tokenizer with the markup of all formats.
pub fn tokenizer() -> Tokenizer {
    with_tokens(&SPECIAL, &ADDED)
}

/// A byte-level tokenizer with these added tokens.
pub fn with_tokens(special: &[&str], added: &[&str]) -> Tokenizer {
    let json = tokenizer_json(special, added);
    Tokenizer::new(json.to_string().as_bytes(), None, None).unwrap()
}

fn tokenizer_json(special: &[&str], added: &[&str]) -> Json {
    let bytes = include_bytes!("../../goldens/byte_level.json");
    let mut json: Json = serde_json::from_slice(bytes).unwrap();
    let tokens = json["added_tokens"].as_array_mut().unwrap();
    let first = tokens[0]["id"].as_u64().unwrap() as usize;
    tokens.clear();
    let all = special.iter().map(|t| (t, true)).chain(added.iter().map(|t| (t, false)));
    for (idx, (content, is_special)) in all.enumerate() {
        tokens.push(serde_json::json!({
            "id": first + idx, "content": content, "special": is_special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }));
    }
    json
}

pub fn format_of(template: &str) -> AnswerFormat {
    let source = TemplateSource { default: template.to_owned(), tool_use: None };
    AnswerFormat::detect(Some(&source), &tokenizer())
}

/// Two tools that the tests call.
pub fn tools() -> Vec<Json> {
    let weather = serde_json::json!({
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"},
            "metric": {"type": "boolean"}, "hours": {"type": "array"},
            "place": {"type": "object"}, "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "scale": {"$ref": "#/$defs/scale"},
        }, "$defs": {"scale": {"enum": ["1", "2"]}}}},
    });
    vec![weather, serde_json::json!({"type": "function", "function": {"name": "now"}})]
}

/// A piece of a stream.
#[derive(Debug, Clone)]
pub enum Piece {
    Text(String),
    Special(String),
}

/// What a tokenizer with the special tokens makes of `text`.
pub fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for (at, _) in text.match_indices(['<', '[']) {
        let special = SPECIAL.iter().find(|literal| text[at..].starts_with(**literal));
        if let Some(literal) = special.filter(|_| at >= from) {
            pieces.push(Piece::Text(text[from..at].to_owned()));
            pieces.push(Piece::Special((*literal).to_owned()));
            from = at + literal.len();
        }
    }
    pieces.push(Piece::Text(text[from..].to_owned()));
    pieces
}

/// Neighbours of one kind joined.
fn joined(parts: impl IntoIterator<Item = Part>) -> Vec<Part> {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(last)), Part::Text(text))
            | (Some(Part::Reasoning(last)), Part::Reasoning(text)) => *last += &text,
            (_, part) => joined.push(part),
        }
    }
    joined
}

/// A parser's parts when text is cut as `cut` says.
pub fn parse(
    mut parser: AnswerParser,
    pieces: &[Piece],
    mut cut: impl FnMut(&str) -> usize,
) -> Vec<Part> {
    let mut parts = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Special(literal) => parts.extend(parser.push_special(literal)),
            Piece::Text(text) => {
                let mut rest = text.as_str();
                while !rest.is_empty() {
                    let n_chars = cut(rest).max(1);
                    let at = rest.char_indices().nth(n_chars).map_or(rest.len(), |(at, _)| at);
                    parts.extend(parser.push(&rest[..at]));
                    rest = &rest[at..];
                }
            }
        }
    }
    parts.extend(parser.finish());
    assert!(
        parts
            .iter()
            .all(|part| !matches!(part, Part::Text(t) | Part::Reasoning(t) if t.is_empty()))
    );
    joined(parts)
}

/// Parts in one line each, as tests write them.
pub fn lines(parts: &[Part]) -> Vec<String> {
    let line = |part: &Part| match part {
        Part::Reasoning(text) => format!("reasoning {text}"),
        Part::Text(text) => format!("text {text}"),
        Part::Call(call) => match &call.id {
            None => format!("call {} {} {}", call.index, call.name, call.arguments),
            Some(id) => format!("call {} {} {} id {id}", call.index, call.name, call.arguments),
        },
    };
    parts.iter().map(line).collect()
}

/// Checks an answer: whole, by character, cut at random with fixed seeds, and as token ids.
pub fn check_after(template: &str, tools: &[Json], tail: &str, answer: &str, expected: &[&str]) {
    let format = format_of(template);
    let new = || AnswerParser::new(&format, tools, tail);
    let pieces = pieces(answer);
    let whole = parse(new(), &pieces, |rest| rest.len());
    assert_eq!(lines(&whole), expected, "{answer:?}");
    assert_eq!(parse(new(), &pieces, |_| 1), whole, "{answer:?} by character");
    for seed in 0..20 {
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let cut = parse(new(), &pieces, |_| 1 + rng.next_u32() as usize % 9);
        assert_eq!(cut, whole, "{answer:?} cut with seed {seed}");
    }
    let tokenizer = tokenizer();
    let mut stream = AnswerStream::new(&tokenizer, &format, tools, tail).unwrap();
    let ids = tokenizer.encode_prompt(answer).unwrap();
    let mut parts: Vec<Part> = ids.into_iter().flat_map(|id| stream.push(id)).collect();
    parts.extend(stream.finish());
    assert_eq!(joined(parts), whole, "{answer:?} by token");
}

pub fn check(template: &str, answer: &str, expected: &[&str]) {
    check_after(template, &tools(), "", answer, expected);
}
