//! Every template of tests/templates renders byte for byte as transformers renders it.

use std::collections::BTreeMap;

use text::{
    ChatInput, ChatTemplate, Content, Error, Guard, Json, Message, Role, TemplateSource, ToolCall,
};

fn source_of(name: &str) -> &'static str {
    match name {
        "chatml" => include_str!("../templates/chatml.jinja"),
        "command_r" => include_str!("../templates/command_r.jinja"),
        "deepseek" => include_str!("../templates/deepseek.jinja"),
        "gemma" => include_str!("../templates/gemma.jinja"),
        "glm" => include_str!("../templates/glm.jinja"),
        "harmony" => include_str!("../templates/harmony.jinja"),
        "hermes" => include_str!("../templates/hermes.jinja"),
        "llama3" => include_str!("../templates/llama3.jinja"),
        "mistral" => include_str!("../templates/mistral.jinja"),
        "qwen3" => include_str!("../templates/qwen3.jinja"),
        "qwen3_coder" => include_str!("../templates/qwen3_coder.jinja"),
        other => panic!("no template {other}"),
    }
}

fn compile(source: &str) -> text::Result<ChatTemplate> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    let source = TemplateSource { default: source.to_owned(), tool_use: None };
    ChatTemplate::new(&source, BTreeMap::from(tokens))
}

fn message(json: &Json) -> Message {
    let text = |key: &str| json.get(key).and_then(Json::as_str).map(str::to_owned);
    let role = match json["role"].as_str().unwrap() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        other => panic!("no role {other}"),
    };
    let content = match &json["content"] {
        Json::Array(parts) => {
            let texts = parts.iter().map(|part| part["text"].as_str().unwrap().to_owned());
            Content::Parts(texts.collect())
        }
        text => Content::Text(text.as_str().unwrap().to_owned()),
    };
    let calls = json.get("tool_calls").and_then(Json::as_array);
    let tool_calls = calls.into_iter().flatten().map(|call| ToolCall {
        id: call["id"].as_str().map(str::to_owned),
        name: call["function"]["name"].as_str().unwrap().to_owned(),
        arguments: call["function"]["arguments"].clone(),
    });
    Message {
        role,
        content,
        reasoning_content: text("reasoning_content"),
        tool_calls: tool_calls.collect(),
        tool_call_id: text("tool_call_id"),
        name: text("name"),
    }
}

fn list(json: &Json, key: &str) -> Vec<Json> {
    json.get(key).and_then(Json::as_array).cloned().unwrap_or_default()
}

fn input(golden: &Json, case: &Json) -> ChatInput {
    let conversation = &golden["conversations"][case["conversation"].as_str().unwrap()];
    ChatInput {
        messages: list(conversation, "messages").iter().map(message).collect(),
        tools: list(conversation, "tools"),
        documents: list(conversation, "documents"),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        kwargs: case["kwargs"].as_object().unwrap().clone(),
        now_unix_s: golden["now_unix_s"].as_i64().unwrap(),
    }
}

/// Literals of the styles above, so that the oracle also runs through the guard.
fn guard() -> Guard {
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "<start_of_turn>"];
    let tokens = special.into_iter().map(|t| (t, true));
    Guard::new(tokens.chain([("<think>", false), ("</think>", false)])).unwrap()
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let golden: Json = serde_json::from_str(include_str!("../goldens/templates.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 500);
    let mut wrong = Vec::new();
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let rendered = compile(source_of(name)).unwrap().render(&input(&golden, case), &guard());
        let same = match (&rendered, case.get("text"), case.get("raises")) {
            (Ok(rendered), Some(want), _) => rendered.text() == want.as_str().unwrap(),
            (Err(Error::Request(got)), _, Some(want)) => got == want.as_str().unwrap(),
            (Err(Error::Model(_)), None, None) => true,
            _ => false,
        };
        if !same {
            let got = rendered.map(|rendered| rendered.text());
            wrong.push(format!("{case:#}\n got: {got:?}\n"));
        }
    }
    let n_wrong = wrong.len();
    assert!(wrong.is_empty(), "{n_wrong} differ, first:\n{}", wrong.first().unwrap());
}

fn render(source: &str, input: &ChatInput) -> text::Result<String> {
    Ok(compile(source)?.render(input, &guard())?.text())
}

fn user(text: &str) -> ChatInput {
    ChatInput { messages: vec![Message::new(Role::User, text)], ..ChatInput::default() }
}

#[test]
fn a_request_cannot_set_what_is_not_on_the_list() {
    for key in ["messages", "tools", "bos_token", "tokenize", "add_generation_prompt", "x"] {
        let mut input = user("hi");
        input.kwargs.insert(key.to_owned(), Json::Bool(true));
        match render("{{ messages[0].content }}", &input) {
            Err(Error::Request(says)) => assert!(says.contains(key), "{says}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn arguments_given_as_json_text_are_rendered_as_the_object() {
    let source =
        "{% for c in messages[0].tool_calls %}{{ c.function.arguments | tojson }};{% endfor %}";
    let call = |arguments: &str| ToolCall {
        id: None,
        name: "f".into(),
        arguments: Json::String(arguments.into()),
    };
    let mut input = user("");
    input.messages[0].tool_calls = vec![call("{\"b\":1,\"a\":[2]}"), call(""), call("{broken")];
    assert_eq!(render(source, &input).unwrap(), r#"{"b": 1, "a": [2]};{};"{broken";"#);
}

#[test]
fn content_takes_the_form_that_the_template_understands() {
    let texts = "{{ '<u>' + messages[0].content }}";
    let parts = "{% for p in messages[0].content %}{{ p.text }};{% endfor %}";
    let both = "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}\
                {% for p in messages[0].content %}{{ p.text }}{% endfor %}{% endif %}";
    let given_parts = || {
        let mut input = user("");
        input.messages[0].content = Content::Parts(vec!["a".into(), "b".into()]);
        input
    };
    for (source, input, want) in [
        (texts, user("a"), "<u>a"),
        (texts, given_parts(), "<u>a\nb"),
        (parts, user("a"), "a;"),
        (parts, given_parts(), "a;b;"),
        (both, user("a"), "a"),
        (both, given_parts(), "ab"),
    ] {
        assert_eq!(render(source, &input).unwrap(), want, "{source}");
    }
}

#[test]
fn errors_name_the_line_and_the_cause() {
    for (source, line, cause) in [
        ("a\nb\n{% if %}", "line 3", "syntax error"),
        ("a\n{{ messages[0].x.y }}", "line 2", "undefined"),
        ("{{ 1 | nofilter }}", "line 1", "nofilter"),
        ("\n{% include 'other' %}", "line 2", "other"),
    ] {
        match render(source, &user("hi")) {
            Err(Error::Model(says)) => {
                assert!(says.contains(line) && says.contains(cause), "{source}: {says}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    let raised = render(
        "{% macro m() %}{{ raise_exception('Say less.') }}{% endmacro %}{{ m() }}",
        &user(""),
    );
    assert_eq!(raised, Err(Error::Request("Say less.".into())));
}

#[test]
fn the_tool_template_is_used_when_there_are_tools() {
    let source = TemplateSource { default: "plain".into(), tool_use: Some("tools".into()) };
    let template = ChatTemplate::new(&source, BTreeMap::new()).unwrap();
    let mut input = user("hi");
    assert_eq!(template.render(&input, &guard()).unwrap().text(), "plain");
    input.tools.push(Json::Object(text::JsonMap::new()));
    assert_eq!(template.render(&input, &guard()).unwrap().text(), "tools");
}
