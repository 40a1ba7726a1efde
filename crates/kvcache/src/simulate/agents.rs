//! A closed loop of coding agents: each sends the next request of its conversation when the answer
//! to the last one, and what its tool or its user took, is over.
//!
//! Distributions follow the published statistics of TraceLab's agent sessions: many short sessions
//! and few long ones, tool results of seconds with a long tail, people who come back after minutes
//! or hours, context that is compacted at a cap, turns that rewind, reasoning that the template
//! drops when the user speaks again. `LN(median, sigma)` below is log-normal. The arithmetic and
//! the order of draws are part of the definition: figures of one seed compare only if they stay.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::draws::Draws;
use super::prefixes::{End, NodeIdx, Prefixes, Span};

/// Lengths of the system prompts, in tokens; each session has one of them.
const SYSTEM_TOKENS: [u32; 3] = [9_000, 14_000, 17_000];
/// Above this a conversation is compacted to its system prompt and a summary.
const CONTEXT_CAP_TOKENS: u32 = 120_000;
const SUMMARY_TOKENS: u32 = 5_000;
/// The generation header: the same tokens everywhere.
const HEADER: Span = Span { name: 7, n_tokens: 4, end: End::Header };
const DECODE_TOKENS_PER_S: f64 = 40.0;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct AgentTrace {
    /// Conversations that are open at any time.
    pub n_agents: usize,
    /// Requests in all.
    pub n_requests: usize,
    /// Whether the template drops reasoning of earlier turns.
    pub strips_reasoning: bool,
    /// Of the random draws.
    pub seed: u64,
}

/// One request and its answer.
#[derive(Debug)]
pub struct AgentRequest {
    /// Arrival, seconds.
    pub at_s: f64,
    /// The prompt.
    pub prompt: Vec<NodeIdx>,
    /// The prompt and the answer.
    pub full: Vec<NodeIdx>,
    /// The answer calls a tool; else it is a person's turn.
    pub awaits_tool: bool,
}

struct Session {
    history: Vec<Span>,
    /// Spans of the history that earlier turns left.
    turn_start: usize,
    /// Requests left in this turn.
    n_steps: i32,
    /// Turns left.
    n_turns: i32,
}

struct Generator {
    trace: AgentTrace,
    draws: Draws,
    n_names: u64,
    prefixes: Prefixes,
}

impl Generator {
    fn name(&mut self) -> u64 {
        self.n_names += 1;
        self.n_names
    }

    fn session(&mut self) -> Session {
        let system = (self.draws.uniform() * 3.0) as usize;
        let name = self.name();
        let project = self.draws.log_normal(2000.0, 0.6).clamp(200.0, 12_000.0) as u32;
        let history = vec![
            Span { name: 1 + system as u64, n_tokens: SYSTEM_TOKENS[system], end: End::System },
            Span { name, n_tokens: project, end: End::Turn },
        ];
        let n_turns = self.draws.count(0.5, 1.2, 150.0);
        Session { history, turn_start: 0, n_steps: 0, n_turns }
    }

    /// What the user, or a tool, adds to the history.
    fn extend(&mut self, session: &mut Session) {
        let is_user = session.n_steps <= 0;
        let n_tokens: u32 = session.history.iter().map(|span| span.n_tokens).sum();
        if n_tokens > CONTEXT_CAP_TOKENS {
            let summary = Span { name: self.name(), n_tokens: SUMMARY_TOKENS, end: End::Turn };
            session.history.truncate(1);
            session.history.push(summary);
            session.turn_start = 2;
        }
        if is_user {
            self.user_speaks(session);
        } else {
            let n_tokens = self.draws.log_normal(480.0, 1.35).clamp(20.0, 20_000.0) as u32;
            let name = self.name() * 2;
            session.history.push(Span { name, n_tokens, end: End::Nothing });
        }
    }

    fn user_speaks(&mut self, session: &mut Session) {
        let history = &mut session.history;
        if self.trace.strips_reasoning {
            let turn = history.split_off(session.turn_start);
            // Reasoning is what has an odd name and no end.
            history.extend(turn.iter().filter(|s| s.name % 2 == 0 || s.end != End::Nothing));
        }
        if self.draws.uniform() < 0.05 && history.len() > 6 {
            let kept = history.len() as f64 * (0.5 + 0.5 * self.draws.uniform());
            history.truncate((kept as usize).max(2));
        }
        let n_tokens = self.draws.log_normal(120.0, 1.2).clamp(5.0, 8000.0) as u32;
        history.push(Span { name: self.name(), n_tokens, end: End::Turn });
        session.turn_start = session.history.len();
        session.n_turns -= 1;
        session.n_steps = self.draws.count(0.45, 1.0, 120.0);
    }

    /// Asks and answers: the request, and when the agent comes again.
    fn request(&mut self, session: &mut Session, at_s: f64) -> (AgentRequest, f64) {
        session.history.push(HEADER);
        let prompt = self.prefixes.add(&session.history);
        let n_output = self.draws.log_normal(214.0, 1.0).clamp(8.0, 6000.0) as u32;
        let n_reasoning = if self.trace.strips_reasoning { (n_output / 2).max(1) } else { 0 };
        if n_reasoning > 0 {
            let name = self.name() * 2 + 1;
            session.history.push(Span { name, n_tokens: n_reasoning, end: End::Nothing });
        }
        let name = self.name() * 2;
        let n_tokens = n_output - n_reasoning;
        session.history.push(Span { name, n_tokens, end: End::Output });
        let full = self.prefixes.add(&session.history);
        session.n_steps -= 1;
        let awaits_tool = session.n_steps > 0;
        let service_s = 1.0 + f64::from(n_output) / DECODE_TOKENS_PER_S;
        let gap_s = if awaits_tool {
            self.draws.log_normal(0.35, 2.6).clamp(0.01, 900.0)
        } else {
            let longest = if session.n_turns <= 0 { 60.0 } else { 36_000.0 };
            self.draws.log_normal(86.0, 2.1).clamp(2.0, 36_000.0).min(longest)
        };
        (AgentRequest { at_s, prompt, full, awaits_tool }, at_s + service_s + gap_s)
    }
}

impl AgentTrace {
    /// The requests in order of arrival, and all their prefixes. Equal for equal arguments on one
    /// machine; logarithms and cosines may differ in the last bit between libraries.
    pub fn generate(self) -> (Prefixes, Vec<AgentRequest>) {
        let prefixes = Prefixes::new();
        let draws = Draws::new(self.seed);
        let mut generator = Generator { trace: self, draws, n_names: 1000, prefixes };
        let micros = |seconds: f64| (seconds * 1e6) as u64;
        let mut sessions = Vec::new();
        let mut arrivals = BinaryHeap::new();
        for agent in 0..self.n_agents {
            sessions.push(generator.session());
            arrivals.push((Reverse(micros(generator.draws.uniform() * 600.0)), agent));
        }
        let mut requests = Vec::new();
        while requests.len() < self.n_requests
            && let Some((Reverse(at), agent)) = arrivals.pop()
        {
            let session = &mut sessions[agent];
            if session.n_turns <= 0 {
                *session = generator.session();
            }
            generator.extend(session);
            let (request, next_s) = generator.request(session, at as f64 / 1e6);
            requests.push(request);
            arrivals.push((Reverse(micros(next_s)), agent));
        }
        (generator.prefixes, requests)
    }
}
