//! What scheduling costs, in microseconds: the median and the longest of many. `cargo bench -p
//! scheduler` measures, `cargo test` runs it small. The hash is of what was planned, so that nobody
//! makes it faster by planning something else.

use std::hint::black_box;
use std::time::Instant;

use scheduler::{Arrival, Begin, Id, Key, Limits, Look, Scheduler, Seats, Step};

/// Answers at once, so that what is measured is the scheduler.
struct Instantly {
    has_room: bool,
}

impl Seats for Instantly {
    fn look(&mut self, _: Id) -> Look {
        Look { n_cached: 0, ahead: None }
    }

    fn room_bytes(&self) -> u64 {
        if self.has_room { u64::MAX } else { 1_000 }
    }

    fn needs_bytes(&self, _: Id, _: usize) -> u64 {
        100
    }

    fn begin(&mut self, _: Id) -> Begin {
        Begin::Seated { at: 0 }
    }

    fn reserve(&mut self, _: Id, _: usize) -> bool {
        true
    }

    fn lost_tokens(&self, _: Id) -> usize {
        1
    }

    fn pause(&mut self, _: Id) -> Option<usize> {
        None
    }

    fn is_room_coming(&self) -> bool {
        false
    }

    fn is_moving(&self) -> bool {
        false
    }
}

/// Times of one kind of act.
struct Times {
    name: &'static str,
    us: Vec<f64>,
}

impl Times {
    fn new(name: &'static str) -> Self {
        Self { name, us: Vec::new() }
    }

    fn take<T>(&mut self, act: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(act());
        self.us.push(start.elapsed().as_secs_f64() * 1e6);
        result
    }

    fn print(mut self) {
        self.us.sort_by(f64::total_cmp);
        let (n, name) = (self.us.len(), self.name);
        let (Some(longest), Some(median)) = (self.us.last(), self.us.get(n / 2)) else { return };
        println!("{name:36} {n:7} times  median {median:8.2} us  longest {longest:8.2} us");
    }
}

fn fold(hash: &mut u64, step: &Step) {
    let ids = step.decode.iter().chain(&step.begun).map(|id| id.0);
    let slices = step.prefill.iter().map(|slice| slice.id.0 ^ (slice.to as u64) << 20);
    for found in ids.chain(slices) {
        *hash = (hash.rotate_left(23) ^ found).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

struct Case {
    name: &'static str,
    n_prompt: usize,
    step_tokens: usize,
    has_room: bool,
    /// Whether one request ends and another comes in every step.
    has_churn: bool,
}

const N_ROWS: usize = 64;

fn run(case: &Case, n_waiting: usize, n_steps: usize, hash: &mut u64) {
    let limits = Limits {
        max_rows: if case.has_room { N_ROWS } else { 2 * N_ROWS },
        max_rows_per_key: N_ROWS,
        max_waiting: n_waiting + N_ROWS,
        max_waiting_per_key: n_waiting + N_ROWS,
        step_tokens: case.step_tokens,
        chunk_tokens: 512,
        chunk_tokens_beside: 128,
        headroom_tokens: 512,
        replays_by_token: false,
    };
    let mut scheduler = Scheduler::new(limits);
    let mut seats = Instantly { has_room: true };
    let (mut plan, mut submit) = (Times::new(case.name), Times::new("  submit"));
    let (mut computed, mut end) = (Times::new("  computed"), Times::new("  end"));
    let mut n_submitted = 0;
    let mut arrive = |scheduler: &mut Scheduler, times: &mut Times| {
        n_submitted += 1;
        let arrival = Arrival {
            id: Id(n_submitted),
            key: Key(n_submitted % 16),
            n_prompt: case.n_prompt + n_submitted as usize % 7,
            n_max_new: 1 << 30,
            n_cached: 0,
        };
        times.take(|| scheduler.submit(arrival)).expect("there is a place");
    };
    let report = |scheduler: &mut Scheduler, step: &Step, times: &mut Times| {
        for slice in &step.prefill {
            times.take(|| scheduler.computed(slice.id, slice.to - slice.from));
        }
        step.decode.iter().for_each(|id| times.take(|| scheduler.computed(*id, 1)));
    };
    (0..N_ROWS).for_each(|_| arrive(&mut scheduler, &mut submit));
    while scheduler.n_running() < N_ROWS {
        let step = scheduler.plan(&mut seats);
        report(&mut scheduler, &step, &mut computed);
    }
    (0..n_waiting).for_each(|_| arrive(&mut scheduler, &mut submit));
    seats.has_room = case.has_room;
    for _ in 0..n_steps {
        let step = plan.take(|| scheduler.plan(&mut seats));
        fold(hash, &step);
        report(&mut scheduler, &step, &mut computed);
        if case.has_churn {
            let id = step.decode.first().copied().or(step.prefill.first().map(|s| s.id));
            end.take(|| scheduler.end(id.expect("something is computed")));
            arrive(&mut scheduler, &mut submit);
        }
    }
    [plan, submit, computed, end].into_iter().for_each(Times::print);
}

fn main() {
    let is_measuring = std::env::args().any(|arg| arg == "--bench");
    let (n_waiting, n_steps) = if is_measuring { (1024, 20_000) } else { (64, 50) };
    let case = |name, n_prompt, step_tokens, has_room, has_churn| Case {
        name,
        n_prompt,
        step_tokens,
        has_room,
        has_churn,
    };
    let cases = [
        case("plan: 64 answer", 1, 2048, true, false),
        case("plan: 64 answer, none has room", 1, 2048, false, false),
        case("plan: 64 prompts, 4 slices", 1 << 40, 2048, true, false),
        case("plan: 64 prompts, 64 slices", 1 << 40, 64 * 512, true, false),
        case("plan: one ends and one begins", 700, 2048, true, true),
    ];
    println!("{N_ROWS} rows, {n_waiting} waiting, 16 keys");
    let mut hash = 0;
    cases.iter().for_each(|case| run(case, n_waiting, n_steps, &mut hash));
    println!("hash {hash:016x}");
}
