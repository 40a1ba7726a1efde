//! Memory: what requests took comes back, to the byte.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

use common::{engine, request, run};

#[test]
fn ten_thousand_decode_steps_leave_active_memory_flat() {
    let mut engine = engine();
    let mut cycle = |i: u64| {
        engine.submit(request(i, &[(i % 72) as u32, 4, 4], 250)).map_err(|e| e.message).unwrap();
        run(&mut engine);
        mlx::memory::active_bytes().unwrap()
    };
    let first = cycle(0);
    for i in 1..40 {
        assert_eq!(cycle(i), first, "after request {i}");
    }
}
