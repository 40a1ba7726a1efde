//! What `/openapi.json` says of this API's answers, whole and in streams.

use serde_json::{Value, json};

use crate::document::schema::{
    all, amount, answer, count, integer, list, named, nullable, one_of, only, text, word,
};

/// Schemas by their names.
pub fn answers() -> Value {
    json!({
        "OpenAiError": error(),
        "Model": answer(json!({
            "id": text(), "object": only("model"), "created": count(),
            "owned_by": only("offshoot"), "context_length": nullable(count()),
            "modalities": only(json!(["text"])),
        })),
        "ModelList": answer(json!({"object": only("list"), "data": list(named("Model"))})),
        "ChatCompletion": whole("chat.completion", json!({
            "index": count(), "message": message(), "logprobs": nullable(named("Logprobs")),
            "finish_reason": finish_reason(),
        })),
        "ChatCompletionEvent": event("chat.completion.chunk", json!({
            "index": count(), "delta": delta(), "logprobs": nullable(named("Logprobs")),
            "finish_reason": nullable(finish_reason()),
        })),
        "Completion": whole("text_completion", json!({
            "index": count(), "text": text(), "logprobs": nullable(named("CompletionLogprobs")),
            "finish_reason": finish_reason(),
        })),
        "CompletionEvent": event("text_completion", json!({
            "index": count(), "text": text(), "logprobs": nullable(named("CompletionLogprobs")),
            "finish_reason": nullable(finish_reason()),
        })),
        "Call": answer(call()),
        "Logprobs": logprobs(),
        "CompletionLogprobs": answer(json!({
            "tokens": list(text()), "token_logprobs": list(logprob()),
            "top_logprobs": list(json!({"type": "object", "additionalProperties": logprob()})),
            "text_offset": list(count()),
        })),
        "Usage": answer(json!({
            "prompt_tokens": count(), "completion_tokens": count(), "total_tokens": count(),
            "prompt_tokens_details": answer(json!({"cached_tokens": count()})),
            "completion_tokens_details": answer(json!({"reasoning_tokens": count()})),
        })),
        "Timings": answer(json!({
            "load_ms": amount(), "queue_ms": amount(), "prefill_ms": amount(),
            "decode_ms": amount(),
        })),
        "Cache": answer(json!({
            "matched_tokens": count(), "usable_tokens": count(), "tier": nullable(tier()),
            "miss": miss(),
        })),
    })
}

/// Tiers of the cache.
pub fn tier() -> Value {
    word(&["device", "host", "disk"])
}

/// Why not more was reused.
pub fn miss() -> Value {
    word(&[
        "complete",
        "state_at_end",
        "no_checkpoint",
        "in_flight",
        "slower",
        "no_room",
        "evicted",
        "diverged",
        "never_seen",
    ])
}

/// A log probability; none of a token is as unlikely as minus infinity, which JSON cannot say.
pub fn logprob() -> Value {
    json!({"type": ["number", "null"]})
}

fn error() -> Value {
    let kinds = word(&[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "rate_limit_error",
        "server_error",
    ]);
    let codes = word(&[
        "request_too_large",
        "invalid_api_key",
        "model_not_found",
        "not_found",
        "rate_limit_exceeded",
        "unavailable",
        "previous_response_not_found",
    ]);
    answer(json!({"error": answer(json!({
        "message": text(), "type": kinds, "param": nullable(text()), "code": nullable(codes),
    }))}))
}

fn finish_reason() -> Value {
    word(&["stop", "length", "tool_calls"])
}

fn head(object: &str, choice: &Value) -> Value {
    json!({
        "id": text(), "object": only(object), "created": count(), "model": text(),
        "choices": list(answer(choice.clone())), "timings?": named("Timings"),
        "cache?": nullable(named("Cache")),
    })
}

fn whole(object: &str, choice: Value) -> Value {
    let mut head = head(object, &choice);
    head["usage"] = named("Usage");
    answer(head)
}

/// One of a stream, which ends with the text `[DONE]`.
fn event(object: &str, choice: Value) -> Value {
    let mut head = head(object, &choice);
    head["usage?"] = nullable(named("Usage"));
    one_of([answer(head), named("OpenAiError")])
}

fn message() -> Value {
    answer(json!({
        "role": only("assistant"), "content": nullable(text()), "refusal": {"type": "null"},
        "reasoning_content?": text(), "tool_calls?": list(named("Call")),
    }))
}

fn delta() -> Value {
    let mut call = call();
    call["index"] = count();
    answer(json!({
        "role?": only("assistant"), "content?": text(), "reasoning_content?": text(),
        "tool_calls?": list(answer(call)),
    }))
}

fn call() -> Value {
    json!({
        "id": text(), "type": only("function"),
        "function": answer(json!({"name": text(), "arguments": text()})),
    })
}

fn logprobs() -> Value {
    answer(json!({"content": token_logprobs(), "refusal": {"type": "null"}}))
}

/// Bytes as numbers.
pub fn bytes() -> Value {
    list(integer(0, u8::MAX.into()))
}

/// Tokens and how likely they and others were.
pub fn token_logprobs() -> Value {
    let one = json!({
        "token": text(), "logprob": logprob(), "bytes": bytes(),
    });
    let more = json!({"top_logprobs": list(answer(one.clone()))});
    list(answer(all([one, more])))
}
