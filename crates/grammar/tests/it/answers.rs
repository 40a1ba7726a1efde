//! Whatever is drawn from the masks matches.

use serde_json::Value;

use super::*;

/// Draws until the answer ends, closing brackets and quotes more often than chance would.
fn answer(grammars: &mut Grammars, rule: Rule, seed: u64) -> String {
    let vocabulary = vocabulary();
    let mut constraint = grammars.begin(&at_once(rule), &[IM_END, END_OF_TEXT]).unwrap();
    let (mut rng, mut text) = (Rng(seed), Vec::new());
    for _ in 0..2000 {
        let tokens = allowed(&mut constraint);
        assert!(tokens.iter().all(|t| *t < 2048 && *t != IM_START), "{tokens:?}");
        let closing =
            |t: &&u32| matches!(vocabulary.text(**t), b"\"" | b"}" | b"]") || [IM_END].contains(t);
        let closing = tokens.iter().filter(closing).copied().collect::<Vec<_>>();
        let from = if closing.is_empty() || rng.below(4) > 0 { &tokens } else { &closing };
        let token = from[rng.below(from.len())];
        if [IM_END, END_OF_TEXT].contains(&token) {
            return String::from_utf8(text).unwrap();
        }
        text.extend(vocabulary.text(token));
        constraint.accept(token).unwrap();
        if constraint.is_over() {
            return String::from_utf8(text).unwrap();
        }
    }
    panic!("no end after {}", String::from_utf8_lossy(&text));
}

fn check(rule: &Rule, matches: impl Fn(&str) -> bool) {
    let mut grammars = grammars();
    for seed in 0..60 {
        let text = answer(&mut grammars, rule.clone(), seed);
        assert!(matches(&text), "{rule:?} with seed {seed}: {text}");
    }
}

fn check_json(text: &str, matches: impl Fn(&Value) -> bool) {
    check(&schema(text), |answer| match serde_json::from_str(answer) {
        Ok(value) => matches(&value),
        // JSON knows no largest number.
        Err(error) => error.to_string().contains("number out of range"),
    });
}

#[test]
fn json_schemas_are_obeyed() {
    check_json(r#"{"type": "object"}"#, Value::is_object);
    let person = r##"{
        "type": "object", "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 20, "minLength": 1},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["a", "béta", 7]}},
            "next": {"$ref": "#/$defs/next"}
        },
        "required": ["name", "age"],
        "$defs": {"next": {"anyOf": [{"type": "null"}, {"const": {"x": [true]}}]}}
    }"##;
    check_json(person, |value| {
        let map = value.as_object().unwrap();
        let n = map["name"].as_str().unwrap().chars().count();
        let tags = map.get("tags").map_or(&[][..], |tags| tags.as_array().unwrap());
        let known = ["a".into(), "béta".into(), Value::from(7)];
        let next = map.get("next").unwrap_or(&Value::Null);
        map.keys().all(|key| ["name", "age", "tags", "next"].contains(&key.as_str()))
            && (1..=20).contains(&n)
            && map["age"].as_u64().is_some_and(|age| age <= 120)
            && tags.len() <= 3
            && tags.iter().all(|tag| known.contains(tag))
            && (next.is_null() || *next == serde_json::json!({"x": [true]}))
    });
    check_json(
        r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5}"#,
        |v| {
            let items = v.as_array().unwrap();
            (2..=5).contains(&items.len()) && items.iter().all(Value::is_boolean)
        },
    );
    check_json(
        r##"{"$defs": {"tree": {"type": "object", "additionalProperties": false,
        "properties": {"left": {"$ref": "#/$defs/tree"}, "n": {"type": "integer"}}}},
        "$ref": "#/$defs/tree"}"##,
        Value::is_object,
    );
    check_json("true", |_| true);
}

#[test]
fn blanks_in_json_come_to_an_end() {
    let mut grammars = grammars();
    let space = token(&vocabulary(), " ");
    let list = r#"{"type": "array", "items": {"type": "null"}}"#;
    for rule in [
        schema(list),
        schema("true"),
        lark(&format!("start: a | %json {list}\na: \"\\\"%json {{}}\" /\"\\/%json [{{}}]/ # \"")),
        lark(&format!("start: %lark {{\nstart: <|im_end|> | (%json{list})\n}}")),
        lark(r#"start: %regex {"substring_chars": "\"%json {}"} | %json true"#),
    ] {
        let mut constraint = grammars.begin(&at_once(rule.clone()), &[IM_END]).unwrap();
        constraint.accept(token(&vocabulary(), "[")).unwrap();
        let mut n = 0;
        while constraint.mask().unwrap().allows(space) {
            constraint.accept(space).unwrap();
            n += 1;
            assert!(n <= 64, "{rule:?}");
        }
        assert_eq!(n, 64, "{rule:?}");
    }
}

#[test]
fn what_only_looks_like_a_schema_in_a_grammar_stays_as_it_is() {
    let texts = |expected: &'static str| move |text: &str| text == expected;
    check(&lark(r#"start: "%json {}""#), texts("%json {}"));
    check(&lark(r#"start: "\"" "%json {}""#), texts("\"%json {}"));
    check(&lark("start: /a\\/%json [{}]/ // %json {}\n# \" %json {}"), |text| {
        ["a/%json {", "a/%json }"].contains(&text)
    });
}

#[test]
fn regular_expressions_are_obeyed() {
    let is_date = |text: &str| {
        let parts = text.split('-').collect::<Vec<_>>();
        parts.iter().map(|part| part.len()).eq([4, 2, 2])
            && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
    };
    check(&regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"), is_date);
    check(&regex("yes|no|maybe (not|so)"), |text| {
        ["yes", "no", "maybe not", "maybe so"].contains(&text)
    });
    check(&regex("é{3}/+"), |text| {
        text.strip_prefix("ééé")
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b == b'/'))
    });
}

#[test]
fn lark_grammars_are_obeyed() {
    let sum =
        "start: term (\"+\" term)*\nterm: NUMBER | \"(\" start \")\"\nNUMBER: /[1-9][0-9]?/\n";
    check(&lark(sum), |text| {
        let (mut depth, mut is_term) = (0i32, false);
        for c in text.chars() {
            let fits = match c {
                '0'..='9' => true,
                '+' => is_term,
                '(' => !is_term,
                ')' => is_term && depth > 0,
                _ => false,
            };
            if !fits {
                return false;
            }
            depth += i32::from(c == '(') - i32::from(c == ')');
            is_term = c.is_ascii_digit() || c == ')';
        }
        is_term && depth == 0
    });
}

#[test]
fn stop_tokens_come_exactly_where_a_grammar_may_end() {
    let mut grammars = grammars();
    let [a, b] = ["a", "b"].map(|text| token(&vocabulary(), text));
    // A stop token that is text, too, is none of the answer, and ends it where it may end.
    let mut constraint = grammars.begin(&at_once(regex("[ab]{2,4}")), &[b]).unwrap();
    for n in 0..4 {
        assert_eq!(constraint.mask().unwrap().allows(b), n >= 2, "after {n}");
        constraint.accept(a).unwrap();
    }
    let mut constraint = grammars.begin(&at_once(regex("a{2,4}")), &[IM_END]).unwrap();
    for n in 0..4 {
        assert_eq!(constraint.mask().unwrap().allows(IM_END), n >= 2, "after {n}");
        assert!(!constraint.is_over());
        constraint.accept(a).unwrap();
    }
    assert!(constraint.is_over());
}

#[test]
fn special_tokens_come_only_where_they_are_named() {
    let mut grammars = grammars();
    let any = "(?s:.{0,40})";
    let mut constraint = grammars.begin(&at_once(regex(any)), &[IM_END]).unwrap();
    let tokens = allowed(&mut constraint);
    assert!(tokens.contains(&IM_END) && tokens.contains(&THINK));
    assert!(!tokens.contains(&IM_START) && !tokens.contains(&END_OF_TEXT));
    assert!(tokens.iter().all(|token| *token < 2048));
    let named = "start: <|im_start|> \"a\" <|im_end|>";
    let mut constraint = grammars.begin(&at_once(lark(named)), &[IM_END]).unwrap();
    for expected in [IM_START, token(&vocabulary(), "a"), IM_END] {
        assert_eq!(allowed(&mut constraint), [expected]);
        constraint.accept(expected).unwrap();
    }
}

#[test]
fn masks_do_not_depend_on_who_else_uses_the_grammar() {
    let rule = || schema(r#"{"type": "object", "properties": {"a": {"type": "string"}}}"#);
    let masks = |grammars: &mut Grammars| {
        let mut constraint = grammars.begin(&at_once(rule()), &[IM_END]).unwrap();
        let mut rng = Rng(5);
        let step = |_| {
            let tokens = allowed(&mut constraint);
            let drawn = tokens[rng.below(tokens.len())];
            constraint.accept(drawn).unwrap();
            (tokens, drawn)
        };
        (0..12).map(step).collect::<Vec<_>>()
    };
    let mut shared = grammars();
    for seed in 0..5 {
        answer(&mut shared, rule(), seed);
    }
    assert_eq!(shared.n_kept(), 1);
    assert!(masks(&mut shared) == masks(&mut grammars()));
}
