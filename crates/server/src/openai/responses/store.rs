//! Responses that later requests continue or look up, in memory.
//!
//! Invariants:
//! - A caller sees its own responses alone; another's are as if there were none.
//! - There are never more than the bounds allow, in number and in bytes. What goes first is the
//!   oldest of the caller who has the most, so that nobody pushes out what others keep.
//! - A response that is there has all of its conversation, also where the responses that it
//!   continues are gone: turns are shared, and their bytes count until the last that needs them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use text::{Content, Json, Message};

use crate::http::Limits;

/// What a response or a message takes besides its texts.
const OVERHEAD_BYTES: usize = 256;

/// All that is kept.
#[derive(Debug, Default)]
pub struct StoredResponses {
    /// By the name of the caller.
    shelves: Mutex<HashMap<String, Shelf>>,
}

/// What one caller has.
#[derive(Debug, Default)]
struct Shelf {
    /// Oldest first.
    kept: VecDeque<Kept>,
    bytes: Arc<AtomicUsize>,
}

/// A response.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its id.
    pub id: String,
    /// The object as text.
    pub object: Bytes,
    /// The conversation up to its end.
    pub turn: Arc<Turn>,
    _charge: Arc<Charge>,
}

/// What one response adds to a conversation: its input and its answer.
#[derive(Debug, Default)]
pub struct Added {
    /// As a template knows them.
    pub messages: Vec<Message>,
    /// The same as items, which have ids.
    pub inputs: Vec<Json>,
    /// Likewise.
    pub outputs: Vec<Json>,
}

/// What one response has added.
#[derive(Debug)]
pub struct Turn {
    before: Option<Arc<Turn>>,
    messages: Vec<Message>,
    inputs: Vec<Item>,
    outputs: Vec<Item>,
    _charge: Charge,
}

/// An item of a conversation.
#[derive(Debug)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// The object as text, which takes less room.
    pub json: String,
}

impl Item {
    fn of(object: &Json) -> Self {
        Self { id: object["id"].as_str().unwrap_or_default().to_owned(), json: object.to_string() }
    }

    fn bytes(&self) -> usize {
        self.id.len() + self.json.len() + OVERHEAD_BYTES
    }
}

/// Bytes that count until this is dropped.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    account: Arc<AtomicUsize>,
}

impl Charge {
    fn new(bytes: usize, account: &Arc<AtomicUsize>) -> Self {
        account.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes, account: Arc::clone(account) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Turn {
    fn all(&self) -> Vec<&Self> {
        let turns = std::iter::successors(Some(self), |turn| turn.before.as_deref());
        let mut turns: Vec<_> = turns.collect();
        turns.reverse();
        turns
    }

    /// All messages up to its end, oldest first.
    pub fn conversation(&self) -> Vec<Message> {
        self.all().into_iter().flat_map(|turn| turn.messages.iter().cloned()).collect()
    }

    /// All items that its answer was made of, oldest first: its input, and all before that.
    pub fn inputs(&self) -> Vec<&Item> {
        let own = self.inputs.iter();
        let before = self.before.as_ref().map(|before| before.all()).unwrap_or_default();
        let before = before.into_iter().flat_map(|turn| turn.inputs.iter().chain(&turn.outputs));
        before.chain(own).collect()
    }
}

impl Drop for Turn {
    /// Turn by turn: a long conversation must not be as deep a recursion.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut turn) = before.and_then(Arc::into_inner) {
            before = turn.before.take();
        }
    }
}

impl Shelf {
    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl StoredResponses {
    fn with<T>(&self, ask: impl FnOnce(&mut HashMap<String, Shelf>) -> T) -> T {
        // Nothing under the lock leaves it half done.
        ask(&mut self.shelves.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A caller's response.
    pub fn find(&self, caller: &str, id: &str) -> Option<Kept> {
        self.with(|shelves| {
            let kept = &shelves.get(caller)?.kept;
            kept.iter().rev().find(|kept| kept.id == id).cloned()
        })
    }

    /// Forgets a caller's response; false if there is none. Those that continue it stay.
    pub fn remove(&self, caller: &str, id: &str) -> bool {
        self.with(|shelves| {
            let Some(shelf) = shelves.get_mut(caller) else { return false };
            let Some(idx) = shelf.kept.iter().position(|kept| kept.id == id) else { return false };
            shelf.kept.remove(idx).is_some()
        })
    }

    /// Keeps a caller's response: what it has added to what was `before`, and the object.
    pub fn keep(
        &self,
        caller: &str,
        id: &str,
        object: &Json,
        before: Option<Arc<Turn>>,
        added: Added,
        limits: &Limits,
    ) {
        let object = Bytes::from(object.to_string());
        let Added { messages, inputs, outputs } = added;
        let [inputs, outputs] =
            [inputs, outputs].map(|items| items.iter().map(Item::of).collect::<Vec<_>>());
        let item_bytes = inputs.iter().chain(&outputs).map(Item::bytes).sum::<usize>();
        let bytes = item_bytes + messages.iter().map(bytes_of).sum::<usize>();
        self.with(|shelves| {
            let shelf = shelves.entry(caller.to_owned()).or_default();
            let charge = Charge::new(bytes, &shelf.bytes);
            let turn = Arc::new(Turn { before, messages, inputs, outputs, _charge: charge });
            let charge = Charge::new(object.len() + OVERHEAD_BYTES, &shelf.bytes);
            shelf.kept.push_back(Kept { id: id.to_owned(), object, turn, _charge: charge.into() });
            make_room(shelves, limits);
        });
    }
}

fn make_room(shelves: &mut HashMap<String, Shelf>, limits: &Limits) {
    loop {
        let bytes: usize = shelves.values().map(Shelf::bytes).sum();
        let n: usize = shelves.values().map(|shelf| shelf.kept.len()).sum();
        let has_too_many = n > limits.max_responses;
        if !has_too_many && bytes <= limits.response_bytes {
            return;
        }
        let share = |shelf: &&mut Shelf| match has_too_many {
            true => shelf.kept.len(),
            false => shelf.bytes(),
        };
        let full = shelves.values_mut().filter(|shelf| !shelf.kept.is_empty()).max_by_key(share);
        // What is left is of requests that run.
        let Some(shelf) = full else { return };
        shelf.kept.pop_front();
    }
}

fn bytes_of(message: &Message) -> usize {
    let content = match &message.content {
        Content::Text(text) => text.len(),
        Content::Parts(parts) => parts.iter().map(|part| part.len() + OVERHEAD_BYTES).sum(),
    };
    let calls = message.tool_calls.iter().map(|call| {
        let arguments = match &call.arguments {
            Json::String(text) => text.len(),
            object => object.to_string().len(),
        };
        call.name.len() + arguments + OVERHEAD_BYTES
    });
    let reasoning = message.reasoning_content.as_ref().map_or(0, String::len);
    content + reasoning + calls.sum::<usize>() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use text::Role;

    /// Room for `max_responses`, and for so many times 10 000 bytes.
    fn limits(max_responses: usize, n: usize) -> Limits {
        Limits { max_responses, response_bytes: n * 10_000, ..Limits::default() }
    }

    /// Keeps a response of nearly 10 000 bytes.
    fn keep(
        store: &StoredResponses,
        caller: &str,
        id: &str,
        before: Option<&str>,
        limits: &Limits,
    ) {
        let before = before.map(|id| store.find(caller, id).unwrap().turn);
        let messages = vec![Message::new(Role::User, id.repeat(8_800 / id.len()))];
        let item = |kind: &str| vec![serde_json::json!({"id": format!("{kind}_{id}")})];
        let added = Added { messages, inputs: item("in"), outputs: item("out") };
        store.keep(caller, id, &Json::from(id), before, added, limits);
    }

    fn has(store: &StoredResponses, caller: &str, ids: &[&str]) -> Vec<bool> {
        ids.iter().map(|id| store.find(caller, id).is_some()).collect()
    }

    #[test]
    fn a_caller_finds_and_removes_its_own_responses_alone() {
        let store = StoredResponses::default();
        keep(&store, "alice", "a", None, &limits(9, 9));
        assert_eq!(store.find("alice", "a").unwrap().object, "\"a\"");
        assert!(store.find("bob", "a").is_none() && !store.remove("bob", "a"));
        assert!(store.remove("alice", "a") && !store.remove("alice", "a"));
        assert!(store.find("alice", "a").is_none());
        assert_eq!(store.with(|shelves| shelves["alice"].bytes()), 0);
    }

    #[test]
    fn the_oldest_goes_first_by_number_and_by_bytes() {
        for limits in [limits(2, 9), limits(9, 2)] {
            let store = StoredResponses::default();
            for id in ["a", "b", "c"] {
                keep(&store, "alice", id, None, &limits);
            }
            assert_eq!(has(&store, "alice", &["a", "b", "c"]), [false, true, true], "{limits:?}");
        }
    }

    #[test]
    fn whoever_keeps_most_makes_room() {
        for limits in [limits(3, 9), limits(9, 3)] {
            let store = StoredResponses::default();
            keep(&store, "bob", "b", None, &limits);
            for id in ["a", "c", "d", "e"] {
                keep(&store, "alice", id, None, &limits);
            }
            assert_eq!(has(&store, "bob", &["b"]), [true], "{limits:?}");
            assert_eq!(has(&store, "alice", &["a", "c", "d", "e"]), [false, false, true, true]);
        }
    }

    #[test]
    fn a_conversation_outlives_the_responses_that_it_continues_and_their_bytes_count() {
        let store = StoredResponses::default();
        let limits = limits(2, 4);
        keep(&store, "alice", "a", None, &limits);
        keep(&store, "alice", "b", Some("a"), &limits);
        keep(&store, "alice", "c", Some("b"), &limits);
        assert_eq!(has(&store, "alice", &["a", "b", "c"]), [false, true, true]);
        let conversation = store.find("alice", "c").unwrap().turn.conversation();
        let firsts = conversation.iter().map(|message| match &message.content {
            Content::Text(text) => text[..1].to_owned(),
            Content::Parts(_) => unreachable!("all are texts"),
        });
        assert_eq!(firsts.collect::<String>(), "abc");
        let bytes = store.with(|shelves| shelves["alice"].bytes());
        assert!((27_000..30_000).contains(&bytes), "{bytes}");
        let turn = store.find("alice", "c").unwrap().turn;
        let inputs: Vec<_> = turn.inputs().into_iter().map(|item| item.id.as_str()).collect();
        assert_eq!(inputs, ["in_a", "out_a", "in_b", "out_b", "in_c"]);
        drop(turn);
        // One that can never fit is not kept, and leaves nothing behind.
        let messages = vec![Message::new(Role::User, "x".repeat(50_000))];
        let added = Added { messages, ..Added::default() };
        store.keep("alice", "d", &Json::Null, None, added, &limits);
        assert_eq!(store.with(|shelves| shelves["alice"].bytes()), 0);
    }

    #[test]
    fn the_end_of_a_long_conversation_is_no_deep_recursion() {
        let store = StoredResponses::default();
        let limits = Limits { max_responses: 1, response_bytes: 1 << 30, ..Limits::default() };
        let mut before = None;
        for _ in 0..200_000 {
            store.keep("alice", "a", &Json::Null, before.take(), Added::default(), &limits);
            before = store.find("alice", "a").map(|kept| kept.turn);
        }
        drop(before);
        assert!(store.remove("alice", "a"));
        assert_eq!(store.with(|shelves| shelves["alice"].bytes()), 0);
    }
}
