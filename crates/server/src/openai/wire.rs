//! Answers in OpenAI's form.

use protocol::CacheMatch;
use serde_json::{Value, json};

use crate::explain;
use crate::generation::{Call, Calls, Finished, Reason, TokenLogprob};
use crate::http::new_id;

/// Why an answer ended. A call that the request left no choice about is the end of the answer, and
/// nothing that the model decided on.
pub fn finish_reason(reason: Reason, calls: &Calls) -> &'static str {
    match (reason, calls) {
        (Reason::Length, _) => "length",
        (Reason::Calls, Calls::Free | Calls::Strict | Calls::Any) => "tool_calls",
        (Reason::Calls, Calls::Named(_)) | (Reason::Stop | Reason::StopString(_), _) => "stop",
    }
}

/// The tokens of all answers to one prompt or several; each prompt counts once.
pub fn usage(finished: &[Finished], n_answers: usize) -> Value {
    let firsts = finished.iter().step_by(n_answers.max(1));
    let (prompt, cached) = firsts.fold((0u64, 0u64), |(prompt, cached), finished| {
        let usage = finished.usage;
        (prompt + u64::from(usage.prompt_tokens), cached + u64::from(usage.cached_tokens))
    });
    let new: u64 = finished.iter().map(|finished| u64::from(finished.usage.new_tokens)).sum();
    let reasoning: u64 = finished.iter().map(|f| u64::from(f.reasoning_tokens)).sum();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    })
}

/// Where the time of the first answer went.
pub fn timings(finished: &Finished) -> Value {
    let timings = finished.timings;
    json!({
        "load_ms": finished.load_ms,
        "queue_ms": timings.queue_ms,
        "prefill_ms": timings.prefill_ms,
        "decode_ms": timings.decode_ms,
    })
}

/// What the cache had of a prompt, and why not more.
pub fn cache(found: Option<&CacheMatch>) -> Value {
    let Some(found) = found else { return Value::Null };
    json!({
        "matched_tokens": found.matched_tokens,
        "usable_tokens": found.usable_tokens,
        "tier": (found.usable_tokens > 0).then(|| explain::tier(found.tier)),
        "miss": explain::cause(&found.cause),
    })
}

/// Log probabilities of chat completions.
pub fn logprobs(logprobs: &[TokenLogprob]) -> Value {
    json!({"content": token_logprobs(logprobs), "refusal": null})
}

/// Log probabilities, one object for each token.
pub fn token_logprobs(logprobs: &[TokenLogprob]) -> Vec<Value> {
    let one = |logprob: &TokenLogprob| {
        json!({
            "token": logprob.text(),
            "logprob": logprob.logprob,
            "bytes": logprob.bytes,
        })
    };
    logprobs
        .iter()
        .map(|logprob| {
            let mut object = one(logprob);
            object["top_logprobs"] = logprob.top.iter().map(one).collect();
            object
        })
        .collect()
}

/// A call of a tool.
pub fn call(call: &Call) -> Value {
    json!({
        "id": call.id.clone().unwrap_or_else(|| new_id("call")),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    })
}
