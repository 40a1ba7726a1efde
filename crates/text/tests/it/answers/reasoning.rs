//! Where reasoning begins and ends.

use super::*;

fn check_thinking(tail: &str, answer: &str, reasoning: &str, text: &str) {
    let parts = [("reasoning ", reasoning), ("text ", text)];
    let parts = parts.iter().filter(|(_, text)| !text.is_empty());
    let expected: Vec<String> = parts.map(|(kind, text)| format!("{kind}{text}")).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    for tools in [Vec::new(), tools()] {
        check_after(QWEN3, &tools, tail, answer, &expected);
    }
}

#[test]
fn reasoning_and_text_part_at_the_tags() {
    check_thinking("", "plain", "", "plain");
    check_thinking("", " a < b, <thin air", "", " a < b, <thin air");
    check_thinking("", "<think>\nhm, so\n</think>\n\nYes.", "hm, so", "Yes.");
    check_thinking("", "<think>\n\n</think>\n\nNo.\n", "", "No.\n");
    check_thinking("...assistant\n<think>\n", "so\n\nthen\n</think>\nDone", "so\n\nthen", "Done");
    check_thinking("<think>\n\n</think>\n\n", "Done", "", "Done");
    check_thinking("", "\n<think>hm</think>Done", "hm", "Done");
    check_thinking("", "<think>never closed", "never closed", "");
    check_thinking("<think>", "never closed\n", "never closed\n", "");
    check_thinking("<think>\n", "<think>\nopened twice\n</think>\nYes", "opened twice", "Yes");
    check_thinking("", "no opening</think> tag", "", "no opening</think> tag");
    check(QWEN3, "é<think>é</think>é", &["text é", "reasoning é", "text é"]);
    check(
        QWEN3,
        "<think>a</think>b<think>c</think>d",
        &["reasoning a", "text b", "reasoning c", "text d"],
    );
    check_after(GLM_COMPACT, &[], "<|assistant|></think>", "Hi", &["text Hi"]);
    check_after(DEEPSEEK, &[], "<｜Assistant｜><think>", "a</think>b", &["reasoning a", "text b"]);
}

#[test]
fn tags_that_are_special_tokens_count_as_these_alone() {
    check(MISTRAL, "[THINK]so[/THINK]Yes", &["reasoning so", "text Yes"]);
    check(GEMMA, "<|channel>thought\nso\n<channel|>Yes", &["reasoning so", "text Yes"]);
    check(GEMMA, "<|channel>thoughts<channel|>", &["reasoning s"]);
    let tail = "<|turn>model\n<|channel>thought\n<channel|>";
    check_after(GEMMA, &[], tail, "Yes", &["text Yes"]);
    check_after(
        GEMMA,
        &[],
        "<|channel>thought\n",
        "so<channel|>Yes",
        &["reasoning so", "text Yes"],
    );
    let parser = AnswerParser::new(&format_of(MISTRAL), &tools(), "");
    let spelled = "[THINK]so[/THINK][TOOL_CALLS]now[ARGS]{}";
    let parts = parse(parser, &[Piece::Text(spelled.into())], |_| 1);
    assert_eq!(parts, [Part::Text(spelled.into())]);
}

#[test]
fn text_is_shown_as_soon_as_it_cannot_be_a_tag() {
    let mut parser = AnswerParser::new(&format_of(QWEN3), &[], "");
    assert_eq!(parser.push("ab<"), [Part::Text("ab".into())]);
    assert_eq!(parser.push("c "), [Part::Text("<c ".into())]);
    let mut parser = AnswerParser::new(&format_of(QWEN3), &tools(), "<think>");
    assert!(parser.in_reasoning());
    assert_eq!(parser.push("ab \n"), [Part::Reasoning("ab".into())]);
    assert_eq!(parser.push("</think>"), []);
    assert!(!parser.in_reasoning());
    assert_eq!(parser.push("\n\nc "), [Part::Text("c".into())]);
    assert_eq!(parser.push("d<tool"), [Part::Text(" d".into())]);
    assert_eq!(parser.finish(), [Part::Text("<tool".into())]);
}

#[test]
fn a_call_ends_the_reasoning_and_a_mention_of_one_does_not() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let made = "call 0 now {}";
    check(QWEN3, &format!("<think>\nhm\n{call}"), &["reasoning hm", made]);
    check(
        QWEN3,
        &format!("<think>hm {call}\n</think>\nDone"),
        &["reasoning hm", made, "text Done"],
    );
    check(QWEN3, &format!("<think>hm</think>\n\n{call}"), &["reasoning hm", made]);
    check(
        QWEN3,
        "<think>I use <tool_call> {name} </think>Yes",
        &["reasoning I use <tool_call> {name}", "text Yes"],
    );
    check(
        QWEN3,
        &format!("<think>a</think>{call}<think>b</think>c"),
        &["reasoning a", made, "reasoning b", "text c"],
    );
}

#[test]
fn channels_of_harmony_are_reasoning_text_and_calls() {
    let tail = "<|end|><|start|>assistant";
    let check = |answer: &str, expected: &[&str]| {
        check_after(HARMONY, &tools(), tail, answer, expected);
    };
    let thought = "<|channel|>analysis<|message|>hm\n<|end|>";
    let said = "<|start|>assistant<|channel|>final<|message|>Yes.";
    check(&format!("{thought}{said}"), &["reasoning hm\n", "text Yes."]);
    check(&format!("{thought}{said}<|return|>"), &["reasoning hm\n", "text Yes."]);
    check("<|channel|>final<|message|> a <b> \n", &["text  a <b> \n"]);
    let preamble = "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>";
    check(&format!("{thought}{preamble}{said}"), &["reasoning hm\n", "text I look.\n\nYes."]);
    check(&format!("{thought}<|start|>assistant{thought}"), &["reasoning hm\n\n\nhm\n"]);
    let bodies = [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather<|channel|>commentary json<|message|>",
        " to=functions.get_weather<|channel|>commentary json<|message|>",
    ];
    for header in bodies {
        let call = format!("{thought}<|start|>assistant{header}{{\"city\": \"Oslo\"}}");
        let expected = ["reasoning hm\n", "call 0 get_weather {\"city\": \"Oslo\"}"];
        check(&call, &expected);
        check(&format!("{call}<|call|>"), &expected);
        check(
            &header.replace("functions.get_weather", "browser.open"),
            &["call 0 browser.open {}"],
        );
    }
    check("plain text", &["text plain text"]);
    check("<|channel|>analysis", &[]);
    let cut = "<|channel|>commentary to=functions.now<|message|>{\"a\": ";
    check(cut, &[&format!("text {cut}")]);
    check_after(HARMONY, &[], "raw", "Once <|end|>", &["text Once "]);
    check_after(HARMONY, &[], tail, "<|channel|>commentary to=python<|message|>1+1", &["text 1+1"]);
    let begun = "<|start|>assistant<|channel|>final<|message|>The";
    check_after(HARMONY, &[], begun, " end", &["text  end"]);
}

#[test]
fn no_word_spells_a_channel() {
    let spelled = "<|channel|>analysis<|message|>so<|end|><|start|>assistant to=functions.now";
    let format = format_of(HARMONY);
    let mut pieces = pieces("<|channel|>final<|message|>");
    pieces.push(Piece::Text(spelled.into()));
    let parser = AnswerParser::new(&format, &tools(), "<|start|>assistant");
    assert_eq!(parse(parser, &pieces, |_| 1), [Part::Text(spelled.into())]);
}
