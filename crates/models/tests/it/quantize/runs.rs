//! What stops a run, what it leaves, and how it is taken up again.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::{Array, Device, Dtype};
use models::Error;
use models::quantize::{Pattern, QuantizeLimits, Settings, quantize};

use super::sources::{Source, source};
use super::{LIMITS, SMALL_SHARDS, affine, codes, run, run_within, tensors_of};

/// A folder with a source, and room for targets.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self::of(&source("llama"))
    }

    fn of(source: &Source) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(place.source()).unwrap();
        source.write(&place.source(), Dtype::Bf16, 1);
        place
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    /// What lies beside the source.
    fn others(&self) -> Vec<String> {
        let list = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names = list.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>();
        names.retain(|name| name != "source");
        names.sort();
        names
    }

    /// The error, after which nothing may be left.
    fn refused(&self, settings: &Settings, says: &[&str]) {
        let error = run(&self.source(), &self.target(), settings).unwrap_err().to_string();
        for text in says {
            assert!(error.contains(text), "no '{text}' in: {error}");
        }
        assert_eq!(self.others(), [""; 0], "{error}");
    }

    /// Runs with many files and stops after `n_shards` of them.
    fn stopped_after(&self, n_shards: usize, settings: &Settings) -> Error {
        Device::open().unwrap();
        let mut on_progress = |progress: &models::quantize::QuantizeProgress| match progress
            .done_shards
            >= n_shards
        {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        quantize(&self.source(), &self.target(), settings, SMALL_SHARDS, &mut on_progress)
            .unwrap_err()
    }
}

/// Everything in a folder, by name.
fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let list = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut all = list.map(|path| (name(&path), fs::read(path).unwrap())).collect::<Vec<_>>();
    all.sort();
    all
}

#[test]
fn a_stopped_run_goes_on_with_the_files_that_it_finished() {
    let place = Place::new();
    let settings = codes(affine(4, 32));
    let whole = run_within(&place.source(), &place.target(), &settings, SMALL_SHARDS).unwrap();
    let wanted = content(&place.target());
    assert_eq!(whole.n_resumed_shards, 0);
    fs::remove_dir_all(place.target()).unwrap();

    assert!(matches!(place.stopped_after(2, &settings), Error::Cancelled));
    assert!(!place.target().exists());
    let part = place.dir.path().join(&place.others()[0]);
    // What would be written again is another: only a file that is taken over keeps its time.
    let first = part.join(format!("model-00001-of-{:05}.safetensors", whole.n_shards));
    let before = fs::metadata(&first).unwrap().modified().unwrap();
    let resumed = run_within(&place.source(), &place.target(), &settings, SMALL_SHARDS).unwrap();
    assert_eq!(resumed.n_resumed_shards, 2);
    assert_eq!(content(&place.target()), wanted);
    assert_eq!(place.others(), ["target"]);
    let after = place.target().join(first.file_name().unwrap());
    assert_eq!(fs::metadata(after).unwrap().modified().unwrap(), before);
    assert_eq!(resumed.roles, whole.roles);
}

#[test]
fn a_file_that_was_damaged_in_between_is_written_again() {
    let place = Place::new();
    let settings = codes(affine(4, 32));
    run_within(&place.source(), &place.target(), &settings, SMALL_SHARDS).unwrap();
    let wanted = content(&place.target());
    fs::remove_dir_all(place.target()).unwrap();
    place.stopped_after(3, &settings);
    let part = place.dir.path().join(&place.others()[0]);
    let name = wanted.iter().map(|(name, _)| name).find(|name| name.contains("00002")).unwrap();
    let mut bytes = fs::read(part.join(name)).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(part.join(name), bytes).unwrap();
    let resumed = run_within(&place.source(), &place.target(), &settings, SMALL_SHARDS).unwrap();
    assert_eq!(resumed.n_resumed_shards, 2);
    assert_eq!(content(&place.target()), wanted);
}

#[test]
fn other_choices_or_a_changed_source_start_anew() {
    let place = Place::new();
    place.stopped_after(2, &codes(affine(4, 32)));
    let other = codes(affine(8, 32));
    let report = run_within(&place.source(), &place.target(), &other, SMALL_SHARDS).unwrap();
    assert_eq!(report.n_resumed_shards, 0);
    assert!(report.notes.iter().any(|note| note.contains("removed")), "{report:?}");
    assert_eq!(place.others(), ["target"]);
    fs::remove_dir_all(place.target()).unwrap();

    place.stopped_after(2, &other);
    let file = place.source().join("model.safetensors");
    let later = fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::new(1, 0);
    fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
    let report = run_within(&place.source(), &place.target(), &other, SMALL_SHARDS).unwrap();
    assert_eq!(report.n_resumed_shards, 0);
}

#[test]
fn a_run_that_is_stopped_before_a_file_is_finished_leaves_nothing() {
    let place = Place::new();
    Device::open().unwrap();
    let stopped =
        quantize(&place.source(), &place.target(), &codes(affine(4, 32)), LIMITS, &mut |_| {
            ControlFlow::Break(())
        });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(place.others(), [""; 0]);
}

#[test]
fn a_target_that_exists_is_replaced_only_on_request_and_only_if_it_is_a_model() {
    let place = Place::new();
    let settings = codes(affine(4, 32));
    let overwriting = Settings { overwrites: true, ..codes(affine(8, 32)) };
    run(&place.source(), &place.target(), &settings).unwrap();
    let before = content(&place.target());
    let error = run(&place.source(), &place.target(), &settings).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(content(&place.target()), before);
    run(&place.source(), &place.target(), &overwriting).unwrap();
    assert_ne!(content(&place.target()), before);
    assert_eq!(place.others(), ["target"]);

    fs::remove_file(place.target().join("model.safetensors")).unwrap();
    let error = run(&place.source(), &place.target(), &overwriting).unwrap_err().to_string();
    assert!(error.contains("no model's folder"), "{error}");
    for target in [place.source(), place.source().join("inside"), place.dir.path().to_owned()] {
        let error = run(&place.source(), &target, &overwriting).unwrap_err().to_string();
        assert!(error.contains("lie in each other"), "{error}");
    }
    let nowhere = place.dir.path().join("nowhere/target");
    let error = run(&place.source(), &nowhere, &settings).unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
}

#[test]
fn values_that_are_not_finite_are_named_and_nothing_stays() {
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let names = [
        "model.layers.1.self_attn.v_proj.weight",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ];
    for (name, value) in names.into_iter().zip(values) {
        let place = Place::new();
        let mut tensors = source("llama").tensors(Dtype::Bf16);
        let good = tensors[name].clone();
        let bad = Array::full(&vec![1; good.n_dims()], value, Dtype::Bf16).unwrap();
        let start = vec![3; good.n_dims()];
        let stop = vec![4; good.n_dims()];
        let spoiled = good.slice_update(&bad, &start, &stop).unwrap();
        tensors.insert(name.to_owned(), spoiled);
        crate::folder::write(&place.source(), &source("llama").config, tensors, 1);
        let inner = name.trim_end_matches(".weight");
        place.refused(&codes(affine(4, 32)), &["model.safetensors", inner, "not finite"]);
    }
}

#[test]
fn values_that_the_new_dtype_cannot_hold_are_named() {
    let place = Place::new();
    let mut tensors = source("llama").tensors(Dtype::Bf16);
    let large = Array::full(&[64], 1e6, Dtype::Bf16).unwrap();
    tensors.insert("model.norm.weight".to_owned(), large);
    crate::folder::write(&place.source(), &source("llama").config, tensors, 1);
    let settings = Settings { dtype: Some(Dtype::F16), ..codes(affine(4, 32)) };
    place.refused(&settings, &["model.norm", "too large for f16"]);
    run(&place.source(), &place.target(), &codes(affine(4, 32))).unwrap();
}

#[test]
fn a_disk_that_is_too_small_is_known_before_anything_is_written() {
    let place = Place::new();
    let limits = QuantizeLimits { free_bytes: |_| Some(1 << 16), ..SMALL_SHARDS };
    let settings = codes(affine(4, 32));
    let error = run_within(&place.source(), &place.target(), &settings, limits).unwrap_err();
    assert!(matches!(error, Error::Disk { .. }), "{error}");
    assert_eq!(place.others(), [""; 0]);
    // What is there already needs no room: 64 KiB suffice for the rest.
    let n = run_within(&place.source(), &place.target(), &settings, SMALL_SHARDS).unwrap().n_shards;
    fs::remove_dir_all(place.target()).unwrap();
    place.stopped_after(n - 1, &settings);
    let report = run_within(&place.source(), &place.target(), &settings, limits).unwrap();
    assert_eq!(report.n_resumed_shards, n - 1);
}

#[test]
fn choices_that_cannot_be_met_are_refused_before_any_work() {
    let place = Place::new();
    let pattern = |text: &str| Pattern::new(text).unwrap();
    let keep = |text| Settings { keep: vec![pattern(text)], ..codes(affine(4, 64)) };
    let at = |text, q| Settings { at: vec![(pattern(text), q)], ..codes(affine(4, 64)) };
    place.refused(&keep("lm_haed"), &["'lm_haed' matches no matrix", "model.embed_tokens"]);
    place.refused(&at("k_prj", affine(8, 64)), &["'k_prj' matches no matrix"]);
    place.refused(&at("k_proj", affine(8, 128)), &["groups of 128", "rows of 64"]);
    place.refused(&codes(affine(4, 48)), &["groups [32, 64, 128]"]);
    place.refused(&keep("*"), &["nothing would be quantized", "'*' keeps it"]);

    let settings = Settings {
        keep: vec![pattern("layers.0.mlp")],
        at: vec![(pattern("lm_head"), affine(8, 32)), (pattern("v_proj"), affine(6, 64))],
        ..codes(affine(4, 64))
    };
    let report = run(&place.source(), &place.target(), &settings).unwrap();
    assert_eq!(report.floats.len(), 3);
    let tensors = tensors_of(&place.target());
    assert_eq!(tensors["lm_head.weight"].shape(), [72, 64 * 8 / 32]);
    assert_eq!(tensors["model.layers.1.self_attn.v_proj.weight"].shape(), [64, 64 * 6 / 32]);
    assert_eq!(tensors["model.layers.0.mlp.up_proj.weight"].dtype(), Dtype::Bf16);
    super::folder::load(&place.target(), &super::LoadOptions::default()).unwrap();
}

#[test]
fn broken_sources_are_refused_as_loading_refuses_them() {
    let mut missing = source("qwen3_moe");
    missing.shapes.remove("model.layers.0.mlp.experts.4.up_proj.weight");
    let mut superfluous = source("llama");
    superfluous.shapes.insert("model.layers.9.mlp.up_proj.weight".into(), vec![192, 64]);
    let mut misshapen = source("llama");
    misshapen.shapes.insert("model.layers.1.mlp.up_proj.weight".into(), vec![192, 32]);
    for (source, says) in [
        (missing, "model.layers.0.mlp.switch_mlp.up_proj"),
        (superfluous, "model.layers.9.mlp.up_proj"),
        (misshapen, "[192, 64]"),
    ] {
        Place::of(&source).refused(&codes(affine(4, 64)), &[says]);
    }
    let place = Place::new();
    fs::write(place.source().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    place.refused(&codes(affine(4, 64)), &["mamba"]);
}
