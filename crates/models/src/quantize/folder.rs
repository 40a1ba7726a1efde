//! The small files of the output: config.json, the index, and what is copied from the source.

use std::fs;
use std::path::{Path, PathBuf};

use mlx::{Dtype, Quantization};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

use super::naming::Naming;
use super::part_folder::write_synced;
use super::plan::Plan;
use super::settings::{Settings, Target};

/// The config of the output: the source's, with its quantization in the words of MLX tools.
pub(super) fn config(source: &Value, plan: &Plan, settings: &Settings) -> Value {
    let mut root = source.clone();
    let naming = Naming::of(source["model_type"].as_str().unwrap_or_default());
    if let (Some(renamed), Some(root)) = (naming.renamed, root.as_object_mut()) {
        root.insert("model_type".to_owned(), renamed.into());
    }
    for &key in naming.at_root {
        if let Some(value) = root["text_config"].get(key).cloned() {
            root[key] = value;
        }
    }
    for_texts(&mut root, |text| {
        for key in ["quantization", "quantization_config", "_name_or_path"] {
            text.shift_remove(key);
        }
    });
    // MLX tools know no other way to tell: their own defaults differ between families.
    let is_tied = Value::from(!plan.has_head);
    let text = if root["text_config"].is_object() { &mut root["text_config"] } else { &mut root };
    text["tie_word_embeddings"] = is_tied.clone();
    if root.get("tie_word_embeddings").is_some() {
        root["tie_word_embeddings"] = is_tied;
    }
    let dtype = match settings.target {
        Target::Floats(dtype) => Some(dtype),
        Target::Codes(_) => settings.dtype,
    };
    if let Some(name) = dtype.and_then(dtype_name) {
        for_texts(&mut root, |text| {
            for key in ["dtype", "torch_dtype"] {
                if let Some(stated) = text.get_mut(key) {
                    *stated = name.into();
                }
            }
        });
    }
    if let Target::Codes(default) = settings.target {
        let codings = quantization(default, plan);
        root["quantization"] = codings.clone();
        root["quantization_config"] = codings;
    }
    root
}

/// The root and the text model's part.
fn for_texts(root: &mut Value, mut change: impl FnMut(&mut Map<String, Value>)) {
    if let Some(text) = root.get_mut("text_config").and_then(Value::as_object_mut) {
        change(text);
    }
    if let Some(root) = root.as_object_mut() {
        change(root);
    }
}

/// As config.json spells it.
fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::Bf16 => Some("bfloat16"),
        Dtype::F16 => Some("float16"),
        Dtype::F32 => Some("float32"),
        _ => None,
    }
}

/// `{group_size, bits, mode}`, and by path what differs from it.
fn quantization(default: Quantization, plan: &Plan) -> Value {
    let stated = |q: Quantization| {
        let mode = q.mode.name();
        json!({ "group_size": q.group_size, "bits": q.bits, "mode": mode })
    };
    let mut all = stated(default);
    for (path, coding) in &plan.codings {
        match coding {
            Some(coding) if *coding == default => {}
            Some(coding) => all[path] = stated(*coding),
            None => all[path] = Value::Bool(false),
        }
    }
    all
}

/// `model.safetensors`, or one of several.
pub(super) fn shard_name(shard_idx: usize, n_shards: usize) -> String {
    match n_shards {
        1 => "model.safetensors".to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", shard_idx + 1),
    }
}

/// `model.safetensors.index.json`, from the names of each shard.
pub(super) fn index(names: &[Vec<String>], total_bytes: u64, n_weights: u64) -> Value {
    let mut pairs = names
        .iter()
        .enumerate()
        .flat_map(|(i, list)| list.iter().map(move |name| (name, shard_name(i, names.len()))))
        .collect::<Vec<_>>();
    pairs.sort();
    let map = pairs.into_iter().map(|(name, file)| (name.clone(), Value::from(file)));
    json!({
        "metadata": { "total_size": total_bytes, "total_parameters": n_weights },
        "weight_map": map.collect::<Map<_, _>>(),
    })
}

/// Writes a JSON file as people read it.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_synced(path, format!("{value:#}\n").as_bytes())
}

/// Endings of files that go with the weights.
const COPIED: [&str; 5] = ["json", "jinja", "txt", "model", "tiktoken"];
/// Beginnings of names of licences.
const LICENCES: [&str; 3] = ["LICENSE", "LICENCE", "NOTICE"];
/// Ends of names that describe the source's weights, not the output's.
const NOT_COPIED: [&str; 3] = ["config.json.bak", ".index.json", "offshoot-quantize.json"];
/// Whole names of the same.
const REPLACED: [&str; 4] =
    ["config.json", "hf_quant_config.json", "quantize_config.json", "quant_config.json"];
/// Tokenizers of today stay below 40 MB.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// Files of the source that the output has, too.
#[derive(Debug, Default)]
pub(super) struct Extras {
    pub files: Vec<PathBuf>,
    pub n_bytes: u64,
    /// What looked like one of them and is left out, and why.
    pub notes: Vec<String>,
}

/// Tokenizer, chat template, generation settings, licence. Links are followed only where the
/// weights are links as well, into a folder that they share: so the Hub's cache keeps models.
pub(super) fn extras(source: &Path) -> Result<Extras> {
    let failed = |e| Error::file(source, e);
    let root = source.canonicalize().map_err(failed)?;
    let homes = homes(&root);
    let mut extras = Extras::default();
    let list = fs::read_dir(&root).map_err(failed)?;
    let mut paths = list.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<_>>();
    paths.sort();
    for path in paths.into_iter().filter(|path| is_wanted(path)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(real) = path.canonicalize() else {
            extras.notes.push(format!("{name} is a link to nothing: not copied"));
            continue;
        };
        if !real.parent().is_some_and(|home| homes.iter().any(|known| known == home)) {
            extras.notes.push(format!("{name} is a link that leads elsewhere: not copied"));
            continue;
        }
        let meta = real.metadata().map_err(|e| Error::file(&path, e))?;
        if !meta.is_file() {
            continue;
        }
        if meta.len() > MAX_COPIED_BYTES {
            extras.notes.push(format!("{name} has {} bytes: not copied", meta.len()));
            continue;
        }
        extras.n_bytes += meta.len();
        extras.files.push(path);
    }
    Ok(extras)
}

/// The folder itself, and where its config and weights are linked to.
fn homes(root: &Path) -> Vec<PathBuf> {
    let mut homes = vec![root.to_owned()];
    let real = root.join("config.json").canonicalize();
    let home = real.ok().and_then(|path| Some(path.parent()?.to_owned()));
    // The cache's layout: models--x/snapshots/<commit>/config.json → models--x/blobs/<hash>.
    let is_cache = |home: &PathBuf| {
        let above = root.parent().and_then(Path::parent);
        home.file_name().is_some_and(|name| name == "blobs") && home.parent() == above
    };
    homes.extend(home.filter(is_cache));
    homes
}

fn is_wanted(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let is_licence = LICENCES.iter().any(|start| name.starts_with(start));
    (COPIED.contains(&ending) || is_licence)
        && !name.starts_with('.')
        && !REPLACED.contains(&name)
        && !NOT_COPIED.iter().any(|end| name.ends_with(end))
}

impl Extras {
    /// Copies them into `folder`, as files of their own.
    pub fn copy(&self, folder: &Path) -> Result<()> {
        for path in &self.files {
            let bytes = fs::read(path).map_err(|e| Error::file(path, e))?;
            write_synced(&folder.join(path.file_name().unwrap_or_default()), &bytes)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copied(source: &Path) -> (Vec<String>, Vec<String>) {
        let extras = extras(source).unwrap();
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        (extras.files.iter().map(name).collect(), extras.notes)
    }

    #[test]
    fn tokenizers_templates_and_licences_go_with_the_weights_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = [
            "LICENSE",
            "chat_template.jinja",
            "generation_config.json",
            "merges.txt",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ];
        let others = [
            "config.json",
            "model.safetensors.index.json",
            "model.safetensors",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "model.gguf",
            "hf_quant_config.json",
            "modeling_x.py",
            "README.md",
            ".hidden.json",
        ];
        for name in wanted.iter().chain(&others) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join("folder.json")).unwrap();
        assert_eq!(copied(dir.path()), (wanted.map(str::to_owned).to_vec(), vec![]));
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_out_are_not_followed_but_those_of_the_hubs_cache_are() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (blobs, snapshot) = (dir.path().join("blobs"), dir.path().join("snapshots/abc"));
        fs::create_dir(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        for (name, blob) in [("config.json", "0"), ("tokenizer.json", "1")] {
            fs::write(blobs.join(blob), "x").unwrap();
            symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
        }
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../../secret", snapshot.join("vocab.json")).unwrap();
        symlink("nothing", snapshot.join("added_tokens.json")).unwrap();
        let (files, notes) = copied(&snapshot);
        assert_eq!(files, ["tokenizer.json"]);
        assert_eq!(notes.len(), 2, "{notes:?}");
    }
}
