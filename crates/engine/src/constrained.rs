//! Answers with a grammar: where grammars come from, and what one answer may go on with.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use grammar::{Constraint, Grammars, MAX_TOKENIZER_BYTES, Vocabulary};
use protocol::{GenerateRequest, Grammar, InvalidField, ModelSource};

use crate::{Error, Result};

/// For compiled grammars that no answer uses.
const KEPT_BYTES: usize = 64 << 20;
/// For compiling: rules may nest and follow one another.
const STACK_BYTES: usize = 256 << 20;

/// The grammars of one model. Its vocabulary is read when the first one comes.
pub(crate) struct Shelf {
    tokenizer: Option<PathBuf>,
    n_rows: usize,
    grammars: Option<Grammars>,
}

/// An answer's constraint, and what it may draw next.
#[derive(Debug)]
pub(crate) struct Constrained {
    constraint: Constraint,
    /// For each row of logits.
    allowed: Vec<bool>,
    fault: Option<Error>,
    field: &'static str,
    n_accepted: usize,
}

impl Shelf {
    pub fn of(source: &ModelSource, vocab_size: i32) -> Self {
        let tokenizer = match source {
            ModelSource::Folder { path } => Some(Path::new(path).join("tokenizer.json")),
            ModelSource::Shape { .. } => None,
        };
        Self { tokenizer, n_rows: vocab_size.max(0) as usize, grammars: None }
    }

    /// What a request's answer must obey, if it has a grammar.
    ///
    /// # Errors
    /// The caller's: the grammar is of no use, or the model has no tokenizer that says what its
    /// tokens spell.
    pub fn begin(&mut self, request: &GenerateRequest) -> Result<Option<Constrained>> {
        let Some(grammar) = &request.grammar else { return Ok(None) };
        if self.grammars.is_none() {
            self.grammars = Some(self.read()?);
        }
        let grammars = self.grammars.as_mut().expect("it was made above");
        let constraint = begin(grammars, grammar, &request.stop_tokens)?;
        let constraint = constraint.map_err(|invalid| Error::caller(invalid.to_string()))?;
        let (field, _) = grammar.rule.text();
        let allowed = vec![true; self.n_rows];
        Ok(Some(Constrained { constraint, allowed, fault: None, field, n_accepted: 0 }))
    }

    fn read(&self) -> Result<Grammars> {
        let useless = |reason: String| {
            Error::caller(format!("grammar cannot be used with this model: {reason}"))
        };
        let path = self.tokenizer.as_ref().filter(|path| path.is_file());
        let path = path.ok_or_else(|| useless("it has no tokenizer.json".to_owned()))?;
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_TOKENIZER_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|e| Error::world(format!("tokenizer.json cannot be read: {e}")))?;
        let vocabulary = Vocabulary::parse(&bytes, self.n_rows).map_err(useless)?;
        Grammars::new(vocabulary, KEPT_BYTES).map_err(useless)
    }
}

/// Compiles on a stack of its own, which is as large as the limits of grammars ask for.
fn begin(
    grammars: &mut Grammars,
    grammar: &Grammar,
    stop_tokens: &[u32],
) -> Result<std::result::Result<Constraint, InvalidField>> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, || grammars.begin(grammar, stop_tokens));
        let thread = thread.map_err(|e| Error::world(format!("a thread cannot start: {e}")))?;
        thread.join().map_err(|_| Error::ours("compiling a grammar panicked"))
    })
}

impl Constrained {
    /// Works out what may be drawn next. After a fault anything may: nobody is going to see it.
    pub fn prepare(&mut self) {
        match self.constraint.mask() {
            Ok(mask) if self.fault.is_none() => mask.fill(&mut self.allowed),
            Ok(_) => {}
            Err(reason) => self.fail(&reason),
        }
    }

    /// Whether what may be drawn next has to be worked out, with all before it known.
    pub fn needs_mask(&self) -> bool {
        self.constraint.needs_mask()
    }

    /// For each row of logits whether it may be drawn; none where anything may.
    pub fn allowed(&self) -> Option<&[bool]> {
        self.needs_mask().then_some(&self.allowed)
    }

    /// Goes on with a token that was drawn.
    pub fn accept(&mut self, token: u32) {
        if self.fault.is_none()
            && let Err(reason) = self.constraint.accept(token)
        {
            self.fail(&reason);
        }
        self.n_accepted += 1;
    }

    fn fail(&mut self, reason: &str) {
        self.allowed.fill(true);
        let (field, n) = (self.field, self.n_accepted);
        self.fault.get_or_insert_with(|| {
            Error::caller(format!("{field} cannot be followed after {n} tokens: {reason}"))
        });
    }

    /// Why the answer cannot go on.
    pub fn fault(&self) -> Option<&Error> {
        self.fault.as_ref()
    }

    /// Whether nothing can follow.
    pub fn is_over(&self) -> bool {
        self.constraint.is_over()
    }
}
