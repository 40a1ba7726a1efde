//! The HTTP server over real sockets: the scripted runner behind it, and once the real one.
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod anthropic;
mod anthropic_fields;
mod attacks;
mod client;
mod conformance;
mod document;
mod fates;
mod ollama;
mod ollama_fields;
mod openai;
mod ours;
mod real;
mod responses;
mod responses_fields;
mod served;
mod supervision;
