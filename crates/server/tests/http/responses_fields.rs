//! Every field of requests for responses, each with what becomes of it: no field is ignored unsaid.

use serde_json::{Value, json};

use crate::fates::Fate::{Refused, Taken};
use crate::fates::check;
use crate::served::set;

fn base() -> Value {
    json!({"model": "tiny", "input": "hi"})
}

#[test]
fn every_field_takes_effect_or_is_refused() {
    let pairs: serde_json::Map<_, _> = (0..17).map(|n| (n.to_string(), json!("x"))).collect();
    let table = [
        (json!({"model": null}), Refused("model")),
        (json!({"model": 1}), Refused("model")),
        (json!({"instructions": "one"}), Taken),
        (json!({"instructions": [{"role": "user", "content": "x"}]}), Refused("instructions")),
        (json!({"max_output_tokens": 3}), Taken),
        (json!({"max_output_tokens": 0}), Refused("max_output_tokens")),
        (json!({"max_output_tokens": 1e12}), Refused("max_output_tokens")),
        (json!({"max_tool_calls": 3}), Taken),
        (json!({"max_tool_calls": "3"}), Refused("max_tool_calls")),
        (json!({"temperature": 0.5, "top_p": 0.5}), Taken),
        (json!({"temperature": -1}), Refused("temperature")),
        (json!({"top_p": 0}), Refused("top_p")),
        (json!({"store": true}), Taken),
        (json!({"store": "yes"}), Refused("store")),
        (json!({"stream": true}), Taken),
        (json!({"stream": 1}), Refused("stream")),
        (json!({"stream": true, "stream_options": {"include_obfuscation": false}}), Taken),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            Refused("stream_options.include_obfuscation"),
        ),
        (
            json!({"stream": true, "stream_options": {"include_usage": true}}),
            Refused("stream_options.include_usage"),
        ),
        (json!({"stream_options": {}}), Refused("stream_options")),
        (json!({"previous_response_id": 7}), Refused("previous_response_id")),
        (json!({"metadata": {"a": "b"}}), Taken),
        (json!({"metadata": {"a": 1}}), Refused("metadata")),
        (json!({"metadata": {"a": "x".repeat(513)}}), Refused("metadata")),
        (json!({"metadata": {"x".repeat(65): "a"}}), Refused("metadata")),
        (json!({"metadata": pairs}), Refused("metadata")),
        (json!({"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"}), Taken),
        (json!({"user": 1}), Refused("user")),
        (json!({"safety_identifier": 1}), Refused("safety_identifier")),
        (json!({"prompt_cache_key": 1}), Refused("prompt_cache_key")),
        (json!({"prompt_cache_retention": "24h"}), Taken),
        (json!({"prompt_cache_retention": "1h"}), Refused("prompt_cache_retention")),
        (json!({"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}), Taken),
        (
            json!({"prompt_cache_options": {"mode": "explicit"}}),
            Refused("prompt_cache_options.mode"),
        ),
        (
            json!({"prompt_cache_options": {"prewarm": true}}),
            Refused("prompt_cache_options.prewarm"),
        ),
        (
            json!({"prompt_cache_options": {"comparison_response_id": "x"}}),
            Refused("prompt_cache_options.comparison_response_id"),
        ),
        (json!({"service_tier": "default"}), Taken),
        (json!({"service_tier": "flex"}), Refused("service_tier")),
        (json!({"truncation": "disabled"}), Taken),
        (json!({"truncation": "auto"}), Refused("truncation")),
        (json!({"background": false}), Taken),
        (json!({"background": true}), Refused("background")),
        (json!({"background_options": {}}), Refused("background_options")),
        (json!({"conversation": "c"}), Refused("conversation")),
        (json!({"prompt": {"id": "p"}}), Refused("prompt")),
        (json!({"context_management": []}), Refused("context_management")),
        (json!({"image": {}}), Refused("image")),
        (json!({"moderation": {}}), Refused("moderation")),
        (json!({"access_programs": {}}), Refused("access_programs")),
        (json!({"include": ["message.output_text.logprobs"], "top_logprobs": 20}), Taken),
        (json!({"include": ["reasoning.encrypted_content"]}), Taken),
        (json!({"include": ["web_search_call.results"]}), Refused("include[0]")),
        (json!({"include": "x"}), Refused("include")),
        (json!({"top_logprobs": 0}), Taken),
        (json!({"top_logprobs": 1}), Refused("top_logprobs")),
        (
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 21}),
            Refused("top_logprobs"),
        ),
        (json!({"top_k": 5, "seed": 7, "cache_salt": "s", "keep_alive": 60}), Taken),
        (json!({"cache_salt": "a\u{0}b"}), Refused("cache_salt")),
        (json!({"enable_thinking": true, "thinking_budget": 3}), Taken),
        (json!({"thinking_budget": -1}), Refused("thinking_budget")),
        (json!({"chat_template_kwargs": {"messages": []}}), Refused("chat_template_kwargs")),
        (json!({"stop": "x"}), Refused("stop")),
        (json!({"n": 2}), Refused("n")),
        (json!({"messages": []}), Refused("messages")),
        (json!({"max_tokens": 2}), Refused("max_tokens")),
        (json!({"response_format": {"type": "text"}}), Refused("response_format")),
        (json!({"reasoning_effort": "low"}), Refused("reasoning_effort")),
    ];
    check("/v1/responses", &base(), &table);
}

#[test]
fn every_field_of_thinking_forms_and_tools_takes_effect_or_is_refused() {
    let function = |more: Value| {
        let mut tool = json!({"type": "function", "name": "f"});
        set(&mut tool, &more);
        json!({"tools": [tool]})
    };
    let plain = json!({"type": "function", "name": "f"});
    let chosen = |choice: Value| json!({"tools": [plain], "tool_choice": choice});
    let allowed = |mode: &str, tools: Value| {
        chosen(json!({"type": "allowed_tools", "mode": mode, "tools": tools}))
    };
    let formed = |more: Value| {
        let mut format = json!({"type": "json_schema", "name": "n"});
        set(&mut format, &more);
        json!({"text": {"format": format}})
    };
    let whole = json!({"description": "d", "parameters": {"type": "object"}, "strict": false,
                       "async": false, "defer_loading": false, "allowed_callers": ["direct"]});
    let table = [
        (json!({"reasoning": {"effort": "none"}}), Taken),
        (json!({"reasoning": {"effort": "max"}}), Taken),
        (json!({"reasoning": {"effort": "most"}}), Refused("reasoning.effort")),
        (json!({"reasoning": {"summary": "auto", "generate_summary": "auto"}}), Taken),
        (json!({"reasoning": {"summary": "concise"}}), Refused("reasoning.summary")),
        (
            json!({"reasoning": {"generate_summary": "detailed"}}),
            Refused("reasoning.generate_summary"),
        ),
        (json!({"reasoning": {"context": "auto", "mode": "standard"}}), Taken),
        (json!({"reasoning": {"context": "all_turns"}}), Refused("reasoning.context")),
        (json!({"reasoning": {"mode": "pro"}}), Refused("reasoning.mode")),
        (json!({"reasoning": {"x": 1}}), Refused("reasoning.x")),
        (json!({"text": {"format": {"type": "text"}, "verbosity": "medium"}}), Taken),
        (json!({"text": {"format": {"type": "json_object"}}}), Taken),
        (formed(json!({"schema": {"type": "object"}, "strict": true, "description": "d"})), Taken),
        (formed(json!({"name": "a b"})), Refused("text.format.name")),
        (formed(json!({"schema": 1})), Refused("text.format.schema")),
        (formed(json!({"json_schema": {}})), Refused("text.format.json_schema")),
        (
            json!({"text": {"format": {"type": "json_object"}},
                   "structured_outputs": {"regex": "a"}}),
            Refused("structured_outputs"),
        ),
        (json!({"text": {"format": {"type": "xml"}}}), Refused("text.format.type")),
        (json!({"text": {"verbosity": "low"}}), Refused("text.verbosity")),
        (json!({"text": {"x": 1}}), Refused("text.x")),
        (json!({"tools": []}), Taken),
        (function(whole), Taken),
        (function(json!({"name": "a b"})), Refused("tools[0].name")),
        (function(json!({"name": null})), Refused("tools[0].name")),
        (function(json!({"parameters": 1})), Refused("tools[0].parameters")),
        (function(json!({"strict": true})), Taken),
        (function(json!({"strict": 1})), Refused("tools[0].strict")),
        (function(json!({"async": true})), Refused("tools[0].async")),
        (function(json!({"defer_loading": true})), Refused("tools[0].defer_loading")),
        (function(json!({"allowed_callers": []})), Refused("tools[0].allowed_callers")),
        (function(json!({"output_schema": {}})), Refused("tools[0].output_schema")),
        (function(json!({"function": {}})), Refused("tools[0].function")),
        (json!({"tools": [{"type": "web_search"}]}), Refused("tools[0].type")),
        (json!({"tools": [{"type": "mcp"}]}), Refused("tools[0].type")),
        (json!({"tools": [{"type": "custom"}]}), Refused("tools[0].type")),
        (chosen(json!("auto")), Taken),
        (chosen(json!("none")), Taken),
        (chosen(json!("required")), Taken),
        (chosen(json!("most")), Refused("tool_choice")),
        (chosen(json!({"type": "function", "name": "f"})), Taken),
        (chosen(json!({"type": "function", "name": "g"})), Refused("tool_choice.name")),
        (chosen(json!({"type": "function"})), Refused("tool_choice.name")),
        (chosen(json!({"type": "x"})), Refused("tool_choice.type")),
        (allowed("auto", json!([plain])), Taken),
        (allowed("required", json!([plain])), Taken),
        (allowed("most", json!([plain])), Refused("tool_choice.mode")),
        (allowed("auto", json!([])), Refused("tool_choice.tools")),
        (
            allowed("auto", json!([plain, {"type": "function", "name": "g"}])),
            Refused("tool_choice.tools[1].name"),
        ),
        (allowed("auto", json!([{"type": "mcp"}])), Refused("tool_choice.tools[0].type")),
        (
            allowed("auto", json!([{"type": "function", "function": {"name": "f"}}])),
            Refused("tool_choice.tools[0].name"),
        ),
        (chosen(json!({"type": "allowed_tools"})), Refused("tool_choice.mode")),
        (chosen(json!({"type": "allowed_tools", "mode": "auto"})), Refused("tool_choice.tools")),
        (json!({"tool_choice": "required"}), Refused("tool_choice")),
        (json!({"parallel_tool_calls": true}), Taken),
        (
            json!({"tools": [{"type": "function", "name": "f"}], "parallel_tool_calls": false}),
            Taken,
        ),
    ];
    check("/v1/responses", &base(), &table);
}

#[test]
fn every_item_and_every_field_of_it_is_read_or_refused() {
    let one = |item: Value| json!({"input": [item]});
    let message = |content: Value| one(json!({"role": "user", "content": content}));
    let made = json!({"type": "output_text", "text": "one", "annotations": [], "logprobs": []});
    let answer = |more: Value| {
        let mut item = json!({"type": "message", "id": "msg_1", "role": "assistant",
                              "status": "completed", "content": [made]});
        set(&mut item, &more);
        one(item)
    };
    let thought = |more: Value| {
        let mut item = json!({"type": "reasoning", "id": "rs_1", "summary": [],
                              "content": [{"type": "reasoning_text", "text": "one"}]});
        set(&mut item, &more);
        // The template of this model shows no thoughts.
        json!({"input": [{"role": "user", "content": "hi"}, item]})
    };
    let called = |call: Value, output: Value| {
        let mut items = [
            json!({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}),
            json!({"type": "function_call_output", "call_id": "c1", "output": "one"}),
        ];
        for (item, more) in items.iter_mut().zip([call, output]) {
            set(item, &more);
        }
        json!({"input": items})
    };
    let nothing = || json!({});
    let direct = json!({"id": "fc_1", "status": "completed", "caller": {"type": "direct"}});
    let texts =
        json!([{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "hi"}]);
    let table = [
        (json!({"input": null}), Refused("input")),
        (json!({"input": 7}), Refused("input")),
        (json!({"input": []}), Refused("input")),
        (json!({"input": ["hi"]}), Refused("input[0]")),
        (message(json!("hi")), Taken),
        (message(texts.clone()), Taken),
        (message(Value::Null), Refused("input[0].content")),
        (message(json!(7)), Refused("input[0].content")),
        (message(json!([{"type": "input_text"}])), Refused("input[0].content[0].text")),
        (
            message(json!([{"type": "input_text", "text": "hi", "x": 1}])),
            Refused("input[0].content[0].x"),
        ),
        (
            message(json!([{"type": "input_text", "text": "hi",
                            "prompt_cache_breakpoint": {"mode": "explicit"}}])),
            Taken,
        ),
        (message(json!([{"type": "text", "text": "hi"}])), Refused("input[0].content[0].type")),
        (message(json!([{"type": "input_image"}])), Refused("input[0].content[0].type")),
        (message(json!([{"type": "input_file"}])), Refused("input[0].content[0].type")),
        (message(json!([made])), Refused("input[0].content[0].type")),
        (one(json!({"role": "system", "content": "hi"})), Taken),
        (one(json!({"role": "developer", "content": "hi", "type": "message"})), Taken),
        (one(json!({"role": "king", "content": "hi"})), Refused("input[0].role")),
        (one(json!({"content": "hi"})), Refused("input[0].role")),
        (one(json!({"role": "user", "content": "hi", "x": 1})), Refused("input[0].x")),
        (
            one(json!({"role": "user", "content": "hi", "phase": "final_answer"})),
            Refused("input[0].phase"),
        ),
        (answer(nothing()), Taken),
        (answer(json!({"phase": "final_answer"})), Taken),
        (answer(json!({"phase": "commentary"})), Refused("input[0].phase")),
        (answer(json!({"status": "odd"})), Refused("input[0].status")),
        (answer(json!({"id": 7})), Refused("input[0].id")),
        (
            answer(json!({"content": [{"type": "refusal", "refusal": "no"}]})),
            Refused("input[0].content[0].type"),
        ),
        (
            answer(json!({"content": [{"type": "output_text", "text": "a", "annotations": [{}]}]})),
            Refused("input[0].content[0].annotations"),
        ),
        (thought(nothing()), Taken),
        (thought(json!({"content": null, "encrypted_content": null})), Taken),
        (thought(json!({"encrypted_content": "x"})), Refused("input[1].encrypted_content")),
        (
            thought(json!({"summary": [{"type": "summary_text", "text": "x"}]})),
            Refused("input[1].summary"),
        ),
        (
            thought(json!({"content": [{"type": "text", "text": "x"}]})),
            Refused("input[1].content[0].type"),
        ),
        (called(nothing(), nothing()), Taken),
        (called(direct, json!({"name": "f", "caller": {"type": "direct"}})), Taken),
        (called(nothing(), json!({"output": texts})), Taken),
        (called(json!({"arguments": {}}), nothing()), Refused("input[0].arguments")),
        (called(json!({"name": null}), nothing()), Refused("input[0].name")),
        (called(json!({"namespace": "n"}), nothing()), Refused("input[0].namespace")),
        (called(json!({"async": true}), nothing()), Refused("input[0].async")),
        (called(json!({"caller": {"type": "program"}}), nothing()), Refused("input[0].caller")),
        (called(nothing(), json!({"call_id": "c2"})), Refused("input[1].call_id")),
        (called(nothing(), json!({"call_id": null})), Refused("input[1].call_id")),
        (called(nothing(), json!({"name": "g"})), Refused("input[1].name")),
        (called(nothing(), json!({"output": null})), Refused("input[1].output")),
        (
            called(nothing(), json!({"output": [{"type": "input_image"}]})),
            Refused("input[1].output[0].type"),
        ),
        (one(json!({"type": "item_reference", "id": "msg_1"})), Refused("input[0].type")),
        (one(json!({"type": "computer_call_output"})), Refused("input[0].type")),
        (one(json!({"type": "web_search_call"})), Refused("input[0].type")),
        (one(json!({"type": "custom_tool_call"})), Refused("input[0].type")),
        (one(json!({"type": "compaction"})), Refused("input[0].type")),
    ];
    check("/v1/responses", &base(), &table);
}
