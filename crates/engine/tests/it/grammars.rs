//! Answers with a grammar, of the demo model: whatever is drawn matches, alone and among others.

use std::path::Path;

use engine::Engine;
use grammar::Vocabulary;
use protocol::{
    CacheSettings, Event, Fault, FinishReason, GenerateRequest, Grammar, LoadRequest, ModelSource,
    Reasoning, RequestId, Rule, Sampling, Tag,
};
use serde_json::Value;

use crate::common::twice::Rng;
use crate::common::{engine, request, run};

const STOP: [u32; 2] = [2041, 2039];
const PERSON: &str = r#"{"type": "object", "additionalProperties": false,
    "properties": {"name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["new", "old"]}}},
    "required": ["name", "age", "tags"]}"#;
const DATE: &str = "(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]";
const SUM: &str = "start: n (\"+\" n){1,4}\nn: /[1-9][0-9]?/\n";

fn folder() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    path.to_str().unwrap().to_owned()
}

fn demo(cache: CacheSettings, deterministic: bool) -> Engine {
    let request = LoadRequest {
        source: ModelSource::Folder { path: folder() },
        cache,
        chunk_tokens: Some(48),
        deterministic,
        max_rows: None,
    };
    Engine::load(&request, None, &mut |_, _| std::ops::ControlFlow::Continue(()))
        .map_err(|e| e.message)
        .unwrap()
}

fn vocabulary() -> Vocabulary {
    let bytes = std::fs::read(Path::new(&folder()).join("tokenizer.json")).unwrap();
    Vocabulary::parse(&bytes, 2048).unwrap()
}

fn json(text: &str) -> Option<Rule> {
    Some(Rule::JsonSchema(text.to_owned()))
}

fn regex(text: &str) -> Option<Rule> {
    Some(Rule::Regex(text.to_owned()))
}

fn lark(text: &str) -> Option<Rule> {
    Some(Rule::Lark(text.to_owned()))
}

/// Random, with the seed as its id.
fn asked(seed: u64, rule: Option<Rule>) -> GenerateRequest {
    let mut rng = Rng(seed);
    let n = 2 + rng.below(60);
    GenerateRequest {
        sampling: Sampling { temperature: 1.5, seed, ..Sampling::greedy() },
        stop_tokens: STOP.to_vec(),
        grammar: rule.map(|rule| Grammar { rule, reasoning: None }),
        ..request(seed, &rng.tokens(n), 300)
    }
}

fn submit(engine: &mut Engine, request: &GenerateRequest) {
    engine.submit(request.clone()).map_err(|e| e.message).unwrap();
}

/// All of them at the same time: the tokens of each, and why it ended.
fn answers(engine: &mut Engine, asked: &[GenerateRequest]) -> Vec<(Vec<u32>, FinishReason)> {
    asked.iter().for_each(|request| submit(engine, request));
    let events = run(engine);
    asked.iter().map(|request| answer_of(&events, request.id)).collect()
}

fn answer_of(events: &[Event], wanted: RequestId) -> (Vec<u32>, FinishReason) {
    let tokens = events.iter().filter_map(|event| match event {
        Event::Token { id, token, .. } if *id == wanted => Some(*token),
        _ => None,
    });
    let reason = events.iter().find_map(|event| match event {
        Event::Finished { id, reason, .. } if *id == wanted => Some(*reason),
        Event::Failed { id: Some(id), message, .. } if *id == wanted => panic!("{message}"),
        _ => None,
    });
    (tokens.collect(), reason.expect("it ended"))
}

fn text(vocabulary: &Vocabulary, tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|token| vocabulary.text(*token)).copied();
    String::from_utf8(bytes.collect()).unwrap()
}

fn is_person(text: &str) -> bool {
    let value = serde_json::from_str::<Value>(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let map = value.as_object().unwrap();
    let tags = map["tags"].as_array().unwrap();
    map.len() == 3
        && map["name"].as_str().unwrap().chars().count() <= 12
        && map["age"].as_u64().unwrap() <= 150
        && tags.len() <= 2
        && tags.iter().all(|tag| tag == "new" || tag == "old")
}

fn is_date(text: &str) -> bool {
    let digits = text.bytes().enumerate().all(|(i, b)| match i {
        4 | 7 => b == b'-',
        _ => b.is_ascii_digit(),
    });
    text.len() == 10 && digits && (text.starts_with("19") || text.starts_with("20"))
}

fn is_sum(text: &str) -> bool {
    let terms = text.split('+').collect::<Vec<_>>();
    let is_term = |t: &&str| matches!(t.len(), 1 | 2) && t.parse::<u32>().is_ok_and(|n| n > 0);
    (2..=5).contains(&terms.len()) && terms.iter().all(is_term)
}

/// One of four kinds, and how to tell that an answer is right.
fn of_kind(kind: u64) -> (Option<Rule>, fn(&str) -> bool) {
    match kind % 4 {
        0 => (json(PERSON), is_person),
        1 => (regex(DATE), is_date),
        2 => (lark(SUM), is_sum),
        _ => (None, |_| true),
    }
}

#[test]
fn fifty_hot_answers_by_a_schema_parse_and_obey_it() {
    let (mut engine, vocabulary) = (demo(CacheSettings::default(), false), vocabulary());
    let all = (0..50).map(|seed| asked(seed, json(PERSON))).collect::<Vec<_>>();
    let answers = answers(&mut engine, &all);
    for (tokens, reason) in &answers {
        assert_eq!(*reason, FinishReason::Stop);
        let text = text(&vocabulary, tokens);
        assert!(is_person(&text), "{text}");
    }
    let distinct =
        answers.iter().map(|(tokens, _)| tokens).collect::<std::collections::HashSet<_>>();
    assert!(distinct.len() > 40, "{}", distinct.len());
}

#[test]
fn rows_with_grammars_of_their_own_share_passes_and_disturb_nobody() {
    let vocabulary = vocabulary();
    let mut together = demo(CacheSettings::default(), true);
    let mut alone = demo(CacheSettings::default(), true);
    let all = (0..24).map(|i| GenerateRequest {
        max_tokens: if i % 4 == 3 { 30 } else { 300 },
        top_logprobs: (i % 3 == 0).then_some(2),
        ..asked(i, of_kind(i).0)
    });
    let all = all.collect::<Vec<_>>();
    let found = answers(&mut together, &all);
    for (request, answer) in all.iter().zip(&found) {
        let wanted = answers(&mut alone, std::slice::from_ref(request));
        assert_eq!(*answer, wanted[0], "{}", request.id);
        let (is_right, text) = (of_kind(request.id.0).1, text(&vocabulary, &answer.0));
        assert!(is_right(&text), "{text}");
    }
}

#[test]
fn rows_that_share_a_pass_draw_only_what_their_grammars_allow() {
    let (mut engine, vocabulary) = (demo(CacheSettings::default(), false), vocabulary());
    let all = (0..40).map(|i| GenerateRequest {
        sampling: Sampling {
            top_k: [0, 3][i as usize % 2],
            top_p: [1.0, 0.7][i as usize / 2 % 2],
            min_p: [0.0, 0.1][i as usize / 4 % 2],
            temperature: [1.5, 0.0, 0.8][i as usize % 3],
            repetition_penalty: if i % 5 == 0 { 1.3 } else { 1.0 },
            logit_bias: if i % 7 == 0 { vec![(5, 50.0), (2041, 50.0)] } else { vec![] },
            seed: i,
            ..Sampling::greedy()
        },
        ..asked(i, of_kind(i % 3).0)
    });
    let all = all.collect::<Vec<_>>();
    for (request, (tokens, reason)) in all.iter().zip(answers(&mut engine, &all)) {
        let text = text(&vocabulary, &tokens);
        assert_eq!(reason, FinishReason::Stop, "{} {text}", request.id);
        assert!(of_kind(request.id.0 % 3).1(&text), "{} {text}", request.id);
    }
}

#[test]
fn log_probabilities_are_those_without_a_grammar() {
    let mut engine = demo(CacheSettings::default(), true);
    let first = |engine: &mut Engine, rule| {
        submit(engine, &GenerateRequest { top_logprobs: Some(5), max_tokens: 1, ..asked(3, rule) });
        let events = run(engine);
        let token = events.into_iter().find_map(|event| match event {
            Event::Token { token, logprob, top, .. } => Some((token, logprob.unwrap(), top)),
            _ => None,
        });
        token.expect("a token was drawn")
    };
    let (_, _, top) = first(&mut engine, None);
    let (token, logprob, top_within) = first(&mut engine, regex(DATE));
    assert_eq!(top, top_within);
    assert!(logprob < top[4].1 || top.contains(&(token, logprob)));
}

#[test]
fn the_grammar_begins_after_the_reasoning_in_the_same_pass() {
    let (mut engine, vocabulary) = (demo(CacheSettings::default(), false), vocabulary());
    let reasoning =
        Reasoning { opens: None, closes: Tag::Text("</think>".to_owned()), max_tokens: None };
    let all = (0..12).map(|seed| {
        let mut request = asked(seed, regex(DATE));
        request.grammar.as_mut().unwrap().reasoning = Some(reasoning.clone());
        // The end of the reasoning is drawn by chance, and more of it than the model's own.
        request.sampling.logit_bias = vec![(2043, 10.0)];
        request.max_tokens = 2000;
        request
    });
    let all = all.collect::<Vec<_>>();
    let mut n_reasoned = 0;
    for (tokens, reason) in answers(&mut engine, &all) {
        assert_eq!(reason, FinishReason::Stop);
        let end = tokens.iter().position(|token| *token == 2043).expect("reasoning ended");
        assert!(!tokens[..end].iter().any(|token| STOP.contains(token)));
        n_reasoned += usize::from(end > 0);
        let text = text(&vocabulary, &tokens[end + 1..]);
        assert!(is_date(text.trim_start()), "{text}");
    }
    assert!(n_reasoned > 6, "{n_reasoned}");
}

#[test]
fn a_grammar_ends_the_answer_where_no_stop_token_does() {
    let (mut engine, vocabulary) = (demo(CacheSettings::default(), false), vocabulary());
    let without = |request: GenerateRequest| GenerateRequest { stop_tokens: vec![], ..request };
    let found = answers(&mut engine, &[without(asked(1, regex(DATE)))]);
    let (tokens, reason) = &found[0];
    assert_eq!(*reason, FinishReason::Stop);
    assert!(is_date(&text(&vocabulary, tokens)));
    // It is cut where the number of tokens is.
    let short = GenerateRequest { max_tokens: 2, ..asked(2, json(PERSON)) };
    let found = answers(&mut engine, &[short]);
    assert_eq!((found[0].0.len(), found[0].1), (2, FinishReason::Length));
}

#[test]
fn a_grammar_of_no_use_is_the_callers_fault_and_costs_nobody_an_answer() {
    let (mut engine, vocabulary) = (demo(CacheSettings::default(), false), vocabulary());
    let good = asked(1, json(PERSON));
    submit(&mut engine, &good);
    let mut events = Vec::new();
    let bad = [
        (json("{"), "json_schema "),
        (json(r#"{"$ref": "http://localhost/a"}"#), "nothing is fetched"),
        (regex("("), "regex "),
        (lark("start: nobody"), "lark "),
    ];
    for (id, (rule, _)) in bad.iter().enumerate() {
        submit(&mut engine, &asked(10 + id as u64, rule.clone()));
        engine.step(&mut |event| events.push(event)).map_err(|e| e.message).unwrap();
    }
    // This one is found out on the way.
    submit(&mut engine, &asked(20, lark("start: start")));
    events.extend(run(&mut engine));
    let reasons = bad.iter().map(|(_, reason)| *reason).enumerate();
    let reasons = reasons.map(|(id, reason)| (10 + id as u64, reason)).chain([(20, "lark ")]);
    for (wanted, reason) in reasons {
        let of_it = events.iter().filter(|event| match event {
            Event::Failed { id: Some(id), .. } | Event::Token { id, .. } => id.0 == wanted,
            _ => false,
        });
        let of_it = of_it.collect::<Vec<_>>();
        let [Event::Failed { fault: Fault::Caller, message, .. }] = &of_it[..] else {
            panic!("{wanted}: {of_it:?}");
        };
        assert!(message.contains(reason), "{message}");
    }
    let (tokens, reason) = answer_of(&events, good.id);
    assert_eq!(reason, FinishReason::Stop);
    assert!(is_person(&text(&vocabulary, &tokens)));
    assert_eq!(engine.cache_stats().tiers[0].live_bytes, 0);
}

#[test]
fn a_model_without_a_tokenizer_refuses_grammars_alone() {
    let mut engine = engine();
    let grammar = |rule: Option<Rule>| rule.map(|rule| Grammar { rule, reasoning: None });
    let asked = GenerateRequest { grammar: grammar(regex("a")), ..request(1, &[1, 2], 3) };
    submit(&mut engine, &asked);
    submit(&mut engine, &request(2, &[1, 2], 3));
    let events = run(&mut engine);
    let refusal = events.iter().find_map(|event| match event {
        Event::Failed { id: Some(RequestId(1)), fault, message } => Some((*fault, message)),
        _ => None,
    });
    let (fault, message) = refusal.expect("it fails");
    assert!(fault == Fault::Caller && message.contains("tokenizer.json"), "{message}");
    assert_eq!(answer_of(&events, RequestId(2)).0.len(), 3);
}

#[test]
fn answers_that_make_way_for_others_go_on_in_their_grammars() {
    let vocabulary = vocabulary();
    let long = "[a-z]{40,60}( [a-z]{40,60}){2}";
    let is_right = |text: &str| {
        let words = text.split(' ').collect::<Vec<_>>();
        let is_word =
            |w: &&str| (40..=60).contains(&w.len()) && w.bytes().all(|b| b.is_ascii_lowercase());
        words.len() == 3 && words.iter().all(is_word)
    };
    let all = (0..12).map(|seed| asked(seed, regex(long))).collect::<Vec<_>>();
    let mut plenty = demo(CacheSettings::default(), true);
    let wanted = answers(&mut plenty, &all);
    let bytes = plenty.cache_stats().tiers[0].cached_bytes;
    for host_bytes in [Some(1 << 30), Some(0)] {
        let device_bytes = Some(bytes / 6);
        let settings = CacheSettings { device_bytes, host_bytes, ..CacheSettings::default() };
        let mut tight = demo(settings, true);
        let found = answers(&mut tight, &all);
        assert_eq!(found, wanted);
        for (tokens, reason) in &found {
            let text = text(&vocabulary, tokens);
            assert!(is_right(&text) && *reason == FinishReason::Stop, "{text}");
        }
    }
}
