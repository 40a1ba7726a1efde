//! `offshoot cache simulate`: what the prefix cache is worth.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser};
use kvcache::Policy;
use kvcache::simulate::replay::{Figures, replay};
use kvcache::simulate::trace::Trace;
use serde::Deserialize;
use serde_json::json;

use crate::failure::{Failure, Result};
use crate::output::Output;

/// Replay a trace of requests through the cache's own code and count hits
#[derive(Debug, Args)]
pub struct Simulate {
    /// Trace in Mooncake's format: one JSON object a line, with `hash_ids`, one id per block of the
    /// prompt; `-` is standard input
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Blocks that the cache may hold
    #[arg(long, value_name = "N")]
    budget_blocks: u64,
    /// What goes first when room is short
    #[arg(
        long,
        value_name = "NAME",
        default_value = Policy::default().name(),
        value_parser = policy()
    )]
    policy: Policy,
    /// Print a JSON object
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
}

fn policy() -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(Policy::ALL.map(Policy::name))
        .map(|name| Policy::from_name(&name).expect("only names of policies are possible"))
}

/// What is read of a line.
#[derive(Debug, Deserialize)]
struct Request {
    hash_ids: Vec<u64>,
}

impl Simulate {
    /// Runs the command.
    pub fn execute(self, out: &mut Output) -> Result<()> {
        let trace = if self.trace == Path::new("-") {
            read(std::io::stdin().lock(), "standard input")?
        } else {
            let name = self.trace.display().to_string();
            let file = File::open(&self.trace)
                .map_err(|error| Failure::new(format!("cannot open {name}: {error}")))?;
            read(BufReader::new(file), &name)?
        };
        let figures = replay(&trace, self.budget_blocks, self.policy.build());
        if self.json {
            return out.line(&self.object(&figures).to_string());
        }
        out.write(&lines(&figures))
    }

    fn object(&self, f: &Figures) -> serde_json::Value {
        json!({
            "policy": self.policy.name(),
            "budget_blocks": self.budget_blocks,
            "requests": f.n_requests,
            "blocks": f.n_blocks,
            "hits": f.n_hits,
            "hit_ratio": f.hit_ratio(),
            "min_hit_ratio": f.min_hit_ratio(),
        })
    }
}

/// What a person reads.
fn lines(f: &Figures) -> String {
    format!(
        "requests       {}\nblocks         {}\nhits           {}\nhit_ratio      {:.4}\n\
         min_hit_ratio  {:.4}\n",
        f.n_requests,
        f.n_blocks,
        f.n_hits,
        f.hit_ratio(),
        f.min_hit_ratio()
    )
}

/// How files packed by xz, gzip and zstd begin.
const MAGICS: [&[u8]; 3] = [b"\xfd7zXZ", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"];

/// All requests of a trace; `name` is where it comes from.
fn read(mut source: impl BufRead, name: &str) -> Result<Trace> {
    let unreadable = |error| Failure::new(format!("cannot read {name}: {error}"));
    let begin = source.fill_buf().map_err(unreadable)?;
    if MAGICS.iter().any(|magic| begin.starts_with(magic)) {
        return Err(Failure::new(format!("{name} is compressed"))
            .with_hint("unpack it on the way: xz -dc FILE | offshoot cache simulate --trace -"));
    }
    let mut trace = Trace::new();
    for (number, line) in (1..).zip(source.lines()) {
        let line = line.map_err(unreadable)?;
        if line.trim().is_empty() {
            continue;
        }
        let of_line = |problem: String| Failure::new(format!("{name}, line {number}: {problem}"));
        let request: Request = serde_json::from_str(&line).map_err(|error| {
            of_line(error.to_string())
                .with_hint("a line is a JSON object with \"hash_ids\": [numbers]")
        })?;
        trace.push(&request.hash_ids).map_err(|error| of_line(error.to_string()))?;
    }
    if trace.requests().is_empty() {
        return Err(Failure::new(format!("{name} has no requests")));
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_and_what_is_none_is_refused_with_its_line() {
        let trace =
            read(&b"{\"hash_ids\": [4, 7], \"timestamp\": 3}\n\n{\"hash_ids\":[4]}\n"[..], "t");
        assert_eq!(trace.unwrap().n_blocks(), 3);
        for (text, problem) in [
            (&b"{\"hash_ids\": [1]}\n{\"ids\": [1]}\n"[..], "t, line 2: missing field `hash_ids`"),
            (b"{\"hash_ids\": [-1]}", "t, line 1: invalid value: integer `-1`"),
            (b"hello", "t, line 1: expected value"),
            (b"\n \n", "t has no requests"),
            (b"\xfd7zXZ\0\0", "t is compressed"),
        ] {
            let message = read(text, "t").unwrap_err().message().to_owned();
            assert!(message.starts_with(problem), "{message}");
        }
    }
}
