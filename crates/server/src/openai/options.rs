//! The fields that the kinds of requests share.

use std::time::Duration;

use serde_json::{Value, json};
use text::{JsonMap, KWARGS};

use super::form;
use crate::failure::Failure;
use crate::generation::{MAX_ANSWERS, Request};
use crate::http::App;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::sampling::{self, Choices};

/// Biases of one request.
pub const MAX_BIASES: usize = 1024;

/// Fields of chats and completions that change nothing about their prompts.
pub const WITHOUT_EFFECT_ON_PROMPTS: [&str; 30] = [
    "echo",
    "frequency_penalty",
    "keep_alive",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "min_p",
    "modalities",
    "n",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_retention",
    "repetition_penalty",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
];

/// Whether and how an answer streams.
#[derive(Debug, Clone, Copy, Default)]
pub struct Streaming {
    /// It does.
    pub is_on: bool,
    /// A last chunk tells the usage.
    pub has_usage: bool,
}

/// The name of the model; that of the server's own, if a request names none.
pub fn model(fields: &mut Fields, app: &App) -> Result<String, Failure> {
    let named = fields.string("model")?;
    let catalog = app.generator.models.catalog();
    named.or_else(|| catalog.default_name().map(str::to_owned)).ok_or_else(|| {
        fields.invalid("model", format!("is missing; for example {:?}", catalog.example()))
    })
}

/// `stream` and `stream_options`.
pub fn streaming(fields: &mut Fields) -> Result<Streaming, Failure> {
    let is_on = fields.bool("stream")?.unwrap_or(false);
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(Streaming { is_on, has_usage: false });
    };
    if !is_on {
        return Err(fields.invalid("stream_options", "needs stream to be true"));
    }
    let has_usage = options.bool("include_usage")?.unwrap_or(false);
    options.only("include_obfuscation", &[json!(false)])?;
    options.end()?;
    Ok(Streaming { is_on, has_usage })
}

/// What both kinds of requests say of how to generate.
pub fn apply(request: &mut Request, fields: &mut Fields, caller: &Caller) -> Result<(), Failure> {
    let n = fields.integer("n", 1, MAX_ANSWERS as u64)?;
    request.n_answers = n.unwrap_or(1) as usize;
    request.stops = fields.strings("stop")?;
    sampled(request, fields, caller)?;
    without_effect(fields)
}

/// What requests of all kinds say of how to generate, and whose they are.
pub fn sampled(request: &mut Request, fields: &mut Fields, caller: &Caller) -> Result<(), Failure> {
    request.choices = choices(fields)?;
    if let Some(said) = form::structured_outputs(fields)?
        && let Some(other) = request.form.said.replace(said)
    {
        let reason = format!("and {} exclude each other", other.field);
        return Err(fields.invalid("structured_outputs", reason));
    }
    let salt = fields.string("cache_salt")?;
    request.namespace = caller.namespace(salt.as_deref())?;
    if fields.has("keep_alive") {
        let s = fields.integer("keep_alive", 0, crate::models::MAX_KEEP_ALIVE_S)?.unwrap_or(0);
        request.keep_alive = Some(crate::models::KeepAlive::For(Duration::from_secs(s)));
    }
    request.permit = Some(caller.permit()?);
    Ok(())
}

/// How much the model is to think, as a variable of the template; the word, if one is given.
pub fn effort(
    fields: &mut Fields,
    name: &str,
    kwargs: &mut JsonMap,
) -> Result<Option<&'static str>, Failure> {
    let efforts = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
    let effort = fields.word(name, &efforts)?;
    let (name, value) = match effort {
        None => return Ok(None),
        Some("none") => ("enable_thinking", json!(false)),
        Some(effort) => ("reasoning_effort", json!(effort)),
    };
    kwargs.insert(name.into(), value);
    Ok(effort)
}

/// Variables of the template, by their own names.
pub fn kwargs(fields: &mut Fields, kwargs: &mut JsonMap) -> Result<(), Failure> {
    if let Some(thinks) = fields.bool("enable_thinking")? {
        kwargs.insert("enable_thinking".into(), thinks.into());
    }
    let Some(given) = fields.object("chat_template_kwargs")? else { return Ok(()) };
    for (name, value) in given.rest() {
        if !KWARGS.contains(&name.as_str()) {
            let name = super::shown(&name);
            let reason = format!("cannot set {name}; it may set {}", KWARGS.join(", "));
            return Err(fields.invalid("chat_template_kwargs", reason));
        }
        kwargs.insert(name, value);
    }
    Ok(())
}

fn choices(fields: &mut Fields) -> Result<Choices, Failure> {
    Ok(Choices {
        temperature: fields.number("temperature", &sampling::TEMPERATURES)?,
        top_p: fields.number("top_p", &sampling::TOP_PS)?,
        top_k: fields.u32("top_k", 0)?,
        min_p: fields.number("min_p", &sampling::MIN_PS)?,
        repetition_penalty: fields.number("repetition_penalty", &sampling::REPETITION_PENALTIES)?,
        presence_penalty: fields.number("presence_penalty", &sampling::PENALTIES)?,
        frequency_penalty: fields.number("frequency_penalty", &sampling::PENALTIES)?,
        logit_bias: logit_bias(fields)?,
        seed: fields.seed("seed")?,
        ..Choices::default()
    })
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, Failure> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let biases = biases.rest();
    if biases.len() > MAX_BIASES {
        let reason = format!("has {} entries, at most {MAX_BIASES} are allowed", biases.len());
        return Err(fields.invalid("logit_bias", reason));
    }
    let entry = |(token, bias): (String, Value)| {
        let bias = bias.as_f64().map(|bias| bias as f32);
        let bias = bias.filter(|bias| (-100.0..=100.0).contains(bias));
        Some((token.parse::<u32>().ok()?, bias?))
    };
    let biases: Option<Vec<_>> = biases.into_iter().map(entry).collect();
    biases.ok_or_else(|| {
        fields.invalid("logit_bias", "must map token ids to numbers from -100 to 100")
    })
}

/// What clients send and what changes nothing here.
fn without_effect(fields: &mut Fields) -> Result<(), Failure> {
    // Names of users and sessions: nothing is kept of them.
    for name in ["user", "safety_identifier", "metadata"] {
        fields.without_effect(name);
    }
    // Prefixes are found by their content, and kept as long as there is room.
    for name in ["prompt_cache_key", "prompt_cache_retention"] {
        fields.without_effect(name);
    }
    fields.only("store", &[json!(false)])?;
    fields.only("service_tier", &[json!("auto"), json!("default")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_sampler_has_its_own_place() {
        let body = json!({
            "temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125,
            "repetition_penalty": 1.5, "presence_penalty": 0.75, "frequency_penalty": -0.5,
            "logit_bias": {"3": -100, "4": 1.5}, "seed": 9,
        });
        let expected = Choices {
            temperature: Some(0.25),
            top_p: Some(0.5),
            top_k: Some(7),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(0.75),
            frequency_penalty: Some(-0.5),
            penalty_window_tokens: None,
            logit_bias: vec![(3, -100.0), (4, 1.5)],
            seed: Some(9),
        };
        let mut fields = Fields::of("", body).unwrap();
        assert_eq!(choices(&mut fields), Ok(expected));
        assert_eq!(fields.end(), Ok(()));
        let mut nothing = Fields::of("", json!({})).unwrap();
        assert_eq!(choices(&mut nothing), Ok(Choices::default()));
    }
}
