//! Which format a template has, and that what the table of syntaxes says is what parsers read.

use proptest::prelude::*;
use text::{Call, JsonMap};

use super::*;
use crate::runner;

const TEMPLATES: [(&str, &str, &str); 13] = [
    ("hermes", HERMES, "<tool_call>\n{\"name\": \"f\", \"arguments\": "),
    ("qwen3", QWEN3, "<tool_call>\n{\"name\": \"f\", \"arguments\": "),
    ("qwen3_coder", QWEN3_CODER, "<tool_call>\n<function=f>\n"),
    ("glm", GLM, "<tool_call>f\n"),
    ("glm_compact", GLM_COMPACT, "<tool_call>f"),
    ("llama3", LLAMA3, "{\"name\": \"f\", \"parameters\": "),
    ("mistral_list", MISTRAL_LIST, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": "),
    ("mistral", MISTRAL, "[TOOL_CALLS]f[ARGS]"),
    ("harmony", HARMONY, "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"),
    (
        "deepseek_fenced",
        DEEPSEEK_FENCED,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n",
    ),
    ("deepseek", DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
    ("gemma", GEMMA, "<|tool_call>call:f"),
    ("function_gemma", FUNCTION_GEMMA, "<start_function_call>call:f"),
];

#[test]
fn the_format_is_read_off_the_template_and_the_tokens() {
    for (name, template, prefix) in TEMPLATES {
        let format = format_of(template);
        assert_eq!(
            format.calls().map(|calls| calls.prefix("f")).as_deref(),
            Some(prefix),
            "{name}"
        );
    }
    let think = Some(("<think>", "</think>"));
    for (template, tags) in [
        (QWEN3, think),
        (GLM, think),
        (DEEPSEEK_FENCED, think),
        (MISTRAL, Some(("[THINK]", "[/THINK]"))),
        (GEMMA, Some(("<|channel>", "<channel|>"))),
        (HARMONY, None),
    ] {
        let format = format_of(template);
        assert_eq!(format.reasoning_tags(), tags);
        assert!(format.has_reasoning());
    }
    let bare = with_tokens(&[], &[]);
    let source =
        |text: &str| TemplateSource { default: "plain".into(), tool_use: Some(text.into()) };
    let plain = AnswerFormat::detect(Some(&source("plain")), &bare);
    assert_eq!(plain, AnswerFormat::plain());
    assert!(plain.calls().is_none() && !plain.has_reasoning());
    let by_token = AnswerFormat::detect(None, &with_tokens(&[], &["<think>", "</think>"]));
    assert_eq!((by_token.reasoning_tags(), by_token.calls()), (think, None));
    let tool_use = AnswerFormat::detect(Some(&source(HERMES)), &bare);
    assert_eq!(tool_use.calls(), format_of(HERMES).calls());
    assert_eq!(tool_use.special_markup(), [""; 0]);
    assert_eq!(AnswerFormat::detect(Some(&source(MISTRAL)), &bare).special_markup(), [""; 0]);
    assert!(format_of(MISTRAL).special_markup().contains(&"[ARGS]"));
}

#[test]
fn markup_counts_in_text_where_the_tokenizer_has_no_token_for_it() {
    let source = |text: &str| TemplateSource { default: text.into(), tool_use: None };
    let bare = with_tokens(&[], &[]);
    for (template, tail, answer) in [
        (MISTRAL, "", "[THINK]a[/THINK]b[TOOL_CALLS]now[ARGS]{}"),
        (
            HARMONY,
            "<|start|>assistant",
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b\
             <|end|><|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}\
             <|call|>",
        ),
    ] {
        let format = AnswerFormat::detect(Some(&source(template)), &bare);
        let parser = AnswerParser::new(&format, &tools(), tail);
        let parts = parse(parser, &[Piece::Text(answer.into())], |_| 1);
        assert_eq!(lines(&parts), ["reasoning a", "text b", "call 0 now {}"]);
    }
}

/// Objects whose strings may hold anything that the syntax can carry.
fn arguments(forbidden: &'static [&'static str]) -> impl Strategy<Value = JsonMap> {
    let text = prop_oneof![
        "[a-z<>/{}\\[\\]\",:= \n]{0,12}",
        prop::sample::select(&[
            "</tool_call>",
            "\n",
            "é\u{1F980}",
            "</think>",
            "{\"name\": 1}",
            "<"
        ])
        .prop_map(str::to_owned),
    ];
    let text = text.prop_filter("forbidden", move |t| !forbidden.iter().any(|f| t.contains(f)));
    let leaf = prop_oneof![
        text.prop_map(Json::from),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        Just(Json::Null),
    ];
    let value = leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::vec(("[a-z_]{1,6}", inner), 0..4)
                .prop_map(|members| Json::Object(members.into_iter().collect())),
        ]
    });
    prop::collection::vec(("[a-z_]{1,6}", value), 0..4)
        .prop_map(|members| members.into_iter().collect())
}

/// A tool whose arguments have the types of these values.
fn tool_of(arguments: &JsonMap) -> Json {
    let type_of = |value: &Json| match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    let property =
        |(key, value): (&String, &Json)| (key.clone(), serde_json::json!({"type": type_of(value)}));
    let properties: JsonMap = arguments.iter().map(property).collect();
    serde_json::json!({"function": {"name": "f", "parameters": {"properties": properties}}})
}

#[test]
fn rendered_calls_parse_to_the_same_names_and_json() {
    for (name, template, _) in TEMPLATES {
        let format = format_of(template);
        let syntax = *format.calls().unwrap();
        let n_calls = if syntax.between.is_some() { 3 } else { 1 };
        let input = (arguments(&["</parameter>", "</arg_value>"]), any::<[u8; 32]>());
        let check = |(arguments, seed): (JsonMap, [u8; 32])| {
            let answer = syntax.render(&vec![("f", &arguments); n_calls]);
            let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
            let tail = if template == HARMONY { "<|start|>assistant" } else { "" };
            let parser = AnswerParser::new(&format, &[tool_of(&arguments)], tail);
            let cut = |_: &str| 1 + rng.next_u32() as usize % 9;
            let parts = parse(parser, &pieces(&answer), cut);
            let is_call = |idx, part: &Part| {
                let Part::Call(Call { index, name, arguments: json, .. }) = part else {
                    return false;
                };
                let json: JsonMap = serde_json::from_str(json).unwrap();
                (*index, name.as_str(), json) == (idx, "f", arguments.clone())
            };
            let all = parts.iter().enumerate().all(|(idx, part)| is_call(idx, part));
            prop_assert!(all && parts.len() == n_calls, "{name}: {answer:?} became {parts:?}");
            Ok(())
        };
        runner(200).run(&input, check).unwrap();
    }
}
