//! Answers as grammars: what makes a model that must call a tool write a call that parses, with
//! arguments by the tool's schema, and an answer that must have a form have it. The text is
//! llguidance's dialect of Lark.

use super::confusable::{form_or_call, may_be_call};
use super::schema::may_be_string;
use super::syntax::Family;
use super::{AnswerFormat, ArgumentSyntax, CallSyntax, harmony};
use crate::{Error, Json, Result};

/// What an answer has to be: a call, or what may be said instead.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// In OpenAI's form, or bare `{name, parameters}`.
    pub tools: &'a [Json],
    /// The one that may be called; any of them without.
    pub named: Option<&'a str>,
    /// What may be said instead of calling; nothing without.
    pub said: Option<&'a Said>,
    /// The arguments of every call have to fit.
    pub is_strict: bool,
    /// Where reasoning has a channel, it ends after so many tokens.
    pub max_reasoning_tokens: Option<u32>,
}

/// What may be said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Any text, also before a call. Whatever begins a call is one.
    Anything,
    /// JSON by a schema.
    Json(Json),
    /// What a regular expression matches as a whole.
    Regex(String),
    /// What a Lark grammar matches.
    Lark(String),
}

/// Where schemas keep what they refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

impl AnswerFormat {
    /// Whether reasoning, text and calls stand in channels of their own, which a grammar of the
    /// whole answer has to open.
    pub fn has_channels(&self) -> bool {
        self.family == Some(Family::Harmony)
    }

    /// A Lark grammar of answers. `special` are those literals of [`Self::special_markup`] that it
    /// may need, with their ids: in the grammar they are tokens, not text. Reasoning between tags
    /// is no part of it; in channels it is.
    ///
    /// # Errors
    /// The tool is not there, or one is not of the form, or the model knows no calls, or none that
    /// can be told from what is said.
    pub fn grammar(&self, wanted: &Wanted<'_>, special: &[(&str, u32)]) -> Result<String> {
        let mut rules = Rules { special, text: String::new(), n: 0, referred: Vec::new() };
        let calls = match (self.calls(), wanted.tools) {
            (_, []) if wanted.said.is_some() => None,
            (None, _) => return Err(Error::Request("the model knows no calls".to_owned())),
            (Some(syntax), _) if syntax.is_json() && matches!(wanted.said, Some(Said::Json(_))) => {
                let either = wanted.form_or_call()?;
                let start = rules.json(&either, &either);
                return Ok(format!("start: {start}\n{}", rules.text));
            }
            (Some(syntax), _) => {
                // One that is named is called once.
                let between = syntax.between.filter(|_| wanted.named.is_none());
                let syntax = CallSyntax { between, ..*syntax };
                Some((syntax, syntax.bodies(&mut rules, wanted)?))
            }
        };
        let start = match self.has_channels() {
            true => rules.in_channels(wanted, calls)?,
            false => rules.one_after_another(wanted.said, calls),
        };
        Ok(format!("start: {start}\n{}", rules.text))
    }
}

impl Wanted<'_> {
    /// A schema of JSON that may be said, and of calls that are JSON. What is said must not pass
    /// for a call whose arguments nobody has looked at.
    fn form_or_call(&self) -> Result<Json> {
        let any = Json::Bool(true);
        let said = match self.said {
            Some(Said::Json(schema)) => schema,
            _ => &any,
        };
        let tools = self.tools.iter().map(parameters_of).collect::<Result<Vec<_>>>()?;
        let names = tools.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        if self.is_strict && may_be_call(said, &names) {
            let reason = "allows an object that reads like a call with any arguments, and tools \
                          are strict: this model's calls are JSON themselves. Require a property \
                          that calls have not (they have name and parameters), or set \
                          tool_choice to \"none\" or \"required\"";
            return Err(Error::Request(reason.to_owned()));
        }
        Ok(form_or_call(said, &tools))
    }
}

impl CallSyntax {
    /// A rule of what follows `before_name`: name, arguments and the end of a call.
    fn bodies(&self, rules: &mut Rules<'_>, wanted: &Wanted<'_>) -> Result<String> {
        let mut calls = Vec::new();
        for tool in wanted.tools {
            let (name, parameters) = parameters_of(tool)?;
            if wanted.named.is_some_and(|wanted| wanted != name) {
                continue;
            }
            rules.referred.clear();
            let before = rules.literal(&format!("{name}{}", self.after_name));
            let arguments = self.arguments(rules, parameters);
            let after = rules.literal(self.after_arguments);
            calls.push(rules.add(&format!("{before} {arguments} {after}")));
        }
        match (calls.as_slice(), wanted.named) {
            ([], Some(name)) => {
                let reason = format!("tool_choice names '{name}', which is no tool");
                Err(Error::Request(reason))
            }
            ([], None) => Err(Error::Request("there are no tools that must be called".to_owned())),
            _ => Ok(rules.add(&calls.join(" | "))),
        }
    }

    /// Strings that stand without quotes obey `enum`, and nothing else of their schemas.
    fn arguments(&self, rules: &mut Rules<'_>, schema: &Json) -> String {
        match self.arguments {
            ArgumentSyntax::Json => {
                let mut object = schema.clone();
                object["type"] = "object".into();
                rules.json(&object, schema)
            }
            ArgumentSyntax::Tagged { before_key, after_key, after_value } => {
                let list = properties(schema).map(|(key, value, is_required)| {
                    let before = rules.literal(&format!("{before_key}{key}{after_key}"));
                    let value = match may_be_string(value, schema) {
                        true => rules.text_until(value, after_value),
                        false => {
                            let value = rules.json(value, schema);
                            format!("{value} {}", rules.literal(after_value))
                        }
                    };
                    let rule = rules.add(&format!("{before} {value}"));
                    if is_required { rule } else { format!("{rule}?") }
                });
                let list = list.collect::<Vec<_>>().join(" ");
                rules.add(if list.is_empty() { "\"\"" } else { &list })
            }
            ArgumentSyntax::Gemma { quote } => rules.bare_object(schema, schema, quote),
        }
    }
}

/// The same, checked to be an object.
fn parameters_of(tool: &Json) -> Result<(&str, &Json)> {
    let (name, parameters) = form(tool)?;
    if !parameters.is_object() {
        let reason = format!("the parameters of tool '{name}' are no object");
        return Err(Error::Request(reason));
    }
    Ok((name, parameters))
}

/// Name and parameters; a tool without parameters takes an empty object.
fn form(tool: &Json) -> Result<(&str, &Json)> {
    static NONE: std::sync::OnceLock<Json> = std::sync::OnceLock::new();
    let function = tool.get("function").unwrap_or(tool);
    let name = function.get("name").and_then(Json::as_str);
    let name = name.ok_or_else(|| Error::Request("a tool has no name".to_owned()))?;
    let parameters = function.get("parameters").or_else(|| function.get("input_schema"));
    let parameters = parameters.filter(|parameters| !parameters.is_null());
    let none = || NONE.get_or_init(|| serde_json::json!({ "additionalProperties": false }));
    Ok((name, parameters.unwrap_or_else(none)))
}

/// Name, schema and whether it is required, in the order of the schema.
fn properties(schema: &Json) -> impl Iterator<Item = (&String, &Json, bool)> {
    let required = schema.get("required").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let all = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
    all.map(move |(key, value)| (key, value, required.iter().any(|name| name == key)))
}

/// The strings of an `enum`, or nothing where any will do.
fn choices(schema: &Json) -> Vec<&str> {
    let values = schema.get("enum").and_then(Json::as_array).into_iter().flatten();
    values.filter_map(Json::as_str).collect()
}

/// The bytes of what gives a call away: the first tag, or all of it.
fn opener_bytes(opening: &str) -> usize {
    let end = match opening.chars().next() {
        Some('<') => opening.find('>'),
        Some('[') => opening.find(']'),
        _ => None,
    };
    end.map_or(opening.len(), |end| end + 1)
}

/// A literal in a regular expression between slashes.
fn escaped(literal: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_<>\" ,:".contains(c);
    let one = |c: char| if is_plain(c) { c.to_string() } else { format!("\\u{{{:x}}}", c as u32) };
    literal.chars().map(one).collect()
}

/// A regular expression as it stands between slashes.
fn in_slashes(regex: &str) -> String {
    let (mut text, mut is_escaped) = (String::with_capacity(regex.len()), false);
    for c in regex.chars() {
        match c {
            '\n' => text.push_str(if is_escaped { "n" } else { "\\n" }),
            '/' if !is_escaped => text.push_str("\\/"),
            c => text.push(c),
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    text
}

/// Rules as they are written.
struct Rules<'a> {
    special: &'a [(&'a str, u32)],
    text: String,
    n: usize,
    /// What `$ref`s point to, and the rules of it. For the tool that is being written.
    referred: Vec<(String, String)>,
}

impl Rules<'_> {
    /// Calls behind one another; before them, or instead, what may be said.
    fn one_after_another(
        &mut self,
        said: Option<&Said>,
        calls: Option<(CallSyntax, String)>,
    ) -> String {
        let Some((syntax, body)) = calls else { return self.said(said) };
        let opening = [syntax.before_all, syntax.before_name].concat();
        let more = syntax.between.map(|between| {
            let before = self.literal(&[between, syntax.before_name].concat());
            format!("({before} {body})*")
        });
        let more = more.unwrap_or_default();
        let last = self.literal(syntax.after_all);
        let calls = self.add(&format!("{body} {more} {last}"));
        let Some(Said::Anything) = said else {
            let opening = self.literal(&opening);
            let instead = said.map(|_| self.said(said));
            let instead = instead.map(|rule| format!(" | {rule}")).unwrap_or_default();
            return self.add(&format!("{opening} {calls}{instead}"));
        };
        let (opener, rest) = opening.split_at(opener_bytes(&opening));
        let rest = self.literal(rest);
        if self.special.iter().any(|(literal, _)| opener.starts_with(literal)) {
            let opener = self.literal(opener);
            return self.add(&format!("/(?s:.*)/ ({opener} {rest} {calls})?"));
        }
        let (name, quoted) = (self.name(), Json::from(opener));
        let n = self.n;
        let unopened = format!("~/(?s:.*){}(?s:.*)/", escaped(opener));
        self.text.push_str(&format!("TEXT_{n}: {unopened}\n{name}[suffix={quoted}]: /(?s:.*)/\n"));
        self.add(&format!("TEXT_{n} | {name} {rest} {calls}"))
    }

    /// Messages of channels: any of the reasoning, or one that ends in time, then a call or what
    /// may be said.
    fn in_channels(
        &mut self,
        wanted: &Wanted<'_>,
        calls: Option<(CallSyntax, String)>,
    ) -> Result<String> {
        let said = wanted.said;
        let end = self.text_until(&Json::Null, harmony::END);
        let again = self.literal(&[harmony::START, "assistant"].concat());
        let message = |channel: &str| {
            let head = [harmony::CHANNEL, channel, harmony::MESSAGE].concat();
            self.literal(&head)
        };
        let (analysis, preamble) = (message("analysis"), message("commentary"));
        let answer = message("final");
        let call =
            calls.map(|(syntax, body)| format!("{} {body}", self.literal(syntax.before_name)));
        let answer = said.map(|_| format!("{answer} {}", self.said(said)));
        let last = call.into_iter().chain(answer).collect::<Vec<_>>().join(" | ");
        let preamble = (said == Some(&Said::Anything)).then_some(preamble);
        let Some(max_tokens) = wanted.max_reasoning_tokens else {
            let heads = [Some(analysis), preamble].into_iter().flatten().collect::<Vec<_>>();
            return Ok(self.add(&format!("(({}) {end} {again})* ({last})", heads.join(" | "))));
        };
        let reasoning = match max_tokens {
            0 => String::new(),
            _ => {
                let bounded = self.bounded_text(max_tokens, harmony::END)?;
                format!("({analysis} {bounded} {again})?")
            }
        };
        let preambles = preamble.map(|head| format!("({head} {end} {again})*")).unwrap_or_default();
        Ok(self.add(&format!("{reasoning} {preambles} ({last})")))
    }

    /// Text of so many tokens at most, and the special token that ends it.
    fn bounded_text(&mut self, max_tokens: u32, end: &str) -> Result<String> {
        if !self.special.iter().any(|(literal, _)| *literal == end) {
            let reason = format!("thinking cannot be bounded: {end} is no token of this model");
            return Err(Error::Request(reason));
        }
        let name = self.name();
        self.text.push_str(&format!("{name}[max_tokens={max_tokens}]: /(?s:.*)/\n"));
        Ok(format!("{name} {}", self.literal(end)))
    }

    fn said(&mut self, said: Option<&Said>) -> String {
        match said {
            None => "\"\"".to_owned(),
            Some(Said::Anything) => self.add("/(?s:.*)/"),
            Some(Said::Json(schema)) => self.json(schema, schema),
            Some(Said::Regex(regex)) => self.add(&format!("/{}/", in_slashes(regex))),
            Some(Said::Lark(lark)) => self.add(&format!("%lark {{\n{lark}\n}}")),
        }
    }

    fn name(&mut self) -> String {
        self.n += 1;
        format!("rule_{}", self.n)
    }

    fn add(&mut self, body: &str) -> String {
        let name = self.name();
        self.text.push_str(&format!("{name}: {body}\n"));
        name
    }

    /// Text in quotes, and special tokens by their ids.
    fn literal(&self, text: &str) -> String {
        let quoted = |text: &str| Json::from(text).to_string();
        let (mut parts, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            let found = self.special.iter().filter_map(|s| Some((rest.find(s.0)?, *s)));
            let Some((at, (literal, id))) =
                found.min_by_key(|(at, s)| (*at, usize::MAX - s.0.len()))
            else {
                break;
            };
            if at > 0 {
                parts.push(quoted(&rest[..at]));
            }
            parts.push(format!("<[{id}]>"));
            rest = &rest[at + literal.len()..];
        }
        if !rest.is_empty() {
            parts.push(quoted(rest));
        }
        if parts.is_empty() { "\"\"".to_owned() } else { parts.join(" ") }
    }

    /// JSON by a schema that may refer to definitions of another.
    fn json(&mut self, schema: &Json, root: &Json) -> String {
        let mut schema = schema.as_object().cloned().unwrap_or_default();
        for name in DEFINITIONS {
            if let Some(definitions) = root.get(name) {
                schema.entry(name).or_insert_with(|| definitions.clone());
            }
        }
        let schema = Json::Object(schema);
        self.add(&format!("%json {schema}"))
    }

    /// A string as it is, to the end of what follows it.
    fn text_until(&mut self, schema: &Json, end: &str) -> String {
        let end_literal = self.literal(end);
        let choices = choices(schema);
        if !choices.is_empty() {
            let list = choices.iter().map(|text| self.literal(text)).collect::<Vec<_>>();
            return self.add(&format!("({}) {end_literal}", list.join(" | ")));
        }
        if self.special.iter().any(|(literal, _)| end.starts_with(literal)) {
            return self.add(&format!("/(?s:.*)/ {end_literal}"));
        }
        let name = self.name();
        self.text.push_str(&format!("{name}[suffix={}]: /(?s:.*)/\n", Json::from(end)));
        name
    }

    /// `{key:value,…}` with the keys in the order of the schema; at least the required ones.
    fn bare_object(&mut self, schema: &Json, root: &Json, quote: &str) -> String {
        // From the last to the first: what may follow with a comma, and what may stand first.
        let (mut later, mut first) = (String::new(), Vec::new());
        let list = properties(schema).collect::<Vec<_>>();
        let mut is_over = true;
        for (key, value, is_required) in list.into_iter().rev() {
            let value = self.bare_value(value, root, quote);
            let key = self.literal(&format!("{key}:"));
            let pair = self.add(&format!("{key} {value}"));
            let with_rest = self.add(&format!("{pair} {later}"));
            if is_required {
                first.clear();
                (later, is_over) = (format!("(\",\" {with_rest})"), false);
            } else {
                let skipped = if later.is_empty() { "\"\"" } else { &later };
                later = format!("({} | {skipped})", format_args!("\",\" {with_rest}"));
            }
            later = self.add(&later);
            first.push(with_rest);
        }
        if is_over {
            first.push("\"\"".to_owned());
        }
        self.add(&format!("\"{{\" ({}) \"}}\"", first.join(" | ")))
    }

    fn bare_value(&mut self, schema: &Json, root: &Json, quote: &str) -> String {
        if let Some(reference) = schema.get("$ref").and_then(Json::as_str) {
            return self.referred(reference, root, quote);
        }
        if let Some(Json::Array(options)) = schema.get("anyOf").or_else(|| schema.get("oneOf"))
            && !options.is_empty()
        {
            let list = options.iter().map(|option| self.bare_value(option, root, quote));
            let list = list.collect::<Vec<_>>();
            return self.add(&list.join(" | "));
        }
        if schema.get("properties").is_some() {
            return self.bare_object(schema, root, quote);
        }
        if let Some(items) = schema.get("items").filter(|items| items.is_object()) {
            let item = self.bare_value(items, root, quote);
            return self.add(&format!("\"[\" ({item} (\",\" {item})*)? \"]\""));
        }
        if let Some(kind @ ("object" | "array")) = schema.get("type").and_then(Json::as_str) {
            return self.anything_bare(kind, quote);
        }
        if may_be_string(schema, root) {
            let (open, text) = (self.literal(quote), self.text_until(schema, quote));
            return self.add(&format!("{open} {text}"));
        }
        self.json(schema, root)
    }

    /// What a `$ref` points to, which may point back.
    fn referred(&mut self, reference: &str, root: &Json, quote: &str) -> String {
        if let Some((_, name)) = self.referred.iter().find(|(known, _)| known == reference) {
            return name.clone();
        }
        let name = self.name();
        self.referred.push((reference.to_owned(), name.clone()));
        let target = reference.strip_prefix('#').and_then(|path| root.pointer(path));
        // Where it points to nothing, the runner says so.
        let value = match target {
            Some(target) => self.bare_value(target, root, quote),
            None => self.json(&serde_json::json!({ "$ref": reference }), root),
        };
        self.text.push_str(&format!("{name}: {value}\n"));
        name
    }

    /// An object or array with anything in it.
    fn anything_bare(&mut self, kind: &str, quote: &str) -> String {
        let [any, object, array] = [(); 3].map(|()| self.name());
        let (open, text) = (self.literal(quote), self.text_until(&Json::Null, quote));
        self.text.push_str(&format!(
            "{any}: {object} | {array} | {open} {text} | /-?(0|[1-9][0-9]*)(\\.[0-9]+)?/ | \
             \"true\" | \"false\" | \"null\"\n\
             {object}: \"{{\" (/[a-zA-Z_][a-zA-Z0-9_]*/ \":\" {any} \
             (\",\" /[a-zA-Z_][a-zA-Z0-9_]*/ \":\" {any})*)? \"}}\"\n\
             {array}: \"[\" ({any} (\",\" {any})*)? \"]\"\n"
        ));
        if kind == "object" { object } else { array }
    }
}
