//! The routes of our own.

use serde_json::json;
use testkit::Script;

use crate::served::Setup;

#[test]
fn a_server_says_that_it_lives_and_what_it_is() {
    let served = Setup::from(Script::default()).serve();
    assert_eq!(served.get("/health").json(), json!({"status": "ok"}));
    let ready = json!({"status": "ready", "loaded": [], "loading": []});
    assert_eq!(served.get("/ready").json(), ready);
    assert_eq!(served.get("/version").json()["version"], "test");
    served.get("/nowhere").refused(404);
    served.post("/health", &json!({})).refused(405);
}

#[test]
fn tokens_are_shown_without_loading_anything() {
    let served = Setup::from(Script::default()).serve();
    let post = |path: &str, body| served.post(path, &body).json();
    let body = json!({"model": "tiny", "prompt": "hi one", "with_pieces": true});
    let tokens = post("/tokenize", body);
    let expected = json!({"model": "tiny", "count": 2, "tokens": [4, 1], "pieces": ["hi", "one"],
                          "max_model_len": 64});
    assert_eq!(tokens, expected);
    let text = post("/detokenize", json!({"model": "tiny", "tokens": [4, 1]}));
    assert_eq!(text["prompt"], "hi one");
    let messages = json!([{"role": "user", "content": "hi two"}]);
    let chat = post("/tokenize", json!({"model": "tiny", "messages": messages}));
    assert_eq!(chat["tokens"], json!([4, 2]));
    let body = json!({"model": "tiny", "messages": messages, "enable_thinking": true});
    assert_eq!(post("/apply_template", body)["prompt"], "hi two <think>");
    let tools = json!([{"type": "function", "function": {"name": "three"}}]);
    let body = json!({"model": "tiny", "messages": messages, "tools": tools});
    assert_eq!(post("/apply_template", body)["prompt"], "hi two three ");
    assert_eq!(served.loaded(), []);
}

#[test]
fn bad_fields_of_our_routes_are_named() {
    let served = Setup::from(Script::default()).serve();
    for (path, body, field) in [
        ("/tokenize", json!({"model": "tiny"}), "prompt"),
        ("/tokenize", json!({"model": "tiny", "prompt": "a", "content": "a"}), "content"),
        ("/tokenize", json!({"model": "tiny", "prompt": "a", "x": 1}), "x"),
        ("/detokenize", json!({"model": "tiny", "tokens": [-1]}), "tokens"),
        ("/apply_template", json!({"model": "tiny", "messages": []}), "messages"),
        ("/models/load", json!({}), "model"),
        ("/models/load", json!({"model": "tiny", "keep_alive": -2}), "keep_alive"),
    ] {
        assert_eq!(served.post(path, &body).refused(400).as_deref(), Some(field), "{path} {body}");
    }
}

#[test]
fn models_are_loaded_and_unloaded_by_name() {
    let served = Setup::from(Script::default()).serve();
    let named = json!({"model": "tiny"});
    served.post("/models/unload", &named).refused(404);
    assert_eq!(served.post("/models/load", &named).json()["state"], "loaded");
    assert_eq!(served.loaded().len(), 1);
    assert_eq!(served.post("/models/unload", &named).json()["state"], "unloading");
    served.until("it is unloaded", |served| served.loaded().is_empty());
}

#[test]
fn what_is_answered_is_counted_under_our_names_and_vllms() {
    let served = Setup::from(Script::default()).serve();
    for _ in 0..2 {
        served.chat(json!({}));
    }
    for name in [
        "offshoot_prompt_tokens_total{model_name=\"tiny\"}",
        "vllm:prompt_tokens_total{model_name=\"tiny\"}",
        "vllm:request_success_total{model_name=\"tiny\",finished_reason=\"stop\"}",
        "vllm:e2e_request_latency_seconds_count{model_name=\"tiny\"}",
    ] {
        assert_eq!(served.metric(name), 2.0, "{name}");
    }
    assert_eq!(served.metric("vllm:generation_tokens_total{model_name=\"tiny\"}"), 6.0);
    assert_eq!(served.metric("vllm:num_requests_running{model_name=\"tiny\"}"), 0.0);
}
