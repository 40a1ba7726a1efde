//! The tensors of a checkpoint by name, and the verbs that bring its layout to the one that models
//! are built from: that of MLX's converters.
//!
//! A family says once, in its own file, how a checkpoint as published becomes that layout; loading
//! and quantizing both start from the result. Every verb is lazy: an [`Array`] here is a node whose
//! bytes are read when it is evaluated, so a verb costs no memory. Nothing is guessed from shapes:
//! [`Tensors::is_mlx`] is a declared fact.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mlx::{Array, Dtype, QuantMode, Quantization, Quantized};
use safetensors::tensor::Dtype as FileDtype;

use crate::{Error, Result};

/// One tensor: its lazy values, and where they come from.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub array: Array,
    /// The file, for errors; the first one where several tensors were joined.
    pub file: PathBuf,
    /// As the file codes it. 8-bit floats are `U8` to MLX.
    pub dtype: FileDtype,
}

impl Tensor {
    pub fn error(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: self.file.clone(), name: name.to_owned(), reason: reason.into() }
    }

    pub fn n_bytes(&self) -> u64 {
        self.array.n_bytes() as u64
    }

    /// The same place, other values.
    pub fn with(&self, array: Array) -> Self {
        Self { array, file: self.file.clone(), dtype: self.dtype }
    }
}

/// Tensors of a part of the model that is not run.
#[derive(Debug)]
pub(crate) struct Aside {
    /// What they are, such as "the vision tower".
    pub what: &'static str,
    pub tensors: BTreeMap<String, Tensor>,
}

/// All tensors of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    pub map: BTreeMap<String, Tensor>,
    /// MLX tools wrote the files: norms, convolutions and experts are as MLX has them.
    pub is_mlx: bool,
    pub aside: Vec<Aside>,
}

impl Tensors {
    fn rename(&mut self, change: impl Fn(&str) -> Option<String>) {
        let old = std::mem::take(&mut self.map);
        self.map = old.into_iter().map(|(name, t)| (change(&name).unwrap_or(name), t)).collect();
    }

    /// Gives every name that begins with `from` the beginning `to`.
    pub fn replace_prefix(&mut self, from: &str, to: &str) {
        self.rename(|name| name.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    }

    /// Replaces a middle part of names.
    pub fn replace_part(&mut self, from: &str, to: &str) {
        self.rename(|name| name.contains(from).then(|| name.replace(from, to)));
    }

    /// Takes tensors out that the model does not run. They are listed and kept, never lost.
    pub fn set_aside(&mut self, what: &'static str, belongs: impl Fn(&str) -> bool) {
        let tensors = self.map.extract_if(.., |name, _| belongs(name)).collect::<BTreeMap<_, _>>();
        if !tensors.is_empty() {
            self.aside.push(Aside { what, tensors });
        }
    }

    /// Changes the values of every tensor whose name ends in `suffix`.
    pub fn change(
        &mut self,
        suffix: &str,
        mut change: impl FnMut(&str, &Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        for (name, tensor) in &mut self.map {
            if name.ends_with(suffix) {
                *tensor = change(name, tensor)?;
            }
        }
        Ok(())
    }

    /// Replaces every tensor whose name ends in `suffix` by others: `parts` returns them with the
    /// endings that take the place of `suffix`.
    pub fn split(
        &mut self,
        suffix: &str,
        mut parts: impl FnMut(&str, &Tensor) -> Result<Vec<(&'static str, Tensor)>>,
    ) -> Result<()> {
        let whole = self.map.extract_if(.., |name, _| name.ends_with(suffix));
        for (name, tensor) in whole.collect::<Vec<_>>() {
            let stem = name.strip_suffix(suffix).unwrap_or(&name);
            for (end, part) in parts(&name, &tensor)? {
                self.map.insert(format!("{stem}{end}"), part);
            }
        }
        Ok(())
    }

    /// HF keeps these norms' weights around 0 and adds the 1 when it runs; MLX's files hold the
    /// sum. It is formed in f32.
    pub fn add_one(&mut self, suffix: &str) -> Result<()> {
        self.change(suffix, |_, norm| {
            // The file's own dtype stays: it is the one to write the sum in.
            Ok(norm.with(norm.array.astype(Dtype::F32)?.offset(1.0)?))
        })
    }

    /// Depthwise convolutions `[C, 1, K]` → `[C, K, 1]`.
    pub fn swap_conv_axes(&mut self, suffix: &str) -> Result<()> {
        self.change(suffix, |name, conv| {
            if conv.array.n_dims() != 3 {
                return Err(conv.error(name, "a convolution has three dimensions"));
            }
            Ok(conv.with(conv.array.swap_axes(1, 2)?))
        })
    }

    /// Joins `….experts.{e}.{rest}` of all experts e to `….switch_mlp.{rest}` `[E, ..]`.
    ///
    /// # Errors
    /// An expert is missing between others or has another shape than expert 0.
    pub fn stack_experts(&mut self) -> Result<()> {
        let mut stacks = BTreeMap::<String, BTreeMap<usize, (String, Tensor)>>::new();
        let single = self.map.extract_if(.., |name, _| expert_of(name).is_some());
        for (name, tensor) in single.collect::<Vec<_>>() {
            if let Some((stem, expert, rest)) = expert_of(&name) {
                let stacked = format!("{stem}.switch_mlp.{rest}");
                stacks.entry(stacked).or_default().insert(expert, (name, tensor));
            }
        }
        for (name, experts) in stacks {
            let stacked = stack(&name, &experts)?;
            self.map.insert(name, stacked);
        }
        Ok(())
    }

    /// `….experts.gate_up_proj` `[E, 2I, D]` (gate first) and `….experts.down_proj` `[E, D, I]`
    /// under MLX's names.
    pub fn split_fused_experts(&mut self) -> Result<()> {
        self.split(".experts.gate_up_proj", |name, fused| {
            let [gate, up] = halves(name, fused, 1)?;
            Ok(vec![(".switch_mlp.gate_proj.weight", gate), (".switch_mlp.up_proj.weight", up)])
        })?;
        self.split(".experts.down_proj", |_, down| {
            Ok(vec![(".switch_mlp.down_proj.weight", down.clone())])
        })
    }

    /// Replaces affine-quantized matrices `[.., n_in]` whose path ends in `suffix` by floats, where
    /// a layout needs their rows apart.
    pub fn dequantize(&mut self, suffix: &str, n_in: i32) -> Result<()> {
        let end = format!("{suffix}.scales");
        let scales = self.map.extract_if(.., |name, _| name.ends_with(&end)).collect::<Vec<_>>();
        for (name, scales) in scales {
            let path = name.trim_end_matches(".scales");
            let weight_name = format!("{path}.weight");
            let biases = self.map.remove(&format!("{path}.biases"));
            let (Some(weight), Some(biases)) = (self.map.get(&weight_name), biases) else {
                let reason = format!("only affine codes with {weight_name} and .biases are known");
                return Err(scales.error(&name, reason));
            };
            let floats = dequantized(&weight_name, weight, &scales, &biases, n_in)?;
            self.map.insert(weight_name, floats);
        }
        Ok(())
    }

    /// HF's block-scaled 8-bit floats: `X.weight` (E4M3) times `X.weight_scale_inv`, one scale per
    /// block, as bf16. Scales of activations are dropped: they only serve 8-bit products.
    pub fn widen_fp8(&mut self) -> Result<()> {
        let scales = self
            .map
            .extract_if(.., |name, _| name.ends_with(".weight_scale_inv"))
            .collect::<Vec<_>>();
        for (name, scale) in scales {
            let weight_name = name.trim_end_matches("_scale_inv").to_owned();
            let Some(weight) = self.map.get(&weight_name) else {
                return Err(scale.error(&name, format!("scales {weight_name}, which is missing")));
            };
            let wide = widened(&weight_name, weight, &scale)?;
            self.map.insert(weight_name, wide);
        }
        self.map.retain(|name, _| !name.ends_with(".activation_scale"));
        Ok(())
    }

    /// The tensors of the model for another to take from: handles of the same lazy values.
    pub fn to_be_asked(&self) -> Self {
        Self { map: self.map.clone(), is_mlx: self.is_mlx, aside: Vec::new() }
    }

    /// Bytes of all tensors as the model will hold them.
    pub fn n_bytes(&self) -> u64 {
        self.map.values().map(Tensor::n_bytes).sum()
    }
}

/// `stem`, `e` and `rest` of `stem.experts.{e}.rest`.
fn expert_of(name: &str) -> Option<(&str, usize, &str)> {
    let (stem, tail) = name.split_once(".experts.")?;
    let (expert, rest) = tail.split_once('.')?;
    Some((stem, expert.parse().ok()?, rest))
}

fn stack(name: &str, experts: &BTreeMap<usize, (String, Tensor)>) -> Result<Tensor> {
    let (_, first) = experts.values().next().expect("a stack begins with an expert");
    for (wanted, (found, (expert_name, tensor))) in experts.iter().enumerate() {
        if *found != wanted {
            let reason = format!("expert {wanted} is missing, but there is {expert_name}");
            return Err(tensor.error(name, reason));
        }
        if tensor.array.shape() != first.array.shape() || tensor.dtype != first.dtype {
            let (a, b) = (&tensor.array, &first.array);
            return Err(tensor.error(expert_name, format!("is {a:?}, but expert 0 has {b:?}")));
        }
    }
    let arrays = experts.values().map(|(_, tensor)| &tensor.array).collect::<Vec<_>>();
    Ok(first.with(mlx::stack(&arrays, 0)?))
}

/// The two halves along `axis`.
fn halves(name: &str, tensor: &Tensor, axis: i32) -> Result<[Tensor; 2]> {
    let shape = tensor.array.shape();
    let n = shape.get(axis as usize).copied().unwrap_or(0);
    if shape.len() != 3 || n % 2 != 0 {
        let reason = format!("has shape {shape:?}, which is no stack of fused experts");
        return Err(tensor.error(name, reason));
    }
    let part = |range| {
        let part = tensor.array.slice_axis(axis, range)?.contiguous()?;
        Ok::<_, Error>(tensor.with(part))
    };
    Ok([part(0..n / 2)?, part(n / 2..n)?])
}

/// The even and the odd entries along `axis` (1 or 2) of a stack.
pub(crate) fn even_and_odd(name: &str, tensor: &Tensor, axis: usize) -> Result<[Tensor; 2]> {
    let shape = tensor.array.shape().to_vec();
    let n = shape.get(axis).copied().unwrap_or(0);
    if n == 0 || n % 2 != 0 {
        let reason = format!("has shape {shape:?}, where pairs of gate and up are wanted");
        return Err(tensor.error(name, reason));
    }
    let part = |first: i32| {
        let (mut start, mut strides) = (vec![0; shape.len()], vec![1; shape.len()]);
        (start[axis], strides[axis]) = (first, 2);
        let part = tensor.array.slice_strided(&start, &shape, &strides)?.contiguous()?;
        Ok::<_, Error>(tensor.with(part))
    };
    Ok([part(0)?, part(1)?])
}

/// E4M3 codes `[.., out, in]` with one scale per block, in bf16.
fn widened(name: &str, weight: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let (shape, blocks) = (weight.array.shape().to_vec(), scale.array.shape().to_vec());
    if weight.dtype != FileDtype::F8_E4M3 {
        let reason = format!("has block scales, but holds {:?} instead of F8_E4M3", weight.dtype);
        return Err(weight.error(name, reason));
    }
    let n = shape.len();
    if n < 2 || blocks.len() != n || shape[..n - 2] != blocks[..n - 2] {
        let reason = format!("has shape {shape:?}, which its scales {blocks:?} do not fit");
        return Err(weight.error(name, reason));
    }
    let mut scales = scale.array.astype(Dtype::F32)?;
    for axis in [n - 2, n - 1] {
        // Blocks are as large as divides evenly, or 128 with a shorter last one.
        let (size, count) = (shape[axis], blocks[axis]);
        let block = match (size % count.max(1), (size + 127) / 128 == count) {
            (_, true) => 128,
            (0, false) => size / count,
            _ => {
                let reason = format!("has shape {shape:?}, which its scales {blocks:?} do not fit");
                return Err(weight.error(name, reason));
            }
        };
        scales = scales.repeat(block, axis as i32)?.slice_axis(axis as i32, 0..size)?;
    }
    let values = weight.array.from_fp8(Dtype::F32)?.mul(&scales)?;
    Ok(Tensor { dtype: FileDtype::BF16, ..weight.with(values.astype(Dtype::Bf16)?) })
}

/// Affine codes of `n_in` columns: their number of bits and their groups follow from the width.
fn dequantized(
    name: &str,
    weight: &Tensor,
    scales: &Tensor,
    biases: &Tensor,
    n_in: i32,
) -> Result<Tensor> {
    let (packed, groups) = (weight.array.dim(-1), scales.array.dim(-1));
    let (bits, group_size) = (packed * 32 / n_in.max(1), n_in / groups.max(1));
    let fits = bits * n_in == packed * 32 && group_size * groups == n_in;
    if !fits || !matches!(bits, 2..=6 | 8) || !matches!(group_size, 32 | 64 | 128) {
        let reason = format!(
            "{packed} words and {groups} scales per row are no affine codes of {n_in} columns"
        );
        return Err(weight.error(name, reason));
    }
    let quantized = Quantized {
        weight: weight.array.clone(),
        scales: scales.array.astype(Dtype::F32)?,
        biases: Some(biases.array.astype(Dtype::F32)?),
        quantization: Quantization { mode: QuantMode::Affine, bits, group_size },
    };
    // In f32, so that it is rounded once, where a model takes it.
    Ok(scales.with(quantized.dequantize(Dtype::F32)?))
}
