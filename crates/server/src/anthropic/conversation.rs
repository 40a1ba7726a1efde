//! From the fields of a request to what a template makes a prompt of.

use serde_json::json;
use text::{JsonMap, Role};

use super::blocks::Turns;
use super::tools::tools;
use crate::failure::Failure;
use crate::generation::{Form, SaidForm, Tools};
use crate::http::fields::Fields;
use crate::openai::schema;
use crate::prompter::Conversation;

/// As Anthropic has it.
pub const MIN_BUDGET_TOKENS: u32 = 1024;

/// The fields that messages and the counting of their tokens share.
pub fn conversation(
    fields: &mut Fields,
    max_tokens: Option<u32>,
) -> Result<(Conversation, Form), Failure> {
    let mut turns = Turns::default();
    turns.system(fields)?;
    let Tools { list: tools, calls, allowed, has_one_call } = tools(fields, &mut turns)?;
    let messages = fields.objects("messages")?;
    if messages.is_empty() {
        return Err(fields.invalid("messages", "must be a list of at least one message"));
    }
    for message in messages {
        turns.message(message)?;
    }
    // A mark for the whole request is one behind its last block.
    turns.mark(fields)?;
    let (messages, marks) = turns.finish();
    if messages.last().is_some_and(|last| last.role == Role::Assistant) {
        let reason = "must not end with the assistant: answers cannot be begun for the model";
        return Err(fields.invalid("messages", reason));
    }
    let mut kwargs = JsonMap::new();
    let max_reasoning_tokens = thinking(fields, max_tokens, &mut kwargs)?;
    let said = output(fields, &mut kwargs)?;
    context_management(fields)?;
    fields.only("speed", &[json!("standard")])?;
    let conversation = Conversation { messages, tools, kwargs, marks, ..Conversation::default() };
    Ok((conversation, Form { said, calls, allowed, has_one_call, max_reasoning_tokens }))
}

/// Without the field a model does not think, as the API has it. Gives the bound of thoughts.
fn thinking(
    fields: &mut Fields,
    max_tokens: Option<u32>,
    kwargs: &mut JsonMap,
) -> Result<Option<u32>, Failure> {
    kwargs.insert("enable_thinking".into(), false.into());
    let Some(mut thinking) = fields.object("thinking")? else { return Ok(None) };
    let words = ["enabled", "adaptive", "disabled"];
    let word = thinking.word("type", &words)?;
    let word = word.ok_or_else(|| thinking.invalid("type", "is missing"))?;
    if word != "disabled" {
        kwargs.insert("enable_thinking".into(), true.into());
        thinking.only("display", &[json!("summarized")])?;
    }
    let mut bound = None;
    if word == "enabled" {
        let budget = thinking.u32("budget_tokens", MIN_BUDGET_TOKENS)?;
        let budget = budget.ok_or_else(|| thinking.invalid("budget_tokens", "is missing"))?;
        if max_tokens.is_some_and(|max_tokens| budget >= max_tokens) {
            return Err(thinking.invalid("budget_tokens", "must be less than max_tokens"));
        }
        kwargs.insert("thinking_budget".into(), budget.into());
        bound = Some(budget);
    }
    thinking.end()?;
    Ok(bound)
}

/// What an answer has to look like; its older place is the request itself.
fn output(fields: &mut Fields, kwargs: &mut JsonMap) -> Result<Option<SaidForm>, Failure> {
    let older = fields.object("output_format")?.map(format).transpose()?;
    let Some(mut config) = fields.object("output_config")? else { return Ok(older) };
    if let Some(effort) = config.word("effort", &["low", "medium", "high", "xhigh", "max"])? {
        kwargs.insert("reasoning_effort".into(), effort.into());
    }
    let newer = config.object("format")?.map(format).transpose()?;
    config.end()?;
    if older.is_some() && newer.is_some() {
        let reason = "and output_config.format are the same: send one of them";
        return Err(fields.invalid("output_format", reason));
    }
    Ok(newer.or(older))
}

fn format(mut format: Fields) -> Result<SaidForm, Failure> {
    if format.required_string("type")? != "json_schema" {
        return Err(format.invalid("type", "must be json_schema"));
    }
    let form = schema(&mut format)?;
    let form = form.ok_or_else(|| format.invalid("schema", "is missing"))?;
    format.end()?;
    Ok(form)
}

/// Claude Code asks that thoughts be kept, which is what happens; nothing can be cleared.
fn context_management(fields: &mut Fields) -> Result<(), Failure> {
    let Some(mut management) = fields.object("context_management")? else { return Ok(()) };
    for mut edit in management.objects("edits")? {
        edit.only("type", &[json!("clear_thinking_20251015")])?;
        edit.only("keep", &[json!("all")])?;
        edit.end()?;
    }
    management.end()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hub::ModelFolder;
    use protocol::BoundaryKind;
    use serde_json::Value;
    use text::{Content, Message};

    use super::*;
    use crate::prompter::Prompter;

    fn read(body: Value) -> Conversation {
        let mut fields = Fields::of("", body).unwrap();
        let (conversation, _) = conversation(&mut fields, None).unwrap();
        fields.end().unwrap();
        conversation
    }

    /// What the bundled model's template makes of what comes before each mark.
    fn before_marks(body: Value) -> Vec<String> {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let prompter = Prompter::load(&ModelFolder::open(&demo).unwrap()).unwrap();
        let prompt = prompter.chat(read(body), 0).unwrap();
        let named = prompt.boundaries.iter().filter(|seam| seam.kind == BoundaryKind::Named);
        named.map(|seam| prompter.excerpt(&prompt.tokens[..seam.at as usize])).collect()
    }

    #[test]
    fn marks_lie_where_the_template_puts_what_they_mark() {
        let text = |text: &str| json!({"type": "text", "text": text});
        let mark = json!({"type": "ephemeral"});
        let marked = |text: &str| json!({"type": "text", "text": text, "cache_control": mark});
        let tool = json!({"name": "f", "input_schema": {"type": "object"},
                          "cache_control": {"type": "ephemeral"}});
        let body = json!({
            "system": [marked("Be brief."), text("Be kind.")],
            "tools": [tool],
            "messages": [
                {"role": "user", "content": [text("One?"), marked("Two?")]},
                {"role": "assistant", "content": "Three."},
                {"role": "user", "content": [marked("Four?"), text("Five?")]},
            ],
        });
        let [in_system, tools, turn, in_turn] = &before_marks(body)[..] else { panic!("four") };
        assert!(in_system.ends_with("Be brief."), "{in_system}");
        assert!(tools.contains("Be kind.") && tools.contains("<tools>"), "{tools}");
        assert!(tools.ends_with("<|im_end|>\n") && !tools.contains("One?"), "{tools}");
        assert!(turn.ends_with("Two?<|im_end|>\n"), "{turn}");
        assert!(in_turn.ends_with("Four?"), "{in_turn}");
        // Tools without a system text have a seam too.
        let tool = json!({"name": "f", "input_schema": {},
                          "cache_control": {"type": "ephemeral"}});
        let messages = json!([{"role": "user", "content": "One?"}]);
        let before = before_marks(json!({"tools": [tool], "messages": messages}));
        assert!(before[0].contains("</tools>") && before[0].ends_with("<|im_end|>\n"));
    }

    #[test]
    fn blocks_become_the_messages_that_templates_know() {
        let conversation = read(json!({
            "thinking": {"type": "enabled", "budget_tokens": 2048},
            "output_config": {"effort": "low"},
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "user", "content": "there"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "so"},
                    {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "is_error": true,
                     "content": [{"type": "text", "text": "no"}]},
                    {"type": "text", "text": "go on"},
                ]},
            ],
        }));
        let [user, assistant, result, last] = &conversation.messages[..] else { panic!("four") };
        assert_eq!(user.content, Content::Parts(vec!["hi".into(), "there".into()]));
        assert_eq!(assistant.reasoning_content.as_deref(), Some("hm"));
        assert_eq!(assistant.content, Content::Text("so".into()));
        let call = &assistant.tool_calls[0];
        assert_eq!((call.name.as_str(), &call.arguments), ("f", &json!({"a": 1})));
        let expected = Message {
            tool_call_id: Some("c1".into()),
            name: Some("f".into()),
            ..Message::new(Role::Tool, "Error:\nno")
        };
        assert_eq!(result, &expected);
        assert_eq!(last, &Message::new(Role::User, "go on"));
        let kwargs = json!({"enable_thinking": true, "thinking_budget": 2048,
                            "reasoning_effort": "low"});
        assert_eq!(Value::Object(conversation.kwargs), kwargs);
        let silent = read(json!({"messages": [{"role": "user", "content": "hi"}]}));
        assert_eq!(Value::Object(silent.kwargs), json!({"enable_thinking": false}));
    }
}
