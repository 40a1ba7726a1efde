//! Anthropic's API as its clients see it.

use serde_json::{Value, json};
use testkit::Script;

use crate::client::Reply;
use crate::served::{Served, Setup, set};

fn answering(answer: &[u32]) -> Setup {
    Script { answer: answer.to_vec(), ..Script::default() }.into()
}

fn body(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "max_tokens": 100,
                          "messages": [{"role": "user", "content": "hi"}]});
    set(&mut body, &fields);
    body
}

fn ask(served: &Served, fields: Value) -> Value {
    let reply = served.post("/v1/messages", &body(fields));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// An answer without what is another in each.
fn stable(mut answer: Value) -> Value {
    for (pointer, start) in
        [("/id", "msg-"), ("/message/id", "msg-"), ("/content/0/signature", "sig-")]
    {
        if let Some(id) = answer.pointer_mut(pointer) {
            assert!(id.as_str().unwrap().starts_with(start), "{id}");
            *id = start.into();
        }
    }
    answer
}

#[test]
fn a_message_is_answered_whole() {
    let served = answering(&[5, 1, 2, 6, 3, 0]).serve();
    let expected = json!({
        "id": "msg-",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [
            {"type": "thinking", "thinking": "one two", "signature": "sig-"},
            {"type": "text", "text": "three"},
        ],
        "stop_reason": "end_turn",
        "stop_sequence": null,
        "usage": {
            "input_tokens": 1,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 6,
            "output_tokens_details": {"thinking_tokens": 3},
            "service_tier": "standard",
        },
    });
    assert_eq!(stable(ask(&served, json!({}))), expected);
}

#[test]
fn a_stream_has_named_events_in_their_order() {
    let served =
        Setup::from(Script { answer: vec![5, 1, 6, 3, 0], cached_tokens: 1, ..Script::default() });
    let served = served.serve();
    let fields = json!({"stream": true, "system": "one two"});
    let reply = served.post("/v1/messages", &body(fields));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = reply.named_events();
    let start = json!({"type": "message_start", "message": {
        "id": "msg-", "type": "message", "role": "assistant", "model": "tiny", "content": [],
        "stop_reason": null, "stop_sequence": null,
        "usage": {"input_tokens": 2, "cache_creation_input_tokens": 0,
                  "cache_read_input_tokens": 1, "output_tokens": 0},
    }});
    assert_eq!(stable(events[0].clone()), start);
    let signature = |event: &Value| event["delta"]["type"] == "signature_delta";
    let rest: Vec<_> = events[1..].iter().filter(|event| !signature(event)).collect();
    let block = |idx: u64, block: Value| {
        let kind = "content_block_start";
        json!({"type": kind, "index": idx, "content_block": block})
    };
    let delta = |idx: u64, delta: Value| {
        let kind = "content_block_delta";
        json!({"type": kind, "index": idx, "delta": delta})
    };
    let stop = |idx: u64| json!({"type": "content_block_stop", "index": idx});
    let end = json!({"stop_reason": "end_turn", "stop_sequence": null});
    let usage = json!({"input_tokens": 2, "cache_creation_input_tokens": 0,
                       "cache_read_input_tokens": 1, "output_tokens": 5,
                       "output_tokens_details": {"thinking_tokens": 2},
                       "service_tier": "standard"});
    let expected = [
        block(0, json!({"type": "thinking", "thinking": "", "signature": ""})),
        delta(0, json!({"type": "thinking_delta", "thinking": "one"})),
        stop(0),
        block(1, json!({"type": "text", "text": ""})),
        delta(1, json!({"type": "text_delta", "text": "three"})),
        stop(1),
        json!({"type": "message_delta", "delta": end, "usage": usage}),
        json!({"type": "message_stop"}),
    ];
    assert_eq!(rest, expected.iter().collect::<Vec<_>>());
}

#[test]
fn every_end_has_its_reason() {
    let served = answering(&[1, 2, 3, 0]).serve();
    let check = |fields: Value, reason: &str, stop: Value, text: &str| {
        let answer = ask(&served, fields.clone());
        let ending = (&answer["stop_reason"], &answer["stop_sequence"]);
        assert_eq!(ending, (&json!(reason), &stop), "{fields}: {answer}");
        assert_eq!(answer["content"][0]["text"], text, "{fields}");
    };
    check(json!({}), "end_turn", Value::Null, "one two three");
    check(json!({"max_tokens": 2}), "max_tokens", Value::Null, "one two");
    let stops = json!({"stop_sequences": ["x", "two"]});
    check(stops, "stop_sequence", json!("two"), "one ");
    let stops = body(json!({"stop_sequences": ["three"], "stream": true}));
    let events = served.post("/v1/messages", &stops).named_events();
    let delta = &events[events.len() - 2]["delta"];
    assert_eq!(delta, &json!({"stop_reason": "stop_sequence", "stop_sequence": "three"}));
}

#[test]
fn marks_of_a_cache_are_seams_of_the_prompt() {
    let check = |fields: Value, cached_tokens: u32, expected: [u64; 3]| {
        let script = Script { answer: vec![1, 0], cached_tokens, ..Script::default() };
        let usage = &ask(&Setup::from(script).serve(), fields.clone())["usage"];
        let names = ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
        assert_eq!(names.map(|name| usage[name].as_u64().unwrap()), expected, "{fields}");
    };
    let text = |text: &str| json!({"type": "text", "text": text});
    let marked =
        |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let user = |blocks: Value| json!([{"role": "user", "content": blocks}]);
    let system = |blocks: Value| json!({"system": blocks, "messages": user(json!("hi three"))});
    check(system(json!([text("one"), text("two")])), 0, [4, 0, 0]);
    check(system(json!([text("one"), marked("two")])), 0, [2, 2, 0]);
    check(system(json!([marked("one"), text("two")])), 0, [3, 1, 0]);
    check(system(json!([text("one"), marked("two")])), 1, [2, 1, 1]);
    check(system(json!([text("one"), marked("two")])), 3, [1, 0, 3]);
    check(json!({"messages": user(json!([marked("hi"), text("three")]))}), 0, [1, 1, 0]);
    check(json!({"messages": user(json!([text("hi"), marked("three")]))}), 0, [0, 2, 0]);
    let whole = json!({"cache_control": {"type": "ephemeral"}, "messages": user(json!("hi one"))});
    check(whole, 0, [0, 2, 0]);
}

#[test]
fn the_line_on_billing_never_reaches_the_prompt() {
    let served = answering(&[1, 0]).serve();
    let count = |system: Value| {
        let messages = json!([{"role": "user", "content": "hi"}]);
        let body = json!({"model": "tiny", "system": system, "messages": messages});
        served.post("/v1/messages/count_tokens", &body).json()["input_tokens"].as_u64().unwrap()
    };
    let line = "x-anthropic-billing-header: cc_version=2.1.1; cc_entrypoint=cli; cch=0a1b2;";
    let text = |text: &str| json!({"type": "text", "text": text});
    assert_eq!(count(json!([text("one")])), 2);
    assert_eq!(count(json!([text(line), text("one")])), 2);
    assert_eq!(count(json!([text(&format!("{line}\n\none")), text("two")])), 3);
    assert_eq!(count(json!(format!("{line}\none"))), 2);
    assert_eq!(count(json!(line)), 1);
    // Elsewhere it is text like any other.
    assert!(count(json!([text("one"), text(line)])) > 2);
}

#[test]
fn tokens_are_counted_as_a_prompt_will_have_them_and_nothing_is_loaded() {
    let served = answering(&[1, 0]).serve();
    let tools = json!([{"name": "three", "input_schema": {"type": "object"}}]);
    let fields = json!({"system": "one two", "tools": tools,
                        "thinking": {"type": "adaptive"}});
    let mut asked = body(fields.clone());
    asked.as_object_mut().unwrap().remove("max_tokens");
    let counted = served.post("/v1/messages/count_tokens", &asked).json();
    assert_eq!(counted, json!({"input_tokens": 5}));
    assert_eq!(served.loaded(), []);
    assert_eq!(ask(&served, fields)["usage"]["input_tokens"], 5);
}

#[test]
fn turns_of_one_speaker_in_a_row_are_one_and_results_are_their_own() {
    let served = answering(&[1, 0]).serve();
    let count = |messages: Value| {
        let body = json!({"model": "tiny", "messages": messages});
        served.post("/v1/messages/count_tokens", &body).json()["input_tokens"].clone()
    };
    let result = json!({"type": "tool_result", "tool_use_id": "c1", "content": "two"});
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "three", "signature": ""},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
        ]},
        {"role": "user", "content": [result, {"type": "text", "text": "hi"}]},
    ]);
    // The template of this model shows neither thoughts nor calls.
    assert_eq!(count(messages), 4);
}

#[test]
fn failures_have_anthropics_form_and_their_status() {
    const KEYS: &str = "sk-alice-0123456789 name=alice";
    let served = Setup { keys: KEYS, ..answering(&[1, 0]) }.serve();
    let send = |headers: &[(&str, &str)], body: &Value| {
        served.send("POST", "/v1/messages", headers, &body.to_string()).unwrap()
    };
    let check = |reply: Reply, status: u16, kind: &str| {
        assert_eq!(reply.status, status, "{reply:?}");
        let json = reply.json();
        assert_eq!((&json["type"], &json["error"]["type"]), (&json!("error"), &json!(kind)));
        json["error"]["message"].as_str().unwrap().to_owned()
    };
    let key = ("x-api-key", "sk-alice-0123456789");
    check(send(&[], &body(json!({}))), 401, "authentication_error");
    check(
        send(&[("x-api-key", "sk-nobody-012345678")], &body(json!({}))),
        401,
        "authentication_error",
    );
    for version in ["2023-06-01", "2026-10-21"] {
        let headers = [key, ("anthropic-version", version)];
        assert_eq!(send(&headers, &body(json!({}))).status, 200, "{version}");
    }
    let version = send(&[key, ("anthropic-version", "2023-01-01")], &body(json!({})));
    let message = check(version, 400, "invalid_request_error");
    assert!(message.starts_with("anthropic-version must be 2023-06-01"), "{message}");
    check(send(&[key], &body(json!({"model": "nope"}))), 404, "not_found_error");
    let long = json!([{"role": "user", "content": "hi ".repeat(100)}]);
    let reply = send(&[key], &body(json!({"messages": long})));
    let message = check(reply, 400, "invalid_request_error");
    assert!(message.starts_with("prompt is too long: 100 tokens"), "{message}");
    let reply = served.send("GET", "/v1/messages", &[key], "").unwrap();
    check(reply, 405, "invalid_request_error");
}

#[test]
fn what_fails_in_a_stream_is_told_in_it() {
    let crash = Script { abort_after_tokens: Some(1), ..Script::default() };
    let served = Setup::from(crash).serve();
    let reply = served.post("/v1/messages", &body(json!({"stream": true})));
    assert_eq!(reply.status, 200);
    let events = reply.named_events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["type"], "overloaded_error", "{reply:?}");
    assert!(events.iter().all(|event| event["type"] != "message_stop"));
}
