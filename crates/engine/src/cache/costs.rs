//! What computing and moving cost on this machine, learnt on the way.

use std::time::Duration;

use kvcache::{Costs, Link, Prefill, Tier};

/// The share of a new measurement in the mean.
const WEIGHT: f64 = 0.25;

/// Costs as measured so far.
#[derive(Debug)]
pub(crate) struct Measured(Costs);

impl Default for Measured {
    /// Before anything is measured: computing is slow and bytes come fast, so that what is cached
    /// is used, and measured.
    fn default() -> Self {
        let link = |bytes_per_us| Link { latency_us: 100.0, bytes_per_us };
        let prefill = Prefill { a: 0.0, b: 1_000.0, c: 0.0 };
        Self(Costs { prefill, host: link(30_000.0), disk: link(5_000.0) })
    }
}

impl Measured {
    pub fn costs(&self) -> Costs {
        self.0
    }

    /// A pass over `n_tokens` of a prompt took `us`.
    pub fn prefilled(&mut self, n_tokens: usize, us: f64) {
        mix(&mut self.0.prefill.b, us / n_tokens.max(1) as f64);
    }

    /// Bytes came up from a tier.
    pub fn moved(&mut self, from: Tier, n_bytes: u64, took: Duration) {
        let link = match from {
            Tier::Device => return,
            Tier::Host => &mut self.0.host,
            Tier::Disk => &mut self.0.disk,
        };
        let us = (took.as_secs_f64() * 1e6 - link.latency_us).max(1.0);
        // The mean of times, not of rates: one slow transfer counts for as much as it cost.
        let mut us_per_byte = link.bytes_per_us.recip();
        mix(&mut us_per_byte, us / n_bytes.max(1) as f64);
        link.bytes_per_us = us_per_byte.recip();
    }
}

fn mix(mean: &mut f64, new: f64) {
    *mean += (new - *mean) * WEIGHT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_follow_what_is_measured() {
        let mut measured = Measured::default();
        for _ in 0..40 {
            measured.prefilled(256, 256.0 * 50.0);
            measured.moved(Tier::Host, 10_000_000, Duration::from_micros(1_100));
        }
        let costs = measured.costs();
        assert!((costs.prefill.b - 50.0).abs() < 1.0, "{costs:?}");
        assert!((costs.host.bytes_per_us - 10_000.0).abs() < 100.0, "{costs:?}");
        assert_eq!(costs.disk, Measured::default().costs().disk);
    }
}
