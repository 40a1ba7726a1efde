//! The streaming decoder equals the whole decode, and stop strings equal a naive model.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use text::{Error, MAX_STOPS, StopMatcher};

use crate::{runner, small_tokenizers};

#[test]
fn streamed_pieces_joined_are_the_whole_decode() {
    for (name, tokenizer) in small_tokenizers() {
        let n_ids = tokenizer.vocab_size() as u32 + 3;
        // Mostly bytes, where characters are incomplete; all ids else.
        let ids = prop::collection::vec(prop_oneof![0..n_ids, 0..n_ids.min(262)], 0..40);
        let check = |(ids, with_special): (Vec<u32>, bool)| {
            let mut stream = tokenizer.detokenizer(with_special).unwrap();
            let (mut text, mut bytes) = (String::new(), Vec::new());
            for (at, &id) in ids.iter().enumerate() {
                if with_special || !tokenizer.is_special(id) {
                    bytes.extend(stream.bytes(id));
                }
                text += &stream.push(id);
                let so_far = tokenizer.decode(&ids[..=at], with_special).unwrap();
                prop_assert!(text.len() <= so_far.len() + 2, "{name}: nothing is made up");
            }
            text += &stream.finish();
            if let Ok(read) = String::from_utf8(bytes) {
                prop_assert_eq!(&read, &text, "{}", name);
            }
            prop_assert_eq!(text, tokenizer.decode(&ids, with_special).unwrap(), "{}", name);
            Ok(())
        };
        runner(3000).run(&(ids, any::<bool>()), check).unwrap();
    }
}

#[test]
fn text_streams_without_half_characters_or_repairable_replacements() {
    let text = "naïve 🦀 日本 fox";
    for (name, tokenizer) in small_tokenizers() {
        if name == "metaspace" {
            continue; // It has no token for these characters.
        }
        let ids = tokenizer.encode_text(text).unwrap();
        let mut stream = tokenizer.detokenizer(false).unwrap();
        let (mut pieces, mut bytes) = (Vec::new(), Vec::new());
        for id in ids {
            bytes.push(stream.bytes(id));
            pieces.push(stream.push(id));
        }
        pieces.push(stream.finish());
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{name}: {pieces:?}");
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 5, "{name}");
        assert_eq!(pieces.concat(), text, "{name}");
        let is_part = |bytes: &Vec<u8>| std::str::from_utf8(bytes).is_err();
        assert!(bytes.iter().any(is_part), "{name}: {bytes:?}");
        assert_eq!(bytes.concat(), text.as_bytes(), "{name}");
    }
}

#[test]
fn an_incomplete_character_comes_out_as_one_replacement_at_the_end() {
    let (_, tokenizer) = &small_tokenizers()[0];
    let crab = tokenizer.token_to_id("ð").unwrap(); // The byte 0xF0.
    let mut stream = tokenizer.detokenizer(false).unwrap();
    assert_eq!((stream.push(crab), stream.finish()), (String::new(), "\u{FFFD}".into()));
    let mut stream = tokenizer.detokenizer(false).unwrap();
    let letter = tokenizer.token_to_id("a").unwrap();
    assert_eq!(stream.push(crab) + &stream.push(letter), "\u{FFFD}a");
}

#[test]
fn a_million_tokens_stream_in_linear_time() {
    for (name, tokenizer) in small_tokenizers() {
        let id = tokenizer.token_to_id("<0xF0>").or(tokenizer.token_to_id("ð")).unwrap_or(9);
        let mut stream = tokenizer.detokenizer(false).unwrap();
        let started = Instant::now();
        let n_bytes = (0..1_000_000).map(|_| stream.push(id).len()).sum::<usize>();
        let n_bytes = n_bytes + stream.finish().len();
        println!("{name}: {n_bytes} bytes in {:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(30), "{name}: {:?}", started.elapsed());
    }
}

/// The text before the stop string that ends first (the longest of those), and its index.
fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for end in 0..=text.len() {
        let ending = |stop: &String| text.as_bytes()[..end].ends_with(stop.as_bytes());
        let complete = stops.iter().enumerate().filter(|(_, stop)| ending(stop));
        if let Some((idx, stop)) = complete.rev().max_by_key(|(_, stop)| stop.len()) {
            return (text[..end - stop.len()].to_owned(), Some(idx));
        }
    }
    (text.to_owned(), None)
}

#[test]
fn stop_strings_behave_as_the_naive_model_however_the_text_is_cut() {
    let stops = prop::collection::vec("[abü]{1,5}", 0..4);
    let pieces = prop::collection::vec("[abü]{0,4}", 0..12);
    let check = |(stops, pieces): (Vec<String>, Vec<String>)| {
        let mut matcher = StopMatcher::new(&stops).unwrap();
        let (mut shown, mut stopped) = (String::new(), None);
        let mut read = String::new();
        for piece in &pieces {
            let output = matcher.push(piece);
            shown += &output.text;
            stopped = output.stopped;
            read += piece;
            if stopped.is_none() {
                // What is held back is the beginning of a stop string, and no more.
                let held = &read[shown.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|s| s.starts_with(held)));
            }
        }
        shown += &matcher.finish();
        prop_assert_eq!((shown, stopped), naive(&pieces.concat(), &stops));
        Ok(())
    };
    runner(5000).run(&(stops, pieces), check).unwrap();
}

#[test]
fn stop_strings_that_cannot_be_used_are_refused() {
    for (stops, says) in [
        (vec!["a".to_owned(), String::new()], "stop[1] is empty"),
        (vec!["x".repeat(5000)], "stop[0] has 5000 bytes"),
        (vec!["x".to_owned(); MAX_STOPS + 1], "at most 64"),
    ] {
        let error = StopMatcher::new(&stops).unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.contains(says)), "{error}");
    }
}

#[test]
fn a_hostile_stop_string_costs_linear_time() {
    let stop = "a".repeat(4000) + "b";
    let mut matcher = StopMatcher::new(&[stop]).unwrap();
    let started = Instant::now();
    let n_shown: usize = (0..1_000_000).map(|_| matcher.push("a").text.len()).sum();
    assert_eq!(n_shown + matcher.finish().len(), 1_000_000);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}
