//! Counts and times, as Prometheus reads them. Labels are names of models in the store, routes and
//! closed sets: never a caller's text.
//!
//! What vLLM also has is there twice, once under vLLM's name, because dashboards for it exist.

use std::sync::Mutex;
use std::sync::PoisonError;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

type Labels = Vec<(&'static str, String)>;
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    http: Counters,
    finished: Counters,
    failed: Counters,
    loads: Counters,
    crashes: Counters,
    retries: Counters,
    waiting: Gauges,
    running: Gauges,
    prompt_tokens: Counters,
    cached_tokens: Counters,
    new_tokens: Counters,
    first_token_s: Histograms,
    between_tokens_s: Histograms,
    whole_s: Histograms,
    queue_s: Histograms,
    prefill_s: Histograms,
    decode_s: Histograms,
    tokens_in: Histograms,
    tokens_out: Histograms,
}

/// What a finished request adds.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Why it ended: a word of a closed set.
    pub reason: &'static str,
    /// Tokens in and out.
    pub usage: protocol::Usage,
    /// Where the runner's time went.
    pub timings: protocol::Timings,
    /// From the arrival to the first token; none if there was none.
    pub first_token_s: Option<f64>,
    /// From the arrival to the end.
    pub whole_s: f64,
}

fn seconds() -> Histogram {
    let bounds = [
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        1800.0,
    ];
    Histogram::new(bounds)
}

fn tokens() -> Histogram {
    Histogram::new((0..20).map(|n| f64::from(1u32 << n)))
}

fn of(model: &str) -> Labels {
    vec![("model_name", model.to_owned())]
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histograms::new_with_constructor(seconds as fn() -> Histogram);
        let tokens = || Histograms::new_with_constructor(tokens as fn() -> Histogram);
        let metrics = Self {
            registry: Mutex::default(),
            http: Counters::default(),
            finished: Counters::default(),
            failed: Counters::default(),
            loads: Counters::default(),
            crashes: Counters::default(),
            retries: Counters::default(),
            waiting: Gauges::default(),
            running: Gauges::default(),
            prompt_tokens: Counters::default(),
            cached_tokens: Counters::default(),
            new_tokens: Counters::default(),
            first_token_s: seconds(),
            between_tokens_s: seconds(),
            whole_s: seconds(),
            queue_s: seconds(),
            prefill_s: seconds(),
            decode_s: seconds(),
            tokens_in: tokens(),
            tokens_out: tokens(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn add(&self, names: &[&str], help: &str, metric: &(impl Metric + Clone)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            registry.register(*name, help, metric.clone());
        }
    }

    fn register(&self) {
        self.add(&["offshoot_http_requests"], "Answers by route and status", &self.http);
        self.add(
            &["offshoot_requests_finished", "vllm:request_success"],
            "Answers that were generated, by the reason of their end",
            &self.finished,
        );
        self.add(&["offshoot_requests_failed"], "Generations without an end", &self.failed);
        self.add(&["offshoot_model_loads"], "Loads of models, by result", &self.loads);
        self.add(&["offshoot_runner_crashes"], "Runners that ended by themselves", &self.crashes);
        self.add(
            &["offshoot_request_retries"],
            "Requests that were sent again after a crash",
            &self.retries,
        );
        self.add(
            &["offshoot_requests_waiting", "vllm:num_requests_waiting"],
            "Requests for which nothing is computed yet",
            &self.waiting,
        );
        self.add(
            &["offshoot_requests_running", "vllm:num_requests_running"],
            "Requests that are being computed",
            &self.running,
        );
        self.register_tokens();
        self.register_times();
    }

    fn register_tokens(&self) {
        self.add(
            &["offshoot_prompt_tokens", "vllm:prompt_tokens", "vllm:prefix_cache_queries"],
            "Tokens of prompts, cached ones included",
            &self.prompt_tokens,
        );
        self.add(
            &["offshoot_cached_tokens", "vllm:prefix_cache_hits"],
            "Tokens of prompts that were not computed again",
            &self.cached_tokens,
        );
        self.add(
            &["offshoot_generated_tokens", "vllm:generation_tokens"],
            "Tokens that were generated",
            &self.new_tokens,
        );
        self.add(
            &["offshoot_request_prompt_tokens", "vllm:request_prompt_tokens"],
            "Tokens of a prompt",
            &self.tokens_in,
        );
        self.add(
            &["offshoot_request_generated_tokens", "vllm:request_generation_tokens"],
            "Tokens of an answer",
            &self.tokens_out,
        );
    }

    fn register_times(&self) {
        for (ours, theirs, help, metric) in [
            (
                "offshoot_first_token_seconds",
                "vllm:time_to_first_token_seconds",
                "From a request's arrival to its first token",
                &self.first_token_s,
            ),
            (
                "offshoot_inter_token_seconds",
                "vllm:inter_token_latency_seconds",
                "Between tokens, by the mean of an answer",
                &self.between_tokens_s,
            ),
            (
                "offshoot_request_seconds",
                "vllm:e2e_request_latency_seconds",
                "From a request's arrival to its end",
                &self.whole_s,
            ),
            (
                "offshoot_queue_seconds",
                "vllm:request_queue_time_seconds",
                "Until the first work on a request",
                &self.queue_s,
            ),
            (
                "offshoot_prefill_seconds",
                "vllm:request_prefill_time_seconds",
                "From there to the first token",
                &self.prefill_s,
            ),
            (
                "offshoot_decode_seconds",
                "vllm:request_decode_time_seconds",
                "From the first token to the last",
                &self.decode_s,
            ),
        ] {
            self.add(&[ours, theirs], help, metric);
        }
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }

    /// A request was answered.
    pub(crate) fn answered(&self, route: &str, status: u16) {
        let labels = vec![("route", route.to_owned()), ("status", status.to_string())];
        self.http.get_or_create(&labels).inc();
    }

    /// A load has ended.
    pub(crate) fn loaded(&self, model: &str, is_good: bool) {
        let mut labels = of(model);
        labels.push(("result", if is_good { "loaded" } else { "failed" }.to_owned()));
        self.loads.get_or_create(&labels).inc();
    }

    /// A runner has ended by itself.
    pub(crate) fn crashed(&self, model: &str) {
        self.crashes.get_or_create(&of(model)).inc();
    }

    /// A request is sent again.
    pub(crate) fn retried(&self, model: &str) {
        self.retries.get_or_create(&of(model)).inc();
    }

    /// A request waits, or does not any more.
    pub(crate) fn waits(&self, model: &str, change: i64) {
        self.waiting.get_or_create(&of(model)).inc_by(change);
    }

    /// A request is computed, or is not any more.
    pub(crate) fn runs(&self, model: &str, change: i64) {
        self.running.get_or_create(&of(model)).inc_by(change);
    }

    /// A generation ended without an answer; `reason` is a word of a closed set.
    pub(crate) fn failed(&self, model: &str, reason: &'static str) {
        let mut labels = of(model);
        labels.push(("reason", reason.to_owned()));
        self.failed.get_or_create(&labels).inc();
    }

    /// A generation has ended.
    pub(crate) fn finished(&self, model: &str, sample: &Sample) {
        let Sample { usage, timings, .. } = sample;
        let labels = of(model);
        self.prompt_tokens.get_or_create(&labels).inc_by(usage.prompt_tokens.into());
        self.cached_tokens.get_or_create(&labels).inc_by(usage.cached_tokens.into());
        self.new_tokens.get_or_create(&labels).inc_by(usage.new_tokens.into());
        self.tokens_in.get_or_create(&labels).observe(usage.prompt_tokens.into());
        self.tokens_out.get_or_create(&labels).observe(usage.new_tokens.into());
        self.whole_s.get_or_create(&labels).observe(sample.whole_s);
        self.queue_s.get_or_create(&labels).observe(timings.queue_ms / 1000.0);
        self.prefill_s.get_or_create(&labels).observe(timings.prefill_ms / 1000.0);
        self.decode_s.get_or_create(&labels).observe(timings.decode_ms / 1000.0);
        if let Some(first_token_s) = sample.first_token_s {
            self.first_token_s.get_or_create(&labels).observe(first_token_s);
        }
        if usage.new_tokens > 1 {
            let between_ms = timings.decode_ms / f64::from(usage.new_tokens - 1);
            self.between_tokens_s.get_or_create(&labels).observe(between_ms / 1000.0);
        }
        let mut labels = labels;
        labels.push(("finished_reason", sample.reason.to_owned()));
        self.finished.get_or_create(&labels).inc();
    }
}
