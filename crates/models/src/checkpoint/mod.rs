//! Where a model's weights come from: a folder's files, or random numbers in a known shape.
//!
//! Loading is one pass in model order. Each tensor is asked for by name with the shape that the
//! config implies; what is missing is collected, so that one error lists all of it, and what was
//! never asked for is an error at the end. Names and layout are those of MLX's converters: a
//! family's `to_mlx` brings other layouts to it before the pass begins.

mod files;
mod quantization;
mod random;
mod scope;
mod tensors;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::{Array, Dtype, Quantization, Quantized};
use safetensors::tensor::Dtype as FileDtype;
use serde_json::Value;

use crate::layers::Product;
use crate::registry::LoadOptions;
use crate::shapes::ShapeQuantization;
use crate::{Error, Result};

use quantization::Declared;

pub(crate) use scope::{Scope, StackSizes};
pub(crate) use tensors::{Tensor, Tensors, even_and_odd};

/// Told after each piece of loading: bytes done, bytes in all. `Break` ends the loading.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// The tensors of a folder as its files have them.
///
/// # Errors
/// A file is missing, broken or truncated.
pub(crate) fn open_tensors(folder: &Path, config: &Value) -> Result<Tensors> {
    let stated = config.get("quantization").and_then(Value::as_object);
    files::open(folder, stated.is_some_and(|q| !q.contains_key("quant_method")))
}

/// The weights of one model while it is being built.
pub struct Weights<'p> {
    source: Source,
    dtype: Dtype,
    options: LoadOptions,
    /// Else everything stays lazy: only names and shapes are wanted.
    reads: bool,
    state: RefCell<State<'p>>,
}

/// A matrix, or a stack of them, that a model holds in floats or in codes.
#[derive(Clone, Debug)]
pub(crate) struct MatrixFact {
    /// Its path, without `.weight`.
    pub path: String,
    /// `[.., rows, n_in]`, whatever it is stored as.
    pub shape: Vec<i32>,
    /// None in floats.
    pub quantization: Option<Quantization>,
}

/// A matrix, or a stack of them, as it is stored.
enum Stored {
    Dense(Array),
    Quantized(Quantized),
}

enum Source {
    Folder { path: PathBuf, tensors: RefCell<Tensors>, declared: Declared },
    Random(ShapeQuantization),
}

struct State<'p> {
    progress: Progress<'p>,
    total_bytes: u64,
    missing: Vec<String>,
    pending: Vec<Array>,
    /// Scales that must hold finite numbers: their names and one bool each.
    checks: Vec<(PathBuf, String, Array)>,
    tally: Tally,
    /// What was found of each form and size of quantized matrix.
    products: HashMap<(Quantization, Vec<i32>), Product>,
    notes: Vec<String>,
    matrices: Vec<MatrixFact>,
}

/// What has been loaded so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub n_parameters: u64,
    pub weight_bytes: u64,
    /// Embedding tables: looked up by row, so a decode step does not read them, unless they are the
    /// head too.
    pub embedding_bytes: u64,
    /// Stacks of experts, and what one token does not use of them.
    pub expert_bytes: u64,
    pub idle_expert_bytes: u64,
    pub head_is_tied: bool,
    pub quantization: Option<Quantization>,
}

impl<'p> Weights<'p> {
    /// The tensors of a folder, in MLX's layout. Where the options name no dtype, activations have
    /// that of most float bytes.
    ///
    /// # Errors
    /// The quantization settings are not understood, or the tensors are larger than the memory.
    pub(crate) fn of(
        folder: &Path,
        tensors: Tensors,
        config: &Value,
        options: &LoadOptions,
        progress: Progress<'p>,
    ) -> Result<Self> {
        let declared = Declared::read(config)?;
        let dtype = options.dtype.unwrap_or_else(|| prevailing_dtype(&tensors));
        let total_bytes = tensors.n_bytes();
        let path = folder.to_owned();
        let source = Source::Folder { path, tensors: RefCell::new(tensors), declared };
        let weights = Self::new(source, dtype, total_bytes, options, progress);
        weights.check_memory(total_bytes)?;
        Ok(weights)
    }

    /// Random weights, bf16 activations. Their total size is not known beforehand.
    pub fn random(
        quantization: ShapeQuantization,
        options: &LoadOptions,
        progress: Progress<'p>,
    ) -> Self {
        Self::new(Source::Random(quantization), Dtype::Bf16, 0, options, progress)
    }

    fn new(
        source: Source,
        dtype: Dtype,
        total_bytes: u64,
        options: &LoadOptions,
        progress: Progress<'p>,
    ) -> Self {
        let state = State {
            progress,
            total_bytes,
            missing: Vec::new(),
            pending: Vec::new(),
            checks: Vec::new(),
            tally: Tally::default(),
            products: HashMap::new(),
            notes: Vec::new(),
            matrices: Vec::new(),
        };
        let options = options.clone();
        Self { source, dtype, options, reads: true, state: RefCell::new(state) }
    }

    /// The same, of which nothing is read: [`Scope::settle`] does nothing.
    pub(crate) fn unread(self) -> Self {
        Self { reads: false, ..self }
    }

    /// The matrices asked for so far.
    pub(crate) fn take_matrices(&self) -> Vec<MatrixFact> {
        std::mem::take(&mut self.state.borrow_mut().matrices)
    }

    fn check_memory(&self, needed_bytes: u64) -> Result<()> {
        match self.options.memory_bytes {
            Some(free_bytes) if needed_bytes > free_bytes => {
                Err(Error::Memory { needed_bytes, free_bytes })
            }
            _ => Ok(()),
        }
    }

    /// The activations' dtype.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The root of all names.
    pub(crate) fn root(&self) -> Scope<'_, 'p> {
        Scope::root(self)
    }

    /// Ends the loading: nothing may be missing, and nothing left over.
    pub(crate) fn finish(self, family: &str) -> Result<(Tally, Vec<String>)> {
        let mut state = self.state.into_inner();
        let Source::Folder { path: folder, tensors, .. } = self.source else {
            return Ok((state.tally, state.notes));
        };
        if !state.missing.is_empty() {
            return Err(Error::Missing { folder, names: state.missing });
        }
        let tensors = tensors.into_inner();
        let left =
            tensors.map.into_iter().filter(|(name, _)| !name.ends_with(".rotary_emb.inv_freq"));
        let names = left
            .map(|(name, tensor)| {
                format!("{name} ({})", tensor.file.file_name().unwrap_or_default().display())
            })
            .collect::<Vec<_>>();
        if !names.is_empty() {
            return Err(Error::Unused { folder, family: family.to_owned(), names });
        }
        for aside in tensors.aside {
            let names = aside.tensors.keys().cloned().collect::<Vec<_>>();
            let listed = crate::error::listed(&names);
            state.notes.push(format!("{} is in the files and not run: {listed}", aside.what));
        }
        Ok((state.tally, state.notes))
    }

    /// One tensor of a folder with this shape; a placeholder if it is missing, which `finish`
    /// reports.
    fn tensor(
        &self,
        tensors: &RefCell<Tensors>,
        name: &str,
        shape: &[i32],
    ) -> Result<(Array, Option<Tensor>)> {
        let Some(tensor) = tensors.borrow_mut().map.remove(name) else {
            self.state.borrow_mut().missing.push(name.to_owned());
            return Ok((Array::zeros(&vec![1; shape.len()], self.dtype)?, None));
        };
        let found = tensor.array.shape();
        if found != shape {
            let reason = format!("has shape {found:?}, but the config implies {shape:?}");
            return Err(tensor.error(name, reason));
        }
        Ok((tensor.array.clone(), Some(tensor)))
    }

    /// A float tensor in this dtype.
    fn float(
        &self,
        tensors: &RefCell<Tensors>,
        name: &str,
        shape: &[i32],
        dtype: Dtype,
    ) -> Result<Array> {
        let (array, tensor) = self.tensor(tensors, name, shape)?;
        if let Some(tensor) = tensor
            && !is_float(tensor.dtype)
        {
            let reason =
                format!("holds {:?}, but floats (F32, F16, BF16) are wanted", tensor.dtype);
            return Err(tensor.error(name, reason));
        }
        Ok(array.astype(dtype)?)
    }

    /// A quantized matrix `[.., rows, n_in]` of this shape, if the files hold scales for it.
    fn quantized(
        &self,
        (tensors, declared): (&RefCell<Tensors>, &Declared),
        path: &str,
        shape: &[i32],
    ) -> Result<Option<Quantized>> {
        let names = ["weight", "scales"].map(|part| format!("{path}.{part}"));
        let found = names.each_ref().map(|name| tensors.borrow().map.get(name).cloned());
        // Scales without a weight: the dense path reports it as missing.
        let [Some(weight), Some(scales)] = found else { return Ok(None) };
        let (n_in, lead) = shape.split_last().expect("a matrix has rows");
        let quantization = declared.prove(path, &weight, &scales, *n_in)?;
        let with_last = |n: i32| lead.iter().copied().chain([n]).collect::<Vec<_>>();
        let packed = with_last(n_in * quantization.bits / 32);
        let groups = with_last(n_in / quantization.group_size);
        let (codes, _) = self.tensor(tensors, &names[0], &packed)?;
        let is_affine = quantization.mode == mlx::QuantMode::Affine;
        let (scales_array, biases) = if is_affine {
            let bias_name = format!("{path}.biases");
            let list = self.float(tensors, &names[1], &groups, self.dtype)?;
            let offsets = self.float(tensors, &bias_name, &groups, self.dtype)?;
            self.must_hold(&scales, &names[1], &list.is_finite()?)?;
            self.must_hold(&scales, &bias_name, &offsets.is_finite()?)?;
            (list, Some(offsets))
        } else {
            let list = self.tensor(tensors, &names[1], &groups)?.0;
            self.must_hold(&scales, &names[1], &codes_number(&list, quantization.mode)?)?;
            (list, None)
        };
        Ok(Some(Quantized { weight: codes, scales: scales_array, biases, quantization }))
    }

    /// Every element of `finite` must turn out true.
    fn must_hold(&self, tensor: &Tensor, name: &str, finite: &Array) -> Result<()> {
        let axes = (0..finite.n_dims() as i32).collect::<Vec<_>>();
        let check = finite.all(&axes)?;
        self.state.borrow_mut().checks.push((tensor.file.clone(), name.to_owned(), check));
        Ok(())
    }

    /// Whether products are to be compared with plain ones. Placeholders of missing tensors cannot
    /// be multiplied; loading will fail by them.
    fn proves_products(&self) -> bool {
        self.options.proves_products && self.state.borrow().missing.is_empty()
    }

    /// How to multiply with this matrix `[.., rows, n_in]`: as was found for the first of its form
    /// and size.
    fn product_of(&self, matrix: &Quantized, shape: &[i32]) -> Result<Product> {
        self.state.borrow_mut().tally.quantization.get_or_insert(matrix.quantization);
        if !self.proves_products() {
            return Ok(Product::Fused);
        }
        let mut state = self.state.borrow_mut();
        let form = (matrix.quantization, shape.to_vec());
        if let Some(product) = state.products.get(&form) {
            return Ok(*product);
        }
        let product = Product::proven(matrix, shape, self.dtype)?;
        if product == Product::Expanded {
            let Quantization { mode, bits, group_size } = matrix.quantization;
            state.notes.push(format!(
                "the device multiplies {bits}-bit {mode} matrices {shape:?} in groups of \
                 {group_size} wrongly: they are dequantized before each product, which is slower"
            ));
        }
        state.products.insert(form, product);
        Ok(product)
    }

    /// Notes that arrays belong to the model, as `n_parameters` weights; returns their bytes.
    fn own<'x>(&self, n_parameters: i64, arrays: impl IntoIterator<Item = &'x Array>) -> u64 {
        let mut state = self.state.borrow_mut();
        let mut n_bytes = 0;
        for array in arrays {
            n_bytes += array.n_bytes() as u64;
            state.pending.push(array.clone());
        }
        state.tally.n_parameters += n_parameters as u64;
        state.tally.weight_bytes += n_bytes;
        n_bytes
    }
}

/// Which 8-bit scales are numbers: E8M0 has one code for NaN, E4M3 two.
fn codes_number(scales: &Array, mode: mlx::QuantMode) -> Result<Array> {
    let byte = |value| Array::scalar(value, Dtype::U8);
    Ok(match mode {
        mlx::QuantMode::Nvfp4 => scales.bit_and(&byte(127.0)?)?.ne(&byte(127.0)?)?,
        _ => scales.ne(&byte(255.0)?)?,
    })
}

fn is_float(dtype: FileDtype) -> bool {
    matches!(dtype, FileDtype::F32 | FileDtype::F16 | FileDtype::BF16)
}

/// The float dtype that holds most bytes: config.json's `dtype` may be the source's.
fn prevailing_dtype(tensors: &Tensors) -> Dtype {
    let bytes = |wanted: FileDtype| {
        tensors.map.values().filter(|t| t.dtype == wanted).map(Tensor::n_bytes).sum::<u64>()
    };
    let candidates = [
        (FileDtype::BF16, Dtype::Bf16),
        (FileDtype::F16, Dtype::F16),
        (FileDtype::F32, Dtype::F32),
    ];
    let (_, dtype) =
        candidates.into_iter().max_by_key(|(wanted, _)| bytes(*wanted)).expect("three of them");
    dtype
}
