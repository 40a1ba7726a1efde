//! Every field of Anthropic's requests, each with what becomes of it: no field is ignored unsaid.

use serde_json::{Value, json};

use crate::fates::Fate::{Refused, Taken};
use crate::fates::{Fate, check};
use crate::served::set;

fn base() -> Value {
    json!({"model": "tiny", "max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}]})
}

#[test]
fn every_field_of_messages_takes_effect_or_is_refused() {
    let table = [
        (json!({"max_tokens": null}), Refused("max_tokens")),
        (json!({"max_tokens": 0}), Refused("max_tokens")),
        (json!({"max_tokens": -1}), Refused("max_tokens")),
        (json!({"max_tokens": 1e12}), Refused("max_tokens")),
        (json!({"model": null}), Refused("model")),
        (json!({"stream": true}), Taken),
        (json!({"stream": 1}), Refused("stream")),
        (json!({"stop_sequences": ["x", "y"]}), Taken),
        (json!({"stop_sequences": [""]}), Refused("stop_sequences")),
        (json!({"stop_sequences": [1]}), Refused("stop_sequences")),
        (json!({"stop_sequences": vec!["x"; 65]}), Refused("stop_sequences")),
        (json!({"temperature": 0.5}), Taken),
        (json!({"temperature": -1}), Refused("temperature")),
        (json!({"temperature": 1e30}), Refused("temperature")),
        (json!({"top_p": 0.5}), Taken),
        (json!({"top_p": 0}), Refused("top_p")),
        (json!({"top_k": 5}), Taken),
        (json!({"top_k": -1}), Refused("top_k")),
        (json!({"metadata": {"user_id": "u"}}), Taken),
        (json!({"metadata": {"name": "u"}}), Refused("metadata.name")),
        (json!({"service_tier": "auto"}), Taken),
        (json!({"service_tier": "standard_only"}), Taken),
        (json!({"service_tier": "priority"}), Refused("service_tier")),
        (json!({"cache_salt": "mine"}), Taken),
        (json!({"cache_salt": "a\u{0}b"}), Refused("cache_salt")),
        (json!({"container": "c"}), Refused("container")),
        (json!({"mcp_servers": []}), Refused("mcp_servers")),
        (json!({"inference_geo": "us"}), Refused("inference_geo")),
        (json!({"diagnostics": {}}), Refused("diagnostics")),
        (json!({"n": 2}), Refused("n")),
        (json!({"seed": 2}), Refused("seed")),
        (json!({"prompt": "x"}), Refused("prompt")),
    ];
    check("/v1/messages", &base(), &table);
}

/// Fields that messages and the counting of their tokens share.
fn shared() -> Vec<(Value, Fate)> {
    let thinking = |kind: &str, more: Value| {
        let mut thinking = json!({"type": kind});
        set(&mut thinking, &more);
        json!({"thinking": thinking})
    };
    let clear = |keep: Value| {
        let edit = json!({"type": "clear_thinking_20251015", "keep": keep});
        json!({"context_management": {"edits": [edit]}})
    };
    let schema = json!({"type": "json_schema", "schema": {"type": "object"}});
    vec![
        (json!({"system": "one"}), Taken),
        (json!({"system": [{"type": "text", "text": "one"}]}), Taken),
        (json!({"system": []}), Taken),
        (json!({"system": 1}), Refused("system")),
        (json!({"system": [{"type": "image"}]}), Refused("system[0].type")),
        (json!({"system": [{"type": "text"}]}), Refused("system[0].text")),
        (thinking("disabled", json!({})), Taken),
        (thinking("adaptive", json!({"display": "summarized"})), Taken),
        (thinking("adaptive", json!({"display": "omitted"})), Refused("thinking.display")),
        (thinking("enabled", json!({"budget_tokens": 1024})), Taken),
        (thinking("enabled", json!({"budget_tokens": 1023})), Refused("thinking.budget_tokens")),
        (thinking("enabled", json!({})), Refused("thinking.budget_tokens")),
        (thinking("disabled", json!({"budget_tokens": 1024})), Refused("thinking.budget_tokens")),
        (thinking("between_tools", json!({})), Refused("thinking.type")),
        (json!({"thinking": {}}), Refused("thinking.type")),
        (json!({"output_config": {"effort": "high"}}), Taken),
        (json!({"output_config": {"effort": "most"}}), Refused("output_config.effort")),
        (json!({"output_config": {"format": {}}}), Refused("output_config.format.type")),
        (json!({"output_config": {"format": schema}}), Taken),
        (json!({"output_format": schema}), Taken),
        (
            json!({"output_format": schema, "output_config": {"format": schema}}),
            Refused("output_format"),
        ),
        (json!({"output_format": {"type": "json_schema"}}), Refused("output_format.schema")),
        (json!({"output_format": {"type": "json_object"}}), Refused("output_format.type")),
        (clear(json!("all")), Taken),
        (clear(json!({"type": "thinking_turns"})), Refused("context_management.edits[0].keep")),
        (
            json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
            Refused("context_management.edits[0].type"),
        ),
        (json!({"speed": "standard"}), Taken),
        (json!({"speed": "fast"}), Refused("speed")),
        (json!({"cache_control": {"type": "ephemeral"}}), Taken),
        (json!({"cache_control": {"type": "ephemeral", "ttl": "1h"}}), Taken),
        (
            json!({"cache_control": {"type": "ephemeral", "ttl": "2h"}}),
            Refused("cache_control.ttl"),
        ),
        (json!({"cache_control": {"type": "eternal"}}), Refused("cache_control.type")),
        (json!({"cache_control": {"type": "ephemeral", "scope": "global"}}), Taken),
        (
            json!({"cache_control": {"type": "ephemeral", "scope": "mine"}}),
            Refused("cache_control.scope"),
        ),
        (json!({"unheard_of": 1}), Refused("unheard_of")),
    ]
}

#[test]
fn fields_of_conversations_take_effect_or_are_refused_also_where_they_are_counted() {
    check("/v1/messages", &base(), &shared());
    let mut base = base();
    base.as_object_mut().unwrap().remove("max_tokens");
    check("/v1/messages/count_tokens", &base, &shared());
    let table = [
        (json!({"max_tokens": 3}), Refused("max_tokens")),
        (json!({"stream": true}), Refused("stream")),
    ];
    check("/v1/messages/count_tokens", &base, &table);
}

#[test]
fn every_field_of_tools_takes_effect_or_is_refused() {
    let tool = |more: Value| {
        let mut tool = json!({"name": "f", "input_schema": {"type": "object"}});
        set(&mut tool, &more);
        json!({"tools": [tool]})
    };
    let with = |choice: Value| {
        let mut fields = tool(json!({}));
        fields["tool_choice"] = choice;
        fields
    };
    let parallel = "tool_choice.disable_parallel_tool_use";
    let table = [
        (tool(json!({"description": "d", "type": "custom"})), Taken),
        (tool(json!({"type": "bash_20250124"})), Refused("tools[0].type")),
        (tool(json!({"name": "a b"})), Refused("tools[0].name")),
        (tool(json!({"name": null})), Refused("tools[0].name")),
        (tool(json!({"input_schema": null})), Refused("tools[0].input_schema")),
        (tool(json!({"input_schema": []})), Refused("tools[0].input_schema")),
        (tool(json!({"strict": false})), Taken),
        (tool(json!({"strict": true})), Taken),
        (tool(json!({"strict": "yes"})), Refused("tools[0].strict")),
        (tool(json!({"defer_loading": true})), Refused("tools[0].defer_loading")),
        (tool(json!({"allowed_callers": ["direct"]})), Taken),
        (
            tool(json!({"allowed_callers": ["code_execution_20250825"]})),
            Refused("tools[0].allowed_callers"),
        ),
        (tool(json!({"input_examples": [{}]})), Refused("tools[0].input_examples")),
        (tool(json!({"eager_input_streaming": true})), Taken),
        (tool(json!({"cache_control": {"type": "ephemeral"}})), Taken),
        (tool(json!({"x": 1})), Refused("tools[0].x")),
        (with(json!({"type": "auto"})), Taken),
        (with(json!({"type": "auto", "disable_parallel_tool_use": false})), Taken),
        (with(json!({"type": "auto", "disable_parallel_tool_use": true})), Taken),
        (with(json!({"type": "auto", "disable_parallel_tool_use": 1})), Refused(parallel)),
        (with(json!({"type": "none"})), Taken),
        (with(json!({"type": "any"})), Taken),
        (with(json!({"type": "tool", "name": "f"})), Taken),
        (with(json!({"type": "tool", "name": "g"})), Refused("tool_choice.name")),
        (with(json!({"type": "tool"})), Refused("tool_choice.name")),
        (with(json!({"type": "x"})), Refused("tool_choice.type")),
        (with(json!("auto")), Refused("tool_choice")),
    ];
    check("/v1/messages", &base(), &table);
}

#[test]
fn every_block_takes_effect_or_is_refused() {
    let one =
        |role: &str, content: Value| json!({"messages": [{"role": role, "content": content}]});
    let user = |block: Value| one("user", json!([block]));
    let call = json!({"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1},
                      "caller": {"type": "direct"}});
    let turns = |of_model: Value, block: Value| {
        json!({"messages": [{"role": "user", "content": "hi"},
                            {"role": "assistant", "content": of_model},
                            {"role": "user", "content": [block]}]})
    };
    let text = json!({"type": "text", "text": "one"});
    let answered =
        |result: Value| turns(json!([{"type": "text", "text": "two"}, call.clone()]), result);
    let result = |content: Value| {
        answered(json!({"type": "tool_result", "tool_use_id": "c1", "content": content}))
    };
    let image =
        json!({"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}});
    let marked = json!({"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}});
    let call_without = |name: &str| {
        let mut call = call.clone();
        call[name] = Value::Null;
        turns(json!([call]), text.clone())
    };
    let table = [
        (json!({"messages": []}), Refused("messages")),
        (json!({"messages": [1]}), Refused("messages[0]")),
        (one("king", json!("hi")), Refused("messages[0].role")),
        (one("user", Value::Null), Refused("messages[0].content")),
        (one("user", json!([])), Refused("messages[0].content")),
        (one("user", json!(7)), Refused("messages[0].content")),
        (one("assistant", json!("one")), Refused("messages")),
        (
            json!({"messages": [{"role": "user", "content": "hi", "x": 1}]}),
            Refused("messages[0].x"),
        ),
        (
            json!({"messages": [{"role": "user", "content": "hi"},
                                {"role": "system", "content": "one"}]}),
            Taken,
        ),
        (user(text.clone()), Taken),
        (user(json!({"type": "text", "text": "one", "citations": null})), Taken),
        (
            user(json!({"type": "text", "text": "one", "citations": [{}]})),
            Refused("messages[0].content[0].citations"),
        ),
        (user(json!({"type": "text"})), Refused("messages[0].content[0].text")),
        (user(json!({"text": "one"})), Refused("messages[0].content[0].type")),
        (user(image.clone()), Refused("messages[0].content[0].type")),
        (user(json!({"type": "document"})), Refused("messages[0].content[0].type")),
        (user(json!({"type": "search_result"})), Refused("messages[0].content[0].type")),
        (user(json!({"type": "thinking"})), Refused("messages[0].content[0].type")),
        (user(call.clone()), Refused("messages[0].content[0].type")),
        (one("user", json!([marked, marked, marked, marked])), Taken),
        (
            one("user", json!([marked, marked, marked, marked, marked])),
            Refused("messages[0].content[4].cache_control"),
        ),
        (
            turns(json!([{"type": "thinking", "thinking": "hm", "signature": "s"}]), text.clone()),
            Taken,
        ),
        (
            turns(json!([{"type": "redacted_thinking", "data": "x"}]), text.clone()),
            Refused("messages[1].content[0].type"),
        ),
        (turns(json!([]), text.clone()), Taken),
        (call_without("id"), Refused("messages[1].content[0].id")),
        (call_without("name"), Refused("messages[1].content[0].name")),
        (call_without("input"), Refused("messages[1].content[0].input")),
        (result(json!("one")), Taken),
        (result(Value::Null), Taken),
        (result(json!([text])), Taken),
        (result(json!([image])), Refused("messages[2].content[0].content[0].type")),
        (answered(json!({"type": "tool_result", "tool_use_id": "c1", "is_error": true})), Taken),
        (
            answered(json!({"type": "tool_result", "tool_use_id": "c2"})),
            Refused("messages[2].content[0].tool_use_id"),
        ),
    ];
    check("/v1/messages", &base(), &table);
}
