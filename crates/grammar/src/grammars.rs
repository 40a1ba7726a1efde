//! Compiled grammars, kept within a budget: the least recently used goes first.

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

/// Makes constraints for one model.
pub struct Grammars {
    vocabulary: Arc<Vocabulary>,
    factory: ParserFactory,
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

impl Grammars {
    /// For a vocabulary; compiled grammars may take so many bytes.
    ///
    /// # Errors
    /// The vocabulary is of no use.
    pub fn new(vocabulary: Vocabulary, budget_bytes: usize) -> Result<Self, String> {
        let slices = SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(vocabulary.env(), capabilities, &slices);
        let mut factory = factory.map_err(|e| format!("the vocabulary is of no use: {e}"))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self {
            vocabulary: Arc::new(vocabulary),
            factory,
            kept: Vec::new(),
            budget_bytes,
            n_begun: 0,
            markers: Vec::new(),
        })
    }

    /// A constraint for one answer, which may be ended by each of `stop_tokens`.
    ///
    /// # Errors
    /// The grammar cannot be used.
    pub fn begin(
        &mut self,
        grammar: &Grammar,
        stop_tokens: &[u32],
    ) -> Result<Constraint, InvalidField> {
        let matcher = match &grammar.rule {
            Rule::Anything => None,
            rule => Some(self.compiled(rule)?.matcher.deep_clone()),
        };
        let preamble = grammar.reasoning.as_ref().map(|reasoning| Preamble {
            opens: reasoning.opens.as_ref().map(|tag| self.marker(tag)),
            closes: self.marker(&reasoning.closes),
            max_tokens: reasoning.max_tokens,
        });
        let stop_tokens = stop_tokens.to_vec();
        Ok(Constraint::new(matcher, Arc::clone(&self.vocabulary), stop_tokens, preamble))
    }

    fn compiled(&mut self, rule: &Rule) -> Result<&Compiled, InvalidField> {
        self.n_begun += 1;
        match self.kept.iter().position(|kept| kept.rule == *rule) {
            Some(idx) => {
                self.kept[idx].used = self.n_begun;
                Ok(&self.kept[idx].compiled)
            }
            None => {
                let compiled = compile(&self.factory, rule)?;
                Ok(self.keep(rule.clone(), compiled))
            }
        }
    }

    /// Keeps it, and of the others what there is room for.
    fn keep(&mut self, rule: Rule, compiled: Compiled) -> &Compiled {
        let room = self.budget_bytes.saturating_sub(compiled.bytes);
        self.kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
        let mut bytes = 0;
        self.kept.retain(|kept| {
            bytes += kept.compiled.bytes;
            bytes <= room
        });
        self.kept.push(Kept { rule, compiled, used: self.n_begun });
        &self.kept.last().expect("one was pushed").compiled
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
