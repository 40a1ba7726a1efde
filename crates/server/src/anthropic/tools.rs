//! Tools of messages, in the form that templates know.

use serde_json::{Value, json};
use text::Json;

use super::blocks::Turns;
use crate::failure::Failure;
use crate::http::fields::Fields;
use crate::openai::{TOOL_NAMES, is_tool_name};

/// The tools that the model is told of; none with `tool_choice` "none".
pub fn tools(fields: &mut Fields, turns: &mut Turns) -> Result<Vec<Json>, Failure> {
    let objects = fields.objects("tools")?;
    let mut tools = Vec::with_capacity(objects.len());
    for object in objects {
        tools.push(tool(object, turns)?);
    }
    let Some(mut choice) = fields.object("tool_choice")? else { return Ok(tools) };
    let kind = choice.required_string("type")?;
    if choice.bool("disable_parallel_tool_use")? == Some(true) && kind != "none" {
        let reason = "cannot be true: the number of calls cannot be bounded yet";
        return Err(choice.invalid("disable_parallel_tool_use", reason));
    }
    match kind.as_str() {
        "auto" => {}
        "none" => tools.clear(),
        // The one place where a forced call will become a grammar.
        "any" | "tool" => {
            let reason = "can only be \"auto\" or \"none\": calls cannot be forced yet";
            return Err(choice.invalid("type", reason));
        }
        _ => return Err(choice.invalid("type", "must be auto, none, any or tool")),
    }
    choice.end()?;
    Ok(tools)
}

fn tool(mut fields: Fields, turns: &mut Turns) -> Result<Json, Failure> {
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
    if fields.bool("strict")? == Some(true) {
        return Err(fields.invalid("strict", "cannot be true: arguments are not forced yet"));
    }
    fields.only("defer_loading", &[json!(false)])?;
    fields.only("allowed_callers", &[json!(["direct"])])?;
    fields.refuse("input_examples", "describe them in the description")?;
    // Calls are sent when they are complete.
    fields.without_effect("eager_input_streaming");
    turns.mark(&mut fields)?;
    fields.end()?;
    Ok(json!({"type": "function", "function": function}))
}
