//! The grammars of one model: what was compiled is kept here, and what was not is compiled on
//! another thread, one rule after the other, while those who asked for it wait and others go on.
//!
//! - A rule that many ask for at the same time is compiled once.
//! - Keys take turns; of one key, what was asked for first comes first.
//! - What nobody waits for any more is not begun. What has begun comes to its end, which the limits
//!   of grammars see to, and is kept.
//! - The thread is there while there is something to compile, and its stack with it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grammar::{Compiled, Compiler, Grammars, MAX_TOKENIZER_BYTES, Vocabulary};
use protocol::{GenerateRequest, ModelSource, RequestId, Rule};

use crate::constrained::Constrained;
use crate::{Error, Result};

/// For compiled grammars that no answer uses.
const KEPT_BYTES: usize = 64 << 20;
/// For compiling: rules may nest and follow one another.
const STACK_BYTES: usize = 256 << 20;
/// How long an engine with nothing to compute waits for a rule before it looks for other work.
const PATIENCE: Duration = Duration::from_millis(5);

/// Compiles rules of one vocabulary.
pub(crate) trait Compile: Send + Sync {
    /// The vocabulary's compiler, and what it made of a rule.
    ///
    /// # Errors
    /// The caller's: the rule is of no use, or the model has no tokenizer that says what its tokens
    /// spell.
    fn compile(&self, rule: &Rule) -> Result<(Arc<Compiler>, Compiled)>;
}

/// By the vocabulary of a tokenizer.json, which is read when the first rule comes.
pub(crate) struct ByTokenizer {
    path: Option<PathBuf>,
    n_rows: usize,
    compiler: Mutex<Option<Arc<Compiler>>>,
}

pub(crate) struct Shelf {
    n_rows: usize,
    /// There since the first rule was compiled.
    grammars: Option<Grammars>,
    desk: Arc<Desk>,
    asked: Vec<Asked>,
    sender: Sender<Ended>,
    ended: Receiver<Ended>,
}

/// A rule that is to be compiled or is being compiled.
struct Asked {
    rule: Rule,
    /// Nobody, if all have left since it began.
    waiting: Vec<RequestId>,
}

/// What a request's answer must obey.
pub(crate) enum Begun {
    /// This, if anything.
    Known(Option<Box<Constrained>>),
    /// A rule that is not compiled.
    Unknown,
}

struct Ended {
    rule: Rule,
    made: Result<(Arc<Compiler>, Compiled)>,
}

/// What the two threads share.
struct Desk {
    compile: Box<dyn Compile>,
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    /// Rules that nobody has begun with, and who asked for each first.
    queue: VecDeque<(u64, Rule)>,
    /// Whose turn it was last.
    last_key: u64,
    /// Whether a thread sees to them.
    has_worker: bool,
}

impl ByTokenizer {
    pub fn of(source: &ModelSource, vocab_size: i32) -> Self {
        let path = match source {
            ModelSource::Folder { path } => Some(Path::new(path).join("tokenizer.json")),
            ModelSource::Shape { .. } => None,
        };
        Self { path, n_rows: vocab_size.max(0) as usize, compiler: Mutex::default() }
    }

    fn read(&self) -> Result<Compiler> {
        let useless = |reason: String| {
            Error::caller(format!("grammar cannot be used with this model: {reason}"))
        };
        let path = self.path.as_ref().filter(|path| path.is_file());
        let path = path.ok_or_else(|| useless("it has no tokenizer.json".to_owned()))?;
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_TOKENIZER_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|e| Error::world(format!("tokenizer.json cannot be read: {e}")))?;
        let vocabulary = Vocabulary::parse(&bytes, self.n_rows).map_err(useless)?;
        Compiler::new(vocabulary).map_err(useless)
    }
}

impl Compile for ByTokenizer {
    fn compile(&self, rule: &Rule) -> Result<(Arc<Compiler>, Compiled)> {
        let mut kept = self.compiler.lock().unwrap_or_else(PoisonError::into_inner);
        let compiler = match kept.as_ref() {
            Some(compiler) => Arc::clone(compiler),
            None => Arc::clone(kept.insert(Arc::new(self.read()?))),
        };
        drop(kept);
        let compiled = compiler.compile(rule);
        let compiled = compiled.map_err(|invalid| Error::caller(invalid.to_string()))?;
        Ok((compiler, compiled))
    }
}

impl Shelf {
    /// For a model with logits of `n_rows`.
    pub fn new(compile: Box<dyn Compile>, n_rows: usize) -> Self {
        let (sender, ended) = channel();
        let desk = Arc::new(Desk { compile, jobs: Mutex::default() });
        Self { n_rows, grammars: None, desk, asked: Vec::new(), sender, ended }
    }

    /// What a request's answer must obey, as far as that is kept.
    pub fn begin(&mut self, request: &GenerateRequest) -> Begun {
        let Some(grammar) = &request.grammar else { return Begun::Known(None) };
        let stop_tokens = &request.stop_tokens;
        let grammars = self.grammars.as_mut();
        match grammars.and_then(|grammars| grammars.begin_kept(grammar, stop_tokens)) {
            None => Begun::Unknown,
            Some(constraint) => {
                let (field, _) = grammar.rule.text();
                Begun::Known(Some(Constrained::new(constraint, self.n_rows, field).into()))
            }
        }
    }

    /// Has the rule of a request compiled, which is unknown.
    ///
    /// # Errors
    /// No thread can start.
    pub fn ask(&mut self, request: &GenerateRequest) -> Result<()> {
        let Some(grammar) = &request.grammar else { return Ok(()) };
        let (id, rule) = (request.id, &grammar.rule);
        if let Some(asked) = self.asked.iter_mut().find(|asked| asked.rule == *rule) {
            asked.waiting.push(id);
            return Ok(());
        }
        let mut jobs = self.desk.jobs();
        if !jobs.has_worker {
            let (desk, sender) = (Arc::clone(&self.desk), self.sender.clone());
            let thread = std::thread::Builder::new().name("grammars".to_owned());
            let thread = thread.stack_size(STACK_BYTES).spawn(move || desk.work(&sender));
            thread.map_err(|e| Error::world(format!("a thread cannot start: {e}")))?;
            jobs.has_worker = true;
        }
        jobs.queue.push_back((request.namespace, rule.clone()));
        self.asked.push(Asked { rule: rule.clone(), waiting: vec![id] });
        Ok(())
    }

    /// The requests that a rule was compiled for next, and why it is of no use, if it is not. Waits
    /// a little for it where `is_patient`.
    pub fn next_compiled(&mut self, is_patient: bool) -> Option<(Vec<RequestId>, Option<Error>)> {
        let Ended { rule, made } = match is_patient && self.n_waiting() > 0 {
            true => self.ended.recv_timeout(PATIENCE).ok()?,
            false => self.ended.try_recv().ok()?,
        };
        let idx = self.asked.iter().position(|asked| asked.rule == rule)?;
        let Asked { rule, waiting } = self.asked.swap_remove(idx);
        let error = match made {
            Err(error) => Some(error),
            Ok((compiler, compiled)) => {
                let new = || Grammars::new(compiler, KEPT_BYTES);
                self.grammars.get_or_insert_with(new).keep(rule, compiled);
                None
            }
        };
        Some((waiting, error))
    }

    /// A request waits no more.
    pub fn forget(&mut self, id: RequestId) {
        let mut jobs = self.desk.jobs();
        self.asked.retain_mut(|Asked { rule, waiting }| {
            let n = waiting.len();
            waiting.retain(|waiting| *waiting != id);
            // With what has begun nothing is to be done but to wait for it.
            waiting.len() == n || !waiting.is_empty() || !jobs.withdraw(rule)
        });
    }

    /// Requests that wait for a rule.
    pub fn n_waiting(&self) -> usize {
        self.asked.iter().map(|asked| asked.waiting.len()).sum()
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.desk.jobs().queue.clear();
    }
}

impl Desk {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles until there is nothing to compile, or nobody to compile for.
    fn work(&self, ended: &Sender<Ended>) {
        loop {
            let Some(rule) = self.jobs().next() else { return };
            let made = catch_unwind(AssertUnwindSafe(|| self.compile.compile(&rule)));
            let panicked = |_| Err(Error::ours("compiling a grammar panicked"));
            let made = made.unwrap_or_else(panicked);
            if ended.send(Ended { rule, made }).is_err() {
                return;
            }
        }
    }
}

impl Jobs {
    /// The next rule of the next key; without one the worker is to go.
    fn next(&mut self) -> Option<Rule> {
        let turn = |(idx, (key, _)): (usize, &(u64, Rule))| (*key <= self.last_key, *key, idx);
        let Some((_, key, idx)) = self.queue.iter().enumerate().map(turn).min() else {
            self.has_worker = false;
            return None;
        };
        self.last_key = key;
        self.queue.remove(idx).map(|(_, rule)| rule)
    }

    /// False if it is not there, because it was begun with.
    fn withdraw(&mut self, rule: &Rule) -> bool {
        let idx = self.queue.iter().position(|(_, queued)| queued == rule);
        idx.is_some_and(|idx| self.queue.remove(idx).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_take_turns_and_what_is_withdrawn_is_not_begun() {
        let rule = |name: &str| Rule::Regex(name.to_owned());
        let asked = [(7, "a"), (7, "b"), (7, "c"), (3, "d"), (9, "e"), (3, "f"), (9, "g")];
        let queue = asked.map(|(key, name)| (key, rule(name))).into();
        let mut jobs = Jobs { queue, last_key: 7, has_worker: true };
        assert!(jobs.withdraw(&rule("f")) && !jobs.withdraw(&rule("f")));
        let order = std::iter::from_fn(|| jobs.next()).collect::<Vec<_>>();
        assert_eq!(order, ["e", "d", "a", "g", "b", "c"].map(rule));
        assert!(!jobs.has_worker);
    }
}
