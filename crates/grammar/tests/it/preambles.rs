//! Reasoning before the part that a grammar describes.

use protocol::{Reasoning, Tag};

use super::*;

fn after(opens: Option<Tag>, closes: Tag) -> Grammar {
    Grammar { rule: regex("(yes|no)"), reasoning: Some(Reasoning { opens, closes }) }
}

fn text(tag: &str) -> Tag {
    Tag::Text(tag.to_owned())
}

/// Goes through `parts`, each of which must be allowed as one token; gives the end of it.
fn follow(grammar: &Grammar, parts: &[&str]) -> Constraint {
    let vocabulary = vocabulary();
    let mut constraint = grammars().begin(grammar, &[IM_END]).unwrap();
    for part in parts {
        let token = token(&vocabulary, part);
        assert!(constraint.mask().unwrap().allows(token), "{part} of {parts:?}");
        constraint.accept(token).unwrap();
    }
    constraint
}

#[test]
fn reasoning_may_hold_anything_but_stop_tokens() {
    for closes in [text("</think>"), Tag::Tokens(vec![END_THINK])] {
        let mut constraint = follow(&after(None, closes), &["a", "<", "/", "t"]);
        let tokens = allowed(&mut constraint);
        assert!(!tokens.contains(&IM_END) && tokens.contains(&IM_START));
        assert!(tokens.len() > 2000 && tokens.iter().all(|token| *token < 2048));
    }
}

#[test]
fn the_grammar_begins_where_the_tag_ends_however_it_is_spelled() {
    let pieces = ["<", "/", "t", "h", "i", "n", "k", ">"];
    let whole = ["</think>"];
    for spelled in [&pieces[..], &whole] {
        for blanks in [&[][..], &["\n"], &["\n", " "]] {
            let parts = [&["a", "<"], spelled, blanks].concat();
            let mut constraint = follow(&after(None, text("</think>")), &parts);
            let tokens = allowed(&mut constraint);
            assert!(!tokens.contains(&IM_END) && !tokens.contains(&token(&vocabulary(), "a")));
            let yes = token(&vocabulary(), "y");
            assert!(tokens.contains(&yes));
            constraint.accept(yes).unwrap();
            let e = token(&vocabulary(), "e");
            let s = token(&vocabulary(), "s");
            assert!(allowed(&mut constraint).contains(&e));
            constraint.accept(e).unwrap();
            constraint.accept(s).unwrap();
            assert!(constraint.is_over());
        }
    }
}

#[test]
fn a_tag_of_tokens_is_not_forged_by_text() {
    let grammar = after(None, Tag::Tokens(vec![IM_START, THINK]));
    let vocabulary = vocabulary();
    let mut constraint = follow(&grammar, &["<think>", "<", "t"]);
    constraint.accept(IM_START).unwrap();
    constraint.accept(IM_START).unwrap();
    assert!(constraint.mask().unwrap().allows(token(&vocabulary, "a")));
    constraint.accept(THINK).unwrap();
    assert!(!constraint.mask().unwrap().allows(token(&vocabulary, "a")));
}

#[test]
fn blanks_after_reasoning_come_to_an_end() {
    let mut constraint = follow(&after(None, text("</think>")), &["</think>"]);
    let newline = token(&vocabulary(), "\n");
    let mut n = 0;
    while constraint.mask().unwrap().allows(newline) {
        constraint.accept(newline).unwrap();
        n += 1;
    }
    assert_eq!(n, 16);
    assert!(!allowed(&mut constraint).is_empty());
}

#[test]
fn no_token_ends_the_tag_and_goes_on_with_more_than_blanks() {
    let vocabulary = vocabulary();
    // Some token begins with a quote and goes on, as tags may end.
    let crosses =
        |text: &[u8]| text.len() > 1 && text[0] == b'"' && !text[1..].trim_ascii().is_empty();
    let all = 0..N_ROWS as u32;
    let crossing = all.filter(|t| crosses(vocabulary.text(*t))).collect::<Vec<_>>();
    assert!(!crossing.is_empty());
    let mut constraint = follow(&after(None, text("a\"")), &["a"]);
    let tokens = allowed(&mut constraint);
    assert!(crossing.iter().all(|token| !tokens.contains(token)));
    let mut constraint = follow(&after(None, text("a\"")), &["b"]);
    let tokens = allowed(&mut constraint);
    assert!(crossing.iter().all(|token| tokens.contains(token)));
}

#[test]
fn an_answer_that_does_not_open_its_reasoning_is_in_the_grammar_at_once() {
    for opens in [text("<think>"), Tag::Tokens(vec![THINK])] {
        let grammar = after(Some(opens), text("</think>"));
        let vocabulary = vocabulary();
        let mut constraint = follow(&grammar, &[]);
        let tokens = allowed(&mut constraint);
        assert!(tokens.contains(&THINK) && tokens.contains(&token(&vocabulary, "y")));
        assert!(!tokens.contains(&token(&vocabulary, "a")) && !tokens.contains(&IM_END));
        let mut constraint = follow(&grammar, &["y"]);
        assert!(!allowed(&mut constraint).contains(&THINK));
        let mut constraint = follow(&grammar, &["<think>", "a", "</think>", "\n", "n"]);
        assert_eq!(allowed(&mut constraint), [token(&vocabulary, "o")]);
    }
    let grammar = after(Some(text("<think>")), text("</think>"));
    let mut constraint = follow(&grammar, &["<", "t"]);
    let tokens = allowed(&mut constraint);
    let vocabulary = vocabulary();
    assert!(tokens.contains(&token(&vocabulary, "h")));
    let is_rest = |t: &u32| b"hink>".starts_with(vocabulary.text(*t));
    assert!(tokens.iter().all(is_rest), "{tokens:?}");
}
