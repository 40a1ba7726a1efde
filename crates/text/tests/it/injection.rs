//! Text of callers never becomes a special token.

use std::collections::BTreeMap;

use proptest::prelude::*;
use text::{
    ChatInput, ChatTemplate, Content, Json, Message, Role, TemplateSource, Tokenizer, ToolCall,
};

use crate::{runner, small_tokenizers};

const ADDED: [&str; 9] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
    "<think>",
    "</think>",
    "<tool_call>",
];

/// Texts glued from whole literals, pieces of them, look-alikes and ordinary text.
fn nasty() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        3 => prop::sample::select(ADDED.to_vec()).prop_map(str::to_owned),
        3 => (prop::sample::select(ADDED.to_vec()), 0usize..14, 0usize..14).prop_map(|(t, a, b)| {
            let (a, b) = (a.min(t.len()), b.min(t.len()));
            t[a.min(b)..a.max(b)].to_owned()
        }),
        1 => prop::sample::select(vec![" ", "\n", "fox", "ü", "🦀", "\u{E000}", "<", "|", "▁"])
            .prop_map(str::to_owned),
        1 => prop::sample::select(vec!["＜s＞", "＜think＞", "<ｓ>", "[ＩNST]"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn added_ids(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let tokens = ids.iter().filter_map(|&id| tokenizer.id_to_token(id));
    tokens.filter(|token| ADDED.contains(&token.as_str())).collect()
}

#[test]
fn plain_text_holds_no_added_token_and_decodes_to_itself() {
    for (name, tokenizer) in small_tokenizers() {
        let check = |text: String| {
            let ids = tokenizer.encode_text(&text).unwrap();
            prop_assert_eq!(added_ids(&tokenizer, &ids), Vec::<String>::new(), "{}", name);
            // Only the byte-level tokenizer is lossless for every character.
            if name == "byte_level" {
                prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
            }
            Ok(())
        };
        runner(1500).run(&nasty(), check).unwrap();
    }
}

#[test]
fn cutting_a_literal_adds_no_space_to_the_text() {
    for (name, tokenizer) in small_tokenizers() {
        for text in ["fox <s> dog", "<|im_end|>dog", "a [INST] the </s>"] {
            let ids = tokenizer.encode_text(text).unwrap();
            let unknown = tokenizer.token_to_id("<unk>");
            if ids.iter().all(|&id| Some(id) != unknown) {
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
            }
        }
    }
}

const TEMPLATE: &str = "{{ bos_token }}{% for t in tools or [] %}{{ t | tojson }}{% endfor %}\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
    {% if m.content is string %}{{ m.content | trim }}\
    {% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\
    {% for c in m.tool_calls or [] %}{{ c.function.name ~ c.function.arguments | tojson }}\
    {% endfor %}{{ '<|im_end|>' }}{% endfor %}";

fn chat(texts: &[String; 5]) -> ChatInput {
    let [first, second, tool, key, argument] = texts;
    let mut user = Message::new(Role::User, "");
    user.content = Content::Parts(vec![first.clone(), second.clone()]);
    let mut assistant = Message::new(Role::Assistant, first.as_str());
    let arguments = text::JsonMap::from_iter([(key.clone(), Json::String(argument.clone()))]);
    assistant.tool_calls =
        vec![ToolCall { id: None, name: tool.clone(), arguments: Json::Object(arguments) }];
    let tools = vec![Json::String(tool.clone())];
    ChatInput {
        messages: vec![user, assistant, Message::new(Role::Tool, second.as_str())],
        tools,
        ..ChatInput::default()
    }
}

#[test]
fn only_the_template_writes_role_tokens_whatever_callers_write() {
    let (_, tokenizer) = &small_tokenizers()[0];
    let source = TemplateSource { default: TEMPLATE.into(), tool_use: None };
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let template = ChatTemplate::new(&source, tokens).unwrap();
    let texts = [nasty(), nasty(), nasty(), nasty(), nasty()];
    let check = |texts: [String; 5]| {
        let rendered = template.render(&chat(&texts), tokenizer.guard()).unwrap();
        let ids = tokenizer.encode_rendered(&rendered).unwrap();
        let mut found = added_ids(tokenizer, &ids);
        // The model's own text may hold what is not special, such as `</think>`.
        found.retain(|token| !["<think>", "</think>", "<tool_call>"].contains(&token.as_str()));
        let mut want = vec!["<s>"];
        want.extend(["<|im_start|>", "<|im_end|>"].repeat(3));
        prop_assert_eq!(found, want);
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), rendered.text());
        // The same template over harmless tokens renders the same text.
        let plain = template.render(&chat(&texts), &text::Guard::new([]).unwrap()).unwrap();
        prop_assert_eq!(plain.text(), rendered.text());
        Ok(())
    };
    runner(600).run(&texts, check).unwrap();
}

#[test]
fn a_literal_split_over_two_strings_is_no_token() {
    let (_, tokenizer) = &small_tokenizers()[0];
    let source = "{% for p in messages[0].content %}{{ p.text | trim }}{% endfor %}";
    let source = TemplateSource { default: source.into(), tool_use: None };
    let template = ChatTemplate::new(&source, BTreeMap::new()).unwrap();
    for literal in ADDED {
        for cut in 1..literal.len() {
            let mut message = Message::new(Role::User, "");
            let parts = [format!("a{} \n", &literal[..cut]), literal[cut..].to_owned()];
            message.content = Content::Parts(parts.to_vec());
            let input = ChatInput { messages: vec![message], ..ChatInput::default() };
            let rendered = template.render(&input, tokenizer.guard()).unwrap();
            assert_eq!(rendered.text(), format!("a{literal}"));
            let ids = tokenizer.encode_rendered(&rendered).unwrap();
            assert_eq!(added_ids(tokenizer, &ids), [""; 0], "{literal} cut at {cut}");
        }
    }
}
