//! Chat templates: the Jinja of transformers, with a budget.
//!
//! The environment is the one transformers gives to templates (`trim_blocks`, `lstrip_blocks`,
//! its `tojson`, `raise_exception`, `strftime_now`, loop controls, Python's string methods).
//! Templates come with the model and are not trusted: fuel bounds their time and memory, and
//! output, source size and nesting are limited. A caller may set only the variables in [`KWARGS`].
//! Not limited is how deeply a template nests its own values: one that puts a namespace into
//! itself, or wraps a list some ten thousand times, overflows the stack of the thread. Sources
//! therefore come from the model's folder only, never from a request.

use std::collections::BTreeMap;
use std::io;

use minijinja::value::ValueKind;
use minijinja::{Environment, ErrorKind, Value, syntax::SyntaxConfig};

use crate::guard::{Marking, Scope, free_marker, strings_of};
use crate::template::without_generation_tags;
use crate::{
    ChatInput, Content, Error, Guard, Json, Message, Rendered, Result, Role, TemplateSource,
};
use crate::{json, strftime};

/// Template variables that a request may set. Everything else is an error, so that a request can
/// replace neither the conversation nor the special tokens.
pub const KWARGS: [&str; 16] = [
    "enable_thinking",
    "thinking",
    "thinking_mode",
    "thinking_budget",
    "reasoning_effort",
    "preserve_thinking",
    "clear_thinking",
    "truncate_history_thinking",
    "add_thoughts",
    "model_identity",
    "builtin_tools",
    "tools_in_user_message",
    "date_string",
    "xml_tools",
    "python_tools",
    "citations",
];

/// Budget of one rendering: an instruction costs 1, and so do 64 bytes of any text made.
pub const TEMPLATE_FUEL: u64 = 8_000_000;
/// Most bytes that a template may write.
pub const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Most bytes of a template's source.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

const DEFAULT: &str = "chat_template";
const TOOL_USE: &str = "chat_template (tool_use)";

/// What form of `content` a template understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentForm {
    AsGiven,
    Text,
    Parts,
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    default_form: ContentForm,
    tool_use_form: Option<ContentForm>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are variables such as `bos_token`; see
    /// [`crate::Tokenizer::template_tokens`].
    pub fn new(
        source: &TemplateSource,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<ChatTemplate> {
        let mut env = environment()?;
        add_source(&mut env, DEFAULT, &source.default)?;
        if let Some(text) = &source.tool_use {
            add_source(&mut env, TOOL_USE, text)?;
        }
        let mut template = ChatTemplate {
            env,
            special_tokens,
            default_form: ContentForm::AsGiven,
            tool_use_form: None,
        };
        template.default_form = template.probe(DEFAULT);
        template.tool_use_form = source.tool_use.as_ref().map(|_| template.probe(TOOL_USE));
        Ok(template)
    }

    /// Renders a conversation. `guard` is that of the tokenizer that will encode it.
    pub fn render(&self, input: &ChatInput, guard: &Guard) -> Result<Rendered> {
        check_kwargs(input)?;
        let marker = free_marker(untrusted_strings(input).into_iter())?;
        let (name, form) = match self.tool_use_form {
            Some(form) if !input.tools.is_empty() => (TOOL_USE, form),
            _ => (DEFAULT, self.default_form),
        };
        let context = self.context(input, form, Marking { guard, marker });
        Ok(Rendered { text: self.run(name, context)?, marker })
    }

    fn context(&self, input: &ChatInput, form: ContentForm, marking: Marking<'_>) -> Value {
        let list = |items: &[Json]| match items {
            [] => Value::from(()),
            _ => items.iter().map(|item| marking.json(item, Scope::Added)).collect(),
        };
        let messages: Vec<Value> =
            input.messages.iter().map(|message| message_value(message, form, marking)).collect();
        let mut context: BTreeMap<String, Value> = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::from(token.as_str())))
            .collect();
        for (name, value) in &input.kwargs {
            context.insert(name.clone(), marking.json(value, Scope::Added));
        }
        let now_unix_s = input.now_unix_s;
        let strftime_now = move |format: &str| {
            strftime::strftime(format, now_unix_s)
                .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
        };
        context.insert("strftime_now".into(), Value::from_function(strftime_now));
        context.insert("messages".into(), Value::from(messages));
        context.insert("tools".into(), list(&input.tools));
        context.insert("documents".into(), list(&input.documents));
        context.insert("add_generation_prompt".into(), Value::from(input.add_generation_prompt));
        Value::from_pairs(context)
    }

    fn run(&self, name: &str, context: Value) -> Result<String> {
        let template = self.env.get_template(name).map_err(|e| blame(&e))?;
        let mut output = CappedOutput(Vec::new());
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        rendered.map_err(|e| blame(&e))?;
        String::from_utf8(output.0)
            .map_err(|_| Error::Model("the chat template wrote bytes that are not text".into()))
    }

    /// Finds out by trying which form of content the template shows.
    fn probe(&self, name: &str) -> ContentForm {
        const WORD: &str = "offshootprobe";
        let shows = |content: Content| {
            let mut message = Message::new(Role::User, "");
            message.content = content;
            let input = ChatInput { messages: vec![message], ..ChatInput::default() };
            let guard = Guard::new([]).ok()?;
            let marking = Marking { guard: &guard, marker: '\u{E000}' };
            let text = self.run(name, self.context(&input, ContentForm::AsGiven, marking)).ok()?;
            // A list that is printed as a list has quotes around its words.
            let printed_raw = text.contains("'type'") || text.contains("\"type\"");
            (text.contains(WORD) && !printed_raw).then_some(())
        };
        let text = shows(Content::Text(WORD.into())).is_some();
        let parts = shows(Content::Parts(vec![WORD.into()])).is_some();
        match (text, parts) {
            (true, false) => ContentForm::Text,
            (false, true) => ContentForm::Parts,
            _ => ContentForm::AsGiven,
        }
    }
}

fn environment() -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(|e| Error::Model(e.to_string()))?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(TEMPLATE_FUEL));
    env.set_unknown_method_callback(python_method);
    env.add_filter("tojson", json::tojson);
    env.add_function("raise_exception", |message: String| -> std::result::Result<Value, _> {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err(error.with_source(Raised(message)))
    });
    // Jinja2 asks for a length and for indexing, so strings and mappings are sequences too.
    env.add_test("sequence", |value: &Value| {
        let kind = value.kind();
        value.is_undefined() || matches!(kind, ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    Ok(env)
}

/// Python's methods of strings, lists and mappings.
fn python_method(
    state: &mut minijinja::State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> std::result::Result<Value, minijinja::Error> {
    match (method, value.as_str(), args) {
        ("title", Some(text), []) => Ok(Value::from(python_title(text))),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `str.title`: a letter after anything that is not a letter is upper case.
fn python_title(text: &str) -> String {
    let mut titled = String::with_capacity(text.len());
    let mut in_word = false;
    for c in text.chars() {
        match in_word {
            true => titled.extend(c.to_lowercase()),
            false => titled.extend(c.to_uppercase()),
        }
        in_word = c.is_alphabetic();
    }
    titled
}

fn add_source(env: &mut Environment<'static>, name: &'static str, source: &str) -> Result<()> {
    if source.len() > MAX_TEMPLATE_BYTES {
        return Err(Error::Model(format!(
            "{name} has {} bytes, at most {MAX_TEMPLATE_BYTES} are allowed",
            source.len()
        )));
    }
    env.add_template_owned(name, without_generation_tags(source)).map_err(|e| blame(&e))
}

fn check_kwargs(input: &ChatInput) -> Result<()> {
    match input.kwargs.keys().find(|key| !KWARGS.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Error::Request(format!(
            "chat_template_kwargs: {key:?} may not be set; allowed are {}",
            KWARGS.join(", ")
        ))),
    }
}

fn message_value(message: &Message, form: ContentForm, marking: Marking<'_>) -> Value {
    let scope = match message.role {
        Role::Assistant => Scope::Special,
        _ => Scope::Added,
    };
    let string = |text: &str| Value::from(marking.string(text, scope));
    let parts = |texts: &[String]| {
        let part = |text: &String| {
            Value::from_pairs([("type", Value::from("text")), ("text", string(text))])
        };
        texts.iter().map(part).collect::<Value>()
    };
    let content = match (&message.content, form) {
        (Content::Text(text), ContentForm::Parts) => parts(std::slice::from_ref(text)),
        (Content::Text(text), _) => string(text),
        (Content::Parts(texts), ContentForm::Text) => string(&texts.join("\n")),
        (Content::Parts(texts), _) => parts(texts),
    };
    let mut fields = vec![("role", Value::from(message.role.as_str())), ("content", content)];
    if let Some(reasoning) = &message.reasoning_content {
        fields.push(("thinking", string(reasoning)));
        fields.push(("reasoning_content", string(reasoning)));
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = marking.json(&parsed_arguments(&call.arguments), Scope::Added);
            let name = Value::from(marking.string(&call.name, Scope::Added));
            let function = Value::from_pairs([("name", name), ("arguments", arguments)]);
            let mut fields = vec![("type", Value::from("function")), ("function", function)];
            if let Some(id) = &call.id {
                fields.insert(0, ("id", Value::from(marking.string(id, Scope::Added))));
            }
            Value::from_pairs(fields)
        });
        fields.push(("tool_calls", calls.collect()));
    }
    for (key, text) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if let Some(text) = text {
            fields.push((key, Value::from(marking.string(text, Scope::Added))));
        }
    }
    Value::from_pairs(fields)
}

/// Arguments as an object where they are one, also when they arrive as its JSON text.
fn parsed_arguments(arguments: &Json) -> Json {
    let text = match arguments {
        Json::String(text) => text,
        other => return other.clone(),
    };
    match serde_json::from_str(text) {
        Ok(object @ Json::Object(_)) => object,
        _ if text.trim().is_empty() => Json::Object(crate::JsonMap::new()),
        _ => arguments.clone(),
    }
}

/// Every string of the input that may hold anything.
fn untrusted_strings(input: &ChatInput) -> Vec<&str> {
    let mut strings = Vec::new();
    for message in &input.messages {
        match &message.content {
            Content::Text(text) => strings.push(text.as_str()),
            Content::Parts(texts) => strings.extend(texts.iter().map(String::as_str)),
        }
        for call in &message.tool_calls {
            strings.push(&call.name);
            strings.extend(call.id.as_deref());
            strings_of(&call.arguments, &mut strings);
        }
        let fields = [&message.reasoning_content, &message.tool_call_id, &message.name];
        strings.extend(fields.into_iter().filter_map(|field| field.as_deref()));
    }
    for json in input.tools.iter().chain(&input.documents).chain(input.kwargs.values()) {
        strings_of(json, &mut strings);
    }
    strings
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Whose fault an engine error is, with the line and the innermost cause.
fn blame(error: &minijinja::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut innermost: Option<&minijinja::Error> = None;
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::Request(message.clone());
        }
        if let Some(engine) = current.downcast_ref::<minijinja::Error>() {
            innermost = Some(engine);
        }
        cause = current.source();
    }
    let engine = innermost.unwrap_or(error);
    let what = match engine.kind() {
        ErrorKind::OutOfFuel => "it does too much work for one conversation".to_owned(),
        ErrorKind::WriteFailure => format!("it writes more than {MAX_OUTPUT_BYTES} bytes"),
        kind => engine.detail().map_or(kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    let name = engine.name().or(error.name()).unwrap_or(DEFAULT);
    match engine.line().or(error.line()) {
        Some(line) => Error::Model(format!("{name}, line {line}: {what}")),
        None => Error::Model(format!("{name}: {what}")),
    }
}

/// Collects output up to [`MAX_OUTPUT_BYTES`].
struct CappedOutput(Vec<u8>);

impl io::Write for CappedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
