//! Policies by name.

use super::{Adaptive, Evict, Gdsf, Hazard, Lru, Slru};

/// A policy that can be chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// [`Lru`].
    Lru,
    /// [`Slru`].
    Slru,
    /// [`Gdsf`].
    Gdsf,
    /// [`Hazard`].
    #[default]
    Hazard,
    /// [`Adaptive`].
    Adaptive,
}

impl Policy {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Lru, Self::Slru, Self::Gdsf, Self::Hazard, Self::Adaptive];

    /// What it is called in options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Slru => "slru",
            Self::Gdsf => "gdsf",
            Self::Hazard => "hazard",
            Self::Adaptive => "adaptive",
        }
    }

    /// The policy of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// One that knows no unit yet, for one tier.
    pub fn build(self) -> Box<dyn Evict> {
        match self {
            Self::Lru => Box::new(Lru::new()),
            Self::Slru => Box::new(Slru::new()),
            Self::Gdsf => Box::new(Gdsf::new()),
            Self::Hazard => Box::new(Hazard::new()),
            Self::Adaptive => Box::new(Adaptive::new()),
        }
    }
}
