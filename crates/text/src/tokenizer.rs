//! The tokenizer of a model, from the bytes of its files.
//!
//! Three ways in, by who wrote the text: [`Tokenizer::encode_prompt`] trusts it (raw completion:
//! special tokens in the text count), [`Tokenizer::encode_text`] does not, and
//! [`Tokenizer::encode_rendered`] trusts the template but not what callers put into it.

use std::collections::{BTreeMap, HashMap};
use std::sync::OnceLock;

use tokenizers::{Model, Tokenizer as Inner};

use crate::segments::{Cuts, Of, Segments};
use crate::{Detokenizer, Error, Guard, Json, Rendered, Result};

/// Most bytes of a tokenizer.json; the largest in use have about 35 MB.
pub const MAX_TOKENIZER_BYTES: usize = 256 << 20;
/// Most bytes of a tokenizer_config.json.
pub const MAX_CONFIG_BYTES: usize = 16 << 20;
/// How often a piece is cut further before its text is refused.
const MAX_CUT_ROUNDS: usize = 4;

/// Encodes and decodes, knows the special tokens.
pub struct Tokenizer {
    inner: Inner,
    /// The same without prefix spaces, for text that continues a piece; made when first needed.
    continuing: OnceLock<Option<Inner>>,
    cuts: OnceLock<Cuts>,
    guard: Guard,
    guarded_literals: HashMap<u32, String>,
    template_tokens: BTreeMap<String, String>,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
    vocab_size: usize,
    decoder: Json,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds from the bytes of tokenizer.json, and the texts of tokenizer_config.json and
    /// special_tokens_map.json where the model has them (the map counts for names that the
    /// config lacks).
    pub fn new(
        tokenizer_json: &[u8],
        config: Option<&str>,
        special_tokens_map: Option<&str>,
    ) -> Result<Tokenizer> {
        if tokenizer_json.len() > MAX_TOKENIZER_BYTES {
            return Err(Error::Model(format!(
                "tokenizer.json has {} bytes, at most {MAX_TOKENIZER_BYTES} are allowed",
                tokenizer_json.len()
            )));
        }
        let mut inner = Inner::from_bytes(tokenizer_json).map_err(|e| {
            Error::Model(format!("tokenizer.json cannot be read: {e}; fetch the model again"))
        })?;
        inner.with_padding(None);
        let _ = inner.with_truncation(None);
        let mut template_tokens = BTreeMap::new();
        for (file, text) in
            [("special_tokens_map.json", special_tokens_map), ("tokenizer_config.json", config)]
        {
            if let Some(text) = text {
                template_tokens.extend(named_tokens(&parse_config(file, text)?));
            }
        }
        let added = inner.get_added_tokens_decoder();
        let guard =
            Guard::new(added.values().map(|token| (token.content.as_str(), token.special)))?;
        // A character that no vocabulary has shows the id of unknown text; that one is no forgery.
        let unknown = inner.get_model().tokenize("\u{10FFFD}").unwrap_or_default();
        let guarded_literals = added
            .iter()
            .filter(|(_, token)| guard.guards(&token.content))
            .filter(|(id, _)| unknown.iter().all(|token| token.id != **id))
            .map(|(&id, token)| (id, token.content.clone()))
            .collect();
        let id_of = |name: &str| template_tokens.get(name).and_then(|t| inner.token_to_id(t));
        let decoder = serde_json::to_value(inner.get_decoder())
            .map_err(|e| Error::Model(format!("tokenizer.json: decoder: {e}")))?;
        Ok(Tokenizer {
            bos_id: id_of("bos_token"),
            eos_ids: id_of("eos_token").into_iter().collect(),
            vocab_size: inner.get_vocab_size(true),
            continuing: OnceLock::new(),
            cuts: OnceLock::new(),
            guard,
            guarded_literals,
            template_tokens,
            decoder,
            inner,
        })
    }

    /// Token ids of a raw prompt, with BOS and the like only if the tokenizer's post-processor
    /// adds them. Special tokens written in the text count: the caller wrote the whole prompt.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| not_encodable(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of untrusted text: no special token, neither from the text nor added.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_rendered(&self.guard.mark_text(text)?)
    }

    /// Token ids of a rendered chat. Nothing is added: the template wrote BOS if it wants it.
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for (idx, piece) in rendered.pieces().enumerate() {
            self.encode_piece(piece, idx > 0, 0, &mut ids)?;
        }
        Ok(ids)
    }

    /// The same; what was encoded before for the namespace is not encoded again.
    pub fn encode_remembered(
        &self,
        rendered: &Rendered,
        segments: &Segments,
        namespace: u64,
    ) -> Result<Vec<u32>> {
        let cuts = self.cuts.get_or_init(|| match self.without_blanks() {
            Some(_) => Cuts::none(),
            None => Cuts::new(self.inner.get_added_tokens_decoder().values()),
        });
        let mut ids = Vec::new();
        for (idx, piece) in rendered.pieces().enumerate() {
            for segment in cuts.segments(piece) {
                let continues = idx > 0;
                let encode = || {
                    let mut ids = Vec::new();
                    self.encode_piece(segment, continues, 0, &mut ids)?;
                    Ok::<_, Error>(ids)
                };
                // How a text begins counts where nothing is cut.
                let of = Of { namespace, continues };
                ids.extend_from_slice(&segments.ids(of, segment, encode)?);
            }
        }
        Ok(ids)
    }

    /// Encodes a piece. A guarded token that stands for other text than its literal came out of
    /// normalization, hence not from the template: the piece is cut inside it.
    fn encode_piece(
        &self,
        piece: &str,
        continues: bool,
        n_rounds: usize,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let inner = if continues { self.continuing() } else { &self.inner };
        let encoding = inner.encode(piece, false).map_err(|e| not_encodable(&e))?;
        let cuts = self.forged(piece, &encoding);
        if cuts.is_empty() {
            ids.extend_from_slice(encoding.get_ids());
            return Ok(());
        }
        if n_rounds == MAX_CUT_ROUNDS {
            return Err(Error::Request(
                "the text spells special tokens with look-alike characters; remove them".into(),
            ));
        }
        let mut start = 0;
        for end in cuts.into_iter().chain([piece.len()]) {
            self.encode_piece(&piece[start..end], continues || start > 0, n_rounds + 1, ids)?;
            start = end;
        }
        Ok(())
    }

    /// Where to cut `piece` so that the guarded tokens that are not literally in it go away.
    fn forged(&self, piece: &str, encoding: &tokenizers::Encoding) -> Vec<usize> {
        let mut cuts = Vec::new();
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let Some(literal) = self.guarded_literals.get(&id) else { continue };
            let Some(span) = piece.get(start..end) else { continue };
            let first_len = span.chars().next().map_or(0, char::len_utf8);
            if span.trim() != literal.trim() && first_len < span.len() {
                cuts.push(start + first_len);
            }
        }
        cuts.dedup();
        cuts
    }

    fn continuing(&self) -> &Inner {
        self.without_blanks().unwrap_or(&self.inner)
    }

    /// The same without prefix spaces; none if the tokenizer puts none in front of texts.
    fn without_blanks(&self) -> Option<&Inner> {
        self.continuing.get_or_init(|| without_prefix_space(&self.inner)).as_ref()
    }

    /// The whole text of `ids`; unknown ids are skipped, and special tokens unless asked for.
    pub fn decode(&self, ids: &[u32], with_special_tokens: bool) -> Result<String> {
        self.inner
            .decode(ids, !with_special_tokens)
            .map_err(|e| Error::Model(format!("the tokenizer cannot decode: {e}")))
    }

    /// A streaming decoder; special tokens are left out unless asked for.
    pub fn detokenizer(&self, with_special_tokens: bool) -> Result<Detokenizer<'_>> {
        Detokenizer::new(&self.inner, &self.decoder, with_special_tokens)
    }

    /// What keeps callers' text from becoming special tokens.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Variables such as `bos_token` that templates see.
    pub fn template_tokens(&self) -> BTreeMap<String, String> {
        self.template_tokens.clone()
    }

    /// Number of entries, added tokens included. Ids may have holes and be larger.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Ids of the end-of-sequence tokens that the tokenizer's files name; the model's
    /// generation config may name more.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Id of a token by its exact text, ordinary or special.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Text of a token in the vocabulary's own spelling.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        let vocabulary = self.inner.get_added_vocabulary();
        vocabulary.simple_id_to_token(id).is_some_and(|token| vocabulary.is_special_token(&token))
    }
}

fn not_encodable(error: &tokenizers::Error) -> Error {
    Error::Model(format!("the tokenizer cannot encode this text: {error}"))
}

fn parse_config(file: &str, text: &str) -> Result<Json> {
    if text.len() > MAX_CONFIG_BYTES {
        return Err(Error::Model(format!(
            "{file} has {} bytes, at most {MAX_CONFIG_BYTES} are allowed",
            text.len()
        )));
    }
    serde_json::from_str(text).map_err(|e| Error::Model(format!("{file} is not JSON: {e}")))
}

/// `bos_token` and its like, given as a string or as `{"content": ...}`.
fn named_tokens(config: &Json) -> impl Iterator<Item = (String, String)> {
    config.as_object().into_iter().flatten().filter_map(|(name, value)| {
        let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
        name.ends_with("_token").then(|| (name.clone(), text.to_owned()))
    })
}

/// A copy that adds no space before a text, or none if the tokenizer adds none anyway.
fn without_prefix_space(inner: &Inner) -> Option<Inner> {
    let mut normalizer = serde_json::to_value(inner.get_normalizer()).ok()?;
    let mut pre_tokenizer = serde_json::to_value(inner.get_pre_tokenizer()).ok()?;
    let changed = [strip_prefix(&mut normalizer), strip_prefix(&mut pre_tokenizer)];
    if !changed.contains(&true) {
        return None;
    }
    let mut copy = inner.clone();
    let normalizer: Option<tokenizers::NormalizerWrapper> =
        serde_json::from_value(normalizer).ok()?;
    let pre_tokenizer: Option<tokenizers::PreTokenizerWrapper> =
        serde_json::from_value(pre_tokenizer).ok()?;
    copy.with_normalizer(normalizer);
    copy.with_pre_tokenizer(pre_tokenizer);
    Some(copy)
}

/// Removes prefix spaces from the JSON of a normalizer or pre-tokenizer; true if it had any.
fn strip_prefix(step: &mut Json) -> bool {
    let kind = step.get("type").and_then(Json::as_str).unwrap_or_default().to_owned();
    let set = |step: &mut Json, key: &str, value: Json| {
        let changed = step.get(key).is_some_and(|old| *old != value);
        if changed {
            step[key] = value;
        }
        changed
    };
    match kind.as_str() {
        "Prepend" => {
            *step = Json::Null;
            true
        }
        "Metaspace" => set(step, "prepend_scheme", "never".into()),
        "ByteLevel" => set(step, "add_prefix_space", false.into()),
        "Sequence" => {
            let mut changed = false;
            for key in ["normalizers", "pretokenizers"] {
                if let Some(steps) = step.get_mut(key).and_then(Json::as_array_mut) {
                    for inner in steps.iter_mut() {
                        changed |= strip_prefix(inner);
                    }
                    steps.retain(|inner| !inner.is_null());
                }
            }
            changed
        }
        _ => false,
    }
}
