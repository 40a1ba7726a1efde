//! Generation in no dialect: one request, and a stream of the parts of its answers. Every API maps
//! its own form onto these and back.
//!
//! Invariants:
//! - Each answer ends with exactly one `Finished` or `Failed`, and nothing of it follows.
//! - An answer that is dropped frees its work within one step of the runner.
//! - A request whose runner dies before its first token is sent once more; after it never.

mod drive;
mod form;
mod reader;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{CacheMatch, GenerateRequest, MAX_TOP_LOGPROBS, RequestId, Timings, Usage};
use text::Json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

pub use self::form::{Calls, Form, SaidForm, Tools};
use crate::blocking::blocking;
use crate::failure::{Failure, Kind};
use crate::metrics::Metrics;
use crate::models::{KeepAlive, Models, TextSide};
use crate::prompter::{Conversation, Prompt, PromptError, Prompter};
use crate::sampling::Choices;

/// Most answers of one request, over all its prompts.
pub const MAX_ANSWERS: usize = 16;
/// Parts of an answer that wait for their reader; what is beyond waits in the runner's channel.
const MAX_WAITING_PARTS: usize = 64;

/// What has to be known to read the answer in a conversation.
#[derive(Debug, Clone)]
struct Chat {
    /// The end of the prompt as the template wrote it.
    tail: String,
    /// Those that may be called.
    tools: Arc<[Json]>,
}

/// What is to be continued.
#[derive(Debug, Clone)]
pub enum Input {
    /// A conversation, by the model's template; reasoning is told from the answer.
    Chat(Box<Conversation>),
    /// A text, in which special tokens count.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl Input {
    /// What the model reads.
    pub(crate) fn prompt(self, prompter: &Prompter, namespace: u64) -> Result<Prompt, PromptError> {
        match self {
            Self::Chat(conversation) => prompter.chat(*conversation, namespace),
            Self::Text(written) => prompter.raw(&written),
            Self::Tokens(tokens) => {
                let (text, tail) = (String::new(), String::new());
                Ok(Prompt { tokens, text, tail, boundaries: Vec::new() })
            }
        }
    }

    fn has_tools(&self) -> bool {
        match self {
            Self::Chat(conversation) => !conversation.tools.is_empty(),
            Self::Text(_) | Self::Tokens(_) => false,
        }
    }
}

/// What to generate.
#[derive(Debug)]
pub struct Request {
    /// The model, by a name that [`Models`] knows.
    pub model: String,
    /// At least one; each is answered `n_answers` times.
    pub inputs: Vec<Input>,
    /// Answers to each input.
    pub n_answers: usize,
    /// Most tokens of an answer; none: what the context allows.
    pub max_tokens: Option<u32>,
    /// An answer ends before the first of these.
    pub stops: Vec<String>,
    /// What an answer has to look like.
    pub form: Form,
    /// How tokens are chosen.
    pub choices: Choices,
    /// Log probabilities, with so many alternatives.
    pub top_logprobs: Option<u32>,
    /// Whose cached prefixes may be used.
    pub namespace: u64,
    /// How long the model is to stay afterwards; none: as it is.
    pub keep_alive: Option<KeepAlive>,
    /// Held until the last answer has ended.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Request {
    /// One answer to one input, everything else left open.
    pub fn new(model: impl Into<String>, input: Input) -> Self {
        Self {
            model: model.into(),
            inputs: vec![input],
            n_answers: 1,
            max_tokens: None,
            stops: Vec::new(),
            form: Form::default(),
            choices: Choices::default(),
            top_logprobs: None,
            namespace: 0,
            keep_alive: None,
            permit: None,
        }
    }
}

impl Request {
    /// Checks what can be checked without the model; returns how many answers there will be.
    pub fn validated(&self) -> Result<usize, Failure> {
        let n_answers = self.n_answers.saturating_mul(self.inputs.len());
        if !(1..=MAX_ANSWERS).contains(&n_answers) {
            let reason =
                format!("must make 1 to {MAX_ANSWERS} answers over all prompts, not {n_answers}");
            return Err(Failure::invalid("n", reason));
        }
        self.choices.validate()?;
        reader::stops(&self.stops)?;
        if let Some(n) = self.top_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
            let reason = format!("must be at most {MAX_TOP_LOGPROBS}, not {n}");
            return Err(Failure::invalid("top_logprobs", reason));
        }
        Ok(n_answers)
    }
}

/// A token and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Its id.
    pub token: u32,
    /// What it adds to the text, be it whole characters or not.
    pub bytes: Vec<u8>,
    /// Natural log probability.
    pub logprob: f32,
    /// The most likely tokens, best first.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprob {
    /// Its text; U+FFFD where it is a part of a character.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// 0, 1, ... within the answer.
    pub index: usize,
    /// Where the model gives one.
    pub id: Option<String>,
    /// Which tool.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

/// A part of one answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The model is being loaded.
    Loading {
        /// Bytes that are ready.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The prompt is being computed.
    Prefill {
        /// Tokens computed or cached.
        done_tokens: u32,
        /// Tokens in all.
        total_tokens: u32,
    },
    /// What the cache has of the prompt; before anything of the answer, if the runner says it.
    Matched(CacheMatch),
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Text {
        /// May be empty where only log probabilities are left.
        text: String,
        /// Of the tokens that made it, where they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// What it calls.
    Call(Call),
    /// The end.
    Finished(Box<Finished>),
    /// The end, without an answer or in its middle.
    Failed(Box<Failure>),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The model said so.
    Stop,
    /// A stop string, by its index.
    StopString(usize),
    /// `max_tokens` or the context.
    Length,
    /// It waits for the results of its calls.
    Calls,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: Reason,
    /// Tokens in and out.
    pub usage: Usage,
    /// New tokens that were reasoning.
    pub reasoning_tokens: u32,
    /// Where the time went.
    pub timings: Timings,
    /// For the model to be loaded, in milliseconds; 0 if it was there.
    pub load_ms: f64,
    /// What the cache had; none if the runner did not say.
    pub found: Option<CacheMatch>,
    /// The seed that was used.
    pub seed: u64,
}

/// The answers to one request, part by part. Dropping it cancels what is not done.
pub struct Answers {
    /// The model's own name.
    pub model: String,
    /// How many answers there will be.
    pub n_answers: usize,
    /// Tokens of the first input.
    pub prompt_tokens: u32,
    /// Those of them before the last place that the client marked.
    pub marked_tokens: u32,
    has_logprobs: bool,
    parts: mpsc::Receiver<(usize, Part)>,
    /// Looked at already, and not taken.
    seen: VecDeque<(usize, Part)>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What the model thought.
    pub reasoning: String,
    /// What it said.
    pub text: String,
    /// What it called.
    pub calls: Vec<Call>,
    /// Of the text's tokens, where they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// How it ended.
    pub finished: Finished,
}

impl Answers {
    /// All answers, whole.
    ///
    /// # Errors
    /// One of them has failed; the others are cancelled.
    pub async fn collect(mut self) -> Result<Vec<Answer>, Failure> {
        let lost = || Failure::new(Kind::Ours, "an answer has no end");
        let mut whole: Vec<Gathered> = Vec::new();
        whole.resize_with(self.n_answers, Gathered::default);
        while let Some((idx, part)) = self.next().await {
            whole.get_mut(idx).ok_or_else(lost)?.take(part)?;
        }
        let has_logprobs = self.has_logprobs;
        whole.into_iter().map(|g| g.whole(has_logprobs).ok_or_else(lost)).collect()
    }

    /// The next part and the index of its answer; none when all have ended. Cancel safe.
    pub async fn next(&mut self) -> Option<(usize, Part)> {
        match self.seen.pop_front() {
            Some(seen) => Some(seen),
            None => self.parts.recv().await,
        }
    }

    /// Waits until something of an answer is there, but not longer than `patience`, so that what
    /// fails at once is a status and not the content of a stream.
    ///
    /// # Errors
    /// The request has failed.
    pub async fn settle(&mut self, patience: Duration) -> Result<(), Failure> {
        let first = tokio::time::timeout(patience, async {
            loop {
                match self.parts.recv().await {
                    Some((_, Part::Loading { .. } | Part::Prefill { .. })) => {}
                    Some(found @ (_, Part::Matched(_))) => self.seen.push_back(found),
                    first => return first,
                }
            }
        });
        match first.await {
            Ok(Some((_, Part::Failed(failure)))) => Err(*failure),
            Ok(first) => {
                self.seen.extend(first);
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

#[derive(Default)]
struct Gathered {
    reasoning: String,
    text: String,
    calls: Vec<Call>,
    logprobs: Vec<TokenLogprob>,
    finished: Option<Finished>,
}

impl Gathered {
    fn take(&mut self, part: Part) -> Result<(), Failure> {
        match part {
            Part::Loading { .. } | Part::Prefill { .. } | Part::Matched(_) => {}
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Text { text, logprobs } => {
                self.text.push_str(&text);
                self.logprobs.extend(logprobs);
            }
            Part::Call(call) => self.calls.push(call),
            Part::Finished(finished) => self.finished = Some(*finished),
            Part::Failed(failure) => return Err(*failure),
        }
        Ok(())
    }

    fn whole(self, has_logprobs: bool) -> Option<Answer> {
        Some(Answer {
            reasoning: self.reasoning,
            text: self.text,
            calls: self.calls,
            logprobs: has_logprobs.then_some(self.logprobs),
            finished: self.finished?,
        })
    }
}

/// What generates.
#[derive(Clone)]
pub struct Generator {
    /// The models.
    pub models: Models,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Most time of a request, from its arrival to its end.
    pub deadline: Duration,
}

impl Generator {
    /// Checks a request, renders its prompts and begins to answer them.
    ///
    /// # Errors
    /// The request cannot be served as it is, or the model is unknown. What comes up later is a
    /// part of the answers.
    pub async fn start(&self, request: Request) -> Result<Answers, Failure> {
        let arrived = Instant::now();
        let n_answers = request.validated()?;
        let (name, text) = self.models.text(&request.model).await?;
        if text.prompter.calls().is_none() && request.inputs.iter().any(Input::has_tools) {
            let reason = "cannot be used: the template of this model has no calls of tools";
            return Err(Failure::invalid("tools", reason));
        }
        let Request { inputs, stops, .. } = request;
        let form = Arc::new(request.form);
        reader::Reader::new(&text.prompter, None, &stops, &form)?;
        let permit = request.permit.map(Arc::new);
        let prompts = self
            .render(Arc::clone(&text), inputs, &form, request.namespace, permit.clone())
            .await?;
        let (sender, parts) = mpsc::channel(MAX_WAITING_PARTS);
        let seed = request.choices.seed.unwrap_or_else(crate::sampling::random_seed);
        let first = prompts.first().map(|(prompt, _)| prompt);
        let prompt_tokens = first.map_or(0, |prompt| prompt.tokens.len() as u32);
        let marked_tokens = first.map_or(0, Prompt::marked_tokens);
        for (idx, prompt) in prompts.iter().enumerate() {
            let grammar = form.grammar(&text.prompter, &prompt.0.tail, prompt.1.as_deref())?;
            for nth in 0..request.n_answers {
                let mut sampling = request.choices.over(&text.sampling);
                sampling.seed = seed.wrapping_add(nth as u64);
                let prompt_tokens = prompt.0.tokens.len() as u64;
                let room = text.context_tokens.unwrap_or(u64::MAX).saturating_sub(prompt_tokens);
                let room = u32::try_from(room.max(1)).unwrap_or(u32::MAX);
                let generate = GenerateRequest {
                    id: RequestId(0),
                    prompt: prompt.0.tokens.clone(),
                    max_tokens: request.max_tokens.unwrap_or(room),
                    stop_tokens: text.prompter.stop_tokens().to_vec(),
                    sampling,
                    top_logprobs: request.top_logprobs,
                    namespace: request.namespace,
                    boundaries: prompt.0.boundaries.clone(),
                    grammar: grammar.clone(),
                };
                generate.validate().map_err(|invalid| form.named(invalid.into()))?;
                let job = drive::Job {
                    generator: self.clone(),
                    model: name.clone(),
                    text: Arc::clone(&text),
                    chat: prompt.1.clone().map(|tools| Chat { tail: prompt.0.tail.clone(), tools }),
                    stops: stops.clone(),
                    form: Arc::clone(&form),
                    generate,
                    keep_alive: request.keep_alive,
                    idx: idx * request.n_answers + nth,
                    arrived,
                    parts: sender.clone(),
                };
                tokio::spawn(job.run());
            }
        }
        Ok(Answers {
            model: name,
            n_answers,
            prompt_tokens,
            marked_tokens,
            has_logprobs: request.top_logprobs.is_some(),
            parts,
            seen: VecDeque::new(),
            _permit: permit,
        })
    }

    /// Prompts, and of conversations the tools that may be called.
    async fn render(
        &self,
        text: Arc<TextSide>,
        inputs: Vec<Input>,
        form: &Arc<Form>,
        namespace: u64,
        permit: Option<Arc<OwnedSemaphorePermit>>,
    ) -> Result<Vec<(Prompt, Option<Arc<[Json]>>)>, Failure> {
        let form = Arc::clone(form);
        let render = move || {
            // Rendering goes on when the caller has left, and so does the place that it takes.
            let _permit = permit;
            let one = |input: Input| -> Result<_, Failure> {
                let tools = match &input {
                    Input::Chat(conversation) => Some(form.callable(&conversation.tools)),
                    Input::Text(_) | Input::Tokens(_) => None,
                };
                Ok((input.prompt(&text.prompter, namespace)?, tools))
            };
            inputs.into_iter().map(one).collect()
        };
        blocking(render).await
    }

    /// The tokens of a prompt of which no answer is made, with the name and the text side of the
    /// model whose they are.
    ///
    /// # Errors
    /// The model is unknown, or cannot read the prompt.
    pub async fn tokens(
        &self,
        model: &str,
        input: Input,
        namespace: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<(String, Arc<TextSide>, Vec<u32>), Failure> {
        let (name, side) = self.models.text(model).await?;
        let text = Arc::clone(&side);
        let read = move || {
            // Reading goes on when the caller has left, and so does the place that it takes.
            let _permit = permit;
            input.prompt(&text.prompter, namespace)
        };
        Ok((name, side, blocking(read).await?.tokens))
    }
}
