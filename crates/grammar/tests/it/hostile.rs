//! What callers send that cannot be used, or was made to do harm: an error that names the field,
//! and never a panic, a loop or memory without end.

use super::*;

fn refusal(rule: Rule) -> String {
    let error = grammars().begin(&at_once(rule), &[IM_END]).unwrap_err();
    error.to_string()
}

#[test]
fn what_cannot_be_used_is_refused_with_field_and_reason() {
    let check = |rule: Rule, field: &str, reason: &str| {
        let text = refusal(rule);
        assert!(text.starts_with(field) && text.contains(reason), "{text}");
    };
    check(schema("{"), "json_schema ", "is not JSON");
    check(schema("[]"), "json_schema ", "object or a boolean");
    check(schema("false"), "json_schema ", "no JSON text");
    check(schema(r#"{"type": "objekt"}"#), "json_schema ", "objekt");
    check(schema(r#"{"type": "string", "pattern": "("}"#), "json_schema ", "cannot be used");
    check(schema(r#"{"x-guidance": {}}"#), "json_schema ", "x-guidance");
    check(lark(r#"start: %json {"x-guidance": {}}"#), "lark ", "x-guidance");
    check(schema(r#"{"not": {"type": "string"}}"#), "json_schema ", "not");
    check(schema(r##"{"$ref": "#/$defs/none"}"##), "json_schema ", "none");
    check(
        schema(r#"{"oneOf": [{"type": "object"}, {"type": "object"}]}"#),
        "json_schema ",
        "anyOf",
    );
    check(regex("("), "regex ", "cannot be used");
    check(regex("(?=a)b"), "regex ", "look-around");
    check(regex(r"(a)\1"), "regex ", "cannot be used");
    check(lark("start: missing"), "lark ", "missing");
    check(lark("start: \"a"), "lark ", "cannot be used");
    check(lark("start: <|no_such_token|>"), "lark ", "no_such_token");
    check(lark(""), "lark ", "cannot be used");
}

#[test]
fn nothing_is_fetched() {
    let check = |text: &str| {
        for rule in [schema(text), lark(&format!("start: \"a\" %json {text}\n"))] {
            let text = refusal(rule);
            assert!(text.contains("nothing is fetched"), "{text}");
        }
    };
    check(r#"{"$ref": "http://localhost:1/schema.json"}"#);
    check(r#"{"items": {"anyOf": [{"$ref": "file:///etc/passwd"}]}}"#);
    check(r#"{"$dynamicRef": "other.json#a"}"#);
}

/// Nested, repeated and referring to itself.
fn hostile() -> Vec<(&'static str, Rule)> {
    let nested = |open: &str, n: usize, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(n), close.repeat(n))
    };
    let any_of = |i: usize| {
        let option = |k| format!(r#"{{"properties": {{"p{i}": {{"const": {k}}}}}}}"#);
        format!(r#"{{"anyOf": [{}]}}"#, (0..4).map(option).collect::<Vec<_>>().join(","))
    };
    let products = (0..40).map(any_of).collect::<Vec<_>>().join(",");
    let properties = |n: usize, of: &dyn Fn(usize) -> String| {
        let list = (0..n).map(|i| format!(r#""property_{i}": {}"#, of(i))).collect::<Vec<_>>();
        format!(r#"{{"type": "object", "properties": {{{}}}}}"#, list.join(","))
    };
    let any = |_| "{}".to_owned();
    let wide = properties(7, &|_| properties(500, &any));
    let doubling = |i: usize| format!("r{i}: r{} r{}\n", i + 1, i + 1);
    let doubled = (0..60).map(doubling).collect::<String>() + "r60: \"a\"\nstart: r0\n";
    let chain = (0..18_000).map(|i| format!("r{i}: r{}\n", i + 1)).collect::<String>();
    let tools = (0..30).map(|_| format!("\"a\" %json {}", properties(120, &any)));
    let tools = tools.collect::<Vec<_>>().join(" | ");
    vec![
        ("many tools", lark(&format!("start: {tools}\n"))),
        ("wide in Lark", lark(&format!("start: %json {}\n", properties(3_000, &any)))),
        ("deep schema", schema(&nested(r#"{"items":"#, 100, "{}", "}"))),
        ("deep JSON", schema(&nested(r#"{"items":"#, 50_000, "{}", "}"))),
        ("deep allOf", schema(&nested(r#"{"allOf":["#, 31, "{}", "]}"))),
        ("products", schema(&format!(r#"{{"allOf": [{products}]}}"#))),
        ("itself", schema(r##"{"$ref": "#"}"##)),
        (
            "cycle",
            schema(
                r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a"}"##,
            ),
        ),
        (
            "cycle of all",
            schema(
                r##"{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"},
            {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}"##,
            ),
        ),
        ("wide", schema(&wide)),
        ("too wide", schema(&properties(12_000, &any))),
        ("too many", schema(&properties(30, &|_| properties(400, &any)))),
        ("long string", schema(r#"{"type": "string", "maxLength": 1000000000}"#)),
        ("long array", schema(r#"{"type": "array", "items": {}, "minItems": 1000000000}"#)),
        ("pattern", schema(r#"{"type": "string", "pattern": "^(a?){5000}(a{500}){500}$"}"#)),
        ("nested repeats", regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}")),
        ("backtracking", regex("(a|a)*(a*)*(a+)+b{0,1000}[a-c]{500}c")),
        ("huge repeat", regex("a{4000000000}")),
        ("deep regex", regex(&nested("(", 8_000, "a", ")"))),
        ("long regex", regex(&"ab?".repeat(5_000))),
        ("subsets", regex(&format!("{}$", "(.*a.{12})&".repeat(200)))),
        ("states", regex("(?s:.*)a(?s:.{400})b(?s:.*)")),
        ("deep Lark", lark(&format!("start: {}", nested("(", 50_000, "\"a\"", ")")))),
        ("doubled", lark(&doubled)),
        ("chain", lark(&format!("start: r0\n{chain}r18000: \"a\"\n"))),
        ("left and right", lark("start: start start | \"a\" | start? start \"a\"*")),
        ("nothing", lark("start: start")),
        ("repeats", lark("start: ((\"a\"{0,1000}){0,1000}){0,1000}")),
        ("empty loop", lark("start: (\"\"*)* a?\na: (\"\" | a)*")),
        (
            "intersections",
            lark("start: A\nA: /(.*a.*){10}/ & /(.*b.*){10}/ & ~/.*(c.{30}){9}.*/\n"),
        ),
    ]
}

#[test]
fn hostile_grammars_come_to_an_end() {
    // As the engine does: rules may follow one another for long.
    let thread = std::thread::Builder::new().stack_size(256 << 20);
    let all = thread.spawn(|| {
        let mut grammars = grammars();
        let (mut n_refused, mut n_failed) = (0, 0);
        for (name, rule) in hostile() {
            let began = std::time::Instant::now();
            let mut rng = Rng(3);
            match grammars.begin(&at_once(rule), &[IM_END]) {
                Err(error) => {
                    n_refused += 1;
                    println!("{name}: {:?}, {error}", began.elapsed());
                }
                Ok(mut constraint) => {
                    let compiled = began.elapsed();
                    let mut n = 0;
                    while n < 60 && !constraint.is_over() {
                        let Ok(mask) = constraint.mask() else { break };
                        let all = (0..N_ROWS as u32).filter(|t| mask.allows(*t));
                        let all = all.collect::<Vec<_>>();
                        let token = all[rng.below(all.len())];
                        if token == IM_END || constraint.accept(token).is_err() {
                            break;
                        }
                        n += 1;
                    }
                    n_failed += u32::from(n < 60);
                    println!("{name}: {compiled:?}, {n} tokens, {:?} in all", began.elapsed());
                }
            }
        }
        println!("{n_refused} refused, {n_failed} ended early");
        assert!(n_refused > 5);
        // What came before costs nobody an answer.
        let mut constraint = grammars.begin(&at_once(regex("ab")), &[IM_END]).unwrap();
        assert!(!allowed(&mut constraint).is_empty());
    });
    all.unwrap().join().unwrap();
}

#[test]
fn a_stream_of_new_grammars_stays_within_the_budget() {
    let mut grammars = Grammars::new(Compiler::new(vocabulary()).unwrap().into(), 1 << 20);
    let mut most = 0;
    for i in 0..400 {
        let rule = schema(&format!(
            r#"{{"type": "object", "properties": {{"p{i}": {{"type": "string"}}}}}}"#
        ));
        grammars.begin(&at_once(rule.clone()), &[IM_END]).unwrap();
        grammars.begin(&at_once(rule), &[IM_END]).unwrap();
        assert!(grammars.kept_bytes() <= 1 << 20, "{}", grammars.kept_bytes());
        most = most.max(grammars.n_kept());
    }
    assert!((2..200).contains(&most), "{most}");
    // The newest is among those that are kept, the first is not.
    let n = grammars.n_kept();
    let newest = schema(r#"{"type": "object", "properties": {"p399": {"type": "string"}}}"#);
    assert!(grammars.begin_kept(&at_once(newest), &[IM_END]).is_some());
    let first = schema(r#"{"type": "object", "properties": {"p0": {"type": "string"}}}"#);
    assert!(grammars.begin_kept(&at_once(first.clone()), &[IM_END]).is_none());
    assert_eq!(grammars.n_kept(), n);
    // It may be compiled by whoever has the compiler, and twice is once.
    let compiler = Compiler::new(vocabulary()).unwrap();
    for _ in 0..2 {
        grammars.keep(first.clone(), compiler.compile(&first).unwrap());
        assert!(grammars.begin_kept(&at_once(first.clone()), &[IM_END]).is_some());
        assert!(grammars.n_kept() <= n + 1 && grammars.kept_bytes() <= 1 << 20);
    }
}
