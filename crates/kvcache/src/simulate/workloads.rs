//! Synthetic traces of blocks: what a policy that was tuned to one recording would lose on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::agents::AgentTrace;
use super::draws::Draws;
use super::trace::Trace;

/// A kind of trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Questions about documents whose popularity is Zipf's: 1,000 documents of 8 to 64 blocks.
    Documents,
    /// 400 conversations at a time that grow by a few blocks a turn, under one of 8 system prompts.
    Chat,
    /// The same, and between any two turns a document that nobody asks for again.
    Flood,
    /// Coding agents, in pieces of at most 1,024 tokens.
    Agents,
    /// A loop over somewhat more than fits: what LRU never hits.
    Loop,
}

impl Workload {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Documents, Self::Chat, Self::Flood, Self::Agents, Self::Loop];

    /// A trace of about `n_requests` requests.
    pub fn generate(self, n_requests: usize, seed: u64) -> Trace {
        let mut trace = Trace::new();
        let mut draws = Draws::new(seed);
        let mut names = Names(0);
        match self {
            Self::Documents => documents(&mut trace, &mut draws, &mut names, n_requests),
            Self::Chat => chat(&mut trace, &mut draws, &mut names, n_requests, false),
            Self::Flood => chat(&mut trace, &mut draws, &mut names, n_requests, true),
            Self::Agents => {
                let n_agents = 64;
                let (_, requests) =
                    AgentTrace { n_agents, n_requests, strips_reasoning: true, seed }.generate();
                for request in requests {
                    push(&mut trace, request.prompt.iter().map(|&node| u64::from(node)).collect());
                }
            }
            Self::Loop => {
                let documents: Vec<Vec<u64>> = (0..200).map(|_| names.take(20)).collect();
                for document in documents.iter().cycle().take(n_requests) {
                    push(&mut trace, document.clone());
                }
            }
        }
        trace
    }
}

/// Blocks that were not there before.
struct Names(u64);

impl Names {
    fn take(&mut self, n: usize) -> Vec<u64> {
        let first = self.0;
        self.0 += n as u64;
        (first..self.0).collect()
    }
}

fn push(trace: &mut Trace, ids: Vec<u64>) {
    trace.push(&ids).expect("a synthetic trace has fewer blocks than tokens can name");
}

/// A whole number in `from..to`.
fn between(draws: &mut Draws, from: usize, to: usize) -> usize {
    from + (draws.uniform() * (to - from) as f64) as usize
}

fn documents(trace: &mut Trace, draws: &mut Draws, names: &mut Names, n_requests: usize) {
    const N_DOCUMENTS: usize = 1000;
    const ZIPF_EXPONENT: f64 = 0.9;
    let documents: Vec<Vec<u64>> =
        (0..N_DOCUMENTS).map(|_| names.take(between(draws, 8, 65))).collect();
    let weights = (1..=N_DOCUMENTS).map(|rank| (rank as f64).powf(-ZIPF_EXPONENT));
    let cumulated: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let total = cumulated.last().copied().unwrap_or(1.0);
    for _ in 0..n_requests {
        let at = draws.uniform() * total;
        let document = &documents[cumulated.partition_point(|&sum| sum < at).min(N_DOCUMENTS - 1)];
        let question = names.take(between(draws, 1, 4));
        push(trace, [document.as_slice(), &question].concat());
    }
}

struct Conversation {
    /// Whole blocks so far.
    history: Vec<u64>,
    n_turns: usize,
}

fn chat(
    trace: &mut Trace,
    draws: &mut Draws,
    names: &mut Names,
    n_requests: usize,
    is_flooded: bool,
) {
    let systems: Vec<Vec<u64>> = (0..8).map(|_| names.take(3)).collect();
    let open = |draws: &mut Draws| Conversation {
        history: systems[between(draws, 0, 8)].clone(),
        n_turns: if draws.uniform() < 0.4 { 1 } else { draws.log_normal(4.0, 0.8) as usize + 1 },
    };
    let mut conversations: Vec<Conversation> = (0..400).map(|_| open(draws)).collect();
    let mut arrivals: BinaryHeap<_> = (0..conversations.len())
        .map(|idx| (Reverse((draws.uniform() * 600e3) as u64), idx))
        .collect();
    for _ in 0..n_requests {
        let Some((Reverse(now_ms), idx)) = arrivals.pop() else { return };
        if conversations[idx].n_turns == 0 {
            conversations[idx] = open(draws);
        }
        let conversation = &mut conversations[idx];
        conversation.n_turns -= 1;
        conversation.history.extend(names.take(draws.log_normal(2.0, 0.9).min(60.0) as usize));
        // The last block is not full: the next turn has another in its place.
        push(trace, [conversation.history.as_slice(), &names.take(1)].concat());
        let gap_s = draws.log_normal(90.0, 1.0);
        arrivals.push((Reverse(now_ms + (gap_s * 1e3) as u64), idx));
        if is_flooded {
            let n_blocks = between(draws, 5, 40);
            push(trace, names.take(n_blocks));
        }
    }
}
