//! Answers have the form that `/openapi.json` has for them, whole, in streams and when they fail.

use serde_json::{Value, json};
use testkit::Script;
use testkit::schema::Schemas;

use crate::client::Reply;
use crate::served::{Served, Setup};

const KEY: &str = "sk-alice-0123456789";

fn ask(served: &Served, method: &str, path: &str, body: &Value) -> Reply {
    let bearer = format!("Bearer {KEY}");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    served.send(method, path, &[("authorization", bearer.as_str())], &body).unwrap()
}

/// The JSON values of an answer: one, or those of a stream.
fn values(reply: &Reply, form: &str) -> Vec<Value> {
    let lines = match form {
        "application/json" => vec![reply.body.as_str()],
        "text/event-stream" => {
            let data = reply.body.lines().filter_map(|line| line.strip_prefix("data: "));
            return data.map(|data| json!({"data": data})).collect();
        }
        "application/x-ndjson" => reply.body.lines().collect(),
        other => panic!("{other}"),
    };
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn check(served: &Served, document: &Value, request: (&str, &str, Value), status: u16) {
    let (method, path, body) = request;
    let reply = ask(served, method, path, &body);
    assert_eq!(reply.status, status, "{path} {body}: {reply:?}");
    let at = path.split('?').next().unwrap();
    let at = match at.rsplit_once('/') {
        Some(("/v1/models", _)) => "/v1/models/{model}",
        Some(("/v1/responses", _)) => "/v1/responses/{id}",
        _ => at,
    };
    let response = &document["paths"][at][method.to_lowercase()]["responses"][status.to_string()];
    for (name, header) in response["headers"].as_object().expect(path) {
        let is_there = reply.header(&name.to_lowercase()).is_some();
        assert!(is_there || header["required"] != true, "{path} has no {name}");
    }
    let form = reply.header("content-type").unwrap().split(';').next().unwrap();
    let content = &response["content"][form];
    let schema = content.get("x-itemSchema").unwrap_or(&content["schema"]);
    assert!(schema.is_object(), "{path} says nothing of {form} with {status}");
    let values = values(&reply, form);
    assert!(!values.is_empty(), "{reply:?}");
    for value in values {
        let fits = Schemas(document).check(schema, &value);
        assert_eq!(fits, Ok(()), "{path} {body} answers {value}");
    }
}

#[test]
fn every_answer_has_the_form_that_the_document_has_for_it() {
    // The model thinks, speaks and gives log probabilities.
    let script = Script { answer: vec![5, 1, 6, 2, 3, 0], cached_tokens: 1, ..Script::default() };
    let keys = "sk-alice-0123456789 name=alice admin";
    let served = Setup { keys, ..script.into() }.serve();
    let document = served.get("/openapi.json");
    assert_eq!(document.status, 200, "it needs no key");
    let document = document.json();
    let check = |request, status| check(&served, &document, request, status);
    let messages = json!([{"role": "user", "content": "hi"}]);
    let of = |mut base: Value, more: Value| {
        for (name, value) in more.as_object().unwrap() {
            base[name] = value.clone();
        }
        base
    };
    let chat = json!({"model": "tiny", "messages": messages, "enable_thinking": true});
    let text = json!({"model": "tiny", "prompt": "hi"});
    let long = json!({"model": "tiny", "messages": messages, "max_tokens": 5});
    let input = json!({"model": "tiny", "input": "hi", "instructions": "one"});
    for stream in [false, true] {
        let base = of(input.clone(), json!({"stream": stream, "enable_thinking": true}));
        let include = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
        check(("POST", "/v1/responses", of(base.clone(), include)), 200);
        let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}});
        let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
        let more = json!({"tools": [tool], "text": {"format": format}, "max_output_tokens": 3,
                          "metadata": {"a": "b"}, "reasoning": {"effort": "low"}});
        check(("POST", "/v1/responses", of(base, more)), 200);
        for (path, base) in [("/v1/chat/completions", &chat), ("/v1/completions", &text)] {
            let of = |more| ("POST", path, of(of(base.clone(), json!({"stream": stream})), more));
            check(of(json!({})), 200);
            check(of(json!({"n": 2, "stop": "three"})), 200);
            check(of(json!({"model": "other"})), 404);
            check(of(json!({"unheard_of": 1})), 400);
        }
        let logprobs = json!({"logprobs": true, "top_logprobs": 2, "stream": stream});
        check(("POST", "/v1/chat/completions", of(chat.clone(), logprobs.clone())), 200);
        let older = json!({"logprobs": 2, "stream": stream});
        check(("POST", "/v1/completions", of(text.clone(), older)), 200);
        let thinks = json!({"thinking": {"type": "adaptive"}, "stream": stream});
        check(("POST", "/v1/messages", of(long.clone(), thinks)), 200);
        for (path, base) in [("/api/chat", &chat), ("/api/generate", &text)] {
            let mut base = base.clone();
            base.as_object_mut().unwrap().remove("enable_thinking");
            check(("POST", path, of(base.clone(), json!({"stream": stream}))), 200);
            check(("POST", path, of(base.clone(), logprobs.clone())), 200);
            check(("POST", path, of(base, json!({"think": true, "stream": stream}))), 200);
        }
    }
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    check(("POST", "/v1/chat/completions", of(chat, usage.clone())), 200);
    check(("POST", "/v1/completions", of(text.clone(), usage)), 200);
    check(("POST", "/v1/messages", json!({"model": "tiny"})), 400);
    let kept = ask(&served, "POST", "/v1/responses", &input).json();
    let kept = format!("/v1/responses/{}", kept["id"].as_str().unwrap());
    for (method, status) in [("GET", 200), ("DELETE", 200), ("GET", 404), ("DELETE", 404)] {
        check((method, &kept, Value::Null), status);
    }
    check(("POST", "/api/chat", json!({"model": "tiny"})), 200);
    check(("POST", "/api/generate", json!({"model": 1})), 400);
    let asked = json!({"model": "tiny", "messages": messages});
    check(("POST", "/v1/messages/count_tokens", asked.clone()), 200);
    for path in ["/tokenize", "/apply_template", "/cache/explain"] {
        check(("POST", path, asked.clone()), 200);
    }
    check(("POST", "/tokenize", of(text.clone(), json!({"with_pieces": true}))), 200);
    check(("POST", "/detokenize", json!({"model": "tiny", "tokens": [1, 2]})), 200);
    check(("POST", "/cache/explain", text), 200);
    check(("POST", "/api/show", json!({"model": "tiny"})), 200);
    check(("POST", "/models/load", json!({"model": "tiny", "keep_alive": 60})), 200);
    for path in [
        "/v1/models",
        "/v1/models/tiny",
        "/cache/tree?model=tiny&text=true",
        "/health",
        "/ready",
        "/version",
        "/models",
        "/api/tags",
        "/api/ps",
        "/api/version",
        "/openapi.json",
    ] {
        check(("GET", path, Value::Null), 200);
    }
    check(("POST", "/models/unload", json!({"model": "tiny"})), 200);
    check(("GET", "/v1/models/other", Value::Null), 404);
    served.get("/v1/models").refused(401);
    for path in ["/api/pull", "/api/create"] {
        check(("POST", path, json!({})), 403);
    }
}
