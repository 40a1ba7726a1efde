//! A server in this process, on a free port, with models of its own.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use hub::Hub;
use protocol::CacheSettings;
use serde_json::{Value, json};
use server::StoredResponses;
use server::generation::Generator;
use server::http::keys::Keys;
use server::http::origin::Allowed;
use server::http::{Limits, Server};
use server::metrics::Metrics;
use server::models::{Catalog, KeepAlive, Models, Settings};
use server::supervisor::RunnerProgram;
use testkit::{PROGRAM_VAR, Program, Script};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::client::{self, Opened, Reply};

/// Words of the test models, by token id.
const WORDS: [&str; 8] = ["<end>", "one", "two", "three", "hi", "<think>", "</think>", "system"];

/// A weight file without tensors: the length of its header, and the header.
const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// What the server is like.
pub struct Setup {
    pub program: RunnerProgram,
    pub models: Vec<&'static str>,
    pub keys: &'static str,
    pub limits: Limits,
    pub keep_alive: KeepAlive,
    pub max_models: usize,
    pub max_requests: usize,
    pub memory_bytes: Option<u64>,
    pub request_time: Duration,
    pub drain_time: Duration,
}

/// A server that runs. Dropping it ends it in good order.
pub struct Served {
    pub address: SocketAddr,
    pub home: tempfile::TempDir,
    ending: Arc<Notify>,
    ended: Mutex<mpsc::Receiver<()>>,
    run_time: Option<Runtime>,
}

/// Cargo builds a package's examples together with its tests.
fn built(name: &str, folder: &str, how: &str) -> PathBuf {
    let test = env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let path = target.join(folder).join(format!("{name}{}", env::consts::EXE_SUFFIX));
    assert!(path.is_file(), "build it first: {how}");
    path
}

/// The runner that computes.
pub fn real_runner() -> RunnerProgram {
    let path = built("offshoot-runner", "", "cargo build -p runner");
    RunnerProgram { path, env: vec![("OFFSHOOT_BACKEND".into(), "cpu".into())] }
}

impl From<Script> for Setup {
    fn from(script: Script) -> Self {
        let path = built("server_scripted_runner", "examples", "cargo test -p server");
        let env = vec![(PROGRAM_VAR.into(), Program::Serve(script).to_env().into())];
        Self::of(RunnerProgram { path, env })
    }
}

impl Setup {
    pub fn of(program: RunnerProgram) -> Self {
        Self {
            program,
            models: vec!["tiny"],
            keys: "",
            limits: Limits::default(),
            keep_alive: KeepAlive::Forever,
            max_models: 3,
            max_requests: 64,
            memory_bytes: None,
            request_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(5),
        }
    }

    pub fn serve(self) -> Served {
        let home = tempfile::tempdir().unwrap();
        for name in &self.models {
            write_model(&home.path().join("models").join(name));
        }
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let hub = Hub::new(home.path(), vec![demo]);
        let keys = match self.keys {
            "" => Keys::none(),
            text => Keys::parse(text).unwrap(),
        };
        let run_time = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let ending = Arc::new(Notify::new());
        let (ended_sender, ended) = mpsc::channel();
        let listener = run_time.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let end = Arc::clone(&ending);
        run_time.spawn(async move {
            let metrics = Arc::new(Metrics::default());
            let settings = Settings {
                program: self.program,
                build: "test".into(),
                cache: Box::new(|_| CacheSettings::default()),
                is_deterministic: false,
                max_rows: None,
                keep_alive: self.keep_alive,
                memory_bytes: self.memory_bytes,
                max_models: self.max_models,
                max_requests: self.max_requests,
            };
            let models = Models::new(settings, Catalog::new(hub, None), Arc::clone(&metrics));
            let server = Server {
                generator: Generator { models, metrics, deadline: self.request_time },
                keys,
                allowed: Allowed::default(),
                limits: self.limits,
                responses: StoredResponses::default(),
                logs_requests: false,
                build: "test".into(),
            };
            let shutdown = async move { end.notified().await };
            server::http::run(listener, shutdown, server, self.drain_time).await;
            let _ = ended_sender.send(());
        });
        let ended = Mutex::new(ended);
        Served { address, home, ending, ended, run_time: Some(run_time) }
    }
}

fn write_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let write = |name: &str, content: &Value| {
        fs::write(folder.join(name), content.to_string()).unwrap();
    };
    let config = json!({"model_type": "scripted", "max_position_embeddings": 64});
    write("config.json", &config);
    let template = "{% for m in messages %}{{ m.content }} {% endfor %}\
                    {% for t in tools or [] %}{{ t.function.name }} {% endfor %}\
                    {% if false %}<tool_call>{% endif %}\
                    {% if enable_thinking %}<think>{% endif %}";
    write("tokenizer_config.json", &json!({"eos_token": "<end>", "chat_template": template}));
    let vocab: serde_json::Map<String, Value> =
        WORDS.iter().zip(0..).map(|(word, id)| ((*word).to_owned(), Value::from(id))).collect();
    let added = |id: u32, special: bool| {
        json!({"id": id, "content": WORDS[id as usize], "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": special})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(0, true), added(5, false), added(6, false)],
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<end>"}
    });
    write("tokenizer.json", &tokenizer);
    fs::write(folder.join("model.safetensors"), NO_TENSORS).unwrap();
}

impl Served {
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], "").unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[], &body.to_string()).unwrap()
    }

    /// A chat with the first model, and these fields.
    pub fn chat(&self, fields: Value) -> Reply {
        self.post("/v1/chat/completions", &chat(fields))
    }

    /// The same, with the body still to be read.
    pub fn open_chat(&self, fields: Value) -> Opened {
        let body = chat(fields).to_string();
        let bytes = client::request("POST", "/v1/chat/completions", &[], &body);
        client::open(self.address, bytes.as_bytes()).unwrap()
    }

    /// None if the server closes the connection instead of an answer.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Reply> {
        let bytes = client::request(method, path, headers, body);
        client::open(self.address, bytes.as_bytes()).map(Opened::reply)
    }

    /// The models that are loaded, by name, with the number of their requests and their process.
    pub fn loaded(&self) -> Vec<(String, u64, u64)> {
        let models = self.get("/models").json()["models"].clone();
        let one = |model: &Value| {
            let name = model["model"].as_str().unwrap().to_owned();
            (name, model["n_requests"].as_u64().unwrap(), model["pid"].as_u64().unwrap())
        };
        models.as_array().unwrap().iter().map(one).collect()
    }

    /// Asks again and again until it is so.
    #[track_caller]
    pub fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is_so(self) {
            assert!(Instant::now() < until, "never: {what}; {:?}", self.loaded());
            std::thread::yield_now();
        }
    }

    /// A sample of `/metrics`; 0 if it is not there.
    pub fn metric(&self, start: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(start));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Asks the server to end, as a signal does.
    pub fn end(&self) {
        self.ending.notify_one();
    }

    /// Waits until it has.
    pub fn wait(&self) {
        let ended = self.ended.lock().unwrap();
        ended.recv_timeout(Duration::from_secs(60)).expect("the server ends");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
        let _ = self.ended.lock().map(|ended| ended.recv_timeout(Duration::from_secs(60)));
        if let Some(run_time) = self.run_time.take() {
            run_time.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// Sets fields of an object.
pub fn set(object: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        object[name] = value.clone();
    }
}

/// A chat request with these fields beside or instead of the usual ones.
pub fn chat(fields: Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
    set(&mut body, &fields);
    body
}
