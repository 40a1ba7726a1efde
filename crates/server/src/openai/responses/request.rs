//! From the fields of a request to a request in no dialect, and to what its answer says of it.

use std::sync::Arc;

use protocol::{MAX_TOP_LOGPROBS, Sampling};
use serde_json::{Map, Value, json};
use text::{Content, JsonMap, Message, Role};

use super::items::Turns;
use super::store::{Added, Turn};
use crate::failure::{Failure, Kind};
use crate::generation::{Form, Input, Request, SaidForm, Tools};
use crate::http::App;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::openai::messages::{self, Place};
use crate::openai::{form, options};
use crate::prompter::Conversation;

/// As OpenAI allows.
pub const MAX_PAIRS: usize = 16;
/// Likewise.
pub const MAX_NAME_CHARS: usize = 64;
/// Likewise.
pub const MAX_VALUE_CHARS: usize = 512;

/// What is asked for.
pub struct Asked {
    /// In no dialect.
    pub request: Request,
    /// Whether the answer streams.
    pub is_streamed: bool,
    /// What the answer says of the request.
    pub settings: Settings,
    /// Whether the response is to be kept.
    pub is_stored: bool,
    /// The conversation that it continues.
    pub before: Option<Arc<Turn>>,
    /// What its input adds to that.
    pub added: Added,
}

/// The part of a request that its prompt comes from.
struct Begun {
    model: String,
    before: Option<Arc<Turn>>,
    added: Added,
    conversation: Conversation,
    form: Form,
}

/// The fields of a response that come from its request.
#[derive(Debug, Default)]
pub struct Settings(pub JsonMap);

impl Settings {
    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// How tokens are chosen.
    pub fn sampled(&mut self, sampling: &Sampling) {
        for (name, value) in [
            ("temperature", sampling.temperature),
            ("top_p", sampling.top_p),
            ("presence_penalty", sampling.presence_penalty),
            ("frequency_penalty", sampling.frequency_penalty),
        ] {
            // As it was written, and not with the digits that a double has more.
            let value = value.to_string().parse::<f64>().ok();
            self.set(name, value);
        }
    }
}

/// Reads all fields; which are unknown is for the caller to find.
pub fn asked(fields: &mut Fields, app: &App, caller: &Caller) -> Result<Asked, Failure> {
    let mut settings = Settings::default();
    let begun = begun(fields, app, caller, &mut settings)?;
    let Begun { model, before, added, conversation, form } = begun;
    let is_streamed = streaming(fields)?;
    let is_stored = fields.bool("store")?.unwrap_or(true);
    settings.set("store", is_stored);
    let mut request = Request::new(model, Input::Chat(Box::new(conversation)));
    request.form = form;
    request.max_tokens = fields.u32("max_output_tokens", 1)?;
    settings.set("max_output_tokens", request.max_tokens);
    request.top_logprobs = logprobs(fields, &mut settings)?;
    echoed(fields, &mut settings)?;
    refused(fields)?;
    options::sampled(&mut request, fields, caller)?;
    Ok(Asked { request, is_streamed, settings, is_stored, before, added })
}

/// The model and the conversation of a request that only asks for its tokens.
pub fn counted(
    fields: &mut Fields,
    app: &App,
    caller: &Caller,
) -> Result<(String, Conversation), Failure> {
    let begun = begun(fields, app, caller, &mut Settings::default())?;
    Ok((begun.model, begun.conversation))
}

fn begun(
    fields: &mut Fields,
    app: &App,
    caller: &Caller,
    settings: &mut Settings,
) -> Result<Begun, Failure> {
    let model = options::model(fields, app)?;
    let before = previous(fields, app, caller, settings)?;
    let history = before.as_ref().map(|turn| turn.conversation()).unwrap_or_default();
    let mut turns = Turns::after(&history);
    turns.input(fields)?;
    let inputs = turns.items();
    let added = Added { messages: turns.finish(), inputs, ..Added::default() };
    let instructions = fields.string("instructions")?;
    settings.set("instructions", instructions.clone());
    let mut kwargs = Map::new();
    reasoning(fields, &mut kwargs, settings)?;
    options::kwargs(fields, &mut kwargs)?;
    let Tools { list: tools, calls, allowed, has_one_call } = tools(fields, settings)?;
    let messages = conversation(instructions, history, &added.messages);
    let conversation = Conversation { messages, tools, kwargs, ..Conversation::default() };
    let said = text(fields, settings)?;
    let max_reasoning_tokens = fields.u32("thinking_budget", 0)?;
    fields.only("truncation", &[json!("disabled")])?;
    settings.set("truncation", "disabled");
    fields.refuse("conversation", "use previous_response_id")?;
    let form = Form { said, calls, allowed, has_one_call, max_reasoning_tokens };
    Ok(Begun { model, before, added, conversation, form })
}

/// What the model reads. Many templates know one message of the operator, and at the beginning
/// alone: those that stand there become one.
fn conversation(
    instructions: Option<String>,
    history: Vec<Message>,
    added: &[Message],
) -> Vec<Message> {
    let is_first = |message: &Message| matches!(message.role, Role::System | Role::Developer);
    let instructions = instructions.map(|text| Message::new(Role::System, text));
    let mut messages: Vec<_> = instructions.into_iter().chain(history).collect();
    messages.extend_from_slice(added);
    let n_first = messages.iter().take_while(|message| is_first(message)).count();
    let first = messages.drain(..n_first).map(|message| match message.content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.join("\n"),
    });
    let first = first.collect::<Vec<_>>().join("\n\n");
    if n_first > 0 {
        messages.insert(0, Message::new(Role::System, first));
    }
    messages
}

fn streaming(fields: &mut Fields) -> Result<bool, Failure> {
    let is_on = fields.bool("stream")?.unwrap_or(false);
    if let Some(mut options) = fields.object("stream_options")? {
        if !is_on {
            return Err(fields.invalid("stream_options", "needs stream to be true"));
        }
        options.only("include_obfuscation", &[json!(false)])?;
        options.end()?;
    }
    Ok(is_on)
}

fn previous(
    fields: &mut Fields,
    app: &App,
    caller: &Caller,
    settings: &mut Settings,
) -> Result<Option<Arc<Turn>>, Failure> {
    let id = fields.string("previous_response_id")?;
    settings.set("previous_response_id", id.clone());
    let Some(id) = id else { return Ok(None) };
    if let Some(kept) = app.responses.find(caller.name(), &id) {
        return Ok(Some(kept.turn));
    }
    let reason = "is that of no response that is kept: it was never stored, or deleted, or \
                  dropped for newer ones, or the server was started anew; send the whole \
                  conversation as input";
    let failure = fields.invalid("previous_response_id", reason);
    Err(Failure { kind: Kind::NotFound, ..failure })
}

fn reasoning(
    fields: &mut Fields,
    kwargs: &mut JsonMap,
    settings: &mut Settings,
) -> Result<(), Failure> {
    let mut effort = None;
    if let Some(mut reasoning) = fields.object("reasoning")? {
        effort = options::effort(&mut reasoning, "effort", kwargs)?;
        // Thoughts come whole, so that no summary is made where that is for the server to say.
        reasoning.only("summary", &[json!("auto")])?;
        reasoning.only("generate_summary", &[json!("auto")])?;
        reasoning.only("context", &[json!("auto")])?;
        reasoning.only("mode", &[json!("standard")])?;
        reasoning.end()?;
    }
    settings.set("reasoning", json!({"effort": effort, "summary": null}));
    Ok(())
}

/// The tools that the model is told of, and how it may call them.
fn tools(fields: &mut Fields, settings: &mut Settings) -> Result<Tools, Failure> {
    let choice = fields.peek("tool_choice").cloned().unwrap_or_else(|| "auto".into());
    settings.set("tool_choice", choice);
    let parallel = fields.peek("parallel_tool_calls").cloned();
    settings.set("parallel_tool_calls", parallel.unwrap_or(Value::Bool(true)));
    let (mut tools, mut shown) = (Vec::new(), Vec::new());
    for mut tool in fields.objects("tools")? {
        let kind = tool.required_string("type")?;
        if kind != "function" {
            let reason = "can only be function, not";
            let kind = crate::openai::shown(&kind);
            return Err(tool.invalid("type", format!("{reason} {kind}")));
        }
        let (function, is_strict) = messages::function(&mut tool)?;
        tool.only("async", &[json!(false)])?;
        tool.only("defer_loading", &[json!(false)])?;
        tool.only("allowed_callers", &[json!(["direct"])])?;
        tool.refuse("output_schema", "describe it in the description")?;
        tool.end()?;
        shown.push(json!({
            "type": "function",
            "name": function["name"],
            "description": function.get("description"),
            "parameters": function.get("parameters"),
            "strict": is_strict,
        }));
        tools.push((json!({"type": "function", "function": function}), is_strict));
    }
    settings.set("tools", shown);
    messages::chosen(fields, tools, Place::Beside)
}

fn logprobs(fields: &mut Fields, settings: &mut Settings) -> Result<Option<u32>, Failure> {
    let mut has_logprobs = false;
    for (idx, included) in fields.list("include")?.into_iter().enumerate() {
        match included.as_str() {
            Some("message.output_text.logprobs") => has_logprobs = true,
            // Thoughts come readable, and are taken back so: there is nothing to encrypt.
            Some("reasoning.encrypted_content") => {}
            _ => {
                let reason = "can only be message.output_text.logprobs or \
                              reasoning.encrypted_content here";
                return Err(fields.invalid(&format!("include[{idx}]"), reason));
            }
        }
    }
    let top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS.into())?.unwrap_or(0);
    if top > 0 && !has_logprobs {
        let reason = "needs include to have message.output_text.logprobs";
        return Err(fields.invalid("top_logprobs", reason));
    }
    settings.set("top_logprobs", top);
    Ok(has_logprobs.then_some(top as u32))
}

/// What the answer has to look like.
fn text(fields: &mut Fields, settings: &mut Settings) -> Result<Option<SaidForm>, Failure> {
    let (mut format, mut form) = (None, None);
    if let Some(mut text) = fields.object("text")? {
        format = text.peek("format").cloned();
        form = form::text_format(&mut text)?;
        text.only("verbosity", &[json!("medium")])?;
        text.end()?;
    }
    let format = format.unwrap_or_else(|| json!({"type": "text"}));
    settings.set("text", json!({"format": format, "verbosity": "medium"}));
    Ok(form)
}

/// What changes no answer, and is said again in it.
fn echoed(fields: &mut Fields, settings: &mut Settings) -> Result<(), Failure> {
    settings.set("metadata", metadata(fields)?);
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        settings.set(name, fields.string(name)?);
    }
    let retention = fields.word("prompt_cache_retention", &["in_memory", "24h"])?;
    settings.set("prompt_cache_retention", retention);
    // It counts the calls of tools that a server runs, and here are none.
    settings.set("max_tool_calls", fields.u32("max_tool_calls", 1)?);
    fields.only("service_tier", &[json!("auto"), json!("default")])?;
    settings.set("service_tier", "default");
    fields.only("background", &[json!(false)])?;
    settings.set("background", false);
    Ok(())
}

fn metadata(fields: &mut Fields) -> Result<JsonMap, Failure> {
    let Some(metadata) = fields.object("metadata")? else { return Ok(Map::new()) };
    let metadata = metadata.rest();
    let fits = |(name, value): (&String, &Value)| {
        let value = value.as_str().is_some_and(|text| text.chars().count() <= MAX_VALUE_CHARS);
        value && name.chars().count() <= MAX_NAME_CHARS
    };
    if metadata.len() > MAX_PAIRS || !metadata.iter().all(fits) {
        let reason = format!(
            "must have at most {MAX_PAIRS} names of at most {MAX_NAME_CHARS} characters, with \
             strings of at most {MAX_VALUE_CHARS}"
        );
        return Err(fields.invalid("metadata", reason));
    }
    Ok(metadata)
}

fn refused(fields: &mut Fields) -> Result<(), Failure> {
    if let Some(mut cache) = fields.object("prompt_cache_options")? {
        // Prefixes are found by their content, and kept as long as there is room.
        cache.without_effect("ttl");
        cache.only("mode", &[json!("implicit")])?;
        cache.only("prewarm", &[json!(false)])?;
        cache.refuse("comparison_response_id", "the answer's cache says what was reused")?;
        cache.end()?;
    }
    for (name, why) in [
        ("prompt", "there are no stored prompts here"),
        ("context_management", "nothing is taken out of a conversation"),
        ("background_options", "nothing runs in the background"),
        ("image", "models here read text only"),
        ("moderation", "nothing here moderates"),
        ("access_programs", "there are none here"),
    ] {
        fields.refuse(name, why)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_operators_say_at_the_beginning_is_one_message() {
        let of = |role, text: &str| Message::new(role, text);
        let check = |instructions: Option<&str>, history: &[Message], expected: &[Message]| {
            let added = [of(Role::User, "hi")];
            let found = conversation(instructions.map(str::to_owned), history.to_vec(), &added);
            assert_eq!(found, [expected, &added].concat());
        };
        check(None, &[], &[]);
        check(Some("a"), &[], &[of(Role::System, "a")]);
        check(None, &[of(Role::Developer, "b")], &[of(Role::System, "b")]);
        let history = [of(Role::Developer, "b"), of(Role::System, "c")];
        check(Some("a"), &history, &[of(Role::System, "a\n\nb\n\nc")]);
        let later = [of(Role::User, "d"), of(Role::Developer, "e")];
        check(Some("a"), &later, &[&[of(Role::System, "a")], &later[..]].concat());
    }

    #[test]
    fn numbers_are_said_again_as_they_were_written() {
        let mut settings = Settings::default();
        settings.sampled(&Sampling { temperature: 0.7, ..Sampling::greedy() });
        assert_eq!(settings.0["temperature"], json!(0.7));
    }
}
