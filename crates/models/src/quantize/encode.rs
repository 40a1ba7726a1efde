//! The work on one item: read, check, cast, code, measure. One item is in memory at a time, and
//! beside it what a few million of its values become.

use std::ops::{ControlFlow, Range};
use std::thread::JoinHandle;

use mlx::{Array, Dtype, QuantMode, Quantization, Quantized};

use crate::{Error, Result};

use super::distance::{Distance, PlainCodes};
use super::plan::{Item, Work};

/// Values that are worked on at once: enough to keep the device busy, few enough to stay small
/// beside a large tensor.
const CHUNK_VALUES: i32 = 4 << 20;

/// Where the bytes go: (index of the part, the next bytes of it).
pub(super) type Sink<'s> = &'s mut dyn FnMut(usize, &[u8]) -> Result<()>;

/// Told of the share of the item that is done, from 0 to 1.
pub(super) type Tick<'t> = &'t mut dyn FnMut(f64) -> ControlFlow<()>;

/// Does an item's work; the distance of what is written from what was read.
///
/// # Errors
/// A value is not finite or does not fit its new dtype, the file cannot be read, or `tick` called
/// it off.
pub(super) fn run(item: Item, sink: Sink<'_>, tick: Tick<'_>) -> Result<Distance> {
    let Item { path, file, work, role, .. } = item;
    let mut run = Run { path, file, sink, tick };
    match work {
        Work::Encode { source, dtype, coding } => run.encode(&source, dtype, coding),
        Work::Cast { source, dtype } => run.cast(&source, dtype),
        Work::Decode { matrix, dtype } => run.decode(&matrix, dtype),
        Work::Copy { arrays } => {
            for (i, array) in arrays.into_iter().enumerate() {
                run.copy(i, &array, role.is_some())?;
            }
            Ok(Distance::default())
        }
    }
}

struct Run<'a> {
    path: String,
    file: std::path::PathBuf,
    sink: Sink<'a>,
    tick: Tick<'a>,
}

impl Run<'_> {
    /// One piece is coded while the one before it is measured.
    fn encode(&mut self, source: &Array, dtype: Dtype, coding: Quantization) -> Result<Distance> {
        let mut distance = Distance::default();
        let mut measured = None::<JoinHandle<Distance>>;
        let rows = rows_of(source)?;
        for range in ranges(&rows) {
            let piece = rows.slice_axis(0, range.clone())?;
            let cast = piece.astype(dtype)?;
            let coded = cast.quantize(coding)?;
            let (values, codes) = (piece.to_f32_vec()?, PlainCodes::of(&coded)?);
            (self.sink)(0, &codes.words)?;
            for (i, part) in [&coded.scales].into_iter().chain(&coded.biases).enumerate() {
                (self.sink)(i + 1, &part.to_bytes()?)?;
            }
            let before = measured.take();
            let fits = codes.are_finite() && (piece.dtype() == dtype || all(&cast.is_finite()?)?);
            measured = Some(std::thread::spawn(move || codes.distance(&values)));
            self.add(&mut distance, before)?;
            if !fits {
                // Values that are not finite come first: they are what is wrong.
                self.add(&mut distance, measured.take())?;
                return Err(self.error(&format!("holds values that are too large for {dtype}")));
            }
            self.ticked(&rows, &range)?;
        }
        self.add(&mut distance, measured)?;
        Ok(distance)
    }

    /// Waits for a piece's distance.
    fn add(&self, sum: &mut Distance, piece: Option<JoinHandle<Distance>>) -> Result<()> {
        if let Some(piece) = piece {
            *sum = sum.plus(piece.join().expect("arithmetic on lists does not panic"));
        }
        match sum.is_finite() {
            true => Ok(()),
            false => Err(self.error("holds values that are not finite numbers")),
        }
    }

    fn cast(&mut self, source: &Array, dtype: Dtype) -> Result<Distance> {
        let mut distance = Distance::default();
        let rows = rows_of(source)?;
        for range in ranges(&rows) {
            let piece = rows.slice_axis(0, range.clone())?;
            let cast = piece.astype(dtype)?;
            self.must_be_finite(&piece, &cast)?;
            if piece.dtype() != dtype {
                distance = distance.plus(between(&cast, &piece)?);
            }
            (self.sink)(0, &cast.to_bytes()?)?;
            self.ticked(&rows, &range)?;
        }
        Ok(distance)
    }

    /// Rounded once: scales and offsets are widened before they are used.
    fn decode(&mut self, matrix: &Quantized, dtype: Dtype) -> Result<Distance> {
        let mut distance = Distance::default();
        let weight = rows_of(&matrix.weight)?;
        let scales = rows_of(&matrix.scales)?;
        let biases = matrix.biases.as_ref().map(rows_of).transpose()?;
        for range in ranges(&weight) {
            let piece = |rows: &Array| rows.slice_axis(0, range.clone());
            let coded = Quantized {
                weight: piece(&weight)?,
                scales: piece(&scales)?,
                biases: biases.as_ref().map(piece).transpose()?,
                quantization: matrix.quantization,
            };
            let floats = widened(&coded)?.dequantize(Dtype::F32)?;
            let cast = floats.astype(dtype)?;
            self.must_be_finite(&floats, &cast)?;
            distance = distance.plus(between(&cast, &floats)?);
            (self.sink)(0, &cast.to_bytes()?)?;
            self.ticked(&weight, &range)?;
        }
        Ok(distance)
    }

    /// Bytes as they are. 8-bit scales of the model must be numbers.
    fn copy(&mut self, part: usize, source: &Array, is_run: bool) -> Result<()> {
        let rows = rows_of(source)?;
        for range in ranges(&rows) {
            let piece = rows.slice_axis(0, range.clone())?;
            if is_run && piece.dtype() == Dtype::U8 {
                let number = piece.ne(&Array::scalar(255.0, Dtype::U8)?)?;
                if !all(&number)? {
                    return Err(self.error("has scales that are not numbers"));
                }
            }
            (self.sink)(part, &piece.to_bytes()?)?;
            self.ticked(&rows, &range)?;
        }
        Ok(())
    }

    fn must_be_finite(&self, values: &Array, cast: &Array) -> Result<()> {
        if !all(&values.is_finite()?)? {
            return Err(self.error("holds values that are not finite numbers"));
        }
        if values.dtype() == cast.dtype() { Ok(()) } else { self.must_fit(cast, cast.dtype()) }
    }

    fn must_fit(&self, values: &Array, dtype: Dtype) -> Result<()> {
        match all(&values.is_finite()?)? {
            true => Ok(()),
            false => Err(self.error(&format!("holds values that are too large for {dtype}"))),
        }
    }

    fn error(&self, reason: &str) -> Error {
        let (path, name) = (self.file.clone(), self.path.clone());
        Error::Tensor { path, name, reason: reason.to_owned() }
    }

    fn ticked(&mut self, rows: &Array, range: &Range<i32>) -> Result<()> {
        match (self.tick)(f64::from(range.end) / f64::from(rows.dim(0).max(1))) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

fn between(found: &Array, values: &Array) -> Result<Distance> {
    Ok(Distance::between(found.to_f32_vec()?.into_iter(), &values.to_f32_vec()?))
}

/// The values, computed, as `[rows, width]`.
fn rows_of(array: &Array) -> Result<Array> {
    array.eval()?;
    let width = array.shape().last().copied().unwrap_or(1);
    Ok(array.reshape(&[-1, width])?)
}

fn ranges(rows: &Array) -> impl Iterator<Item = Range<i32>> + use<> {
    let n = rows.dim(0);
    let step = (CHUNK_VALUES / rows.dim(1).max(1)).max(1);
    (0..n).step_by(step as usize).map(move |first| first..n.min(first.saturating_add(step)))
}

/// With scales and offsets in f32, so that what is measured is the coding alone.
fn widened(coded: &Quantized) -> Result<Quantized> {
    if coded.quantization.mode != QuantMode::Affine {
        return Ok(coded.clone());
    }
    Ok(Quantized {
        weight: coded.weight.clone(),
        scales: coded.scales.astype(Dtype::F32)?,
        biases: coded.biases.as_ref().map(|biases| biases.astype(Dtype::F32)).transpose()?,
        quantization: coded.quantization,
    })
}

fn all(flags: &Array) -> Result<bool> {
    Ok(flags.all(&[0, 1])?.item::<bool>()?)
}
