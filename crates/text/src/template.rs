//! Where a chat template comes from, and the one rewriting its source needs.

use crate::{Error, Json, Result};

/// The templates that came with a model, not yet compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// Used unless `tool_use` applies.
    pub default: String,
    /// Used when the request has tools.
    pub tool_use: Option<String>,
}

impl TemplateSource {
    /// Chooses the sources: the text of `chat_template.jinja` if there is one, else the
    /// `chat_template` of tokenizer_config.json, a string or a list of `{name, template}`.
    pub fn find(jinja: Option<&str>, config: Option<&Json>) -> Result<TemplateSource> {
        if let Some(text) = jinja {
            return Ok(TemplateSource { default: text.to_owned(), tool_use: None });
        }
        match config.and_then(|config| config.get("chat_template")) {
            None | Some(Json::Null) => Err(Error::Request(
                "this model has no chat template: use the completion API with a plain prompt, or \
                 put a chat_template.jinja into the model's folder"
                    .into(),
            )),
            Some(Json::String(text)) => {
                Ok(TemplateSource { default: text.clone(), tool_use: None })
            }
            Some(Json::Array(entries)) => named(entries),
            Some(_) => Err(Error::Model(
                "tokenizer_config.json: chat_template is neither a string nor a list".into(),
            )),
        }
    }
}

fn named(entries: &[Json]) -> Result<TemplateSource> {
    let text_of = |wanted: &str| {
        let entry = entries.iter().find(|e| e.get("name").and_then(Json::as_str) == Some(wanted));
        entry.and_then(|e| e.get("template")).and_then(Json::as_str).map(str::to_owned)
    };
    let tool_use = text_of("tool_use");
    match text_of("default").or_else(|| tool_use.clone()) {
        Some(default) => Ok(TemplateSource { default, tool_use }),
        None => Err(Error::Model(
            "tokenizer_config.json: chat_template is a list without an entry named default".into(),
        )),
    }
}

/// Turns `{% generation %}` blocks, which only mark training targets, into plain scopes.
/// Line numbers and whitespace control stay.
pub(crate) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let name_at = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        let (lead, body) = tag.split_at(name_at);
        let name_end = body.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len());
        let (name, after) = body.split_at(name_end);
        let closes = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        out.push_str(lead);
        out.push_str(match name {
            "generation" if closes => "with",
            "endgeneration" if closes => "endwith",
            other => other,
        });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_looked_up_in_order() {
        let config = |json: &str| serde_json::from_str::<Json>(json).unwrap();
        let list = r#"{"chat_template": [{"name": "default", "template": "d"},
            {"name": "tool_use", "template": "t"}]}"#;
        for (jinja, json, default, tool_use) in [
            (Some("file"), list, "file", None),
            (None, r#"{"chat_template": "text"}"#, "text", None),
            (None, list, "d", Some("t")),
        ] {
            let found = TemplateSource::find(jinja, Some(&config(json))).unwrap();
            assert_eq!((found.default.as_str(), found.tool_use.as_deref()), (default, tool_use));
        }
        for (json, says) in [
            ("{}", "put a chat_template.jinja"),
            (r#"{"chat_template": 7}"#, "neither a string nor a list"),
            (r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#, "named default"),
        ] {
            let error = TemplateSource::find(None, Some(&config(json))).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn generation_tags_become_scopes_and_nothing_else_changes() {
        for (source, want) in [
            ("a{% generation %}b{% endgeneration %}c", "a{% with %}b{% endwith %}c"),
            ("{%- generation -%}\n{%-endgeneration-%}", "{%- with -%}\n{%-endwith-%}"),
            ("{% set generation = 1 %}{% if x %}", "{% set generation = 1 %}{% if x %}"),
            ("{% generation", "{% generation"),
        ] {
            assert_eq!(without_generation_tags(source), want);
        }
    }
}
