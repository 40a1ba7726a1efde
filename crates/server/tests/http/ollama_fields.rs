//! Every field of Ollama's requests, each with what becomes of it: no field is ignored unsaid.

use serde_json::{Value, json};

use crate::fates::Fate::{Refused, Taken};
use crate::fates::{Fate, check};
use crate::served::set;

fn generate() -> Value {
    json!({"model": "tiny", "prompt": "hi", "stream": false})
}

fn chat() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": false})
}

/// Fields that generate and chat share.
fn shared() -> Vec<(Value, Fate)> {
    vec![
        (json!({"model": null}), Refused("model")),
        (json!({"model": "tiny:latest"}), Taken),
        (json!({"stream": true}), Taken),
        (json!({"stream": "no"}), Refused("stream")),
        (json!({"format": ""}), Taken),
        (json!({"format": "json"}), Taken),
        (json!({"format": {"type": "object"}}), Taken),
        (json!({"format": "xml"}), Refused("format")),
        (json!({"format": 1}), Refused("format")),
        (json!({"think": true}), Taken),
        (json!({"think": false}), Taken),
        (json!({"think": "high"}), Taken),
        (json!({"think": "most"}), Refused("think")),
        (json!({"think": 1}), Refused("think")),
        (json!({"keep_alive": 60}), Taken),
        (json!({"keep_alive": 1.5}), Taken),
        (json!({"keep_alive": "5m"}), Taken),
        (json!({"keep_alive": -1}), Taken),
        (json!({"keep_alive": "-1m"}), Taken),
        (json!({"keep_alive": "soon"}), Refused("keep_alive")),
        (json!({"keep_alive": 1e300}), Refused("keep_alive")),
        (json!({"keep_alive": true}), Refused("keep_alive")),
        (json!({"logprobs": true}), Taken),
        (json!({"logprobs": true, "top_logprobs": 20}), Taken),
        (json!({"logprobs": true, "top_logprobs": 21}), Refused("top_logprobs")),
        (json!({"top_logprobs": 2}), Refused("top_logprobs")),
        (json!({"cache_salt": "mine"}), Taken),
        (json!({"cache_salt": "a\u{0}b"}), Refused("cache_salt")),
        (json!({"template": "{{ 7 }}"}), Refused("template")),
        (json!({"options": 1}), Refused("options")),
        (json!({"options": {}}), Taken),
        (json!({"unheard_of": 1}), Refused("unheard_of")),
    ]
}

#[test]
fn fields_that_generate_and_chat_share_take_effect_or_are_refused() {
    check("/api/generate", &generate(), &shared());
    check("/api/chat", &chat(), &shared());
}

#[test]
fn every_option_takes_effect_or_is_refused() {
    let taken = [
        json!({"num_predict": 3}),
        json!({"num_predict": -1}),
        json!({"num_predict": -2}),
        json!({"temperature": 0}),
        json!({"top_k": 40}),
        json!({"top_p": 0.9}),
        json!({"min_p": 0.1}),
        json!({"seed": 7}),
        json!({"seed": -1}),
        json!({"stop": "x"}),
        json!({"stop": ["x", "y"]}),
        json!({"repeat_penalty": 1.1}),
        json!({"repeat_last_n": 64}),
        json!({"repeat_last_n": 0}),
        json!({"repeat_last_n": -1}),
        json!({"presence_penalty": 1.5}),
        json!({"frequency_penalty": -1.5}),
        json!({"num_ctx": 64}),
        json!({"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "penalize_newline": true}),
    ];
    let refused = [
        (json!({"num_predict": 0}), "options.num_predict"),
        (json!({"num_predict": -3}), "options.num_predict"),
        (json!({"num_predict": 1e12}), "options.num_predict"),
        (json!({"temperature": -1}), "options.temperature"),
        (json!({"temperature": 1e30}), "options.temperature"),
        (json!({"top_k": -1}), "options.top_k"),
        (json!({"top_p": 0}), "options.top_p"),
        (json!({"min_p": 2}), "options.min_p"),
        (json!({"seed": 0.5}), "options.seed"),
        (json!({"stop": ""}), "options.stop"),
        (json!({"stop": [1]}), "options.stop"),
        (json!({"repeat_penalty": 0}), "options.repeat_penalty"),
        (json!({"repeat_last_n": -2}), "options.repeat_last_n"),
        (json!({"presence_penalty": 3}), "options.presence_penalty"),
        (json!({"frequency_penalty": "x"}), "options.frequency_penalty"),
        (json!({"num_ctx": 65}), "options.num_ctx"),
        (json!({"num_ctx": 0}), "options.num_ctx"),
        (json!({"mirostat": 1}), "options.mirostat"),
        (json!({"mirostat_tau": 5.0}), "options.mirostat_tau"),
        (json!({"mirostat_eta": 0.1}), "options.mirostat_eta"),
        (json!({"tfs_z": 0.5}), "options.tfs_z"),
        (json!({"typical_p": 0.5}), "options.typical_p"),
        (json!({"penalize_newline": false}), "options.penalize_newline"),
        (json!({"num_keep": 5}), "options.num_keep"),
        (json!({"num_batch": 5}), "options.num_batch"),
        (json!({"num_gpu": 1}), "options.num_gpu"),
        (json!({"main_gpu": 0}), "options.main_gpu"),
        (json!({"num_thread": 4}), "options.num_thread"),
        (json!({"numa": true}), "options.numa"),
        (json!({"low_vram": true}), "options.low_vram"),
        (json!({"f16_kv": true}), "options.f16_kv"),
        (json!({"logits_all": true}), "options.logits_all"),
        (json!({"vocab_only": true}), "options.vocab_only"),
        (json!({"use_mmap": true}), "options.use_mmap"),
        (json!({"use_mlock": true}), "options.use_mlock"),
        (json!({"embedding_only": true}), "options.embedding_only"),
        (json!({"unheard_of": 1}), "options.unheard_of"),
    ];
    let options = |options| json!({"options": options});
    let table: Vec<_> = taken
        .into_iter()
        .map(|value| (options(value), Taken))
        .chain(refused.into_iter().map(|(value, field)| (options(value), Refused(field))))
        .collect();
    check("/api/generate", &generate(), &table);
}

#[test]
fn every_field_of_generate_takes_effect_or_is_refused() {
    let table = [
        (json!({"prompt": 1}), Refused("prompt")),
        (json!({"prompt": "hi ".repeat(100)}), Refused("prompt")),
        (json!({"system": "one"}), Taken),
        (json!({"raw": true}), Taken),
        (json!({"raw": true, "system": "one"}), Refused("raw")),
        (json!({"raw": true, "think": true}), Refused("raw")),
        (json!({"suffix": ""}), Taken),
        (json!({"suffix": "x"}), Refused("suffix")),
        (json!({"context": [1]}), Refused("context")),
        (json!({"images": ["x"]}), Refused("images")),
        (json!({"messages": []}), Refused("messages")),
    ];
    check("/api/generate", &generate(), &table);
}

#[test]
fn every_field_of_messages_and_tools_takes_effect_or_is_refused() {
    let one = |message: Value| json!({"messages": [message]});
    let call = |more: Value| {
        let mut function = json!({"name": "f", "arguments": {"a": 1}});
        set(&mut function, &more);
        json!({"messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "thinking": "two",
             "tool_calls": [{"function": function}]},
            {"role": "tool", "content": "one", "tool_name": "f", "tool_call_id": "c1"},
        ]})
    };
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let arguments = "messages[1].tool_calls[0].function.arguments";
    let table = [
        (json!({"messages": [1]}), Refused("messages[0]")),
        (one(json!({"role": "king", "content": "hi"})), Refused("messages[0].role")),
        (one(json!({"content": "hi"})), Refused("messages[0].role")),
        (one(json!({"role": "user", "content": 1})), Refused("messages[0].content")),
        (one(json!({"role": "user", "content": "hi", "x": 1})), Refused("messages[0].x")),
        (
            one(json!({"role": "user", "content": "hi", "images": ["x"]})),
            Refused("messages[0].images"),
        ),
        (
            one(json!({"role": "user", "content": "hi", "thinking": "x"})),
            Refused("messages[0].thinking"),
        ),
        (one(json!({"role": "assistant", "content": "hi"})), Refused("messages")),
        (call(json!({})), Taken),
        (call(json!({"index": 0})), Taken),
        (call(json!({"arguments": "{}"})), Refused(arguments)),
        (call(json!({"name": null})), Refused("messages[1].tool_calls[0].function.name")),
        (tool(json!({"name": "f", "parameters": {"type": "object"}})), Taken),
        (tool(json!({"name": "a b"})), Refused("tools[0].function.name")),
        (json!({"tools": [{"type": "x"}]}), Refused("tools[0].type")),
        (json!({"tools": []}), Taken),
        (json!({"prompt": "x"}), Refused("prompt")),
    ];
    check("/api/chat", &chat(), &table);
}

#[test]
fn every_field_of_show_takes_effect_or_is_refused() {
    let table = [
        (json!({}), Taken),
        (json!({"verbose": true}), Taken),
        (json!({"verbose": 1}), Refused("verbose")),
        (json!({"name": "tiny"}), Refused("name")),
        (json!({"model": null, "name": "tiny"}), Taken),
        (json!({"model": null}), Refused("model")),
        (json!({"system": "x"}), Refused("system")),
    ];
    check("/api/show", &json!({"model": "tiny"}), &table);
}
