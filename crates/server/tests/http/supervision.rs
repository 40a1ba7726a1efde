//! Models that come and go, and runners that die.

use std::time::{Duration, Instant};

use serde_json::json;
use server::models::KeepAlive;
use testkit::{LoadScript, Script};

use crate::client;
use crate::served::{Setup, chat};

fn endless() -> Script {
    Script { endless: true, context_tokens: 1_000_000, ..Script::default() }
}

#[cfg(unix)]
fn exists(pid: u64) -> bool {
    let kill = std::process::Command::new("kill").args(["-0", &pid.to_string()]).output();
    kill.unwrap().status.success()
}

#[test]
fn a_model_is_loaded_once_for_all_who_ask_and_stays() {
    let served = Setup::from(Script::default()).serve();
    assert_eq!(served.loaded(), []);
    let threads = 8;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| assert_eq!(served.chat(json!({})).status, 200));
        }
    });
    assert_eq!(served.loaded().len(), 1);
    assert_eq!(served.metric("offshoot_model_loads_total"), 1.0);
}

#[test]
fn a_model_that_rests_long_enough_is_unloaded() {
    let setup = Setup { keep_alive: KeepAlive::For(Duration::ZERO), ..Script::default().into() };
    let served = setup.serve();
    assert_eq!(served.chat(json!({})).status, 200);
    served.until("it is unloaded", |served| served.loaded().is_empty());
    assert_eq!(served.chat(json!({})).status, 200);
    assert_eq!(served.metric("offshoot_model_loads_total"), 2.0);
    // A request may say so of its own model.
    let served = Setup::from(Script::default()).serve();
    assert_eq!(served.chat(json!({"keep_alive": 0})).status, 200);
    served.until("it is unloaded", |served| served.loaded().is_empty());
}

#[test]
fn the_one_that_was_used_longest_ago_makes_room() {
    let keep_alive = KeepAlive::For(Duration::from_secs(3600));
    let models = vec!["tiny", "small", "other"];
    let setup = Setup { keep_alive, models, max_models: 2, ..Script::default().into() };
    let served = setup.serve();
    for model in ["tiny", "small", "tiny", "other"] {
        assert_eq!(served.chat(json!({"model": model})).status, 200, "{model}");
    }
    let names: Vec<_> = served.loaded().into_iter().map(|(name, _, _)| name).collect();
    assert_eq!(names, ["other", "tiny"]);
}

#[test]
fn one_at_rest_makes_way_where_the_machine_has_no_memory_left() {
    let memory = tempfile::tempdir().unwrap();
    let load = LoadScript::Takes(memory.path().join("taken"));
    let keep_alive = KeepAlive::For(Duration::from_secs(3600));
    let models = vec!["tiny", "small"];
    let script = Script { load, ..Script::default() };
    let served = Setup { keep_alive, models, ..script.clone().into() }.serve();
    for model in ["tiny", "small", "tiny"] {
        assert_eq!(served.chat(json!({"model": model})).status, 200, "{model}");
        let names: Vec<_> = served.loaded().into_iter().map(|(name, _, _)| name).collect();
        assert_eq!(names, [model]);
    }
    // One that is to stay does not, and the failure is told.
    let models = vec!["tiny", "small"];
    let memory = tempfile::tempdir().unwrap();
    let load = LoadScript::Takes(memory.path().join("taken"));
    let served = Setup { models, ..Script { load, ..script }.into() }.serve();
    assert_eq!(served.chat(json!({"model": "tiny"})).status, 200);
    let reply = served.chat(json!({"model": "small"}));
    reply.refused(503);
    assert!(reply.body.contains("no memory is left"), "{reply:?}");
    assert_eq!(served.loaded().len(), 1);
}

#[test]
fn a_model_at_work_is_not_unloaded_for_another() {
    let keep_alive = KeepAlive::For(Duration::from_secs(3600));
    let models = vec!["tiny", "small"];
    let served = Setup { keep_alive, models, max_models: 1, ..endless().into() }.serve();
    let mut stream = served.open_chat(json!({"stream": true, "max_tokens": 1_000_000}));
    stream.wait_for("data: ");
    let reply = served.chat(json!({"model": "small"}));
    reply.refused(503);
    assert!(reply.header("retry-after").is_some() && reply.body.contains("tiny"), "{reply:?}");
    drop(stream);
    served.until("it rests", |served| served.loaded().iter().all(|(_, n, _)| *n == 0));
    assert_eq!(served.chat(json!({"model": "small", "max_tokens": 3})).status, 200);
}

#[test]
fn models_that_cannot_fit_are_refused_before_anything_is_unloaded() {
    let served = Setup { memory_bytes: Some(1), ..Script::default().into() }.serve();
    served.chat(json!({})).refused(503);
    assert_eq!(served.loaded(), []);
}

#[test]
fn a_crash_before_the_first_token_is_not_seen() {
    // The first answer uses up the process; the second one needs another.
    let served = Setup::from(Script { abort_after_tokens: Some(3), ..Script::default() }).serve();
    assert_eq!(served.chat(json!({})).status, 200);
    let before = served.loaded();
    let reply = served.chat(json!({}));
    assert_eq!(
        (reply.status, &reply.json()["choices"][0]["message"]["content"]),
        (200, &json!("one two three"))
    );
    assert_ne!(served.loaded(), before, "another process");
    assert_eq!(served.metric("offshoot_request_retries_total"), 1.0);
    assert_eq!(served.metric("offshoot_runner_crashes_total"), 1.0);
}

#[test]
fn a_crash_after_tokens_is_a_503_that_says_when_to_come_back() {
    let served = Setup::from(Script { abort_after_tokens: Some(2), ..Script::default() }).serve();
    let reply = served.chat(json!({}));
    reply.refused(503);
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..60).contains(&wait), "{reply:?}");
    assert!(
        !reply.body.contains("scripted:"),
        "the runner's output is not the caller's: {reply:?}"
    );
    // It comes back by itself.
    served.until("it is there again", |served| served.loaded().iter().any(|(_, _, pid)| *pid > 0));
}

#[test]
fn one_that_always_dies_takes_nobody_with_it() {
    let served = Setup::from(Script { abort_after_tokens: Some(0), ..Script::default() }).serve();
    served.chat(json!({})).refused(503);
    assert_eq!(served.get("/health").status, 200);
    assert_eq!(served.metric("offshoot_request_retries_total"), 1.0, "once, and not for ever");
}

#[test]
fn loads_that_fail_are_told_with_their_reason() {
    for (load, says) in [
        (LoadScript::Fails("no memory for tensor x".into()), "no memory for tensor x"),
        (LoadScript::Exits(3), "ended unexpectedly"),
    ] {
        let served = Setup::from(Script { load, ..Script::default() }).serve();
        let reply = served.chat(json!({}));
        reply.refused(503);
        assert!(reply.header("retry-after").is_some() && reply.body.contains(says), "{reply:?}");
    }
}

#[test]
fn the_progress_of_a_load_is_shown() {
    let hangs = Script { load: LoadScript::Hangs, ..Script::default() };
    let served = Setup { drain_time: Duration::ZERO, ..hangs.into() }.serve();
    let body = chat(json!({"stream": true})).to_string();
    let bytes = client::request("POST", "/v1/chat/completions", &[], &body);
    let address = served.address;
    let asking = std::thread::spawn(move || {
        let mut stream = client::open(address, bytes.as_bytes()).unwrap();
        stream.wait_for(": loading 1/2");
    });
    served.until("it loads", |served| {
        let ready = served.get("/ready").json();
        ready["loading"] == json!([{"model": "tiny", "done_bytes": 1, "total_bytes": 2}])
    });
    asking.join().unwrap();
}

#[test]
fn too_many_requests_are_refused_with_a_time_to_come_back() {
    let served = Setup { max_requests: 1, ..endless().into() }.serve();
    let mut stream = served.open_chat(json!({"stream": true, "max_tokens": 1_000_000}));
    stream.wait_for("data: ");
    let reply = served.chat(json!({}));
    reply.refused(429);
    assert!(reply.header("retry-after").is_some());
}

#[test]
fn a_request_has_a_bounded_time() {
    let served = Setup { request_time: Duration::from_millis(300), ..endless().into() }.serve();
    served.chat(json!({"max_tokens": 1_000_000})).refused(408);
    served.until("it is stopped", |served| served.loaded().iter().all(|(_, n, _)| *n == 0));
}

#[cfg(unix)]
#[test]
fn the_end_waits_for_requests_and_leaves_no_process() {
    let served = Setup::from(Script::default()).serve();
    served.chat(json!({}));
    let pid = served.loaded()[0].2;
    served.end();
    served.wait();
    assert!(!exists(pid), "runner {pid}");
}

#[cfg(unix)]
#[test]
fn the_end_does_not_wait_for_ever() {
    let served = Setup { drain_time: Duration::from_millis(200), ..endless().into() }.serve();
    let mut stream = served.open_chat(json!({"stream": true, "max_tokens": 1_000_000}));
    stream.wait_for("data: ");
    let pid = served.loaded()[0].2;
    let start = Instant::now();
    served.end();
    served.wait();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(!exists(pid), "runner {pid}");
}
