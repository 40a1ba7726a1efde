//! Tools of messages, in the form that templates know.

use serde_json::{Value, json};
use text::Json;

use super::blocks::Turns;
use crate::failure::Failure;
use crate::generation::{Calls, Tools};
use crate::http::fields::Fields;
use crate::openai::{TOOL_NAMES, is_tool_name};

/// The tools that the model is told of, and how it may call them; none with `tool_choice` "none".
pub fn tools(fields: &mut Fields, turns: &mut Turns) -> Result<Tools, Failure> {
    let objects = fields.objects("tools")?;
    let tools = objects.into_iter().map(|object| tool(object, turns));
    let mut tools = Tools::of(tools.collect::<Result<Vec<_>, _>>()?);
    let Some(mut choice) = fields.object("tool_choice")? else { return Ok(tools) };
    let kind = choice.required_string("type")?;
    tools.has_one_call = choice.bool("disable_parallel_tool_use")? == Some(true);
    match kind.as_str() {
        "auto" => {}
        "none" => tools = Tools::default(),
        "any" | "tool" if tools.list.is_empty() => {
            return Err(choice.invalid("type", "needs tools"));
        }
        "any" => tools.calls = Calls::Any,
        "tool" => {
            let name = choice.required_string("name")?;
            if !tools.has(&name) {
                return Err(choice.invalid("name", "is none of tools"));
            }
            tools.calls = Calls::Named(name);
        }
        _ => return Err(choice.invalid("type", "must be auto, none, any or tool")),
    }
    choice.end()?;
    Ok(tools)
}

/// A tool's definition, and whether calls of it are strict.
fn tool(mut fields: Fields, turns: &mut Turns) -> Result<(Json, bool), Failure> {
    let kind = fields.string("type")?;
    if kind.is_some_and(|kind| kind != "custom") {
        let reason = "must be custom: tools that a server runs are not offered here";
        return Err(fields.invalid("type", reason));
    }
    let name = fields.required_string("name")?;
    if !is_tool_name(&name) {
        return Err(fields.invalid("name", TOOL_NAMES));
    }
    let mut function = json!({"name": name});
    if let Some(description) = fields.string("description")? {
        function["description"] = description.into();
    }
    match fields.take("input_schema") {
        Some(schema @ Value::Object(_)) => function["parameters"] = schema,
        Some(_) => return Err(fields.invalid("input_schema", "must be an object")),
        None => return Err(fields.invalid("input_schema", "is missing")),
    }
    let is_strict = fields.bool("strict")? == Some(true);
    fields.only("defer_loading", &[json!(false)])?;
    fields.only("allowed_callers", &[json!(["direct"])])?;
    fields.refuse("input_examples", "describe them in the description")?;
    // Calls are sent when they are complete.
    fields.without_effect("eager_input_streaming");
    turns.mark(&mut fields)?;
    fields.end()?;
    Ok((json!({"type": "function", "function": function}), is_strict))
}
