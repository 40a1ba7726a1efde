//! Whole conversations with a scripted engine over in-memory pipes.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::thread::JoinHandle;

use protocol::{
    BenchRequest, CacheSettings, Coding, CodingMode, Command, Event, Fault, FinishReason,
    GenerateRequest, LoadRequest, LogitsRequest, ModelSource, QuantizeRequest, QuantizeTarget,
    RequestId, Sampling, Usage,
};
use runner::RunError;
use testkit::{
    DIES, FAILS, LoadScript, QuantizeScript, REFUSED, Script, ScriptedLoader, VOCAB_SIZE,
};

/// The parent's end of a running loop.
struct Parent {
    to_runner: PipeWriter,
    from_runner: PipeReader,
    runner: JoinHandle<Result<(), RunError>>,
}

impl Parent {
    /// Starts a loop and greets it.
    fn greet(script: Script) -> Self {
        let (runner_reader, mut to_runner) = pipe().unwrap();
        let (mut from_runner, runner_writer) = pipe().unwrap();
        let runner = std::thread::spawn(move || {
            runner::run(runner_reader, runner_writer, "runner", ScriptedLoader(script))
        });
        let theirs = protocol::exchange(&mut from_runner, &mut to_runner, "parent").unwrap();
        assert_eq!(theirs.build, "runner");
        Self { to_runner, from_runner, runner }
    }

    /// Starts a loop and has it load its model.
    fn loaded(script: Script) -> Self {
        let mut parent = Self::greet(script);
        parent.send(load());
        parent.until("loaded", |e| matches!(e, Event::Loaded(_)));
        parent
    }

    fn send(&mut self, command: Command) {
        protocol::write_frame(&mut self.to_runner, &command).unwrap();
    }

    fn next(&mut self) -> Option<Event> {
        protocol::read_frame(&mut self.from_runner).unwrap()
    }

    /// Events up to and including the first that is `wanted`.
    fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next() {
            events.push(event);
            if events.last().is_some_and(&wanted) {
                return events;
            }
        }
        panic!("the runner ended before {what}: {events:?}");
    }

    /// Sends commands so that the loop sees all of them before its next step: they queue up
    /// behind a job that ends with the last one. Needs an endless script.
    fn send_together(&mut self, commands: impl IntoIterator<Item = Command>) {
        const JOB: u64 = 1000;
        let tokens = vec![1];
        self.send(Command::Logits(LogitsRequest {
            id: RequestId(JOB),
            tokens,
            chunk_tokens: None,
        }));
        commands.into_iter().for_each(|command| self.send(command));
        self.send(cancel(JOB));
        self.until_end_of(JOB);
    }

    fn until_end_of(&mut self, id: u64) -> Vec<Event> {
        self.until("the end of the request", |event| match event {
            Event::Finished { id: ended, .. } => ended.0 == id,
            Event::Failed { id: ended, .. } => ended.is_none_or(|ended| ended.0 == id),
            _ => false,
        })
    }

    /// Closes our end; what the loop still says and how it ends.
    fn leave(self) -> (Vec<Event>, Result<(), RunError>) {
        drop(self.to_runner);
        let mut reader = self.from_runner;
        let mut events = Vec::new();
        while let Some(event) = protocol::read_frame(&mut reader).unwrap() {
            events.push(event);
        }
        (events, self.runner.join().unwrap())
    }
}

fn load() -> Command {
    Command::Load(LoadRequest {
        source: ModelSource::Folder { path: "anywhere".into() },
        cache: CacheSettings::default(),
        chunk_tokens: None,
        deterministic: false,
        max_rows: None,
    })
}

fn generate(id: u64, prompt: &[u32]) -> Command {
    Command::Generate(GenerateRequest {
        id: RequestId(id),
        prompt: prompt.to_vec(),
        max_tokens: 100,
        stop_tokens: vec![],
        sampling: Sampling::greedy(),
        top_logprobs: None,
        namespace: 0,
        boundaries: vec![],
        grammar: None,
    })
}

fn cancel(id: u64) -> Command {
    Command::Cancel { id: RequestId(id) }
}

fn tokens_of(id: u64, events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { id: of, token, .. } if of.0 == id => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn end(events: &[Event]) -> (FinishReason, Usage) {
    match events.last() {
        Some(Event::Finished { reason, usage, .. }) => (*reason, *usage),
        other => panic!("not finished: {other:?}"),
    }
}

fn failure(events: &[Event]) -> (Option<u64>, Fault, String) {
    match events.last() {
        Some(Event::Failed { id, fault, message }) => (id.map(|id| id.0), *fault, message.clone()),
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn an_answer_streams_and_finishes() {
    let mut parent = Parent::loaded(Script::default());
    parent.send(generate(7, &[4, 5]));
    let events = parent.until_end_of(7);
    assert!(matches!(events[0], Event::PrefillProgress { total_tokens: 2, .. }));
    assert_eq!(tokens_of(7, &events), [1, 2, 3]);
    let usage = Usage { prompt_tokens: 2, cached_tokens: 0, new_tokens: 3 };
    assert_eq!(end(&events), (FinishReason::Stop, usage));
    let (rest, result) = parent.leave();
    assert_eq!(rest, []);
    result.unwrap();
}

#[test]
fn a_request_cancelled_before_its_first_step_computes_nothing() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send_together([generate(1, &[4]), cancel(1)]);
    let events = parent.until_end_of(1);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(end(&events).0, FinishReason::Cancelled);
}

#[test]
fn a_request_cancelled_in_its_prefill_ends_and_the_next_one_runs() {
    let mut parent = Parent::loaded(Script { prefill_steps: None, ..Script::default() });
    for id in [1, 2] {
        parent.send(generate(id, &[4]));
        parent
            .until("prefill", |e| matches!(e, Event::PrefillProgress { id: of, .. } if of.0 == id));
        parent.send(cancel(id));
        let (reason, usage) = end(&parent.until_end_of(id));
        assert_eq!((reason, usage.new_tokens), (FinishReason::Cancelled, 0));
    }
}

#[test]
fn a_request_cancelled_while_it_answers_ends_with_what_it_had() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send(generate(1, &[4]));
    let mut events = parent.until("a token", |e| matches!(e, Event::Token { .. }));
    parent.send(cancel(1));
    events.extend(parent.until_end_of(1));
    let (reason, usage) = end(&events);
    assert_eq!(reason, FinishReason::Cancelled);
    assert_eq!(usage.new_tokens as usize, tokens_of(1, &events).len());
    let (rest, result) = parent.leave();
    assert_eq!(rest, [], "nothing follows the end of a request");
    result.unwrap();
}

#[test]
fn cancelling_the_unknown_is_no_error() {
    let mut parent = Parent::loaded(Script::default());
    parent.send(cancel(99));
    parent.send(generate(1, &[4]));
    let events = parent.until_end_of(1);
    assert_eq!(end(&events).0, FinishReason::Stop);
    parent.send(cancel(1));
    let (rest, result) = parent.leave();
    assert_eq!(rest, []);
    result.unwrap();
}

#[test]
fn a_failing_request_leaves_the_others_alone() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send(generate(1, &[4]));
    parent.send(generate(2, &[FAILS]));
    let failed = failure(&parent.until_end_of(2));
    assert_eq!(failed, (Some(2), Fault::World, "scripted failure".to_owned()));
    parent.send(generate(3, &[REFUSED]));
    let failed = failure(&parent.until_end_of(3));
    assert_eq!(failed, (Some(3), Fault::Caller, "scripted refusal".to_owned()));
    parent.until("a further token", |e| matches!(e, Event::Token { id, .. } if id.0 == 1));
    parent.send(cancel(1));
    assert_eq!(end(&parent.until_end_of(1)).0, FinishReason::Cancelled);
}

#[test]
fn two_requests_share_the_steps() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send_together([generate(1, &[4]), generate(2, &[5])]);
    let mut order = Vec::new();
    while order.len() < 6 {
        if let Some(Event::Token { id, .. }) = parent.next() {
            order.push(id.0);
        }
    }
    assert_eq!(order, [1, 2, 1, 2, 1, 2]);
}

#[test]
fn a_defect_fails_every_request_and_ends_the_loop() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send_together([generate(1, &[4]), generate(2, &[DIES])]);
    let events = parent.until("the end", |e| matches!(e, Event::Failed { id: None, .. }));
    let ended: Vec<_> = events
        .iter()
        .filter(|e| matches!(e, Event::Failed { .. } | Event::Finished { .. }))
        .map(|e| failure(std::slice::from_ref(e)))
        .map(|(id, fault, _)| (id, fault))
        .collect();
    assert_eq!(ended, [(Some(1), Fault::Ours), (Some(2), Fault::Ours), (None, Fault::Ours)]);
    let (rest, result) = parent.leave();
    assert_eq!(rest, []);
    assert!(matches!(result, Err(RunError::Reported(_))), "{result:?}");
}

#[test]
fn invalid_requests_are_the_callers_fault_and_name_the_field() {
    let mut parent = Parent::loaded(Script::default());
    let id = RequestId(1);
    let too_long = vec![4; 64];
    let cases = [
        (generate(1, &[]), "prompt"),
        (generate(1, &too_long), "64 tokens"),
        (generate(1, &[VOCAB_SIZE]), "prompt"),
        (Command::Logits(LogitsRequest { id, tokens: vec![], chunk_tokens: None }), "tokens"),
        (
            Command::Bench(BenchRequest { id, prompt_tokens: 60, new_tokens: 9, batch: 1 }),
            "prompt_tokens",
        ),
    ];
    for (command, names) in cases {
        parent.send(command);
        let (of, fault, message) = failure(&parent.until_end_of(1));
        assert_eq!((of, fault), (Some(1), Fault::Caller));
        assert!(message.contains(names), "{message}");
    }
}

#[test]
fn an_id_in_use_is_refused_without_touching_its_request() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send(generate(1, &[4]));
    parent.send(generate(1, &[4]));
    let events = parent.until("a refusal", |e| matches!(e, Event::Failed { .. }));
    let (id, fault, message) = failure(&events);
    assert_eq!((id, fault), (None, Fault::Ours));
    assert!(message.contains("still running"), "{message}");
    parent.send(cancel(1));
    assert_eq!(end(&parent.until_end_of(1)).0, FinishReason::Cancelled);
}

#[test]
fn logits_arrive_row_by_row_in_order() {
    let mut parent = Parent::loaded(Script::default());
    let tokens: Vec<u32> = (10..21).collect();
    let id = RequestId(3);
    parent.send(Command::Logits(LogitsRequest {
        id,
        tokens: tokens.clone(),
        chunk_tokens: Some(4),
    }));
    let events = parent.until_end_of(3);
    assert_eq!(end(&events).0, FinishReason::Stop);
    let mut next_row = 0;
    for event in &events {
        let Event::LogitsRows(rows) = event else { continue };
        assert_eq!((rows.first_row, rows.n_cols), (next_row, VOCAB_SIZE));
        for row in rows.values.chunks(VOCAB_SIZE as usize) {
            assert_eq!(row[0], tokens[next_row as usize] as f32);
            next_row += 1;
        }
    }
    assert_eq!(next_row, 11);
}

#[test]
fn long_jobs_stop_when_cancelled_and_keep_what_came_meanwhile() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    let id = RequestId(1);
    let jobs = [
        Command::Logits(LogitsRequest { id, tokens: vec![1, 2], chunk_tokens: Some(1) }),
        Command::Bench(BenchRequest { id, prompt_tokens: 8, new_tokens: 8, batch: 2 }),
    ];
    for job in jobs {
        parent.send(job);
        parent.send(generate(2, &[4]));
        parent.send(cancel(1));
        assert_eq!(end(&parent.until_end_of(1)).0, FinishReason::Cancelled);
        parent.until("the later request's token", |e| matches!(e, Event::Token { .. }));
        parent.send(cancel(2));
        parent.until_end_of(2);
    }
}

#[test]
fn a_bench_reports_its_result_and_finishes() {
    let mut parent = Parent::loaded(Script::default());
    let request = BenchRequest { id: RequestId(1), prompt_tokens: 8, new_tokens: 8, batch: 4 };
    parent.send(Command::Bench(request));
    let events = parent.until_end_of(1);
    assert!(matches!(&events[0], Event::BenchResult(r) if r.batch == 4));
    assert_eq!(end(&events).0, FinishReason::Stop);
}

#[test]
fn a_failed_load_is_reported_once_and_ends_the_loop() {
    let load_fails = LoadScript::Fails("no memory for the weights".into());
    let mut parent = Parent::greet(Script { load: load_fails, ..Script::default() });
    parent.send(load());
    let events = parent.until("the failure", |e| matches!(e, Event::Failed { .. }));
    let expected = (None, Fault::World, "no memory for the weights".to_owned());
    assert_eq!(failure(&events), expected);
    let (rest, result) = parent.leave();
    assert_eq!(rest, []);
    assert!(matches!(result, Err(RunError::Reported(_))));
}

#[test]
fn a_load_ends_when_the_parent_leaves_or_says_so() {
    for shutdown in [false, true] {
        let mut parent = Parent::greet(Script { load: LoadScript::Hangs, ..Script::default() });
        parent.send(load());
        parent.until("progress", |e| matches!(e, Event::LoadProgress { .. }));
        if shutdown {
            parent.send(Command::Shutdown);
        }
        let (_, result) = parent.leave();
        result.unwrap();
    }
}

#[test]
fn a_probe_is_answered_before_and_after_the_load() {
    let mut parent = Parent::greet(Script::default());
    parent.send(Command::Probe);
    parent.send(load());
    parent.send(Command::Probe);
    for _ in 0..2 {
        let events = parent.until("an answer", |e| matches!(e, Event::Probed(_)));
        assert!(matches!(events.last(), Some(Event::Probed(d)) if d.device == "scripted"));
    }
}

#[test]
fn what_comes_out_of_order_is_refused() {
    let mut parent = Parent::greet(Script::default());
    parent.send(generate(1, &[4]));
    assert_eq!(failure(&parent.until_end_of(1)).1, Fault::Ours);
    parent.send(load());
    parent.send(load());
    let events = parent.until("a refusal", |e| matches!(e, Event::Failed { .. }));
    assert!(failure(&events).2.contains("loaded already"));
}

#[test]
fn shutdown_ends_running_requests_as_cancelled() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send(generate(1, &[4]));
    parent.until("a token", |e| matches!(e, Event::Token { .. }));
    parent.send(Command::Shutdown);
    let events = parent.until_end_of(1);
    assert_eq!(end(&events).0, FinishReason::Cancelled);
    let (rest, result) = parent.leave();
    assert_eq!(rest, []);
    result.unwrap();
}

#[test]
fn the_loop_ends_when_the_parent_is_gone_mid_answer() {
    let mut parent = Parent::loaded(Script { endless: true, ..Script::default() });
    parent.send(generate(1, &[4]));
    parent.until("a token", |e| matches!(e, Event::Token { .. }));
    let Parent { to_runner, from_runner, runner } = parent;
    drop((to_runner, from_runner));
    runner.join().unwrap().unwrap();
}

#[test]
fn garbage_from_the_parent_is_reported_and_ends_the_loop() {
    for loaded in [false, true] {
        let mut parent = if loaded {
            Parent::loaded(Script::default())
        } else {
            Parent::greet(Script::default())
        };
        parent.to_runner.write_all(b"\x05\0\0\0hello, this is no frame").unwrap();
        let (events, result) = parent.leave();
        assert_eq!(failure(&events).1, Fault::Ours);
        assert!(matches!(result, Err(RunError::Command(_))), "{result:?}");
    }
}

#[test]
fn a_stranger_is_refused_at_the_greeting() {
    let (runner_reader, mut to_runner) = pipe().unwrap();
    to_runner.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let result =
        runner::run(runner_reader, Vec::new(), "runner", ScriptedLoader(Script::default()));
    assert!(matches!(result, Err(RunError::Hello(_))), "{result:?}");
}

fn quantize(id: u64, bits: u32) -> Command {
    Command::Quantize(QuantizeRequest {
        id: RequestId(id),
        source: "/here".into(),
        target: "/there".into(),
        coding: QuantizeTarget::Codes(Coding { bits, ..CodingMode::Affine.usual() }),
        high_bits: None,
        keep: vec![],
        at: vec![],
        dtype: None,
        overwrites: false,
    })
}

#[test]
fn a_quantization_tells_how_far_it_is_reports_and_finishes() {
    let mut parent = Parent::greet(Script::default());
    parent.send(quantize(3, 4));
    let events = parent.until_end_of(3);
    let shards = events.iter().filter_map(|event| match event {
        Event::QuantizeProgress(progress) => Some((progress.done_shards, progress.n_shards)),
        _ => None,
    });
    assert_eq!(shards.collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    let report = &events[events.len() - 2];
    assert!(matches!(report, Event::QuantizeReport(report) if report.id.0 == 3), "{report:?}");
    assert_eq!(end(&events), (FinishReason::Stop, Usage::default()));
    // The runner goes on: it can quantize again, or load.
    parent.send(quantize(4, 8));
    assert_eq!(end(&parent.until_end_of(4)).0, FinishReason::Stop);
    parent.send(load());
    parent.until("loaded", |event| matches!(event, Event::Loaded(_)));
    parent.send(quantize(5, 4));
    let (id, fault, message) = failure(&parent.until_end_of(5));
    assert_eq!((id, fault), (Some(5), Fault::Ours));
    assert!(message.contains("runner without one"), "{message}");
}

#[test]
fn a_quantization_is_cancelled_refused_or_fails_by_its_name() {
    let script = |quantize| Script { quantize, ..Script::default() };
    let mut parent = Parent::greet(script(QuantizeScript::Hangs));
    parent.send(quantize(1, 4));
    parent.until("progress", |event| matches!(event, Event::QuantizeProgress(_)));
    parent.send(cancel(1));
    assert_eq!(end(&parent.until_end_of(1)).0, FinishReason::Cancelled);
    parent.send(quantize(2, 7));
    let (id, fault, message) = failure(&parent.until_end_of(2));
    assert_eq!((id, fault), (Some(2), Fault::Caller));
    assert!(message.contains("bits must be one of"), "{message}");

    let mut parent = Parent::greet(script(QuantizeScript::Fails("no space".into())));
    parent.send(quantize(1, 4));
    let failed = failure(&parent.until_end_of(1));
    assert_eq!(failed, (Some(1), Fault::World, "no space".to_owned()));
    parent.send(Command::Probe);
    parent.until("probed", |event| matches!(event, Event::Probed(_)));
}
