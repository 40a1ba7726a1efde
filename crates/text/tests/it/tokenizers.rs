//! Token ids and texts are those of the `tokenizers` library.

use text::{Error, Json, Tokenizer};

use crate::small_tokenizers;

#[test]
fn ids_and_texts_agree_with_the_reference() {
    let golden: Json = serde_json::from_str(include_str!("../goldens/tokenizers.json")).unwrap();
    for (name, tokenizer) in small_tokenizers() {
        for case in golden[name].as_array().unwrap() {
            let ids_of = |key: &str| -> Vec<u32> {
                let ids = case[key].as_array().unwrap();
                ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
            };
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids_of("ids"), "{name} {text:?}");
            if !text.contains(['<', '[']) {
                let plain = tokenizer.encode_text(text).unwrap();
                assert_eq!(plain, ids_of("plain_ids"), "{name} {text:?}");
            }
            for (with_special, key) in [(false, "decoded"), (true, "decoded_all")] {
                let decoded = tokenizer.decode(&ids_of("ids"), with_special).unwrap();
                assert_eq!(decoded, case[key].as_str().unwrap(), "{name} {text:?}");
            }
        }
    }
}

#[test]
fn special_tokens_come_from_the_config_and_then_from_the_map() {
    let bytes = include_bytes!("../goldens/byte_level.json");
    let config = r#"{"bos_token": {"content": "<s>"}, "add_bos_token": true, "pad_token": null}"#;
    let map = r#"{"eos_token": "</s>", "bos_token": "<|im_start|>"}"#;
    let tokenizer = Tokenizer::new(bytes, Some(config), Some(map)).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(tokenizer.bos_id(), Some(id("<s>")));
    assert_eq!(tokenizer.eos_ids(), [id("</s>")]);
    assert_eq!(tokenizer.id_to_token(id("<|im_end|>")).as_deref(), Some("<|im_end|>"));
    assert!(tokenizer.is_special(id("</s>")) && !tokenizer.is_special(id("<think>")));
    let names: Vec<_> = tokenizer.template_tokens().into_keys().collect();
    assert_eq!(names, ["bos_token", "eos_token"]);
    assert_eq!(tokenizer.vocab_size(), 400 + 6 + 3);
    assert_eq!(tokenizer.token_to_id("no such token"), None);
}

#[test]
fn a_decoder_that_cannot_stream_is_named() {
    let bytes = include_str!("../goldens/byte_level.json");
    let mut json: Json = serde_json::from_str(bytes).unwrap();
    json["decoder"] =
        serde_json::from_str(r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###)
            .unwrap();
    let tokenizer = Tokenizer::new(json.to_string().as_bytes(), None, None).unwrap();
    let error = tokenizer.detokenizer(false).unwrap_err();
    assert!(matches!(&error, Error::Model(says) if says.contains("WordPiece")), "{error}");
}
