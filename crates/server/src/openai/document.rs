//! What `/openapi.json` says of this API's requests; its answers are in `document_answers.rs`.

use protocol::MAX_TOP_LOGPROBS;
use serde_json::{Value, json};
use text::{KWARGS, MAX_STOPS};

use super::completions::MAX_LOGPROBS;
use super::document_answers::answers;
use super::form::MAX_CHOICES;
use super::options::MAX_BIASES;
use super::responses;
use crate::document::schema::{
    absent, all, any, boolean, integer, list, list_of, named, number, one_of, only, open, pattern,
    present, request, text, texts, where_one, word,
};
use crate::generation::MAX_ANSWERS;
use crate::http::keys::MAX_SALT_BYTES;
use crate::models::MAX_KEEP_ALIVE_S;
use crate::sampling;

/// Schemas by their names.
pub fn schemas() -> Value {
    all([requests(), answers(), responses::schemas()])
}

fn requests() -> Value {
    json!({
        "ChatRequest": chat(),
        "CompletionRequest": completion(),
        "EmbeddingsRequest": {
            "type": "object", "properties": {"model": text()}, "required": ["model"],
        },
        "Message": message(),
        "Content": one_of([text(), list(request(json!({
            "type": only("text"), "text": text(), "cache_control?": any(),
        })))]),
        "MessageCall": request(json!({
            "id?": text(),
            "type?": only("function"),
            "index?": any(),
            "function": request(json!({
                "name": text(), "arguments?": one_of([text(), open()]),
            })),
        })),
        "Tool": request(json!({
            "type": only("function"),
            "function": request(function()),
            "cache_control?": any(),
        })),
        "NamedTool": request(json!({
            "type": only("function"), "function": request(json!({"name": text()})),
        })),
        "ToolChoice": one_of([
            word(&["auto", "none", "required"]),
            named("NamedTool"),
            request(json!({
                "type": only("allowed_tools"),
                "allowed_tools": request(allowed(named("NamedTool"))),
            })),
        ]),
        "ResponseFormat": one_of([
            request(json!({"type": word(&["text", "json_object"])})),
            request(json!({"type": only("json_schema"), "json_schema": request(named_schema())})),
        ]),
        "StructuredOutputs": structured_outputs(),
    })
}

/// What names of tools may be, as a pattern.
pub fn tool_name() -> Value {
    pattern("^[A-Za-z0-9._-]{1,128}$")
}

/// A namespace within the key's own.
pub fn cache_salt() -> Value {
    pattern(&format!("^[ -~]{{0,{MAX_SALT_BYTES}}}$"))
}

/// Strings that end an answer.
pub fn stops() -> Value {
    texts(json!({"type": "string", "minLength": 1}), Some(MAX_STOPS))
}

/// A whole number of 32 bits.
pub fn u32_from(min: i64) -> Value {
    integer(min, u32::MAX.into())
}

/// Any whole number of 64 bits.
pub fn seed() -> Value {
    integer(i64::MIN, u64::MAX)
}

/// Log probabilities and their number.
pub fn needs_logprobs(object: Value, free: Value) -> Value {
    let none = json!({"properties": {"top_logprobs": free}});
    where_one(object, [none, present("logprobs", only(true))])
}

/// The fields that a prompt of a conversation is made of.
pub fn conversation() -> Value {
    all([
        kwargs(),
        json!({
            "messages": list_of(named("Message"), 1, None),
            "tools?": list(named("Tool")),
            "tool_choice?": named("ToolChoice"),
            "parallel_tool_calls?": boolean(),
            "reasoning_effort?": effort(),
        }),
    ])
}

/// Tools that alone may be called.
pub fn allowed(tool: Value) -> Value {
    json!({"mode": word(&["auto", "required"]), "tools": list_of(tool, 1, None)})
}

/// Calls are chosen where there are tools.
pub fn choosing_of_tools(object: Value) -> Value {
    let free = json!({"properties": {"tool_choice": {"enum": ["auto", "none", null]}}});
    where_one(object, [free, present("tools", list_of(any(), 1, None))])
}

fn chat() -> Value {
    let own = json!({
        "max_completion_tokens?": u32_from(1),
        "logprobs?": boolean(),
        "top_logprobs?": integer(0, MAX_TOP_LOGPROBS.into()),
        "response_format?": named("ResponseFormat"),
        "modalities?": only(json!(["text"])),
        "verbosity?": only("medium"),
    });
    let chat = choosing_of_tools(streamed(request(all([conversation(), own, shared_fields()]))));
    let chat = needs_logprobs(chat, json!({"type": "null"}));
    let formless = json!({"properties": {"response_format": {
        "type": ["object", "null"], "properties": {"type": only("text")},
    }}});
    let chat = where_one(chat, [formless, absent(&["structured_outputs"])]);
    where_one(chat, [absent(&["max_tokens"]), absent(&["max_completion_tokens"])])
}

fn completion() -> Value {
    streamed(request(all([
        json!({
            "prompt": prompt(MAX_ANSWERS),
            "logprobs?": integer(0, MAX_LOGPROBS),
            "echo?": only(false),
            "best_of?": only(1),
        }),
        shared_fields(),
    ])))
}

/// A text, token ids, or up to so many of those.
pub fn prompt(max: usize) -> Value {
    let ids = || list_of(u32_from(0), 1, None);
    one_of([text(), ids(), list_of(one_of([text(), ids()]), 1, Some(max))])
}

fn shared_fields() -> Value {
    let own = json!({
        "model?": text(),
        "stream?": boolean(),
        "stream_options?": request(json!({
            "include_usage?": boolean(), "include_obfuscation?": only(false),
        })),
        "max_tokens?": u32_from(1),
        "n?": integer(1, MAX_ANSWERS as u64),
        "stop?": stops(),
        "user?": any(),
        "safety_identifier?": any(),
        "metadata?": any(),
        "prompt_cache_key?": any(),
        "prompt_cache_retention?": any(),
        "store?": only(false),
        "service_tier?": word(&["auto", "default"]),
    });
    all([own, sampled()])
}

/// What requests of all kinds say of how to generate.
pub fn sampled() -> Value {
    json!({
        "temperature?": number(&sampling::TEMPERATURES),
        "top_p?": number(&sampling::TOP_PS),
        "top_k?": u32_from(0),
        "min_p?": number(&sampling::MIN_PS),
        "repetition_penalty?": number(&sampling::REPETITION_PENALTIES),
        "presence_penalty?": number(&sampling::PENALTIES),
        "frequency_penalty?": number(&sampling::PENALTIES),
        "logit_bias?": {
            "type": "object",
            "maxProperties": MAX_BIASES,
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": number(&(-100.0..=100.0)),
        },
        "seed?": seed(),
        "structured_outputs?": named("StructuredOutputs"),
        "cache_salt?": cache_salt(),
        "keep_alive?": integer(0, MAX_KEEP_ALIVE_S),
    })
}

/// How much to think.
pub fn effort() -> Value {
    word(&["none", "minimal", "low", "medium", "high", "xhigh", "max"])
}

/// Variables of the template.
pub fn kwargs() -> Value {
    json!({
        "enable_thinking?": boolean(),
        "thinking_budget?": u32_from(0),
        "chat_template_kwargs?": {"type": "object", "propertyNames": {"enum": KWARGS}},
    })
}

/// A function as a model is told of it.
pub fn function() -> Value {
    json!({
        "name": tool_name(), "description?": text(), "parameters?": open(), "strict?": boolean(),
    })
}

/// A schema and its name.
pub fn named_schema() -> Value {
    json!({
        "name": tool_name(), "description?": text(), "strict?": boolean(), "schema?": open(),
    })
}

/// Streams have options.
pub fn streamed(object: Value) -> Value {
    where_one(object, [absent(&["stream_options"]), present("stream", only(true))])
}

fn message() -> Value {
    let plain = request(json!({
        "role": word(&["system", "developer", "user"]), "name?": text(),
        "content": named("Content"),
    }));
    let assistant = request(json!({
        "role": only("assistant"), "name?": text(), "content?": named("Content"),
        "tool_calls?": list(named("MessageCall")), "reasoning_content?": text(),
        "reasoning?": text(), "annotations?": only(json!([])),
    }));
    let tool = request(json!({
        "role": only("tool"), "name?": text(), "content": named("Content"),
        "tool_call_id": text(),
    }));
    let assistant = where_one(
        assistant,
        [
            present("content", json!({"type": ["string", "array"]})),
            present("tool_calls", list_of(any(), 1, None)),
            present("reasoning_content", text()),
            present("reasoning", text()),
        ],
    );
    one_of([plain, assistant, tool])
}

/// One of the forms, and no other beside it.
fn structured_outputs() -> Value {
    let choices = texts(text(), Some(MAX_CHOICES));
    let forms = [
        ("json", json!({"type": ["string", "boolean", "number", "object", "array"]})),
        ("json_object", only(true)),
        ("regex", text()),
        ("choice", one_of([text(), list_of(text(), 1, None)])),
        ("grammar", text()),
    ];
    let one = forms.map(|(name, form)| {
        let others = ["json", "json_object", "regex", "choice", "grammar"];
        let mut one = json!({"properties": {name: form}, "required": [name]});
        for other in others.into_iter().filter(|other| *other != name) {
            one["properties"][other] = match other {
                "json_object" => json!({"enum": [false, null]}),
                "choice" => json!({"type": ["array", "null"], "maxItems": 0}),
                _ => json!({"type": "null"}),
            };
        }
        one
    });
    let object = request(json!({
        "json?": any(), "json_object?": boolean(), "regex?": text(), "choice?": choices,
        "grammar?": text(),
    }));
    where_one(object, one)
}
