//! `offshoot run`: one answer, or a chat.

use std::io::{self, IsTerminal, Read};

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{DEMO, Hub, HubError, Model, ModelFolder};
use protocol::{Command, Event, FinishReason, GenerateRequest, Sampling, Timings};
use serde_json::{Value, json};
use server::prompter::{Conversation, Prompt, Prompter};
use text::{Message, Part, Role};

use crate::commands::chat;
use crate::failure::{Failure, Result};
use crate::flags::{BackendFlags, CacheFlags, SamplingFlags};
use crate::interrupts::Interrupts;
use crate::model::resolve;
use crate::output::{Output, Progress, say};
use crate::session::{Ending, Session, source};

/// Most bytes read as a prompt from standard input.
const MAX_STDIN_BYTES: u64 = 64 << 20;

/// Answer a prompt, or chat when there is none and this is a terminal
#[derive(Debug, Args)]
pub struct Run {
    /// Folder in Hugging Face layout, name from `offshoot list`, or a model on the Hub
    #[arg(default_value = DEMO)]
    model: String,
    /// What to answer; text from a pipe is appended
    prompt: Option<String>,
    /// Most tokens of an answer (without it: what the model's context allows)
    #[arg(long, env = "OFFSHOOT_MAX_TOKENS", allow_negative_numbers = true, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Instructions that come before the conversation
    #[arg(long, env = "OFFSHOOT_SYSTEM", value_name = "TEXT")]
    system: Option<String>,
    /// Have the model think first, and show it also where the output is no terminal
    #[arg(long, env = "OFFSHOOT_THINK", value_parser = BoolishValueParser::new(),
          overrides_with = "no_think")]
    think: bool,
    /// Have the model answer without thinking first
    #[arg(long, overrides_with = "think")]
    no_think: bool,
    /// Print one JSON object instead of text
    #[arg(long, env = "OFFSHOOT_JSON", value_parser = BoolishValueParser::new())]
    json: bool,
    /// Print tokens and speeds on standard error
    #[arg(long, env = "OFFSHOOT_VERBOSE", value_parser = BoolishValueParser::new())]
    verbose: bool,
    /// Continue the prompt as it is, without the chat template
    #[arg(long, env = "OFFSHOOT_RAW", value_parser = BoolishValueParser::new(),
          conflicts_with_all = ["system", "think", "no_think"])]
    raw: bool,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    backend: BackendFlags,
}

/// How answers are made and shown.
pub struct Style {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most new tokens.
    pub max_tokens: Option<u32>,
    /// Whether the model is to think: yes, no, or its template decides.
    pub thinking: Option<bool>,
    /// Whether text appears as it comes.
    pub streams: bool,
    /// Whether streamed text includes the thinking.
    pub shows_thinking: bool,
    /// Whether speeds are printed.
    pub verbose: bool,
}

/// A complete answer.
#[derive(Debug)]
pub struct Answer {
    /// What the model says.
    pub text: String,
    /// What it thought.
    pub thinking: String,
    /// How it ended.
    pub ending: Ending,
}

impl Run {
    /// Runs the command.
    pub fn execute(self, out: &mut Output, interrupts: &Interrupts) -> Result<()> {
        let folder = self.folder(interrupts)?;
        let prompt = self.whole_prompt(out.is_terminal)?;
        let prompter = Prompter::load(&folder)?;
        let thinking = match (self.think, self.no_think) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        };
        let style = Style {
            sampling: self.sampling.resolve(&folder)?,
            max_tokens: self.max_tokens,
            thinking,
            streams: !self.json,
            shows_thinking: self.think || out.is_terminal,
            verbose: self.verbose,
        };
        let rendered = prompt.map(|prompt| self.render(&prompter, prompt, &style)).transpose()?;
        let model = Model::Folder { name: self.model.clone(), folder };
        let mut session = Session::start(
            source(&model, None)?,
            self.cache.settings(&self.model),
            self.cache.deterministic,
            &self.backend,
            interrupts,
        )?;
        let Some(rendered) = rendered else {
            return chat::chat(&mut session, &prompter, &style, self.system, out, interrupts);
        };
        let answer = answer(&mut session, &prompter, rendered, &style, out)?;
        if self.json {
            let object = self.json_object(&answer, &session, style.sampling.seed);
            out.line(&object.to_string())?;
        }
        match answer.ending.reason {
            FinishReason::Cancelled => Err(Failure::Interrupted),
            FinishReason::Stop | FinishReason::Length => Ok(()),
        }
    }

    fn folder(&self, interrupts: &Interrupts) -> Result<ModelFolder> {
        // A prompt in the model's place is the likeliest of all names with spaces.
        let is_prompt = self.model.contains(char::is_whitespace)
            && matches!(Hub::of_user()?.resolve(&self.model), Err(HubError::InvalidName { .. }));
        if is_prompt {
            return Err(Failure::usage(format!("{:?} is not a model name", self.model))
                .with_hint(format!("the model comes first: offshoot run {DEMO} PROMPT")));
        }
        match resolve(&self.model, interrupts)? {
            Model::Folder { folder, .. } => Ok(folder),
            Model::Shape(_) => Err(Failure::usage("a shape has random weights and no words")
                .with_hint("shapes are for `offshoot bench`")),
        }
    }

    /// The prompt from the argument and from a pipe; `None` is a chat.
    fn whole_prompt(&self, out_is_terminal: bool) -> Result<Option<String>> {
        let stdin = io::stdin();
        let at_terminal = stdin.is_terminal();
        let piped = if at_terminal { String::new() } else { read_prompt(stdin.lock())? };
        let given = self.prompt.as_deref().unwrap_or_default();
        let chats = at_terminal && out_is_terminal && !self.json && !self.raw;
        match (given.trim().is_empty(), piped.trim().is_empty()) {
            (false, false) => Ok(Some(format!("{given}\n\n{piped}"))),
            (false, true) => Ok(Some(given.to_owned())),
            (true, false) => Ok(Some(piped)),
            (true, true) if chats && self.prompt.is_none() => Ok(None),
            (true, true) => Err(Failure::usage("the prompt is empty")
                .with_hint(format!("offshoot run {} \"Hello\"", self.model))),
        }
    }

    fn render(&self, prompter: &Prompter, prompt: String, style: &Style) -> Result<Prompt> {
        if self.raw {
            return Ok(prompter.raw(&prompt)?);
        }
        let system = self.system.iter().map(|text| Message::new(Role::System, text));
        let messages: Vec<_> = system.chain([Message::new(Role::User, prompt)]).collect();
        Ok(prompter.chat(Conversation::of(messages).thinking(style.thinking), 0)?)
    }

    fn json_object(&self, answer: &Answer, session: &Session, seed: u64) -> Value {
        let Ending { reason, usage, timings } = answer.ending;
        let Timings { queue_ms, prefill_ms, decode_ms } = timings;
        json!({
            "model": self.model,
            "text": answer.text,
            "thinking": answer.thinking,
            "finish_reason": reason_name(reason),
            "seed": seed,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "new_tokens": usage.new_tokens,
            },
            "timings": {
                "load_ms": session.load_ms,
                "queue_ms": queue_ms,
                "prefill_ms": prefill_ms,
                "decode_ms": decode_ms,
            },
        })
    }
}

fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
    }
}

fn read_prompt(reader: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    let read = reader.take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new(format!("cannot read standard input: {e}")))?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        return Err(Failure::new(format!("standard input is over {MAX_STDIN_BYTES} bytes")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
        Err(_) => Err(Failure::new("standard input is not UTF-8 text")),
    }
}

/// Has the model answer a prompt, streaming as `style` says.
pub fn answer(
    session: &mut Session,
    prompter: &Prompter,
    prompt: Prompt,
    style: &Style,
    out: &mut Output,
) -> Result<Answer> {
    let id = session.next_id();
    let room_tokens = session.info.context_tokens.saturating_sub(prompt.tokens.len() as u32);
    let request = GenerateRequest {
        id,
        max_tokens: style.max_tokens.unwrap_or(room_tokens).max(1),
        stop_tokens: prompter.stop_tokens().to_vec(),
        sampling: style.sampling.clone(),
        top_logprobs: None,
        namespace: 0,
        boundaries: prompt.boundaries,
        grammar: None,
        prompt: prompt.tokens,
    };
    request.validate()?;
    request.fits(&session.info)?;
    let mut parser = prompter.parser(&prompt.tail, &[])?;
    let mut shown = Shown::new(style);
    let mut progress = Progress::new("reading the prompt");
    let stop_tokens = request.stop_tokens.clone();
    let ended = session.request(id, &Command::Generate(request), &mut |event| {
        match event {
            Event::Matched(found) if style.verbose => {
                say(&server::explain::line(&found, &|tokens| prompter.excerpt(tokens)));
            }
            Event::PrefillProgress { done_tokens, total_tokens, .. } => {
                progress.update(done_tokens.into(), total_tokens.into());
            }
            Event::Token { token, .. } => {
                progress.clear();
                if !stop_tokens.contains(&token) {
                    shown.take(parser.push(token), out)?;
                }
            }
            _ => {}
        }
        Ok(())
    });
    drop(progress);
    // What came before a failure is shown whole.
    let shown = shown.take(parser.finish(), out).and_then(|()| shown.end(out)).map(|()| shown);
    let ending = ended?;
    let shown = shown?;
    if style.verbose {
        say(&speed_line(&ending, session.load_ms));
    }
    Ok(Answer { text: shown.text, thinking: shown.thinking, ending })
}

/// What a text on the screen is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Answer,
}

/// What has been received, and what of it is on the screen.
struct Shown {
    text: String,
    thinking: String,
    streams: bool,
    shows_thinking: bool,
    /// The kind of the last text on the screen.
    last: Option<Kind>,
}

impl Shown {
    fn new(style: &Style) -> Self {
        Self {
            text: String::new(),
            thinking: String::new(),
            streams: style.streams,
            shows_thinking: style.shows_thinking,
            last: None,
        }
    }

    fn take(&mut self, parts: Vec<Part>, out: &mut Output) -> Result<()> {
        for part in parts {
            let (kind, part) = match part {
                Part::Reasoning(part) => (Kind::Thinking, part),
                Part::Text(part) => (Kind::Answer, part),
                // No tools are offered, so none is called.
                Part::Call(_) => continue,
            };
            match kind {
                Kind::Thinking => self.thinking.push_str(&part),
                Kind::Answer => self.text.push_str(&part),
            }
            if self.streams && (kind == Kind::Answer || self.shows_thinking) {
                self.turn_to(Some(kind), out)?;
                out.write(&part)?;
            }
        }
        Ok(())
    }

    fn turn_to(&mut self, kind: Option<Kind>, out: &mut Output) -> Result<()> {
        let (open, close) = out.thinking_marks();
        match (self.last, kind) {
            (Some(Kind::Thinking), Some(Kind::Answer)) => out.write(&format!("{close}\n\n"))?,
            (Some(Kind::Thinking), None) => out.write(&format!("{close}\n"))?,
            (Some(Kind::Answer), None) if !self.text.ends_with('\n') => out.write("\n")?,
            (None | Some(Kind::Answer), Some(Kind::Thinking)) => out.write(open)?,
            _ => {}
        }
        self.last = kind;
        Ok(())
    }

    /// Closes what is open and ends the line.
    fn end(&mut self, out: &mut Output) -> Result<()> {
        self.turn_to(None, out)
    }
}

fn speed_line(ending: &Ending, load_ms: f64) -> String {
    let Ending { usage, timings, .. } = ending;
    let speed = |n_tokens: u32, ms: f64| {
        let tok_s = f64::from(n_tokens) * 1000.0 / ms;
        if tok_s.is_finite() && n_tokens > 0 { format!("{tok_s:.1} tok/s") } else { "-".to_owned() }
    };
    // The first new token comes out of the prefill.
    let prefill =
        speed(usage.prompt_tokens.saturating_sub(usage.cached_tokens), timings.prefill_ms);
    let decode = speed(usage.new_tokens.saturating_sub(1), timings.decode_ms);
    format!(
        "prompt {} tokens ({} cached), new {} tokens, prefill {prefill}, decode {decode}, \
         load {load_ms:.0} ms",
        usage.prompt_tokens, usage.cached_tokens, usage.new_tokens
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Usage;

    #[test]
    fn the_speed_line_counts_only_what_was_computed() {
        let ending = Ending {
            reason: FinishReason::Stop,
            usage: Usage { prompt_tokens: 110, cached_tokens: 10, new_tokens: 21 },
            timings: Timings { queue_ms: 0.0, prefill_ms: 50.0, decode_ms: 400.0 },
        };
        let expected = "prompt 110 tokens (10 cached), new 21 tokens, prefill 2000.0 tok/s, \
                        decode 50.0 tok/s, load 12 ms";
        assert_eq!(speed_line(&ending, 12.3), expected);
        let nothing = Ending { usage: Usage::default(), timings: Timings::default(), ..ending };
        assert!(speed_line(&nothing, 0.0).contains("prefill -, decode -"));
    }

    #[test]
    fn a_piped_prompt_is_utf8_and_bounded() {
        assert_eq!(read_prompt("hi\n\n".as_bytes()).unwrap(), "hi");
        assert!(read_prompt(b"\xff".as_slice()).is_err());
        assert!(read_prompt(io::repeat(b'a')).is_err());
    }
}
