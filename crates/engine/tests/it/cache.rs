//! A hit equals a miss: the same request gives the same tokens whatever the cache had of it. Beside
//! every answer stands that of a namespace of its own, which shares nothing.
//!
//! A resume splits the same sums elsewhere, so log probabilities agree within what 16 bits leave,
//! and tokens where the best one leads by more than that.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::Engine;
use protocol::{
    Boundary, BoundaryKind, CacheMatch, CacheSettings, CacheTier, DiskSettings, Event,
    GenerateRequest, MissCause,
};

use crate::common::{engine_of, request, run};

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

/// What two computations of the same log probability may differ by, and by that share of it.
const TOLERANCE: f32 = 0.06;
const TOLERANCE_SHARE: f32 = 1.0 / 128.0;
const N_NEW: u32 = 6;
/// Never the same twice, also not for an engine that finds what an earlier one left.
static NEXT_NAMESPACE: AtomicU64 = AtomicU64::new(1_000);

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(72) as u32).collect()
    }
}

/// What came of a request.
#[derive(Debug, Clone)]
struct Answer {
    tokens: Vec<u32>,
    /// Log probabilities of the best few, for each token.
    best: Vec<Vec<(u32, f32)>>,
    found: CacheMatch,
    cached_tokens: u32,
}

/// An engine that answers every prompt twice.
struct Twice {
    engine: Engine,
    n_asked: u64,
    /// Whether what was found may turn out to be unreadable.
    may_lose: bool,
    /// The answers of those that shared nothing.
    cold: HashMap<Vec<u32>, Answer>,
}

impl Twice {
    fn new(model: &str, cache: CacheSettings) -> Self {
        let engine = engine_of(model, cache);
        Self { engine, n_asked: 0, may_lose: false, cold: HashMap::new() }
    }

    fn answer(&mut self, request: GenerateRequest) -> Answer {
        let id = request.id;
        self.engine.submit(request).map_err(|e| e.message).unwrap();
        let events = run(&mut self.engine);
        let mut answer = None;
        for event in events {
            match (event, &mut answer) {
                (Event::Matched(found), None) => {
                    let (tokens, best) = (Vec::new(), Vec::new());
                    answer = Some(Answer { tokens, best, found, cached_tokens: 0 });
                }
                (Event::Token { token, top, .. }, Some(answer)) => {
                    answer.tokens.push(token);
                    answer.best.push(top);
                }
                (Event::Finished { usage, .. }, Some(answer)) => {
                    answer.cached_tokens = usage.cached_tokens;
                }
                (Event::PrefillProgress { .. }, Some(_)) => {}
                (event, _) => panic!("{id}: {event:?}"),
            }
        }
        answer.expect("it was answered")
    }

    /// Asks among all others and alone, and compares.
    fn ask(&mut self, prompt: &[u32], boundaries: &[u32]) -> Answer {
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
        compare(&found, &self.cold[prompt]);
        let is_kept = found.cached_tokens == found.found.usable_tokens;
        assert!(is_kept || self.may_lose, "{found:?}");
        found
    }
}

fn compare(found: &Answer, cold: &Answer) {
    for (i, (tokens, best)) in found.tokens.iter().zip(&cold.tokens).zip(&cold.best).enumerate() {
        for (id, logprob) in &found.best[i] {
            let Some((_, wanted)) = best.iter().find(|(other, _)| other == id) else { continue };
            assert!(
                (logprob - wanted).abs() <= TOLERANCE - wanted * TOLERANCE_SHARE,
                "token {i}: {logprob} for {id}, alone {wanted}; {:?}",
                found.found
            );
        }
        if tokens.0 != tokens.1 {
            let lead = best[0].1 - best[1].1;
            assert!(lead <= 2.0 * TOLERANCE, "token {i}: {tokens:?}, {lead} ahead");
            return;
        }
    }
    assert_eq!(found.tokens.len(), cold.tokens.len());
}

#[test]
fn a_prompt_asked_again_is_not_computed_again() {
    for model in MODELS {
        let mut twice = Twice::new(model, CacheSettings::default());
        let prompt = Rng(1).tokens(150);
        let first = twice.ask(&prompt, &[40, 149]);
        assert_eq!((first.cached_tokens, first.found.cause), (0, MissCause::NeverSeen), "{model}");
        let again = twice.ask(&prompt, &[]);
        assert_eq!((again.cached_tokens, again.found.cause), (149, MissCause::Complete), "{model}");
        let longer = [&prompt[..], &first.tokens[..4], &[1, 2, 3]].concat();
        let longer = twice.ask(&longer, &[]);
        assert!(longer.cached_tokens >= 149, "{model}: {longer:?}");
    }
}

#[test]
fn answers_are_prefixes_too() {
    for model in MODELS {
        let mut twice = Twice::new(model, CacheSettings::default());
        let prompt = Rng(2).tokens(50);
        let first = twice.ask(&prompt, &[]);
        // The last token of an answer is not computed before another request needs it.
        let whole = [&prompt[..], &first.tokens, &[7]].concat();
        let next = twice.ask(&whole, &[]);
        assert_eq!(next.cached_tokens as usize, prompt.len() + N_NEW as usize - 1, "{model}");
    }
}

#[test]
fn prompts_may_part_at_any_token() {
    for model in MODELS {
        let mut twice = Twice::new(model, CacheSettings::default());
        let mut rng = Rng(3);
        let trunk = rng.tokens(70);
        twice.ask(&trunk, &[33]);
        for at in 1..70 {
            let branch = [&trunk[..at], &[(trunk[at] + 1) % 72], &rng.tokens(9)].concat();
            let first = twice.ask(&branch, &[]);
            assert!(first.found.matched_tokens as usize >= at, "{model} at {at}: {first:?}");
            // The second to part here finds what the first one kept.
            let other = [&trunk[..at], &[(trunk[at] + 2) % 72], &rng.tokens(5)].concat();
            let second = twice.ask(&other, &[]);
            assert!(second.cached_tokens as usize >= at, "{model} at {at}: {second:?}");
        }
    }
}

/// Conversations that grow, part and come back, in random order.
fn converse(twice: &mut Twice, rng: &mut Rng, n_asked: usize) -> (u32, [u32; 3]) {
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

#[test]
fn conversations_under_pressure_are_those_without_a_cache() {
    for model in MODELS {
        let plenty = {
            let mut twice = Twice::new(model, CacheSettings::default());
            converse(&mut twice, &mut Rng(4), 10);
            let device = twice.engine.cache_stats().tiers[0];
            device.live_bytes + device.cached_bytes
        };
        // Room for a third of what ten would like to keep, and twice as much below.
        for host_bytes in [None, Some(plenty)] {
            let settings = CacheSettings { device_bytes: Some(plenty / 3), host_bytes, disk: None };
            let mut twice = Twice::new(model, settings);
            let (n_hit, by_tier) = converse(&mut twice, &mut Rng(5), 40);
            let stats = twice.engine.cache_stats();
            assert!(stats.tiers[0].n_evicted > 0, "{model}: {stats:?}");
            assert_eq!(stats.tiers[0].live_bytes, 0, "{model}");
            assert!(n_hit >= 10, "{model}: {n_hit} hits");
            if host_bytes.is_some() {
                assert!(by_tier[CacheTier::Host as usize] > 0, "{model}: {by_tier:?}");
            }
        }
    }
}

#[test]
fn several_at_once_share_what_they_have() {
    for model in MODELS {
        let mut twice = Twice::new(model, CacheSettings::default());
        let mut rng = Rng(6);
        let shared = rng.tokens(90);
        let prompts =
            (0..6).map(|i| [&shared[..], &rng.tokens(5 + i)].concat()).collect::<Vec<_>>();
        for (id, prompt) in prompts.iter().enumerate() {
            let asked = GenerateRequest {
                boundaries: vec![Boundary { at: 90, kind: BoundaryKind::System }],
                ..request(900 + id as u64, prompt, N_NEW)
            };
            twice.engine.submit(asked).map_err(|e| e.message).unwrap();
        }
        let events = run(&mut twice.engine);
        let n_cached = events.iter().filter_map(|event| match event {
            Event::Finished { usage, .. } => Some(usage.cached_tokens),
            _ => None,
        });
        let n_cached = n_cached.collect::<Vec<_>>();
        assert_eq!(n_cached.len(), 6, "{model}");
        assert_eq!(n_cached.iter().filter(|n| **n >= 90).count(), 5, "{model}: {n_cached:?}");
        for (id, prompt) in prompts.iter().enumerate() {
            let tokens = events.iter().filter_map(|event| match event {
                Event::Token { id: of, token, .. } if of.0 == 900 + id as u64 => Some(*token),
                _ => None,
            });
            let tokens = tokens.collect::<Vec<_>>();
            let alone = twice.ask(prompt, &[]);
            let n = tokens.iter().zip(&alone.tokens).take_while(|(a, b)| a == b).count();
            let lead = alone.best.get(n).map_or(0.0, |best| best[0].1 - best[1].1);
            assert!(lead <= 2.0 * TOLERANCE, "{model}: {tokens:?} and {:?}", alone.tokens);
        }
    }
}

#[test]
fn a_cancelled_prefill_is_not_lost() {
    for model in MODELS {
        let mut twice = Twice::new(model, CacheSettings::default());
        let prompt = Rng(7).tokens(400);
        twice.engine.submit(request(1, &prompt, 3)).map_err(|e| e.message).unwrap();
        twice.engine.step(&mut |_| {}).map_err(|e| e.message).unwrap();
        twice.engine.cancel(protocol::RequestId(1));
        let found = twice.ask(&prompt, &[]);
        assert_eq!(found.cached_tokens, 256, "{model}");
    }
}

/// Settings with files in a folder, and a device that holds nothing for long.
fn on_disk(folder: &Path) -> CacheSettings {
    let folder = folder.to_str().unwrap().to_owned();
    let disk = DiskSettings { folder, label: "golden".to_owned(), bytes: Some(1 << 30) };
    CacheSettings { disk: Some(disk), ..CacheSettings::default() }
}

#[test]
fn a_new_process_goes_on_where_the_last_one_ended() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let (prompt, other) = (Rng(10).tokens(150), Rng(11).tokens(60));
        let mut twice = Twice::new(model, on_disk(folder.path()));
        twice.ask(&prompt, &[40, 149]);
        twice.ask(&[&prompt[..100], &other].concat(), &[100]);
        let stats = twice.engine.cache_stats();
        let [device, _, disk] = stats.tiers.map(|tier| tier.cached_bytes);
        // The disk has all that the device has when an engine has nothing more to do, and what
        // checkpoints share there it has more than once.
        assert!(disk >= device, "{model}: {stats:?}");
        drop(twice);
        let mut twice = Twice::new(model, on_disk(folder.path()));
        let again = twice.ask(&prompt, &[]);
        assert_eq!(again.cached_tokens, 149, "{model}: {again:?}");
        assert_eq!(again.found.tier, CacheTier::Disk, "{model}");
        let whole = [&prompt[..], &again.tokens[..N_NEW as usize - 1], &[9]].concat();
        assert_eq!(twice.ask(&whole, &[]).cached_tokens as usize, whole.len() - 1, "{model}");
        let branch = twice.ask(&[&prompt[..100], &[71, 3], &other].concat(), &[]);
        assert_eq!(branch.cached_tokens, 100, "{model}: {branch:?}");
        assert_eq!(twice.ask(&prompt, &[]).found.tier, CacheTier::Device, "{model}");
        // Who comes second does without.
        let mut second = Twice::new(model, on_disk(folder.path()));
        assert_eq!(second.ask(&prompt, &[]).cached_tokens, 0, "{model}");
    }
}

#[test]
fn conversations_that_go_through_the_disk_are_those_without_a_cache() {
    for model in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let plenty = {
            let mut twice = Twice::new(model, CacheSettings::default());
            converse(&mut twice, &mut Rng(4), 10);
            twice.engine.cache_stats().tiers[0].cached_bytes
        };
        let device_bytes = Some(plenty / 3);
        let settings = CacheSettings { device_bytes, ..on_disk(folder.path()) };
        let mut twice = Twice::new(model, settings);
        let (_, by_tier) = converse(&mut twice, &mut Rng(12), 30);
        assert!(by_tier[CacheTier::Disk as usize] > 0, "{model}: {by_tier:?}");
    }
}

#[test]
fn damage_on_disk_is_a_miss() {
    let model = "qwen3_5_affine4_64_f16";
    let folder = tempfile::tempdir().unwrap();
    let prompt = Rng(13).tokens(150);
    let mut twice = Twice::new(model, on_disk(folder.path()));
    twice.ask(&prompt, &[140]);
    drop(twice);
    let folders = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.filter(|path| path.is_dir()).flat_map(|path| {
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    });
    let extents = files.filter(|path| path.extension().is_some_and(|e| e == "extent"));
    let mut n_damaged = 0;
    for path in extents {
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 100;
        bytes[at] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        n_damaged += 1;
    }
    assert!(n_damaged > 0);
    let mut twice = Twice::new(model, on_disk(folder.path()));
    twice.may_lose = true;
    let found = twice.ask(&prompt, &[]);
    assert_eq!((found.found.tier, found.cached_tokens), (CacheTier::Disk, 0));
    twice.may_lose = false;
    assert_eq!(twice.ask(&prompt, &[]).found.tier, CacheTier::Device);
}

#[test]
fn namespaces_share_nothing_and_misses_say_why() {
    let mut twice = Twice::new("qwen3_affine8_32_tied", CacheSettings::default());
    let prompt = Rng(8).tokens(60);
    twice.ask(&prompt, &[]);
    let elsewhere = GenerateRequest { namespace: 5, ..request(77, &prompt, 2) };
    let found = twice.answer(elsewhere);
    assert_eq!((found.cached_tokens, found.found.cause), (0, MissCause::NeverSeen));
    let mut other = prompt.clone();
    other[37] = (other[37] + 1) % 72;
    let found = twice.ask(&other, &[]).found;
    let MissCause::Diverged { at: 37, cached, asked } = found.cause else { panic!("{found:?}") };
    assert_eq!((&cached[..], &asked[..]), (&prompt[37..45], &other[37..45]));
}

#[test]
fn a_prompt_that_the_cache_cannot_hold_is_refused_and_others_go_on() {
    let settings = CacheSettings { device_bytes: Some(40_000), ..CacheSettings::default() };
    let mut twice = Twice::new("qwen3_affine8_32_tied", settings);
    let prompt = Rng(9).tokens(500);
    let error = twice.engine.submit(request(1, &prompt, 3)).err().unwrap();
    assert_eq!(error.fault, protocol::Fault::World);
    assert!(error.message.contains("--cache-memory"), "{}", error.message);
    twice.ask(&prompt[..30], &[]);
}
