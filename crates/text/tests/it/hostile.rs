//! Files and texts made to harm end in a clear error, soon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use text::{
    ChatInput, ChatTemplate, Error, Guard, MAX_CONFIG_BYTES, MAX_TEMPLATE_BYTES,
    MAX_TOKENIZER_BYTES, Message, Role, TemplateSource, Tokenizer,
};

use crate::small_tokenizers;

/// Compiles and renders; the error's text.
fn failure(source: &str) -> String {
    let source = TemplateSource { default: source.to_owned(), tool_use: None };
    let input = ChatInput { messages: vec![Message::new(Role::User, "hi")], ..Default::default() };
    let rendered = ChatTemplate::new(&source, BTreeMap::new())
        .and_then(|template| template.render(&input, &Guard::new([])?));
    match rendered {
        Err(Error::Model(says)) => says,
        other => panic!("expected an error of the template, got {other:?}"),
    }
}

#[test]
fn templates_that_loop_expand_or_recurse_are_stopped() {
    let nine_loops = "{% for a in range(9999) %}".repeat(9) + &"{% endfor %}".repeat(9);
    let nested_lists = "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}\
                        {% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    let started = Instant::now();
    for (source, says) in [
        (nine_loops.as_str(), "too much work"),
        (
            "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}\
          {% endfor %}{{ ns.s }}",
            "too much work",
        ),
        ("{{ 'x' * 9999999999 }}", "line 1"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "writes more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        (nested_lists, "nested too deeply"),
        ("{% for i in range(", "syntax error"),
        ("{{ 'never closed", "syntax error"),
        ("{{ [1, 2] | tojson(indent=99999999) }}", "indent"),
    ] {
        let error = failure(source);
        assert!(error.contains(says), "{}: {error}", &source[..40.min(source.len())]);
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn templates_nested_six_thousand_deep_are_refused() {
    for (open, close) in [("{% if 1 %}", "{% endif %}"), ("{{ (", ") }}"), ("{{ [", "] }}")] {
        let (open, close) = match open.strip_prefix("{{ ") {
            Some(inner) => (
                format!("{{{{ {}", inner.repeat(6000)),
                format!("{} }}}}", close.trim_end_matches(" }}").repeat(6000)),
            ),
            None => (open.repeat(6000), close.repeat(6000)),
        };
        assert!(failure(&format!("{open}{close}")).contains("chat_template"));
    }
    assert!(failure(&"x".repeat(MAX_TEMPLATE_BYTES + 1)).contains("at most"));
}

#[test]
fn broken_tokenizer_files_are_refused() {
    let byte_level = include_str!("../goldens/byte_level.json");
    let refused = |bytes: &[u8], config: Option<&str>, says: &str| {
        let error = Tokenizer::new(bytes, config, None).unwrap_err();
        assert!(matches!(&error, Error::Model(text) if text.contains(says)), "{error}");
    };
    for bytes in ["", "{}", "[]", "null", "{\"model\": 1}", &byte_level[..byte_level.len() / 2]] {
        refused(bytes.as_bytes(), None, "tokenizer.json");
    }
    refused(&[0xFF, 0xFE, 0], None, "tokenizer.json");
    refused(
        &byte_level.replace("\"merges\":[", "\"merges\":[[\"no\",\"such\"],").into_bytes(),
        None,
        "tokenizer.json",
    );
    refused("[".repeat(100_000).as_bytes(), None, "tokenizer.json");
    refused(&vec![b' '; MAX_TOKENIZER_BYTES + 1], None, "at most");
    refused(byte_level.as_bytes(), Some("{"), "tokenizer_config.json");
    refused(byte_level.as_bytes(), Some(&" ".repeat(MAX_CONFIG_BYTES + 1)), "at most");
}

#[test]
fn one_word_of_a_megabyte_is_encoded_in_seconds() {
    for (name, tokenizer) in small_tokenizers() {
        for (what, text) in [
            ("letters", "fox".repeat(333_334)),
            ("one letter", "a".repeat(1_000_000)),
            ("blanks", " ".repeat(1_000_000)),
            ("literals", "<|im_start|>".repeat(83_334)),
        ] {
            let started = Instant::now();
            let ids = tokenizer.encode_text(&text).unwrap();
            let took = started.elapsed();
            println!("{name}, {what}: {} bytes, {} ids, {took:?}", text.len(), ids.len());
            assert!(took < Duration::from_secs(60), "{name}, {what}: {took:?}");
        }
    }
}
