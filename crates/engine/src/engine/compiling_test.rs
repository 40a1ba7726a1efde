//! Requests whose grammars are compiled while others run. What compiles stands at a gate, so that
//! order decides and not time.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use grammar::{Compiled, Compiler};
use protocol::{CacheSettings, FinishReason, Grammar, Rule, Sampling};

use super::*;
use crate::shelf::Compile;

/// Says what it is about to compile, and does so when it is told to.
struct Gate {
    inner: ByTokenizer,
    begun: Sender<Rule>,
    opens: Mutex<Receiver<()>>,
}

impl Compile for Gate {
    fn compile(&self, rule: &Rule) -> Result<(Arc<Compiler>, Compiled)> {
        self.begun.send(rule.clone()).unwrap();
        self.opens.lock().unwrap().recv().unwrap();
        self.inner.compile(rule)
    }
}

/// The demo model behind a gate.
struct Gated {
    engine: Engine,
    begun: Receiver<Rule>,
    open: Sender<()>,
    events: Vec<Event>,
}

impl Gated {
    fn new() -> Self {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let request = LoadRequest {
            source: ModelSource::Folder { path: folder.to_str().unwrap().to_owned() },
            cache: CacheSettings::default(),
            chunk_tokens: None,
            deterministic: true,
            max_rows: None,
        };
        let loaded = Engine::load(&request, None, &mut |_, _| ControlFlow::Continue(()));
        let mut engine = loaded.map_err(|e| e.message).unwrap();
        let n_rows = engine.loaded.info.vocab_size;
        let ((begins, begun), (open, opens)) = (channel(), channel());
        let inner = ByTokenizer::of(&request.source, n_rows);
        let gate = Gate { inner, begun: begins, opens: Mutex::new(opens) };
        engine.grammars = Shelf::new(Box::new(gate), n_rows as usize);
        Self { engine, begun, open, events: Vec::new() }
    }

    fn submit(&mut self, id: u64, regex: Option<&str>, max_tokens: u32) {
        let rule = regex.map(|regex| Rule::Regex(regex.to_owned()));
        let submitted = self.engine.submit(GenerateRequest {
            id: RequestId(id),
            prompt: vec![1, 2, 3],
            max_tokens,
            sampling: Sampling::greedy(),
            stop_tokens: vec![],
            top_logprobs: None,
            namespace: 0,
            boundaries: vec![],
            grammar: rule.map(|rule| Grammar { rule, reasoning: None }),
        });
        submitted.map_err(|e| e.message).unwrap();
    }

    fn step(&mut self) -> bool {
        let stepped = self.engine.step(&mut |event| self.events.push(event));
        stepped.map_err(|e| e.message).unwrap()
    }

    /// Until a request has ended.
    fn run(&mut self, id: u64) {
        while self.ended(id).is_none() {
            let is_busy = self.step();
            assert!(is_busy || self.ended(id).is_some(), "{id} has not ended");
        }
    }

    /// How many tokens a request has, and how it has ended.
    fn ended(&self, wanted: u64) -> Option<(usize, std::result::Result<FinishReason, &str>)> {
        let is_token = |event: &&Event| matches!(event, Event::Token { id, .. } if id.0 == wanted);
        let n_tokens = self.events.iter().filter(is_token).count();
        self.events.iter().find_map(|event| match event {
            Event::Finished { id, reason, .. } if id.0 == wanted => Some((n_tokens, Ok(*reason))),
            Event::Failed { id: Some(id), message, .. } if id.0 == wanted => {
                Some((n_tokens, Err(message.as_str())))
            }
            _ => None,
        })
    }

    fn next_begun(&self) -> Rule {
        self.begun.recv().unwrap()
    }
}

fn rule(regex: &str) -> Rule {
    Rule::Regex(regex.to_owned())
}

const FOUR: &str = "[ab]{4}";

#[test]
fn others_draw_all_their_tokens_while_a_grammar_is_compiled() {
    let mut gated = Gated::new();
    gated.submit(1, Some(FOUR), 9);
    gated.submit(2, None, 20);
    assert_eq!(gated.next_begun(), rule(FOUR));
    // One that comes while it is compiled does not wait either.
    gated.submit(3, None, 5);
    gated.run(2);
    gated.run(3);
    let ends = [2, 3].map(|id| gated.ended(id).unwrap());
    assert_eq!(ends, [(20, Ok(FinishReason::Length)), (5, Ok(FinishReason::Length))]);
    assert!(!gated.events.iter().any(|event| format!("{event:?}").contains("RequestId(1)")));
    assert!(gated.step(), "it waits still");
    gated.open.send(()).unwrap();
    gated.run(1);
    assert!(matches!(gated.ended(1), Some((4..=9, Ok(FinishReason::Stop)))), "{:?}", gated.events);
}

#[test]
fn a_rule_that_many_ask_for_is_compiled_once() {
    let mut gated = Gated::new();
    (1..=3).for_each(|id| gated.submit(id, Some(FOUR), 9));
    assert_eq!(gated.next_begun(), rule(FOUR));
    gated.submit(4, Some(FOUR), 9);
    gated.open.send(()).unwrap();
    (1..=4).for_each(|id| gated.run(id));
    gated.submit(5, Some(FOUR), 9);
    gated.run(5);
    assert!((1..=5).all(|id| gated.ended(id) == gated.ended(1)));
    assert!(gated.begun.try_recv().is_err(), "compiled twice");
}

#[test]
fn a_request_that_is_cancelled_while_it_waits_is_gone_at_once() {
    let mut gated = Gated::new();
    gated.submit(1, Some(FOUR), 9);
    assert_eq!(gated.next_begun(), rule(FOUR));
    gated.submit(2, Some("never"), 9);
    gated.submit(3, Some("later"), 9);
    for id in [1, 2] {
        assert_eq!(gated.engine.cancel(RequestId(id)).0.new_tokens, 0);
    }
    gated.engine.cancel(RequestId(3));
    assert!(!gated.step(), "nothing is left");
    assert_eq!(gated.engine.grammars.n_waiting(), 0);
    // What had begun comes to its end and is of use; what had not is not begun with.
    gated.submit(4, Some(FOUR), 9);
    gated.submit(5, Some("later"), 9);
    gated.open.send(()).unwrap();
    gated.run(4);
    assert_eq!(gated.next_begun(), rule("later"));
    gated.open.send(()).unwrap();
    gated.run(5);
    assert!(gated.begun.try_recv().is_err());
    assert!((1..=3).all(|id| gated.ended(id).is_none()), "{:?}", gated.events);
}

#[test]
fn a_grammar_of_no_use_fails_those_who_asked_for_it_and_nobody_else() {
    let mut gated = Gated::new();
    gated.submit(1, Some("("), 9);
    gated.submit(2, Some("("), 9);
    gated.submit(3, Some(FOUR), 9);
    gated.submit(4, None, 9);
    (0..2).for_each(|_| gated.open.send(()).unwrap());
    (1..=4).for_each(|id| gated.run(id));
    for id in [1, 2] {
        let (n_tokens, end) = gated.ended(id).unwrap();
        assert!(n_tokens == 0 && end.unwrap_err().starts_with("regex "), "{end:?}");
    }
    assert!(matches!(gated.ended(3), Some((4..=9, Ok(FinishReason::Stop)))));
    assert_eq!(gated.ended(4), Some((9, Ok(FinishReason::Length))));
    assert!(!gated.step());
}

#[test]
fn a_compiler_that_panics_fails_one_request_and_goes_on() {
    struct Panics(ByTokenizer);
    impl Compile for Panics {
        fn compile(&self, rule: &Rule) -> Result<(Arc<Compiler>, Compiled)> {
            assert!(*rule != self::rule("boo"), "a rule it was not made for");
            self.0.compile(rule)
        }
    }
    let mut gated = Gated::new();
    let n_rows = gated.engine.loaded.info.vocab_size;
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let source = ModelSource::Folder { path: folder.to_str().unwrap().to_owned() };
    let panics = Panics(ByTokenizer::of(&source, n_rows));
    gated.engine.grammars = Shelf::new(Box::new(panics), n_rows as usize);
    gated.submit(1, Some("boo"), 9);
    gated.submit(2, Some(FOUR), 9);
    gated.run(1);
    gated.run(2);
    assert!(gated.ended(1).unwrap().1.unwrap_err().contains("panicked"));
    assert!(gated.ended(2).unwrap().1.is_ok());
}
