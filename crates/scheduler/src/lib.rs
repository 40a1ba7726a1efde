//! Which requests compute what in the next step. A step is one token for each request that
//! answers, then slices of prompts up to a budget of tokens; before that, requests begin as far as
//! there are rows and room, and others are paused where room is short. It has never seen a token,
//! an array, a thread or a clock: time is counted in computed tokens, and what it must know or
//! cause of the cache goes through [`Seats`]. A [`Step`] lists only what is begun and reserved, so
//! that all that can fail has happened before anything is computed.
//!
//! Whose turn it is. Keys (callers) take turns by tokens computed for them, decoded ones included:
//! the one with the fewest is next. This is deficit round robin without the rounds, whose length
//! would grow with deficits; the virtual time of a fluid server that gives every key the same says
//! where a key starts that had nothing to compute (start-time fair queueing, Goyal et al. 1996; the
//! same over tokens: Sheng et al. 2024). Of one key, requests go in the order in which
//! 1 + wait/work comes to 1 + [`AGEING`], work being uncached tokens and wait all tokens computed
//! since arrival: short ones first, none overtaken for ever, in an order that time keeps.
//!
//! Invariants; [`Scheduler::check`] recounts everything and asserts each under its number.
//! I1 A request is in one place: queued in its key's order, held by a seated one, or seated.
//! I2 Seated are no more than `max_rows`, of a key no more than `max_rows_per_key`; those that
//!    never began are no more than `max_waiting` and `max_waiting_per_key`.
//! I3 A held request waits for tokens that its holder, which is seated, has not computed yet, and
//!    none is held more than [`MAX_HOLDS`] times between two beginnings.
//! I4 A key's account counts its requests; keys without any are remembered while they are ahead of
//!    virtual time, and no more than a bound of them.
//! I5 No account is ahead of virtual time by more than the credit; one that is further behind is
//!    brought up to it when it is served.
//! I6 A seated request has computed no more than it may, and its next slice ends at its next break
//!    point: a multiple of the chunk, the prompt's end, or its last known token.
//!
//! Guarantees, which `examples/fuzz` asserts over the real `kvcache` (G1 to G5) and tests measure.
//! G1 Every request ends, at the latest when so many tokens were computed since it came: for each
//!    key as many as are ahead of it in its own, as may overtake it ([`AGEING`] times its prompt,
//!    and the queue), as it needs itself, and twice the credit; besides, whole steps of others
//!    while it answers. What pauses made others compute again counts as computed.
//! G2 A step computes nothing only if nothing is there to compute, if all wait for bytes on their
//!    way, or for a few steps until it is clear that nobody fits.
//! G3 Where a prompt is cut depends on its length, on where the cache resumes it, and on whether
//!    anybody answered when it began, on nothing else that runs; on the first two alone if
//!    there are no small chunks.
//! G4 A step has no more slice tokens than its budget, one slice of a request at most, and every
//!    answering request for which there is room: no prompt delays an answer by more than a step.
//!    While anybody answers, small chunks are the budget, or one slice of who began before.
//! G5 Want of room pauses only requests that are younger than the one that wants it, so that the
//!    eldest always goes on; one that is alone begins anew. For another key's turn only who has
//!    gained four chunks makes way, if a lower tier keeps all of it. A request that was paused
//!    before it gained a token begins again only where all it may need has room.
//! G6 Of two keys that both have a slice ready all the time, neither gets more than two steps'
//!    tokens ahead of the other. The slice of a key that had nothing to compute comes after at most
//!    one slice of each other key, and of what that is behind by.

mod check;
mod fair;
mod plan;
mod request;
mod scheduler;

pub use plan::{Ahead, Begin, Look, Seats, Slice, Step};
pub use request::{Arrival, Id, Key};
pub use scheduler::{Limits, QueueFull, Scheduler};

/// Of one key, the requests' order is that in which wait comes to so many times their work.
pub const AGEING: u64 = 4;
/// How often a request waits for what another is computing, before it computes it itself.
pub const MAX_HOLDS: u32 = 4;
