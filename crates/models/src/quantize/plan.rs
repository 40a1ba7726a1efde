//! What is to be written, known before a byte of the source is read: names, dtypes and shapes of
//! every tensor, and how they are spread over files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use mlx::{Array, Dtype, QuantMode, Quantization, Quantized};
use safetensors::tensor::Dtype as FileDtype;
use serde_json::Value;

use crate::checkpoint::{MatrixFact, Tensor};
use crate::config::Config;
use crate::registry::{Examined, Opened};
use crate::{Error, Result};

use super::naming::Naming;
use super::recipe::{Choice, Role, choose, default_of};
use super::settings::{Settings, Target};

/// One tensor of the output.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub name: String,
    pub dtype: FileDtype,
    pub shape: Vec<usize>,
    pub n_bytes: u64,
}

/// How the values of an item come about.
pub(super) enum Work {
    /// Floats `[.., n_in]`, cast and then coded: codes, scales, and biases if affine.
    Encode { source: Array, dtype: Dtype, coding: Quantization },
    /// Codes of the source, as floats.
    Decode { matrix: Quantized, dtype: Dtype },
    /// Floats, cast.
    Cast { source: Array, dtype: Dtype },
    /// Values as they are, one array for each part.
    Copy { arrays: Vec<Array> },
}

/// What is done in one go, and lies in one file.
pub(super) struct Item {
    /// The path of a matrix, or the name of a tensor, as the model knows it.
    pub path: String,
    /// Where it comes from, for errors.
    pub file: PathBuf,
    /// None: it is not run.
    pub role: Option<Role>,
    /// Weights, not codes.
    pub n_weights: u64,
    /// Bytes of the source in memory.
    pub source_bytes: u64,
    pub parts: Vec<Part>,
    pub work: Work,
}

impl Item {
    pub fn n_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.n_bytes).sum()
    }
}

/// The whole output.
pub(super) struct Plan {
    /// Files, each with its items in the order of the work.
    pub shards: Vec<Vec<Item>>,
    /// `quantization` of config.json by path: a coding, or none for floats.
    pub codings: BTreeMap<String, Option<Quantization>>,
    /// Matrices that stay in floats, and why.
    pub floats: Vec<(String, String)>,
    pub has_head: bool,
    /// What the report must say.
    pub notes: Vec<String>,
}

/// Names whose dtype is part of what they mean: MLX tools never cast them.
const NEVER_CAST: [&str; 2] = ["A_log", "e_score_correction_bias"];
/// Names that are not made narrower: what they are added to is computed in f32.
const NEVER_NARROWED: [&str; 1] = ["dt_bias"];

/// Gathers the plan.
struct Planner<'a> {
    settings: &'a Settings,
    naming: &'static Naming,
    /// Dtype of floats and of scales.
    dtype: Dtype,
    n_layers: i32,
    is_mlx: bool,
    tensors: BTreeMap<String, Tensor>,
    items: Vec<Item>,
    plan: Plan,
}

impl Plan {
    /// Decides about every tensor.
    ///
    /// # Errors
    /// The source is quantized already, or a choice cannot be met.
    pub fn new(
        opened: Opened,
        examined: &Examined,
        settings: &Settings,
        shard_bytes: u64,
    ) -> Result<Self> {
        let Opened { root, mut tensors, .. } = opened;
        refuse_codes(examined, settings.target, tensors.is_mlx)?;
        let dtype = match settings.target {
            Target::Floats(dtype) => dtype,
            Target::Codes(_) => settings.dtype.unwrap_or(examined.dtype),
        };
        let plan = Plan {
            shards: Vec::new(),
            codings: BTreeMap::new(),
            floats: Vec::new(),
            has_head: examined.matrices.iter().any(|matrix| matrix.path == "lm_head"),
            notes: Vec::new(),
        };
        let mut planner = Planner {
            settings,
            naming: Naming::of(root["model_type"].as_str().unwrap_or_default()),
            dtype,
            n_layers: Config::text(&root)?.n_layers()?,
            is_mlx: tensors.is_mlx,
            tensors: std::mem::take(&mut tensors.map),
            items: Vec::new(),
            plan,
        };
        for matrix in &examined.matrices {
            planner.matrix(matrix)?;
        }
        planner.check_choices(&examined.matrices)?;
        planner.rest();
        for aside in tensors.aside {
            planner.aside(aside.what, aside.tensors);
        }
        planner.note_model_type(&root);
        Ok(planner.finish(shard_bytes))
    }
}

/// Codes made of codes would add one error to another.
fn refuse_codes(examined: &Examined, target: Target, is_mlx: bool) -> Result<()> {
    let coded = examined.matrices.iter().find_map(|m| Some((&m.path, m.quantization?)));
    match (coded, target) {
        (Some((path, q)), Target::Codes(_)) if is_mlx => {
            let coding = Target::Codes(q);
            Err(Error::Settings(format!(
                "the source is quantized already ({path}: {coding}); codes of codes only lose: \
                 take the float model, or turn this one into floats with mode bf16"
            )))
        }
        _ => Ok(()),
    }
}

impl Planner<'_> {
    fn matrix(&mut self, fact: &MatrixFact) -> Result<()> {
        let name = format!("{}.weight", fact.path);
        let Some(weight) = self.tensors.remove(&name) else {
            return Ok(()); // the examination has reported it
        };
        match fact.quantization {
            Some(coding) => {
                self.coded_matrix(fact, &weight, coding);
                Ok(())
            }
            None => self.float_matrix(fact, &weight),
        }
    }

    fn float_matrix(&mut self, fact: &MatrixFact, weight: &Tensor) -> Result<()> {
        let n_in = fact.shape.last().copied().unwrap_or(0);
        let choice = match default_of(self.settings.target) {
            None => None,
            Some(default) => {
                let path = self.naming.name(&fact.path);
                Some(choose(self.settings, default, &path, n_in, self.n_layers)?)
            }
        };
        let source = weight.array.clone();
        match choice {
            Some(Choice::Codes(coding)) => {
                self.set_coding(&fact.path, Some(coding));
                let parts = self.code_parts(fact, coding, file_dtype(self.dtype));
                self.push(fact, weight, parts, Work::Encode { source, dtype: self.dtype, coding });
            }
            Some(Choice::Floats(why)) => {
                self.set_coding(&fact.path, None);
                self.plan.floats.push((self.naming.name(&fact.path), why));
                self.push_floats(fact, weight, Work::Cast { source, dtype: self.dtype });
            }
            None => self.push_floats(fact, weight, Work::Cast { source, dtype: self.dtype }),
        }
        Ok(())
    }

    /// Codes of a source that is no MLX folder: they stay, or become floats.
    fn coded_matrix(&mut self, fact: &MatrixFact, weight: &Tensor, coding: Quantization) {
        let take = |planner: &mut Self, part: &str| {
            planner.tensors.remove(&format!("{}.{part}", fact.path))
        };
        let (scales, biases) = (take(self, "scales"), take(self, "biases"));
        let Some(scales) = scales else { return };
        let biases = biases.map(|biases| biases.array);
        if let Target::Floats(dtype) = self.settings.target {
            let (weight_array, scales) = (weight.array.clone(), scales.array);
            let matrix = Quantized { weight: weight_array, scales, biases, quantization: coding };
            return self.push_floats(fact, weight, Work::Decode { matrix, dtype });
        }
        self.set_coding(&fact.path, Some(coding));
        let parts = self.code_parts(fact, coding, scales.dtype);
        let arrays = [weight.array.clone(), scales.array].into_iter().chain(biases).collect();
        self.push(fact, weight, parts, Work::Copy { arrays });
    }

    fn set_coding(&mut self, path: &str, coding: Option<Quantization>) {
        self.plan.codings.insert(self.naming.name(path), coding);
    }

    /// Codes, scales, and biases if there are any.
    fn code_parts(&self, fact: &MatrixFact, q: Quantization, scales: FileDtype) -> Vec<Part> {
        let path = self.naming.name(&fact.path);
        let (n_in, lead) = fact.shape.split_last().expect("a matrix has a width");
        let with_last = |n: i32| lead.iter().copied().chain([n]).collect::<Vec<_>>();
        let (packed, groups) = (with_last(n_in * q.bits / 32), with_last(n_in / q.group_size));
        let part = |end: &str, dtype, shape: &[i32]| part(format!("{path}.{end}"), dtype, shape);
        let weight = part("weight", FileDtype::U32, &packed);
        match q.mode {
            QuantMode::Affine => {
                vec![weight, part("scales", scales, &groups), part("biases", scales, &groups)]
            }
            _ => vec![weight, part("scales", FileDtype::U8, &groups)],
        }
    }

    fn push_floats(&mut self, fact: &MatrixFact, weight: &Tensor, work: Work) {
        let name = format!("{}.weight", self.naming.name(&fact.path));
        let parts = vec![part(name, file_dtype(self.dtype), &fact.shape)];
        self.push(fact, weight, parts, work);
    }

    fn push(&mut self, fact: &MatrixFact, weight: &Tensor, parts: Vec<Part>, work: Work) {
        let n_weights = fact.shape.iter().map(|&n| n as u64).product();
        self.items.push(Item {
            path: fact.path.clone(),
            file: weight.file.clone(),
            role: Some(Role::of(&fact.path, fact.shape.len())),
            n_weights,
            source_bytes: weight.n_bytes(),
            parts,
            work,
        });
    }

    /// Every pattern must have met a matrix in floats, and something must come out in codes.
    fn check_choices(&self, matrices: &[MatrixFact]) -> Result<()> {
        let floats = matrices.iter().filter(|matrix| matrix.quantization.is_none());
        let paths = floats.map(|matrix| self.naming.name(&matrix.path)).collect::<Vec<_>>();
        let patterns = self.settings.keep.iter().chain(self.settings.at.iter().map(|(p, _)| p));
        for pattern in patterns {
            if !paths.iter().any(|path| pattern.matches(path)) {
                let there = crate::error::listed(&paths);
                return Err(Error::Settings(format!(
                    "'{pattern}' matches no matrix in floats of this model; there are {there}"
                )));
            }
        }
        let has_codes = self.items.iter().any(|item| matches!(item.work, Work::Encode { .. }));
        if matches!(self.settings.target, Target::Codes(_)) && !has_codes {
            let reason = self.plan.floats.first();
            let (path, why) = reason.map_or(("the model", "codes"), |(p, w)| (p, w));
            return Err(Error::Settings(format!(
                "nothing would be quantized: every matrix stays in floats, such as {path}: {why}"
            )));
        }
        Ok(())
    }

    /// Norms, biases, convolutions and what else is always floats.
    fn rest(&mut self) {
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            if name.ends_with(".inv_freq") {
                self.plan.notes.push(format!("{name} is computed, not stored: left out"));
                continue;
            }
            let shape = tensor.array.shape().to_vec();
            let is_float = tensor.array.dtype().is_float();
            let is_fixed = NEVER_CAST.iter().any(|end| name.ends_with(end))
                || tensor.dtype == FileDtype::F32
                    && NEVER_NARROWED.iter().any(|end| name.ends_with(end));
            let dtype = if is_float && !is_fixed { file_dtype(self.dtype) } else { tensor.dtype };
            let source = tensor.array.clone();
            let work = match mlx_dtype(dtype) {
                Some(dtype) if is_float => Work::Cast { source, dtype },
                _ => Work::Copy { arrays: vec![source] },
            };
            self.items.push(Item {
                role: Some(Role::of(&name, shape.len())),
                n_weights: tensor.array.n_elements() as u64,
                source_bytes: tensor.n_bytes(),
                parts: vec![part(self.naming.name(&name), dtype, &shape)],
                path: name,
                file: tensor.file,
                work,
            });
        }
    }

    /// Tensors that are not run stay as they are where other loaders pass them over.
    fn aside(&mut self, what: &str, tensors: BTreeMap<String, Tensor>) {
        let (mut stay, mut left_out) = (0, Vec::new());
        for (name, tensor) in tensors {
            let Some(new_name) = self.naming.aside(&name) else {
                left_out.push(name);
                continue;
            };
            stay += 1;
            self.items.push(Item {
                path: name,
                role: None,
                n_weights: tensor.array.n_elements() as u64,
                source_bytes: tensor.n_bytes(),
                parts: vec![part(new_name, tensor.dtype, tensor.array.shape())],
                file: tensor.file,
                work: Work::Copy { arrays: vec![tensor.array] },
            });
        }
        if stay > 0 {
            self.plan.notes.push(format!("{what} is not run and stays as it is: {stay} tensors"));
        }
        if !left_out.is_empty() {
            let names = crate::error::listed(&left_out);
            self.plan.notes.push(format!("{what} is left out, as MLX tools do: {names}"));
        }
    }

    fn note_model_type(&mut self, root: &Value) {
        if let Some(renamed) = self.naming.renamed {
            let old = &root["model_type"];
            let note = format!("model_type {old} became \"{renamed}\", as MLX tools know it");
            self.plan.notes.push(note);
        }
        let is_kept = |item: &&Item| {
            matches!(item.work, Work::Copy { .. }) && item.parts.len() > 1 && !self.is_mlx
        };
        let n_kept = self.items.iter().filter(is_kept).count();
        if n_kept > 0 {
            let note = format!("{n_kept} matrices are codes in the source and stay as they are");
            self.plan.notes.push(note);
        }
    }

    /// Spreads the items, in the order of their names: parts of one stored tensor are neighbours
    /// then, so that it need not be kept or read twice.
    fn finish(mut self, shard_bytes: u64) -> Plan {
        self.items.sort_by(|a, b| a.path.cmp(&b.path));
        debug_assert!({
            let names = self.items.iter().flat_map(|item| &item.parts).map(|part| &part.name);
            let n = names.clone().count();
            names.collect::<BTreeSet<_>>().len() == n
        });
        let mut n_bytes = 0;
        for item in self.items {
            if self.plan.shards.is_empty() || n_bytes + item.n_bytes() > shard_bytes {
                self.plan.shards.push(Vec::new());
                n_bytes = 0;
            }
            n_bytes += item.n_bytes();
            self.plan.shards.last_mut().expect("one was just pushed").push(item);
        }
        self.plan
    }
}

fn part(name: String, dtype: FileDtype, shape: &[i32]) -> Part {
    let shape = shape.iter().map(|&n| n as usize).collect::<Vec<_>>();
    let n_bits = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64;
    Part { name, dtype, shape, n_bytes: n_bits / 8 }
}

fn file_dtype(dtype: Dtype) -> FileDtype {
    match dtype {
        Dtype::F32 => FileDtype::F32,
        Dtype::F16 => FileDtype::F16,
        _ => FileDtype::BF16,
    }
}

fn mlx_dtype(dtype: FileDtype) -> Option<Dtype> {
    match dtype {
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}
