//! Answers with a grammar: what one answer may go on with.

use grammar::Constraint;

use crate::Error;

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

impl Constrained {
    /// By a rule of this field, for logits of `n_rows`.
    pub fn new(constraint: Constraint, n_rows: usize, field: &'static str) -> Self {
        Self { constraint, allowed: vec![true; n_rows], fault: None, field, n_accepted: 0 }
    }

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
