//! Compiled grammars, kept within a budget: the least recently used goes first. Compiling needs
//! nothing of what is kept, so that it may happen elsewhere.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use protocol::{Grammar, InvalidField, Rule, Tag};

use crate::compile::{Compiled, compile, limits};
use crate::constraint::{Constraint, Preamble};
use crate::marker::Marker;
use crate::vocabulary::Vocabulary;

/// Tags whose markers are kept; a model has one or two.
const MAX_MARKERS: usize = 8;

/// Compiles rules for one vocabulary, on any thread.
pub struct Compiler {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
}

/// Makes constraints for one model.
pub struct Grammars {
    compiler: Arc<Compiler>,
    kept: Vec<Kept>,
    budget_bytes: usize,
    n_begun: u64,
    markers: Vec<(Tag, Arc<Marker>)>,
}

struct Kept {
    rule: Rule,
    compiled: Compiled,
    /// When it was used last, counted in constraints.
    used: u64,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("n_kept", &self.kept.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

impl Compiler {
    /// For a vocabulary.
    ///
    /// # Errors
    /// The vocabulary is of no use.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        let slices = SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(vocabulary.env(), capabilities, &slices);
        let mut factory = factory.map_err(|e| format!("the vocabulary is of no use: {e}"))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { vocabulary: Arc::new(vocabulary), factory })
    }

    /// Compiles a rule, which may take a third of a second and much of a stack.
    ///
    /// # Errors
    /// The rule cannot be used.
    pub fn compile(&self, rule: &Rule) -> Result<Compiled, InvalidField> {
        compile(&self.factory, rule)
    }
}

impl Grammars {
    /// Compiled grammars may take so many bytes.
    pub fn new(compiler: Arc<Compiler>, budget_bytes: usize) -> Self {
        Self { compiler, kept: Vec::new(), budget_bytes, n_begun: 0, markers: Vec::new() }
    }

    /// A constraint for one answer, which may be ended by each of `stop_tokens`; none if the rule
    /// is not kept.
    pub fn begin_kept(&mut self, grammar: &Grammar, stop_tokens: &[u32]) -> Option<Constraint> {
        self.n_begun += 1;
        let matcher = match &grammar.rule {
            Rule::Anything => None,
            rule => {
                let kept = self.kept.iter_mut().find(|kept| kept.rule == *rule)?;
                kept.used = self.n_begun;
                Some(kept.compiled.matcher.deep_clone())
            }
        };
        let preamble = grammar.reasoning.as_ref().map(|reasoning| Preamble {
            opens: reasoning.opens.as_ref().map(|tag| self.marker(tag)),
            closes: self.marker(&reasoning.closes),
            max_tokens: reasoning.max_tokens,
        });
        let vocabulary = Arc::clone(&self.compiler.vocabulary);
        Some(Constraint::new(matcher, vocabulary, stop_tokens.to_vec(), preamble))
    }

    /// The same; compiles the rule if it is not kept.
    ///
    /// # Errors
    /// The rule cannot be used.
    pub fn begin(
        &mut self,
        grammar: &Grammar,
        stop_tokens: &[u32],
    ) -> Result<Constraint, InvalidField> {
        if let Some(constraint) = self.begin_kept(grammar, stop_tokens) {
            return Ok(constraint);
        }
        let compiled = self.compiler.compile(&grammar.rule)?;
        self.keep(grammar.rule.clone(), compiled);
        Ok(self.begin_kept(grammar, stop_tokens).expect("what was kept last is kept"))
    }

    /// Keeps what a rule was compiled to, and of the others what there is room for.
    pub fn keep(&mut self, rule: Rule, compiled: Compiled) {
        self.kept.retain(|kept| kept.rule != rule);
        let room = self.budget_bytes.saturating_sub(compiled.bytes);
        self.kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
        let mut bytes = 0;
        self.kept.retain(|kept| {
            bytes += kept.compiled.bytes;
            bytes <= room
        });
        self.kept.push(Kept { rule, compiled, used: self.n_begun });
    }

    fn marker(&mut self, tag: &Tag) -> Arc<Marker> {
        if let Some((_, marker)) = self.markers.iter().find(|(kept, _)| kept == tag) {
            return Arc::clone(marker);
        }
        if self.markers.len() == MAX_MARKERS {
            self.markers.clear();
        }
        let marker = Arc::new(Marker::new(tag));
        self.markers.push((tag.clone(), Arc::clone(&marker)));
        marker
    }

    /// What compiled grammars take, about. One alone may be larger than the budget, as far as the
    /// limits of a grammar let it.
    pub fn kept_bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.compiled.bytes).sum()
    }

    /// How many are kept.
    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }
}
