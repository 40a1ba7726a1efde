//! When units of one kind are used again, learned from what happened to them, and what holding one
//! is worth.
//!
//! Life is told in ages since the last use, in bins that grow with age, two to an octave. Of each
//! bin we know how many uses came in it and for how long units were watched in it, both over the
//! same stretch of the past; their quotient is the hazard of a use. Units that were let go are
//! watched on as ghosts, so that what a policy does not bias what it learns.
//!
//! The worth of a unit at an age is the best rate that any stopping time achieves: expected uses
//! over expected time held (the index of Gittins 1979). It is high before uses are due, so that a
//! unit just used, which nobody wants for a while, outlives one whose time has passed.

use super::Tick;

const BINS_PER_OCTAVE: usize = 2;
const N_OCTAVES: usize = 48;
/// Bins of one curve.
pub const N_BINS: usize = N_OCTAVES * BINS_PER_OCTAVE;

/// Watching that a kind needs in a bin before its own experience outweighs that of all kinds, in
/// units that live through the bin.
const PRIOR_UNITS: f64 = 8.0;

/// The bin of an age.
pub fn bin_of(age: Tick) -> usize {
    let age = age.saturating_add(BINS_PER_OCTAVE as u64);
    let octave = age.ilog2() as usize - 1;
    let half = (age >> octave) as usize - BINS_PER_OCTAVE;
    (octave * BINS_PER_OCTAVE + half).min(N_BINS - 1)
}

/// The first age in a bin, and the end of the last one.
const STARTS: [f64; N_BINS + 1] = {
    let mut starts = [0.0; N_BINS + 1];
    let mut bin = 0;
    while bin <= N_BINS {
        let (octave, half) = (bin / BINS_PER_OCTAVE, bin % BINS_PER_OCTAVE);
        starts[bin] = (((BINS_PER_OCTAVE + half) << octave) - BINS_PER_OCTAVE) as f64;
        bin += 1;
    }
    starts
};

fn start_of(bin: usize) -> f64 {
    STARTS[bin]
}

fn width_of(bin: usize) -> f64 {
    start_of(bin + 1) - start_of(bin)
}

/// What happened to units of one kind, by age.
#[derive(Debug, Clone)]
pub struct Curve {
    used: [f64; N_BINS],
    /// Ticks, of all units together.
    watched: [f64; N_BINS],
    /// Uses per tick held, by age; see [`learn`].
    worth: [f64; N_BINS],
}

impl Curve {
    /// Nothing known, and the same worth at all ages.
    pub fn new() -> Self {
        Self { used: [0.0; N_BINS], watched: [0.0; N_BINS], worth: [1.0; N_BINS] }
    }

    /// A unit was used at this age.
    pub fn used(&mut self, age: Tick) {
        self.used[bin_of(age)] += 1.0;
    }

    /// A unit was watched from one age to another.
    pub fn watched(&mut self, from: Tick, to: Tick) {
        let (from, to) = (from as f64, to as f64);
        for bin in bin_of(from as Tick)..=bin_of(to as Tick) {
            // The last bin has no end.
            let end = if bin == N_BINS - 1 { to } else { start_of(bin + 1).min(to) };
            self.watched[bin] += (end - start_of(bin).max(from)).max(0.0);
        }
    }

    /// Uses per tick that holding on to a unit of this age brings, at the best stopping time.
    pub fn worth(&self, age: Tick) -> f64 {
        self.worth[bin_of(age)]
    }

    /// Gittins' index at each age, for a hazard by age.
    fn index(hazard: &[f64; N_BINS]) -> [f64; N_BINS] {
        // Of a unit that lives at a bin's beginning: time there, uses, whether it lives on.
        let bins: [(f64, f64, f64); N_BINS] = std::array::from_fn(|bin| {
            let lives = 1.0 / (1.0 + hazard[bin] * width_of(bin));
            let ticks = width_of(bin) * lives;
            (ticks, hazard[bin] * ticks, lives)
        });
        let mut worth = [0.0; N_BINS];
        for (age, worth) in worth.iter_mut().enumerate() {
            let (mut alive, mut uses, mut time) = (1.0, 0.0, 0.0);
            let mut best = (0.0, 1.0);
            for (ticks_here, uses_here, lives) in &bins[age..] {
                uses += alive * uses_here;
                time += alive * ticks_here;
                alive *= lives;
                if uses * best.1 > best.0 * time {
                    best = (uses, time);
                }
                if alive < 1e-6 {
                    break;
                }
            }
            *worth = best.0 / best.1;
        }
        worth
    }
}

/// Works out the worth of all kinds, from their own experience where there is some, from that of
/// all kinds together elsewhere, and beyond all experience from hazards that fall as 1/age.
/// Afterwards what happened weighs `keep` times what it did.
pub fn learn(curves: &mut [Curve], keep: f64) {
    let common = common_hazard(curves);
    let common_worth = Curve::index(&common);
    for curve in curves {
        if curve.watched.iter().all(|&ticks| ticks == 0.0) {
            curve.worth = common_worth;
            continue;
        }
        let mut hazard = common;
        for (bin, hazard) in hazard.iter_mut().enumerate() {
            let prior = PRIOR_UNITS * width_of(bin);
            *hazard = (curve.used[bin] + *hazard * prior) / (curve.watched[bin] + prior);
        }
        curve.worth = Curve::index(&hazard);
        curve.used.iter_mut().chain(&mut curve.watched).for_each(|weight| *weight *= keep);
    }
}

fn common_hazard(curves: &[Curve]) -> [f64; N_BINS] {
    let mut hazard = [0.0; N_BINS];
    let mut last = (0.0, 1.0);
    for (bin, hazard) in hazard.iter_mut().enumerate() {
        let used: f64 = curves.iter().map(|curve| curve.used[bin]).sum();
        let watched: f64 = curves.iter().map(|curve| curve.watched[bin]).sum();
        let middle = start_of(bin) + 0.5 * width_of(bin);
        if watched >= PRIOR_UNITS * width_of(bin) {
            last = (used / watched, middle);
        }
        *hazard = last.0 * last.1 / middle;
    }
    hazard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_follow_each_other_and_hold_their_ages() {
        for bin in 0..N_BINS - 1 {
            assert!(width_of(bin) >= 1.0, "{bin}");
            let first = start_of(bin) as Tick;
            let last = start_of(bin + 1) as Tick - 1;
            assert_eq!((bin_of(first), bin_of(last)), (bin, bin));
        }
        assert_eq!(bin_of(Tick::MAX), N_BINS - 1);
    }

    #[test]
    fn what_is_watched_is_shared_out_among_bins() {
        let mut curve = Curve::new();
        curve.watched(0, 1000);
        curve.watched(1000, 1 << 20);
        assert!((curve.watched.iter().sum::<f64>() - (1u64 << 20) as f64).abs() < 1e-3);
        for bin in 0..bin_of(1 << 20) {
            assert!((curve.watched[bin] - width_of(bin)).abs() < 1e-6, "{bin}");
        }
    }

    #[test]
    fn a_unit_is_worth_its_hazard_if_that_is_the_same_at_all_ages() {
        for worth in Curve::index(&[0.01; N_BINS]) {
            assert!((worth - 0.01).abs() < 1e-9, "{worth}");
        }
    }

    #[test]
    fn what_is_due_later_is_worth_more_the_nearer_it_comes_and_nothing_afterwards() {
        let due = bin_of(1000);
        let mut hazard = [0.0; N_BINS];
        hazard[due] = 0.1;
        let worth = Curve::index(&hazard);
        assert!(worth[..=due].is_sorted() && worth[0] > 0.0, "{worth:?}");
        assert!(worth[due + 1..].iter().all(|&worth| worth == 0.0));
    }

    /// Lives of two kinds: one is used at age 100 by half, the other never.
    fn lives(n: usize) -> [Curve; 2] {
        let mut curves = [Curve::new(), Curve::new()];
        for k in 0..n {
            let (used, unused) = curves.split_at_mut(1);
            if k % 2 == 0 {
                used[0].watched(0, 100);
                used[0].used(100);
            } else {
                used[0].watched(0, 3000);
            }
            unused[0].watched(0, 3000);
        }
        learn(&mut curves, 1.0);
        curves
    }

    #[test]
    fn kinds_part_with_experience_and_begin_alike() {
        let [used, unused] = lives(1000);
        assert!(used.worth(0) > 20.0 * unused.worth(0));
        assert!(used.worth(0) > 20.0 * used.worth(1000), "its time is over");
        let [used, unused] = lives(8);
        assert!(used.worth(0) < 4.0 * unused.worth(0), "eight lives prove little");
    }
}
