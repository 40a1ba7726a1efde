//! The fields that generate and chat share, `options` among them.

use serde_json::{Value, json};
use text::{JsonMap, Said};

use super::keep_alive::keep_alive;
use crate::failure::Failure;
use crate::generation::{Input, Request, SaidForm};
use crate::http::App;
use crate::http::fields::Fields;
use crate::http::keys::Caller;
use crate::models::{KeepAlive, TextSide};
use crate::openai;
use crate::sampling;

/// What belongs to how another engine runs.
const OF_OTHER_ENGINES: [&str; 14] = [
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "numa",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mmap",
    "use_mlock",
    "embedding_only",
    "draft_num_predict",
];

/// The shared fields.
pub struct Shared {
    /// Without its input.
    pub request: Request,
    /// Lines, and not one object.
    pub is_streamed: bool,
    /// Variables of the template.
    pub kwargs: JsonMap,
    /// How long the model is to stay.
    pub keep_alive: Option<KeepAlive>,
    num_ctx: Option<u64>,
}

impl Shared {
    /// Takes them.
    pub fn take(fields: &mut Fields, app: &App, caller: &Caller) -> Result<Self, Failure> {
        let model = openai::model(fields, app)?;
        let model = model.strip_suffix(":latest").unwrap_or(&model);
        let mut request = Request::new(model, Input::Tokens(Vec::new()));
        let is_streamed = fields.bool("stream")?.unwrap_or(true);
        let keep_alive = keep_alive(fields, caller)?;
        request.keep_alive = keep_alive;
        match fields.take("format") {
            None => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) if text == "json" => {
                request.form.said = Some(SaidForm::object("format".into()));
            }
            Some(schema @ Value::Object(_)) => {
                let said = Said::Json(schema);
                request.form.said = Some(SaidForm { said, field: "format".into() });
            }
            Some(_) => return Err(fields.invalid("format", "must be \"json\" or a schema")),
        }
        let kwargs = think(fields)?;
        let has_logprobs = fields.bool("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0, protocol::MAX_TOP_LOGPROBS.into())?;
        if top.is_some_and(|n| n > 0) && !has_logprobs {
            return Err(fields.invalid("top_logprobs", "needs logprobs to be true"));
        }
        request.top_logprobs = has_logprobs.then(|| top.unwrap_or(0) as u32);
        let salt = fields.string("cache_salt")?;
        request.namespace = caller.namespace(salt.as_deref())?;
        let num_ctx = match fields.object("options")? {
            None => None,
            Some(options) => self::options(options, &mut request)?,
        };
        // Also where there is nothing to answer.
        request.validated()?;
        Ok(Self { request, is_streamed, kwargs, keep_alive, num_ctx })
    }

    /// Checks what depends on the model.
    pub fn fits(&self, side: &TextSide) -> Result<(), Failure> {
        match (self.num_ctx, side.context_tokens) {
            (Some(asked), Some(context)) if asked > context => {
                let reason = format!("is {asked}, but the model's context is {context} tokens");
                Err(Failure::invalid("options.num_ctx", reason))
            }
            _ => Ok(()),
        }
    }
}

/// None: the template decides.
fn think(fields: &mut Fields) -> Result<JsonMap, Failure> {
    let mut kwargs = JsonMap::new();
    match fields.take("think") {
        None => {}
        Some(Value::Bool(thinks)) => {
            kwargs.insert("enable_thinking".into(), thinks.into());
        }
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => {
            kwargs.insert("enable_thinking".into(), true.into());
            kwargs.insert("reasoning_effort".into(), effort.into());
        }
        Some(_) => {
            return Err(fields.invalid("think", "must be true, false, low, medium or high"));
        }
    }
    Ok(kwargs)
}

/// `options`; what is left open is the model's own. Gives `num_ctx`.
fn options(mut options: Fields, request: &mut Request) -> Result<Option<u64>, Failure> {
    let choices = &mut request.choices;
    choices.temperature = options.number("temperature", &sampling::TEMPERATURES)?;
    choices.top_k = options.u32("top_k", 0)?;
    choices.top_p = options.number("top_p", &sampling::TOP_PS)?;
    choices.min_p = options.number("min_p", &sampling::MIN_PS)?;
    choices.seed = options.seed("seed")?;
    choices.repetition_penalty =
        options.number("repeat_penalty", &sampling::REPETITION_PENALTIES)?;
    choices.presence_penalty = options.number("presence_penalty", &sampling::PENALTIES)?;
    choices.frequency_penalty = options.number("frequency_penalty", &sampling::PENALTIES)?;
    match options.signed("repeat_last_n", -1, i32::MAX.into())? {
        None => {}
        // As far back as the text goes, which is 0 here.
        Some(-1) => choices.penalty_window_tokens = Some(0),
        Some(0) => {
            choices.repetition_penalty = Some(1.0);
            choices.presence_penalty = Some(0.0);
            choices.frequency_penalty = Some(0.0);
        }
        Some(n) => choices.penalty_window_tokens = Some(n.unsigned_abs() as u32),
    }
    request.max_tokens = match options.signed("num_predict", -2, i32::MAX.into())? {
        // No bound but the context.
        None | Some(-1 | -2) => None,
        Some(0) => {
            let reason = "must be from 1 on, or -1 for no bound; an empty prompt only loads";
            return Err(options.invalid("num_predict", reason));
        }
        Some(n) => Some(n.unsigned_abs() as u32),
    };
    request.stops = options.strings("stop")?;
    let num_ctx = options.integer("num_ctx", 1, u32::MAX.into())?;
    options.only("mirostat", &[json!(0)])?;
    options.only("tfs_z", &[json!(1), json!(1.0)])?;
    options.only("typical_p", &[json!(1), json!(1.0)])?;
    options.only("penalize_newline", &[json!(true)])?;
    for name in ["mirostat_tau", "mirostat_eta"] {
        options.refuse(name, "tokens are not drawn by mirostat here")?;
    }
    for name in OF_OTHER_ENGINES {
        options.refuse(name, "it is a setting of another engine")?;
    }
    options.end()?;
    Ok(num_ctx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Choices;

    fn read(json: Value) -> Request {
        let mut request = Request::new("tiny", Input::Tokens(Vec::new()));
        options(Fields::of("options", json).unwrap(), &mut request).unwrap();
        request
    }

    #[test]
    fn every_option_has_its_own_place() {
        let request = read(json!({
            "temperature": 0.25, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "repeat_penalty": 1.5,
            "presence_penalty": 0.75, "frequency_penalty": -0.5, "repeat_last_n": 64, "seed": 9,
            "num_predict": 11, "stop": ["x"],
        }));
        let expected = Choices {
            temperature: Some(0.25),
            top_p: Some(0.5),
            top_k: Some(7),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(0.75),
            frequency_penalty: Some(-0.5),
            penalty_window_tokens: Some(64),
            logit_bias: Vec::new(),
            seed: Some(9),
        };
        assert_eq!(request.choices, expected);
        assert_eq!((request.max_tokens, request.stops), (Some(11), vec!["x".to_owned()]));
        assert_eq!(read(json!({})).choices, Choices::default());
    }

    #[test]
    fn penalties_look_back_as_far_as_they_are_told() {
        let off = |choices: &Choices| {
            let penalties =
                [choices.repetition_penalty, choices.presence_penalty, choices.frequency_penalty];
            penalties == [Some(1.0), Some(0.0), Some(0.0)]
        };
        for (n, window, is_off) in [(-1, Some(0), false), (0, None, true), (8, Some(8), false)] {
            let choices = read(json!({"repeat_last_n": n, "repeat_penalty": 1.5})).choices;
            assert_eq!((choices.penalty_window_tokens, off(&choices)), (window, is_off), "{n}");
        }
        for n in [-1, -2] {
            assert_eq!(read(json!({"num_predict": n})).max_tokens, None);
        }
    }
}
