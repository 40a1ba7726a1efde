//! Pulls from a Hub on this machine: what arrives, what is asked for, and what every fault says.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hub::{
    Environment, HfCache, Hub, HubError, Patience, Place, Plan, PullError, PullOptions, Pulled,
    Token, Watch, parse_reference,
};
use serde_json::{Value, json};
use testkit::{Fault, HubServer};

const NAME: &str = "acme/tiny";
const CONFIG: &[u8] = br#"{"model_type": "qwen3"}"#;

/// A safetensors file with one tensor of so many bytes, all `fill`.
fn weights(tensor: &str, n: usize, fill: u8) -> Vec<u8> {
    let header = json!({tensor: {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![fill; n]].concat()
}

/// A Hub, a store, and a record of what happened.
struct World {
    dir: tempfile::TempDir,
    server: HubServer,
    hub: Hub,
    environment: Environment,
    options: PullOptions,
    waited: Arc<Mutex<Duration>>,
}

#[derive(Default)]
struct Log {
    plans: Mutex<Vec<Plan>>,
    done: Mutex<Vec<String>>,
}

impl Watch for Log {
    fn planned(&self, plan: &Plan) {
        self.plans.lock().unwrap().push(plan.clone());
    }

    fn has(&self, _file: &str, _bytes: u64) {}

    fn done(&self, file: &str) {
        self.done.lock().unwrap().push(file.to_owned());
    }

    fn waits(&self, _error: &PullError, _wait: Duration) {}
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = HubServer::start();
        let waited = Arc::new(Mutex::new(Duration::ZERO));
        let sum = Arc::clone(&waited);
        let patience = Patience {
            wait: Arc::new(move |wait| *sum.lock().unwrap() += wait),
            ..Patience::default()
        };
        let environment = Environment {
            endpoint: server.endpoint(),
            token: Token::parse("hf_secret"),
            is_offline: false,
            cache: HfCache::new(Some(dir.path().join("cache"))),
        };
        let hub = Hub::new(&dir.path().join("data"), vec![]).with_cache(environment.cache.clone());
        let options = PullOptions { patience, ..PullOptions::default() };
        Self { dir, server, hub, environment, options, waited }
    }

    /// With one model of two files on the Hub.
    fn with_model() -> (Self, Vec<u8>) {
        let world = Self::new();
        let weights = weights("x", 1000, 7);
        let files = [("config.json", CONFIG), ("model.safetensors", &weights)];
        world.server.publish(NAME, "main", &files);
        (world, weights)
    }

    fn try_pull(&self, reference: &str) -> Result<(Pulled, Log), PullError> {
        let (name, revision) = parse_reference(reference)?;
        let log = Log::default();
        let puller = self.hub.puller(&self.environment, self.options.clone());
        Ok((puller.pull(&name, &revision, &log)?, log))
    }

    #[track_caller]
    fn pull(&self, reference: &str) -> Pulled {
        self.try_pull(reference).unwrap().0
    }

    #[track_caller]
    fn fails(&self, says: &[&str]) -> PullError {
        let error = self.try_pull(NAME).map(|(pulled, _)| pulled).unwrap_err();
        let text = format!("{error} | {}", error.hint().unwrap_or_default());
        assert!(says.iter().all(|says| text.contains(says)), "{says:?}: {text}");
        assert!(!self.target().exists(), "{text}: no model may appear");
        error
    }

    fn target(&self) -> PathBuf {
        self.hub.models_dir().join(NAME)
    }

    /// What has come of a file, and of no other: several are on their way at a time.
    fn parts(&self, file: &str) -> Vec<PathBuf> {
        let staging = self.hub.models_dir().join(".pull").join(NAME);
        let paths = fs::read_dir(staging).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_part = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(file) && name.ends_with(".part")
        };
        paths.filter(is_part).collect()
    }

    /// `Range` of each request for a file.
    fn ranges(&self, file: &str) -> Vec<Option<String>> {
        let requests = self.server.requests().into_iter();
        let of_file = requests.filter(|request| request.path.ends_with(file));
        of_file.map(|request| request.range).collect()
    }

    fn fault(&self, needle: &str, fault: Fault, times: usize) {
        self.server.fault(needle, fault, times);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_arrives_with_what_it_needs_and_nothing_else() {
    let world = World::new();
    let (first, second) = (weights("x", 3000, 1), weights("y", 2000, 2));
    let index = br#"{"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}"#;
    let commit = world.server.publish(
        NAME,
        "main",
        &[
            ("README.md", b"read me"),
            (".gitattributes", b""),
            ("config.json", CONFIG),
            ("generation_config.json", b"{}"),
            ("tokenizer.json", b"{}"),
            ("chat_template.jinja", b"{{ x }}"),
            ("model.safetensors.index.json", index),
            ("m-1.safetensors", &first),
            ("m-2.safetensors", &second),
            ("consolidated.safetensors", &first),
            ("pytorch_model.bin", b"pickle"),
            ("model-q4.gguf", b"gguf"),
            ("onnx/model.onnx", b"onnx"),
            ("original/model.safetensors", &first),
        ],
    );
    world.server.set_page_entries(3);
    let (pulled, log) = world.try_pull(NAME).unwrap();
    assert_eq!((pulled.place, pulled.was_here), (Place::Store, false));
    assert_eq!((&pulled.path, pulled.commit), (&world.target(), Some(commit.clone())));
    let expected = [
        ".offshoot.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "m-1.safetensors",
        "m-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&pulled.path), expected);
    assert_eq!(fs::read(pulled.path.join("m-2.safetensors")).unwrap(), second);
    assert!(!world.hub.models_dir().join(".pull").exists());
    let plan = &log.plans.lock().unwrap()[0];
    let total: u64 = plan.files.iter().map(|file| file.size_bytes).sum();
    assert_eq!((plan.files.len(), total > 5000), (7, true));
    assert_eq!(log.done.lock().unwrap().len(), 6, "all but the index, which comes first");
    let origin = world.hub.list().unwrap()[0].folder.as_ref().unwrap().origin().unwrap();
    assert_eq!((origin.repo.as_str(), origin.revision.as_str()), (NAME, "main"));
    assert!(world.server.requests().iter().all(|r| r.authorization.is_some()));

    let before = world.server.requests().len();
    let again = world.pull(NAME);
    assert!(again.was_here);
    let new = &world.server.requests()[before..];
    assert!(new.iter().all(|request| !request.path.contains("/resolve/")), "{new:?}");
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let (world, weights) = World::with_model();
    world.fault("resolve", Fault::CutAfter(5), 2);
    world.fault("model.safetensors", Fault::CutAfter(400), 1);
    world.fault("model.safetensors", Fault::Status(503, vec![]), 1);
    let pulled = world.pull(NAME);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    let ranges = world.ranges("model.safetensors");
    assert!(ranges.len() >= 3, "{ranges:?}");
    assert!(ranges.last().unwrap().is_some(), "{ranges:?}");
}

#[test]
fn a_later_pull_goes_on_with_what_an_earlier_one_left() {
    let (mut world, weights) = World::with_model();
    world.fault("model.safetensors", Fault::CutAfter(100), 1);
    let patience = Patience { max_failures: 1, ..world.options.patience.clone() };
    let patient = std::mem::replace(&mut world.options.patience, patience);
    world.fails(&["cannot fetch", "the same command goes on"]);
    let parts = world.parts("model.safetensors");
    assert_eq!(fs::read(&parts[0]).unwrap(), &weights[..100]);
    let error = world.hub.resolve(NAME).unwrap_err();
    assert!(matches!(error, HubError::Incomplete { .. }), "{error}");
    let entry = &world.hub.list().unwrap()[0];
    assert!(matches!(entry.folder, Err(HubError::Incomplete { .. })));
    world.options.patience = patient;
    let (pulled, log) = world.try_pull(NAME).unwrap();
    let plan = &log.plans.lock().unwrap()[0];
    let file = plan.files.iter().find(|file| file.name == "model.safetensors").unwrap();
    assert_eq!(file.present_bytes, 100);
    assert_eq!(world.ranges("model.safetensors"), [None, Some("bytes=100-".into())]);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    assert!(world.hub.resolve(NAME).is_ok());
}

#[test]
fn wrong_bytes_that_an_earlier_pull_left_are_given_up_once() {
    let (mut world, weights) = World::with_model();
    world.fault("model.safetensors", Fault::CutAfter(100), 1);
    let patience = Patience { max_failures: 1, ..world.options.patience.clone() };
    world.options.patience = patience;
    world.fails(&["cannot fetch"]);
    fs::write(&world.parts("model.safetensors")[0], [9; 50]).unwrap();
    let pulled = world.pull(NAME);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(world.ranges("model.safetensors")[1..], [Some("bytes=50-".into()), None]);
}

#[test]
fn servers_that_treat_ranges_badly_still_give_the_right_file() {
    for fault in [Fault::IgnoresRange, Fault::WrongRange, Fault::Status(416, vec![])] {
        let (world, weights) = World::with_model();
        world.fault("model.safetensors", Fault::CutAfter(100), 1);
        world.fault("model.safetensors", fault.clone(), 1);
        let pulled = world.pull(NAME);
        assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights, "{fault:?}");
    }
}

#[test]
fn a_server_that_falls_silent_is_asked_again() {
    let (mut world, weights) = World::with_model();
    world.options.stall = Duration::from_millis(200);
    world.fault("model.safetensors", Fault::HangAfter(300), 1);
    let pulled = world.pull(NAME);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    assert_eq!(world.ranges("model.safetensors"), [None, Some("bytes=300-".into())]);
}

#[test]
fn damaged_files_are_deleted_and_named() {
    let (world, weights) = World::with_model();
    let mut damaged = weights.clone();
    damaged[900] ^= 1;
    world.fault("model.safetensors", Fault::Body(damaged), 1);
    let error = world.fails(&["model.safetensors is damaged", "sha256:", "fetch it again"]);
    assert!(matches!(error, PullError::WrongHash { .. }));
    assert!(world.parts("model.safetensors").is_empty());
    let (world, _) = World::with_model();
    world.fault("config.json", Fault::Body(br#"{"model_type": "qwen2"}"#.to_vec()), 1);
    world.fails(&["config.json is damaged", "git:"]);
    let (world, weights) = World::with_model();
    let longer = [&weights[..], b"more"].concat();
    world.fault("model.safetensors", Fault::Body(longer), 1);
    let error = world.fails(&["model.safetensors is", "bytes long", "HF_ENDPOINT"]);
    assert!(matches!(error, PullError::WrongSize { .. }));
    world.pull(NAME);
}

#[test]
fn the_token_never_follows_a_redirection_to_another_server() {
    let (world, weights) = World::with_model();
    let elsewhere = HubServer::start();
    let files = [("config.json", CONFIG), ("model.safetensors", &weights[..])];
    elsewhere.publish(NAME, "main", &files);
    world.fault("model.safetensors", Fault::RedirectTo(elsewhere.endpoint()), 1);
    elsewhere.fault("model.safetensors", Fault::RedirectTo(world.server.endpoint()), 1);
    world.fault("model.safetensors", Fault::RedirectTo(elsewhere.endpoint()), 1);
    // At the same server it may go along.
    world.fault("config.json", Fault::RedirectTo(world.server.endpoint()), 1);
    let pulled = world.pull(NAME);
    assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
    let seen = elsewhere.requests();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(seen.iter().all(|request| request.authorization.is_none()), "{seen:?}");
    let authorized = Some("Bearer hf_secret".to_owned());
    assert!(world.server.requests().iter().all(|r| r.authorization == authorized));
}

#[test]
fn redirections_that_lead_nowhere_end() {
    let (world, _) = World::with_model();
    world.fault("model.safetensors", Fault::RedirectTo(world.server.endpoint()), 100);
    world.fails(&["redirects in a circle"]);
    let (world, _) = World::with_model();
    world.fault("model.safetensors", Fault::RedirectTo("file://".into()), 1);
    world.fails(&["redirects to nowhere"]);
}

#[test]
fn refusals_say_what_to_do() {
    let status = |status, code: &str| Fault::Status(status, vec![("X-Error-Code", code.into())]);
    let cases: &[(&str, Fault, &[&str])] = &[
        (
            "/revision/",
            status(404, "RepoNotFound"),
            &["the Hub has no model acme/tiny", "HF_TOKEN"],
        ),
        ("/revision/", status(401, "RepoNotFound"), &["the Hub has no model acme/tiny"]),
        ("/revision/", status(404, "RevisionNotFound"), &["no revision \"main\"", "offshoot pull"]),
        ("/revision/", status(401, ""), &["refuses access to acme/tiny (401)", "HF_TOKEN"]),
        ("/revision/", status(404, ""), &["the Hub has no model"]),
        ("/revision/", status(418, ""), &["status 418"]),
        ("/tree/", status(403, ""), &["refuses access to acme/tiny (403)"]),
        ("/resolve/", status(403, "GatedRepo"), &["ask for access at http://", "/acme/tiny"]),
        ("/resolve/", status(500, ""), &["fails with status 500", "try again later"]),
        ("/revision/", status(502, ""), &["fails with status 502"]),
    ];
    for (needle, fault, says) in cases {
        let (world, _) = World::with_model();
        world.fault(needle, fault.clone(), 100);
        world.fails(says);
        let list = world.hub.list().unwrap();
        assert!(list.is_empty(), "{says:?}: nothing has come, so nothing is left");
    }
}

#[test]
fn gated_models_ask_for_a_token_that_opens_them() {
    let (mut world, _) = World::with_model();
    world.server.gate(NAME, "hf_right");
    let error =
        world.fails(&["(403)", "the server's own words", "account that HF_TOKEN belongs to"]);
    assert!(matches!(error, PullError::NoAccess { is_gated: true, has_token: true, .. }));
    world.environment.token = None;
    world.fails(&["(401)", "ask for access at", "then set HF_TOKEN"]);
    world.environment.token = Token::parse("hf_right");
    world.pull(NAME);
}

#[test]
fn busy_servers_are_asked_again_when_they_say() {
    let busy = |seconds: &str| Fault::Status(429, vec![("Retry-After", seconds.into())]);
    let (world, _) = World::with_model();
    world.fault("/revision/", busy("7"), 1);
    world.fault("config.json", busy("11"), 1);
    world.pull(NAME);
    assert_eq!(*world.waited.lock().unwrap(), Duration::from_secs(18));

    let (world, _) = World::with_model();
    world.fault("config.json", busy("3600"), 1);
    let error = world.fails(&["no more requests", "in 3600 seconds", "the same command goes on"]);
    assert!(matches!(error, PullError::TooManyRequests { retry_after_s: Some(3600), .. }));

    let (world, _) = World::with_model();
    world.fault("config.json", busy("1"), 100);
    world.fails(&["no more requests"]);
    assert_eq!(*world.waited.lock().unwrap(), Duration::from_secs(4), "five times and no more");
}

#[test]
fn an_unreachable_hub_is_named() {
    let (mut world, _) = World::with_model();
    // A port that nothing listens on any more.
    world.environment.endpoint = HubServer::start().endpoint();
    let host = world.environment.endpoint.trim_start_matches("http://").to_owned();
    world.fails(&["cannot fetch from", &host, "HTTPS_PROXY"]);
}

#[test]
fn lists_that_cannot_be_trusted_are_refused() {
    let file = |path: &str| json!({"type": "file", "path": path, "size": 1, "oid": "0".repeat(40)});
    let deep = "[".repeat(10_000);
    let cases: Vec<(&str, String, &str)> = vec![
        ("/tree/", json!([file("../../evil")]).to_string(), "leads elsewhere"),
        ("/tree/", json!([file("/etc/passwd")]).to_string(), "leads elsewhere"),
        ("/tree/", json!([file("C:\\evil")]).to_string(), "leads elsewhere"),
        ("/tree/", json!([file("a\\..\\evil")]).to_string(), "leads elsewhere"),
        ("/tree/", json!([file("a\nb")]).to_string(), "leads elsewhere"),
        ("/tree/", json!([file("config.json"), file("CONFIG.json")]).to_string(), "twice"),
        (
            "/tree/",
            json!([{"type": "file", "path": "config.json", "size": 1, "oid": "../../x"}])
                .to_string(),
            "no hash of config.json",
        ),
        (
            "/tree/",
            json!([{"type": "file", "path": "a", "size": u64::MAX / 2, "oid": "0".repeat(40)}])
                .to_string(),
            "larger than any model",
        ),
        ("/tree/", r#"{"error": "no"}"#.into(), "not as expected"),
        ("/tree/", deep.clone(), "not as expected"),
        ("/tree/", "[]".into(), "no weights"),
        ("/revision/", "<html>".into(), "not as expected"),
        ("/revision/", deep, "not as expected"),
        ("/revision/", r#"{"sha": "../../../main"}"#.into(), "names no commit"),
        ("/revision/", r#"{"sha": 5}"#.into(), "not as expected"),
    ];
    for (needle, body, says) in cases {
        let (world, _) = World::with_model();
        world.fault(needle, Fault::Body(body.into_bytes()), 1);
        world.fails(&[says]);
    }
    for needle in ["/tree/", "/revision/"] {
        let (world, _) = World::with_model();
        world.fault(needle, Fault::Endless, 1);
        world.fails(&["it is too large"]);
    }
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let world = World::new();
    let names: Vec<_> = (0..70).map(|n| format!("{n}.txt")).collect();
    let files: Vec<_> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    world.server.publish(NAME, "main", &files);
    world.server.set_page_entries(1);
    world.fails(&["does not end"]);
}

#[test]
fn repositories_without_a_usable_model_are_refused_before_anything_is_fetched() {
    for (files, says) in [
        (&[("config.json", CONFIG), ("model.gguf", b"g")][..], "GGUF"),
        (&[("config.json", CONFIG), ("pytorch_model.bin", b"p")], "PyTorch"),
        (&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"a")], "adapter"),
    ] {
        let world = World::new();
        world.server.publish(NAME, "main", files);
        world.fails(&[says]);
        let requests = world.server.requests();
        assert!(requests.iter().all(|r| !r.path.contains("/resolve/")), "{requests:?}");
    }
    let world = World::new();
    let index = br#"{"weight_map": {"x": "../../x.safetensors"}}"#;
    let files = [
        ("config.json", CONFIG),
        ("model.safetensors.index.json", &index[..]),
        ("x.safetensors", b"x"),
    ];
    world.server.publish(NAME, "main", &files);
    world.fails(&["outside the folder"]);
    // Right hashes, but no weights in it.
    let world = World::new();
    world.server.publish(NAME, "main", &[("config.json", CONFIG), ("model.safetensors", b"1234")]);
    world.fails(&["model.safetensors is cut off"]);
}

#[test]
fn a_disk_that_is_too_small_is_noticed_before_it_is_full() {
    let (mut world, _) = World::with_model();
    world.options.free_bytes = Arc::new(|_| Ok(500));
    let error = world.fails(&["only 500 are free", "OFFSHOOT_HOME"]);
    assert!(matches!(error, PullError::NoSpace { free_bytes: 500, .. }));
    assert!(world.ranges("model.safetensors").is_empty());
    world.options.free_bytes = Arc::new(|_| Ok(u64::MAX));
    world.pull(NAME);
}

#[test]
fn another_revision_takes_over_what_has_not_changed() {
    let (world, weights) = World::with_model();
    world.pull(NAME);
    let config = br#"{"model_type": "qwen3", "newer": true}"#;
    let files = [("config.json", &config[..]), ("model.safetensors", &weights)];
    let commit = world.server.publish(NAME, "v2/next", &files);
    let pulled = world.pull("acme/tiny@v2/next");
    assert_eq!(pulled.commit.as_ref(), Some(&commit));
    assert_eq!(fs::read(pulled.path.join("config.json")).unwrap(), config);
    assert_eq!(world.ranges("model.safetensors").len(), 1, "the weights came once");
    assert!(world.pull(&format!("{NAME}@{commit}")).was_here);
    assert_eq!(names(&world.hub.models_dir().join("acme")), ["tiny"]);
}

/// Puts files into the cache as the Hugging Face tools do: blobs, and a snapshot of links.
fn cache(world: &World, commit: &str, files: &[(&str, &[u8])]) {
    let folder = world.dir.path().join("cache/models--acme--tiny");
    let snapshot = folder.join("snapshots").join(commit);
    for dir in [&folder.join("refs"), &folder.join("blobs"), &snapshot] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(folder.join("refs/main"), commit).unwrap();
    let list = world.server.requests();
    assert!(list.is_empty(), "the cache is filled first");
    for (name, content) in files {
        // Blobs are named by the hashes that the Hub lists.
        let blob = folder.join("blobs").join(testkit::hub_digest(name, content));
        fs::write(&blob, content).unwrap();
        fs::hard_link(&blob, snapshot.join(name)).unwrap();
    }
}

#[test]
fn what_the_hugging_face_cache_holds_is_used_from_there() {
    let (world, weights) = World::with_model();
    let files = [("config.json", CONFIG), ("model.safetensors", &weights[..])];
    let commit = world.server.publish(NAME, "main", &files);
    cache(&world, &commit, &files);
    let folder = world.hub.resolve(NAME).unwrap();
    let hub::Model::Folder { folder, .. } = folder else { panic!("{folder:?}") };
    assert_eq!(world.hub.place(&folder), Place::HfCache);
    let entries = world.hub.list().unwrap();
    assert_eq!((entries[0].name.as_str(), entries[0].place), (NAME, Place::HfCache));
    let pulled = world.pull(NAME);
    assert_eq!((pulled.place, pulled.was_here), (Place::HfCache, true));
    assert!(world.server.requests().iter().all(|r| !r.path.contains("/resolve/")));
    let error = world.hub.removable(NAME).unwrap_err().to_string();
    assert!(error.contains("Hugging Face cache"), "{error}");
}

#[test]
fn single_files_of_the_cache_are_taken_if_they_are_what_they_are_called() {
    let check = |damage: bool, n_fetched: usize| {
        let (world, weights) = World::with_model();
        let older = [("model.safetensors", &weights[..])];
        cache(&world, &"0".repeat(40), &older);
        let digest = testkit::hub_digest("model.safetensors", &weights);
        let blob = world.dir.path().join("cache/models--acme--tiny/blobs").join(digest);
        if damage {
            let mut content = weights.clone();
            content[500] ^= 1;
            fs::write(&blob, content).unwrap();
        }
        let pulled = world.pull(NAME);
        assert_eq!(pulled.place, Place::Store);
        assert_eq!(fs::read(pulled.path.join("model.safetensors")).unwrap(), weights);
        assert_eq!(world.ranges("model.safetensors").len(), n_fetched, "damage: {damage}");
    };
    check(false, 0);
    check(true, 1);
}

#[test]
fn a_cache_that_lacks_weights_is_completed_by_a_pull() {
    let world = World::new();
    let (first, second) = (weights("x", 5000, 1), weights("y", 4000, 2));
    let index = br#"{"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}"#;
    let files = [
        ("config.json", CONFIG),
        ("model.safetensors.index.json", &index[..]),
        ("m-1.safetensors", &first),
        ("m-2.safetensors", &second),
    ];
    let commit = world.server.publish(NAME, "main", &files);
    cache(&world, &commit, &files[..3]);
    let error = world.hub.resolve(NAME).unwrap_err();
    assert!(matches!(error, HubError::Incomplete { .. }), "{error}");
    let pulled = world.pull(NAME);
    assert_eq!(pulled.place, Place::Store);
    assert_eq!(world.ranges("m-1.safetensors").len(), 0, "the cache has it");
    assert_eq!(world.ranges("m-2.safetensors").len(), 1);
    assert!(world.hub.resolve(NAME).is_ok());
}

#[test]
fn without_the_network_what_is_here_has_to_do() {
    let (mut world, weights) = World::with_model();
    world.environment.is_offline = true;
    let error = world.fails(&["HF_HUB_OFFLINE forbids", "unset HF_HUB_OFFLINE"]);
    assert!(matches!(error, PullError::Offline { .. }));
    world.environment.is_offline = false;
    world.pull(NAME);
    let before = world.server.requests().len();
    world.environment.is_offline = true;
    assert!(world.pull(NAME).was_here);
    assert!(world.try_pull("acme/tiny@other").is_err());
    assert_eq!(world.server.requests().len(), before);

    let (mut world, _) = World::with_model();
    world.environment.is_offline = true;
    let files = [("config.json", CONFIG), ("model.safetensors", &weights[..weights.len() - 1])];
    cache(&world, &"0".repeat(40), &files);
    assert!(world.try_pull(NAME).is_err(), "the weights in the cache are cut off");
    let (mut world, _) = World::with_model();
    world.environment.is_offline = true;
    cache(&world, &"0".repeat(40), &[("config.json", CONFIG), ("model.safetensors", &weights)]);
    assert_eq!(world.pull(NAME).place, Place::HfCache);
    assert!(world.server.requests().is_empty());
}

#[test]
fn many_files_come_at_the_same_time() {
    let mut world = World::new();
    let shards: Vec<_> = (0..9u8)
        .map(|n| (format!("m-{n}.safetensors"), weights(&format!("t{n}"), 100 + usize::from(n), n)))
        .collect();
    let tensor_of = |n: usize| (format!("t{n}"), Value::from(shards[n].0.as_str()));
    let map: serde_json::Map<_, _> = (0..9).map(tensor_of).collect();
    let index = json!({ "weight_map": map }).to_string();
    let mut files =
        vec![("config.json", CONFIG), ("model.safetensors.index.json", index.as_bytes())];
    files.extend(shards.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
    world.server.publish(NAME, "main", &files);
    world.options.n_parallel = 4;
    // The first is sent when four are asked for.
    world.options.stall = Duration::from_secs(5);
    world.fault("/m-", Fault::Together(4), 4);
    let pulled = world.pull(NAME);
    assert_eq!(*world.waited.lock().unwrap(), Duration::ZERO, "nothing had to be asked twice");
    for (name, content) in &shards {
        assert_eq!(&fs::read(pulled.path.join(name)).unwrap(), content);
    }
}

#[test]
fn the_first_failure_ends_all_downloads_and_keeps_their_parts() {
    let world = World::new();
    let (first, second) = (weights("x", 5000, 1), weights("y", 4000, 2));
    let index = br#"{"weight_map": {"x": "m-1.safetensors", "y": "m-2.safetensors"}}"#;
    let files = [
        ("config.json", CONFIG),
        ("model.safetensors.index.json", &index[..]),
        ("m-1.safetensors", &first),
        ("m-2.safetensors", &second),
    ];
    world.server.publish(NAME, "main", &files);
    world.fault("m-1.safetensors", Fault::CutAfter(2500), 1);
    world.fault("m-1.safetensors", Fault::Status(403, vec![]), 1);
    world.fails(&["refuses access"]);
    let lengths: Vec<_> =
        world.parts("m-1").iter().map(|part| part.metadata().unwrap().len()).collect();
    assert!(lengths.contains(&2500), "{lengths:?}");
    world.pull(NAME);
    assert_eq!(world.ranges("m-1.safetensors").last().unwrap().as_deref(), Some("bytes=2500-"));
}
