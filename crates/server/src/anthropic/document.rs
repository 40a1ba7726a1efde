//! What `/openapi.json` says of this API.

use serde_json::{Value, json};

use super::conversation::MIN_BUDGET_TOKENS;
use crate::document::schema::{
    absent, all, answer, any, boolean, count, list, list_of, named, nullable, number, one_of, only,
    open, present, request, text, where_one, word,
};
use crate::openai::{cache_salt, stops, tool_name, u32_from};
use crate::sampling;

/// Schemas by their names.
pub fn schemas() -> Value {
    all([requests(), answers(), events()])
}

fn requests() -> Value {
    let own = json!({
        "max_tokens": u32_from(1),
        "stream?": boolean(),
        "stop_sequences?": stops(),
        "temperature?": number(&sampling::TEMPERATURES),
        "top_p?": number(&sampling::TOP_PS),
        "top_k?": u32_from(0),
        "cache_salt?": cache_salt(),
        "metadata?": request(json!({"user_id?": any()})),
        "service_tier?": word(&["auto", "standard_only"]),
    });
    json!({
        "MessagesRequest": one_format(request(all([own, conversation()]))),
        "CountTokensRequest": one_format(request(conversation())),
        "Turn": turn(),
        "TextBlock": text_block(),
        "CacheMark": request(json!({
            "type": only("ephemeral"), "ttl?": word(&["5m", "1h"]),
            "scope?": word(&["global", "org"]),
        })),
        "CustomTool": request(json!({
            "type?": only("custom"), "name": tool_name(), "description?": text(),
            "input_schema": open(), "strict?": boolean(), "defer_loading?": only(false),
            "allowed_callers?": only(json!(["direct"])), "eager_input_streaming?": any(),
            "cache_control?": named("CacheMark"),
        })),
        "CustomToolChoice": one_of([
            request(json!({
                "type": word(&["auto", "none", "any"]), "disable_parallel_tool_use?": boolean(),
            })),
            request(json!({
                "type": only("tool"), "name": text(), "disable_parallel_tool_use?": boolean(),
            })),
        ]),
        "Thinking": one_of([
            request(json!({
                "type": only("enabled"), "display?": only("summarized"),
                "budget_tokens": u32_from(MIN_BUDGET_TOKENS.into()),
            })),
            request(json!({"type": only("adaptive"), "display?": only("summarized")})),
            request(json!({"type": only("disabled")})),
        ]),
        "OutputFormat": request(json!({"type": only("json_schema"), "schema": open()})),
    })
}

/// The fields that messages and the counting of their tokens share.
fn conversation() -> Value {
    let edit = request(json!({"type?": only("clear_thinking_20251015"), "keep?": only("all")}));
    json!({
        "model?": text(),
        "messages": list_of(named("Turn"), 1, None),
        "system?": one_of([text(), list(named("TextBlock"))]),
        "tools?": list(named("CustomTool")),
        "tool_choice?": named("CustomToolChoice"),
        "cache_control?": named("CacheMark"),
        "thinking?": named("Thinking"),
        "output_format?": named("OutputFormat"),
        "output_config?": request(json!({
            "effort?": word(&["low", "medium", "high", "xhigh", "max"]),
            "format?": named("OutputFormat"),
        })),
        "context_management?": request(json!({"edits?": list(edit)})),
        "speed?": only("standard"),
    })
}

/// Rules between fields: the format is said once, and calls are chosen where there are tools.
fn one_format(object: Value) -> Value {
    let unformed = json!({"properties": {"output_config": {
        "type": ["object", "null"], "properties": {"format": {"type": "null"}},
    }}});
    let object = where_one(object, [absent(&["output_format"]), unformed]);
    let free = json!({"properties": {"tool_choice": {
        "type": ["object", "null"], "properties": {"type": word(&["auto", "none"])},
    }}});
    where_one(object, [free, present("tools", list_of(any(), 1, None))])
}

fn turn() -> Value {
    let of = |role: &str, blocks: Value, min: usize| {
        let content = one_of([text(), list_of(blocks, min, None)]);
        request(json!({"role": only(role), "content": content}))
    };
    let marked =
        |fields: Value| request(all([fields, json!({"cache_control?": named("CacheMark")})]));
    let result = marked(json!({
        "type": only("tool_result"), "tool_use_id": text(), "is_error?": boolean(),
        "content?": one_of([text(), list(named("TextBlock"))]),
    }));
    let thinking = marked(json!({
        "type": only("thinking"), "thinking": text(), "signature?": any(),
    }));
    let call = marked(json!({
        "type": only("tool_use"), "id": text(), "name": text(), "input": open(),
        "caller?": only(json!({"type": "direct"})),
    }));
    let block = || named("TextBlock");
    one_of([
        of("user", one_of([block(), result]), 1),
        of("assistant", one_of([block(), thinking, call]), 0),
        of("system", block(), 1),
    ])
}

fn text_block() -> Value {
    request(json!({
        "type": only("text"), "text": text(), "citations?": only(json!([])),
        "cache_control?": named("CacheMark"),
    }))
}

fn answers() -> Value {
    let kinds = word(&[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "timeout_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]);
    let error = answer(json!({"type": kinds, "message": text()}));
    json!({
        "AnthropicError": answer(json!({"type": only("error"), "error": error})),
        "InputTokens": answer(json!({"input_tokens": count()})),
        "AnthropicMessage": message(stop_reason(), list(named("AnswerBlock")), ending_usage()),
        "AnswerBlock": one_of([
            answer(json!({"type": only("text"), "text": text()})),
            answer(json!({
                "type": only("thinking"), "thinking": text(), "signature": text(),
            })),
            answer(json!({
                "type": only("tool_use"), "id": text(), "name": text(), "input": open(),
            })),
        ]),
    })
}

fn message(stop_reason: Value, content: Value, usage: Value) -> Value {
    answer(json!({
        "id": text(), "type": only("message"), "role": only("assistant"), "model": text(),
        "content": content, "stop_reason": stop_reason, "stop_sequence": nullable(text()),
        "usage": usage,
    }))
}

fn stop_reason() -> Value {
    word(&["end_turn", "stop_sequence", "tool_use", "model_context_window_exceeded", "max_tokens"])
}

fn usage() -> Value {
    json!({
        "input_tokens": count(), "cache_creation_input_tokens": count(),
        "cache_read_input_tokens": count(), "output_tokens": count(),
    })
}

fn ending_usage() -> Value {
    answer(all([
        usage(),
        json!({
            "output_tokens_details": answer(json!({"thinking_tokens": count()})),
            "service_tier": only("standard"),
        }),
    ]))
}

fn events() -> Value {
    let event = |kind: &str, more: Value| answer(all([json!({"type": only(kind)}), more]));
    let start = message(json!({"type": "null"}), json!({"maxItems": 0}), answer(usage()));
    let delta = |kind: &str, name: &str| answer(json!({"type": only(kind), name: text()}));
    let deltas = one_of([
        delta("text_delta", "text"),
        delta("thinking_delta", "thinking"),
        delta("signature_delta", "signature"),
        delta("input_json_delta", "partial_json"),
    ]);
    let ending = answer(json!({
        "stop_reason": stop_reason(), "stop_sequence": nullable(text()),
    }));
    json!({"AnthropicEvent": one_of([
        event("message_start", json!({"message": start})),
        event("content_block_start", json!({
            "index": count(), "content_block": named("AnswerBlock"),
        })),
        event("content_block_delta", json!({"index": count(), "delta": deltas})),
        event("content_block_stop", json!({"index": count()})),
        event("message_delta", json!({"delta": ending, "usage": ending_usage()})),
        event("message_stop", json!({})),
        event("ping", json!({})),
        named("AnthropicError"),
    ])})
}
