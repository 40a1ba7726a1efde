//! What `/openapi.json` says of responses.

use protocol::MAX_TOP_LOGPROBS;
use serde_json::{Value, json};

use super::request::{MAX_NAME_CHARS, MAX_PAIRS, MAX_VALUE_CHARS};
use crate::document::schema::{
    absent, all, answer, any, boolean, count, integer, list, list_of, named, nullable, number,
    one_of, only, open, present, request, text, where_one, word,
};
use crate::openai::document as openai;
use crate::openai::document_answers::token_logprobs;
use crate::sampling;

/// Schemas by their names.
pub fn schemas() -> Value {
    all([requests(), answers(), events()])
}

fn requests() -> Value {
    json!({
        "ResponseRequest": asked(),
        "ResponseInput": openai::choosing_of_tools(request(all([begun(), openai::kwargs()]))),
        "InputItem": item(),
        "InputText": part(json!(["input_text"])),
        "OutputText": part(json!(["input_text", "output_text"])),
        "ResponseTool": request(all([openai::function(), json!({
            "type": only("function"), "async?": only(false), "defer_loading?": only(false),
            "allowed_callers?": only(json!(["direct"])),
        })])),
        "NamedFunction": request(json!({"type": only("function"), "name": text()})),
        "ResponseToolChoice": one_of([
            word(&["auto", "none", "required"]),
            named("NamedFunction"),
            request(all([
                json!({"type": only("allowed_tools")}),
                openai::allowed(named("NamedFunction")),
            ])),
        ]),
        "TextFormat": one_of([
            request(json!({"type": word(&["text", "json_object"])})),
            request(all([json!({"type": only("json_schema")}), openai::named_schema()])),
        ]),
    })
}

fn asked() -> Value {
    let included = word(&["message.output_text.logprobs", "reasoning.encrypted_content"]);
    let own = json!({
        "stream?": boolean(),
        "stream_options?": request(json!({"include_obfuscation?": only(false)})),
        "store?": boolean(),
        "max_output_tokens?": openai::u32_from(1),
        "include?": list(included),
        "top_logprobs?": integer(0, MAX_TOP_LOGPROBS.into()),
    });
    let echoed = json!({
        "metadata?": {
            "type": "object",
            "maxProperties": MAX_PAIRS,
            "propertyNames": {"maxLength": MAX_NAME_CHARS},
            "additionalProperties": {"type": "string", "maxLength": MAX_VALUE_CHARS},
        },
        "user?": text(),
        "safety_identifier?": text(),
        "prompt_cache_key?": text(),
        "prompt_cache_retention?": word(&["in_memory", "24h"]),
        "max_tool_calls?": openai::u32_from(1),
        "service_tier?": word(&["auto", "default"]),
        "background?": only(false),
        "prompt_cache_options?": request(json!({
            "ttl?": any(), "mode?": only("implicit"), "prewarm?": only(false),
        })),
    });
    let asked = request(all([begun(), own, echoed, openai::kwargs(), openai::sampled()]));
    let asked = openai::choosing_of_tools(openai::streamed(asked));
    let formless = json!({"properties": {"text": {
        "type": ["object", "null"],
        "properties": {"format": {
            "type": ["object", "null"], "properties": {"type": only("text")},
        }},
    }}});
    let asked = where_one(asked, [formless, absent(&["structured_outputs"])]);
    let none = json!({"properties": {"top_logprobs": {"enum": [0, null]}}});
    let with = json!({"type": "array", "contains": only("message.output_text.logprobs")});
    where_one(asked, [none, present("include", with)])
}

/// What a prompt is made of.
fn begun() -> Value {
    json!({
        "model?": text(),
        "input": one_of([text(), list_of(named("InputItem"), 1, None)]),
        "previous_response_id?": text(),
        "instructions?": text(),
        "reasoning?": request(json!({
            "effort?": openai::effort(), "summary?": only("auto"),
            "generate_summary?": only("auto"), "context?": only("auto"), "mode?": only("standard"),
        })),
        "tools?": list(named("ResponseTool")),
        "tool_choice?": named("ResponseToolChoice"),
        "parallel_tool_calls?": boolean(),
        "text?": request(json!({"format?": named("TextFormat"), "verbosity?": only("medium")})),
        "truncation?": only("disabled"),
    })
}

fn item() -> Value {
    let of = |kind: &str, more: Value| {
        let status = word(&["in_progress", "completed", "incomplete"]);
        let common = json!({"id?": text(), "status?": status});
        let name = if kind == "message" { "type?" } else { "type" };
        request(all([json!({name: only(kind)}), common, more]))
    };
    let content = |part: &str| one_of([text(), list(named(part))]);
    let direct = || json!({"caller?": only(json!({"type": "direct"}))});
    let thought = request(json!({"type": only("reasoning_text"), "text": text()}));
    let call = json!({
        "call_id": text(), "name": text(), "arguments": text(), "async?": only(false),
    });
    let output = json!({"call_id": text(), "name?": text(), "output": content("InputText")});
    one_of([
        of(
            "message",
            json!({
                "role": word(&["user", "system", "developer"]), "content": content("InputText"),
            }),
        ),
        of(
            "message",
            json!({
                "role": only("assistant"), "content": content("OutputText"),
                "phase?": only("final_answer"),
            }),
        ),
        of("reasoning", json!({"summary?": only(json!([])), "content?": list(thought)})),
        of("function_call", all([call, direct()])),
        of("function_call_output", all([output, direct()])),
    ])
}

fn part(kinds: Value) -> Value {
    request(json!({
        "type": {"type": "string", "enum": kinds}, "text": text(),
        "prompt_cache_breakpoint?": any(), "annotations?": only(json!([])), "logprobs?": any(),
    }))
}

fn answers() -> Value {
    json!({
        "Response": response(),
        "DeletedResponse": answer(json!({
            "id": text(), "object": only("response"), "deleted": only(true),
        })),
        "ResponseInputTokens": answer(json!({
            "object": only("response.input_tokens"), "input_tokens": count(),
        })),
        "ResponseInputItems": answer(json!({
            "object": only("list"), "data": list(one_of([input_message(), result(),
            named("OutputItem")])), "first_id": nullable(text()), "last_id": nullable(text()),
            "has_more": boolean(),
        })),
        "TokenLogprobs": token_logprobs(),
        "OutputItem": one_of([
            output("message", json!({
                "role": only("assistant"), "content": list(named("OutputPart")),
            })),
            output("reasoning", json!({
                "summary": {"type": "array", "maxItems": 0}, "content": list(named("OutputPart")),
            })),
            output("function_call", json!({
                "call_id": text(), "name": text(), "arguments": text(),
            })),
        ]),
        "OutputPart": one_of([
            answer(json!({"type": only("reasoning_text"), "text": text()})),
            answer(json!({
                "type": only("output_text"), "text": text(), "annotations": {"maxItems": 0},
                "logprobs": named("TokenLogprobs"),
            })),
        ]),
    })
}

fn input_message() -> Value {
    let role = word(&["user", "system", "developer"]);
    output("message", json!({"role": role, "content": list(input_text())}))
}

fn result() -> Value {
    let content = one_of([text(), list(input_text())]);
    output("function_call_output", json!({"call_id": text(), "output": content}))
}

fn input_text() -> Value {
    answer(json!({"type": only("input_text"), "text": text()}))
}

fn output(kind: &str, more: Value) -> Value {
    let status = word(&["in_progress", "completed", "incomplete"]);
    answer(all([json!({"type": only(kind), "id": text(), "status": status}), more]))
}

fn response() -> Value {
    let tool = answer(json!({
        "type": only("function"), "name": text(), "description": nullable(text()),
        "parameters": nullable(open()), "strict": boolean(),
    }));
    let codes = word(&["rate_limit_exceeded", "invalid_prompt", "server_error"]);
    let usage = answer(json!({
        "input_tokens": count(),
        "input_tokens_details": answer(json!({
            "cached_tokens": count(), "cache_write_tokens": count(),
        })),
        "output_tokens": count(),
        "output_tokens_details": answer(json!({"reasoning_tokens": count()})),
        "total_tokens": count(),
    }));
    let made = json!({
        "id": text(), "object": only("response"), "created_at": count(),
        "status": word(&["in_progress", "completed", "incomplete", "failed"]),
        "completed_at": nullable(count()),
        "error": nullable(answer(json!({"code": codes, "message": text()}))),
        "incomplete_details": nullable(answer(json!({"reason": only("max_output_tokens")}))),
        "model": text(), "output": list(named("OutputItem")), "usage": nullable(usage),
        "timings?": named("Timings"), "cache?": nullable(named("Cache")),
    });
    let settings = json!({
        "store": boolean(), "previous_response_id": nullable(text()),
        "instructions": nullable(text()),
        "reasoning": answer(json!({
            "effort": nullable(openai::effort()), "summary": {"type": "null"},
        })),
        "tool_choice": named("ResponseToolChoice"), "parallel_tool_calls": boolean(),
        "tools": list(tool), "max_output_tokens": nullable(count()),
        "top_logprobs": count(),
        "text": answer(json!({"format": named("TextFormat"), "verbosity": only("medium")})),
        "metadata": {"type": "object", "additionalProperties": text()},
        "user": nullable(text()), "safety_identifier": nullable(text()),
        "prompt_cache_key": nullable(text()), "prompt_cache_retention": nullable(text()),
        "max_tool_calls": nullable(count()), "service_tier": only("default"),
        "truncation": only("disabled"), "background": only(false),
        "temperature": number(&sampling::TEMPERATURES), "top_p": number(&(0.0..=1.0)),
        "presence_penalty": {"type": "number"}, "frequency_penalty": {"type": "number"},
    });
    answer(all([made, settings]))
}

fn events() -> Value {
    let event = |name: &str, more: Value| {
        let kind = format!("response.{name}");
        answer(all([json!({"type": only(kind), "sequence_number": count()}), more]))
    };
    let whole = |name: &str| event(name, json!({"response": named("Response")}));
    let item =
        |name: &str| event(name, json!({"output_index": count(), "item": named("OutputItem")}));
    let of_item = || json!({"item_id": text(), "output_index": count()});
    let of_part = |name: &str, more: Value| {
        event(name, all([of_item(), json!({"content_index": count()}), more]))
    };
    let logprobs = || json!({"logprobs": named("TokenLogprobs")});
    json!({"ResponseEvent": one_of([
        whole("created"),
        whole("in_progress"),
        whole("completed"),
        whole("incomplete"),
        whole("failed"),
        item("output_item.added"),
        item("output_item.done"),
        of_part("content_part.added", json!({"part": named("OutputPart")})),
        of_part("content_part.done", json!({"part": named("OutputPart")})),
        of_part("reasoning_text.delta", json!({"delta": text()})),
        of_part("reasoning_text.done", json!({"text": text()})),
        of_part("output_text.delta", all([json!({"delta": text()}), logprobs()])),
        of_part("output_text.done", all([json!({"text": text()}), logprobs()])),
        event("function_call_arguments.delta", all([of_item(), json!({"delta": text()})])),
        event("function_call_arguments.done", all([of_item(), json!({"arguments": text()})])),
        answer(json!({
            "type": only("error"), "sequence_number": count(), "code": nullable(text()),
            "message": text(), "param": nullable(text()),
        })),
    ])})
}
