//! Responses as OpenAI's clients see them.

use serde_json::{Value, json};
use server::http::Limits;
use testkit::Script;

use crate::client::Reply;
use crate::served::{Served, Setup, set};

const PATH: &str = "/v1/responses";
const KEYS: &str = "sk-alice-0123456789 name=alice\nsk-bob-0123456789ab name=bob";
const ALICE: [(&str, &str); 1] = [("x-api-key", "sk-alice-0123456789")];
const BOB: [(&str, &str); 1] = [("x-api-key", "sk-bob-0123456789ab")];

fn answering(answer: &[u32]) -> Setup {
    Script { answer: answer.to_vec(), ..Script::default() }.into()
}

/// Every answer is the prompt that the runner got.
fn echoing() -> Setup {
    Script { echoes: true, ..Script::default() }.into()
}

fn body(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "input": "hi"});
    set(&mut body, &fields);
    body
}

fn ask(served: &Served, fields: Value) -> Value {
    let reply = served.post(PATH, &body(fields));
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

fn text(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{response}"))
}

fn find(served: &Served, key: &[(&str, &str)], id: &str) -> Reply {
    served.send("GET", &format!("{PATH}/{id}"), key, "").unwrap()
}

fn id(response: &Value) -> &str {
    response["id"].as_str().unwrap()
}

/// A response without what is another in each.
#[track_caller]
fn stable(mut response: Value) -> Value {
    for time in ["/created_at", "/completed_at"] {
        let s = response.pointer(time).and_then(Value::as_u64).unwrap();
        assert!(s > 1_700_000_000, "{s}");
    }
    for (pointer, start) in [("/id", "resp_"), ("/output/0/id", "rs_"), ("/output/1/id", "msg_")] {
        let id = response.pointer_mut(pointer).unwrap();
        assert!(id.as_str().unwrap().starts_with(start), "{id}");
        *id = start.into();
    }
    let object = response.as_object_mut().unwrap();
    for name in ["created_at", "completed_at", "timings"] {
        object.remove(name);
    }
    response
}

#[test]
fn a_response_is_made_whole_and_says_again_what_was_asked_for() {
    let served = answering(&[5, 1, 2, 6, 3, 0]).serve();
    let tool = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    let fields = json!({
        "instructions": "two", "metadata": {"a": "b"}, "temperature": 0.7, "top_p": 0.5,
        "tools": [tool], "tool_choice": "none", "max_output_tokens": 30, "user": "u",
        "prompt_cache_key": "k", "reasoning": {"effort": "low", "summary": "auto"},
    });
    let expected = json!({
        "id": "resp_",
        "object": "response",
        "status": "completed",
        "error": null,
        "incomplete_details": null,
        "model": "tiny",
        "output": [
            {"type": "reasoning", "id": "rs_", "summary": [], "status": "completed",
             "content": [{"type": "reasoning_text", "text": "one two"}]},
            {"type": "message", "id": "msg_", "role": "assistant", "status": "completed",
             "content": [{"type": "output_text", "text": "three", "annotations": [],
                          "logprobs": []}]},
        ],
        "usage": {
            "input_tokens": 2,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 2},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 3},
            "total_tokens": 8,
        },
        "instructions": "two",
        "metadata": {"a": "b"},
        "temperature": 0.7,
        "top_p": 0.5,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "tools": [{"type": "function", "name": "f", "description": null,
                   "parameters": {"type": "object"}, "strict": false}],
        "tool_choice": "none",
        "parallel_tool_calls": true,
        "max_output_tokens": 30,
        "max_tool_calls": null,
        "user": "u",
        "safety_identifier": null,
        "prompt_cache_key": "k",
        "prompt_cache_retention": null,
        "previous_response_id": null,
        "reasoning": {"effort": "low", "summary": null},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "top_logprobs": 0,
        "truncation": "disabled",
        "background": false,
        "service_tier": "default",
        "store": true,
        "cache": null,
    });
    assert_eq!(stable(ask(&served, fields)), expected);
}

#[test]
fn a_stream_has_numbered_events_that_add_up_to_what_is_kept() {
    let served = answering(&[5, 1, 6, 2, 3, 0]).serve();
    let reply = served.post(PATH, &body(json!({"stream": true})));
    assert_eq!(reply.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events = reply.named_events();
    let n_events = |event: &Value| event["sequence_number"].as_u64().unwrap();
    assert!(events.iter().map(n_events).eq(0..events.len() as u64), "{reply:?}");
    let shown = |event: &Value| {
        let kind = event["type"].as_str().unwrap().trim_start_matches("response.");
        match event["output_index"].as_u64() {
            Some(idx) => format!("{kind} {idx}"),
            None => kind.to_owned(),
        }
    };
    let expected = [
        "created",
        "in_progress",
        "output_item.added 0",
        "content_part.added 0",
        "reasoning_text.delta 0",
        "reasoning_text.done 0",
        "content_part.done 0",
        "output_item.done 0",
        "output_item.added 1",
        "content_part.added 1",
        "output_text.delta 1",
        "output_text.delta 1",
        "output_text.done 1",
        "content_part.done 1",
        "output_item.done 1",
        "completed",
    ];
    assert_eq!(events.iter().map(shown).collect::<Vec<_>>(), expected);
    let created = &events[0]["response"];
    assert_eq!((&created["status"], &created["output"]), (&json!("in_progress"), &json!([])));
    assert_eq!((&events[4]["delta"], &events[5]["text"]), (&json!("one"), &json!("one")));
    assert_eq!(events[2]["item"]["content"], json!([]));
    let deltas = [&events[10], &events[11]].map(|event| event["delta"].as_str().unwrap());
    let whole = &events[15]["response"];
    let text = &whole["output"][1]["content"][0]["text"];
    assert_eq!((deltas.concat().as_str(), &events[12]["text"]), ("two three", text));
    assert_eq!(events[13]["part"], whole["output"][1]["content"][0]);
    assert_eq!(json!([events[7]["item"], events[14]["item"]]), whole["output"]);
    let of_item = |idx: usize| events[idx]["item_id"] == whole["output"][1]["id"];
    assert!((9..14).all(of_item), "{reply:?}");
    assert_eq!(&find(&served, &[], id(created)).json(), whole);
}

#[test]
fn the_length_makes_a_response_incomplete() {
    let served = answering(&[1, 2, 3, 0]).serve();
    let cut = json!({"max_output_tokens": 2});
    let whole = ask(&served, cut);
    assert_eq!((&whole["status"], text(&whole)), (&json!("incomplete"), "one two"));
    assert_eq!(whole["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(whole["output"][0]["status"], "incomplete");
    let cut = body(json!({"max_output_tokens": 2, "stream": true}));
    let events = served.post(PATH, &cut).named_events();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.incomplete"), &json!("incomplete"))
    );
    // It can be gone on from.
    ask(&served, json!({"previous_response_id": whole["id"]}));
}

#[test]
fn log_probabilities_come_where_they_are_included() {
    let served = answering(&[1, 2, 0]).serve();
    let include = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = ask(&served, include.clone());
    let logprobs = &whole["output"][0]["content"][0]["logprobs"];
    assert_eq!(logprobs.as_array().map(Vec::len), Some(2), "{whole}");
    assert_eq!((&logprobs[0]["token"], &logprobs[0]["logprob"]), (&json!("one"), &json!(-0.5)));
    assert_eq!(logprobs[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    let mut streamed = body(include);
    streamed["stream"] = true.into();
    let events = served.post(PATH, &streamed).named_events();
    let of_deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let of_deltas = of_deltas.flat_map(|event| event["logprobs"].as_array().unwrap().clone());
    assert_eq!(&Value::from_iter(of_deltas), logprobs);
}

#[test]
fn a_prompt_that_goes_on_begins_with_the_one_before_it() {
    let served = echoing().serve();
    let first = ask(&served, json!({"input": "hi one"}));
    assert_eq!(text(&first), "hi one");
    let second = ask(&served, json!({"input": "two", "previous_response_id": first["id"]}));
    assert_eq!(text(&second), "hi one hi one two");
    let third = ask(&served, json!({"input": "three", "previous_response_id": second["id"]}));
    assert_eq!(text(&third), "hi one hi one two hi one hi one two three");
    // The same conversation by hand is the same prompt.
    let user = |text: &str| json!({"role": "user", "content": text});
    let by_hand = json!([
        user("hi one"),
        first["output"][0],
        user("two"),
        second["output"][0],
        user("three")
    ]);
    assert_eq!(text(&ask(&served, json!({"input": by_hand, "store": false}))), text(&third));
    // Conversations may part.
    let other = ask(&served, json!({"input": "three", "previous_response_id": first["id"]}));
    assert_eq!(text(&other), "hi one hi one three");
}

#[test]
fn instructions_hold_for_one_response_alone() {
    let served = echoing().serve();
    let first = ask(&served, json!({"instructions": "one"}));
    assert_eq!(text(&first), "one hi");
    let next = |instructions: Value| {
        let fields = json!({"input": "two", "previous_response_id": first["id"],
                            "instructions": instructions});
        let next = ask(&served, fields);
        assert_eq!(next["instructions"], instructions);
        text(&next).to_owned()
    };
    assert_eq!(next(Value::Null), "hi one hi two");
    assert_eq!(next(json!("one")), "one hi one hi two");
}

#[test]
fn a_response_is_found_and_deleted_by_who_made_it_alone() {
    let served = Setup { keys: KEYS, ..answering(&[1, 0]) }.serve();
    let send = |key: &[(&str, &str)], fields: Value| {
        served.send("POST", PATH, key, &body(fields).to_string()).unwrap()
    };
    let made = send(&ALICE, json!({})).json();
    let delete = |key: &[(&str, &str)]| {
        served.send("DELETE", &format!("{PATH}/{}", id(&made)), key, "").unwrap()
    };
    assert_eq!(find(&served, &ALICE, id(&made)).json(), made);
    let after = json!({"previous_response_id": made["id"]});
    assert_eq!(send(&ALICE, after.clone()).status, 200);
    // Another's is as if there were none.
    let other = find(&served, &BOB, id(&made));
    assert_eq!(other.refused(404), None);
    assert_eq!(other.body, find(&served, &BOB, "resp_0").body);
    let theirs = send(&BOB, after.clone());
    assert_eq!(theirs.refused(404).as_deref(), Some("previous_response_id"));
    assert_eq!(theirs.json()["error"]["code"], "previous_response_not_found");
    delete(&BOB).refused(404);
    let deleted = json!({"id": made["id"], "object": "response", "deleted": true});
    assert_eq!(delete(&ALICE).json(), deleted);
    delete(&ALICE).refused(404);
    find(&served, &ALICE, id(&made)).refused(404);
    send(&ALICE, after).refused(404);
    find(&served, &[], id(&made)).refused(401);
}

#[test]
fn what_is_not_to_be_stored_or_has_no_room_is_not_there() {
    let limits = Limits { max_responses: 2, ..Limits::default() };
    let served = Setup { limits, ..answering(&[1, 0]) }.serve();
    let gone = ask(&served, json!({"store": false}));
    find(&served, &[], id(&gone)).refused(404);
    let first = ask(&served, json!({}));
    let second = ask(&served, json!({"previous_response_id": first["id"]}));
    let third = ask(&served, json!({"previous_response_id": second["id"]}));
    let reply = served.post(PATH, &body(json!({"previous_response_id": first["id"]})));
    assert_eq!(reply.refused(404).as_deref(), Some("previous_response_id"));
    assert!(reply.body.contains("send the whole conversation as input"), "{reply:?}");
    // The whole conversation is there, although its beginning is not.
    let fourth = ask(&served, json!({"previous_response_id": third["id"]}));
    assert_eq!(fourth["usage"]["input_tokens"], 7);
}

#[test]
fn a_kept_response_is_shown_as_it_was_and_nothing_else_is_asked_of_it() {
    let served = answering(&[1, 0]).serve();
    let made = ask(&served, json!({}));
    let query = |query: &str| find(&served, &[], &format!("{}?{query}", id(&made)));
    assert_eq!(query("stream=false").json(), made);
    for (asked, field) in [
        ("stream=true", "stream"),
        ("starting_after=3", "starting_after"),
        ("include[]=message.output_text.logprobs", "include"),
        ("include%5B%5D=x&stream=false", "include"),
        ("stream=false&include_obfuscation=true", "include_obfuscation"),
    ] {
        assert_eq!(query(asked).refused(400).as_deref(), Some(field), "{asked}");
    }
    served.get(PATH).refused(405);
}

#[test]
fn what_fails_in_a_stream_is_told_in_it() {
    let crash = Script { abort_after_tokens: Some(1), ..Script::default() };
    let served = Setup::from(crash).serve();
    let reply = served.post(PATH, &body(json!({"stream": true})));
    assert_eq!(reply.status, 200);
    let events = reply.named_events();
    let [.., error, failed] = &events[..] else { panic!("{reply:?}") };
    assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!("unavailable")));
    assert!(error["message"].is_string());
    let response = &failed["response"];
    assert_eq!(
        (&failed["type"], &response["status"], &response["error"]["code"]),
        (&json!("response.failed"), &json!("failed"), &json!("server_error"))
    );
    assert_eq!((text(response), &response["output"][0]["status"]), ("one", &json!("incomplete")));
    find(&served, &[], id(response)).refused(404);
}

#[test]
fn a_prompt_that_is_too_long_blames_the_input() {
    let served = answering(&[1, 0]).serve();
    let reply = served.post(PATH, &body(json!({"input": "hi ".repeat(100)})));
    assert_eq!(reply.refused(400).as_deref(), Some("input"));
    assert_eq!(
        served.post(PATH, &body(json!({"model": "no"}))).refused(404).as_deref(),
        Some("model")
    );
}

#[test]
fn the_items_that_a_response_was_made_of_are_listed_page_by_page() {
    let served = answering(&[5, 1, 6, 3, 0]).serve();
    let first = ask(&served, json!({"instructions": "two"}));
    let call = json!({"type": "function_call", "id": "fc_own", "call_id": "c", "name": "f",
                      "arguments": "{}", "status": "incomplete"});
    let result = json!({"type": "function_call_output", "call_id": "c", "output": "one"});
    let parts =
        json!([{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "hi"}]);
    let system = json!({"role": "system", "content": parts});
    let input = json!([system, {"role": "assistant", "content": "one"}, call, result]);
    let next = ask(&served, json!({"previous_response_id": first["id"], "input": input}));
    let list = |query: &str| {
        let reply = find(&served, &[], &format!("{}/input_items?{query}", id(&next)));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    };
    let all = list("order=asc");
    let items = all["data"].as_array().unwrap();
    let plain = |item: &Value| {
        let mut item = item.clone();
        let id = item.as_object_mut().unwrap().remove("id").unwrap();
        (id.as_str().unwrap().split('_').next().unwrap().to_owned(), item)
    };
    let message = |role: &str, content: Value| {
        let status = "completed";
        json!({"type": "message", "role": role, "status": status, "content": content})
    };
    let said = |text: &str| {
        let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        json!([part])
    };
    let thought = json!({"type": "reasoning", "status": "completed", "summary": [],
                         "content": [{"type": "reasoning_text", "text": "one"}]});
    let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}",
                      "status": "incomplete"});
    let result = json!({"type": "function_call_output", "call_id": "c", "output": "one",
                        "status": "completed"});
    let expected = [
        ("msg", message("user", json!([{"type": "input_text", "text": "hi"}]))),
        ("rs", thought),
        ("msg", message("assistant", said("three"))),
        ("msg", message("system", parts)),
        ("msg", message("assistant", said("one"))),
        ("fc", call),
        ("fco", result),
    ];
    let expected: Vec<_> = expected.map(|(id, item)| (id.to_owned(), item)).into();
    assert_eq!(items.iter().map(plain).collect::<Vec<_>>(), expected);
    assert_eq!(items[1..3], first["output"].as_array().unwrap()[..], "ids are the items' own");
    assert_eq!(items[5]["id"], "fc_own");
    assert_eq!((&all["first_id"], &all["has_more"]), (&items[0]["id"], &json!(false)));
    let mut newest_first = items.clone();
    newest_first.reverse();
    assert_eq!(list("")["data"], json!(newest_first));
    for (order, expected) in [("asc", items), ("desc", &newest_first)] {
        let (mut read, mut query) = (Vec::new(), format!("order={order}&limit=3"));
        loop {
            let page = list(&query);
            let data = page["data"].as_array().unwrap();
            assert!((1..=3).contains(&data.len()), "{page}");
            read.extend(data.clone());
            assert_eq!(page["last_id"], read.last().unwrap()["id"]);
            if page["has_more"] == json!(false) {
                break;
            }
            query = format!("order={order}&limit=3&after={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(&read, expected);
    }
    let end = list(&format!("order=asc&after={}", items[6]["id"].as_str().unwrap()));
    let nothing = json!({"object": "list", "data": [], "first_id": null, "last_id": null,
                         "has_more": false});
    assert_eq!(end, nothing);
}

#[test]
fn lists_of_items_are_the_callers_own_and_ask_for_what_there_is() {
    let served = Setup { keys: KEYS, ..answering(&[1, 0]) }.serve();
    let made = served.send("POST", PATH, &ALICE, &body(json!({})).to_string()).unwrap().json();
    let list = |key: &[(&str, &str)], query: &str| {
        find(&served, key, &format!("{}/input_items{query}", id(&made)))
    };
    assert_eq!(list(&ALICE, "").status, 200);
    list(&BOB, "").refused(404);
    list(&[], "").refused(401);
    find(&served, &ALICE, "resp_0/input_items").refused(404);
    for (query, status, field) in [
        ("?limit=0", 400, "limit"),
        ("?limit=101", 400, "limit"),
        ("?limit=ten", 400, "limit"),
        ("?order=up", 400, "order"),
        ("?before=x", 400, "before"),
        ("?include[]=message.output_text.logprobs", 400, "include[]"),
        ("?limit=1&limit=2", 400, "limit"),
        ("?after=msg_0", 404, "after"),
    ] {
        assert_eq!(list(&ALICE, query).refused(status).as_deref(), Some(field), "{query}");
    }
}

#[test]
fn tokens_are_counted_as_they_are_when_a_response_is_made() {
    let served = answering(&[1, 0]).serve();
    let path = format!("{PATH}/input_tokens");
    let first = ask(&served, json!({}));
    let tool = json!({"type": "function", "name": "one"});
    for fields in [
        json!({}),
        json!({"instructions": "two one", "reasoning": {"effort": "low"}}),
        json!({"previous_response_id": first["id"], "truncation": "disabled"}),
        json!({"tools": [tool], "tool_choice": "required", "parallel_tool_calls": false}),
        json!({"input": [{"role": "user", "content": "hi"}], "text": {"verbosity": "medium"}}),
    ] {
        let counted = served.post(&path, &body(fields.clone())).json();
        let n = ask(&served, fields.clone())["usage"]["input_tokens"].clone();
        let expected = json!({"object": "response.input_tokens", "input_tokens": n});
        assert_eq!(counted, expected, "{fields}");
    }
    for (fields, status, field) in [
        (json!({"input": null}), 400, "input"),
        (json!({"conversation": "c"}), 400, "conversation"),
        (json!({"personality": "friendly"}), 400, "personality"),
        (json!({"truncation": "auto"}), 400, "truncation"),
        (json!({"temperature": 1}), 400, "temperature"),
        (json!({"previous_response_id": "resp_0"}), 404, "previous_response_id"),
        (json!({"model": "no"}), 404, "model"),
    ] {
        let reply = served.post(&path, &body(fields));
        assert_eq!(reply.refused(status).as_deref(), Some(field), "{reply:?}");
    }
}

#[test]
fn what_has_ended_cannot_be_cancelled_and_the_error_says_what_can() {
    let served = answering(&[1, 0]).serve();
    let made = ask(&served, json!({}));
    let cancel = |id: &str| served.post(&format!("{PATH}/{id}/cancel"), &json!({}));
    let reply = cancel(id(&made));
    assert_eq!(reply.refused(400), None);
    assert!(reply.body.contains("background") && reply.body.contains("close"), "{reply:?}");
    cancel("resp_0").refused(404);
    assert_eq!(find(&served, &[], id(&made)).json(), made);
}
