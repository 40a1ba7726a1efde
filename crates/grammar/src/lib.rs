//! Structured output: which tokens an answer may go on with so that it matches a grammar.
//!
//! [`Vocabulary`] is what a model's tokens spell. A [`Compiler`] compiles rules for it, on any
//! thread; [`Grammars`] keeps what was compiled and makes constraints of it. A [`Constraint`]
//! follows one answer: [`Constraint::mask`] before a token is drawn, [`Constraint::accept`] after
//! it. Compiling and masks are llguidance's.
//!
//! Invariants:
//! - A mask depends on the grammar and on the answer's own tokens, on nothing that others do: each
//!   constraint has automata of its own, copied from what was compiled and never used itself.
//! - Stop tokens are allowed exactly where the grammar may end, special tokens where a Lark grammar
//!   names them, and rows of logits without a token never.
//! - No grammar panics, loops, nests or grows beyond the limits in `compile.rs`; none is fetched:
//!   a `$ref` points into its own schema. What cannot be used is an error that names the field.
//! - What is kept of compiled grammars stays within a budget in bytes.
//! - Pure: no file, clock, thread or environment.

mod compile;
mod constraint;
mod grammars;
mod marker;
mod vocabulary;

pub use compile::Compiled;
pub use constraint::{Constraint, Mask};
pub use grammars::{Compiler, Grammars};
pub use vocabulary::{MAX_TOKENIZER_BYTES, Vocabulary};
