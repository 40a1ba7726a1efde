//! `offshoot bench`: random tokens through prefill and decode, over the cache's pools as requests
//! go, with the memory bound of the same run.

use std::time::Instant;

use kernels::sampling;
use kvcache::{Ns, SeqId};
use mlx::{Array, Backend, Device, Dtype, Key};
use models::Loaded;
use protocol::{BenchRequest, BenchResult};

use crate::cache::{Passed, PrefixCache};
use crate::engine::Outcome;
use crate::sequence::last_logits;
use crate::{Error, Result};

/// Decode steps before the clock starts: kernels compile and buffers grow at first use.
const WARMUP_STEPS: u32 = 4;

/// Measures one batch size.
pub(crate) fn run(
    device: &Device,
    loaded: &Loaded,
    cache: &mut PrefixCache,
    request: &BenchRequest,
    chunk_tokens: usize,
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<Outcome<BenchResult>> {
    let bytes_per_s = bandwidth(device)?;
    // The same prompt first, so that nothing is compiled while the clock runs.
    let warm = BenchRequest { new_tokens: 4, ..*request };
    if measure(loaded, cache, &warm, chunk_tokens, should_stop)?.is_none() {
        return Ok(Outcome::Stopped);
    }
    mlx::memory::reset_peak()?;
    let Some(times) = measure(loaded, cache, request, chunk_tokens, should_stop)? else {
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

/// Sequences of random tokens that share nothing; they end, and are forgotten, when this goes.
struct Rows<'c> {
    cache: &'c mut PrefixCache,
    seqs: Vec<SeqId>,
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        for (row, seq) in (0..).zip(&self.seqs) {
            self.cache.end(*seq);
            self.cache.flush(namespace(row));
        }
    }
}

/// One for each row, which no request has: those are hashes of names, or 0.
fn namespace(row: u64) -> Ns {
    Ns(u64::MAX - row)
}

impl Rows<'_> {
    /// Makes room for the next `n` tokens of every row, and runs the model on them.
    fn pass(&mut self, loaded: &Loaded, ids: &Array) -> Result<Passed> {
        let n = ids.dim(1) as usize;
        for seq in &self.seqs {
            self.cache.reserve(*seq, n)?;
        }
        self.cache.pass(loaded, ids, &self.seqs, &[])
    }

    /// `tokens` of each row were computed.
    fn advance(&mut self, tokens: &[i32]) {
        let n_each = tokens.len() / self.seqs.len();
        for (seq, tokens) in self.seqs.iter().zip(tokens.chunks(n_each)) {
            let tokens = tokens.iter().map(|token| *token as u32).collect::<Vec<_>>();
            self.cache.grow(*seq, &tokens);
        }
    }
}

/// Prefill of all rows together, then greedy decode. None if it was stopped.
fn measure(
    loaded: &Loaded,
    cache: &mut PrefixCache,
    request: &BenchRequest,
    chunk_tokens: usize,
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<Option<Times>> {
    let (n_rows, n_prompt) = (request.batch as i32, request.prompt_tokens as i32);
    let prompt = Key::from_seed(1)?.integers(0, loaded.info.vocab_size, &[n_rows, n_prompt])?;
    let tokens = prompt.astype(Dtype::U32)?.to_vec::<u32>()?;
    let mut rows = Rows { cache, seqs: Vec::new() };
    for (row, tokens) in (0..).zip(tokens.chunks(n_prompt as usize)) {
        let begun = rows.cache.begin(namespace(row), tokens)?;
        rows.seqs.push(begun.map_err(|no_room| Error::world(no_room.to_string()))?.0);
    }

    let start = Instant::now();
    let (mut position, mut token) = (0, None);
    while position < n_prompt {
        if should_stop() {
            return Ok(None);
        }
        let end = n_prompt.min(position + chunk_tokens as i32);
        let ids = prompt.slice_axis(1, position..end)?;
        let passed = rows.pass(loaded, &ids)?;
        token = Some(greedy(loaded, &passed.hidden)?);
        rows.cache.compute(
            &rows.seqs,
            &passed,
            token.iter(),
            (n_rows * (end - position)) as usize,
        )?;
        rows.advance(&ids.astype(Dtype::I32)?.to_vec::<i32>()?);
        position = end;
    }
    if let Some(token) = &token {
        token.eval()?;
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
        let passed = rows.pass(loaded, &token)?;
        let next = greedy(loaded, &passed.hidden)?;
        rows.cache.issue([&next].into_iter())?;
        // As it is: a conversion would wait behind the pass that was just issued.
        rows.advance(&token.to_vec::<i32>()?);
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
