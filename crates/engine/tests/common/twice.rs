//! Every prompt asked twice: among all others, and in a namespace of its own, which shares nothing.
//!
//! A resume splits the same sums elsewhere, so log probabilities agree within what 16 bits leave,
//! and tokens where the best one leads by more than that.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Engine;
use protocol::{
    Boundary, BoundaryKind, CacheMatch, CacheSettings, DiskSettings, Event, GenerateRequest,
};

use super::{engine_in_chunks, request, run};

/// A model of every kind of layer: full attention, windows, latents, recurrent.
const MODELS: [&str; 9] = [
    "gemma3_text_affine4_32",
    "glm4_moe_lite_affine4_32",
    "gpt_oss_mxfp4",
    "llama_affine4_64_f16",
    "qwen3_5_affine4_64_f16",
    "qwen3_5_moe_affine4_32",
    "qwen3_affine8_32_tied",
    "qwen3_moe_affine4_32",
    "qwen3_next_affine4_32",
];

/// Those that the present device computes: MLX's products on CUDA take no matrices that are as
/// small as these and have groups of 64.
pub fn models() -> impl Iterator<Item = &'static str> {
    let is_cuda = mlx::Device::open().is_ok_and(|device| device.backend() == mlx::Backend::Cuda);
    MODELS.into_iter().filter(move |model| !is_cuda || !model.contains("_64"))
}

/// What two computations of the same log probability may differ by, and by that share of it.
pub const TOLERANCE: f32 = 0.06;
const TOLERANCE_SHARE: f32 = 1.0 / 128.0;
/// On devices that keep sums and logits in 16 bits, too.
const TOLERANCE_SHARE_16: f32 = 1.0 / 48.0;
pub const N_NEW: u32 = 6;
/// So few that most prompts take several passes, on every device.
pub const CHUNK_TOKENS: usize = 48;
/// Never the same twice, also not for an engine that finds what an earlier one left.
static NEXT_NAMESPACE: AtomicU64 = AtomicU64::new(1_000);

/// Splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(72) as u32).collect()
    }
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Answer {
    pub tokens: Vec<u32>,
    /// Log probabilities of the best few, for each token.
    pub best: Vec<Vec<(u32, f32)>>,
    pub found: CacheMatch,
    pub cached_tokens: u32,
}

/// An engine that answers every prompt twice.
pub struct Twice {
    pub engine: Engine,
    n_asked: u64,
    /// Whether what was found may turn out to be unreadable.
    pub may_lose: bool,
    /// Log probabilities that were compared with those of a cold run.
    pub n_compared: u64,
    /// The largest difference, as a share of what is allowed.
    pub worst: f32,
    /// The answers of those that shared nothing.
    cold: HashMap<Vec<u32>, Answer>,
}

impl Twice {
    pub fn new(model: &str, cache: CacheSettings) -> Self {
        let engine = engine_in_chunks(model, cache, Some(CHUNK_TOKENS as u32), false);
        let cold = HashMap::new();
        Self { engine, n_asked: 0, may_lose: false, n_compared: 0, worst: 0.0, cold }
    }

    /// The same in the mode whose answers do not depend on the cache.
    pub fn deterministic(model: &str, cache: CacheSettings) -> Self {
        let engine = engine_in_chunks(model, cache, Some(CHUNK_TOKENS as u32), true);
        let cold = HashMap::new();
        Self { engine, n_asked: 0, may_lose: false, n_compared: 0, worst: 0.0, cold }
    }

    pub fn answer(&mut self, request: GenerateRequest) -> Answer {
        self.answers(vec![request], 0).pop().expect("it was answered")
    }

    /// The answers to requests, one of which arrives every `n_steps` steps.
    pub fn answers(&mut self, requests: Vec<GenerateRequest>, n_steps: usize) -> Vec<Answer> {
        let ids = requests.iter().map(|request| request.id).collect::<Vec<_>>();
        let mut events = Vec::new();
        for request in requests {
            self.engine.submit(request).map_err(|e| e.message).unwrap();
            for _ in 0..n_steps {
                let step = self.engine.step(&mut |event| events.push(event));
                step.map_err(|e| e.message).unwrap();
            }
        }
        events.extend(run(&mut self.engine));
        let mut answers = HashMap::new();
        for event in events {
            match event {
                Event::Matched(found) => {
                    let (tokens, best) = (Vec::new(), Vec::new());
                    let answer = Answer { tokens, best, found, cached_tokens: 0 };
                    assert!(answers.insert(answer.found.id, answer).is_none());
                }
                Event::Token { id, token, top, .. } => {
                    let answer = answers.get_mut(&id).expect("it was begun");
                    answer.tokens.push(token);
                    answer.best.push(top);
                }
                Event::Finished { id, usage, .. } => {
                    let answer = answers.get_mut(&id).expect("it was begun");
                    answer.cached_tokens = usage.cached_tokens;
                }
                Event::PrefillProgress { .. } => {}
                event => panic!("{event:?}"),
            }
        }
        ids.iter().map(|id| answers.remove(id).expect("it was answered")).collect()
    }

    /// Asks all together, one more every `n_steps` steps, and each alone in a namespace of its own,
    /// and compares.
    pub fn ask_together(&mut self, asked: &[GenerateRequest], n_steps: usize) {
        let together = self.answers(asked.to_vec(), n_steps);
        for (asked, found) in asked.iter().zip(together) {
            let alone = GenerateRequest {
                namespace: NEXT_NAMESPACE.fetch_add(1, Ordering::Relaxed),
                boundaries: vec![],
                ..asked.clone()
            };
            let alone = self.answer(alone);
            let (n, worst) = compare(&found, &alone);
            (self.n_compared, self.worst) = (self.n_compared + n, self.worst.max(worst));
        }
    }

    /// Asks among all others and alone, and compares.
    pub fn ask(&mut self, prompt: &[u32], boundaries: &[u32]) -> Answer {
        self.n_asked += 1;
        let seam = |at: &u32| Boundary { at: *at, kind: BoundaryKind::Message };
        let asked = GenerateRequest {
            top_logprobs: Some(4),
            boundaries: boundaries.iter().map(seam).collect(),
            ..request(2 * self.n_asked, prompt, N_NEW)
        };
        let found = self.answer(asked.clone());
        if !self.cold.contains_key(prompt) {
            let alone = GenerateRequest {
                id: protocol::RequestId(2 * self.n_asked + 1),
                namespace: NEXT_NAMESPACE.fetch_add(1, Ordering::Relaxed),
                boundaries: vec![],
                ..asked
            };
            let cold = self.answer(alone);
            assert_eq!(cold.cached_tokens, 0);
            self.cold.insert(prompt.to_vec(), cold);
        }
        let (n, worst) = compare(&found, &self.cold[prompt]);
        (self.n_compared, self.worst) = (self.n_compared + n, self.worst.max(worst));
        let is_kept = found.cached_tokens == found.found.usable_tokens;
        assert!(is_kept || self.may_lose, "{found:?}");
        found
    }
}

/// How many log probabilities were compared, and the largest difference as a share of what is
/// allowed.
fn compare(found: &Answer, cold: &Answer) -> (u64, f32) {
    let (mut n, mut worst) = (0, 0f32);
    let tolerance_share = match mlx::Device::current_backend() {
        mlx::Backend::Cpu => TOLERANCE_SHARE,
        mlx::Backend::Cuda | mlx::Backend::Metal => TOLERANCE_SHARE_16,
    };
    for (i, (tokens, best)) in found.tokens.iter().zip(&cold.tokens).zip(&cold.best).enumerate() {
        for (id, logprob) in &found.best[i] {
            let Some((_, wanted)) = best.iter().find(|(other, _)| other == id) else { continue };
            let share = (logprob - wanted).abs() / (TOLERANCE - wanted * tolerance_share);
            (n, worst) = (n + 1, worst.max(share));
            assert!(
                share <= 1.0,
                "token {i}: {logprob} for {id}, alone {wanted}; {:?}",
                found.found
            );
        }
        if tokens.0 != tokens.1 {
            let lead = best[0].1 - best[1].1;
            assert!(lead <= 2.0 * TOLERANCE, "token {i}: {tokens:?}, {lead} ahead");
            return (n, worst);
        }
    }
    assert_eq!(found.tokens.len(), cold.tokens.len());
    (n, worst)
}

/// Conversations that grow, part and come back, in random order.
pub fn converse(twice: &mut Twice, rng: &mut Rng, n_asked: usize) -> (u32, [u32; 3]) {
    let mut talks = vec![rng.tokens(40)];
    let (mut n_hit, mut by_tier) = (0, [0; 3]);
    for _ in 0..n_asked {
        let mut talk = talks[rng.below(talks.len())].clone();
        talk.truncate(1 + rng.below(talk.len()).max(talk.len() / 2));
        let seam = talk.len() as u32;
        let n_more = 1 + rng.below(60);
        talk.extend(rng.tokens(n_more));
        if talk.len() > 300 {
            talk.truncate(100);
        }
        let end = talk.len() as u32;
        let answer = twice.ask(&talk, &[seam.min(end), end - 1, 20.min(end)].map(|at| at.max(1)));
        n_hit += u32::from(answer.cached_tokens > 0);
        by_tier[answer.found.tier as usize] += u32::from(answer.cached_tokens > 0);
        talk.extend(&answer.tokens[..answer.tokens.len() - 1]);
        if talks.len() < 12 {
            talks.push(talk);
        } else {
            let k = rng.below(talks.len());
            talks[k] = talk;
        }
    }
    (n_hit, by_tier)
}

/// What ten prompts of such conversations leave on a device that has room for all.
pub fn bytes_of_ten(model: &str) -> u64 {
    let mut twice = Twice::new(model, CacheSettings::default());
    converse(&mut twice, &mut Rng(4), 10);
    twice.engine.cache_stats().tiers[0].cached_bytes
}

/// Settings with files in a folder.
pub fn on_disk(folder: &Path) -> CacheSettings {
    let folder = folder.to_str().unwrap().to_owned();
    let disk = DiskSettings { folder, label: "golden".to_owned(), bytes: Some(1 << 30) };
    CacheSettings { disk: Some(disk), device_bytes: None, host_bytes: Some(0) }
}
