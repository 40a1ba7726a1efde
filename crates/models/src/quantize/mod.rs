//! From a checkpoint to one in MLX's layout with its matrices in codes, or in floats.
//!
//! What may be coded is what the model itself asks for as a matrix: it is built once without
//! reading a tensor. From that follows a plan of every name, dtype, shape and file, and then one
//! tensor after another is read, checked, coded and written; no two large ones are in memory. A run
//! that is stopped leaves finished files in a folder beside the target, and the same run goes on
//! from there.

mod distance;
mod encode;
mod folder;
mod naming;
mod part_folder;
mod plan;
mod recipe;
mod report;
mod settings;
mod shard;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use mlx::Device;
use serde_json::{Value, json};

use crate::registry;
use crate::{Error, Result};

use distance::Distance;
use folder::Extras;
use part_folder::{Done, PartFolder};
use plan::{Item, Plan};
use report::Tally;
use shard::{Layout, ShardFile};

pub use recipe::Role;
pub use report::{QuantizeReport, RoleReport};
pub use settings::{Pattern, Recipe, Settings, Target};

/// Files of weights are kept below this, as MLX tools keep them, unless one tensor is larger.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The limits of a run.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeLimits {
    /// What the disk of a folder still takes; none if nobody can tell.
    pub free_bytes: fn(&Path) -> Option<u64>,
    /// The size of a file of weights.
    pub shard_bytes: u64,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct QuantizeProgress {
    /// Bytes of the source that are done, those of an earlier run included.
    pub done_bytes: u64,
    /// Bytes of the source.
    pub total_bytes: u64,
    /// Files of weights that are on the disk.
    pub done_shards: usize,
    /// Files of weights.
    pub n_shards: usize,
}

/// Told after each piece; `Break` ends the run, which can be taken up again.
pub type OnQuantize<'p> = &'p mut dyn FnMut(&QuantizeProgress) -> ControlFlow<()>;

/// Writes the model of the folder `source` to the folder `target`, which appears when it is
/// complete.
///
/// # Errors
/// The choices cannot be met, the source is broken or holds values that are not finite, the target
/// is taken, or the disk is full. Only the last one and [`Error::Cancelled`] leave something
/// behind: finished files beside the target, with which the same call goes on.
pub fn quantize(
    source: &Path,
    target: &Path,
    settings: &Settings,
    limits: QuantizeLimits,
    on_progress: OnQuantize<'_>,
) -> Result<QuantizeReport> {
    settings.check()?;
    check_target(source, target, settings.overwrites)?;
    let opened = registry::open(source)?;
    let examined = registry::examine(source, &opened)?;
    let (root, family) = (opened.root.clone(), opened.family.facts.model_type);
    let plan = Plan::new(opened, &examined, settings, limits.shard_bytes)?;
    let config = folder::config(&root, &plan, settings);
    let extras = folder::extras(source)?;
    let layouts = plan.shards.iter().map(|items| Layout::of(items)).collect::<Vec<_>>();
    let mark = mark(source, &config, &layouts)?;

    let file_bytes = layouts.iter().map(|layout| layout.file_bytes).sum::<u64>();

    let place = PartFolder::open(target, &mark)?;
    if let Err(error) = check_disk(&place, target, file_bytes + extras.n_bytes, limits) {
        return Err(place.failed(error));
    }
    let mut tally = Tally::of(&plan);
    let names = plan.shards.iter().map(|items| part_names(items)).collect::<Vec<_>>();
    let notes = [&place.notes, &plan.notes, &extras.notes].into_iter().flatten();
    let mut report = QuantizeReport {
        family: family.to_owned(),
        coding: settings.target.to_string(),
        n_shards: plan.shards.len(),
        source_bytes: source_bytes(source)?,
        floats: plan.floats.clone(),
        notes: notes.cloned().collect(),
        ..QuantizeReport::default()
    };
    let (total_bytes, n_weights) = (tally.n_bytes(), tally.n_weights());
    let mut writer = Writer { place, layouts, on_progress, progress: progress_of(&plan) };
    match writer.write(plan.shards, &mut tally) {
        Ok(n_resumed) => report.n_resumed_shards = n_resumed,
        Err(error) => return Err(writer.place.failed(error)),
    }
    let place = writer.place;
    let index = folder::index(&names, total_bytes, n_weights);
    complete(&place, &config, &index, &extras)?;
    place.finish(settings.overwrites)?;
    tally.fill(&mut report);
    report.target_bytes = file_bytes;
    Ok(report)
}

fn complete(place: &PartFolder, config: &Value, index: &Value, extras: &Extras) -> Result<()> {
    extras.copy(&place.folder)?;
    folder::write_json(&place.folder.join("model.safetensors.index.json"), index)?;
    folder::write_json(&place.folder.join("config.json"), config)
}

fn part_names(items: &[Item]) -> Vec<String> {
    items.iter().flat_map(|item| &item.parts).map(|part| part.name.clone()).collect()
}

/// Neither may lie in the other, and only a model is replaced.
fn check_target(source: &Path, target: &Path, overwrites: bool) -> Result<()> {
    let refused =
        |reason: &str| Err(Error::Settings(format!("the target {} {reason}", target.display())));
    if target.file_name().is_none() {
        return refused("names no folder to be made");
    }
    let above = part_folder::parent(target);
    let Ok(above) = above.canonicalize() else {
        return refused("lies in a folder that does not exist");
    };
    let real_target = above.join(target.file_name().unwrap_or_default());
    let real_source = source.canonicalize().map_err(|e| Error::file(source, e))?;
    if real_target.starts_with(&real_source) || real_source.starts_with(&real_target) {
        return refused("and the source lie in each other: choose a folder beside it");
    }
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    if !overwrites {
        return refused("exists already: choose another, or have it replaced with overwrite");
    }
    let is_model = target.is_dir()
        && !target.is_symlink()
        && target.join("config.json").is_file()
        && !weight_files(target)?.is_empty();
    match is_model {
        true => Ok(()),
        false => refused("is no model's folder, and nothing else is replaced"),
    }
}

fn check_disk(
    place: &PartFolder,
    target: &Path,
    wanted_bytes: u64,
    limits: QuantizeLimits,
) -> Result<()> {
    let done_bytes = place.done.values().map(|shard| shard.n_bytes).sum::<u64>();
    let needed_bytes = wanted_bytes.saturating_sub(done_bytes);
    let folder = part_folder::parent(target);
    match (limits.free_bytes)(folder) {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(Error::Disk { folder: folder.to_owned(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

fn weight_files(source: &Path) -> Result<Vec<(String, std::fs::Metadata)>> {
    let failed = |e| Error::file(source, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(source).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, path.metadata().map_err(|e| Error::file(&path, e))?));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

fn source_bytes(source: &Path) -> Result<u64> {
    Ok(weight_files(source)?.iter().map(|(_, meta)| meta.len()).sum())
}

/// Sixteen digits that stand for everything the output depends on: the source's files, the choices
/// as they show in config and headers, the program and the device.
fn mark(source: &Path, config: &Value, layouts: &[Layout]) -> Result<String> {
    let file = |(name, meta): (String, std::fs::Metadata)| {
        let modified = meta.modified().ok();
        let since = modified.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        json!([name, meta.len(), since.map(|since| since.as_nanos().to_string())])
    };
    let files = weight_files(source)?.into_iter().map(file).collect::<Vec<_>>();
    let folder = source.canonicalize().map_err(|e| Error::file(source, e))?;
    let facts = json!([
        env!("CARGO_PKG_VERSION"),
        Device::current_backend().to_string(),
        folder.to_string_lossy(),
        files,
        config,
    ]);
    let heads = layouts.iter().flat_map(|layout| layout.head.iter().copied());
    let hash = facts.to_string().bytes().chain(heads).fold(0xcbf2_9ce4_8422_2325u64, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}

fn progress_of(plan: &Plan) -> QuantizeProgress {
    let items = plan.shards.iter().flatten();
    QuantizeProgress {
        done_bytes: 0,
        total_bytes: items.map(|item| item.source_bytes).sum(),
        done_shards: 0,
        n_shards: plan.shards.len(),
    }
}

/// Writes the shards that are not there yet.
struct Writer<'p> {
    place: PartFolder,
    layouts: Vec<Layout>,
    on_progress: OnQuantize<'p>,
    progress: QuantizeProgress,
}

impl Writer<'_> {
    /// Returns how many were there.
    fn write(&mut self, shards: Vec<Vec<Item>>, tally: &mut Tally) -> Result<usize> {
        let layouts = std::mem::take(&mut self.layouts);
        let (n, mut n_resumed) = (shards.len(), 0);
        for (i, (items, layout)) in shards.into_iter().zip(layouts).enumerate() {
            let name = folder::shard_name(i, n);
            let after =
                self.progress.done_bytes + items.iter().map(|item| item.source_bytes).sum::<u64>();
            match self.place.done.get(&name) {
                Some(done) if done.n_bytes == layout.file_bytes => {
                    tally.add(&done.distances);
                    n_resumed += 1;
                }
                _ => {
                    let done = self.shard(&name, items, &layout)?;
                    tally.add(&done.distances);
                    self.place.record(&name, done)?;
                }
            }
            self.progress.done_bytes = after;
            self.progress.done_shards = i + 1;
            if (self.on_progress)(&self.progress).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(n_resumed)
    }

    fn shard(&mut self, name: &str, items: Vec<Item>, layout: &Layout) -> Result<Done> {
        let path = self.place.folder.join(name);
        let mut file = ShardFile::create(&path, layout)?;
        let mut distances = BTreeMap::<String, [f64; 2]>::new();
        for (item, places) in items.into_iter().zip(&layout.places) {
            let (role, n_weights) = (item.role, item.n_weights as f64);
            let before = self.progress.done_bytes;
            let n_bytes = item.source_bytes as f64;
            let mut places = places.clone();
            let mut sink = |part: usize, bytes: &[u8]| {
                file.write_at(places[part], bytes)?;
                places[part] += bytes.len() as u64;
                Ok(())
            };
            let (progress, on_progress) = (&mut self.progress, &mut *self.on_progress);
            let mut tick = |share: f64| {
                progress.done_bytes = before + (n_bytes * share) as u64;
                on_progress(progress)
            };
            let distance = encode::run(item, &mut sink, &mut tick)?;
            mlx::memory::clear_cache()?;
            if let Some(role) = role {
                let sums = distances.entry(role.name().to_owned()).or_default();
                sums[0] += Distance::relative(distance) * n_weights;
                sums[1] += n_weights;
            }
        }
        file.finish(layout)?;
        let hash = shard::hash(&path).map_err(|e| Error::file(&path, e))?;
        Ok(Done { n_bytes: layout.file_bytes, hash, distances })
    }
}
