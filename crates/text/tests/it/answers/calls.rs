//! Calls in each syntax: what models write, and what they write wrongly.

use super::*;

const PARIS: &str = r#"{"city": "Paris"}"#;

#[test]
fn hermes_calls_are_json_between_tags() {
    let call =
        format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {PARIS}}}\n</tool_call>");
    let made = r#"call 0 get_weather {"city": "Paris"}"#;
    let again = r#"call 1 get_weather {"city": "Paris"}"#;
    for template in [HERMES, QWEN3] {
        check(template, &call, &[made]);
        check(template, &format!("Let me see.\n\n{call}\n"), &["text Let me see.", made]);
        check(template, &format!("{call}\n{call}"), &[made, again]);
        check(template, &format!("{call}\nAnd so on. "), &[made, "text And so on. "]);
        check(template, call.trim_end_matches("\n</tool_call>"), &[made]);
        check(template, &call.replace("\n</tool_call>", &call), &[made, again]);
        check(template, &call.replace('\n', ""), &[made]);
        let two =
            "<tool_call>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\"}]</tool_call>.";
        check(template, two, &["call 0 now {}", "call 1 now {}", "text ."]);
    }
}

#[test]
fn arguments_are_an_object_however_models_spell_it() {
    let made = |arguments: &str| vec![format!("call 0 f {arguments}")];
    let cases = [
        (
            r#"{"name": "f", "arguments": {"n": 12345678901234567890123, "x": 1.50}}"#,
            made(r#"{"n": 12345678901234567890123, "x": 1.50}"#),
        ),
        (r#"{"name": "f", "arguments": "{\"a\": 1}"}"#, made(r#"{"a": 1}"#)),
        (r#"{"name": "f", "arguments": ""}"#, made("{}")),
        (r#"{"name": "f", "arguments": null}"#, made("{}")),
        (r#"{"name": "f"}"#, made("{}")),
        (r#"{"name": "f", "parameters": {"a": []}}"#, made(r#"{"a": []}"#)),
        (r#"{"type": "function", "name": "f", "arguments": {}}"#, made("{}")),
        (r#"{"type": "function", "function": {"name": "f", "arguments": {}}}"#, made("{}")),
        (r#"{"arguments": {"a": "</tool_call>"}, "name": "f"}"#, made(r#"{"a": "</tool_call>"}"#)),
        ("{\"name\": \"f\", \"arguments\": {\"a\": \"x\ny\"}}", made(r#"{"a": "x\ny"}"#)),
    ];
    for (object, expected) in cases {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(HERMES, &format!("<tool_call>{object}</tool_call>"), &expected);
    }
}

#[test]
fn what_is_no_call_comes_out_as_text_with_its_markup() {
    let texts = [
        "<tool_call>",
        "<tool_call> is how I call.",
        "<tool_call>\n{\"name\": \"now\", \"argu",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": }}\n</tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": [1]}\n</tool_call>",
        "<tool_call>\n{\"name\": \"\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": 7, \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": \"\\ud800\"}}\n</tool_call>",
        "<tool_call>\n{\"city\": \"Paris\"}\n</tool_call>",
        "<tool_call>\nnow()\n</tool_call>",
        "a </tool_call> b",
    ];
    for text in texts {
        check(HERMES, text, &[&format!("text {text}")]);
    }
    let texts = [
        "<tool_call>\n<function=now>\n<parameter=a>\n1\n",
        "<tool_call>\n<function=now>\n<parameter=a>\n1\n</parameter>\n",
        "<tool_call>\n<function=now>\nthen\n</function>\n</tool_call>",
        "<function=a b>",
    ];
    for text in texts {
        check(QWEN3_CODER, text, &[&format!("text {text}")]);
    }
    for text in [
        "<tool_call>now",
        "<tool_call>now\n<arg_key>a</arg_key>\n<arg_value>b",
        "<tool_call>no w</tool_call>",
    ] {
        check(GLM, text, &[&format!("text {text}")]);
    }
    for text in [
        "[TOOL_CALLS]now",
        "[TOOL_CALLS]now[ARGS]{\"a\": ",
        "[TOOL_CALLS]now[ARGS]x",
        "[TOOL_CALLS] and so on",
    ] {
        check(MISTRAL, text, &[&format!("text {text}")]);
    }
    for text in
        ["<|tool_call>call:now{", "<|tool_call>call:now{a:<|\"|>}<tool_call|>", "<|tool_call>now{}"]
    {
        check(GEMMA, text, &[&format!("text {text}")]);
    }
}

#[test]
fn a_call_behind_a_malformed_one_is_found() {
    let call = "<tool_call>{\"name\": \"now\"}</tool_call>";
    check(HERMES, &format!("<tool_call>{call}"), &["text <tool_call>", "call 0 now {}"]);
    check(
        HERMES,
        &format!("<tool_call>{{\"name\": \"now\", {call}"),
        &["text <tool_call>{\"name\": \"now\",", "call 0 now {}"],
    );
    check(
        MISTRAL,
        "[TOOL_CALLS]no[TOOL_CALLS]now[ARGS]{}",
        &["text [TOOL_CALLS]no", "call 0 now {}"],
    );
}

#[test]
fn without_tools_nothing_is_a_call() {
    for (template, answer) in [
        (HERMES, "<tool_call>{\"name\": \"now\"}</tool_call>"),
        (LLAMA3, "{\"name\": \"now\", \"parameters\": {}}"),
        (GLM, "<tool_call>now</tool_call>"),
    ] {
        check_after(template, &[], "", answer, &[&format!("text {answer}")]);
    }
}

#[test]
fn qwen3_coder_values_are_typed_by_the_schema() {
    let call = |arguments: &[(&str, &str)]| {
        let argument = |(key, value)| format!("<parameter={key}>\n{value}\n</parameter>\n");
        let arguments: String = arguments.iter().map(|(k, v)| argument((k, v))).collect();
        format!("<tool_call>\n<function=get_weather>\n{arguments}</function>\n</tool_call>")
    };
    let check_one = |key: &str, value: &str, json: &str| {
        let made = format!("call 0 get_weather {{\"{key}\": {json}}}");
        check(QWEN3_CODER, &call(&[(key, value)]), &[&made]);
    };
    check_one("city", "Paris", r#""Paris""#);
    check_one("city", "7", r#""7""#);
    check_one("city", " two\n lines\n", r#"" two\n lines\n""#);
    check_one("city", "", r#""""#);
    check_one("city", "a </parameter> b <parameter", r#""a </parameter> b <parameter""#);
    check_one("city", "</parameter></parameter>", r#""</parameter></parameter>""#);
    check_one("days", "7", "7");
    check_one("days", "seven", r#""seven""#);
    check_one("metric", "True", "true");
    check_one("metric", "false", "false");
    check_one("hours", "[1, \"2\"]", "[1, \"2\"]");
    check_one("place", "{\"lat\": 1.50}", "{\"lat\": 1.50}");
    check_one("note", "null", "null");
    check_one("note", "12", r#""12""#);
    check_one("scale", "2", r#""2""#);
    check_one("unheard", "2", "2");
    check_one("unheard", "2 of", r#""2 of""#);
    let made = r#"call 0 get_weather {"city": "Oslo", "days": 2}"#;
    let whole = call(&[("city", "Oslo"), ("days", "2")]);
    check(QWEN3_CODER, &whole, &[made]);
    check(QWEN3_CODER, whole.trim_start_matches("<tool_call>\n"), &[made]);
    check(QWEN3_CODER, &whole.replace("</function>\n", ""), &[made]);
    check(QWEN3_CODER, &call(&[("city", "Rome"), ("city", "Oslo"), ("days", "2")]), &[made]);
    let again = made.replace("call 0", "call 1");
    check(QWEN3_CODER, &format!("So:\n\n{whole}\n{whole}\n"), &["text So:", made, &again]);
    check(
        QWEN3_CODER,
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        &["call 0 now {}"],
    );
    check(QWEN3_CODER, "<tool_call>{\"name\": \"now\"}</tool_call>", &["call 0 now {}"]);
}

#[test]
fn glm_calls_have_keys_and_values_between_tags() {
    let spread = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value> Oslo</arg_value>\n\
                  <arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>";
    let compact = spread.replace('\n', "");
    let made = r#"call 0 get_weather {"city": " Oslo", "days": 2}"#;
    for template in [GLM, GLM_COMPACT] {
        check(template, spread, &[made]);
        check(template, &compact, &[made]);
        check(template, &format!("\n<think>hm</think>\n{compact}"), &["reasoning hm", made]);
        check(template, "<tool_call>now</tool_call>", &["call 0 now {}"]);
        check(template, "<tool_call>\nnow\n</tool_call>", &["call 0 now {}"]);
    }
}

#[test]
fn llama_calls_are_bare_objects_at_the_start() {
    let call = r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#;
    let made = r#"call 0 get_weather {"city": "Paris"}"#;
    check(LLAMA3, call, &[made]);
    check(LLAMA3, &format!("\n\n{call}<|eot_id|>"), &[made]);
    check(LLAMA3, &format!("<|python_tag|>{call}"), &[made]);
    check(LLAMA3, &call.replace("{\"name\"", "{\"type\": \"function\", \"name\""), &[made]);
    check(LLAMA3, &format!("{call}; {call}"), &[made, &made.replace("call 0", "call 1")]);
    let unknown = call.replace("get_weather", "Bob");
    check(LLAMA3, &unknown, &[&format!("text {unknown}")]);
    check(LLAMA3, &format!("<|python_tag|>{unknown}"), &[&made.replace("get_weather", "Bob")]);
    check(LLAMA3, r#"{"answer": 42}"#, &[r#"text {"answer": 42}"#]);
    check(LLAMA3, &format!("As JSON: {call}"), &[&format!("text As JSON: {call}")]);
    check(LLAMA3, "<|python_tag|>print(1)", &["text <|python_tag|>print(1)"]);
    let mut parser = AnswerParser::new(&format_of(LLAMA3), &tools(), "");
    assert_eq!(parser.push("{\"answer\":"), [Part::Text("{\"answer\":".into())], "at once");
}

#[test]
fn mistral_calls_are_a_list_or_names_with_arguments() {
    let made = r#"call 0 get_weather {"city": "Paris"}"#;
    let again = r#"call 1 get_weather {"city": "Paris"}"#;
    for template in [MISTRAL, MISTRAL_LIST] {
        let one = format!("[TOOL_CALLS]get_weather[ARGS]{PARIS}");
        check(template, &one, &[made]);
        check(template, &format!("Well. {one}{one}"), &["text Well.", made, again]);
        check(template, &format!("[TOOL_CALLS] get_weather {PARIS}"), &[made]);
        check(
            template,
            &format!("[TOOL_CALLS]get_weather[CALL_ID]abc123def[ARGS]{PARIS}"),
            &[&format!("{made} id abc123def")],
        );
        let item = format!("{{\"name\": \"get_weather\", \"arguments\": {PARIS}}}");
        check(template, &format!("[TOOL_CALLS] [{item}]"), &[made]);
        check(template, &format!("[TOOL_CALLS][{item}, {item}] a, b"), &[made, again, "text a, b"]);
        let with_id = item.replace("}}", "}, \"id\": \"abc123def\"}");
        check(template, &format!("[TOOL_CALLS][{with_id}]"), &[&format!("{made} id abc123def")]);
    }
}

#[test]
fn gemma_calls_have_bare_keys_and_quotes_of_markup() {
    let call = "<|tool_call>call:get_weather{city:<|\"|>Par}is, \"x\"<|\"|>,days:2,hours:[1,\
                <|\"|>a<|\"|>],metric:true,place:{lat:1.5,of:{}}}<tool_call|>";
    let made = r#"call 0 get_weather {"city": "Par}is, \"x\"", "days": 2, REST}"#;
    let rest = r#""hours": [1, "a"], "metric": true, "place": {"lat": 1.5, "of": {}}"#;
    let made = &made.replace("REST", rest);
    check(GEMMA, call, &[made]);
    let function_gemma = |call: &str| {
        call.replace("<|\"|>", "<escape>")
            .replace("<|tool_call>", "<start_function_call>")
            .replace("<tool_call|>", "<end_function_call>")
    };
    check(FUNCTION_GEMMA, &function_gemma(call), &[made]);
    check(
        GEMMA,
        &format!("So. {call}{call} "),
        &["text So.", made, &made.replace("call 0", "call 1")],
    );
    check(GEMMA, "<|tool_call>call:now{}<tool_call|>", &["call 0 now {}"]);
    check(
        GEMMA,
        "<|tool_call>call:get_weather{city:Rio, days: 2}",
        &[r#"call 0 get_weather {"city": "Rio", "days": 2}"#],
    );
}

#[test]
fn deepseek_calls_name_the_function_before_or_behind_the_separator() {
    let fenced = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n\
                  ```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>\
                  function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>\
                  <｜tool▁calls▁end｜>";
    let short = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>\
                 {\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}\
                 <｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let made = [r#"call 0 get_weather {"city": "Paris"}"#, "call 1 now {}"];
    for template in [DEEPSEEK, DEEPSEEK_FENCED] {
        check(template, fenced, &made);
        check(template, short, &made);
        check(
            template,
            &format!("Hm.\n{short}\nDone"),
            &["text Hm.", made[0], made[1], "text Done"],
        );
        let cut = &short[..short.find("Paris").unwrap()];
        check(template, cut, &[&format!("text {cut}")]);
    }
}
