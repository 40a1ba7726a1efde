//! OpenAI's API as its clients see it.

use serde_json::{Value, json};
use testkit::Script;

use crate::served::Setup;

fn answering(answer: &[u32]) -> Setup {
    Script { answer: answer.to_vec(), ..Script::default() }.into()
}

#[test]
fn a_chat_is_answered_whole_and_with_its_tokens_counted() {
    let served = answering(&[1, 2, 0]).serve();
    let reply = served.chat(json!({}));
    let json = reply.json();
    assert_eq!((reply.status, json["object"].as_str()), (200, Some("chat.completion")));
    let choice = &json["choices"][0];
    let message = json!({"role": "assistant", "content": "one two", "refusal": null});
    assert_eq!((&choice["message"], &choice["finish_reason"]), (&message, &json!("stop")));
    let usage = &json["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(1), &json!(3)));
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(json["timings"]["load_ms"].as_f64().unwrap() > 0.0, "it was loaded for this: {json}");
    assert_eq!(json["model"], "tiny");
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done() {
    let served = answering(&[1, 2, 0]).serve();
    let fields = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = served.chat(fields);
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = reply.events();
    let deltas: Vec<_> = events.iter().map(|event| &event["choices"][0]["delta"]).collect();
    assert_eq!(deltas[0], &json!({"role": "assistant", "content": ""}));
    let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
    assert_eq!(text, "one two");
    let n = events.len();
    assert_eq!(events[n - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[n - 1]["choices"], json!([]));
    assert_eq!(events[n - 1]["usage"]["completion_tokens"], 3);
    assert!(events.iter().take(n - 1).all(|event| event["usage"].is_null()));
    let ids: std::collections::BTreeSet<_> =
        events.iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn thinking_has_a_field_of_its_own() {
    let served = answering(&[5, 1, 2, 6, 3, 0]).serve();
    let message = &served.chat(json!({})).json()["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("one two"), &json!("three"))
    );
    let events = served.chat(json!({"stream": true})).events();
    let all = |field: &str| -> String {
        let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"][field].as_str());
        deltas.collect()
    };
    assert_eq!((all("reasoning_content").as_str(), all("content").as_str()), ("one two", "three"));
}

#[test]
fn text_of_a_stop_string_and_after_it_is_never_sent() {
    let served = answering(&[1, 2, 3, 4, 0]).serve();
    let check = |stop: Value, text: &str, reason: &str| {
        let whole = &served.chat(json!({"stop": stop})).json()["choices"][0];
        assert_eq!(
            (&whole["message"]["content"], &whole["finish_reason"]),
            (&json!(text), &json!(reason)),
            "{stop}"
        );
        let events = served.chat(json!({"stop": stop, "stream": true})).events();
        let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
        assert_eq!(deltas.collect::<String>(), text, "{stop}");
    };
    check(json!("three"), "one two ", "stop");
    check(json!(["x", "o t"]), "one tw", "stop");
    check(json!(["threes"]), "one two three hi", "stop");
    served.until("what was stopped is gone", |s| s.loaded().iter().all(|(_, n, _)| *n == 0));
}

#[test]
fn several_answers_are_told_apart_and_their_prompt_counts_once() {
    let served = answering(&[1, 2, 0]).serve();
    let json = served.chat(json!({"n": 3})).json();
    let choices = json["choices"].as_array().unwrap();
    let indices: Vec<_> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(
        (&json["usage"]["prompt_tokens"], &json["usage"]["completion_tokens"]),
        (&json!(1), &json!(9))
    );
    let events = served.chat(json!({"n": 2, "stream": true})).events();
    for idx in 0..2 {
        let of = events.iter().filter(|e| e["choices"][0]["index"] == idx);
        let text: String =
            of.filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "one two", "answer {idx}");
    }
}

#[test]
fn log_probabilities_come_with_their_text() {
    let served = answering(&[1, 2, 0]).serve();
    let json = served.chat(json!({"logprobs": true, "top_logprobs": 2})).json();
    let content = json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2, "the token that ends an answer has no text: {content:?}");
    assert_eq!((&content[0]["token"], &content[0]["logprob"]), (&json!("one"), &json!(-0.5)));
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let bytes = content.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes: Vec<_> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "one two", "{content:?}");
    assert!(served.chat(json!({})).json()["choices"][0]["logprobs"].is_null());
}

#[test]
fn the_length_ends_an_answer_where_it_is_asked_to() {
    let served = answering(&[1, 2, 3, 0]).serve();
    for name in ["max_tokens", "max_completion_tokens"] {
        let json = served.chat(json!({name: 2})).json();
        let choice = &json["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!("one two"), &json!("length"))
        );
    }
}

#[test]
fn completions_take_texts_and_ids() {
    let served = answering(&[1, 2, 0]).serve();
    let check = |prompt: Value, n_prompt: u64, n_choices: usize| {
        let body = json!({"model": "tiny", "prompt": prompt, "logprobs": 1});
        let json = served.post("/v1/completions", &body).json();
        assert_eq!(json["usage"]["prompt_tokens"], n_prompt, "{json}");
        let choices = json["choices"].as_array().unwrap();
        assert_eq!(choices.len(), n_choices);
        assert!(choices.iter().all(|c| c["text"] == "one two" && c["finish_reason"] == "stop"));
        assert_eq!(choices[0]["logprobs"]["text_offset"], json!([0, 3]), "{json}");
    };
    check(json!("hi one"), 2, 1);
    check(json!(["hi", "hi one two"]), 4, 2);
    check(json!([4, 1, 2]), 3, 1);
    check(json!([[4], [1, 2]]), 3, 2);
    let body = json!({"model": "tiny", "prompt": "hi", "stream": true});
    let events = served.post("/v1/completions", &body).events();
    let text: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!((text.as_str(), &events[0]["object"]), ("one two", &json!("text_completion")));
}

#[test]
fn models_are_listed_found_and_missed_by_name() {
    let served = answering(&[0]).serve();
    let list = served.get("/v1/models").json();
    let names: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["demo", "tiny"]);
    assert_eq!(served.get("/v1/models/tiny").json()["context_length"], 64);
    assert_eq!(served.get("/v1/models/nope").refused(404).as_deref(), Some("model"));
    let reply = served.chat(json!({"model": "tini"}));
    assert_eq!(reply.refused(404).as_deref(), Some("model"));
    assert!(reply.body.contains("tiny"), "the nearest is named: {}", reply.body);
    assert_eq!(served.chat(json!({"model": null})).refused(400).as_deref(), Some("model"));
}

#[test]
fn what_fails_in_a_stream_is_told_in_it() {
    let crash = Script { abort_after_tokens: Some(1), ..Script::default() };
    let served = Setup::from(crash).serve();
    let reply = served.chat(json!({"stream": true}));
    assert_eq!(reply.status, 200);
    let last = reply.body.trim_end().lines().last().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "unavailable", "{reply:?}");
    assert!(reply.body.contains("\"content\":\"one\"") && !reply.body.contains("[DONE]"));
}
