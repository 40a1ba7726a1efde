//! Integration tests of the text crate; goldens come from goldens/templates.py.

// Helpers of tests count as tests.
#![allow(clippy::unwrap_used)]

mod answers;
mod hostile;
mod injection;
mod streaming;
mod templates;
mod tokenizers;

use text::Tokenizer;

/// The three small tokenizers of the goldens, by name.
fn small_tokenizers() -> [(&'static str, Tokenizer); 3] {
    [
        ("byte_level", include_bytes!("../goldens/byte_level.json").as_slice()),
        ("byte_fallback", include_bytes!("../goldens/byte_fallback.json").as_slice()),
        ("metaspace", include_bytes!("../goldens/metaspace.json").as_slice()),
    ]
    .map(|(name, bytes)| (name, Tokenizer::new(bytes, None, None).unwrap()))
}

/// Proptest with a fixed seed: the same cases in each run.
fn runner(n_cases: u32) -> proptest::test_runner::TestRunner {
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { cases: n_cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, rng)
}
