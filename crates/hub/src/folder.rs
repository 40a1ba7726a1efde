//! A model folder in Hugging Face layout, checked for what loading needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{FolderProblem, HubError};
use crate::memory::SequenceMemory;
use crate::pull::Origin;
use crate::text_file;
use crate::weights::{HeaderError, Headers, Weights};

pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// A folder with a readable config and all its weight files.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    path: PathBuf,
    config: Map<String, Value>,
    weight_files: Vec<PathBuf>,
    weight_bytes: u64,
}

impl ModelFolder {
    /// Opens a folder and checks it. A missing tokenizer is not an error here: only commands that
    /// deal in text need one, see [`ModelFolder::tokenizer`].
    pub fn open(path: &Path) -> Result<Self, HubError> {
        let path = match path.canonicalize() {
            Ok(canonical) => canonical,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(HubError::NoSuchFolder { path: path.to_owned() });
            }
            Err(source) => return Err(HubError::Io { path: path.to_owned(), source }),
        };
        if !path.is_dir() {
            return Err(HubError::NotAFolder { path });
        }
        let names = file_names(&path)?;
        let problem = |problem| HubError::Folder { path: path.clone(), problem };
        if let Some(foreign) = foreign_weights(&names) {
            return Err(problem(foreign));
        }
        let config =
            read_object(&path, "config.json")?.ok_or_else(|| problem(FolderProblem::NoConfig))?;
        if !text_config(&config, "model_type").is_some_and(Value::is_string) {
            let reason = "has no model_type, so its family is not known".to_owned();
            return Err(problem(FolderProblem::BadFile { file: "config.json".into(), reason }));
        }
        let weight_files: Vec<PathBuf> =
            weight_names(&path, &names)?.into_iter().map(|name| path.join(name)).collect();
        let mut weight_bytes = 0;
        for file in &weight_files {
            let meta = file.metadata();
            let meta = meta.map_err(|source| HubError::Io { path: file.clone(), source })?;
            weight_bytes += meta.len();
        }
        Ok(Self { path, config, weight_files, weight_bytes })
    }

    /// The folder, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The weight files, absolute, in order of their names.
    pub fn weight_files(&self) -> &[PathBuf] {
        &self.weight_files
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Reads the headers of all weight files: whether each is as long as it has to be, whether the
    /// index is right, and what is in them. Costs some milliseconds per file.
    pub fn weights(&self) -> Result<Weights, HubError> {
        let headers = Headers::read(&self.weight_files).map_err(|error| match error {
            HeaderError::Problem(problem) => self.problem(problem),
            HeaderError::Io(source) => HubError::Io { path: self.path.clone(), source },
        })?;
        if let Some(index) = self.read_object(INDEX)? {
            headers.check_index(&index).map_err(|problem| self.problem(problem))?;
        }
        Ok(headers.count(&self.config))
    }

    /// What a sequence takes of memory beside the weights; none for unknown families.
    pub fn sequence_memory(&self) -> Option<SequenceMemory> {
        SequenceMemory::of(&self.config)
    }

    /// Bytes of all files in the folder.
    pub fn disk_bytes(&self) -> Result<u64, HubError> {
        let failed = |source| HubError::Io { path: self.path.clone(), source };
        let mut bytes = 0;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            // Through links: files of the Hugging Face cache are links into it.
            let meta = entry.map_err(failed)?.path().metadata();
            bytes += meta.ok().filter(fs::Metadata::is_file).map_or(0, |meta| meta.len());
        }
        Ok(bytes)
    }

    /// Where it was pulled from; none for folders that were not pulled.
    pub fn origin(&self) -> Option<Origin> {
        Origin::of(&self.path)
    }

    /// The family: `model_type`, of the text part where a model has several.
    pub fn family(&self) -> &str {
        let text = self.config.get("text_config").and_then(|text| text.get("model_type"));
        let family = text.or_else(|| self.config.get("model_type"));
        family.and_then(Value::as_str).unwrap_or_default()
    }

    /// The longest text, in tokens, as the config states it.
    pub fn context_tokens(&self) -> Option<u64> {
        text_config(&self.config, "max_position_embeddings").and_then(Value::as_u64)
    }

    /// The number of layers as the config states it.
    pub fn n_layers(&self) -> Option<u64> {
        text_config(&self.config, "num_hidden_layers").and_then(Value::as_u64)
    }

    /// The type of the checkpoint's unquantized tensors as the config states it.
    pub fn dtype(&self) -> Option<&str> {
        ["dtype", "torch_dtype"].iter().find_map(|key| text_config(&self.config, key)?.as_str())
    }

    /// How the weights are quantized, e.g. `4bit`, `mxfp4`, `fp8`; `None` when they are not.
    pub fn quantization(&self) -> Option<String> {
        let settings = ["quantization", "quantization_config"]
            .iter()
            .find_map(|key| text_config(&self.config, key)?.as_object())?;
        let text = |key| settings.get(key).and_then(Value::as_str);
        match (text("mode"), text("quant_method"), settings.get("bits").and_then(Value::as_u64)) {
            (Some(mode), _, _) if mode != "affine" => Some(mode.to_owned()),
            (_, _, Some(bits)) => Some(format!("{bits}bit")),
            (_, Some(method), None) => Some(method.to_owned()),
            _ => Some("unknown".to_owned()),
        }
    }

    /// `tokenizer.json`, for commands that deal in text.
    pub fn tokenizer(&self) -> Result<PathBuf, HubError> {
        let path = self.path.join("tokenizer.json");
        if path.is_file() { Ok(path) } else { Err(self.problem(FolderProblem::NoTokenizer)) }
    }

    /// A JSON object beside the weights, e.g. `generation_config.json`; `None` when it is absent.
    pub fn read_object(&self, name: &str) -> Result<Option<Map<String, Value>>, HubError> {
        read_object(&self.path, name)
    }

    /// A text file beside the weights, e.g. `chat_template.jinja`; `None` when it is absent.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, HubError> {
        let path = self.path.join(name);
        text_file::read(&path).map_err(|source| HubError::Io { path, source })
    }

    fn problem(&self, problem: FolderProblem) -> HubError {
        HubError::Folder { path: self.path.clone(), problem }
    }
}

/// A field of the text part of a config, or of the whole.
fn text_config<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let text = config.get("text_config").and_then(|text| text.get(key));
    text.or_else(|| config.get(key)).filter(|value| !value.is_null())
}

fn file_names(folder: &Path) -> Result<BTreeSet<String>, HubError> {
    let failed = |source| HubError::Io { path: folder.to_owned(), source };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        // A name that is not UTF-8 is none that we look for.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
            names.insert(name);
        }
    }
    Ok(names)
}

fn foreign_weights(names: &BTreeSet<String>) -> Option<FolderProblem> {
    let any = |endings: &[&str]| names.iter().any(|n| endings.iter().any(|end| n.ends_with(end)));
    if names.is_empty() {
        Some(FolderProblem::Empty)
    } else if any(&[".safetensors", INDEX]) {
        None
    } else if any(&[".gguf"]) {
        Some(FolderProblem::OnlyGguf)
    } else if any(&[".bin", ".pt", ".pth"]) {
        Some(FolderProblem::OnlyPickle)
    } else {
        None
    }
}

/// The names of the weight files: those of the index, else `model*.safetensors`, else all.
fn weight_names(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>, HubError> {
    let problem = |problem| HubError::Folder { path: folder.to_owned(), problem };
    if let Some(index) = read_object(folder, INDEX)? {
        let shards = shards(&index).map_err(|reason| {
            problem(FolderProblem::BadFile { file: INDEX.into(), reason: reason.to_owned() })
        })?;
        let missing: Vec<_> = shards.iter().filter(|name| !names.contains(*name)).collect();
        if let Some(first) = missing.first() {
            return Err(problem(FolderProblem::MissingShards {
                n_missing: missing.len(),
                n_shards: shards.len(),
                first: (*first).clone(),
            }));
        }
        return Ok(shards.into_iter().collect());
    }
    let all: Vec<_> = names.iter().filter(|n| n.ends_with(".safetensors")).cloned().collect();
    let (model, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|n| n.starts_with("model"));
    let chosen = if model.is_empty() { other } else { model };
    if chosen.is_empty() { Err(problem(FolderProblem::NoWeights)) } else { Ok(chosen) }
}

/// The weight files that an index names, or what is wrong with it.
fn shards(index: &Map<String, Value>) -> Result<BTreeSet<String>, &'static str> {
    let map = index.get("weight_map").and_then(Value::as_object).ok_or("has no weight_map")?;
    let shards: Option<BTreeSet<String>> =
        map.values().map(|value| value.as_str().map(str::to_owned)).collect();
    let shards = shards.ok_or("maps a tensor to something that is no file")?;
    if shards.is_empty() {
        return Err("names no weight files");
    }
    if shards.iter().any(|name| !is_plain_file_name(name)) {
        return Err("names a weight file outside the folder");
    }
    Ok(shards)
}

/// The same for an index that has not been parsed.
pub(crate) fn shards_of_index(text: &str) -> Result<BTreeSet<String>, String> {
    let index = serde_json::from_str(text).map_err(|e| format!("is not valid JSON: {e}"))?;
    shards(&index).map_err(str::to_owned)
}

pub(crate) fn is_plain_file_name(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|file_name| file_name == name)
        && !name.contains(['\\', ':'])
}

fn read_object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, HubError> {
    let path = folder.join(name);
    let text = text_file::read(&path).map_err(|source| HubError::Io { path, source })?;
    let Some(text) = text else { return Ok(None) };
    let bad = |reason: String| HubError::Folder {
        path: folder.to_owned(),
        problem: FolderProblem::BadFile { file: name.to_owned(), reason },
    };
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(bad("is not a JSON object".into())),
        Err(e) => Err(bad(format!("is not valid JSON: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    const CONFIG: (&str, &str) = ("config.json", r#"{"model_type": "qwen3"}"#);

    #[test]
    fn every_missing_thing_is_named() {
        let check = |files: &[(&str, &str)], expected: FolderProblem| {
            let dir = folder(files);
            match ModelFolder::open(dir.path()).map(|_| ()) {
                Err(HubError::Folder { problem, .. }) => assert_eq!(problem, expected),
                other => panic!("{expected:?}: {other:?}"),
            }
        };
        let weights = ("model.safetensors", "");
        let index = |map: &'static str| [CONFIG, (INDEX, map)];
        let bad = |file: &str, reason: &str| FolderProblem::BadFile {
            file: file.into(),
            reason: reason.into(),
        };
        check(&[], FolderProblem::Empty);
        check(&[("model-q4.gguf", "")], FolderProblem::OnlyGguf);
        check(&[CONFIG, ("pytorch_model.bin", "")], FolderProblem::OnlyPickle);
        check(&[weights], FolderProblem::NoConfig);
        check(&[CONFIG], FolderProblem::NoWeights);
        check(&[("config.json", "[]"), weights], bad("config.json", "is not a JSON object"));
        check(
            &[("config.json", "{}"), weights],
            bad("config.json", "has no model_type, so its family is not known"),
        );
        check(&index("{}"), bad(INDEX, "has no weight_map"));
        check(&index(r#"{"weight_map": {}}"#), bad(INDEX, "names no weight files"));
        for outside in ["../a.safetensors", "/a", "..", "b/c", "b\\\\c", "c:d"] {
            let map = format!(r#"{{"weight_map": {{"x": "{outside}"}}}}"#);
            let expected = bad(INDEX, "names a weight file outside the folder");
            check(&[CONFIG, (INDEX, &map)], expected);
        }
        check(
            &[
                CONFIG,
                (INDEX, r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#),
                ("a.safetensors", ""),
            ],
            FolderProblem::MissingShards {
                n_missing: 1,
                n_shards: 2,
                first: "b.safetensors".into(),
            },
        );
    }

    #[test]
    fn broken_json_says_where() {
        let dir = folder(&[("config.json", "{\n  nope"), ("model.safetensors", "")]);
        let error = ModelFolder::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.json is not valid JSON") && error.contains("line 2"));
    }

    #[test]
    fn a_file_and_a_missing_folder_are_told_apart() {
        let dir = folder(&[CONFIG]);
        let error = ModelFolder::open(&dir.path().join("config.json")).unwrap_err();
        assert!(matches!(error, HubError::NotAFolder { .. }));
        assert!(error.hint().is_some_and(|hint| hint.contains("did you mean")));
        let error = ModelFolder::open(&dir.path().join("absent")).unwrap_err();
        assert!(matches!(error, HubError::NoSuchFolder { .. }));
    }

    #[test]
    fn weights_come_from_the_index_or_from_the_names() {
        let check = |files: &[(&str, &str)], expected: &[&str]| {
            let dir = folder(files);
            let model = ModelFolder::open(dir.path()).unwrap();
            let names: Vec<_> =
                model.weight_files().iter().map(|p| p.file_name().unwrap().to_str()).collect();
            assert_eq!(names, expected.iter().map(|n| Some(*n)).collect::<Vec<_>>());
            assert_eq!(model.weight_bytes(), expected.len() as u64);
        };
        let index = (INDEX, r#"{"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}"#);
        let (a, b) = (("a.safetensors", "1"), ("b.safetensors", "2"));
        check(&[CONFIG, index, a, b], &["b.safetensors"]);
        check(&[CONFIG, a, b], &["a.safetensors", "b.safetensors"]);
        let (first, second) = (("model-1.safetensors", "1"), ("model-2.safetensors", "2"));
        check(&[CONFIG, a, first, second], &["model-1.safetensors", "model-2.safetensors"]);
    }

    #[test]
    fn only_text_commands_need_a_tokenizer() {
        let dir = folder(&[CONFIG, ("model.safetensors", "")]);
        let model = ModelFolder::open(dir.path()).unwrap();
        let error = model.tokenizer().unwrap_err().to_string();
        assert!(error.contains("tokenizer.json is missing"), "{error}");
        fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
        assert!(model.tokenizer().unwrap().ends_with("tokenizer.json"));
    }

    #[test]
    fn facts_come_from_the_text_part_of_a_config() {
        let check = |config: &str, family: &str, quantization: Option<&str>| {
            let dir = folder(&[("config.json", config), ("model.safetensors", "")]);
            let model = ModelFolder::open(dir.path()).unwrap();
            assert_eq!(model.family(), family, "{config}");
            assert_eq!(model.quantization().as_deref(), quantization, "{config}");
        };
        check(r#"{"model_type": "qwen3"}"#, "qwen3", None);
        check(r#"{"model_type": "m", "quantization": {"bits": 4}}"#, "m", Some("4bit"));
        check(
            r#"{"model_type": "m", "quantization": {"bits": 4, "mode": "mxfp4"}}"#,
            "m",
            Some("mxfp4"),
        );
        check(
            r#"{"model_type": "vl", "text_config": {"model_type": "t",
                "quantization_config": {"quant_method": "fp8"}}}"#,
            "t",
            Some("fp8"),
        );
    }
}
