//! Reasoning before the part that a grammar describes.

use protocol::{Reasoning, Tag};

use super::*;

fn after(opens: Option<Tag>, closes: Tag) -> Grammar {
    Grammar {
        rule: regex("(yes|no)"),
        reasoning: Some(Reasoning { opens, closes, max_tokens: None }),
    }
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

fn bounded(rule: Rule, opens: Option<Tag>, max_tokens: u32) -> Grammar {
    let closes = text("</think>");
    Grammar { rule, reasoning: Some(Reasoning { opens, closes, max_tokens: Some(max_tokens) }) }
}

#[test]
fn a_bound_ends_the_reasoning_with_its_tag_and_nothing_else() {
    for rule in [regex("(yes|no)"), Rule::Anything] {
        for n in [0usize, 1, 5] {
            let mut constraint =
                follow(&bounded(rule.clone(), None, n as u32), &["a"; 5][..n.min(5)]);
            let tokens = allowed(&mut constraint);
            let vocabulary = vocabulary();
            let begins = |t: &u32| b"</think>".starts_with(vocabulary.text(*t));
            assert!(!tokens.is_empty() && tokens.iter().all(begins), "{rule:?} {n} {tokens:?}");
            // However the tag is spelled, it comes to its end.
            for part in ["<", "/", "t", "h", "i", "n", "k", ">"] {
                assert!(constraint.needs_mask());
                assert!(constraint.mask().unwrap().allows(token(&vocabulary, part)), "{part}");
                constraint.accept(token(&vocabulary, part)).unwrap();
            }
            assert_eq!(constraint.needs_mask(), rule != Rule::Anything);
        }
    }
}

#[test]
fn where_anything_may_follow_masks_are_needed_near_the_bound_alone() {
    let mut constraint = follow(&bounded(Rule::Anything, Some(text("<think>")), 9), &[]);
    let vocabulary = vocabulary();
    let mut needed = Vec::new();
    for part in ["<think>", "a", "b", "c", "d", "e", "f", "g", "h", "i"] {
        needed.push(constraint.needs_mask());
        constraint.accept(token(&vocabulary, part)).unwrap();
    }
    let expected = [false, false, false, false, false, false, false, false, true, true];
    assert_eq!(needed, expected);
    // An answer that ends its reasoning earlier, or has none, is never held up.
    for parts in [&["<think>", "a", "</think>"][..], &["a", "b", "c"]] {
        let constraint = follow(&bounded(Rule::Anything, Some(text("<think>")), 9), parts);
        assert!(!constraint.needs_mask() && !constraint.is_over(), "{parts:?}");
    }
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
