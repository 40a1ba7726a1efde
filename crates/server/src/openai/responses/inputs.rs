//! What responses are made of: the items of one that is kept, the tokens of one that is not made.

use axum::Json;
use axum::extract::{Query, State};
use serde_json::{Value, json};

use super::request::counted;
use super::store::Item;
use crate::failure::{Failure, Kind};
use crate::generation::Input;
use crate::http::App;
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::http::name::Name;

/// As OpenAI has it.
pub const MAX_ITEMS: usize = 100;
const DEFAULT_ITEMS: usize = 20;

/// The items that a response was made of, of the responses before it too.
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Name(id): Name,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, Failure> {
    let mut fields = Fields::of_query(query)?;
    let limit = match fields.string("limit")?.map(|text| text.parse()) {
        None => DEFAULT_ITEMS,
        Some(Ok(limit)) if (1..=MAX_ITEMS).contains(&limit) => limit,
        Some(_) => {
            let reason = format!("must be a whole number from 1 to {MAX_ITEMS}");
            return Err(fields.invalid("limit", reason));
        }
    };
    let order = fields.word("order", &["asc", "desc"])?;
    let after = fields.string("after")?;
    fields.end()?;
    let kept = app.responses.find(caller.name(), &id).ok_or_else(super::missing)?;
    let mut items = kept.turn.inputs();
    if order != Some("asc") {
        items.reverse();
    }
    page(&items, after.as_deref(), limit).map(Json)
}

/// Those behind the item `after`, but not more than `limit`.
fn page(items: &[&Item], after: Option<&str>, limit: usize) -> Result<Value, Failure> {
    let start = match after {
        None => 0,
        // Where callers gave two items one id, whoever goes on from it comes to the end.
        Some(id) => {
            1 + items.iter().rposition(|item| item.id == id).ok_or_else(|| {
                let failure = Failure::invalid("after", "is the id of none of the items");
                Failure { kind: Kind::NotFound, ..failure }
            })?
        }
    };
    let rest = &items[start..];
    let shown = &rest[..rest.len().min(limit)];
    let data = shown.iter().map(|item| serde_json::from_str::<Value>(&item.json));
    let data: Result<Vec<_>, _> = data.collect();
    Ok(json!({
        "object": "list",
        "data": data.map_err(|e| Failure::new(Kind::Ours, e.to_string()))?,
        "first_id": shown.first().map(|item| &item.id),
        "last_id": shown.last().map(|item| &item.id),
        "has_more": shown.len() < rest.len(),
    }))
}

/// How many tokens the prompt of a response would have.
pub async fn count(
    State(app): State<App>,
    caller: Caller,
    Body(mut fields): Body,
) -> Result<Json<Value>, Failure> {
    let (model, conversation) = counted(&mut fields, &app, &caller)?;
    fields.end()?;
    let (permit, namespace) = (caller.permit()?, caller.namespace(None)?);
    let input = Input::Chat(Box::new(conversation));
    let counted = app.generator.tokens(&model, input, namespace, permit).await;
    let (_, _, tokens) = counted.map_err(super::renamed)?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": tokens.len()})))
}
