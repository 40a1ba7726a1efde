//! Who may ask: API keys from a file, kept as hashes and compared in constant time.
//!
//! Invariants:
//! - No key is kept, shown or logged; what is shown is its name.
//! - Callers with different keys have different namespaces of the cache, and nobody can compute
//!   another's without knowing the key.

use std::sync::Arc;

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::{Failure, Kind};

/// Shorter keys can be guessed.
const MIN_KEY_BYTES: usize = 16;
const MAX_KEYS: usize = 4096;
/// Requests that one caller has at the same time, unless its line says otherwise.
const DEFAULT_REQUESTS: usize = 64;
/// Of `cache_salt`.
pub const MAX_SALT_BYTES: usize = 256;

/// All callers that are known.
#[derive(Debug)]
pub struct Keys {
    /// Random and new in each process: hashes are of no use elsewhere.
    hashing: hmac::Key,
    /// Empty: everybody may ask.
    entries: Vec<(hmac::Tag, Arc<Entry>)>,
    anyone: Arc<Entry>,
}

/// What is known of one caller.
#[derive(Debug)]
pub struct Entry {
    /// As the file has it, or by its line.
    pub name: String,
    is_admin: bool,
    max_requests: usize,
    requests: Arc<Semaphore>,
    /// Makes namespaces; none without keys: all callers share what `offshoot run` has cached.
    namespaces: Option<hmac::Key>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller(Arc<Entry>);

/// A line of the file cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct KeyError {
    line: usize,
    reason: String,
}

impl Keys {
    /// Everybody may ask, and manage models: for servers that only this machine reaches.
    pub fn none() -> Self {
        let hashing = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .expect("the system has random numbers");
        let anyone = entry("anyone".into(), true, DEFAULT_REQUESTS * 4, None);
        Self { hashing, entries: Vec::new(), anyone }
    }

    /// Reads a file: on each line a key, then, separated by blanks, `name=NAME`, `requests=N` (at
    /// the same time) and `admin` (may load and unload models). `#` begins a comment.
    ///
    /// # Errors
    /// A line is not of this form, or there is no key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut keys = Self::none();
        for (idx, line) in text.lines().enumerate() {
            let failed = |reason: String| KeyError { line: idx + 1, reason };
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(key) = words.next() else { continue };
            if key.len() < MIN_KEY_BYTES {
                return Err(failed(format!("a key has at least {MIN_KEY_BYTES} characters")));
            }
            let entry = keyed(key, words, idx + 1).map_err(failed)?;
            if keys.find(key).is_some() || keys.entries.iter().any(|(_, e)| e.name == entry.name) {
                return Err(failed("the key, or its name, is there already".into()));
            }
            if keys.entries.len() == MAX_KEYS {
                return Err(failed(format!("at most {MAX_KEYS} keys are allowed")));
            }
            keys.entries.push((hmac::sign(&keys.hashing, key.as_bytes()), entry));
        }
        match keys.entries.is_empty() {
            true => Err(KeyError { line: 1, reason: "there is no key in the file".into() }),
            false => Ok(keys),
        }
    }

    /// Whether callers need a key.
    pub fn are_needed(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Compares with all keys, whichever fits, each in constant time.
    fn find(&self, key: &str) -> Option<&Arc<Entry>> {
        let mut found = None;
        for (tag, entry) in &self.entries {
            if hmac::verify(&self.hashing, key.as_bytes(), tag.as_ref()).is_ok() {
                found = Some(entry);
            }
        }
        found
    }

    /// The caller of a name.
    pub fn named(&self, name: &str) -> Option<Caller> {
        let entry = self.entries.iter().map(|(_, entry)| entry).find(|entry| entry.name == name);
        entry.map(|entry| Caller(Arc::clone(entry)))
    }

    /// Who presents a key, or none.
    ///
    /// # Errors
    /// A key is needed, and this is none of them.
    pub fn caller(&self, key: Option<&str>) -> Result<Caller, Failure> {
        if !self.are_needed() {
            return Ok(Caller(Arc::clone(&self.anyone)));
        }
        let message = match key {
            None => "an API key is needed: Authorization: Bearer KEY",
            Some(key) => match self.find(key) {
                Some(entry) => return Ok(Caller(Arc::clone(entry))),
                None => "the API key is not known",
            },
        };
        Err(Failure::new(Kind::Unauthorized, message))
    }
}

fn entry(
    name: String,
    is_admin: bool,
    max_requests: usize,
    namespaces: Option<hmac::Key>,
) -> Arc<Entry> {
    let requests = Arc::new(Semaphore::new(max_requests));
    Arc::new(Entry { name, is_admin, max_requests, requests, namespaces })
}

fn keyed<'a>(
    key: &str,
    words: impl Iterator<Item = &'a str>,
    line: usize,
) -> Result<Arc<Entry>, String> {
    let (mut name, mut is_admin, mut max_requests) =
        (format!("key-{line}"), false, DEFAULT_REQUESTS);
    for word in words {
        match word.split_once('=') {
            None if word == "admin" => is_admin = true,
            Some(("name", given)) if is_name(given) => name = given.to_owned(),
            Some(("requests", n)) => match n.parse() {
                Ok(n @ 1..=100_000) => max_requests = n,
                _ => return Err(format!("requests is a number from 1 on, not {n:?}")),
            },
            _ => return Err("behind the key come name=NAME, requests=N and admin".into()),
        }
    }
    let namespaces = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    Ok(entry(name, is_admin, max_requests, Some(namespaces)))
}

/// Names are shown in logs and metrics.
fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}

impl Caller {
    /// The name to show.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// May manage models.
    ///
    /// # Errors
    /// It may not.
    pub fn check_admin(&self) -> Result<(), Failure> {
        match self.0.is_admin {
            true => Ok(()),
            false => Err(Failure::new(Kind::Forbidden, "this needs an API key marked as admin")),
        }
    }

    /// A place among the requests that this caller has at the same time.
    ///
    /// # Errors
    /// All are taken.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0.requests).try_acquire_owned().map_err(|_| {
            let n = self.0.max_requests;
            let message = format!("{n} requests of this caller are being answered already");
            Failure::new(Kind::TooMany, message).retry_after(std::time::Duration::from_secs(1))
        })
    }

    /// Whose cached prefixes it may use: its own, and of those the ones made with the same salt.
    ///
    /// # Errors
    /// The salt is no salt.
    pub fn namespace(&self, salt: Option<&str>) -> Result<u64, Failure> {
        let salt = salt.unwrap_or_default();
        let is_visible = salt.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if salt.len() > MAX_SALT_BYTES || !is_visible {
            let reason = format!("must be at most {MAX_SALT_BYTES} visible ASCII characters");
            return Err(Failure::invalid("cache_salt", reason));
        }
        let shared;
        let key = match (&self.0.namespaces, salt) {
            (None, "") => return Ok(0),
            (None, _) => {
                shared = hmac::Key::new(hmac::HMAC_SHA256, b"offshoot shared namespace");
                &shared
            }
            (Some(key), _) => key,
        };
        let tag = hmac::sign(key, format!("offshoot namespace 1 {salt}").as_bytes());
        let first = tag.as_ref().first_chunk::<8>().copied().unwrap_or_default();
        Ok(u64::from_le_bytes(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "sk-alice-0123456789";
    const BOB: &str = "sk-bob-0123456789abc";

    fn keys() -> Keys {
        Keys::parse(&format!("# ours\n\n{ALICE} name=alice admin\n{BOB} requests=2 # his\n"))
            .unwrap()
    }

    #[test]
    fn only_known_keys_pass_and_none_is_shown() {
        let keys = keys();
        assert_eq!(keys.caller(Some(ALICE)).unwrap().name(), "alice");
        assert_eq!(keys.caller(Some(BOB)).unwrap().name(), "key-4");
        for wrong in [None, Some(""), Some("alice"), Some(&ALICE[1..]), Some("sk-alice-012345678")]
        {
            assert_eq!(keys.caller(wrong).unwrap_err().kind, Kind::Unauthorized, "{wrong:?}");
        }
        let shown = format!("{keys:?} {:?}", keys.caller(Some(BOB)));
        assert!(!shown.contains(ALICE) && !shown.contains(BOB), "{shown}");
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, says) in [
            ("", "no key"),
            ("# nothing", "no key"),
            ("short", "line 1: a key has at least 16"),
            ("\n0123456789abcdef name=a/b", "line 2: behind the key"),
            ("0123456789abcdef requests=0", "from 1 on"),
            ("0123456789abcdef root", "behind the key"),
            ("0123456789abcdef\n0123456789abcdef", "line 2: the key, or its name"),
        ] {
            let error = Keys::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn namespaces_differ_by_key_and_by_salt_and_stay_through_restarts() {
        let namespace = |keys: &Keys, key, salt| keys.caller(key).unwrap().namespace(salt).unwrap();
        let (one, other, open) = (keys(), keys(), Keys::none());
        let all = [
            namespace(&one, Some(ALICE), None),
            namespace(&one, Some(BOB), None),
            namespace(&one, Some(ALICE), Some("s")),
            namespace(&one, Some(BOB), Some("s")),
            namespace(&open, None, None),
            namespace(&open, None, Some("s")),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!((distinct.len(), all[4]), (all.len(), 0));
        assert_eq!(namespace(&other, Some(ALICE), Some("s")), all[2]);
        for salt in ["\0", "\n", "ä", &"x".repeat(257)] {
            let failure = open.caller(None).unwrap().namespace(Some(salt)).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("cache_salt"), "{salt:?}");
        }
    }

    #[test]
    fn one_caller_cannot_take_all_places() {
        let keys = keys();
        let bob = keys.caller(Some(BOB)).unwrap();
        let held = (bob.permit().unwrap(), bob.permit().unwrap());
        let failure = bob.permit().unwrap_err();
        assert_eq!((failure.kind, failure.retry_after.is_some()), (Kind::TooMany, true));
        assert!(keys.caller(Some(ALICE)).unwrap().permit().is_ok());
        drop(held);
        assert!(bob.permit().is_ok());
        assert!(bob.check_admin().is_err());
    }
}
