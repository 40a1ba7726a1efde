//! What strangers try. The numbers are those of the list of attacks in the design.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use server::http::Limits;
use testkit::Script;

use crate::client::{self, connect, request};
use crate::served::{Setup, chat};

const ADMIN: &str = "sk-admin-0123456789";
const GUEST: &str = "sk-guest-0123456789";
const KEYS: &str = "sk-admin-0123456789 name=root admin\nsk-guest-0123456789 name=guest requests=2";

fn plain() -> Setup {
    Script { answer: vec![1, 0], ..Script::default() }.into()
}

fn endless() -> Setup {
    Script { endless: true, context_tokens: 10_000_000, ..Script::default() }.into()
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

#[test]
fn attack_1_a_billion_answers_are_refused_before_anything_is_made() {
    let served = plain().serve();
    assert_eq!(served.chat(json!({"n": 1_000_000_000})).refused(400).as_deref(), Some("n"));
    assert_eq!(served.loaded(), []);
}

#[test]
fn attack_24_other_pages_and_rebound_names_are_refused() {
    let served = plain().serve();
    let body = chat(json!({})).to_string();
    let path = "/v1/chat/completions";
    for headers in [
        [("origin", "null")],
        [("origin", "https://evil.example")],
        [("origin", "http://localhost.evil.example")],
        [("host", "evil.example")],
        [("host", "evil.example:11435")],
        [("sec-fetch-site", "cross-site")],
    ] {
        let reply = served.send("POST", path, &headers, &body).unwrap();
        reply.refused(403);
        assert!(reply.header("access-control-allow-origin").is_none(), "{headers:?}");
        served.send("GET", "/v1/models", &headers, "").unwrap().refused(403);
        served.send("OPTIONS", path, &headers, "").unwrap().refused(403);
    }
    for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; x"] {
        served.send("POST", path, &[("content-type", form)], &body).unwrap().refused(415);
    }
    let own = format!("http://{}", served.address);
    let host = served.address.to_string();
    // A client that is no page may leave the type out; a page may not, its own included.
    let untyped = |headers: &[(&str, &str)]| {
        let bytes = request("POST", path, headers, &body);
        let bytes = bytes.replace("content-type: application/json\r\n", "");
        client::open(served.address, bytes.as_bytes()).unwrap().reply().status
    };
    assert_eq!(untyped(&[]), 200);
    assert_eq!(untyped(&[("origin", own.as_str()), ("host", host.as_str())]), 415);
    let headers = [("origin", own.as_str()), ("host", host.as_str())];
    assert_eq!(served.send("POST", path, &headers, &body).unwrap().status, 200);
    assert_eq!(served.loaded().len(), 1, "what was refused loaded nothing");
}

#[test]
fn attack_25_management_needs_a_key_of_its_own() {
    let served = Setup { keys: KEYS, ..plain() }.serve();
    let body = json!({"model": "tiny"}).to_string();
    for path in ["/models/load", "/models/unload"] {
        let send = |headers: &[(&str, &str)]| served.send("POST", path, headers, &body).unwrap();
        send(&[]).refused(401);
        send(&[("authorization", &bearer(GUEST))]).refused(403);
    }
    let headers = [("authorization", bearer(ADMIN))];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(served.send("POST", "/models/load", &headers, &body).unwrap().status, 200);
}

#[test]
fn attack_27_bodies_out_of_bounds_are_refused() {
    let limits = Limits { body_bytes: 1 << 20, ..Limits::default() };
    let served = Setup { limits, ..plain() }.serve();
    let path = "/v1/chat/completions";
    let post = |body: &str| served.send("POST", path, &[], body).unwrap();
    post(&format!("\"{}\"", "x".repeat(1 << 20))).refused(413);
    // Its length is not announced.
    let mut stream = connect(served.address);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
                content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", "[".repeat(0x10000));
    while stream.write_all(chunk.as_bytes()).is_ok() {
        stream.set_nonblocking(true).unwrap();
        let has_answer = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).unwrap();
        if has_answer {
            break;
        }
    }
    assert_eq!(client::read_head(stream).unwrap().status, 413);
    for body in ["[", "{\"a\":1,\"a\":2}", "\"\\ud800\"", "[1]", "1", "null"] {
        post(body).refused(400);
    }
    post(&"[".repeat(1 << 19)).refused(400);
    post(&format!("[{}1]", "1,".repeat(400_000))).refused(400);
    let mut bytes = request("POST", path, &[("content-length", "3")], "").into_bytes();
    bytes.extend(b"\"\xff\"");
    let text = String::from_utf8_lossy(&bytes)
        .replace("\r\n\r\n", "\r\ncontent-type: application/json\r\n\r\n");
    let bytes = text.replace('\u{fffd}', "\u{1}").into_bytes();
    let bytes: Vec<u8> = bytes.into_iter().map(|b| if b == 1 { 0xff } else { b }).collect();
    client::open(served.address, &bytes).unwrap().reply().refused(400);
    assert_eq!(served.chat(json!({})).status, 200);
}

#[test]
fn attack_28_slow_senders_are_cut_off() {
    let limits = Limits {
        header_time: Duration::from_millis(300),
        body_time: Duration::from_millis(300),
        ..Limits::default()
    };
    let served = Setup { limits, ..plain() }.serve();
    let mut stream = connect(served.address);
    stream.write_all(b"GET /health HTT").unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
    let headers = [("content-length", "100"), ("content-type", "application/json")];
    let bytes = request("POST", "/v1/chat/completions", &headers, "");
    let mut stream = connect(served.address);
    stream.write_all(format!("{bytes}{{\"model\"").as_bytes()).unwrap();
    client::read_head(stream).unwrap().reply().refused(408);
}

#[test]
fn attack_28_idle_connections_take_no_place_for_long() {
    let limits =
        Limits { header_time: Duration::from_millis(300), max_connections: 4, ..Limits::default() };
    let served = Setup { limits, ..plain() }.serve();
    let idle: Vec<TcpStream> = (0..64).map(|_| connect(served.address)).collect();
    served_again(&served);
    drop(idle);
}

/// Asks until a place is free.
fn served_again(served: &crate::served::Served) {
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while served.send("GET", "/health", &[], "").is_none_or(|reply| reply.status != 200) {
        assert!(std::time::Instant::now() < until, "no place is free again");
        std::thread::yield_now();
    }
}

#[test]
fn attack_28_a_reader_that_does_not_read_has_its_work_stopped() {
    let served = endless().serve();
    let fields = json!({"stream": true, "max_tokens": 1_000_000, "n": 8, "logprobs": true,
                        "top_logprobs": 20});
    let stream = served.open_chat(fields);
    served.until("its work is stopped", |served| {
        served.loaded().iter().all(|(_, n_requests, _)| *n_requests == 0)
    });
    // Another one is served all the while.
    assert_eq!(served.chat(json!({"max_tokens": 3})).status, 200);
    drop(stream);
}

#[test]
fn attack_28_a_reader_that_does_not_read_loses_its_connection() {
    let limits = Limits { write_time: Duration::from_millis(300), ..Limits::default() };
    let served = Setup { limits, ..endless() }.serve();
    let fields = json!({"stream": true, "max_tokens": 1_000_000, "n": 8, "logprobs": true,
                        "top_logprobs": 20});
    let mut stream = served.open_chat(fields);
    let dropped = "offshoot_requests_failed_total{model_name=\"tiny\",reason=\"dropped\"}";
    served.until("the connection is closed", |served| served.metric(dropped) >= 1.0);
    let mut rest = Vec::new();
    let _ = stream.reader.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the stream has no good end");
}

#[test]
fn attack_29_there_is_no_http_2() {
    let served = plain().serve();
    let opened =
        client::open(served.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert!(opened.is_none_or(|opened| opened.status >= 400));
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn attack_30_two_lengths_are_refused_and_nothing_of_a_caller_comes_back_in_headers() {
    let served = plain().serve();
    let smuggled = "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\
                    \r\ncontent-length: 44\r\ntransfer-encoding: chunked\r\n\r\n\
                    0\r\n\r\nGET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let reply = client::open(served.address, smuggled.as_bytes()).unwrap();
    assert_eq!(reply.status, 400);
    let text = reply.reply();
    assert!(!text.body.contains("\"list\""), "{text:?}");
    let id = |given: &str| {
        let reply = served.send("GET", "/health", &[("x-request-id", given)], "").unwrap();
        // What is no header at all is refused before it has an id.
        let refused = (reply.status == 400).then_some("req-none");
        reply.header("x-request-id").or(refused).unwrap().to_owned()
    };
    assert_eq!(id("abc-1.2_3"), "abc-1.2_3");
    for bad in ["a b", "\u{1b}[31m", &"x".repeat(129), "ä"] {
        assert!(id(bad).starts_with("req-"), "{bad:?}");
    }
}

#[test]
fn attack_34_keys_are_needed_and_never_shown() {
    let served = Setup { keys: KEYS, ..plain() }.serve();
    let models =
        |headers: &[(&str, &str)], path: &str| served.send("GET", path, headers, "").unwrap();
    let reply = models(&[], "/v1/models");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    assert_eq!(reply.refused(401), None);
    models(&[], &format!("/v1/models?api_key={GUEST}")).refused(401);
    for wrong in ["", "Bearer", "Bearer ", "Basic c2s=", &bearer(&GUEST[1..]), GUEST] {
        models(&[("authorization", wrong)], "/v1/models").refused(401);
    }
    let guest = bearer(GUEST);
    let known: [&[(&str, &str)]; 2] = [&[("authorization", &guest)], &[("x-api-key", GUEST)]];
    for headers in known {
        assert_eq!(models(headers, "/v1/models").status, 200);
        let shown = format!("{:?}", models(headers, "/metrics"));
        assert!(!shown.contains(GUEST) && !shown.contains("sk-"), "{shown}");
    }
    for path in ["/health", "/ready"] {
        assert_eq!(models(&[], path).status, 200, "{path} is for probes");
    }
}

#[test]
fn what_is_refused_unread_leaves_the_connection_to_the_next_request() {
    let keys = "sk-alice-0123456789 name=alice";
    let served = Setup { keys, ..Setup::from(Script::default()) }.serve();
    let body = format!("\"{}\"", "x".repeat(300_000));
    let key = ("authorization", "Bearer sk-alice-0123456789");
    let wrong = ("authorization", "Bearer sk-nobody-012345678");
    let chat = "/v1/chat/completions";
    for (status, path, method, headers) in [
        (401, chat, "POST", vec![wrong]),
        (403, chat, "POST", vec![key, ("origin", "https://evil.example")]),
        (404, "/v1/nowhere", "POST", vec![key]),
        (405, chat, "PUT", vec![key]),
        (415, chat, "POST", vec![key, ("content-type", "text/plain")]),
        (403, "/api/blobs/sha256:0", "POST", vec![key]),
    ] {
        let first = request(method, path, &headers, &body).replace("connection: close\r\n", "");
        let second = request("GET", "/health", &[], "");
        let mut stream = connect(served.address);
        let mut sender = stream.try_clone().unwrap();
        // The second begins while the first is still on its way.
        std::thread::spawn(move || sender.write_all(format!("{first}{second}").as_bytes()));
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {text}");
        assert!(text.ends_with("{\"status\":\"ok\"}"), "{path}: {text}");
    }
}

#[test]
fn attack_35_work_for_clients_that_left_is_stopped() {
    let script = Script { prefill_steps: None, ..Script::default() };
    let served = Setup { max_requests: 1000, ..script.into() }.serve();
    served.post("/models/load", &json!({"model": "tiny"}));
    let body = chat(json!({})).to_string();
    let bytes = request("POST", "/v1/chat/completions", &[], &body);
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = connect(served.address);
        stream.write_all(bytes.as_bytes()).unwrap();
        streams.push(stream);
    }
    let n_requests = |served: &crate::served::Served| served.loaded()[0].1;
    served.until("all are at work", |served| n_requests(served) == 32);
    drop(streams);
    served.until("all are stopped", |served| n_requests(served) == 0);
    assert_eq!(served.metric("vllm:num_requests_running{model_name=\"tiny\"}"), 0.0);
}

#[test]
fn attack_35_one_key_cannot_take_all_places() {
    let served = Setup { keys: KEYS, ..endless() }.serve();
    let fields = json!({"stream": true, "max_tokens": 1_000_000});
    let body = chat(fields).to_string();
    let (guest, admin) = (bearer(GUEST), bearer(ADMIN));
    let ask = |key: &str, body: &str| {
        let bytes = request("POST", "/v1/chat/completions", &[("authorization", key)], body);
        client::open(served.address, bytes.as_bytes()).unwrap()
    };
    let held = [ask(&guest, &body), ask(&guest, &body)];
    ask(&guest, &body).reply().refused(429);
    let short = chat(json!({"max_tokens": 2})).to_string();
    assert_eq!(ask(&admin, &short).status, 200);
    drop(held);
    let until = std::time::Instant::now() + Duration::from_secs(30);
    while ask(&guest, &short).status != 200 {
        assert!(std::time::Instant::now() < until, "the places are free again");
    }
}

#[test]
fn attack_36_no_label_is_a_callers_word() {
    let served = plain().serve();
    served.chat(json!({"model": "strange-model-name"}));
    served.get("/strange/path");
    served.send("GET", "/v1/models", &[("x-request-id", "strange-id")], "");
    served.chat(json!({"user": "strange-user"}));
    let text = served.get("/metrics").body;
    assert!(!text.contains("strange"), "{text}");
    assert!(text.contains("route=\"unknown\""));
}

#[test]
fn names_of_models_are_never_paths() {
    let served = plain().serve();
    let folder = served.home.path().join("models/tiny");
    for name in [
        folder.to_str().unwrap(),
        "./tiny",
        "../models/tiny",
        "tiny/../tiny",
        "tiny\u{0}",
        "~/x",
        "shape:qwen3-8b:4bit",
    ] {
        let reply = served.chat(json!({"model": name}));
        assert_eq!(reply.refused(404).as_deref(), Some("model"), "{name:?}");
    }
    let escaped: Value = served.get("/v1/models/..%2Ftiny").json();
    assert!(escaped["error"].is_object(), "{escaped}");
}
