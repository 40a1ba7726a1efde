//! From items to the messages of a template, and to the items that are kept.
//!
//! Reasoning, a text and calls of the model in a row are one message, in the order in which
//! templates write them; what comes in another order begins a message of its own. So a prompt that
//! goes on from an answer begins with the prompt of that answer, whether the items were kept here
//! or are sent back.

use std::collections::HashMap;

use serde_json::{Value, json};
use text::{Content, Message, Role, ToolCall};

use crate::failure::Failure;
use crate::http::fields::Fields;
use crate::http::random_hex;
use crate::openai::messages;

/// Messages that items make.
#[derive(Debug, Default)]
pub struct Turns {
    messages: Vec<Message>,
    /// The input in the form of answers.
    items: Vec<Value>,
    /// The names of calls by their ids.
    calls: HashMap<String, String>,
}

impl Turns {
    /// Behind a conversation, whose calls may be answered.
    pub fn after(conversation: &[Message]) -> Self {
        let calls = conversation.iter().flat_map(|message| &message.tool_calls);
        let calls = calls.filter_map(|call| Some((call.id.clone()?, call.name.clone())));
        Self { calls: calls.collect(), ..Self::default() }
    }

    /// `input`: a text of the user, or items.
    pub fn input(&mut self, fields: &mut Fields) -> Result<(), Failure> {
        match fields.peek("input") {
            None => return Err(fields.invalid("input", "is missing")),
            Some(Value::String(_)) => {
                let text = fields.required_string("input")?;
                let content = Content::Text(text);
                let shown = json!({"role": "user", "content": parts("input_text", &content)});
                self.shown("message", None, None, shown);
                self.messages.push(Message { content, ..Message::new(Role::User, "") });
                return Ok(());
            }
            Some(Value::Array(items)) if !items.is_empty() => {}
            Some(_) => {
                let reason = "must be a string or a list of at least one item";
                return Err(fields.invalid("input", reason));
            }
        }
        fields.objects("input")?.into_iter().try_for_each(|item| self.item(item))
    }

    fn item(&mut self, mut item: Fields) -> Result<(), Failure> {
        let kind = item.string("type")?.unwrap_or_else(|| "message".into());
        // What clients send back of items that were made here.
        let id = item.string("id")?;
        let status = item.word("status", &["in_progress", "completed", "incomplete"])?;
        let shown = match kind.as_str() {
            "message" => self.message(&mut item)?,
            "reasoning" => self.thought(&mut item)?,
            "function_call" => self.function_call(&mut item)?,
            "function_call_output" => self.output(&mut item)?,
            "item_reference" => {
                let reason = "cannot be item_reference: send the item, or previous_response_id";
                return Err(item.invalid("type", reason));
            }
            kind => {
                let reason = "can only be message, reasoning, function_call or \
                              function_call_output, not";
                return Err(
                    item.invalid("type", format!("{reason} {}", crate::openai::shown(kind)))
                );
            }
        };
        item.end()?;
        self.shown(&kind, id, status, shown);
        Ok(())
    }

    /// Clients tell items by the beginnings of their ids.
    fn shown(&mut self, kind: &str, id: Option<String>, status: Option<&str>, more: Value) {
        let start = match kind {
            "message" => "msg",
            "reasoning" => "rs",
            "function_call" => "fc",
            _ => "fco",
        };
        let id = id.unwrap_or_else(|| format!("{start}_{}", random_hex()));
        let mut item = json!({"type": kind, "id": id, "status": status.unwrap_or("completed")});
        if let (Some(item), Value::Object(more)) = (item.as_object_mut(), more) {
            item.extend(more);
        }
        self.items.push(item);
    }

    fn message(&mut self, item: &mut Fields) -> Result<Value, Failure> {
        let word = item.word("role", &["user", "assistant", "system", "developer"])?;
        let (role, kinds) = match word.ok_or_else(|| item.invalid("role", "is missing"))? {
            "user" => (Role::User, ["input_text"].as_slice()),
            "system" => (Role::System, ["input_text"].as_slice()),
            "developer" => (Role::Developer, ["input_text"].as_slice()),
            _ => (Role::Assistant, ["output_text", "input_text"].as_slice()),
        };
        let content = content(item, "content", kinds)?;
        let shown = json!({"role": word, "content": parts(kinds[0], &content)});
        match role {
            Role::Assistant => {
                item.only("phase", &[json!("final_answer")])?;
                self.answer(content);
            }
            role => self.messages.push(Message { content, ..Message::new(role, "") }),
        }
        Ok(shown)
    }

    fn thought(&mut self, item: &mut Fields) -> Result<Value, Failure> {
        item.only("summary", &[json!([])])?;
        item.refuse("encrypted_content", "only the server that made it reads it")?;
        let mut texts = Vec::new();
        for mut part in item.objects("content")? {
            if part.required_string("type")? != "reasoning_text" {
                return Err(part.invalid("type", "must be reasoning_text"));
            }
            texts.push(part.required_string("text")?);
            part.end()?;
        }
        if !texts.is_empty() {
            self.reasoning(&texts.join("\n"));
        }
        Ok(json!({"summary": [], "content": parts("reasoning_text", &Content::Parts(texts))}))
    }

    fn function_call(&mut self, item: &mut Fields) -> Result<Value, Failure> {
        let (id, name) = (item.required_string("call_id")?, item.required_string("name")?);
        let arguments = item.required_string("arguments")?;
        direct(item)?;
        item.only("async", &[json!(false)])?;
        let shown = json!({"call_id": id, "name": name, "arguments": arguments});
        self.call(id, name, arguments);
        Ok(shown)
    }

    fn output(&mut self, item: &mut Fields) -> Result<Value, Failure> {
        let id = item.required_string("call_id")?;
        let Some(name) = self.calls.get(&id).cloned() else {
            return Err(item.invalid("call_id", "is that of no function_call before it"));
        };
        if item.string("name")?.is_some_and(|given| given != name) {
            return Err(item.invalid("name", "is not that of the function_call"));
        }
        direct(item)?;
        let content = content(item, "output", &["input_text"])?;
        let output = match &content {
            Content::Text(text) => Value::from(text.as_str()),
            content => parts("input_text", content).into(),
        };
        let shown = json!({"call_id": id, "output": output});
        let result = Message::new(Role::Tool, "");
        self.messages.push(Message { content, tool_call_id: Some(id), name: Some(name), ..result });
        Ok(shown)
    }

    /// What the model has thought.
    pub fn reasoning(&mut self, text: &str) {
        let turn = self.turn(|turn| turn.tool_calls.is_empty() && !has_text(turn));
        match &mut turn.reasoning_content {
            Some(before) => {
                before.push('\n');
                before.push_str(text);
            }
            none => *none = Some(text.to_owned()),
        }
    }

    /// What the model has said.
    pub fn answer(&mut self, content: Content) {
        let turn = self.turn(|turn| turn.tool_calls.is_empty() && !has_text(turn));
        turn.content = content;
    }

    /// What the model has called.
    pub fn call(&mut self, id: String, name: String, arguments: String) {
        self.calls.insert(id.clone(), name.clone());
        let call = ToolCall { id: Some(id), name, arguments: arguments.into() };
        self.turn(|_| true).tool_calls.push(call);
    }

    /// The last message if it is the model's and goes on so, or else a new one.
    fn turn(&mut self, goes_on: impl Fn(&Message) -> bool) -> &mut Message {
        let last = self.messages.last();
        if !last.is_some_and(|last| last.role == Role::Assistant && goes_on(last)) {
            self.messages.push(Message::new(Role::Assistant, ""));
        }
        self.messages.last_mut().expect("one was added if there was none")
    }

    /// The items of the input, with ids.
    pub fn items(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.items)
    }

    /// All messages.
    pub fn finish(self) -> Vec<Message> {
        self.messages
    }
}

fn has_text(message: &Message) -> bool {
    match &message.content {
        Content::Text(text) => !text.is_empty(),
        Content::Parts(parts) => !parts.is_empty(),
    }
}

/// The parts of a content as answers show them.
fn parts(kind: &str, content: &Content) -> Vec<Value> {
    let texts = match content {
        Content::Text(text) => std::slice::from_ref(text),
        Content::Parts(texts) => texts,
    };
    let part = |text: &String| match kind {
        "output_text" => json!({"type": kind, "text": text, "annotations": [], "logprobs": []}),
        _ => json!({"type": kind, "text": text}),
    };
    texts.iter().map(part).collect()
}

/// Calls are the model's own, of functions that have no other home.
fn direct(item: &mut Fields) -> Result<(), Failure> {
    item.only("caller", &[json!({"type": "direct"})])?;
    item.refuse("namespace", "functions have none here")
}

/// A text, or parts of text; a single part is a text.
fn content(fields: &mut Fields, name: &str, kinds: &[&str]) -> Result<Content, Failure> {
    let content = messages::content(fields, name, |part| part_text(part, kinds))?;
    match content.ok_or_else(|| fields.invalid(name, "is missing"))? {
        Content::Parts(texts) => Ok(match <[String; 1]>::try_from(texts) {
            Ok([text]) => Content::Text(text),
            Err(texts) => Content::Parts(texts),
        }),
        text => Ok(text),
    }
}

fn part_text(mut part: Fields, kinds: &[&str]) -> Result<String, Failure> {
    let kind = part.required_string("type")?;
    match kind.as_str() {
        kind if kinds.contains(&kind) => {}
        "input_image" | "input_file" | "input_audio" => {
            let reason = format!("cannot be {kind}: models here read text only");
            return Err(part.invalid("type", reason));
        }
        "refusal" => {
            let reason = "cannot be refusal: models here do not refuse in a part of its own";
            return Err(part.invalid("type", reason));
        }
        _ => return Err(part.invalid("type", format!("must be {}", kinds.join(" or ")))),
    }
    let text = part.required_string("text")?;
    // A mark for a cache: prefixes are found by their content here.
    part.without_effect("prompt_cache_breakpoint");
    // What comes with texts that were made here.
    part.only("annotations", &[json!([])])?;
    part.without_effect("logprobs");
    part.end()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hub::ModelFolder;

    use super::*;
    use crate::prompter::{Conversation, Prompter};

    fn read(after: &[Message], input: Value) -> Vec<Message> {
        let mut turns = Turns::after(after);
        turns.input(&mut Fields::of("", json!({"input": input})).unwrap()).unwrap();
        turns.finish()
    }

    fn tool() -> Value {
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
    }

    /// What the bundled model's template makes of them.
    fn prompt(messages: &[Message]) -> Vec<u32> {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let prompter = Prompter::load(&ModelFolder::open(&demo).unwrap()).unwrap();
        let messages = messages.to_vec();
        let conversation = Conversation { messages, tools: vec![tool()], ..Default::default() };
        prompter.chat(conversation, 0).unwrap().tokens
    }

    fn thought(text: &str) -> Value {
        json!({"type": "reasoning", "id": "rs_1", "summary": [], "status": "completed",
               "content": [{"type": "reasoning_text", "text": text}]})
    }

    fn answer(text: &str) -> Value {
        let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
        json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
               "content": [part]})
    }

    fn call(id: &str) -> Value {
        json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f",
               "arguments": "{\"a\": 1}", "status": "completed"})
    }

    fn output(id: &str) -> Value {
        json!({"type": "function_call_output", "call_id": id, "output": "so"})
    }

    #[test]
    fn an_answer_in_a_row_is_one_message_and_results_have_the_names_of_calls() {
        let items = json!([
            thought("hm"),
            answer("so"),
            call("c1"),
            call("c2"),
            output("c2"),
            output("c1")
        ]);
        let messages = read(&[], items);
        let [turn, second, first] = &messages[..] else { panic!("{messages:?}") };
        assert_eq!(turn.reasoning_content.as_deref(), Some("hm"));
        assert_eq!(turn.content, Content::Text("so".into()));
        let ids: Vec<_> = turn.tool_calls.iter().map(|call| call.id.as_deref()).collect();
        assert_eq!(ids, [Some("c1"), Some("c2")]);
        let expected = Message {
            tool_call_id: Some("c2".into()),
            name: Some("f".into()),
            ..Message::new(Role::Tool, "so")
        };
        assert_eq!(second, &expected);
        assert_eq!(first.tool_call_id.as_deref(), Some("c1"));
        // Calls of earlier responses may be answered.
        assert_eq!(read(&messages[..1], json!([output("c1")])), std::slice::from_ref(first));
    }

    #[test]
    fn what_comes_in_another_order_begins_a_message_of_its_own() {
        let check = |items: Value, expected: &[(bool, &str, usize)]| {
            let messages = read(&[], items.clone());
            let shown = messages.iter().map(|message| {
                let Content::Text(text) = &message.content else { panic!("{items}") };
                (message.reasoning_content.is_some(), text.as_str(), message.tool_calls.len())
            });
            assert_eq!(shown.collect::<Vec<_>>(), expected, "{items}");
        };
        check(json!([answer("a"), answer("b")]), &[(false, "a", 0), (false, "b", 0)]);
        check(json!([answer("a"), thought("b")]), &[(false, "a", 0), (true, "", 0)]);
        check(json!([call("a"), answer("b")]), &[(false, "", 1), (false, "b", 0)]);
        check(json!([call("a"), thought("b"), call("c")]), &[(false, "", 1), (true, "", 1)]);
        check(json!([thought("a"), thought("b"), answer("c")]), &[(true, "c", 0)]);
    }

    #[test]
    fn items_that_are_sent_back_are_the_messages_that_are_kept() {
        let mut turns = Turns::default();
        turns.reasoning("hm");
        turns.answer(Content::Text("so".into()));
        turns.call("c1".into(), "f".into(), "{\"a\": 1}".into());
        let kept = turns.finish();
        assert_eq!(read(&[], json!([thought("hm"), answer("so"), call("c1")])), kept);
    }

    #[test]
    fn prompts_that_go_on_begin_with_those_before_them() {
        let ask = read(&[], json!("What is it?"));
        let mut before = prompt(&ask);
        let mut conversation = ask;
        for items in [
            json!([call("c1"), output("c1")]),
            json!([answer("A branch."), {"role": "user", "content": "More?"}]),
            json!([answer("Let me see."), call("c2"), call("c3"), output("c2"), output("c3")]),
        ] {
            let added = read(&conversation, items.clone());
            conversation.extend(added);
            let after = prompt(&conversation);
            assert!(after.len() > before.len() && after.starts_with(&before), "{items}");
            before = after;
        }
    }
}
