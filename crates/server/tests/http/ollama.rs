//! Ollama's API as its clients see it.

use std::time::Duration;

use serde_json::{Value, json};
use server::models::KeepAlive;
use testkit::Script;

use crate::client::Reply;
use crate::fates::message;
use crate::served::{Served, Setup, set};

fn answering(answer: &[u32]) -> Setup {
    Script { answer: answer.to_vec(), ..Script::default() }.into()
}

fn post(served: &Served, path: &str, fields: Value) -> Reply {
    let mut body = match path {
        "/api/chat" => json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}),
        _ => json!({"model": "tiny", "prompt": "hi"}),
    };
    set(&mut body, &fields);
    served.post(path, &body)
}

/// The lines of a stream.
fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.header("content-type"), Some("application/x-ndjson"), "{reply:?}");
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A line without what is another in each; times are there and make sense.
fn stable(mut line: Value) -> Value {
    let created = line["created_at"].as_str().unwrap();
    assert!(created.starts_with("20") && created.ends_with('Z'), "{created}");
    line["created_at"] = "now".into();
    if line["done"] == true && line["eval_count"].is_u64() {
        assert!(line["total_duration"].as_u64().unwrap() > 1000, "nanoseconds: {line}");
        for name in ["total", "load", "prompt_eval", "eval"] {
            assert!(line[format!("{name}_duration")].is_u64(), "{name}: {line}");
            line.as_object_mut().unwrap().remove(&format!("{name}_duration"));
        }
    }
    line
}

#[test]
fn a_chat_streams_lines_unless_asked_not_to() {
    let script = Script { answer: vec![5, 1, 6, 3, 0], cached_tokens: 2, ..Script::default() };
    let served = Setup::from(script).serve();
    let message = |fields: Value| {
        let mut message = json!({"role": "assistant", "content": ""});
        set(&mut message, &fields);
        json!({"model": "tiny", "created_at": "now", "message": message, "done": false})
    };
    let messages = json!([{"role": "system", "content": "one two"},
                          {"role": "user", "content": "hi"}]);
    let reply = post(&served, "/api/chat", json!({"messages": messages}));
    let lines: Vec<_> = lines(&reply).into_iter().map(stable).collect();
    let counters = json!({"done": true, "done_reason": "stop", "prompt_eval_count": 3,
                          "prompt_cached_count": 2, "eval_count": 5});
    let finished = |mut line: Value| {
        set(&mut line, &counters);
        line
    };
    let expected = [
        message(json!({"thinking": "one"})),
        message(json!({"content": "three"})),
        finished(message(json!({}))),
    ];
    assert_eq!(lines, expected);
    let whole = post(&served, "/api/chat", json!({"messages": messages, "stream": false}));
    let expected = finished(message(json!({"content": "three", "thinking": "one"})));
    assert_eq!(stable(whole.json()), expected);
}

#[test]
fn a_prompt_is_answered_by_the_template_or_raw() {
    let served = answering(&[1, 2, 0]).serve();
    let text = |reply: &Reply| -> String {
        lines(reply).iter().map(|line| line["response"].as_str().unwrap()).collect()
    };
    assert_eq!(text(&post(&served, "/api/generate", json!({}))), "one two");
    let count = |fields: Value| {
        let reply = post(&served, "/api/generate", fields);
        let last = lines(&reply).pop().unwrap();
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
        last["prompt_eval_count"].as_u64().unwrap()
    };
    assert_eq!(count(json!({})), 1);
    assert_eq!(count(json!({"system": "one two"})), 3);
    assert_eq!(count(json!({"think": true})), 2);
    assert_eq!(count(json!({"raw": true, "prompt": "hi one"})), 2);
}

#[test]
fn options_end_answers_where_they_say() {
    let served = answering(&[1, 2, 3, 0]).serve();
    let check = |options: Value, text: &str, reason: &str| {
        let fields = json!({"options": options, "stream": false});
        let json = post(&served, "/api/generate", fields).json();
        let found = (&json["response"], &json["done_reason"]);
        assert_eq!(found, (&json!(text), &json!(reason)), "{options}");
    };
    check(json!({"num_predict": 2}), "one two", "length");
    check(json!({"num_predict": -1}), "one two three", "stop");
    check(json!({"stop": "three"}), "one two ", "stop");
}

#[test]
fn log_probabilities_come_with_their_text() {
    let served = answering(&[1, 2, 0]).serve();
    let fields = json!({"logprobs": true, "top_logprobs": 2, "stream": false});
    let json = post(&served, "/api/generate", fields).json();
    let logprobs = json["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]["token"]), (2, &json!("one")), "{json}");
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[test]
fn nothing_to_answer_loads_and_unloads() {
    let keep_alive = KeepAlive::For(Duration::from_secs(3600));
    let served = Setup { keep_alive, ..answering(&[1, 0]) }.serve();
    let expires = |served: &Served| served.get("/api/ps").json()["models"][0]["expires_at"].clone();
    for (path, field, empty) in
        [("/api/generate", "prompt", json!("")), ("/api/chat", "messages", json!([]))]
    {
        let json = post(&served, path, json!({field: empty, "keep_alive": "10m"})).json();
        assert_eq!((&json["done"], &json["done_reason"]), (&json!(true), &json!("load")), "{path}");
        assert_eq!(served.loaded().len(), 1);
        assert!(expires(&served).is_string());
        post(&served, path, json!({field: empty, "keep_alive": -1}));
        assert!(expires(&served).is_null(), "it stays for ever");
        let json = post(&served, path, json!({field: empty, "keep_alive": 0})).json();
        assert_eq!(json["done_reason"], "unload", "{path}");
        served.until("it is unloaded", |served| served.loaded().is_empty());
    }
    // A request says so of its own model.
    assert_eq!(post(&served, "/api/chat", json!({"keep_alive": "0s"})).status, 200);
    served.until("it is unloaded", |served| served.loaded().is_empty());
}

#[test]
fn only_who_manages_models_keeps_or_unloads_them_for_others() {
    const KEYS: &str = "sk-alice-0123456789 name=alice\nsk-admin-0123456789 name=root admin";
    let served = Setup { keys: KEYS, ..answering(&[1, 0]) }.serve();
    let status = |key: &str, fields: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        served.send("POST", "/api/generate", &headers, &fields.to_string()).unwrap().status
    };
    for fields in [
        json!({"model": "tiny", "prompt": "hi", "keep_alive": -1}),
        json!({"model": "tiny", "keep_alive": 0}),
    ] {
        assert_eq!(status("sk-alice-0123456789", fields.clone()), 403, "{fields}");
        assert_eq!(status("sk-admin-0123456789", fields.clone()), 200, "{fields}");
    }
    assert_eq!(status("sk-alice-0123456789", json!({"model": "tiny", "prompt": "hi"})), 200);
    assert_eq!(status("nobody", json!({"model": "tiny"})), 401);
}

#[test]
fn models_are_listed_shown_and_missed() {
    let served = answering(&[1, 0]).serve();
    let tags = served.get("/api/tags").json()["models"].clone();
    let names: Vec<_> =
        tags.as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["demo", "tiny"]);
    let demo = &tags[0];
    assert_eq!(demo["digest"].as_str().unwrap().len(), 64);
    assert!(demo["size"].as_u64().unwrap() > 1_000_000, "{demo}");
    assert_eq!(
        (&demo["details"]["format"], &demo["details"]["parameter_size"]),
        (&json!("safetensors"), &json!("5.0M"))
    );
    assert_ne!(demo["digest"], tags[1]["digest"]);
    assert_eq!(served.get("/api/ps").json(), json!({"models": []}));
    let shown = served.post("/api/show", &json!({"model": "tiny"})).json();
    assert_eq!(shown["model_info"]["scripted.context_length"], 64, "{shown}");
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    assert!(shown["template"].as_str().unwrap().contains("m.content"));
    assert_eq!(served.loaded(), [], "showing loads nothing");
    assert_eq!(post(&served, "/api/chat", json!({"model": "tiny:latest"})).status, 200);
    let ps = served.get("/api/ps").json()["models"].clone();
    assert_eq!((&ps[0]["name"], &ps[0]["context_length"]), (&json!("tiny"), &json!(64)), "{ps}");
    assert_eq!((&ps[0]["digest"], &ps[0]["size_vram"]), (&tags[1]["digest"], &json!(0)));
    assert_eq!(served.get("/api/version").json(), json!({"version": "test"}));
    for path in ["/api/chat", "/api/generate", "/api/show"] {
        let reply = served.post(path, &json!({"model": "tini"}));
        assert_eq!(reply.status, 404, "{path}: {reply:?}");
        assert!(message(&reply.json()).contains("tiny"), "the nearest is named: {reply:?}");
    }
}

#[test]
fn what_manages_models_says_what_to_do_instead() {
    let served = Setup::from(Script::default()).serve();
    let body = json!({"model": "tiny"}).to_string();
    for (method, path, status, says) in [
        ("POST", "/api/pull", 403, "offshoot pull"),
        ("POST", "/api/create", 403, "offshoot quantize"),
        ("DELETE", "/api/delete", 403, "offshoot rm"),
        ("POST", "/api/push", 403, "not uploaded"),
        ("POST", "/api/copy", 403, "store"),
        ("POST", "/api/blobs/sha256:00", 403, "store"),
        ("POST", "/api/embed", 400, "embeddings"),
        ("POST", "/api/embeddings", 400, "embeddings"),
        ("GET", "/api/nothing", 404, "no such route"),
        ("GET", "/api/chat", 405, "methods"),
    ] {
        let reply = served.send(method, path, &[], &body).unwrap();
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        let json = reply.json();
        assert!(json["error"].is_string() && message(&json).contains(says), "{path}: {json}");
    }
}

#[test]
fn what_fails_in_a_stream_is_told_in_it() {
    let crash = Script { abort_after_tokens: Some(1), ..Script::default() };
    let served = Setup::from(crash).serve();
    let reply = post(&served, "/api/chat", json!({}));
    assert_eq!(reply.status, 200);
    let lines = lines(&reply);
    assert_eq!(lines[0]["message"]["content"], "one");
    let last = lines.last().unwrap();
    assert!(message(last).contains("has ended") && last["done"].is_null(), "{reply:?}");
}
