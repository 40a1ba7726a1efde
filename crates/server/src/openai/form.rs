//! Fields that say what an answer has to look like.

use serde_json::{Value, json};
use text::Said;

use crate::failure::Failure;
use crate::generation::SaidForm;
use crate::http::fields::Fields;

/// Choices of one request.
pub const MAX_CHOICES: usize = 1024;

/// `response_format`.
pub fn response_format(fields: &mut Fields) -> Result<Option<SaidForm>, Failure> {
    format(fields, "response_format", |format| {
        let schema = format.object("json_schema")?;
        let mut schema = schema.ok_or_else(|| format.invalid("json_schema", "is missing"))?;
        let form = json_schema(&mut schema)?;
        schema.end()?;
        Ok(form)
    })
}

/// `text.format` of responses, where a schema lies flat.
pub fn text_format(text: &mut Fields) -> Result<Option<SaidForm>, Failure> {
    format(text, "format", json_schema)
}

fn format(
    fields: &mut Fields,
    name: &str,
    json_schema: impl FnOnce(&mut Fields) -> Result<SaidForm, Failure>,
) -> Result<Option<SaidForm>, Failure> {
    let Some(mut format) = fields.object(name)? else { return Ok(None) };
    let form = match format.required_string("type")?.as_str() {
        "text" => None,
        "json_object" => Some(SaidForm::object(format.path("type"))),
        "json_schema" => Some(json_schema(&mut format)?),
        _ => return Err(format.invalid("type", "must be text, json_object or json_schema")),
    };
    format.end()?;
    Ok(form)
}

/// A named schema. It is obeyed whether it is called strict or not.
fn json_schema(fields: &mut Fields) -> Result<SaidForm, Failure> {
    let name = fields.required_string("name")?;
    if !super::is_tool_name(&name) {
        return Err(fields.invalid("name", super::TOOL_NAMES));
    }
    // For the model, which is not told of it.
    fields.string("description")?;
    fields.bool("strict")?;
    Ok(schema(fields)?.unwrap_or_else(|| SaidForm::object(fields.path("schema"))))
}

/// `schema`: an object.
pub fn schema(fields: &mut Fields) -> Result<Option<SaidForm>, Failure> {
    match fields.take("schema") {
        None => Ok(None),
        Some(schema @ Value::Object(_)) => {
            Ok(Some(SaidForm { said: Said::Json(schema), field: fields.path("schema") }))
        }
        Some(_) => Err(fields.invalid("schema", "must be an object")),
    }
}

/// `structured_outputs`: a JSON schema, an expression, choices or a grammar, as vLLM has it.
pub fn structured_outputs(fields: &mut Fields) -> Result<Option<SaidForm>, Failure> {
    let Some(mut outputs) = fields.object("structured_outputs")? else { return Ok(None) };
    let mut forms = Vec::new();
    match outputs.take("json") {
        None => {}
        Some(Value::String(text)) => {
            let schema = serde_json::from_str(&text);
            let schema =
                schema.map_err(|e| outputs.invalid("json", format!("is not JSON: {e}")))?;
            forms.push(("json", Said::Json(schema)));
        }
        Some(schema) => forms.push(("json", Said::Json(schema))),
    }
    if outputs.bool("json_object")? == Some(true) {
        forms.push(("json_object", Said::Json(json!({"type": "object"}))));
    }
    if let Some(regex) = outputs.string("regex")? {
        forms.push(("regex", Said::Regex(regex)));
    }
    let choices = outputs.strings("choice")?;
    if choices.len() > MAX_CHOICES {
        let reason = format!("has {} texts, at most {MAX_CHOICES} are allowed", choices.len());
        return Err(outputs.invalid("choice", reason));
    }
    if !choices.is_empty() {
        let choices = choices.into_iter().map(|text| Value::from(text).to_string());
        let lark = format!("start: {}", choices.collect::<Vec<_>>().join(" | "));
        forms.push(("choice", Said::Lark(lark)));
    }
    if let Some(lark) = outputs.string("grammar")? {
        forms.push(("grammar", Said::Lark(lark)));
    }
    let Some((name, said)) = forms.pop() else {
        let reason = "must have one of json, json_object, regex, choice, grammar";
        return Err(fields.invalid("structured_outputs", reason));
    };
    if let Some((other, _)) = forms.first() {
        return Err(outputs.invalid(name, format!("and {other} exclude each other")));
    }
    let field = outputs.path(name);
    outputs.end()?;
    Ok(Some(SaidForm { said, field }))
}
