//! Whatever a grammar of calls lets a model write is a call that parses.

use grammar::{Compiler, Grammars, Vocabulary};
use protocol::Rule;
use text::{AnswerStream, Json, Said, Wanted};

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

/// Nothing is wanted.
fn free<'a>() -> Wanted<'a> {
    Wanted { tools: &[], named: None, said: None, is_strict: false, max_reasoning_tokens: None }
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
            grammars: Grammars::new(Compiler::new(vocabulary()).unwrap().into(), 1 << 20),
            vocabulary: vocabulary(),
            n_rows,
            special: SPECIAL.map(|literal| (literal, id(literal))).to_vec(),
            stop: id("<|im_end|>"),
        }
    }

    /// Whether an answer is one that the grammar lets end.
    fn takes(&mut self, lark: &str, answer: &str) -> bool {
        let rule = Rule::Lark(lark.to_owned());
        let grammar = protocol::Grammar { rule, reasoning: None };
        let constraint = self.grammars.begin(&grammar, &[self.stop]);
        let mut constraint = constraint.unwrap_or_else(|e| panic!("{e}\n{lark}"));
        let ids = tokenizer().encode_prompt(answer).unwrap();
        let is_allowed = |id: &u32| {
            let is_allowed = constraint.mask().is_ok_and(|mask| mask.allows(*id));
            is_allowed && constraint.accept(*id).is_ok()
        };
        let is_prefix = ids.iter().all(is_allowed);
        let is_over = constraint.is_over();
        is_prefix && (is_over || constraint.mask().is_ok_and(|mask| mask.allows(self.stop)))
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

/// Formats, and what ends a text of theirs that would go on forever.
const FORMATS: [(&str, &str); 12] = [
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

#[test]
fn whatever_a_grammar_of_calls_allows_parses_and_fits() {
    let (mut model, tokenizer, tools) = (Model::new(), tokenizer(), strict_tools());
    for (template, end) in FORMATS {
        let format = format_of(template);
        for named in [None, Some("weather"), Some("now")] {
            let wanted = Wanted { tools: &tools, named, ..free() };
            let lark = format.grammar(&wanted, &model.special).unwrap();
            for seed in 0..12 {
                let ids = model.answer(&lark, end, seed);
                let written = tokenizer.decode(&ids, true).unwrap();
                let mut stream = AnswerStream::new(&tokenizer, &format, &tools, TAIL).unwrap();
                let parts = ids.iter().flat_map(|id| stream.push(*id)).collect::<Vec<_>>();
                let parts = parts.into_iter().chain(stream.finish());
                let is_reasoning = |part: &Part| matches!(part, Part::Reasoning(_));
                let parts = parts.filter(|part| !is_reasoning(part)).collect::<Vec<_>>();
                assert!(!parts.is_empty(), "{written}");
                for part in &parts {
                    let Part::Call(call) = part else { panic!("{part:?} of {written}\n{lark}") };
                    assert!(fits(call), "{call:?} of {written}");
                    assert!(named.is_none_or(|named| named == call.name));
                }
                assert!(named.is_none() || parts.len() == 1, "{written}");
            }
        }
    }
}

/// The end of a prompt in the format that has channels; nothing to the others.
const TAIL: &str = "<|start|>assistant";

#[test]
fn what_may_be_said_instead_of_a_call_has_its_form_and_calls_stay_strict() {
    let (mut model, tools) = (Model::new(), strict_tools());
    let arguments = |days: u64| {
        let arguments = serde_json::json!({"city": "Rome", "days": days});
        arguments.as_object().unwrap().clone()
    };
    let (good, bad) = (arguments(9), arguments(900));
    let schema = serde_json::json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let anything = ["", "Hi <b>there</b>.", "{\"a\": [", "[TOOL CALLS]"];
    let only_a = ["{\"a\": 5}", "{\"a\":7}"];
    let forms: [(Said, &[&str], &[&str]); 4] = [
        (Said::Anything, &anything, &[]),
        (Said::Json(schema), &only_a, &anything),
        (Said::Regex("a/b\\/[0-9]+".to_owned()), &["a/b/7", "a/b/33"], &anything),
        (Said::Lark("start: \"}{\" B\nB: /b+/".to_owned()), &["}{b", "}{bbb"], &anything),
    ];
    for (template, _) in FORMATS {
        let format = format_of(template);
        let syntax = format.calls().unwrap();
        let said = |text: &str| match format.has_channels() {
            true => ["<|channel|>final<|message|>", text].concat(),
            false => text.to_owned(),
        };
        let call = syntax.render(&[("weather", &good)]);
        for (form, taken, refused) in &forms {
            let wanted = Wanted { tools: &tools, named: None, said: Some(form), ..free() };
            let lark = format.grammar(&wanted, &model.special).unwrap();
            let mut check = |answer: &str, is_taken: bool| {
                assert_eq!(model.takes(&lark, answer), is_taken, "{answer:?}\n{lark}");
            };
            check(&call, true);
            check(&syntax.render(&[("weather", &bad)]), false);
            check(&syntax.render(&[("other", &good)]), false);
            if syntax.between.is_some() {
                check(&syntax.render(&[("weather", &good), ("now", &Default::default())]), true);
                check(&syntax.render(&[("weather", &good), ("weather", &bad)]), false);
            }
            taken.iter().for_each(|text| check(&said(text), true));
            refused.iter().for_each(|text| check(&said(text), false));
            if let (Said::Anything, false) = (form, format.has_channels()) {
                check(&format!("Let me see. {call}"), true);
                let bad = syntax.render(&[("weather", &bad)]);
                check(&format!("Let me see. {bad}"), false);
            }
        }
    }
}

#[test]
fn channels_are_opened_before_a_form_and_reasoning_may_come_first() {
    let (mut model, format) = (Model::new(), format_of(HARMONY));
    let digits = Said::Regex("[0-9]+".to_owned());
    let wanted = Wanted { said: Some(&digits), ..free() };
    let lark = format.grammar(&wanted, &model.special).unwrap();
    let thought = "<|channel|>analysis<|message|>Well, well.<|end|><|start|>assistant";
    let answer = "<|channel|>final<|message|>17";
    assert!(model.takes(&lark, answer));
    assert!(model.takes(&lark, &format!("{thought}{answer}")));
    assert!(model.takes(&lark, &format!("{thought}{thought}{answer}")));
    assert!(!model.takes(&lark, "17") && !model.takes(&lark, &format!("{thought}17")));
}

#[test]
fn thinking_in_a_channel_ends_in_time_before_forms_and_calls() {
    let (mut model, format, tools) = (Model::new(), format_of(HARMONY), strict_tools());
    let thought =
        |text: &str| format!("<|channel|>analysis<|message|>{text}<|end|><|start|>assistant");
    let note = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant";
    let call = format.calls().unwrap().render(&[("now", &Default::default())]);
    let digits = Said::Regex("[0-9]+".to_owned());
    let said = ["<|channel|>final<|message|>17", &call];
    for (form, tools) in [
        (Some(&digits), &tools[..]),
        (Some(&digits), &[]),
        (None, &tools),
        (Some(&Said::Anything), &tools),
    ] {
        let wanted = |max| Wanted { tools, said: form, max_reasoning_tokens: max, ..free() };
        let [free, five, none] = [None, Some(5), Some(0)]
            .map(|max| format.grammar(&wanted(max), &model.special).unwrap());
        let ways = said.iter().zip([form.is_some(), !tools.is_empty()]);
        for last in ways.filter(|(_, may)| *may).map(|(last, _)| last) {
            // Each character is a token of this vocabulary.
            let [long, fits] = [thought("abcdef"), thought("abcde")].map(|t| t + last);
            let mut check = |lark: &str, answer: &str, is_taken: bool| {
                assert_eq!(model.takes(lark, answer), is_taken, "{answer}\n{lark}");
            };
            check(&free, &long, true);
            check(&five, &long, false);
            check(&five, &fits, true);
            check(&five, last, true);
            check(&five, &(thought("ab") + &fits), false);
            check(&none, last, true);
            check(&none, &fits, false);
            let is_free = form == Some(&Said::Anything);
            check(&five, &(thought("abc") + note + last), is_free);
            check(&none, &(note.to_owned() + last), is_free);
        }
    }
    let wanted = Wanted { said: Some(&digits), max_reasoning_tokens: Some(5), ..free() };
    let error = format.grammar(&wanted, &[]).unwrap_err().to_string();
    assert!(error.contains("no token"), "{error}");
}

/// JSON by a form beside calls that are JSON: a schema, JSON by it, and whether it may be beside
/// strict tools.
const BESIDE: [(&str, &str, bool); 4] = [
    (
        r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 7},
            "age": {"type": "integer", "maximum": 9}}, "required": ["name", "age"]}"#,
        r#"{"name": "now", "age": 3}"#,
        true,
    ),
    (
        r#"{"type": "object", "additionalProperties": false, "required": ["name"], "properties":
            {"name": {"enum": ["weather", "now"]}, "type": {"type": "boolean"}}}"#,
        r#"{"name": "now"}"#,
        true,
    ),
    (r#"{"type": "array", "maxItems": 2, "items": {"enum": ["{", 1]}}"#, r#"["{", 1]"#, true),
    (
        r##"{"type": "object", "additionalProperties": false, "required": ["name", "parameters"],
            "properties": {"name": {"enum": ["weather", "trip"]},
                "parameters": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"type": "object", "additionalProperties": false,
                "properties": {"x": {"enum": [0]}}}}}"##,
        r#"{"name": "trip", "parameters": {"x": 0}}"#,
        false,
    ),
];

#[test]
fn json_beside_calls_that_are_json_comes_out_as_what_it_is() {
    let (mut model, tokenizer, tools) = (Model::new(), tokenizer(), strict_tools());
    let format = format_of(LLAMA3);
    for (schema, json, may_be_strict) in BESIDE {
        let said = Said::Json(serde_json::from_str(schema).unwrap());
        let wanted = |is_strict| Wanted { tools: &tools, said: Some(&said), is_strict, ..free() };
        let strict = format.grammar(&wanted(true), &model.special);
        assert_eq!(strict.is_ok(), may_be_strict, "{schema}");
        let lark = format.grammar(&wanted(false), &model.special).unwrap();
        for answer in [json, r#"{"name": "now", "parameters": {}}"#] {
            assert!(model.takes(&lark, answer), "{answer} {lark}");
        }
        assert!(!model.takes(&lark, r#"{"name": "weather", "parameters": {"days": 3}}"#));
        let mut n_said = 0;
        for seed in 0..40 {
            let ids = model.answer(&lark, "\"", seed);
            let written = tokenizer.decode(&ids, true).unwrap();
            let format = format.beside_a_form();
            let mut stream = AnswerStream::new(&tokenizer, &format, &tools, "").unwrap();
            let parts = ids.iter().flat_map(|id| stream.push(*id)).collect::<Vec<_>>();
            let parts = parts.into_iter().chain(stream.finish());
            let (mut text, mut calls) = (String::new(), Vec::new());
            for part in parts {
                match part {
                    Part::Text(more) => text.push_str(&more),
                    Part::Call(call) => calls.push(call),
                    Part::Reasoning(_) => panic!("{written}"),
                }
            }
            n_said += usize::from(calls.is_empty());
            match &calls[..] {
                [] => assert_eq!(text.trim(), written.trim(), "{schema}"),
                [call] => assert!(text.is_empty() && (fits(call) || !may_be_strict), "{written}"),
                _ => panic!("{written}"),
            }
        }
        assert!(n_said > 0, "{schema}");
    }
}

#[test]
fn beside_a_form_only_what_has_the_members_of_a_call_in_order_is_one() {
    let check = |answer: &str, n_calls: usize| {
        let format = format_of(LLAMA3).beside_a_form();
        let mut parser = AnswerParser::new(&format, &strict_tools(), "");
        let mut parts = parser.push(answer);
        parts.extend(parser.finish());
        let calls = parts.iter().filter(|part| matches!(part, Part::Call(_))).count();
        assert_eq!(calls, n_calls, "{answer} {parts:?}");
        if n_calls == 0 {
            let text = parts.iter().map(|part| match part {
                Part::Text(text) => text.as_str(),
                part => panic!("{part:?}"),
            });
            assert_eq!(text.collect::<String>(), answer);
        }
    };
    check(r#"{"name": "now", "parameters": {}}"#, 1);
    check(r#"{"name": "now", "parameters": {"a": "}"}}"#, 1);
    check("{\"name\":\"now\",\n \"parameters\":{}\t}", 1);
    check(r#"{"parameters": {}, "name": "now"}"#, 0);
    check(r#"{"na me": "now", "parameters": {}}"#, 0);
    check(r#"{"name": "now", "parameters": {}, "id": 1}"#, 0);
    check(r#"{"name": "now", "parameters": [{}]}"#, 0);
    check(r#"{"name": "now"}"#, 0);
    check(r#"{"name": "nowhere", "parameters": {}}"#, 0);
    check(r#"{"type": "function", "name": "now", "parameters": {}}"#, 0);
    check(r#"{"function": {"name": "now", "parameters": {}}}"#, 0);
    // Text does not wait for the end of an object that cannot be a call any more.
    let format = format_of(LLAMA3).beside_a_form();
    let mut parser = AnswerParser::new(&format, &strict_tools(), "");
    let begun = r#"{"name": "Ada"#;
    assert_eq!(parser.push(begun), [Part::Text(begun.to_owned())]);
}

#[test]
fn what_cannot_be_called_is_an_error() {
    let format = format_of(HERMES);
    let check = |format: &AnswerFormat, tools: &[Json], named, reason: &str| {
        let wanted = Wanted { tools, named, ..free() };
        let error = format.grammar(&wanted, &[]).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    check(&format, &[], None, "no tools");
    check(&format, &strict_tools(), Some("other"), "'other'");
    check(&format, &[serde_json::json!({})], None, "no name");
    check(&format, &[serde_json::json!({"name": "a", "parameters": 3})], None, "no object");
    check(&AnswerFormat::plain(), &strict_tools(), None, "no calls");
}
