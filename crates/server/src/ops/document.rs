//! What `/openapi.json` says of our own routes.

use protocol::MAX_INSPECTED_NODES;
use serde_json::{Map, Value, json};

use crate::document::schema::{
    absent, all, amount, answer, any, boolean, count, integer, list, nullable, one_of, only,
    pattern, present, request, text, where_one, word,
};
use crate::models::MAX_KEEP_ALIVE_S;
use crate::openai::{
    WITHOUT_EFFECT_ON_PROMPTS, cache_salt, choosing_of_tools, conversation, miss, prompt, tier,
    u32_from,
};

/// Schemas by their names.
pub fn schemas() -> Value {
    all([requests(), answers(), of_cache()])
}

fn requests() -> Value {
    let model = || json!({"model?": text()});
    let texts = json!({
        "prompt?": text(), "content?": text(), "parse_special?": boolean(),
        "with_pieces?": boolean(),
    });
    let tokenize = one_of([
        where_one(
            request(all([model(), texts.clone()])),
            [
                json!({"allOf": [present("prompt", text()), absent(&["content"])]}),
                json!({"allOf": [present("content", text()), absent(&["prompt"])]}),
            ],
        ),
        choosing_of_tools(request(all([
            model(),
            conversation(),
            json!({"parse_special?": boolean(), "with_pieces?": boolean()}),
        ]))),
    ]);
    let without_effect = WITHOUT_EFFECT_ON_PROMPTS.iter();
    let without_effect = without_effect.map(|name| (format!("{name}?"), any()));
    let explained = all([
        model(),
        json!({"cache_salt?": cache_salt(), "key?": text()}),
        Value::Object(without_effect.collect::<Map<_, _>>()),
    ]);
    json!({
        "TokenizeRequest": tokenize,
        "DetokenizeRequest": request(json!({
            "model?": text(), "tokens?": list(u32_from(0)), "with_special_tokens?": boolean(),
        })),
        "TemplateRequest": choosing_of_tools(request(all([
            model(), conversation(), json!({"add_generation_prompt?": boolean()}),
        ]))),
        "ExplainRequest": one_of([
            request(all([explained.clone(), json!({"prompt": prompt(1)})])),
            choosing_of_tools(request(all([explained, conversation()]))),
        ]),
        "LoadRequest": request(json!({
            "model": text(), "keep_alive?": integer(-1, MAX_KEEP_ALIVE_S),
        })),
        "UnloadRequest": request(json!({"model": text()})),
    })
}

/// How many nodes of the tree are shown.
pub fn max_nodes() -> Value {
    integer(0, MAX_INSPECTED_NODES.into())
}

fn answers() -> Value {
    let progress = json!({"done_bytes": count(), "total_bytes": count()});
    let state = |word: &str| answer(json!({"model": text(), "state": only(word)}));
    json!({
        "Document": {
            "type": "object", "required": ["openapi", "info", "paths", "components"],
            "properties": {"openapi": only("3.1.0")},
        },
        "Health": answer(json!({"status": only("ok")})),
        "Ready": answer(json!({
            "status": only("ready"), "loaded": list(text()),
            "loading": list(answer(all([json!({"model": text()}), progress.clone()]))),
        })),
        "Version": answer(json!({"version": text(), "protocol": count()})),
        "Tokens": answer(json!({
            "model": text(), "count": count(), "tokens": list(count()), "pieces?": list(text()),
            "max_model_len": nullable(count()),
        })),
        "Detokenized": answer(json!({"model": text(), "prompt": text(), "content": text()})),
        "Rendered": answer(json!({"model": text(), "prompt": text(), "n_tokens": count()})),
        "Running": answer(json!({"models": list(answer(json!({
            "model": text(), "state": word(&["loaded", "loading"]),
            "progress": nullable(answer(progress)), "n_requests": count(),
            "expires_in_s": nullable(amount()), "weight_bytes": nullable(count()),
            "context_tokens": nullable(count()), "quantization": nullable(text()),
            "family": nullable(text()), "device": nullable(text()), "backend": nullable(text()),
            "pid": nullable(count()),
        })))})),
        "LoadedModel": state("loaded"),
        "UnloadingModel": state("unloading"),
    })
}

fn of_cache() -> Value {
    let tiers = |of: Value| answer(json!({"device": of.clone(), "host": of.clone(), "disk": of}));
    let node = json!({
        "from": count(), "tokens": count(),
        "kind": word(&["interior", "branch", "turn", "answer", "system"]),
        "cached_tokens": tiers(count()), "checkpoint": tiers(boolean()), "in_use": boolean(),
        "children": count(), "text?": text(),
    });
    let place = json!({"namespace": pattern("^[0-9a-f]{16}$"), "parent": nullable(count())});
    json!({
        "Explained": answer(json!({
            "model": text(), "prompt_tokens": count(), "matched_tokens": count(),
            "usable_tokens": count(), "tier": nullable(tier()), "miss": miss(), "reason": text(),
            "differs": nullable(answer(json!({
                "at": count(), "before": text(), "cached": text(), "asked": text(),
            }))),
            "path": list(answer(node.clone())),
        })),
        "Tree": answer(json!({
            "model": text(), "n_nodes": count(), "nodes": list(answer(all([node, place]))),
            "tiers": tiers(answer(json!({
                "budget_bytes": count(), "live_bytes": count(), "cached_bytes": count(),
                "evicted": count(), "hit_tokens": count(),
            }))),
        })),
    })
}
