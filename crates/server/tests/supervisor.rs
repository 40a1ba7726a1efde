//! Real processes: the scripted runner under the supervisor.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::time::{Duration, Instant};

use protocol::{
    CacheSettings, Command, Event, FinishReason, GenerateRequest, LoadRequest, ModelSource,
    RequestId, Sampling,
};
use server::supervisor::{Runner, RunnerError, RunnerProgram};
use testkit::{LoadScript, PROGRAM_VAR, Program, Script};

/// Cargo builds a package's examples together with its tests.
fn scripted_runner() -> PathBuf {
    let test = env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let path =
        target.join("examples").join(format!("server_scripted_runner{}", env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "build it first: cargo test -p server");
    path
}

fn spawn(program: &Program) -> Runner {
    let env = vec![(PROGRAM_VAR.into(), program.to_env().into())];
    Runner::spawn(&RunnerProgram { path: scripted_runner(), env }, "test").unwrap()
}

fn folder() -> LoadRequest {
    LoadRequest {
        source: ModelSource::Folder { path: "anywhere".into() },
        cache: CacheSettings::default(),
        chunk_tokens: None,
        deterministic: false,
        max_rows: None,
    }
}

fn loaded(script: Script) -> Runner {
    let mut runner = spawn(&Program::Serve(script));
    assert_eq!(runner.greet().unwrap(), "scripted");
    runner.load(folder(), &mut |_, _| {}).unwrap();
    runner
}

fn generate(id: u64) -> Command {
    Command::Generate(GenerateRequest {
        id: RequestId(id),
        prompt: vec![1],
        max_tokens: 100,
        stop_tokens: vec![],
        sampling: Sampling::greedy(),
        top_logprobs: None,
        namespace: 0,
        boundaries: vec![],
        grammar: None,
    })
}

/// Whether a process exists.
#[cfg(unix)]
fn exists(pid: u32) -> bool {
    Process::new("kill").args(["-0", &pid.to_string()]).output().unwrap().status.success()
}

#[test]
fn a_runner_probes_loads_answers_and_leaves() {
    let mut runner = spawn(&Program::Serve(Script::default()));
    runner.greet().unwrap();
    assert_eq!(runner.probe().unwrap().device, "scripted");
    let mut seen = Vec::new();
    let info = runner.load(folder(), &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!((info.family.as_str(), seen), ("scripted", vec![(1, 2), (2, 2)]));
    runner.send(&generate(1));
    let mut tokens = Vec::new();
    loop {
        match runner.next_event().unwrap() {
            Event::Token { token, .. } => tokens.push(token),
            Event::Finished { .. } => break,
            _ => {}
        }
    }
    assert_eq!(tokens, [1, 2, 3]);
    let start = Instant::now();
    runner.shutdown(Duration::from_secs(60));
    assert!(start.elapsed() < Duration::from_secs(30), "it left by itself");
}

#[test]
fn a_handle_cancels_from_another_thread() {
    let mut runner = loaded(Script { endless: true, ..Script::default() });
    runner.send(&generate(1));
    while !matches!(runner.next_event().unwrap(), Event::Token { .. }) {}
    let handle = runner.handle();
    std::thread::spawn(move || handle.cancel(RequestId(1)));
    loop {
        if let Event::Finished { reason, .. } = runner.next_event().unwrap() {
            assert_eq!(reason, FinishReason::Cancelled);
            break;
        }
    }
}

#[test]
fn a_crash_is_reported_with_its_status_and_last_lines() {
    let crashes = Script { abort_after_tokens: Some(2), ..Script::default() };
    let mut runner = loaded(crashes);
    runner.send(&generate(1));
    let error = loop {
        if let Err(error) = runner.next_event() {
            break error;
        }
    };
    let RunnerError::Crashed { status, last_lines } = &error else { panic!("{error:?}") };
    assert!(cfg!(not(unix)) || status.contains("SIGABRT"), "{status}");
    assert_eq!(last_lines, &["scripted: the device is lost"]);
    assert!(error.to_string().contains("| scripted: the device is lost"), "{error}");
}

#[test]
fn deaths_before_and_during_the_load_are_reported() {
    let line = "error while loading shared libraries: libmlx.so".to_owned();
    let mut runner = spawn(&Program::ExitsAtOnce(line.clone(), 127));
    let error = runner.greet().unwrap_err();
    let RunnerError::Crashed { status, last_lines } = &error else { panic!("{error:?}") };
    assert!(status.contains("127"), "{status}");
    assert_eq!(last_lines, &[line]);
    assert!(error.hint().is_some_and(|hint| hint.contains("doctor")));

    let exits = Script { load: LoadScript::Exits(3), ..Script::default() };
    let mut runner = spawn(&Program::Serve(exits));
    runner.greet().unwrap();
    let error = runner.load(folder(), &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("cannot allocate the weights"), "{error}");
}

#[test]
fn a_failed_load_is_the_runners_own_message() {
    let load = LoadScript::Fails("tensor x is missing".into());
    let mut runner = spawn(&Program::Serve(Script { load, ..Script::default() }));
    runner.greet().unwrap();
    let error = runner.load(folder(), &mut |_, _| {}).unwrap_err();
    assert!(
        matches!(&error, RunnerError::Failed { message, .. } if message == "tensor x is missing")
    );
}

#[test]
fn another_version_a_stranger_and_nonsense_are_told_apart() {
    let greeting = |program| spawn(&program).greet().unwrap_err().to_string();
    let error = greeting(Program::OtherVersion);
    assert!(
        error.contains(&format!("version {}", protocol::VERSION + 1))
            && error.contains("same build"),
        "{error}"
    );
    let error = greeting(Program::Stranger);
    assert!(error.contains("not an offshoot program"), "{error}");
    let mut runner = spawn(&Program::TalksNonsense);
    runner.greet().unwrap();
    assert!(matches!(runner.next_event(), Err(RunnerError::Nonsense(_))));
}

#[test]
fn a_missing_executable_is_a_spawn_error() {
    let path = PathBuf::from("no/such/runner");
    let error = Runner::spawn(&RunnerProgram { path, env: vec![] }, "test").map(|_| ());
    assert!(matches!(error, Err(RunnerError::Spawn { .. })), "{error:?}");
}

#[test]
fn killing_a_hanging_load_is_not_a_crash() {
    let hangs = Script { load: LoadScript::Hangs, ..Script::default() };
    let mut runner = spawn(&Program::Serve(hangs));
    runner.greet().unwrap();
    let handle = runner.handle();
    let error = runner.load(folder(), &mut |_, _| handle.kill()).unwrap_err();
    assert!(matches!(error, RunnerError::Killed), "{error:?}");
}

#[cfg(unix)]
#[test]
fn no_runner_is_left_behind() {
    let runner = loaded(Script { endless: true, ..Script::default() });
    let pid = runner.pid();
    assert!(exists(pid));
    drop(runner);
    assert!(!exists(pid));
}
