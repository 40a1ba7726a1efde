//! The commands that deal with the store and the Hub, with a Hub on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testkit::{Fault, HubServer, Program, Script};

#[cfg(unix)]
use super::Chat;
use super::{Home, NO_TENSORS, Ran, finish};

const NAME: &str = "acme/tiny";

/// A safetensors file with one bf16 tensor.
fn weights(shape: &[usize]) -> Vec<u8> {
    let n = 2 * shape.iter().product::<usize>();
    let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [0, n]});
    let header = json!({ "model.x.weight": tensor }).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![1; n]].concat()
}

/// A Hub with the test model under a name of its own.
struct Online {
    home: Home,
    server: HubServer,
}

impl Online {
    fn new() -> Self {
        let (home, server) = (Home::new(), HubServer::start());
        let read = |name: &str| fs::read(home.model().join(name)).unwrap();
        let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
        let tokenizer_config = read("tokenizer_config.json");
        let weights = weights(&[300, 5]);
        let files = [
            ("config.json", config.as_slice()),
            ("tokenizer.json", &tokenizer),
            ("tokenizer_config.json", &tokenizer_config),
            ("model.safetensors", &weights),
            ("README.md", b"read me"),
        ];
        server.publish(NAME, "main", &files);
        Self { home, server }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.home.command(&Program::Serve(Script::default()), args);
        command.env("HF_ENDPOINT", self.server.endpoint());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args).spawn().unwrap())
    }

    fn folder(&self) -> PathBuf {
        self.home.dir.path().join("models").join(NAME)
    }

    fn parts(&self) -> Vec<PathBuf> {
        let staging = self.home.dir.path().join("models/.pull").join(NAME);
        let paths = fs::read_dir(staging).into_iter().flatten().map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "part")).collect()
    }
}

#[test]
fn a_pulled_model_runs() {
    let online = Online::new();
    let ran = online.run(&["pull", NAME]);
    ran.prints(&format!("{}\n", online.folder().display()));
    for says in
        ["pulling acme/tiny at ", "4 files", "model.safetensors, 3.1 kB", "offshoot run acme/tiny"]
    {
        assert!(ran.stderr.contains(says), "{says}: {ran:?}");
    }
    assert!(!ran.stderr.contains('\u{1b}'), "no bars without a terminal: {ran:?}");
    assert!(!online.folder().join("README.md").exists());
    online.run(&["run", NAME, "hi"]).prints("one two three\n");
    let ran = online.run(&["pull", NAME, "--quiet", "--json"]);
    assert_eq!(ran.stderr, "");
    let object: Value = serde_json::from_str(&ran.stdout).unwrap();
    let (name, was_here, place) = (&object["name"], &object["was_here"], &object["place"]);
    assert_eq!((name, was_here, place), (&json!(NAME), &json!(true), &json!("store")));
    assert_eq!(object["commit"].as_str().unwrap().len(), 40);
}

#[test]
fn a_model_without_a_tokenizer_is_warned_of() {
    let online = Online::new();
    let files =
        [("config.json", &br#"{"model_type": "qwen3"}"#[..]), ("a.safetensors", NO_TENSORS)];
    online.server.publish("acme/mute", "main", &files);
    let ran = online.run(&["pull", "acme/mute"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("warning: only `bench` and `logits` can use it"), "{ran:?}");
    assert!(ran.stderr.contains("tokenizer.json is missing"), "{ran:?}");
}

#[test]
fn pull_says_what_is_wrong_and_what_to_do() {
    let online = Online::new();
    let check = |reference: &str, code: i32, says: &[&str]| {
        online.run(&["pull", reference]).fails(code, says);
    };
    check("acme/none", 1, &["the Hub has no model acme/none", "hint: check the name"]);
    check("acme/tiny@v9", 1, &["no revision \"v9\"", "hint:", "offshoot pull acme/tiny"]);
    check("acme/tiny@../x", 1, &["not a revision"]);
    check("../tiny", 1, &["not a model name"]);
    check("demo", 1, &["comes with Offshoot"]);
    check("https://hub.example/acme/tiny", 2, &["is an address", "ORG/NAME"]);
    online.run(&["pull", NAME, "--parallel", "0"]).fails(2, &["--parallel"]);
    online.server.gate(NAME, "hf_right");
    check(NAME, 1, &["refuses access", "(401)", "ask for access at", "set HF_TOKEN"]);
}

#[test]
fn the_token_comes_from_the_variable_or_from_the_file() {
    let online = Online::new();
    online.server.gate(NAME, "hf_right");
    let with_token = |token: &str| {
        let mut command = online.command(&["pull", NAME]);
        finish(command.env("HF_TOKEN", token).spawn().unwrap())
    };
    with_token("hf_wrong").fails(1, &["(403)", "account that HF_TOKEN belongs to"]);
    let ran = with_token("two words");
    ran.fails(1, &["HF_TOKEN holds no token"]);
    assert!(!ran.stderr.contains("two words"), "a secret is never printed: {ran:?}");
    fs::create_dir_all(online.home.dir.path().join("hf")).unwrap();
    fs::write(online.home.dir.path().join("hf/token"), "hf_right\n").unwrap();
    assert_eq!(online.run(&["pull", NAME]).code, Some(0));
}

#[test]
fn without_the_network_only_what_is_here_is_found() {
    let online = Online::new();
    let offline =
        |args: &[&str]| finish(online.command(args).env("HF_HUB_OFFLINE", "1").spawn().unwrap());
    offline(&["pull", NAME]).fails(1, &["HF_HUB_OFFLINE", "hint: unset"]);
    assert!(online.server.requests().is_empty());
    online.run(&["pull", NAME]);
    offline(&["pull", NAME]).prints(&format!("{}\n", online.folder().display()));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_has_come_and_the_next_pull_goes_on() {
    let online = Online::new();
    online.server.fault("model.safetensors", Fault::HangAfter(1000), 1);
    let child = online.command(&["pull", NAME]).spawn().unwrap();
    online.server.wait_until_hanging();
    // The bytes are sent; they have to be on the disk as well.
    let has_come = || {
        let parts = online.parts();
        parts.iter().any(|part| part.metadata().is_ok_and(|meta| meta.len() == 1000))
    };
    while !has_come() {
        std::thread::yield_now();
    }
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ran = finish(child);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("the same command goes on from here"), "{ran:?}");
    assert!(!online.folder().exists());
    let listed = online.run(&["list"]);
    assert!(listed.stdout.contains("acme/tiny  (incomplete)"), "{listed:?}");
    assert!(listed.stderr.contains("to go on with it: offshoot pull acme/tiny"), "{listed:?}");
    let ran = online.run(&["pull", NAME]);
    assert!(ran.stderr.contains("are here"), "{ran:?}");
    let last = online.server.requests().into_iter().rfind(|r| r.path.contains("model.safetensors"));
    assert_eq!(last.unwrap().range.as_deref(), Some("bytes=1000-"));
    assert_eq!(fs::read(online.folder().join("model.safetensors")).unwrap(), weights(&[300, 5]));
}

#[test]
fn a_model_that_is_not_here_names_the_command_that_fetches_it() {
    let online = Online::new();
    for args in [&["run", NAME, "hi"][..], &["show", NAME], &["bench", NAME]] {
        let ran = online.run(args);
        ran.fails(1, &["there is no model \"acme/tiny\"", "offshoot pull acme/tiny"]);
    }
    online.run(&["run", "tinny", "hi"]).fails(1, &["did you mean \"tiny\"?"]);
    assert!(online.server.requests().is_empty(), "nothing is fetched unasked");
}

#[cfg(unix)]
#[test]
fn on_a_terminal_a_model_that_is_not_here_is_offered() {
    let online = Online::new();
    let mut no = Chat::of(online.command(&["run", NAME, "hi"]));
    no.shows("acme/tiny is not here. Pull it from the Hub? [y/N] ");
    no.types("\n");
    no.shows("offshoot pull acme/tiny");
    assert_eq!(no.child.wait().unwrap().code(), Some(1));
    assert!(online.server.requests().is_empty());
    let mut yes = Chat::of(online.command(&["run", NAME, "hi"]));
    yes.shows("[y/N] ");
    yes.types("y\n");
    yes.shows("pulling acme/tiny");
    yes.shows("one two three");
    assert_eq!(yes.child.wait().unwrap().code(), Some(0));
    assert!(online.folder().is_dir());
}

#[test]
fn rm_deletes_models_of_the_store_and_nothing_else() {
    let online = Online::new();
    online.run(&["pull", NAME]);
    online.run(&["rm", NAME]).fails(2, &["needs a yes", "--yes"]);
    assert!(online.folder().is_dir());
    let ran = online.run(&["rm", NAME, "--yes"]);
    assert!(ran.stderr.contains("deleted acme/tiny, "), "{ran:?}");
    assert!(!online.folder().parent().unwrap().exists());
    online.run(&["rm", NAME, "--yes"]).fails(1, &["there is no model"]);
    let outside = online.home.dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    let path = outside.to_str().unwrap();
    online.run(&["rm", path, "--yes"]).fails(1, &["it is a path", "by hand"]);
    online.run(&["rm", "demo", "--yes"]).fails(1, &["comes with Offshoot"]);
    assert!(outside.is_dir());
}

#[cfg(unix)]
#[test]
fn on_a_terminal_rm_asks() {
    let online = Online::new();
    for (answer, says, is_left) in
        [("n\n", "nothing was deleted", true), ("y\n", "deleted tiny", false)]
    {
        let mut rm = Chat::of(online.command(&["rm", "tiny"]));
        rm.shows("Delete tiny, ");
        rm.shows("[y/N] ");
        rm.types(answer);
        rm.shows(says);
        assert_eq!(rm.child.wait().unwrap().code(), Some(0));
        assert_eq!(online.home.model().is_dir(), is_left, "{answer}");
    }
}

/// A model with sizes in its config.
fn sized_model(folder: &Path, weights: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    let config = json!({"model_type": "qwen3", "num_hidden_layers": 3, "num_key_value_heads": 5,
                        "num_attention_heads": 10, "head_dim": 7,
                        "max_position_embeddings": 20000});
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    fs::write(folder.join("model.safetensors"), weights).unwrap();
}

#[test]
fn show_says_what_a_model_takes_and_whether_it_fits() {
    let online = Online::new();
    let folder = online.home.dir.path().join("models/sized");
    sized_model(&folder, &weights(&[300, 5]));
    let ran = online.run(&["show", "sized", "--json"]);
    let object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&object["n_params"], &object["bits_per_weight"]), (&json!(1500), &json!(16.0)));
    let per_token = 3 * 2 * 5 * 7 * 2;
    assert_eq!(object["kv_bytes_per_token"], per_token);
    let size = object["size_bytes"].as_u64().unwrap();
    let expected = json!([
        {"context_tokens": 8192, "bytes": size + 8192 * per_token, "fits": true},
        {"context_tokens": 20000, "bytes": size + 20000 * per_token, "fits": true},
    ]);
    assert_eq!(object["memory"], expected);
    // The scripted device has a gibibyte.
    assert_eq!(object["device_memory_bytes"], 1u64 << 30);
    let config = fs::read_to_string(folder.join("config.json")).unwrap();
    let config = config.replace("20000", "9000000");
    fs::write(folder.join("config.json"), config).unwrap();
    let ran = online.run(&["show", "sized"]);
    for says in
        ["parameters          1500", "memory at 32768     ", "13.8 MB, fits", "does not fit"]
    {
        assert!(ran.stdout.contains(says), "{says}: {ran:?}");
    }
    let mut command = online.command(&["show", "sized"]);
    let ran = finish(command.env("OFFSHOOT_RUNNER", "no/such/runner").spawn().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("the device's memory is not known"), "{ran:?}");
    online.run(&["show", "sized", "--backend", "rocm"]).fails(2, &["auto, cpu, cuda or metal"]);
}

#[test]
fn weights_that_are_cut_off_are_noticed() {
    let online = Online::new();
    let whole = weights(&[300, 5]);
    let folder = online.home.dir.path().join("models/cut");
    sized_model(&folder, &whole[..whole.len() - 7]);
    online.run(&["show", "cut"]).fails(1, &["model.safetensors is cut off", "fetch it again"]);
    let ran = online.run(&["list"]);
    assert!(ran.stdout.contains("cut   (broken)"), "{ran:?}");
    assert!(ran.stderr.contains("model.safetensors is cut off"), "{ran:?}");
    let ran = online.run(&["list", "--json"]);
    let list: Value = serde_json::from_str(&ran.stdout).unwrap();
    let problem = |name: &str| {
        let list = list.as_array().unwrap();
        list.iter().find(|entry| entry["name"] == name).unwrap()["problem"].clone()
    };
    assert!(problem("cut").as_str().unwrap().contains("cut off"), "{list}");
    assert_eq!(problem("tiny"), Value::Null);
}

#[test]
fn the_hugging_face_cache_is_part_of_the_list() {
    let online = Online::new();
    let commit = "0".repeat(40);
    let cache = online.home.dir.path().join("hf/hub/models--acme--cached");
    let snapshot = cache.join("snapshots").join(&commit);
    fs::create_dir_all(cache.join("refs")).unwrap();
    fs::write(cache.join("refs/main"), commit).unwrap();
    sized_model(&snapshot, NO_TENSORS);
    let ran = online.run(&["list", "--json"]);
    let list: Value = serde_json::from_str(&ran.stdout).unwrap();
    let places: Vec<_> = list.as_array().unwrap().iter().map(|entry| &entry["place"]).collect();
    assert_eq!(places, ["bundled", "store", "hf-cache"]);
    let ran = online.run(&["show", "acme/cached", "--json"]);
    let object: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&object["place"], &object["family"]), (&json!("hf-cache"), &json!("qwen3")));
    let rm = ["rm", "acme/cached", "--yes"];
    online.run(&rm).fails(1, &["belongs to the Hugging Face cache"]);
    assert!(snapshot.is_dir());
}
