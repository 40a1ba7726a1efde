//! `offshoot cache stats` and `flush`, over folders that a store has written. No runner takes part.
//!
//! These tests take turns: a process that is being started has, for a moment, the locks of the one
//! that starts it.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvcache::{Class, ExtentId, Ns, Record};
use kvstore::{Fingerprint, Store};
use serde_json::{Value, json};

static TURN: Mutex<()> = Mutex::new(());

/// A data folder, and the turn of the test that has it.
struct Home {
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

fn fingerprint(label: &str) -> Fingerprint {
    Fingerprint::new(label, [("weights", label), ("dtype", "bf16")])
}

impl Home {
    fn empty() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().unwrap(), _turn: turn }
    }

    /// With what two models have cached.
    fn new() -> Self {
        let home = Self::empty();
        for (label, n_extents) in [("acme/tiny", 2), ("demo", 1)] {
            let store = home.open(label);
            for id in 0..n_extents {
                let tokens = (0..10 * (id + 1)).collect();
                let record = Record { ns: Ns(1), tokens, start: 0, class: Class::TurnEnd };
                store.write(ExtentId(u64::from(id)), &record, &[&[1; 900]]).unwrap();
            }
        }
        home
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn open(&self, label: &str) -> Store {
        Store::open(&self.root(), &fingerprint(label), 1 << 40).unwrap().0
    }

    /// Exit code, standard output and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.env_remove("OFFSHOOT_JSON").env("OFFSHOOT_HOME", self.dir.path());
        let output = command.arg("cache").args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn stats_say_what_is_cached_of_each_model() {
    let home = Home::new();
    let _in_use = home.open("demo");
    let (code, stdout, stderr) = home.run(&["stats"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let line = |label: &str| {
        let line = stdout.lines().find(|line| line.starts_with(label)).unwrap();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let [tiny, demo] = ["acme/tiny", "demo"].map(|label| fingerprint(label).folder());
    assert_eq!(line("acme/tiny")[1..7], [&tiny[..12], "2", "30", "2.2", "kB", "just"]);
    assert_eq!(line("acme/tiny").last().unwrap(), "free");
    assert_eq!(line("demo")[1..4], [&demo[..12], "1", "10"]);
    assert!(line("demo").ends_with(&["in".to_owned(), "use".to_owned()]));
    let (code, stdout, _) = home.run(&["stats", "--json"]);
    assert_eq!(code, Some(0));
    let found: Value = serde_json::from_str(&stdout).unwrap();
    let entry = found.as_array().unwrap().iter().find(|entry| entry["model"] == "acme/tiny");
    let entry = entry.unwrap();
    let expected = json!({
        "model": "acme/tiny",
        "fingerprint": tiny,
        "depends_on": ["kvstore: 2", "weights: acme/tiny", "dtype: bf16"],
        "path": home.root().join(&tiny).to_str().unwrap(),
        "n_extents": 2,
        "n_tokens": 30,
        // Headers of 64 bytes; the index has 44 and two entries of 12 + 50 and 10 tokens each.
        "size_bytes": 2 * 964 + 44 + 2 * 102 + 52,
        "last_used_unix_s": entry["last_used_unix_s"],
        "in_use": false,
        "problem": null,
    });
    assert_eq!(*entry, expected);
    assert!(entry["last_used_unix_s"].as_u64().unwrap() > 1_700_000_000);
}

#[test]
fn an_empty_cache_and_a_broken_folder_are_told_apart() {
    let home = Home::empty();
    let (code, stdout, stderr) = home.run(&["stats"]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""));
    assert!(stderr.contains("nothing is cached in"), "{stderr}");
    assert_eq!(home.run(&["stats", "--json"]).1, "[]\n");
    let (code, _, stderr) = home.run(&["flush", "--all"]);
    assert!(code == Some(0) && stderr.contains("nothing is cached"), "{stderr}");
    let broken = home.root().join("0".repeat(32));
    std::fs::create_dir_all(&broken).unwrap();
    let (code, stdout, stderr) = home.run(&["stats"]);
    assert!(code == Some(0) && stdout.contains("broken"), "{stdout}");
    assert!(stderr.contains("warning: 00000000"), "{stderr}");
    assert_eq!(home.run(&["flush", "000"]).0, Some(0));
    assert!(!broken.exists());
}

#[test]
fn a_flush_takes_models_and_beginnings_of_fingerprints() {
    let home = Home::new();
    let path = |label: &str| home.root().join(fingerprint(label).folder());
    let (code, stdout, stderr) = home.run(&["flush", "acme/tiny"]);
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    assert!(stderr.contains("deleted acme/tiny, 2.2 kB"), "{stderr}");
    assert!(!path("acme/tiny").exists() && path("demo").exists());
    let beginning = &fingerprint("demo").folder()[..5];
    assert_eq!(home.run(&["flush", beginning]).0, Some(0));
    assert!(!path("demo").exists());
    let (code, _, stderr) = home.run(&["flush", "demo"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("nothing is cached of \"demo\"") && stderr.contains("cache stats"));
}

#[test]
fn what_is_in_use_is_not_flushed_and_the_rest_is() {
    let home = Home::new();
    let in_use = home.open("demo");
    let (code, _, stderr) = home.run(&["flush", "--all"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("deleted acme/tiny") && stderr.contains("demo not deleted: in use"));
    assert_eq!(in_use.stats().n_extents, 1);
    let folders = kvstore::list(&home.root()).unwrap();
    assert_eq!(folders.iter().map(|f| f.label.as_str()).collect::<Vec<_>>(), ["demo"]);
}

#[test]
fn a_flush_needs_to_be_told_what() {
    let home = Home::new();
    for (args, says) in [
        (&["flush"][..], "MODEL_OR_FINGERPRINT"),
        (&["flush", "demo", "--all"], "--all"),
        (&["flush", ""], "nothing is cached of"),
    ] {
        let (code, _, stderr) = home.run(args);
        assert!(code != Some(0) && stderr.contains(says), "{args:?}: {stderr}");
    }
    assert_eq!(kvstore::list(&home.root()).unwrap().len(), 2);
}
