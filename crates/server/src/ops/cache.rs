//! Looking into the prefix cache: what a prompt would be given and why not more, and all that is
//! there.

use axum::Json;
use axum::extract::{Query, State};
use protocol::{CacheNode, Divergence, Event, Inspect, Inspected, MAX_INSPECTED_NODES, NodeKind};
use serde_json::{Value, json};

use super::manage::not_loaded;
use crate::explain;
use crate::failure::{Failure, Kind};
use crate::generation::Input;
use crate::http::App;
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::models::Lease;
use crate::openai::{WITHOUT_EFFECT_ON_PROMPTS, chat_conversation, inputs, model};
use crate::prompter::Prompter;

/// Tokens that are shown of each node.
const SHOWN_TOKENS: u32 = 16;
/// Tokens that are shown before the first that differs.
const TOKENS_BEFORE: usize = 32;
const DEFAULT_NODES: u32 = 1000;

/// What the cache has of a prompt, which is that of a chat or a completion as it would be sent.
pub async fn explain(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    let model = model(&mut fields, &app)?;
    let namespace = namespace(&mut fields, &app, &caller)?;
    let input = match (fields.has("messages"), fields.has("prompt")) {
        (true, false) => Input::Chat(Box::new(chat_conversation(&mut fields)?.0)),
        (false, true) => match <[Input; 1]>::try_from(inputs(&mut fields)?) {
            Ok([input]) => input,
            Err(_) => return Err(fields.invalid("prompt", "must be one prompt")),
        },
        _ => return Err(fields.invalid("messages", "or prompt must be there, and not both")),
    };
    for name in WITHOUT_EFFECT_ON_PROMPTS {
        fields.without_effect(name);
    }
    fields.end()?;
    let permit = caller.permit()?;
    let (name, side, tokens) = app.generator.tokens(&model, input, namespace, permit).await?;
    if tokens.is_empty() {
        return Err(Failure::invalid("prompt", "must have at least one token"));
    }
    let lease = app.generator.models.lease(&name, &mut |_, _| {}).await?;
    let what = Inspect::Prompt { namespace, tokens: tokens.clone() };
    let inspected = inspect(&lease, what, SHOWN_TOKENS).await?;
    Ok(Json(explained(&name, &inspected, &tokens, &side.prompter)))
}

/// The caller's own, or with the right to manage that of the key with another name.
fn namespace(fields: &mut Fields, app: &App, caller: &Caller) -> Result<u64, Failure> {
    let salt = fields.string("cache_salt")?;
    let Some(key) = fields.string("key")? else { return caller.namespace(salt.as_deref()) };
    caller.check_admin()?;
    let other = app.keys.named(&key);
    let other = other.ok_or_else(|| fields.invalid("key", "is the name of no API key"))?;
    other.namespace(salt.as_deref())
}

async fn inspect(lease: &Lease, what: Inspect, shown_tokens: u32) -> Result<Inspected, Failure> {
    let mut ticket = lease.inspect(what, shown_tokens)?;
    let mut found = None;
    loop {
        match ticket.next().await? {
            Event::Inspected(inspected) => found = Some(*inspected),
            Event::Failed { fault, message, .. } => return Err(Failure::of_fault(fault, message)),
            Event::Finished { .. } => {
                let lost = || Failure::new(Kind::Ours, "the runner has not looked");
                return found.ok_or_else(lost);
            }
            _ => {}
        }
    }
}

fn explained(name: &str, inspected: &Inspected, tokens: &[u32], prompter: &Prompter) -> Value {
    let excerpt = |tokens: &[u32]| prompter.excerpt(tokens);
    let Some(found) = &inspected.found else { return Value::Null };
    let differs = inspected.differs.as_ref().map(|Divergence { at, cached, asked }| {
        let before = &tokens[..tokens.len().min(*at as usize)];
        json!({
            "at": at,
            "before": excerpt(&before[before.len().saturating_sub(TOKENS_BEFORE)..]),
            "cached": excerpt(cached),
            "asked": excerpt(asked),
        })
    });
    let path = inspected.nodes.iter().map(|node| self::node(node, Some(prompter)));
    json!({
        "model": name,
        "prompt_tokens": found.prompt_tokens,
        "matched_tokens": found.matched_tokens,
        "usable_tokens": found.usable_tokens,
        "tier": (found.usable_tokens > 0).then(|| explain::tier(found.tier)),
        "miss": explain::cause(&found.cause),
        "reason": explain::why(found, &excerpt),
        "differs": differs,
        "path": path.collect::<Vec<_>>(),
    })
}

fn node(node: &CacheNode, prompter: Option<&Prompter>) -> Value {
    let tiers = |of: [Value; 3]| {
        let [device, host, disk] = of;
        json!({"device": device, "host": host, "disk": disk})
    };
    let kind = match node.kind {
        NodeKind::Interior => "interior",
        NodeKind::Branch => "branch",
        NodeKind::Turn => "turn",
        NodeKind::Answer => "answer",
        NodeKind::System => "system",
    };
    let mut object = json!({
        "from": node.from,
        "tokens": node.n_tokens,
        "kind": kind,
        "cached_tokens": tiers(node.covered.map(Value::from)),
        "checkpoint": tiers(node.has_checkpoint.map(Value::from)),
        "in_use": node.is_in_use,
        "children": node.n_children,
    });
    if let Some(prompter) = prompter {
        object["text"] = prompter.excerpt(&node.first).into();
    }
    object
}

/// All that is cached of a loaded model: `model`, `max_nodes`, and with `text=true` the beginnings
/// of the texts.
pub async fn tree(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, Failure> {
    caller.check_admin()?;
    let mut fields = Fields::of_query(query)?;
    let model = model(&mut fields, &app)?;
    let max_nodes = match fields.string("max_nodes")?.map(|text| text.parse::<u32>()) {
        None => DEFAULT_NODES,
        Some(Ok(n)) if n <= MAX_INSPECTED_NODES => n,
        Some(_) => {
            let reason = format!("must be a whole number up to {MAX_INSPECTED_NODES}");
            return Err(fields.invalid("max_nodes", reason));
        }
    };
    let has_text = fields.word("text", &["true", "false"])? == Some("true");
    fields.end()?;
    let (name, side) = app.generator.models.text(&model).await?;
    if !app.generator.models.running().iter().any(|running| running.name == name) {
        return Err(not_loaded());
    }
    let lease = app.generator.models.lease(&name, &mut |_, _| {}).await?;
    let shown_tokens = if has_text { SHOWN_TOKENS } else { 0 };
    let inspected = inspect(&lease, Inspect::Tree { max_nodes }, shown_tokens).await?;
    let nodes = inspected.nodes.iter().map(|node| {
        let mut object = self::node(node, has_text.then_some(&side.prompter));
        object["namespace"] = format!("{:016x}", node.namespace).into();
        object["parent"] = node.parent.into();
        object
    });
    let tiers = inspected.tiers.map(|tier| {
        json!({
            "budget_bytes": tier.budget_bytes,
            "live_bytes": tier.live_bytes,
            "cached_bytes": tier.cached_bytes,
            "evicted": tier.n_evicted,
            "hit_tokens": tier.hit_tokens,
        })
    });
    let [device, host, disk] = tiers;
    Ok(Json(json!({
        "model": name,
        "n_nodes": inspected.n_nodes,
        "nodes": nodes.collect::<Vec<_>>(),
        "tiers": {"device": device, "host": host, "disk": disk},
    })))
}
