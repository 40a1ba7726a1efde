//! The cache's words in those of the protocol.

use kvcache::{Boundary, Cause, Match, Tier};
use protocol::{BoundaryKind, CacheMatch, CacheTier, MissCause, RequestId};

/// A seam of a prompt.
pub(crate) fn boundary(seam: &protocol::Boundary) -> Boundary {
    let at = seam.at as usize;
    match seam.kind {
        BoundaryKind::System => Boundary::System(at),
        BoundaryKind::Message => Boundary::Message(at),
        BoundaryKind::Prompt => Boundary::Prompt(at),
        BoundaryKind::Named => Boundary::Named(at),
    }
}

pub(crate) fn n(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// What was found for a request.
pub(crate) fn told(id: RequestId, found: &Match) -> CacheMatch {
    CacheMatch {
        id,
        prompt_tokens: n(found.n_tokens),
        matched_tokens: n(found.matched),
        usable_tokens: n(found.usable),
        tier: match found.tier {
            Tier::Device => CacheTier::Device,
            Tier::Host => CacheTier::Host,
            Tier::Disk => CacheTier::Disk,
        },
        cause: match &found.cause {
            Cause::Complete => MissCause::Complete,
            Cause::Layout => MissCause::StateAtEnd,
            Cause::NoCheckpoint => MissCause::NoCheckpoint,
            Cause::InFlight { .. } => MissCause::InFlight,
            Cause::CostGate { .. } => MissCause::Slower,
            Cause::NoRoom { .. } => MissCause::NoRoom,
            Cause::Evicted { .. } => MissCause::Evicted,
            Cause::Diverged { at, cached, asked } => {
                MissCause::Diverged { at: n(*at), cached: cached.clone(), asked: asked.clone() }
            }
            Cause::NeverSeen { .. } => MissCause::NeverSeen,
        },
    }
}
