//! `offshoot serve`: the HTTP server.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use hub::{Hub, Model, ModelFolder};
use server::StoredResponses;
use server::generation::Generator;
use server::http::keys::Keys;
use server::http::origin::Allowed;
use server::http::{Limits, Server};
use server::metrics::Metrics;
use server::models::{Catalog, KeepAlive, Models, Settings};
use server::supervisor::{RunnerProgram, find_runner};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::failure::{Failure, Result};
use crate::flags::{BackendFlags, CacheFlags, PORT, parse_size, parse_time};
use crate::interrupts::Interrupts;
use crate::model::resolve;
use crate::output::say;
use crate::session::{BUILD, choose_backend};

/// Serve models over HTTP
#[derive(Debug, Args)]
pub struct Serve {
    /// Model to load at once, which also answers requests that name none (default: none, each is
    /// loaded when it is asked for)
    model: Option<String>,
    /// Address to listen on; other machines reach only one that is not of this machine alone, and
    /// need a key
    #[arg(long, env = "OFFSHOOT_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, env = "OFFSHOOT_PORT", default_value_t = PORT, value_name = "N")]
    port: u16,
    /// File with a key on each line: only callers with one of them are answered
    #[arg(long, env = "OFFSHOOT_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// How long a model stays loaded after its last request: 300, 90s, 5m, 1h, or -1 for ever
    #[arg(long, env = "OFFSHOOT_KEEP_ALIVE", default_value = "5m", value_name = "TIME",
          allow_negative_numbers = true, value_parser = parse_keep_alive)]
    keep_alive: KeepAlive,
    /// Weights and caches of all models together (default: not bounded)
    #[arg(long, env = "OFFSHOOT_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Models that are loaded at the same time
    #[arg(long, env = "OFFSHOOT_MAX_MODELS", default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..))]
    max_models: u16,
    /// Requests that one model has at the same time, waiting ones included
    #[arg(long, env = "OFFSHOOT_MAX_REQUESTS", default_value_t = 256, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    max_requests: u32,
    /// Requests that one model computes at the same time; others wait (default: 64, or what memory
    /// has room for)
    #[arg(long, env = "OFFSHOOT_PARALLEL", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    parallel: Option<u32>,
    /// Most time of one request
    #[arg(long, env = "OFFSHOOT_REQUEST_TIME", default_value = "1h", value_name = "TIME",
          value_parser = parse_time)]
    request_time: Duration,
    /// Time for requests to end after SIGTERM or Ctrl-C
    #[arg(long, env = "OFFSHOOT_DRAIN_TIME", default_value = "30s", value_name = "TIME",
          value_parser = parse_time)]
    drain_time: Duration,
    /// Web page that may ask, e.g. https://app.example (may be given several times)
    #[arg(long, env = "OFFSHOOT_ALLOW_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Name by which this server may be called, beside addresses and localhost
    #[arg(long, env = "OFFSHOOT_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    allow_host: Vec<String>,
    /// No line of log for each request
    #[arg(short, long, env = "OFFSHOOT_QUIET", value_parser = BoolishValueParser::new())]
    quiet: bool,
    #[command(flatten)]
    cache: CacheFlags,
    #[command(flatten)]
    backend: BackendFlags,
}

impl Serve {
    /// Runs the command: returns when the server has ended in good order.
    pub fn execute(self, interrupts: &Interrupts) -> Result<()> {
        let keys = self.keys()?;
        if !self.host.is_loopback() && !keys.are_needed() {
            return Err(Failure::usage("other machines may ask only with a key")
                .with_hint("add --api-key-file FILE, or leave --host out"));
        }
        if let Some(origin) = self.allow_origin.iter().find(|origin| !is_origin(origin)) {
            return Err(Failure::usage(format!("--allow-origin: {origin:?} is no origin"))
                .with_hint("an origin is written like https://app.example, without a path"));
        }
        let given = self.model.as_deref().map(|name| self.given(name, interrupts)).transpose()?;
        let settings = self.settings()?;
        let run_time = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let run_time = run_time.map_err(|e| Failure::new(format!("cannot start threads: {e}")))?;
        let served = run_time.block_on(self.serve(keys, given, settings, interrupts));
        // A reader of files that hangs must not keep the process.
        run_time.shutdown_timeout(Duration::from_secs(1));
        served
    }

    fn keys(&self) -> Result<Keys> {
        let Some(path) = &self.api_key_file else { return Ok(Keys::none()) };
        let text = fs::read_to_string(path)
            .map_err(|e| Failure::new(format!("cannot read {}: {e}", path.display())))?;
        Keys::parse(&text).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
    }

    /// The model's name to callers, and its folder.
    fn given(&self, argument: &str, interrupts: &Interrupts) -> Result<(String, ModelFolder)> {
        match resolve(argument, interrupts)? {
            Model::Folder { name, folder } => {
                folder.tokenizer()?;
                let last = folder.path().file_name().and_then(|name| name.to_str());
                // A path is nobody's business but the operator's.
                let is_path = name.starts_with(['.', '/', '~']) || name.contains('\\');
                let name = if is_path { last.unwrap_or("model").to_owned() } else { name };
                Ok((name, folder))
            }
            Model::Shape(_) => Err(Failure::usage("a shape has random weights and no words")
                .with_hint("shapes are for `offshoot bench`")),
        }
    }

    fn settings(&self) -> Result<Settings> {
        let chosen = choose_backend(&self.backend)?;
        if let Some(hint) = &chosen.hint {
            say(&format!("hint: {}; {hint}", chosen.reason));
        }
        let cache = self.cache.clone();
        Ok(Settings {
            program: RunnerProgram { path: find_runner()?, env: chosen.env },
            build: BUILD.to_owned(),
            cache: Box::new(move |model| cache.settings(model)),
            is_deterministic: self.cache.deterministic,
            max_rows: self.parallel,
            keep_alive: self.keep_alive,
            memory_bytes: self.memory,
            max_models: self.max_models.into(),
            max_requests: self.max_requests as usize,
        })
    }

    async fn serve(
        self,
        keys: Keys,
        given: Option<(String, ModelFolder)>,
        settings: Settings,
        interrupts: &Interrupts,
    ) -> Result<()> {
        let address = (self.host, self.port);
        let listener = TcpListener::bind(address).await.map_err(|e| {
            Failure::new(format!("cannot listen on {}:{}: {e}", self.host, self.port))
                .with_hint("another server may be running; --port takes another port")
        })?;
        let bound = listener.local_addr().map_err(|e| Failure::new(e.to_string()))?;
        let metrics = Arc::new(Metrics::default());
        let preloaded = given.as_ref().map(|(name, _)| name.clone());
        let catalog = Catalog::new(Hub::of_user()?, given);
        let models = Models::new(settings, catalog, Arc::clone(&metrics));
        let server = Server {
            generator: Generator { models: models.clone(), metrics, deadline: self.request_time },
            keys,
            allowed: Allowed { hosts: self.allow_host, origins: self.allow_origin },
            limits: Limits::default(),
            responses: StoredResponses::default(),
            logs_requests: !self.quiet,
            build: BUILD.to_owned(),
        };
        let ending = Arc::new(Notify::new());
        watch_signals(interrupts, &ending)?;
        say(&format!("listening on http://{bound}"));
        if let Some(name) = preloaded {
            tokio::spawn(async move {
                match models.lease(&name, &mut |_, _| {}).await {
                    Ok(_) => say(&format!("{name} is loaded")),
                    Err(error) => say(&format!("error: {error}")),
                }
            });
        }
        let shutdown = async move { ending.notified().await };
        server::http::run(listener, shutdown, server, self.drain_time).await;
        interrupts.end_process();
        Ok(())
    }
}

/// The first signal drains, the second ends the process at once.
fn watch_signals(interrupts: &Interrupts, ending: &Arc<Notify>) -> Result<()> {
    let drain = Arc::clone(ending);
    interrupts.drain_server(Arc::new(move || {
        say("ending when the running requests have; again to end at once");
        drain.notify_one();
    }));
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())
            .map_err(|e| Failure::new(format!("cannot watch for SIGTERM: {e}")))?;
        let interrupts = interrupts.clone();
        tokio::spawn(async move {
            while terminate.recv().await.is_some() {
                interrupts.press()
            }
        });
    }
    Ok(())
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ', '@']))
}

fn parse_keep_alive(text: &str) -> std::result::Result<KeepAlive, String> {
    match text {
        "-1" => Ok(KeepAlive::Forever),
        text => parse_time(text).map(KeepAlive::For),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_and_no_path() {
        for good in ["https://app.example", "http://localhost:3000"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in ["*", "null", "app.example", "https://", "https://a/b", "https://*.a"] {
            assert!(!is_origin(bad), "{bad}");
        }
    }

    #[test]
    fn a_model_may_stay_for_ever() {
        assert_eq!(parse_keep_alive("-1"), Ok(KeepAlive::Forever));
        assert_eq!(parse_keep_alive("0"), Ok(KeepAlive::For(Duration::ZERO)));
        assert!(parse_keep_alive("-2").is_err());
    }
}
