//! Messages and tools of chat completions.

use serde_json::{Value, json};
use text::{Content, Json, Message, Role, ToolCall};

use crate::failure::Failure;
use crate::generation::{Calls, Tools};
use crate::http::fields::Fields;

/// The conversation.
pub fn messages(fields: &mut Fields) -> Result<Vec<Message>, Failure> {
    let objects = fields.objects("messages")?;
    if objects.is_empty() {
        return Err(fields.invalid("messages", "must be a list of at least one message"));
    }
    objects.into_iter().map(message).collect()
}

fn message(mut fields: Fields) -> Result<Message, Failure> {
    let roles = ["system", "developer", "user", "assistant", "tool"];
    let word = fields.word("role", &roles)?.ok_or_else(|| fields.invalid("role", "is missing"))?;
    let role = match word {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => Role::Tool,
    };
    let mut message = Message::new(role, "");
    message.name = fields.string("name")?;
    if role == Role::Assistant {
        message.tool_calls =
            fields.objects("tool_calls")?.into_iter().map(call).collect::<Result<_, _>>()?;
        let reasoning = fields.string("reasoning_content")?;
        message.reasoning_content = reasoning.or(fields.string("reasoning")?);
        // What clients send back of an answer of theirs.
        fields.only("annotations", &[json!([])])?;
        fields.refuse("refusal", "models here do not refuse in a field of its own")?;
        fields.refuse("audio", "models here make text")?;
        fields.refuse("function_call", "use tool_calls")?;
    }
    if role == Role::Tool {
        message.tool_call_id = Some(fields.required_string("tool_call_id")?);
    }
    message.content = match content(&mut fields, "content", part_text)? {
        Some(content) => content,
        None if !message.tool_calls.is_empty() || message.reasoning_content.is_some() => {
            Content::Text(String::new())
        }
        None => return Err(fields.invalid("content", "is missing")),
    };
    fields.end()?;
    Ok(message)
}

/// A text, or parts of text as `part_text` reads them.
pub fn content(
    fields: &mut Fields,
    name: &str,
    part_text: impl Fn(Fields) -> Result<String, Failure>,
) -> Result<Option<Content>, Failure> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(Content::Text(text))),
        Some(Value::Array(parts)) => {
            let path = fields.path(name);
            let parts = parts.into_iter().enumerate();
            let parts =
                parts.map(|(idx, part)| part_text(Fields::of(format!("{path}[{idx}]"), part)?));
            Ok(Some(Content::Parts(parts.collect::<Result<_, _>>()?)))
        }
        Some(_) => Err(fields.invalid(name, "must be a string or a list of parts")),
    }
}

fn part_text(mut fields: Fields) -> Result<String, Failure> {
    match fields.required_string("type")?.as_str() {
        "text" => {}
        "image_url" | "input_audio" | "file" | "video_url" => {
            return Err(fields.invalid("type", "must be text: models here read text only"));
        }
        _ => return Err(fields.invalid("type", "must be text")),
    }
    let text = fields.required_string("text")?;
    // Marks for caches of other servers; prefixes are found by their content here.
    fields.without_effect("cache_control");
    fields.end()?;
    Ok(text)
}

fn call(mut fields: Fields) -> Result<ToolCall, Failure> {
    fields.only("type", &[json!("function")])?;
    let id = fields.string("id")?;
    fields.without_effect("index");
    let mut function =
        fields.object("function")?.ok_or_else(|| fields.invalid("function", "is missing"))?;
    let name = function.required_string("name")?;
    let arguments = match function.take("arguments") {
        None => Value::String("{}".into()),
        Some(arguments @ (Value::String(_) | Value::Object(_))) => arguments,
        Some(_) => return Err(function.invalid("arguments", "must be a string of JSON")),
    };
    function.end()?;
    fields.end()?;
    Ok(ToolCall { id, name, arguments })
}

/// The tools that the model is told of, and how it may call them; none with `tool_choice` "none".
pub fn tools(fields: &mut Fields) -> Result<Tools, Failure> {
    fields.refuse("functions", "use tools")?;
    fields.refuse("function_call", "use tool_choice")?;
    let objects = fields.objects("tools")?;
    let tools = objects.into_iter().map(tool).collect::<Result<_, _>>()?;
    chosen(fields, tools, Place::Within)
}

/// Where an object says more than its type.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// In a field that has the type's name.
    Within,
    /// Beside the type.
    Beside,
}

impl Place {
    fn of(self, mut object: Fields, kind: &str) -> Result<Fields, Failure> {
        match self {
            Self::Beside => Ok(object),
            Self::Within => {
                let inner = object.object(kind)?;
                let inner = inner.ok_or_else(|| object.invalid(kind, "is missing"))?;
                object.end()?;
                Ok(inner)
            }
        }
    }
}

/// Which of the tools may be called, and how.
pub fn chosen(
    fields: &mut Fields,
    tools: Vec<(Json, bool)>,
    place: Place,
) -> Result<Tools, Failure> {
    let mut tools = Tools::of(tools);
    tools.has_one_call = fields.bool("parallel_tool_calls")? == Some(false);
    match fields.take("tool_choice") {
        None => {}
        Some(Value::String(word)) if word == "auto" => {}
        Some(Value::String(word)) if word == "none" => return Ok(Tools::default()),
        Some(_) if tools.list.is_empty() => {
            return Err(fields.invalid("tool_choice", "needs tools"));
        }
        Some(Value::String(word)) if word == "required" => tools.calls = Calls::Any,
        Some(choice @ Value::Object(_)) => {
            let choice = Fields::of(fields.path("tool_choice"), choice)?;
            choose(&mut tools, choice, place)?;
        }
        Some(_) => {
            let reason = "must be auto, none, required, a function or allowed_tools";
            return Err(fields.invalid("tool_choice", reason));
        }
    }
    Ok(tools)
}

/// One tool that has to be called, or some that may be. The prompt has the others as well, so that
/// it begins like those of requests with another choice.
fn choose(tools: &mut Tools, mut choice: Fields, place: Place) -> Result<(), Failure> {
    match choice.required_string("type")?.as_str() {
        "function" => tools.calls = Calls::Named(name(place.of(choice, "function")?, tools)?),
        "allowed_tools" => {
            let mut choice = place.of(choice, "allowed_tools")?;
            let mode = choice.word("mode", &["auto", "required"])?;
            tools.calls = match mode.ok_or_else(|| choice.invalid("mode", "is missing"))? {
                "required" => Calls::Any,
                _ => Calls::Strict,
            };
            let allowed = choice.objects("tools")?;
            if allowed.is_empty() {
                return Err(choice.invalid("tools", "must be a list of at least one tool"));
            }
            let allowed = allowed.into_iter().map(|mut tool| {
                function_alone(&mut tool)?;
                name(place.of(tool, "function")?, tools)
            });
            tools.allowed = allowed.collect::<Result<_, _>>()?;
            choice.end()?;
        }
        _ => return Err(choice.invalid("type", "must be function or allowed_tools")),
    }
    Ok(())
}

/// The name of one of the tools.
fn name(mut function: Fields, tools: &Tools) -> Result<String, Failure> {
    let name = function.required_string("name")?;
    if !tools.has(&name) {
        return Err(function.invalid("name", "is none of tools"));
    }
    function.end()?;
    Ok(name)
}

fn function_alone(tool: &mut Fields) -> Result<(), Failure> {
    match tool.required_string("type")?.as_str() {
        "function" => Ok(()),
        _ => Err(tool.invalid("type", "must be function")),
    }
}

/// What names of tools may be.
pub const TOOL_NAMES: &str = "must be 1 to 128 letters, digits, '.', '_' and '-'";

/// Whether a tool may be called so.
pub fn is_tool_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=128).contains(&name.len()) && name.chars().all(allowed)
}

/// A tool's definition, and whether calls of it are strict.
pub fn tool(mut fields: Fields) -> Result<(Json, bool), Failure> {
    function_alone(&mut fields)?;
    let mut function =
        fields.object("function")?.ok_or_else(|| fields.invalid("function", "is missing"))?;
    let (object, is_strict) = self::function(&mut function)?;
    fields.without_effect("cache_control");
    function.end()?;
    fields.end()?;
    Ok((json!({"type": "function", "function": object}), is_strict))
}

/// A function as templates know it, and whether calls of it are strict.
pub fn function(fields: &mut Fields) -> Result<(Json, bool), Failure> {
    let name = fields.required_string("name")?;
    if !is_tool_name(&name) {
        return Err(fields.invalid("name", TOOL_NAMES));
    }
    let mut function = json!({"name": name});
    if let Some(description) = fields.string("description")? {
        function["description"] = description.into();
    }
    match fields.take("parameters") {
        None => {}
        Some(schema @ Value::Object(_)) => function["parameters"] = schema,
        Some(_) => return Err(fields.invalid("parameters", "must be an object")),
    }
    let is_strict = fields.bool("strict")? == Some(true);
    Ok((function, is_strict))
}
