//! The text side of a model folder: tokenizer, chat template and stop tokens.
//!
//! Callers' text never becomes a special token here, except in [`Prompter::raw`], whose caller
//! wrote the whole prompt.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use hub::{HubError, ModelFolder};
use protocol::{Boundary, BoundaryKind};
use serde_json::Value;
use text::{
    AnswerFormat, AnswerStream, CallSyntax, ChatInput, ChatTemplate, Content, Json, JsonMap,
    Message, Rendered, Role, Segments, TemplateSource, Tokenizer,
};

use crate::sampling::GENERATION_CONFIG;

/// A prompt could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The folder lacks a file, or it cannot be read.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file of the model, or the caller's text.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// Conversations need a template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// A file says what ends a text in a way that is not understood.
    #[error("{file}: eos_token_id is {value}, not a token id or a list")]
    BadEos {
        /// The file.
        file: &'static str,
        /// What it says.
        value: String,
    },
}

type Encode<'a> = &'a dyn Fn(&Rendered) -> text::Result<Vec<u32>>;

type Result<T> = std::result::Result<T, PromptError>;

/// What a chat template makes a prompt of.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Definitions of tools in OpenAI's form.
    pub tools: Vec<Json>,
    /// Variables for the template, from the list that the `text` crate allows.
    pub kwargs: JsonMap,
    /// Leave out the opening of the model's turn.
    pub without_opening: bool,
    /// Places that the client marked, as seams of the prompt.
    pub marks: Vec<Mark>,
}

/// A place in a conversation: behind so many messages and, within the next, so many parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Whole messages before it.
    pub n_messages: usize,
    /// Parts of the message after those; 0: none.
    pub n_parts: usize,
}

impl Conversation {
    /// Messages alone.
    pub fn of(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }

    /// With thinking asked for, asked not to, or as the template has it.
    pub fn thinking(mut self, thinking: Option<bool>) -> Self {
        if let Some(thinking) = thinking {
            self.kwargs.insert("enable_thinking".into(), Value::Bool(thinking));
        }
        self
    }
}

/// Everything that turns text into tokens for one model, and back.
#[derive(Debug)]
pub struct Prompter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    format: AnswerFormat,
    stop_tokens: Vec<u32>,
    /// Of prompts that were encoded before.
    segments: Segments,
}

/// A prompt as the model gets it.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The text that they stand for.
    pub text: String,
    /// Its end, as far as the template wrote it.
    pub tail: String,
    /// Where other prompts may part from it.
    pub boundaries: Vec<Boundary>,
}

impl Prompt {
    /// Tokens before the last place that the client marked.
    pub fn marked_tokens(&self) -> u32 {
        let marked = self.boundaries.iter().filter(|seam| seam.kind == BoundaryKind::Named);
        marked.map(|seam| seam.at).max().unwrap_or(0)
    }
}

impl Prompter {
    /// Reads a folder's text files.
    pub fn load(folder: &ModelFolder) -> Result<Self> {
        folder.tokenizer()?;
        let tokenizer_json = folder.read_text("tokenizer.json")?.unwrap_or_default();
        let config = folder.read_text("tokenizer_config.json")?;
        let special_tokens = folder.read_text("special_tokens_map.json")?;
        let tokenizer = Tokenizer::new(
            tokenizer_json.as_bytes(),
            config.as_deref(),
            special_tokens.as_deref(),
        )?;
        let stop_tokens = stop_tokens(folder, &tokenizer)?;
        let source = template_source(folder)?;
        let format = AnswerFormat::detect(source.as_ref(), &tokenizer);
        let template = source
            .map(|source| ChatTemplate::new(&source, tokenizer.template_tokens()))
            .transpose()?;
        Ok(Self { tokenizer, template, format, stop_tokens, segments: Segments::default() })
    }

    /// Renders and encodes a conversation, up to the opening of the model's turn. What was encoded
    /// before for the same namespace of the cache is not encoded again.
    pub fn chat(&self, conversation: Conversation, namespace: u64) -> Result<Prompt> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let Conversation { messages, tools, kwargs, without_opening, marks } = conversation;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let input = ChatInput {
            messages,
            tools,
            add_generation_prompt: !without_opening,
            kwargs,
            now_unix_s: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            ..ChatInput::default()
        };
        let rendered = template.render(&input, self.tokenizer.guard())?;
        let encode = |rendered: &Rendered| {
            self.tokenizer.encode_remembered(rendered, &self.segments, namespace)
        };
        let tokens = encode(&rendered)?;
        let boundaries = self.boundaries(template, &input, &marks, &tokens, &encode);
        let (text, tail) = (rendered.text(), rendered.tail().to_owned());
        Ok(Prompt { tokens, text, tail, boundaries })
    }

    /// Where the next turns of a conversation, or others with the same beginning, may part from its
    /// prompt: behind the system message and the last messages, and before the header that opens
    /// the answer; and where the client marked it. Found by rendering it without what follows; what
    /// the template refuses to render alone has no seam.
    fn boundaries(
        &self,
        template: &ChatTemplate,
        input: &ChatInput,
        marks: &[Mark],
        tokens: &[u32],
        encode: Encode<'_>,
    ) -> Vec<Boundary> {
        let n = input.messages.len();
        let is_system = |i: &usize| input.messages[*i].role == Role::System;
        let n_system = (0..n).take_while(is_system).count();
        let ends = [(n_system, BoundaryKind::System), (n.saturating_sub(2), BoundaryKind::Message)];
        let ends = ends.into_iter().chain([(n.saturating_sub(1), BoundaryKind::Message)]);
        let ends = ends.filter(|(end, _)| (1..n).contains(end)).chain([(n, BoundaryKind::Prompt)]);
        let ends = ends.map(|(end, kind)| (Mark { n_messages: end, n_parts: 0 }, kind));
        let named = marks.iter().map(|mark| (*mark, BoundaryKind::Named));
        let mut known: BTreeMap<Mark, Option<u32>> = BTreeMap::new();
        let seam = |(mark, kind)| {
            let at = known
                .entry(mark)
                .or_insert_with(|| self.seam(template, input, mark, tokens, encode));
            Some(Boundary { at: (*at)?, kind })
        };
        ends.chain(named).filter_map(seam).collect()
    }

    /// How many of the prompt's tokens come before a place in the conversation.
    fn seam(
        &self,
        template: &ChatTemplate,
        input: &ChatInput,
        mark: Mark,
        tokens: &[u32],
        encode: Encode<'_>,
    ) -> Option<u32> {
        let Mark { n_messages, n_parts } = mark;
        let mut messages = input.messages.get(..n_messages)?.to_vec();
        if n_parts > 0 {
            let mut cut =
                Message { tool_calls: Vec::new(), ..input.messages.get(n_messages)?.clone() };
            if let Content::Parts(parts) = &mut cut.content {
                parts.truncate(n_parts);
            }
            messages.push(cut);
        }
        let input = ChatInput { messages, add_generation_prompt: false, ..input.clone() };
        let rendered = template.render(&input, self.tokenizer.guard()).ok()?;
        let part = encode(&rendered).ok()?;
        let at = part.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        (at > 0).then_some(at as u32)
    }

    /// Encodes a text as it is; special tokens written in it count.
    pub fn raw(&self, text: &str) -> Result<Prompt> {
        let tokens = self.tokenizer.encode_prompt(text)?;
        Ok(Prompt { tokens, text: text.to_owned(), tail: text.to_owned(), boundaries: Vec::new() })
    }

    /// The text of some tokens in the middle of others, special ones written out.
    pub fn excerpt(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap_or_default()
    }

    /// Encodes a text in which no special token counts.
    pub fn plain(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_text(text)?)
    }

    /// The text of some tokens, without special ones unless asked for.
    pub fn decode(&self, tokens: &[u32], with_special_tokens: bool) -> Result<String> {
        Ok(self.tokenizer.decode(tokens, with_special_tokens)?)
    }

    /// A token's own text; a part of a character shows as U+FFFD.
    pub fn piece(&self, token: u32) -> String {
        self.tokenizer.decode(&[token], true).unwrap_or_default()
    }

    /// Whether conversations can be rendered.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// How the model writes calls of tools; none if its template knows no tools.
    pub fn calls(&self) -> Option<&CallSyntax> {
        self.format.calls()
    }

    /// The markup of the model's answers.
    pub fn format(&self) -> &AnswerFormat {
        &self.format
    }

    /// That of it which is special tokens, with their ids.
    pub fn special_markup(&self) -> Vec<(&'static str, u32)> {
        let literals = self.format.special_markup().iter();
        literals.filter_map(|text| Some((*text, self.tokenizer.token_to_id(text)?))).collect()
    }

    /// What makes parts of the tokens of one answer. `tools` are those that may be called.
    pub fn parser(&self, prompt_tail: &str, tools: &[Json]) -> Result<AnswerStream<'_>> {
        Ok(AnswerStream::new(&self.tokenizer, &self.format, tools, prompt_tail)?)
    }

    /// The same of an answer that may have a form instead of calling.
    pub fn parser_beside_a_form(&self, tail: &str, tools: &[Json]) -> Result<AnswerStream<'_>> {
        Ok(AnswerStream::new(&self.tokenizer, &self.format.beside_a_form(), tools, tail)?)
    }

    /// The same for the continuation of a text, all of which is text.
    pub fn plain_parser(&self) -> Result<AnswerStream<'_>> {
        Ok(AnswerStream::new(&self.tokenizer, &AnswerFormat::plain(), &[], "")?)
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }
}

fn template_source(folder: &ModelFolder) -> Result<Option<TemplateSource>> {
    let jinja = folder.read_text("chat_template.jinja")?;
    let config = folder.read_object("tokenizer_config.json")?;
    let in_config = config.as_ref().is_some_and(|config| config.contains_key("chat_template"));
    if jinja.is_none() && !in_config {
        return Ok(None);
    }
    let config = config.map(Json::Object);
    Ok(Some(TemplateSource::find(jinja.as_deref(), config.as_ref())?))
}

/// All that the model's files call an end of sequence.
fn stop_tokens(folder: &ModelFolder, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids: BTreeSet<u32> = tokenizer.eos_ids().iter().copied().collect();
    let generation = folder.read_object(GENERATION_CONFIG)?.unwrap_or_default();
    for (file, config) in [(GENERATION_CONFIG, &generation), ("config.json", folder.config())] {
        let value = config.get("eos_token_id").unwrap_or(&Value::Null);
        let bad = || PromptError::BadEos { file, value: value.to_string() };
        ids.extend(token_ids(value).ok_or_else(bad)?);
    }
    Ok(ids.into_iter().collect())
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(values) => values.iter().map(id).collect(),
        value => Some(vec![id(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_tokens_are_a_number_or_a_list() {
        let check = |json: &str, expected: Option<Vec<u32>>| {
            assert_eq!(token_ids(&serde_json::from_str(json).unwrap()), expected, "{json}");
        };
        check("null", Some(vec![]));
        check("7", Some(vec![7]));
        check("[7, 9]", Some(vec![7, 9]));
        check("-1", None);
        check("\"</s>\"", None);
        check("[7, null]", None);
    }
}
