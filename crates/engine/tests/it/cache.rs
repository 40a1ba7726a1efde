//! A hit equals a miss: the same request gives the same tokens whatever the cache had of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::{
    Boundary, BoundaryKind, CacheSettings, CacheTier, Event, Fault, GenerateRequest, MissCause,
};

use crate::common::twice::{
    CHUNK_TOKENS, N_NEW, Rng, TOLERANCE, Twice, bytes_of_ten, converse, models, on_disk,
};
use crate::common::{request, run};

#[test]
fn a_prompt_asked_again_is_not_computed_again() {
    for model in models() {
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
fn a_prompt_that_comes_a_third_time_resumes_before_its_last_token_without_seams() {
    for model in models() {
        let mut twice = Twice::new(model, CacheSettings::default());
        let prompt = Rng(10).tokens(150);
        twice.ask(&prompt, &[]);
        twice.ask(&prompt, &[]);
        assert_eq!(twice.ask(&prompt, &[]).cached_tokens, 149, "{model}");
    }
}

#[test]
fn answers_are_prefixes_too() {
    for model in models() {
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
    for model in models() {
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

#[test]
fn conversations_under_pressure_are_those_without_a_cache() {
    for model in models() {
        let plenty = bytes_of_ten(model);
        // Room for a third of what ten would like to keep, and twice as much below.
        for host_bytes in [Some(0), Some(plenty)] {
            let settings = CacheSettings { device_bytes: Some(plenty / 3), host_bytes, disk: None };
            let mut twice = Twice::new(model, settings);
            let (n_hit, by_tier) = converse(&mut twice, &mut Rng(5), 40);
            let stats = twice.engine.cache_stats();
            assert!(stats.tiers[0].n_evicted > 0, "{model}: {stats:?}");
            assert_eq!(stats.tiers[0].live_bytes, 0, "{model}");
            assert!(n_hit >= 10, "{model}: {n_hit} hits");
            if host_bytes != Some(0) {
                assert!(by_tier[CacheTier::Host as usize] > 0, "{model}: {by_tier:?}");
            }
        }
    }
}

#[test]
fn several_at_once_share_what_they_have() {
    for model in models() {
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
    for model in models() {
        let mut twice = Twice::new(model, CacheSettings::default());
        let prompt = Rng(7).tokens(400);
        twice.engine.submit(request(1, &prompt, 3)).map_err(|e| e.message).unwrap();
        twice.engine.step(&mut |_| {}).map_err(|e| e.message).unwrap();
        twice.engine.cancel(protocol::RequestId(1));
        let found = twice.ask(&prompt, &[]);
        assert_eq!(found.cached_tokens as usize, CHUNK_TOKENS, "{model}");
    }
}

#[test]
fn a_new_process_goes_on_where_the_last_one_ended() {
    for model in models() {
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
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        let plenty = bytes_of_ten(model);
        let device_bytes = Some(plenty / 3);
        let settings = CacheSettings { device_bytes, ..on_disk(folder.path()) };
        let mut twice = Twice::new(model, settings);
        let (_, by_tier) = converse(&mut twice, &mut Rng(12), 30);
        assert!(by_tier[CacheTier::Disk as usize] > 0, "{model}: {by_tier:?}");
    }
}

#[test]
fn files_stay_within_their_quota_and_no_write_is_refused() {
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        let plenty = bytes_of_ten(model);
        let mut settings =
            CacheSettings { device_bytes: Some(plenty / 3), ..on_disk(folder.path()) };
        let quota_bytes = 3 * plenty;
        if let Some(disk) = &mut settings.disk {
            disk.bytes = Some(quota_bytes);
        }
        let mut twice = Twice::new(model, settings.clone());
        let mut rng = Rng(18);
        for _ in 0..5 {
            converse(&mut twice, &mut rng, 6);
            let n_bytes =
                files(folder.path()).values().map(|bytes| bytes.len() as u64).sum::<u64>();
            assert!(n_bytes <= quota_bytes, "{model}: {n_bytes} of {quota_bytes}");
            let stats = twice.engine.cache_stats();
            assert!(stats.extent_bytes <= quota_bytes / 10 * 9, "{model}: {stats:?}");
            assert_eq!(stats.n_transfers[1], 0, "{model}: {stats:?}");
        }
        let before = twice.engine.cache_stats();
        assert!(before.tiers[2].n_evicted > 0, "{model}: {before:?}");
        drop(twice);
        // Nothing of what was in use is lost to the next process.
        let after = Twice::new(model, settings).engine.cache_stats();
        let bytes = |stats: &kvcache::Stats| stats.tiers[2].cached_bytes;
        assert!(bytes(&after) >= bytes(&before), "{model}: {before:?} {after:?}");
    }
}

/// The files in the folder of a model below another one, and what is in them.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = |folder: &Path| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let files = entries(folder).filter(|path| path.is_dir()).flat_map(|path| entries(&path));
    let name = |path: &Path| path.strip_prefix(folder).unwrap().to_owned();
    files.map(|path| (name(&path), std::fs::read(path).unwrap())).collect()
}

#[test]
fn damage_anywhere_in_an_extent_is_a_miss_of_what_it_holds_and_of_nothing_else() {
    let model = "qwen3_5_affine4_64_f16";
    let folder = tempfile::tempdir().unwrap();
    let [damaged, whole] = [13, 14].map(|seed| Rng(seed).tokens(150));
    Twice::new(model, on_disk(folder.path())).ask(&damaged, &[140]);
    let mut of_damaged = files(folder.path());
    of_damaged.retain(|name, _| name.extension().is_some_and(|e| e == "extent"));
    assert!(!of_damaged.is_empty());
    Twice::new(model, on_disk(folder.path())).ask(&whole, &[140]);
    let kept = files(folder.path());
    // Magic, version, number of pieces, fingerprint, id, length and checksum of a piece; then
    // somewhere in the middle, and the last byte.
    let flips = [0, 8, 12, 16, 32, 40, 48].map(|at| (at, 1)).into_iter();
    for (at, n_parts) in flips.chain([(usize::MAX, 2), (usize::MAX, 1)]) {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &kept {
            let (path, mut bytes) = (folder.path().join(name), bytes.clone());
            if of_damaged.contains_key(name) {
                let at = at.min(bytes.len() / n_parts - 1);
                bytes[at] ^= 4;
            }
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let mut twice = Twice::new(model, on_disk(folder.path()));
        twice.may_lose = true;
        let found = twice.ask(&damaged, &[]);
        assert_eq!((found.found.tier, found.cached_tokens), (CacheTier::Disk, 0), "byte {at}");
        twice.may_lose = false;
        let found = twice.ask(&whole, &[]);
        assert_eq!((found.found.tier, found.cached_tokens), (CacheTier::Disk, 140), "byte {at}");
        assert_eq!(twice.ask(&damaged, &[]).found.tier, CacheTier::Device);
        drop(twice);
        let left = files(folder.path());
        // What nothing was read of may stay.
        assert!(of_damaged.keys().any(|name| !left.contains_key(name)), "byte {at}: it is deleted");
    }
}

#[test]
fn deterministic_answers_are_those_without_a_cache_bit_for_bit() {
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        let plenty = bytes_of_ten(model);
        let settings = CacheSettings { device_bytes: Some(plenty), ..on_disk(folder.path()) };
        let mut twice = Twice::deterministic(model, settings);
        let (n_hit, _) = converse(&mut twice, &mut Rng(16), 40);
        assert!(n_hit >= 10, "{model}: {n_hit} hits");
        assert!(twice.n_compared > 500 && twice.worst == 0.0, "{model}: {}", twice.worst);
        let prompt = Rng(17).tokens(3 * CHUNK_TOKENS + 5);
        twice.ask(&prompt, &[100]);
        let again = twice.ask(&prompt, &[]).cached_tokens as usize;
        assert!(again > 0 && again.is_multiple_of(CHUNK_TOKENS), "{model}: {again}");
        assert_eq!(twice.worst, 0.0, "{model}");
    }
}

#[test]
fn a_device_that_fails_costs_what_runs_and_no_answer() {
    for model in models() {
        let folder = tempfile::tempdir().unwrap();
        let mut twice = Twice::new(model, on_disk(folder.path()));
        let (kept, running) = (Rng(14).tokens(120), Rng(15).tokens(200));
        twice.ask(&kept, &[100]);
        for (id, prompt) in [(801, &running), (802, &kept)] {
            twice.engine.submit(request(id, prompt, 9)).map_err(|e| e.message).unwrap();
        }
        for _ in 0..3 {
            twice.engine.step(&mut |_| {}).map_err(|e| e.message).unwrap();
        }
        let mut failed = Vec::new();
        let mut note = |event| match event {
            Event::Failed { id: Some(id), fault: Fault::Memory, .. } => failed.push(id.0),
            event => panic!("{event:?}"),
        };
        let error = mlx::Error::OutOfMemory { op: "eval", message: "none is left".to_owned() };
        twice.engine.recover(&error.into(), &mut note).map_err(|e| e.message).unwrap();
        failed.sort_unstable();
        assert_eq!(failed, [801, 802], "{model}");
        let device = twice.engine.cache_stats().tiers[0];
        assert_eq!(device.live_bytes + device.cached_bytes, 0, "{model}");
        let found = twice.ask(&kept, &[]);
        assert_ne!(found.found.tier, CacheTier::Device, "{model}: {found:?}");
        assert!(found.cached_tokens > 0, "{model}: {found:?}");
        twice.ask(&running, &[]);
        assert_eq!(twice.ask(&running, &[]).found.tier, CacheTier::Device, "{model}");
    }
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
