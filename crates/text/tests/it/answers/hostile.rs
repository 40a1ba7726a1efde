//! Answers made to harm: nothing is lost, nothing panics, work stays linear. And what other
//! servers got wrong.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::runner;

const TEMPLATES: [&str; 10] = [
    HERMES,
    QWEN3_CODER,
    GLM,
    LLAMA3,
    MISTRAL_LIST,
    MISTRAL,
    HARMONY,
    DEEPSEEK,
    GEMMA,
    FUNCTION_GEMMA,
];

/// Fragments of all markup, and of JSON.
fn fragments() -> Vec<&'static str> {
    let mut fragments = SPECIAL.to_vec();
    fragments.extend(ADDED);
    fragments.extend([
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<function=",
        "now",
        ">",
        "<parameter=a>",
        "</parameter>",
        "</function>",
        "\n",
        " ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\\",
        "{\"name\": \"now\", \"arguments\": {}}",
        "{\"name\":",
        "\"arguments\"",
        "{\"a\": 1}",
        "é",
        "call:now{",
        "a:1",
        "functions.now",
        " to=",
        "assistant",
        "analysis",
        "final",
        "thought",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "```json\n",
        "```",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<",
        "</",
        "x",
    ]);
    fragments
}

#[test]
fn any_mixture_of_markup_ends_in_the_same_parts_however_it_is_cut() {
    for template in TEMPLATES {
        let format = format_of(template);
        let answer = prop::collection::vec(prop::sample::select(fragments()), 0..40);
        let check = |(answer, opens, seed): (Vec<&str>, bool, [u8; 32])| {
            let answer = answer.concat();
            let tail = if opens { "<think>" } else { "<|start|>assistant" };
            let pieces = pieces(&answer);
            let new = || AnswerParser::new(&format, &tools(), tail);
            let whole = parse(new(), &pieces, |rest| rest.len());
            let mut rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
            let cut = parse(new(), &pieces, |_| 1 + rng.next_u32() as usize % 9);
            prop_assert_eq!(&cut, &whole, "{:?}", answer);
            let calls = whole.iter().filter_map(|part| match part {
                Part::Call(call) => Some(call),
                _ => None,
            });
            for (idx, call) in calls.enumerate() {
                prop_assert_eq!(call.index, idx);
                prop_assert!(!call.name.is_empty());
                let is_object = serde_json::from_str::<text::JsonMap>(&call.arguments).is_ok();
                prop_assert!(is_object, "{:?}", call);
            }
            Ok(())
        };
        runner(1000).run(&(answer, any::<bool>(), any::<[u8; 32]>()), check).unwrap();
    }
}

#[test]
fn text_without_calls_comes_out_as_it_went_in() {
    let words =
        ["<", "tool", "_call>", "{", "}", "\"name\"", ":", " ", "\n", "é", "[TOOL", "x", "`"];
    for template in TEMPLATES {
        let format = format_of(template);
        let text = prop::collection::vec(prop::sample::select(words.to_vec()), 0..60);
        let check = |text: Vec<&str>| {
            let text = text.concat();
            if text.contains("<tool_call>") {
                return Ok(()); // Blanks beside a tag belong to it.
            }
            let parts = parse(AnswerParser::new(&format, &tools(), ""), &pieces(&text), |_| 1);
            let expected: Vec<Part> = Some(Part::Text(text))
                .into_iter()
                .filter(|p| *p != Part::Text(String::new()))
                .collect();
            prop_assert_eq!(parts, expected);
            Ok(())
        };
        runner(300).run(&text, check).unwrap();
    }
}

#[test]
fn a_malformed_call_loses_no_character_but_blanks() {
    let without_blanks = |text: &str| text.split_whitespace().collect::<String>();
    for template in [HERMES, QWEN3_CODER, GLM, DEEPSEEK] {
        let format = format_of(template);
        let answer = prop::collection::vec(prop::sample::select(fragments()), 0..20);
        let check = |answer: Vec<&str>| {
            // Reasoning tags go, and what only ends a call or is no markup of the format.
            let openers = ["<tool_call>", "<｜tool▁calls▁begin｜>"];
            let keeps =
                |f: &&str| openers.contains(f) || f.len() < 3 || f.starts_with("{\"name\":");
            let answer: String = answer.into_iter().filter(keeps).collect();
            let parts = parse(AnswerParser::new(&format, &tools(), ""), &pieces(&answer), |_| 1);
            if let [Part::Text(text)] = parts.as_slice() {
                prop_assert_eq!(without_blanks(text), without_blanks(&answer));
            }
            Ok(())
        };
        runner(500).run(&answer, check).unwrap();
    }
}

/// The time of a parse of `n_bytes` of `unit` again and again, by character.
fn time_of(template: &str, start: &str, unit: &str, n_bytes: usize) -> Duration {
    let format = format_of(template);
    let answer = start.to_owned() + &unit.repeat(n_bytes / unit.len());
    let pieces = pieces(&answer);
    let parser = AnswerParser::new(&format, &tools(), "");
    let started = Instant::now();
    parse(parser, &pieces, |_| 1);
    started.elapsed()
}

/// Whether `work` takes no more than some seconds; one of three tries on a busy machine.
fn is_within_seconds(work: impl Fn()) -> bool {
    (0..3).any(|_| {
        let started = Instant::now();
        work();
        started.elapsed() < Duration::from_secs(5)
    })
}

#[test]
fn hostile_output_takes_linear_time() {
    let value = "<tool_call>now<arg_key>a</arg_key><arg_value>";
    let parameter = "<function=now>\n<parameter=a>\n";
    for (template, start, unit) in [
        (HERMES, "", "<"),
        (HERMES, "", "<tool_call>"),
        (HERMES, "", "<tool_call>{"),
        (HERMES, "", "<tool_call>{\"name\": \"x\", \"arguments\": {\"a\": \""),
        (HERMES, "<tool_call>{\"name\": \"x\", \"arguments\": {\"a\": \"", "\\\" </tool_call>"),
        (HERMES, "<tool_call>", "["),
        (HERMES, "<tool_call>", " "),
        (HERMES, "x", " \n"),
        (HERMES, "", "<tool_call>{\"name\": \"x\"} "),
        (QWEN3, "<think>", " \n"),
        (QWEN3, "<think>", "</think"),
        (QWEN3, "", "<think>a</think>"),
        (QWEN3_CODER, "", parameter),
        (QWEN3_CODER, parameter, "</parameter>"),
        (QWEN3_CODER, parameter, "</parameter>\n\n\n\n\n\n\n\n\n\n"),
        (QWEN3_CODER, "<function=now>", "<parameter=a>1</parameter>"),
        (GLM, "", value),
        (GLM, value, "</arg_value> "),
        (GLM, value, "</arg_value><arg_key>a</arg_key><arg_value>"),
        (LLAMA3, "", "{\"name\": "),
        (MISTRAL, "", "[TOOL_CALLS]now[ARGS]{\"a\": ["),
        (MISTRAL_LIST, "", "[TOOL_CALLS][{\"name\": \"x\"}, "),
        (GEMMA, "", "<|tool_call>call:now{a:<|\"|>"),
        (GEMMA, "<|tool_call>call:now{a:", "[{a:"),
        (DEEPSEEK, "", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"a\": "),
        (HARMONY, "<|start|>", "<|channel|>"),
        (HARMONY, "", "<|channel|>commentary to=a<|message|>{"),
    ] {
        // Quadratic work takes 16 times as long. On a busy machine one try of five is undisturbed.
        let is_linear = (0..5).any(|_| {
            let quarter = time_of(template, start, unit, 100_000);
            let whole = time_of(template, start, unit, 400_000);
            println!("{start:?} {unit:?}: {quarter:?}, {whole:?}");
            whole < quarter * 8
        });
        assert!(is_linear, "{start:?} {unit:?}");
    }
}

#[test]
fn a_megabyte_of_hostile_output_takes_seconds_at_most() {
    let value = "<tool_call>now<arg_key>a</arg_key><arg_value>";
    for (template, start, unit) in [
        (HERMES, "", "<tool_call>{"),
        (QWEN3, "<think>", " \n"),
        (GLM, value, "</arg_value><arg_key>a</arg_key><arg_value>"),
        (HARMONY, "", "<|channel|>commentary to=a<|message|>{"),
    ] {
        let is_soon = is_within_seconds(|| {
            time_of(template, start, unit, 1_000_000);
        });
        assert!(is_soon, "{start:?} {unit:?}");
    }
}

#[test]
fn schemas_and_arguments_of_any_size_are_typed_in_linear_time() {
    let many = "<parameter=a>\n1\n</parameter>\n<parameter=b>\n1\n</parameter>\n".repeat(10_000);
    let answer = format!("<function=deep>\n{many}</function>");
    let every = serde_json::json!({"allOf": vec![serde_json::json!({"$ref": "#"}); 50]});
    let mut schema = every.clone();
    schema["properties"] = serde_json::json!({"a": {"$ref": "#"}, "b": {"type": "integer"}});
    let tool = serde_json::json!({"function": {"name": "deep", "parameters": schema}});
    assert!(is_within_seconds(|| {
        let parser = AnswerParser::new(&format_of(QWEN3_CODER), std::slice::from_ref(&tool), "");
        let parts = parse(parser, &pieces(&answer), |_| 7);
        assert_eq!(lines(&parts), [r#"call 0 deep {"a": 1, "b": 1}"#]);
    }));
}

// Bugs of other servers; the numbers are those of their trackers.

#[test]
fn vllm_mlx_43_93_107_163_no_markup_shows_in_a_stream() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let answer = format!("<think>\nhm\n</think>\n\nSo.\n{call}\n{call}");
    check(QWEN3, &answer, &["reasoning hm", "text So.", "call 0 now {}", "call 1 now {}"]);
    check(HARMONY, "<|pad|><|im_end|>Hi<|eot_id|>", &["text Hi"]);
}

#[test]
fn vllm_mlx_649_two_requests_share_no_state() {
    let format = format_of(QWEN3);
    let mut ours = AnswerParser::new(&format, &tools(), "");
    let mut theirs = AnswerParser::new(&format, &tools(), "");
    let mut parts = (Vec::new(), Vec::new());
    for (a, b) in [
        ("<thi", "Hello"),
        ("nk>secret", " <tool"),
        ("</think>", "_call>{\"name\""),
        ("Hi", ": \"now\"}"),
    ] {
        parts.0.extend(ours.push(a));
        parts.1.extend(theirs.push(b));
    }
    assert_eq!(lines(&joined(parts.0)), ["reasoning secret", "text Hi"]);
    assert_eq!(lines(&joined(parts.1)), ["text Hello", "call 0 now {}"]);
}

#[test]
fn lm_studio_1528_parallel_glm_calls_are_all_found() {
    let call =
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>";
    let made = |idx| format!("call {idx} get_weather {{\"city\": \"Oslo\"}}");
    check(GLM_COMPACT, &call.repeat(3), &[&made(0), &made(1), &made(2)]);
}

#[test]
fn mlx_lm_1406_devstral_arguments_are_kept() {
    let answer = "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}";
    check(MISTRAL, answer, &[r#"call 0 get_weather {"city": "Paris"}"#]);
}

#[test]
fn mlx_serve_287_streams_have_calls_as_soon_as_these_are_complete() {
    let mut parser = AnswerParser::new(&format_of(HERMES), &tools(), "");
    assert_eq!(parser.push("<tool_call>{\"name\": \"now\""), []);
    assert_eq!(lines(&parser.push("}")), ["call 0 now {}"]);
    assert_eq!(parser.push("</tool_call>"), []);
    assert_eq!(parser.finish(), []);
}

#[test]
fn a_call_of_a_function_that_nobody_offered_is_still_a_call() {
    check(HERMES, "<tool_call>{\"name\": \"rm\"}</tool_call>", &["call 0 rm {}"]);
}
