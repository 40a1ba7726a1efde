//! Where a model's weights come from: a folder's files, or random numbers in a known shape.
//!
//! Loading is one pass in model order. Each tensor is asked for by name with the shape that the
//! config implies; what is missing is collected, so that one error lists all of it, and what was
//! never asked for is an error at the end.

mod files;
mod quantization;
mod random;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlx::{Array, Dtype, Quantization, Quantized};
use safetensors::tensor::Dtype as FileDtype;
use serde_json::Value;

use crate::layers::{Embedding, Linear, Matrix, Product, RmsNorm};
use crate::registry::LoadOptions;
use crate::shapes::ShapeQuantization;
use crate::{Error, Result};

use files::{Entry, Files};
use quantization::Declared;

/// Told after each piece of loading: bytes done, bytes in all. `Break` ends the loading.
pub type Progress<'p> = &'p mut dyn FnMut(u64, u64) -> ControlFlow<()>;

/// The weights of one model while it is being built.
pub struct Weights<'p> {
    source: Source,
    dtype: Dtype,
    options: LoadOptions,
    state: RefCell<State<'p>>,
}

/// A matrix as it is stored.
enum Stored {
    Dense(Array),
    Quantized(Quantized),
}

enum Source {
    Folder { path: PathBuf, files: RefCell<Files>, declared: Declared },
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
    products: HashMap<(Quantization, i32, i32), Product>,
    notes: Vec<String>,
}

/// What has been loaded so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub n_parameters: u64,
    pub weight_bytes: u64,
    /// Embedding tables: looked up by row, so a decode step does not read them, unless they are the
    /// head too.
    pub embedding_bytes: u64,
    pub head_is_tied: bool,
    pub quantization: Option<Quantization>,
}

impl<'p> Weights<'p> {
    /// The files of a folder. Where the options name no dtype, activations have that of most float
    /// bytes.
    ///
    /// # Errors
    /// A file is missing, broken or truncated, the quantization settings are not understood, or the
    /// files are larger than the memory.
    pub fn open(
        folder: &Path,
        config: &Value,
        options: &LoadOptions,
        progress: Progress<'p>,
    ) -> Result<Self> {
        let files = Files::open(folder)?;
        let declared = Declared::read(config)?;
        let dtype = options.dtype.unwrap_or_else(|| prevailing_dtype(&files));
        let total_bytes = files.entries.values().map(Entry::n_bytes).sum();
        let source =
            Source::Folder { path: folder.to_owned(), files: RefCell::new(files), declared };
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
        };
        Self { source, dtype, options: options.clone(), state: RefCell::new(state) }
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
        Scope { weights: self, path: String::new() }
    }

    /// Ends the loading: nothing may be missing, and nothing left over.
    pub(crate) fn finish(self, family: &str) -> Result<(Tally, Vec<String>)> {
        let state = self.state.into_inner();
        let Source::Folder { path: folder, files, .. } = self.source else {
            return Ok((state.tally, state.notes));
        };
        if !state.missing.is_empty() {
            return Err(Error::Missing { folder, names: state.missing });
        }
        let left = files.into_inner().entries;
        let names = left
            .into_iter()
            .filter(|(name, _)| !name.ends_with(".rotary_emb.inv_freq"))
            .map(|(name, entry)| {
                format!("{name} ({})", entry.file.file_name().unwrap_or_default().display())
            })
            .collect::<Vec<_>>();
        if !names.is_empty() {
            return Err(Error::Unused { folder, family: family.to_owned(), names });
        }
        Ok((state.tally, state.notes))
    }

    /// One tensor of a folder with this shape; a placeholder if it is missing, which `finish`
    /// reports.
    fn tensor(
        &self,
        files: &RefCell<Files>,
        name: &str,
        shape: &[i32],
    ) -> Result<(Array, Option<Entry>)> {
        let mut files = files.borrow_mut();
        let Some(entry) = files.entries.remove(name) else {
            self.state.borrow_mut().missing.push(name.to_owned());
            return Ok((Array::zeros(&vec![1; shape.len()], self.dtype)?, None));
        };
        let found = entry.info.shape.iter().map(|&n| n as i64).collect::<Vec<_>>();
        if !found.iter().copied().eq(shape.iter().map(|&n| i64::from(n))) {
            let reason = format!("has shape {found:?}, but the config implies {shape:?}");
            return Err(entry.error(name, reason));
        }
        let array =
            files.take(name).ok_or_else(|| entry.error(name, "MLX did not find it in the file"))?;
        Ok((array, Some(entry)))
    }

    /// A float tensor in the activations' dtype.
    fn float(&self, files: &RefCell<Files>, name: &str, shape: &[i32]) -> Result<Array> {
        let (array, entry) = self.tensor(files, name, shape)?;
        if let Some(entry) = entry
            && !is_float(entry.info.dtype)
        {
            let reason =
                format!("holds {:?}, but floats (F32, F16, BF16) are wanted", entry.info.dtype);
            return Err(entry.error(name, reason));
        }
        Ok(array.astype(self.dtype)?)
    }

    /// A quantized matrix `[rows, n_in]`, if the files hold scales for it.
    fn quantized(
        &self,
        (files, declared): (&RefCell<Files>, &Declared),
        path: &str,
        rows: i32,
        n_in: i32,
    ) -> Result<Option<Quantized>> {
        let names = ["weight", "scales"].map(|part| format!("{path}.{part}"));
        let entries = names.each_ref().map(|name| files.borrow().entries.get(name).cloned());
        // Scales without a weight: the dense path reports it as missing.
        let [Some(weight), Some(scales)] = entries else { return Ok(None) };
        let quantization = declared.prove(path, &weight, &scales, n_in)?;
        let packed = n_in * quantization.bits / 32;
        let groups = n_in / quantization.group_size;
        let (codes, _) = self.tensor(files, &names[0], &[rows, packed])?;
        let is_affine = quantization.mode == mlx::QuantMode::Affine;
        let (scales_array, biases) = if is_affine {
            let bias_name = format!("{path}.biases");
            let list = self.float(files, &names[1], &[rows, groups])?;
            let offsets = self.float(files, &bias_name, &[rows, groups])?;
            self.must_be_finite(&scales, &names[1], &list)?;
            self.must_be_finite(&scales, &bias_name, &offsets)?;
            (list, Some(offsets))
        } else {
            (self.tensor(files, &names[1], &[rows, groups])?.0, None)
        };
        Ok(Some(Quantized { weight: codes, scales: scales_array, biases, quantization }))
    }

    fn must_be_finite(&self, entry: &Entry, name: &str, array: &Array) -> Result<()> {
        let check = array.is_finite()?.all(&[0, 1])?;
        self.state.borrow_mut().checks.push((entry.file.clone(), name.to_owned(), check));
        Ok(())
    }

    /// How to multiply with this matrix: as was found for the first of its form and size.
    fn product_of(&self, matrix: &Quantized, rows: i32, n_in: i32) -> Result<Product> {
        let mut state = self.state.borrow_mut();
        state.tally.quantization.get_or_insert(matrix.quantization);
        // Placeholders of missing tensors cannot be multiplied; loading will fail by them.
        if !self.options.proves_products || !state.missing.is_empty() {
            return Ok(Product::Fused);
        }
        let form = (matrix.quantization, rows, n_in);
        if let Some(product) = state.products.get(&form) {
            return Ok(*product);
        }
        let product = Product::proven(matrix, n_in, self.dtype)?;
        if product == Product::Expanded {
            let Quantization { mode, bits, group_size } = matrix.quantization;
            state.notes.push(format!(
                "the device multiplies {bits}-bit {mode} matrices [{rows}, {n_in}] in groups of \
                 {group_size} wrongly: they are dequantized before each product, which is slower"
            ));
        }
        state.products.insert(form, product);
        Ok(product)
    }

    /// Notes that arrays belong to the model, as `n_parameters` weights.
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

/// A place in the tree of names, such as `model.layers.3.self_attn`.
pub(crate) struct Scope<'w, 'p> {
    weights: &'w Weights<'p>,
    path: String,
}

impl<'w, 'p> Scope<'w, 'p> {
    /// The place `name` below this one.
    pub fn at(&self, name: &str) -> Scope<'w, 'p> {
        Scope { weights: self.weights, path: self.join(name) }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether the files hold a linear layer of this name; for random weights `otherwise`.
    pub fn has_linear(&self, name: &str, otherwise: bool) -> bool {
        match &self.weights.source {
            Source::Random(_) => otherwise,
            Source::Folder { files, .. } => {
                files.borrow().entries.contains_key(&format!("{}.weight", self.join(name)))
            }
        }
    }

    /// Notes that the head is the embedding, which a decode step then reads whole; `is_stated` says
    /// whether the config knows.
    pub fn note_tied_head(&self, is_stated: bool) {
        let mut state = self.weights.state.borrow_mut();
        state.tally.head_is_tied = true;
        if !is_stated {
            let note = "there is no lm_head although config.json does not say that it is tied: \
                        the embedding serves as the head";
            state.notes.push(note.to_owned());
        }
    }

    /// A linear layer `n_in` → `n_out`.
    pub fn linear(&self, name: &str, n_in: i32, n_out: i32, bias: bool) -> Result<Linear> {
        let path = self.join(name);
        let weight = self.matrix(&path, n_out, n_in)?;
        let weight = match weight {
            Matrix::Dense(w) => Matrix::Dense(w.swap_axes(0, 1)?),
            quantized @ Matrix::Quantized(..) => quantized,
        };
        let bias = bias.then(|| self.vector(&format!("{path}.bias"), n_out, 0.0)).transpose()?;
        Ok(Linear { weight, bias })
    }

    /// A table of `rows` embeddings.
    pub fn embedding(&self, name: &str, rows: i32, width: i32) -> Result<Embedding> {
        let before = self.weights.state.borrow().tally.weight_bytes;
        let matrix = self.matrix(&self.join(name), rows, width)?;
        let mut state = self.weights.state.borrow_mut();
        state.tally.embedding_bytes += state.tally.weight_bytes - before;
        Ok(match matrix {
            Matrix::Dense(table) => Embedding::Dense(table),
            Matrix::Quantized(table, product) => {
                Embedding::Quantized(table, product, self.weights.dtype)
            }
        })
    }

    /// An RMS norm over `width` values.
    pub fn norm(&self, name: &str, width: i32, eps: f32) -> Result<RmsNorm> {
        let weight = self.vector(&format!("{}.weight", self.join(name)), width, 1.0)?;
        Ok(RmsNorm { weight, eps })
    }

    /// A vector of `n` floats; `random` is its value where weights are random.
    fn vector(&self, name: &str, n: i32, random: f32) -> Result<Array> {
        let w = self.weights;
        let vector = match &w.source {
            Source::Random(_) => Array::full(&[n], random, w.dtype)?,
            Source::Folder { files, .. } => w.float(files, name, &[n])?,
        };
        w.own(i64::from(n), [&vector]);
        Ok(vector)
    }

    /// A matrix `[rows, n_in]`, not transposed.
    fn matrix(&self, path: &str, rows: i32, n_in: i32) -> Result<Matrix> {
        let w = self.weights;
        let stored = match &w.source {
            Source::Random(quantization) => {
                random::matrix(path, rows, n_in, *quantization, w.dtype)?
            }
            Source::Folder { files, declared, .. } => {
                match w.quantized((files, declared), path, rows, n_in)? {
                    Some(quantized) => Stored::Quantized(quantized),
                    None => {
                        Stored::Dense(w.float(files, &format!("{path}.weight"), &[rows, n_in])?)
                    }
                }
            }
        };
        let n_parameters = i64::from(rows) * i64::from(n_in);
        Ok(match stored {
            Stored::Dense(table) => {
                w.own(n_parameters, [&table]);
                Matrix::Dense(table)
            }
            Stored::Quantized(q) => {
                w.own(n_parameters, [&q.weight, &q.scales].into_iter().chain(&q.biases));
                let product = w.product_of(&q, rows, n_in)?;
                Matrix::Quantized(q, product)
            }
        })
    }

    /// Reads what has been taken so far into memory, checks it, and reports progress.
    ///
    /// # Errors
    /// A file cannot be read, scales are not finite, memory is short, or the caller called it off.
    pub fn settle(&self) -> Result<()> {
        let mut state = self.weights.state.borrow_mut();
        self.weights.check_memory(state.tally.weight_bytes)?;
        let pending = std::mem::take(&mut state.pending);
        let checks = std::mem::take(&mut state.checks);
        mlx::eval(pending.iter().chain(checks.iter().map(|(_, _, check)| check)))?;
        for (path, name, check) in checks {
            if !check.item::<bool>()? {
                let reason = "holds values that are not finite numbers".to_owned();
                return Err(Error::Tensor { path, name, reason });
            }
        }
        let done = state.tally.weight_bytes;
        let total = state.total_bytes.max(done);
        match (state.progress)(done, total) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

fn is_float(dtype: FileDtype) -> bool {
    matches!(dtype, FileDtype::F32 | FileDtype::F16 | FileDtype::BF16)
}

/// The float dtype that holds most bytes: config.json's `dtype` may be the source's.
fn prevailing_dtype(files: &Files) -> Dtype {
    let bytes = |wanted: FileDtype| {
        files.entries.values().filter(|e| e.info.dtype == wanted).map(Entry::n_bytes).sum::<u64>()
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
