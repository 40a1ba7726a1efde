//! Every field of OpenAI's requests, each with what becomes of it: no field is ignored unsaid.

use serde_json::{Value, json};
use testkit::Script;

use crate::served::{Setup, chat, set};

/// What becomes of a field.
enum Fate {
    /// The request is answered.
    Taken,
    /// 400, and this is the field to blame.
    Refused(&'static str),
}

use Fate::{Refused, Taken};

fn check(path: &str, base: &Value, table: &[(Value, Fate)]) {
    let served = Setup::from(Script { answer: vec![1, 0], ..Script::default() }).serve();
    for (fields, fate) in table {
        let mut body = base.clone();
        set(&mut body, fields);
        let reply = served.post(path, &body);
        match fate {
            Taken => assert_eq!(reply.status, 200, "{fields}: {reply:?}"),
            Refused(field) => {
                assert_eq!(reply.refused(400).as_deref(), Some(*field), "{fields}: {reply:?}");
            }
        }
    }
}

/// Fields that both kinds of requests have.
fn shared() -> Vec<(Value, Fate)> {
    vec![
        (json!({"temperature": 0}), Taken),
        (json!({"temperature": 2}), Taken),
        (json!({"temperature": -0.1}), Refused("temperature")),
        (json!({"temperature": 1e30}), Refused("temperature")),
        (json!({"temperature": "hot"}), Refused("temperature")),
        (json!({"temperature": null}), Taken),
        (json!({"top_p": 0.5}), Taken),
        (json!({"top_p": 0}), Refused("top_p")),
        (json!({"top_p": 1.1}), Refused("top_p")),
        (json!({"top_k": 20}), Taken),
        (json!({"top_k": -1}), Refused("top_k")),
        (json!({"top_k": 1e10}), Refused("top_k")),
        (json!({"min_p": 0.1}), Taken),
        (json!({"min_p": 2}), Refused("min_p")),
        (json!({"repetition_penalty": 1.1}), Taken),
        (json!({"repetition_penalty": 0}), Refused("repetition_penalty")),
        (json!({"presence_penalty": 2}), Taken),
        (json!({"presence_penalty": 2.5}), Refused("presence_penalty")),
        (json!({"frequency_penalty": -2}), Taken),
        (json!({"frequency_penalty": -3}), Refused("frequency_penalty")),
        (json!({"logit_bias": {"1": 5, "2": -100}}), Taken),
        (json!({"logit_bias": {"1": 101}}), Refused("logit_bias")),
        (json!({"logit_bias": {"one": 1}}), Refused("logit_bias")),
        (json!({"logit_bias": {"4000000000": 1}}), Refused("logit_bias")),
        (json!({"logit_bias": {"-1": 1}}), Refused("logit_bias")),
        (json!({"logit_bias": [1]}), Refused("logit_bias")),
        (json!({"seed": 1}), Taken),
        (json!({"seed": -1}), Taken),
        (json!({"seed": 0.5}), Refused("seed")),
        (json!({"n": 2}), Taken),
        (json!({"n": 0}), Refused("n")),
        (json!({"n": 17}), Refused("n")),
        (json!({"stop": "x"}), Taken),
        (json!({"stop": ["x", "y"]}), Taken),
        (json!({"stop": ""}), Refused("stop")),
        (json!({"stop": [1]}), Refused("stop")),
        (json!({"stop": vec!["x"; 65]}), Refused("stop")),
        (json!({"max_tokens": 3}), Taken),
        (json!({"max_tokens": 4_000_000_000u32}), Taken),
        (json!({"max_tokens": 0}), Refused("max_tokens")),
        (json!({"max_tokens": -1}), Refused("max_tokens")),
        (json!({"max_tokens": 1e12}), Refused("max_tokens")),
        (json!({"stream": false}), Taken),
        (json!({"stream": true}), Taken),
        (json!({"stream": "yes"}), Refused("stream")),
        (json!({"stream": true, "stream_options": {"include_usage": true}}), Taken),
        (json!({"stream": true, "stream_options": {"x": 1}}), Refused("stream_options.x")),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            Refused("stream_options.include_obfuscation"),
        ),
        (json!({"stream_options": {"include_usage": true}}), Refused("stream_options")),
        (json!({"cache_salt": "mine"}), Taken),
        (json!({"cache_salt": "a\u{0}b"}), Refused("cache_salt")),
        (json!({"cache_salt": "../../etc"}), Taken),
        (json!({"cache_salt": "x".repeat(300)}), Refused("cache_salt")),
        (json!({"keep_alive": 60}), Taken),
        (json!({"keep_alive": -5}), Refused("keep_alive")),
        (json!({"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s"}), Taken),
        (json!({"prompt_cache_key": "k", "prompt_cache_retention": "24h"}), Taken),
        (json!({"store": false, "service_tier": "auto"}), Taken),
        (json!({"store": true}), Refused("store")),
        (json!({"service_tier": "priority"}), Refused("service_tier")),
        (json!({"mirostat": 1}), Refused("mirostat")),
        (json!({"chat_template": "{{ 7 }}"}), Refused("chat_template")),
        (json!({"n_discard": -1}), Refused("n_discard")),
        (json!({"guided_json": {}}), Refused("guided_json")),
        (json!({"structured_outputs": {"regex": "[a-c]+"}}), Taken),
        (json!({"structured_outputs": {"json": {"type": "string"}}}), Taken),
        (json!({"structured_outputs": {"json": "{\"type\": \"string\"}"}}), Taken),
        (json!({"structured_outputs": {"json": "{"}}), Refused("structured_outputs.json")),
        (json!({"structured_outputs": {"json_object": true}}), Taken),
        (json!({"structured_outputs": {"choice": ["yes", "no"]}}), Taken),
        (
            json!({"structured_outputs": {"choice": vec!["x"; 1025]}}),
            Refused("structured_outputs.choice"),
        ),
        (json!({"structured_outputs": {"grammar": "start: \"a\""}}), Taken),
        (json!({"structured_outputs": {}}), Refused("structured_outputs")),
        (
            json!({"structured_outputs": {"regex": "a", "json_object": true}}),
            Refused("structured_outputs.regex"),
        ),
        (
            json!({"structured_outputs": {"regex": "a".repeat(600_000)}}),
            Refused("structured_outputs.regex"),
        ),
        (json!({"structured_outputs": {"whitespace_pattern": "a"}}), Refused("structured_outputs")),
    ]
}

#[test]
fn every_field_that_chats_and_completions_share_takes_effect_or_is_refused() {
    check("/v1/chat/completions", &chat(json!({})), &shared());
    check("/v1/completions", &json!({"model": "tiny", "prompt": "hi"}), &shared());
}

#[test]
fn every_field_of_completions_takes_effect_or_is_refused() {
    let base = json!({"model": "tiny", "prompt": "hi"});
    let table = [
        (json!({"prompt": null}), Refused("prompt")),
        (json!({"prompt": []}), Refused("prompt")),
        (json!({"prompt": ""}), Refused("prompt")),
        (json!({"prompt": [1, -1]}), Refused("prompt")),
        (json!({"prompt": [1, "x"]}), Refused("prompt")),
        (json!({"prompt": [4_000_000]}), Refused("prompt")),
        (json!({"prompt": vec!["hi"; 17]}), Refused("n")),
        (json!({"prompt": "hi ".repeat(100)}), Refused("prompt")),
        (json!({"logprobs": 3}), Taken),
        (json!({"logprobs": 21}), Refused("logprobs")),
        (json!({"logprobs": true}), Refused("logprobs")),
        (json!({"echo": false}), Taken),
        (json!({"echo": true}), Refused("echo")),
        (json!({"best_of": 1}), Taken),
        (json!({"best_of": 1_000_000_000}), Refused("best_of")),
        (json!({"suffix": "x"}), Refused("suffix")),
    ];
    check("/v1/completions", &base, &table);
}

#[test]
fn every_field_of_chats_takes_effect_or_is_refused() {
    let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
    let tools = json!([{"type": "function", "function": function}]);
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
    let named = json!({"type": "function", "function": {"name": "f"}});
    let other = json!({"type": "function", "function": {"name": "g"}});
    let allowed = |mode: &str, names: Value| {
        let allowed = json!({"mode": mode, "tools": names});
        json!({"tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}})
    };
    let schema = json!({"name": "n", "strict": true, "description": "d",
                        "schema": {"type": "object"}});
    let formed =
        |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": schema}});
    let table = [
        (json!({"max_completion_tokens": 3}), Taken),
        (json!({"max_completion_tokens": 3, "max_tokens": 3}), Refused("max_tokens")),
        (json!({"logprobs": true}), Taken),
        (json!({"logprobs": true, "top_logprobs": 20}), Taken),
        (json!({"logprobs": true, "top_logprobs": 21}), Refused("top_logprobs")),
        (json!({"top_logprobs": 1}), Refused("top_logprobs")),
        (json!({"thinking_budget": 0}), Taken),
        (json!({"thinking_budget": -1}), Refused("thinking_budget")),
        (json!({"reasoning_effort": "none"}), Taken),
        (json!({"reasoning_effort": "high"}), Taken),
        (json!({"reasoning_effort": "max"}), Taken),
        (json!({"reasoning_effort": "most"}), Refused("reasoning_effort")),
        (json!({"enable_thinking": true}), Taken),
        (json!({"enable_thinking": "yes"}), Refused("enable_thinking")),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), Taken),
        (json!({"chat_template_kwargs": {"tokenize": true}}), Refused("chat_template_kwargs")),
        (json!({"chat_template_kwargs": {"messages": []}}), Refused("chat_template_kwargs")),
        (json!({"chat_template_kwargs": {"bos_token": "x"}}), Refused("chat_template_kwargs")),
        (json!({"response_format": {"type": "text"}}), Taken),
        (json!({"response_format": {"type": "json_object"}}), Taken),
        (
            json!({"response_format": {"type": "json_schema"}}),
            Refused("response_format.json_schema"),
        ),
        (formed(schema.clone()), Taken),
        (formed(json!({"name": "n"})), Taken),
        (formed(json!({"name": "a b"})), Refused("response_format.json_schema.name")),
        (formed(json!({"name": "n", "schema": 1})), Refused("response_format.json_schema.schema")),
        (formed(json!({"name": "n", "x": 1})), Refused("response_format.json_schema.x")),
        (
            json!({"response_format": {"type": "json_object"},
                "structured_outputs": {"regex": "a"}}),
            Refused("structured_outputs"),
        ),
        (json!({"response_format": {"type": "json_object"}, "tools": tools}), Taken),
        (json!({"response_format": {"type": "xml"}}), Refused("response_format.type")),
        (json!({"modalities": ["text"]}), Taken),
        (json!({"modalities": ["text", "audio"]}), Refused("modalities")),
        (json!({"verbosity": "medium"}), Taken),
        (json!({"verbosity": "low"}), Refused("verbosity")),
        (json!({"audio": {}}), Refused("audio")),
        (json!({"prediction": {}}), Refused("prediction")),
        (json!({"web_search_options": {}}), Refused("web_search_options")),
        (json!({"functions": []}), Refused("functions")),
        (json!({"function_call": "auto"}), Refused("function_call")),
        (json!({"tools": tools}), Taken),
        (json!({"tools": []}), Taken),
        (json!({"tools": tools, "tool_choice": "auto"}), Taken),
        (json!({"tools": tools, "tool_choice": "none"}), Taken),
        (json!({"tools": tools, "tool_choice": "required"}), Taken),
        (json!({"tools": tools, "tool_choice": named}), Taken),
        (json!({"tools": tools, "tool_choice": other}), Refused("tool_choice.function.name")),
        (json!({"tools": tools, "tool_choice": {"type": "x"}}), Refused("tool_choice.type")),
        (json!({"tools": tools, "tool_choice": "most"}), Refused("tool_choice")),
        (allowed("auto", json!([named])), Taken),
        (allowed("required", json!([named, named])), Taken),
        (allowed("none", json!([named])), Refused("tool_choice.allowed_tools.mode")),
        (allowed("auto", json!([])), Refused("tool_choice.allowed_tools.tools")),
        (
            allowed("auto", json!([named, other])),
            Refused("tool_choice.allowed_tools.tools[1].function.name"),
        ),
        (
            allowed("auto", json!([{"type": "mcp"}])),
            Refused("tool_choice.allowed_tools.tools[0].type"),
        ),
        (
            allowed("auto", json!([{"type": "function", "name": "f"}])),
            Refused("tool_choice.allowed_tools.tools[0].function"),
        ),
        (
            json!({"tools": tools, "tool_choice": {"type": "allowed_tools", "mode": "auto"}}),
            Refused("tool_choice.allowed_tools"),
        ),
        (
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}}),
            Refused("tool_choice"),
        ),
        (json!({"tool_choice": "required"}), Refused("tool_choice")),
        (json!({"tools": tools, "parallel_tool_calls": true}), Taken),
        (json!({"tools": tools, "parallel_tool_calls": false}), Taken),
        (json!({"tools": strict}), Taken),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]}),
            Refused("tools[0].function.strict"),
        ),
        (json!({"tools": [{"type": "x"}]}), Refused("tools[0].type")),
        (json!({"tools": [{"type": "function"}]}), Refused("tools[0].function")),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            Refused("tools[0].function.name"),
        ),
        (json!({"echo": false}), Refused("echo")),
        (json!({"best_of": 1}), Refused("best_of")),
    ];
    check("/v1/chat/completions", &chat(json!({})), &table);
}

#[test]
fn every_field_of_messages_takes_effect_or_is_refused() {
    let one = |message: Value| json!({"messages": [message]});
    let user = |content: Value| one(json!({"role": "user", "content": content}));
    let call = json!({"id": "c1", "type": "function",
                      "function": {"name": "f", "arguments": "{}"}});
    let assistant = json!({"role": "assistant", "content": null, "tool_calls": [call],
                           "refusal": null, "annotations": [], "audio": null,
                           "reasoning_content": "two"});
    let result = json!({"role": "tool", "tool_call_id": "c1", "content": "one"});
    let image = json!([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]);
    let table = [
        (json!({"messages": null}), Refused("messages")),
        (json!({"messages": []}), Refused("messages")),
        (json!({"messages": [1]}), Refused("messages[0]")),
        (user(json!("hi")), Taken),
        (user(json!([{"type": "text", "text": "hi"}, {"type": "text", "text": "one"}])), Taken),
        (user(Value::Null), Refused("messages[0].content")),
        (user(json!(7)), Refused("messages[0].content")),
        (user(json!([{"type": "text"}])), Refused("messages[0].content[0].text")),
        (user(image), Refused("messages[0].content[0].type")),
        (one(json!({"role": "king", "content": "hi"})), Refused("messages[0].role")),
        (one(json!({"content": "hi"})), Refused("messages[0].role")),
        (one(json!({"role": "user", "content": "hi", "name": "u"})), Taken),
        (one(json!({"role": "user", "content": "hi", "x": 1})), Refused("messages[0].x")),
        (one(json!({"role": "tool", "content": "hi"})), Refused("messages[0].tool_call_id")),
        (
            one(json!({"role": "assistant", "content": "a", "refusal": "no"})),
            Refused("messages[0].refusal"),
        ),
        (
            json!({"messages": [{"role": "developer", "content": "hi"},
                                {"role": "user", "content": "hi"}, assistant, result]}),
            Taken,
        ),
    ];
    check("/v1/chat/completions", &chat(json!({})), &table);
}

#[test]
fn embeddings_are_refused_and_not_made_of_a_chat_models_states() {
    let served = Setup::from(Script::default()).serve();
    let body = json!({"model": "tiny", "input": "x"});
    assert_eq!(served.post("/v1/embeddings", &body).refused(400).as_deref(), Some("model"));
}
