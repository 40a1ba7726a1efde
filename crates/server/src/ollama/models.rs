//! What there is (`tags`), is known (`show`) and is loaded (`ps`).

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use hub::ModelFolder;
use protocol::Sampling;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};
use text::{Json as AnyJson, JsonMap, TemplateSource};

use super::time::{now, rfc3339};
use crate::blocking::blocking;
use crate::failure::{Failure, Kind};
use crate::http::App;
use crate::http::body::Body;
use crate::models::{Listed, TextSide};
use crate::openai;

/// The server's own version: nothing here claims to be an Ollama.
pub async fn version(State(app): State<App>) -> Json<Value> {
    Json(json!({"version": app.build}))
}

/// All models.
pub async fn tags(State(app): State<App>) -> Result<Json<Value>, Failure> {
    let catalog = app.generator.models.clone();
    let list = move || -> Result<Vec<Value>, Failure> {
        let listed = catalog.catalog().list().map_err(|error| {
            eprintln!("error: {error}");
            Failure::new(Kind::Ours, "the models cannot be listed")
        })?;
        Ok(listed.iter().map(listed_model).collect())
    };
    Ok(Json(json!({"models": blocking(list).await?})))
}

fn listed_model(listed: &Listed) -> Value {
    let Listed { name, created_unix_s, folder } = listed;
    json!({
        "name": name,
        "model": name,
        "modified_at": rfc3339(Duration::from_secs(*created_unix_s)),
        "size": folder.disk_bytes().unwrap_or_else(|_| folder.weight_bytes()),
        "digest": digest(folder),
        "details": details(folder),
    })
}

/// The models that are loaded.
pub async fn ps(State(app): State<App>) -> Result<Json<Value>, Failure> {
    let models = app.generator.models.clone();
    let list = move || -> Result<Vec<Value>, Failure> {
        let loaded = models.running().into_iter().filter_map(|running| {
            let info = running.info?;
            let (name, folder) = models.catalog().find(&running.name).ok()?;
            let on_cpu = info.device.backend == "cpu";
            Some(json!({
                "name": name,
                "model": name,
                "size": running.bytes,
                "digest": digest(&folder),
                "details": details(&folder),
                "expires_at": running.expires_in.map(|time| rfc3339(now() + time)),
                "size_vram": if on_cpu { 0 } else { running.bytes },
                "context_length": info.context_tokens,
            }))
        });
        Ok(loaded.collect())
    };
    Ok(Json(json!({"models": blocking(list).await?})))
}

/// What is known of a model; loads nothing.
pub async fn show(State(app): State<App>, Body(mut fields): Body) -> Result<Json<Value>, Failure> {
    // The older name of the same.
    let older = fields.string("name")?;
    let model = match older {
        Some(name) if !fields.has("model") => name,
        Some(_) => {
            return Err(fields.invalid("name", "and model are the same: send one of them"));
        }
        None => openai::model(&mut fields, &app)?,
    };
    // There is no more to say.
    fields.bool("verbose")?;
    fields.end()?;
    let models = app.generator.models.clone();
    let (name, side) = models.text(model.strip_suffix(":latest").unwrap_or(&model)).await?;
    let shown = move || -> Result<Value, Failure> {
        let gone = |_| Failure::new(Kind::NotFound, "the model is gone");
        let (_, folder) = models.catalog().find(&name).map_err(gone)?;
        Ok(shown(&folder, &side))
    };
    Ok(Json(blocking(shown).await?))
}

fn shown(folder: &ModelFolder, side: &TextSide) -> Value {
    let template = template(folder);
    let text = template.as_ref().map_or("", |source| source.default.as_str());
    let has = |word: &str| {
        let tool_use = template.as_ref().and_then(|source| source.tool_use.as_deref());
        text.contains(word) || tool_use.is_some_and(|text| text.contains(word))
    };
    let mut capabilities = vec!["completion"];
    if has("tools") {
        capabilities.push("tools");
    }
    if has("enable_thinking") || has("<think>") || has("reasoning_effort") {
        capabilities.push("thinking");
    }
    let modified = folder.path().join("config.json").metadata().and_then(|meta| meta.modified());
    let modified = modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    json!({
        "modelfile": "",
        "parameters": parameters(&side.sampling),
        "template": text,
        "details": details(folder),
        "model_info": model_info(folder, side),
        "capabilities": capabilities,
        "modified_at": rfc3339(modified.unwrap_or_default()),
    })
}

fn template(folder: &ModelFolder) -> Option<TemplateSource> {
    let jinja = folder.read_text("chat_template.jinja").ok().flatten();
    let config = folder.read_object("tokenizer_config.json").ok().flatten().map(AnyJson::Object);
    TemplateSource::find(jinja.as_deref(), config.as_ref()).ok()
}

fn model_info(folder: &ModelFolder, side: &TextSide) -> JsonMap {
    let family = folder.family();
    let n_params = folder.weights().ok().map(|weights| weights.n_params);
    [
        ("general.architecture".to_owned(), json!(family)),
        ("general.parameter_count".to_owned(), json!(n_params)),
        (format!("{family}.block_count"), json!(folder.n_layers())),
        (format!("{family}.context_length"), json!(side.context_tokens)),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_null())
    .collect()
}

/// The model's own settings, as a Modelfile names them.
fn parameters(sampling: &Sampling) -> String {
    let off = Sampling::greedy();
    let mut lines = vec![format!("temperature {}", sampling.temperature)];
    let mut add = |name: &str, value: f32, off: f32| {
        if value != off {
            lines.push(format!("{name} {value}"));
        }
    };
    add("top_k", sampling.top_k as f32, off.top_k as f32);
    add("top_p", sampling.top_p, off.top_p);
    add("min_p", sampling.min_p, off.min_p);
    add("repeat_penalty", sampling.repetition_penalty, off.repetition_penalty);
    add("presence_penalty", sampling.presence_penalty, off.presence_penalty);
    add("frequency_penalty", sampling.frequency_penalty, off.frequency_penalty);
    lines.join("\n")
}

fn details(folder: &ModelFolder) -> Value {
    let family = folder.family();
    let size = folder.weights().ok().map(|weights| parameter_size(weights.n_params));
    let quantization = folder.quantization().or_else(|| folder.dtype().map(str::to_owned));
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": size.unwrap_or_default(),
        "quantization_level": quantization.unwrap_or_default(),
    })
}

fn parameter_size(n_params: u64) -> String {
    let n = n_params as f64;
    match n_params {
        1_000_000_000.. => format!("{:.1}B", n / 1e9),
        1_000_000.. => format!("{:.1}M", n / 1e6),
        1_000.. => format!("{:.1}K", n / 1e3),
        _ => n_params.to_string(),
    }
}

/// Another one for other files: of the config, and of the names and sizes of the weights. Reading
/// the weights themselves would take minutes.
fn digest(folder: &ModelFolder) -> String {
    let mut context = Context::new(&SHA256);
    let config = serde_json::to_vec(folder.config()).unwrap_or_default();
    context.update(&config);
    for path in folder.weight_files() {
        let bytes = path.metadata().map_or(0, |meta| meta.len());
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        context.update(format!("\n{name} {bytes}").as_bytes());
    }
    let digest = context.finish();
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_people_say_them() {
        for (n, expected) in
            [(0, "0"), (999, "999"), (5_043_212, "5.0M"), (8_190_735_360, "8.2B"), (1_500, "1.5K")]
        {
            assert_eq!(parameter_size(n), expected);
        }
    }

    #[test]
    fn settings_that_are_off_are_left_out() {
        let sampling = Sampling { temperature: 0.6, top_k: 20, ..Sampling::greedy() };
        assert_eq!(parameters(&sampling), "temperature 0.6\ntop_k 20");
    }
}
