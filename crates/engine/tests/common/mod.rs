//! A small engine and plain requests for it.

use std::ops::ControlFlow;
use std::path::Path;

use engine::Engine;
use protocol::{Event, GenerateRequest, LoadRequest, ModelSource, RequestId, Sampling};

pub fn engine() -> Engine {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/quantized/qwen3_affine8_32_tied");
    let path = folder.to_str().unwrap().to_owned();
    let request = LoadRequest { source: ModelSource::Folder { path } };
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
    }
}

pub fn run(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while engine.step(&mut |event| events.push(event)).map_err(|e| e.message).unwrap() {}
    events
}
