//! `offshoot bench`: random tokens through prefill and decode, with the memory bound of the same
//! run.

use std::time::Instant;

use kernels::sampling;
use mlx::{Array, Backend, Device, Dtype, Key};
use models::{LayerState, Loaded, Step};
use protocol::{BenchRequest, BenchResult};

use crate::Result;
use crate::engine::Outcome;
use crate::sequence::{last_logits, wait_before_reuse};

/// Decode steps before the clock starts: kernels compile and buffers grow at first use.
const WARMUP_STEPS: u32 = 4;

/// Measures one batch size.
pub(crate) fn run(
    device: &Device,
    loaded: &Loaded,
    request: &BenchRequest,
    chunk_tokens: usize,
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<Outcome<BenchResult>> {
    let bytes_per_s = bandwidth(device)?;
    // The same prompt first, so that nothing is compiled while the clock runs.
    let warm = BenchRequest { new_tokens: 4, ..*request };
    if measure(loaded, &warm, chunk_tokens, should_stop)?.is_none() {
        return Ok(Outcome::Stopped);
    }
    mlx::memory::reset_peak()?;
    let Some(times) = measure(loaded, request, chunk_tokens, should_stop)? else {
        return Ok(Outcome::Stopped);
    };
    let rows = f64::from(request.batch);
    let decode_tok_s = rows * f64::from(request.new_tokens) / times.decode_s;
    let bound_tok_s = rows * bytes_per_s / loaded.info.weight_bytes_per_step(request.batch);
    let result = BenchResult {
        id: request.id,
        batch: request.batch,
        prefill_tok_s: rows * f64::from(request.prompt_tokens) / times.prefill_s,
        decode_tok_s,
        ttft_ms: times.prefill_s * 1e3,
        peak_bytes: mlx::memory::peak_bytes()? as u64,
        weight_bytes_per_token: loaded.info.weight_bytes_per_token,
        bound_share: Some(decode_tok_s / bound_tok_s),
    };
    mlx::memory::clear_cache()?;
    Ok(Outcome::Done(result))
}

struct Times {
    prefill_s: f64,
    decode_s: f64,
}

/// Prefill of all rows together, then greedy decode. None if it was stopped.
fn measure(
    loaded: &Loaded,
    request: &BenchRequest,
    chunk_tokens: usize,
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<Option<Times>> {
    let rows = request.batch as i32;
    let prompt = Key::from_seed(1)?.integers(
        0,
        loaded.info.vocab_size,
        &[rows, request.prompt_tokens as i32],
    )?;
    prompt.eval()?;
    let mut states = loaded.model.new_state();
    let mut position = 0;

    let start = Instant::now();
    let mut token = None;
    while position < request.prompt_tokens as i32 {
        if should_stop() {
            return Ok(None);
        }
        let n = (request.prompt_tokens as i32 - position).min(chunk_tokens as i32);
        let ids = prompt.slice_axis(1, position..position + n)?;
        let hidden = loaded.model.forward(&ids, &Step::new(position, n), &mut states)?;
        position += n;
        token = Some(greedy(loaded, &hidden)?);
        mlx::eval(token.iter().chain(states.iter().flat_map(LayerState::arrays)))?;
    }
    let prefill_s = start.elapsed().as_secs_f64();

    let mut token = token.expect("a bench has at least one prompt token");
    let mut start = Instant::now();
    let warmup = WARMUP_STEPS.min(request.new_tokens / 2);
    for i in 0..request.new_tokens {
        if should_stop() {
            return Ok(None);
        }
        if i == warmup {
            token.eval()?;
            start = Instant::now();
        }
        let next =
            greedy(loaded, &loaded.model.forward(&token, &Step::new(position, 1), &mut states)?)?;
        wait_before_reuse([&token])?;
        mlx::async_eval([&next])?;
        token.eval()?;
        position += 1;
        token = next;
    }
    token.eval()?;
    let counted = f64::from(request.new_tokens - warmup);
    let decode_s = start.elapsed().as_secs_f64() / counted * f64::from(request.new_tokens);
    Ok(Some(Times { prefill_s, decode_s }))
}

/// The best token after the last position of each row, i32 `[B, 1]`.
fn greedy(loaded: &Loaded, hidden: &Array) -> Result<Array> {
    Ok(sampling::argmax(&last_logits(loaded, hidden)?)?.astype(Dtype::I32)?)
}

const PROBE_BYTES: usize = 256 << 20;
const N_PROBES: usize = 5;

/// The best of a few runs, in bytes per second: a copy on a GPU (read and written bytes count), a
/// read by all cores on a CPU.
fn bandwidth(device: &Device) -> Result<f64> {
    let best = |mut probe: Box<dyn FnMut() -> Result<usize>>| -> Result<f64> {
        let mut best = 0f64;
        for _ in 0..N_PROBES {
            let start = Instant::now();
            let n_bytes = probe()?;
            best = best.max(n_bytes as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    if device.backend() != Backend::Cpu {
        let source = Array::zeros(&[(4 * PROBE_BYTES / 4) as i32], Dtype::F32)?.offset(1.0)?;
        source.eval()?;
        return best(Box::new(move || {
            source.offset(1.0)?.eval()?;
            Ok(2 * 4 * PROBE_BYTES)
        }));
    }
    let source = vec![1u64; PROBE_BYTES / 8];
    best(Box::new(move || {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let sum = std::thread::scope(|scope| {
            let parts = source.chunks(source.len().div_ceil(n_threads));
            let threads = parts
                .map(|part| scope.spawn(move || part.iter().copied().fold(0, u64::wrapping_add)));
            let threads = threads.collect::<Vec<_>>();
            threads
                .into_iter()
                .map(|t| t.join().expect("adding cannot panic"))
                .fold(0, u64::wrapping_add)
        });
        std::hint::black_box(sum);
        Ok(PROBE_BYTES)
    }))
}
