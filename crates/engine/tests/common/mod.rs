//! Small engines and plain requests for them.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod twice;

use std::ops::ControlFlow;
use std::path::Path;

use engine::Engine;
use protocol::{
    CacheSettings, Event, GenerateRequest, LoadRequest, ModelSource, RequestId, Sampling,
};

pub fn engine() -> Engine {
    engine_of("qwen3_affine8_32_tied", CacheSettings::default())
}

/// An engine with one of the small models in `goldens/quantized/`.
pub fn engine_of(name: &str, cache: CacheSettings) -> Engine {
    engine_in_chunks(name, cache, None, false)
}

/// The same with prompts in chunks of so many tokens.
pub fn engine_in_chunks(
    name: &str,
    cache: CacheSettings,
    chunk_tokens: Option<u32>,
    deterministic: bool,
) -> Engine {
    load(LoadRequest { cache, chunk_tokens, deterministic, ..of(name) })
}

/// An engine for few requests at a time.
pub fn engine_of_rows(max_rows: u32) -> Engine {
    load(LoadRequest { max_rows: Some(max_rows), ..of("qwen3_affine8_32_tied") })
}

/// An engine with random weights in a known shape, with fewer layers if that is said.
pub fn engine_of_shape(
    name: &str,
    quantization: &str,
    n_layers: Option<u32>,
    cache: CacheSettings,
) -> Engine {
    let (name, quantization) = (name.to_owned(), quantization.to_owned());
    load(LoadRequest { cache, ..plain(ModelSource::Shape { name, quantization, n_layers }) })
}

/// A prompt of `n` tokens that nobody else's begins like.
pub fn prompt(engine: &Engine, who: usize, n: usize) -> Vec<u32> {
    let vocab = engine.info().vocab_size as usize;
    (0..n).map(|i| ((who * 7_919 + i * 104_729 + i * i * 31) % vocab) as u32).collect()
}

fn of(name: &str) -> LoadRequest {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/quantized");
    plain(ModelSource::Folder { path: goldens.join(name).to_str().unwrap().to_owned() })
}

fn plain(source: ModelSource) -> LoadRequest {
    LoadRequest {
        source,
        cache: CacheSettings::default(),
        chunk_tokens: None,
        deterministic: false,
        max_rows: None,
    }
}

fn load(request: LoadRequest) -> Engine {
    Engine::load(&request, None, &mut |_, _| ControlFlow::Continue(()))
        .map_err(|e| e.message)
        .unwrap()
}

pub fn request(id: u64, prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        id: RequestId(id),
        prompt: prompt.to_vec(),
        max_tokens,
        stop_tokens: vec![],
        sampling: Sampling::greedy(),
        top_logprobs: None,
        namespace: 0,
        boundaries: vec![],
        grammar: None,
    }
}

pub fn run(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while engine.step(&mut |event| events.push(event)).map_err(|e| e.message).unwrap() {}
    events
}

/// Memory of this process, where Linux says it.
pub fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
