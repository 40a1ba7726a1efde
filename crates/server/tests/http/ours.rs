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
fn names_in_paths_that_are_no_text_are_refused_as_all_else_is() {
    let served = Setup::from(Script::default()).serve();
    for path in ["/v1/models/%ff", "/v1/responses/%ff"] {
        let reply = served.get(path);
        assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
        reply.refused(400);
    }
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
fn the_cache_tells_what_a_prompt_would_be_given_and_what_is_there() {
    let served = Setup::from(Script { cached_tokens: 2, ..Script::default() }).serve();
    served.get("/cache/tree?model=tiny").refused(404);
    let messages = json!([{"role": "user", "content": "hi two"}]);
    let body = json!({"model": "tiny", "messages": messages, "temperature": 0, "stream": true});
    let explained = served.post("/cache/explain", &body).json();
    for (field, value) in [
        ("prompt_tokens", json!(2)),
        ("usable_tokens", json!(2)),
        ("tier", json!("device")),
        ("miss", json!("complete")),
        ("differs", json!(null)),
    ] {
        assert_eq!(explained[field], value, "{explained}");
    }
    assert_eq!(explained["path"][0]["text"], "hi two", "{explained}");
    let tree = served.get("/cache/tree?model=tiny&max_nodes=2").json();
    assert_eq!(tree["nodes"].as_array().unwrap().len(), 2, "{tree}");
    assert_eq!((&tree["n_nodes"], &tree["nodes"][1]["parent"]), (&json!(3), &json!(0)), "{tree}");
    assert!(tree["nodes"][0].get("text").is_none(), "{tree}");
    let tree = served.get("/cache/tree?model=tiny&text=true").json();
    assert_eq!(tree["nodes"][0]["text"], "one two three", "{tree}");
    for (query, field) in [
        ("max_nodes=x", "max_nodes"),
        ("max_nodes=99999", "max_nodes"),
        ("text=1", "text"),
        ("x=1", "x"),
        ("text=true&text=false", "text"),
    ] {
        let reply = served.get(&format!("/cache/tree?model=tiny&{query}"));
        assert_eq!(reply.refused(400).as_deref(), Some(field), "{query}");
    }
}

#[test]
fn only_an_admin_sees_what_is_cached_of_others() {
    let keys = "sk-alice-0123456789 name=alice admin\nsk-bob-0123456789ab name=bob";
    let served = Setup { keys, ..Setup::from(Script::default()) }.serve();
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {key}");
        served.send(method, path, &[("authorization", bearer.as_str())], body).unwrap()
    };
    let (alice, bob) = ("sk-alice-0123456789", "sk-bob-0123456789ab");
    let own = json!({"model": "tiny", "prompt": "hi"}).to_string();
    let other = json!({"model": "tiny", "prompt": "hi", "key": "bob"}).to_string();
    let unknown = json!({"model": "tiny", "prompt": "hi", "key": "eve"}).to_string();
    assert_eq!(ask(bob, "POST", "/cache/explain", &own).status, 200);
    assert_eq!(ask(alice, "POST", "/cache/explain", &other).status, 200);
    ask(alice, "POST", "/cache/explain", &unknown).refused(400);
    ask(bob, "POST", "/cache/explain", &other).refused(403);
    ask(bob, "GET", "/cache/tree?model=tiny", "").refused(403);
    assert_eq!(ask(alice, "GET", "/cache/tree?model=tiny", "").status, 200);
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
        ("/cache/explain", json!({"model": "tiny"}), "messages"),
        ("/cache/explain", json!({"model": "tiny", "prompt": ["a", "b"]}), "prompt"),
        ("/cache/explain", json!({"model": "tiny", "prompt": []}), "prompt"),
        ("/cache/explain", json!({"model": "tiny", "prompt": "a", "x": 1}), "x"),
        ("/cache/explain", json!({"model": "tiny", "prompt": "a", "key": "b"}), "key"),
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

#[test]
fn a_request_is_a_part_of_the_trace_that_its_caller_names() {
    let served = Setup::from(Script::default()).serve();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let response = |parent: &str| {
        let reply = served.send("GET", "/v1/models", &[("traceparent", parent)], "").unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.header("traceresponse").map(str::to_owned)
    };
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let [first, second] = [(); 2].map(|()| response(&parent).unwrap());
    let start = format!("00-{trace}-");
    assert!(first.starts_with(&start) && second.starts_with(&start) && first != second, "{first}");
    for bad in ["", "00", &parent.to_uppercase(), &format!("{parent}-x")] {
        assert_eq!(response(bad), None, "{bad}");
    }
    let refused = served.send("GET", "/nowhere", &[("traceparent", parent.as_str())], "").unwrap();
    assert!(refused.status == 404 && refused.header("traceresponse").is_some(), "{refused:?}");
}
