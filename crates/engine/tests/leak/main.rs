//! Memory: what requests took comes back, to the byte, once the cache is as large as it may be.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use common::{engine_of, request, run};
use protocol::CacheSettings;

#[test]
fn ten_thousand_decode_steps_leave_active_memory_flat() {
    let device_bytes = Some(300_000);
    let settings = CacheSettings { device_bytes, ..CacheSettings::default() };
    let mut engine = engine_of("qwen3_affine8_32_tied", settings);
    let mut cycle = |i: u64| {
        engine.submit(request(i, &[(i % 72) as u32, 4, 4], 250)).map_err(|e| e.message).unwrap();
        run(&mut engine);
        mlx::memory::active_bytes().unwrap()
    };
    let full = (0..10).map(&mut cycle).max().unwrap();
    for i in 10..50 {
        assert_eq!(cycle(i), full, "after request {i}");
    }
    assert!(engine.cache_stats().tiers[0].n_evicted > 0);
}
