//! Whatever a grammar of calls lets a model write is a call that parses.

use grammar::{Grammars, Vocabulary};
use protocol::Rule;
use text::{AnswerStream, Json, MustCall};

use super::*;

fn strict_tools() -> Vec<Json> {
    let parameters = serde_json::json!({"type": "object", "additionalProperties": false,
        "properties": {
            "city": {"type": "string", "maxLength": 9},
            "days": {"type": "integer", "minimum": 0, "maximum": 99},
            "unit": {"enum": ["C", "F"]},
            "deep": {"$ref": "#/$defs/deep"},
            "list": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
            "free": {"type": "object"},
        },
        "required": ["city", "days"],
        "$defs": {"deep": {"type": "object", "additionalProperties": false,
            "properties": {"on": {"type": "boolean"}}, "required": ["on"]}}});
    let weather = serde_json::json!({"function": {"name": "weather", "parameters": parameters}});
    vec![weather, serde_json::json!({"name": "now"})]
}

fn fits(call: &text::Call) -> bool {
    let arguments = serde_json::from_str::<Json>(&call.arguments).unwrap();
    if call.name == "now" {
        return arguments == serde_json::json!({});
    }
    let is_unit = |unit: &Json| unit == "C" || unit == "F";
    let is_deep = |deep: &Json| deep["on"].is_boolean() && deep.as_object().unwrap().len() == 1;
    call.name == "weather"
        && arguments["city"].is_string()
        && arguments["days"].as_u64().is_some_and(|n| n < 100)
        && arguments.get("unit").is_none_or(is_unit)
        && arguments.get("deep").is_none_or(is_deep)
        && arguments.get("list").is_none_or(|l| l.as_array().unwrap().iter().all(Json::is_number))
        && arguments.get("free").is_none_or(Json::is_object)
}

/// A vocabulary, and what is needed to draw from it at random.
struct Model {
    grammars: Grammars,
    vocabulary: Vocabulary,
    n_rows: u32,
    special: Vec<(&'static str, u32)>,
    stop: u32,
}

impl Model {
    fn new() -> Self {
        let json = tokenizer_json(&SPECIAL, &ADDED).to_string();
        let tokenizer = tokenizer();
        let id = |literal: &str| tokenizer.token_to_id(literal).unwrap();
        let n_rows = 1 + [&SPECIAL[..], &ADDED].concat().into_iter().map(id).max().unwrap();
        let vocabulary = || Vocabulary::parse(json.as_bytes(), n_rows as usize).unwrap();
        Self {
            grammars: Grammars::new(vocabulary(), 1 << 20).unwrap(),
            vocabulary: vocabulary(),
            n_rows,
            special: SPECIAL.map(|literal| (literal, id(literal))).to_vec(),
            stop: id("<|im_end|>"),
        }
    }

    /// Draws an answer; `end` is what ends text that would go on forever.
    fn answer(&mut self, lark: &str, end: &str, seed: u8) -> Vec<u32> {
        let rule = Rule::Lark(lark.to_owned());
        let grammar = protocol::Grammar { rule, reasoning: None };
        let mut constraint = self.grammars.begin(&grammar, &[self.stop]).unwrap();
        let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        let (mut ids, mut n_ended) = (Vec::new(), 0);
        while ids.len() < 3000 && !constraint.is_over() {
            let mask = constraint.mask().unwrap();
            let allowed = (0..self.n_rows).filter(|id| mask.allows(*id)).collect::<Vec<_>>();
            let is_special = |id: &&u32| self.special.iter().any(|(_, special)| special == *id);
            let special = allowed.iter().copied().find(|id| is_special(&id));
            let spells = |id: &&u32| *self.vocabulary.text(**id) == end.as_bytes()[n_ended..][..1];
            let ending = allowed.iter().copied().find(|id| spells(&id));
            let closes = |id: &u32| [&b"\""[..], b"}", b"]"].contains(&self.vocabulary.text(*id));
            let closing = allowed.iter().copied().find(closes);
            let chance = rng.next_u32() % 8;
            let id = match (special, ending, closing) {
                (Some(id), ..) if chance < 2 => id,
                (_, Some(id), _) if n_ended > 0 || chance < 4 => id,
                (.., Some(id)) if chance < 5 => id,
                _ => allowed[rng.next_u32() as usize % allowed.len()],
            };
            n_ended = if Some(id) == ending { (n_ended + 1) % end.len() } else { 0 };
            if id == self.stop {
                return ids;
            }
            constraint.accept(id).unwrap();
            ids.push(id);
        }
        assert!(constraint.is_over(), "no end: {lark}");
        ids
    }
}

#[test]
fn whatever_a_grammar_of_calls_allows_parses_and_fits() {
    let (mut model, tokenizer, tools) = (Model::new(), tokenizer(), strict_tools());
    let formats = [
        (HERMES, "\""),
        (QWEN3_CODER, "\n</parameter>\n"),
        (GLM, "</arg_value>\n"),
        (GLM_COMPACT, "</arg_value>"),
        (LLAMA3, "\""),
        (MISTRAL_LIST, "\""),
        (MISTRAL, "\""),
        (HARMONY, "\""),
        (DEEPSEEK_FENCED, "\""),
        (DEEPSEEK, "\""),
        (GEMMA, "\""),
        (FUNCTION_GEMMA, "\""),
    ];
    for (template, end) in formats {
        let format = format_of(template);
        let syntax = format.calls().unwrap();
        for must in [MustCall::Any, MustCall::Named("weather"), MustCall::Named("now")] {
            let lark = syntax.grammar(&tools, must, &model.special).unwrap();
            for seed in 0..12 {
                let ids = model.answer(&lark, end, seed);
                let written = tokenizer.decode(&ids, true).unwrap();
                let mut stream = AnswerStream::new(&tokenizer, &format, &tools, "").unwrap();
                let mut parts = ids.iter().flat_map(|id| stream.push(*id)).collect::<Vec<_>>();
                parts.extend(stream.finish());
                assert!(!parts.is_empty(), "{written}");
                for part in &parts {
                    let Part::Call(call) = part else { panic!("{part:?} of {written}\n{lark}") };
                    assert!(fits(call), "{call:?} of {written}");
                    assert!(must == MustCall::Any || must == MustCall::Named(&call.name));
                }
                assert!(must == MustCall::Any || parts.len() == 1, "{written}");
            }
        }
    }
}

#[test]
fn what_cannot_be_called_is_an_error() {
    let format = format_of(HERMES);
    let syntax = format.calls().unwrap();
    let check = |tools: &[Json], must, wanted: &str| {
        let error = syntax.grammar(tools, must, &[]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    check(&[], MustCall::Any, "no tools");
    check(&strict_tools(), MustCall::Named("other"), "'other'");
    check(&[serde_json::json!({})], MustCall::Any, "no name");
    check(&[serde_json::json!({"name": "a", "parameters": 3})], MustCall::Any, "no object");
}
