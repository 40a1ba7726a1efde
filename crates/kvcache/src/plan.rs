//! Where to take checkpoints in a prompt: where conversations part, never at a distance that only
//! this request has. Rungs inside long stretches stand at multiples counted from 0, so that all
//! conversations with the same beginning have the same ones.

use crate::evict::Class;
use crate::reason::Match;

/// The least distance between rungs of the ladder, a power of two.
const MIN_STRIDE: usize = 2048;
/// Tokens that are worth a checkpoint at the end of a prompt that was asked again: fewer take about
/// as long as one.
const MIN_AGAIN: usize = 64;

/// Where the caller's prompt has a seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// The system prompt and the tools end.
    System(usize),
    /// A message of a user or a tool ends.
    Message(usize),
    /// The prompt ends but for the header that opens the answer.
    Prompt(usize),
    /// The client asked for it.
    Named(usize),
}

impl Boundary {
    fn capture(self) -> Capture {
        let (at, class) = match self {
            Boundary::System(at) => (at, Class::System),
            Boundary::Message(at) | Boundary::Prompt(at) | Boundary::Named(at) => {
                (at, Class::TurnEnd)
            }
        };
        Capture { at, class }
    }
}

/// A checkpoint to take when a sequence has come to `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// Tokens from the beginning.
    pub at: usize,
    /// Why there.
    pub class: Class,
}

/// The checkpoints to take while computing what `found` leaves of a prompt, in order of position.
/// Under pressure only the branch point and the newest turn's end are worth their bytes; the end
/// of the output is the caller's to capture in either case.
pub fn plan_captures(found: &Match, boundaries: &[Boundary], is_tight: bool) -> Vec<Capture> {
    let is_ahead = |c: &Capture| c.at > found.usable && c.at < found.n_tokens;
    let seams = boundaries.iter().map(|b| b.capture()).filter(is_ahead);
    let mut captures = seams.collect::<Vec<_>>();
    captures.sort_by_key(|c| c.at);
    if is_tight {
        captures.drain(..captures.len().saturating_sub(1));
    }
    // What parted here once will again: the first to notice pays, and later ones resume. What is
    // only remembered counts too: it was asked for twice.
    // Of a prompt that is known as a whole the last token is computed again for what follows it.
    let last = found.n_tokens.saturating_sub(1);
    let is_new = found.seen <= last;
    let branch = Capture { at: found.seen.min(last), class: Class::BranchPoint };
    let before = captures.last().map_or(found.usable, |seam| seam.at);
    let pays = |c: &Capture| is_new || c.at >= before + MIN_AGAIN;
    captures.extend(Some(branch).filter(is_ahead).filter(pays));
    if !is_tight {
        let mut from = found.usable;
        let mut ends = captures.iter().map(|c| c.at).collect::<Vec<_>>();
        ends.push(found.n_tokens);
        ends.sort_unstable();
        for to in ends {
            captures.extend(ladder(from, to));
            from = to;
        }
    }
    captures.sort_by_key(|c| (c.at, c.class == Class::Interior));
    captures.dedup_by_key(|c| c.at);
    captures
}

/// Rungs strictly between `from` and `to`, denser towards both ends: for every power of two, its
/// first and its last multiple. So a rewind into the stretch costs at most about half of it.
fn ladder(from: usize, to: usize) -> impl Iterator<Item = Capture> {
    let strides = std::iter::successors(Some(MIN_STRIDE), |s| s.checked_mul(2));
    let rungs = strides
        .take_while(move |s| *s < to)
        .flat_map(move |stride| [(from / stride + 1) * stride, (to - 1) / stride * stride]);
    let is_inside = move |at: &usize| *at >= from + MIN_STRIDE && *at + MIN_STRIDE / 2 <= to;
    rungs.filter(is_inside).map(|at| Capture { at, class: Class::Interior })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{N_TIERS, Ns, Tier};
    use crate::reason::Cause;

    fn found(n_tokens: usize, usable: usize, matched: usize, seen: usize) -> Match {
        Match {
            ns: Ns(0),
            n_tokens,
            seen,
            matched,
            by_tier: [matched; N_TIERS],
            usable,
            tier: Tier::Device,
            cause: Cause::Complete,
            candidates: Vec::new(),
        }
    }

    fn check(found: Match, boundaries: &[Boundary], is_tight: bool, expected: &[usize]) {
        let captures = plan_captures(&found, boundaries, is_tight);
        let positions = captures.iter().map(|c| c.at).collect::<Vec<_>>();
        assert_eq!(positions, expected, "{found:?} {boundaries:?} {is_tight}");
    }

    #[test]
    fn seams_ahead_are_captured_and_under_pressure_only_the_newest() {
        let seams = [Boundary::Prompt(900), Boundary::System(100), Boundary::Message(500)];
        check(found(1000, 0, 0, 0), &seams, false, &[100, 500, 900]);
        check(found(1000, 100, 100, 100), &seams, false, &[500, 900]);
        check(found(1000, 0, 0, 0), &seams, true, &[900]);
        check(found(1000, 900, 900, 900), &seams, false, &[]);
        check(found(900, 0, 0, 0), &seams, false, &[100, 500]);
        check(found(0, 0, 0, 0), &seams, false, &[]);
    }

    #[test]
    fn where_a_prompt_parts_from_what_is_known_is_captured_on_its_second_sighting() {
        check(found(1000, 0, 123, 123), &[], false, &[123]);
        check(found(1000, 0, 123, 123), &[], true, &[123]);
        check(found(1000, 0, 0, 321), &[], true, &[321]);
        check(found(1000, 123, 123, 123), &[], false, &[]);
    }

    #[test]
    fn a_prompt_that_is_asked_again_is_captured_before_its_last_token() {
        check(found(1000, 0, 1000, 1000), &[], false, &[999]);
        check(found(1000, 900, 1000, 1000), &[], true, &[999]);
        check(found(1000, 990, 1000, 1000), &[], false, &[]);
        check(found(1000, 0, 1000, 1000), &[Boundary::Prompt(996)], false, &[996]);
        check(found(1000, 999, 1000, 1000), &[], false, &[]);
        check(found(1, 0, 1, 1), &[], false, &[]);
        check(found(0, 0, 0, 0), &[], false, &[]);
    }

    #[test]
    fn rungs_depend_on_positions_from_zero_and_not_on_the_prompts_end() {
        check(found(10_000, 0, 0, 0), &[], false, &[2048, 4096, 8192]);
        let positions = |n| {
            let captures = plan_captures(&found(n, 0, 0, 0), &[], false);
            captures.iter().map(|c| c.at).collect::<Vec<_>>()
        };
        let (long, longer) = (positions(100_000), positions(100_777));
        assert_eq!(long, longer);
        assert!(long.iter().all(|at| at.is_multiple_of(MIN_STRIDE)));
        assert!(long.len() <= 12, "{long:?}");
    }

    #[test]
    fn a_rewind_into_a_stretch_costs_about_half_of_it_at_most() {
        for n in [5_000, 33_000, 100_000, 131_072] {
            for from in [0, 777, 20_000] {
                let captures = plan_captures(&found(from + n, from, from, from), &[], false);
                let at = std::iter::once(from).chain(captures.iter().map(|c| c.at));
                let ends = captures.iter().map(|c| c.at).chain([from + n]);
                let longest = at.zip(ends).map(|(a, b)| b - a).max().expect("one stretch");
                assert!(longest <= n / 2 + 2 * MIN_STRIDE, "{from} {n}: {longest}");
            }
        }
    }
}
