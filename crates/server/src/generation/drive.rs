//! The life of one answer: lease, ticket, events, parts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{CacheMatch, Event, FinishReason, GenerateRequest, Timings, Usage};
use tokio::sync::mpsc;

use super::reader::Reader;
use super::{Chat, Finished, Form, Generator, Part, Reason};
use crate::failure::{Failure, Kind};
use crate::metrics::Sample;
use crate::models::{KeepAlive, Lease, Lost, TextSide, Ticket};

/// For the end of a request that was cancelled here; a step of the runner may be long.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// One answer to be made.
pub(super) struct Job {
    pub generator: Generator,
    pub model: String,
    pub text: Arc<TextSide>,
    /// Set where reasoning and calls are told from the answer.
    pub chat: Option<Chat>,
    pub stops: Vec<String>,
    pub form: Arc<Form>,
    pub generate: GenerateRequest,
    pub keep_alive: Option<KeepAlive>,
    pub idx: usize,
    pub arrived: Instant,
    pub parts: mpsc::Sender<(usize, Part)>,
}

/// Why there is no answer.
enum Ended {
    /// Nobody reads it any more.
    Dropped,
    Failed(Failure),
    /// The runner went before the first token.
    Retry(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is known of the answer so far.
#[derive(Default)]
struct Progress {
    found: Option<CacheMatch>,
    n_tokens: u32,
    reasoning_tokens: u32,
    first_token: Option<Instant>,
    load_ms: f64,
}

/// Counts a request among those that wait or run, until it is dropped.
struct Counted<'a> {
    job: &'a Job,
    runs: bool,
}

impl<'a> Counted<'a> {
    fn new(job: &'a Job) -> Self {
        job.generator.metrics.waits(&job.model, 1);
        Self { job, runs: false }
    }

    fn runs(&mut self) {
        if !std::mem::replace(&mut self.runs, true) {
            self.job.generator.metrics.waits(&self.job.model, -1);
            self.job.generator.metrics.runs(&self.job.model, 1);
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let metrics = &self.job.generator.metrics;
        match self.runs {
            true => metrics.runs(&self.job.model, -1),
            false => metrics.waits(&self.job.model, -1),
        }
    }
}

impl Job {
    /// Makes the answer.
    pub async fn run(self) {
        let deadline = tokio::time::Instant::from_std(self.arrived) + self.generator.deadline;
        let ended = tokio::select! {
            () = self.parts.closed() => Err(Ended::Dropped),
            () = tokio::time::sleep_until(deadline) => {
                let s = self.generator.deadline.as_secs();
                Err(Failure::new(Kind::TimedOut, format!("not answered within {s} s")).into())
            }
            ended = self.twice() => ended,
        };
        let metrics = &self.generator.metrics;
        match ended {
            Ok(finished) => {
                let _ = self.parts.send((self.idx, Part::Finished(Box::new(finished)))).await;
            }
            Err(Ended::Dropped) => metrics.failed(&self.model, "dropped"),
            Err(Ended::Failed(failure) | Ended::Retry(failure)) => {
                metrics.failed(&self.model, reason_of(failure.kind));
                let _ = self.parts.send((self.idx, Part::Failed(Box::new(failure)))).await;
            }
        }
    }

    async fn twice(&self) -> Result<Finished, Ended> {
        match self.once().await {
            Err(Ended::Retry(_)) => {
                self.generator.metrics.retried(&self.model);
                self.once().await
            }
            ended => ended,
        }
    }

    async fn once(&self) -> Result<Finished, Ended> {
        let mut counted = Counted::new(self);
        let (lease, load_ms) = self.lease().await?;
        if let Some(keep_alive) = self.keep_alive {
            self.generator.models.keep(&lease, keep_alive);
        }
        let fits = self.generate.fits(lease.info());
        fits.map_err(|invalid| self.form.named(invalid.into()))?;
        let mut ticket =
            lease.submit(self.generate.clone()).map_err(|lost| Ended::Retry(lost.into()))?;
        let mut progress = Progress { load_ms, ..Progress::default() };
        let prompter = &self.text.prompter;
        let mut reader = Reader::new(prompter, self.chat.as_ref(), &self.stops, &self.form)?;
        loop {
            let event = match ticket.next().await {
                Ok(event) => event,
                Err(lost @ (Lost::Crashed(_) | Lost::Stopped)) if progress.n_tokens == 0 => {
                    return Err(Ended::Retry(lost.into()));
                }
                Err(lost) => return Err(Failure::from(lost).into()),
            };
            match event {
                Event::Matched(found) => {
                    counted.runs();
                    self.send(vec![Part::Matched(found.clone())]).await?;
                    progress.found = Some(found);
                }
                Event::PrefillProgress { done_tokens, total_tokens, .. } => {
                    counted.runs();
                    self.hint(Part::Prefill { done_tokens, total_tokens });
                }
                Event::Token { token, logprob, top, .. } => {
                    counted.runs();
                    progress.first_token.get_or_insert_with(Instant::now);
                    progress.n_tokens += 1;
                    let is_stop = self.generate.stop_tokens.contains(&token);
                    let parts = reader.push(token, logprob, &top, is_stop);
                    if reader.in_reasoning() {
                        progress.reasoning_tokens += 1;
                    }
                    self.send(parts).await?;
                    if let Some(reason) = reader.ended() {
                        let (usage, timings) = self.stop(&mut ticket, &progress).await;
                        return Ok(self.finished(&lease, reason, usage, timings, progress));
                    }
                }
                Event::Finished { reason, usage, timings, .. } => {
                    self.send(reader.finish()).await?;
                    let reason = match (reader.ended(), reason) {
                        (Some(reason), _) => reason,
                        (None, FinishReason::Stop) if reader.has_called() => Reason::Calls,
                        (None, FinishReason::Stop) => Reason::Stop,
                        (None, FinishReason::Length) => Reason::Length,
                        (None, FinishReason::Cancelled) => {
                            return Err(Failure::from(Lost::Stopped).into());
                        }
                    };
                    return Ok(self.finished(&lease, reason, usage, timings, progress));
                }
                Event::Failed { fault, message, .. } => {
                    return Err(self.form.named(Failure::of_fault(fault, message)).into());
                }
                _ => {}
            }
        }
    }

    /// The model, and how long it had to be loaded, in milliseconds.
    async fn lease(&self) -> Result<(Lease, f64), Ended> {
        let mut was_loaded = false;
        let mut progress = |done_bytes, total_bytes| {
            was_loaded = true;
            self.hint(Part::Loading { done_bytes, total_bytes });
        };
        let lease = self.generator.models.lease(&self.model, &mut progress).await;
        let lease = lease.map_err(Failure::from)?;
        let load_ms = self.arrived.elapsed().as_secs_f64() * 1000.0;
        Ok((lease, if was_loaded { load_ms } else { 0.0 }))
    }

    /// What need not arrive.
    fn hint(&self, part: Part) {
        let _ = self.parts.try_send((self.idx, part));
    }

    async fn send(&self, parts: Vec<Part>) -> Result<(), Ended> {
        for part in parts {
            self.parts.send((self.idx, part)).await.map_err(|_| Ended::Dropped)?;
        }
        Ok(())
    }

    /// Stops the runner's work on it. What it says of the work counts; if it takes long to say so,
    /// what is known here.
    async fn stop(&self, ticket: &mut Ticket, progress: &Progress) -> (Usage, Timings) {
        ticket.cancel();
        let end = async {
            loop {
                match ticket.next().await {
                    Ok(Event::Finished { usage, timings, .. }) => return Some((usage, timings)),
                    Ok(Event::Failed { .. }) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        let ours = Usage {
            prompt_tokens: self.generate.prompt.len() as u32,
            cached_tokens: progress.found.as_ref().map_or(0, |found| found.usable_tokens),
            new_tokens: progress.n_tokens,
        };
        match tokio::time::timeout(CANCEL_PATIENCE, end).await {
            Ok(Some((usage, timings))) => {
                (Usage { new_tokens: progress.n_tokens, ..usage }, timings)
            }
            _ => (ours, Timings::default()),
        }
    }

    fn finished(
        &self,
        lease: &Lease,
        reason: Reason,
        usage: Usage,
        timings: Timings,
        progress: Progress,
    ) -> Finished {
        lease.proved();
        let since = |at: Instant| at.duration_since(self.arrived).as_secs_f64();
        let sample = Sample {
            reason: match reason {
                Reason::Stop | Reason::StopString(_) => "stop",
                Reason::Length => "length",
                Reason::Calls => "tool_calls",
            },
            usage,
            timings,
            first_token_s: progress.first_token.map(since),
            whole_s: since(Instant::now()),
        };
        self.generator.metrics.finished(&self.model, &sample);
        Finished {
            reason,
            usage,
            reasoning_tokens: progress.reasoning_tokens,
            timings,
            load_ms: progress.load_ms,
            found: progress.found,
            seed: self.generate.sampling.seed,
        }
    }
}

fn reason_of(kind: Kind) -> &'static str {
    match kind {
        Kind::TimedOut => "timeout",
        Kind::Unavailable | Kind::TooMany => "unavailable",
        Kind::Ours => "defect",
        _ => "refused",
    }
}
