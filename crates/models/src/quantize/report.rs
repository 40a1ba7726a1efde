//! What came out: counts, bits and distances by role.

use std::collections::BTreeMap;

use super::plan::Plan;
use super::recipe::Role;

/// The tensors of one role.
#[derive(Clone, Debug, PartialEq)]
pub struct RoleReport {
    /// The role.
    pub role: Role,
    /// Tensors, as the model counts them: codes with their scales are one.
    pub n_tensors: u64,
    /// Weights in them.
    pub n_weights: u64,
    /// Bytes of the output.
    pub n_bytes: u64,
    /// √(Σ(output − source)² / Σ source²) of each tensor, averaged by weights. What stays as it is
    /// counts with 0.
    pub relative_rms_error: f64,
}

impl RoleReport {
    /// Scales included.
    pub fn bits_per_weight(&self) -> f64 {
        self.n_bytes as f64 * 8.0 / self.n_weights.max(1) as f64
    }
}

/// What a run has done.
#[derive(Clone, Debug, Default)]
pub struct QuantizeReport {
    /// The family.
    pub family: String,
    /// The default coding.
    pub coding: String,
    /// By role, of what the model runs.
    pub roles: Vec<RoleReport>,
    /// Weights that the model runs.
    pub n_weights: u64,
    /// Of them, scales included.
    pub bits_per_weight: f64,
    /// Size of the source's files of weights.
    pub source_bytes: u64,
    /// Size of the output's.
    pub target_bytes: u64,
    /// Files of weights.
    pub n_shards: usize,
    /// Those that an earlier run had finished.
    pub n_resumed_shards: usize,
    /// Matrices that stay in floats, and why.
    pub floats: Vec<(String, String)>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// Sums by role.
pub(super) struct Tally {
    roles: BTreeMap<Role, Sums>,
    /// Of all tensors, also those that are not run.
    n_bytes: u64,
}

#[derive(Default)]
struct Sums {
    n_tensors: u64,
    n_weights: u64,
    n_bytes: u64,
    /// Σ weights · distance, Σ weights that were measured.
    distance: [f64; 2],
}

impl Tally {
    pub fn of(plan: &Plan) -> Self {
        let mut tally = Self { roles: BTreeMap::new(), n_bytes: 0 };
        for item in plan.shards.iter().flatten() {
            tally.n_bytes += item.n_bytes();
            if let Some(role) = item.role {
                let sums = tally.roles.entry(role).or_default();
                sums.n_tensors += 1;
                sums.n_weights += item.n_weights;
                sums.n_bytes += item.n_bytes();
            }
        }
        tally
    }

    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub fn n_weights(&self) -> u64 {
        self.roles.values().map(|sums| sums.n_weights).sum()
    }

    /// Distances of one shard, by the roles' names.
    pub fn add(&mut self, distances: &BTreeMap<String, [f64; 2]>) {
        for (role, sums) in &mut self.roles {
            if let Some([distance, n_weights]) = distances.get(role.name()) {
                sums.distance[0] += distance;
                sums.distance[1] += n_weights;
            }
        }
    }

    pub fn fill(&self, report: &mut QuantizeReport) {
        let role_report = |role: Role| {
            let sums = self.roles.get(&role)?;
            let [distance, n_measured] = sums.distance;
            Some(RoleReport {
                role,
                n_tensors: sums.n_tensors,
                n_weights: sums.n_weights,
                n_bytes: sums.n_bytes,
                relative_rms_error: distance / n_measured.max(1.0),
            })
        };
        report.roles = Role::ALL.into_iter().filter_map(role_report).collect();
        report.n_weights = self.n_weights();
        let n_bytes = report.roles.iter().map(|role| role.n_bytes).sum::<u64>();
        report.bits_per_weight = n_bytes as f64 * 8.0 / report.n_weights.max(1) as f64;
    }
}
