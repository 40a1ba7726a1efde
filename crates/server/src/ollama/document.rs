//! What `/openapi.json` says of this API.

use protocol::MAX_TOP_LOGPROBS;
use serde_json::{Value, json};

use crate::document::schema::{
    absent, all, answer, any, boolean, count, integer, list, named, nullable, number, one_of, only,
    open, pattern, request, text, where_one, word,
};
use crate::models::MAX_KEEP_ALIVE_S;
use crate::openai::{bytes, cache_salt, logprob, needs_logprobs, seed, stops, u32_from};
use crate::sampling;

/// Schemas by their names.
pub fn schemas() -> Value {
    all([requests(), answers(), models()])
}

fn requests() -> Value {
    let generate = json!({
        "prompt?": text(), "system?": text(), "raw?": boolean(), "suffix?": only(""),
    });
    let chat = json!({"messages?": list(named("OllamaMessage")), "tools?": list(named("Tool"))});
    let with = |own: Value| {
        let free = json!({"enum": [0, null]});
        needs_logprobs(request(all([own, shared()])), free)
    };
    let cooked = json!({"properties": {"raw": {"enum": [false, null]}}});
    let plain = json!({"properties": {"system": {"enum": ["", null]}, "think": {"type": "null"}}});
    let show = request(json!({"model?": text(), "name?": text(), "verbose?": boolean()}));
    json!({
        "GenerateRequest": where_one(with(generate), [cooked, plain]),
        "OllamaChatRequest": with(chat),
        "ShowRequest": where_one(show, [absent(&["model"]), absent(&["name"])]),
        "OllamaMessage": message(),
        "Options": options(),
        "KeepAlive": one_of([
            json!({"type": "number", "maximum": MAX_KEEP_ALIVE_S}),
            pattern("^-?([0-9]{1,7}|([0-9]{1,3}(\\.[0-9]{1,3})?(h|m|s|ms|us|µs|ns))+)$"),
        ]),
        // Nothing in it is read.
        "Unread": open(),
    })
}

fn shared() -> Value {
    json!({
        "model?": text(),
        "stream?": boolean(),
        "keep_alive?": named("KeepAlive"),
        "format?": one_of([word(&["", "json"]), open()]),
        "think?": one_of([boolean(), word(&["low", "medium", "high"])]),
        "logprobs?": boolean(),
        "top_logprobs?": integer(0, MAX_TOP_LOGPROBS.into()),
        "cache_salt?": cache_salt(),
        "options?": named("Options"),
    })
}

fn message() -> Value {
    let of =
        |role: Value, more: Value| request(all([json!({"role": role, "content?": text()}), more]));
    let function = request(json!({"name": text(), "index?": any(), "arguments?": open()}));
    let call = request(json!({
        "id?": text(), "type?": only("function"), "function": function,
    }));
    one_of([
        of(word(&["system", "user"]), json!({})),
        of(only("assistant"), json!({"thinking?": text(), "tool_calls?": list(call)})),
        of(only("tool"), json!({"tool_name?": text(), "tool_call_id?": text()})),
    ])
}

fn options() -> Value {
    let max = i32::MAX.unsigned_abs().into();
    request(json!({
        "temperature?": number(&sampling::TEMPERATURES),
        "top_k?": u32_from(0),
        "top_p?": number(&sampling::TOP_PS),
        "min_p?": number(&sampling::MIN_PS),
        "seed?": seed(),
        "repeat_penalty?": number(&sampling::REPETITION_PENALTIES),
        "presence_penalty?": number(&sampling::PENALTIES),
        "frequency_penalty?": number(&sampling::PENALTIES),
        "repeat_last_n?": integer(-1, max),
        "num_predict?": one_of([json!({"enum": [-1, -2]}), integer(1, max)]),
        "stop?": stops(),
        "num_ctx?": u32_from(1),
        "mirostat?": only(0),
        "tfs_z?": only(1),
        "typical_p?": only(1),
        "penalize_newline?": only(true),
    }))
}

fn answers() -> Value {
    let call = answer(json!({
        "id?": text(),
        "function": answer(json!({"index": count(), "name": text(), "arguments": open()})),
    }));
    let generated = json!({"response": text(), "thinking?": text()});
    let said = json!({"message": answer(json!({
        "role": only("assistant"), "content": text(), "thinking?": text(),
        "tool_calls?": list(call),
    }))});
    let one = json!({"token": text(), "logprob": logprob(), "bytes": bytes()});
    let more = json!({"top_logprobs?": list(answer(one.clone()))});
    json!({
        "OllamaError": answer(json!({"error": text()})),
        "OllamaLogprob": answer(all([one, more])),
        "Generated": line(generated),
        "Said": line(said),
        "GeneratedLine": one_of([named("Generated"), named("OllamaError")]),
        "SaidLine": one_of([named("Said"), named("OllamaError")]),
    })
}

/// A line of a stream; the last one, or the only one, has a reason and, if there was something to
/// answer, counters. Durations are nanoseconds.
fn line(own: Value) -> Value {
    let head = json!({
        "model": text(), "created_at": time(), "logprobs?": list(named("OllamaLogprob")),
    });
    let counters = json!({
        "total_duration": count(), "load_duration": count(), "prompt_eval_count": count(),
        "prompt_eval_duration": count(), "prompt_cached_count": count(), "eval_count": count(),
        "eval_duration": count(),
    });
    let is_done = |is: bool| json!({"done": only(is)});
    let reason = |words: &[&str]| json!({"done_reason": word(words)});
    let with = |more: Value| answer(all([head.clone(), own.clone(), more]));
    one_of([
        with(is_done(false)),
        with(all([is_done(true), reason(&["load", "unload"])])),
        with(all([is_done(true), reason(&["stop", "length"]), counters])),
    ])
}

fn time() -> Value {
    json!({"type": "string", "format": "date-time"})
}

fn models() -> Value {
    let listed = json!({
        "name": text(), "model": text(), "size": count(), "digest": pattern("^[0-9a-f]{64}$"),
        "details": named("Details"),
    });
    let there = json!({"modified_at": time()});
    let loaded = json!({
        "expires_at": nullable(time()), "size_vram": count(), "context_length": count(),
    });
    let lists = |more: Value| answer(json!({"models": list(answer(all([listed.clone(), more])))}));
    json!({
        "Details": answer(json!({
            "parent_model": only(""), "format": only("safetensors"), "family": text(),
            "families": list(text()), "parameter_size": text(), "quantization_level": text(),
        })),
        "Tags": lists(there),
        "Loaded": lists(loaded),
        "Shown": answer(json!({
            "modelfile": only(""), "parameters": text(), "template": text(),
            "details": named("Details"), "model_info": open(),
            "capabilities": list(word(&["completion", "tools", "thinking"])),
            "modified_at": time(),
        })),
        "OllamaVersion": answer(json!({"version": text()})),
    })
}
