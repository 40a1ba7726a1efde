//! Real processes, killed at any time.
//!
//! These tests are a program of their own and take turns: a process that is being started has, for
//! a moment, the locks of the one that starts it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use kvcache::{ExtentId, Place};
use kvstore::{Error, Store};

#[path = "../examples/killed/contents.rs"]
mod contents;

const PLENTY: u64 = 1 << 40;
static TURN: Mutex<()> = Mutex::new(());

/// Cargo builds a package's examples together with its tests.
fn writer() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let profile = own.ancestors().nth(2).unwrap();
    let path = profile.join("examples/kvstore_writer");
    assert!(path.is_file(), "build it first: cargo test -p kvstore");
    path
}

fn start(root: &Path) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(writer()).arg(root).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// Opens what a killed process has left, and compares every byte. The ids that are there.
fn check(root: &Path) -> BTreeSet<u64> {
    let (store, found) = Store::open(root, &contents::fingerprint(), PLENTY).unwrap();
    let mut ids = BTreeSet::new();
    for found in found {
        let (record, pieces) = contents::extent(found.id.0);
        assert_eq!(found.record, record);
        let mut offset = 0;
        for piece in pieces {
            let mut bytes = vec![0; piece.len()];
            let n_bytes = piece.len() as u64;
            store.read(Place { extent: found.id, offset, n_bytes }, &mut bytes).unwrap();
            assert!(bytes == piece);
            offset += n_bytes;
        }
        ids.insert(found.id.0);
    }
    ids
}

#[test]
fn what_a_killed_process_acknowledged_is_there_and_whole() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut state = 11u64;
    let mut draw = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % n
    };
    let mut there = BTreeSet::new();
    for _ in 0..30 {
        let (mut child, mut lines) = start(dir.path());
        let n_lines = 1 + draw(25);
        let mut said = Vec::new();
        for _ in 0..n_lines {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            said.push(line);
        }
        (0..draw(200_000)).for_each(|_| std::hint::spin_loop());
        child.kill().unwrap();
        child.wait().unwrap();
        said.extend(lines.lines().map(Result::unwrap));
        for line in &said {
            let id = line.trim_end()[2..].parse::<u64>().unwrap();
            match line.starts_with('+') {
                true => there.insert(id),
                false => there.remove(&id),
            };
        }
        let found = check(dir.path());
        let under_way = found.symmetric_difference(&there).copied().collect::<Vec<_>>();
        let last = there.iter().next_back().copied().unwrap_or(0);
        let may_be = under_way.iter().all(|id| *id == last + 1 || last % 3 == 2 && *id == last - 2);
        assert!(may_be && under_way.len() <= 1, "{under_way:?} after {:?}", said.last());
        there = found;
    }
    assert!(there.len() > 30);
}

#[test]
fn a_folder_that_another_process_has_is_locked_until_it_ends() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut lines) = start(dir.path());
    lines.read_line(&mut String::new()).unwrap();
    let second = Store::open(dir.path(), &contents::fingerprint(), PLENTY);
    let is_listed = kvstore::list(dir.path()).unwrap()[0].is_in_use;
    let flushed = kvstore::flush(dir.path(), |_| true).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(second, Err(Error::Locked { .. })));
    assert!(is_listed && !flushed[0].result.as_ref().unwrap());
    let (store, found) = Store::open(dir.path(), &contents::fingerprint(), PLENTY).unwrap();
    assert!(found.count() >= 1);
    store.remove(&[ExtentId(0)]).unwrap();
}
