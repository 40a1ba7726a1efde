//! The array handle: creation, facts, evaluation, and the way back to Rust memory.

use std::fmt;

use cxx::UniquePtr;
use mlx_sys::ffi;

use crate::dtype::sealed::Plain;
use crate::{Dtype, Element, Error, Result, error};

/// An n-dimensional array on the device: an owned handle to a node of MLX's graph, freed on drop.
///
/// Cloning copies the handle, not the data. `!Send`: MLX's streams belong to one thread.
///
/// ```compile_fail
/// fn wants_send<T: Send>() {}
/// wants_send::<mlx::Array>();
/// ```
pub struct Array(pub(crate) UniquePtr<ffi::Array>);

impl Clone for Array {
    fn clone(&self) -> Self {
        Self(ffi::share(&self.0).expect("copying a handle only counts a reference"))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype(), self.shape())
    }
}

fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: `Element` is sealed to plain types without padding, so the slice's bytes are all
    // initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn check_size(op: &'static str, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<()> {
    let refused = |message| Error::Op { op, inputs: String::new(), message };
    if shape.iter().any(|&n| n < 0) {
        return Err(refused(format!("a shape has no negative sizes: {shape:?}")));
    }
    // C++ multiplies modulo 2⁶⁴, where a huge shape can look like a small one.
    let n_elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
    if n_elements.and_then(|n| n.checked_mul(dtype.size_bytes())) != Some(bytes.len()) {
        return Err(refused(format!("{} bytes are no {dtype}{shape:?}", bytes.len())));
    }
    Ok(())
}

impl Array {
    pub(crate) fn wrap(
        op: &'static str,
        inputs: &[&Array],
        result: std::result::Result<UniquePtr<ffi::Array>, cxx::Exception>,
    ) -> Result<Self> {
        result.map(Self).map_err(|thrown| error::of_op(op, inputs, thrown))
    }

    /// Copies `values` into a new array of `shape`.
    ///
    /// # Errors
    /// The number of values is not the product of `shape`, or memory is short.
    pub fn from_slice<T: Element>(values: &[T], shape: &[i32]) -> Result<Self> {
        Self::from_bytes(bytes_of(values), shape, T::DTYPE)
    }

    /// Copies little-endian `bytes` into a new array of `shape` and `dtype`.
    ///
    /// # Errors
    /// The number of bytes does not fit `shape`, or memory is short.
    pub fn from_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Self> {
        check_size("from_bytes", bytes, shape, dtype)?;
        Self::wrap("from_bytes", &[], ffi::from_bytes(bytes, shape, dtype.code()))
    }

    /// As [`Array::from_slice`], for a few values that one pass reads once. On CUDA their bytes
    /// stay on the host, pinned: who reads them waits for the link, which takes less than the page
    /// faults by which other memory of the host comes to the device.
    ///
    /// # Errors
    /// Those of [`Array::from_slice`].
    pub fn staged<T: Element>(values: &[T], shape: &[i32]) -> Result<Self> {
        let bytes = bytes_of(values);
        check_size("staged", bytes, shape, T::DTYPE)?;
        Self::wrap("staged", &[], ffi::staged(bytes, shape, T::DTYPE.code()))
    }

    /// A zero-dimensional array. `value` passes through f32.
    pub fn scalar(value: f32, dtype: Dtype) -> Result<Self> {
        Self::wrap("scalar", &[], ffi::scalar(f64::from(value), dtype.code()))
    }

    /// `shape` filled with `value`, which passes through f32.
    pub fn full(shape: &[i32], value: f32, dtype: Dtype) -> Result<Self> {
        Self::wrap("full", &[], ffi::full(shape, f64::from(value), dtype.code()))
    }

    /// `shape` filled with zeros.
    pub fn zeros(shape: &[i32], dtype: Dtype) -> Result<Self> {
        Self::full(shape, 0.0, dtype)
    }

    /// `start, start + step, …` below `stop`.
    pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Self> {
        Self::wrap("arange", &[], ffi::arange(start, stop, step, dtype.code()))
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[i32] {
        ffi::shape(&self.0).expect("reading a shape throws nothing")
    }

    /// Size of dimension `axis`; negative axes count from the end.
    pub fn dim(&self, axis: i32) -> i32 {
        let shape = self.shape();
        let i = if axis < 0 { axis + shape.len() as i32 } else { axis };
        usize::try_from(i).ok().and_then(|i| shape.get(i).copied()).unwrap_or_else(|| {
            panic!("axis {axis} of {self:?} does not exist");
        })
    }

    /// Number of dimensions.
    pub fn n_dims(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape().iter().map(|&n| n as usize).product()
    }

    /// Type of the elements.
    pub fn dtype(&self) -> Dtype {
        Dtype::from_code(ffi::dtype(&self.0).expect("reading a dtype throws nothing"))
    }

    /// Bytes of the elements, as if stored compactly.
    pub fn n_bytes(&self) -> usize {
        ffi::n_bytes(&self.0).expect("counting bytes throws nothing")
    }

    /// Bytes of the whole buffer that an evaluated array keeps alive: more than [`Array::n_bytes`]
    /// for a view of a part.
    ///
    /// # Errors
    /// Evaluation failed.
    pub fn buffer_bytes(&self) -> Result<usize> {
        self.eval()?;
        ffi::buffer_bytes(&self.0).map_err(|e| error::of_op("buffer_bytes", &[self], e))
    }

    /// Whether the evaluated elements lie in memory in row-major order without gaps.
    ///
    /// # Errors
    /// Evaluation failed.
    pub fn is_row_contiguous(&self) -> Result<bool> {
        self.eval()?;
        ffi::is_row_contiguous(&self.0).map_err(|e| error::of_op("is_row_contiguous", &[self], e))
    }

    /// Whether the elements are there, so that reading them waits for nothing. What nobody has
    /// begun to compute is not.
    ///
    /// # Errors
    /// The device fails.
    pub fn is_available(&self) -> Result<bool> {
        ffi::is_available(&self.0).map_err(|e| error::of_op("is_available", &[self], e))
    }

    /// Computes this array now and waits for it.
    ///
    /// # Errors
    /// Whatever an operation in its graph reports when it runs; memory first of all.
    pub fn eval(&self) -> Result<()> {
        eval([self])
    }

    /// Copies the elements out, in row-major order; computes them first.
    ///
    /// # Errors
    /// The elements are not `T`, or evaluation failed.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if self.dtype() != T::DTYPE {
            return Err(Error::Dtype { op: "to_vec", found: self.dtype(), wanted: T::DTYPE });
        }
        self.copy_out()
    }

    /// The elements as f32, whatever number they are stored as.
    ///
    /// # Errors
    /// Evaluation failed.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        self.astype(Dtype::F32)?.copy_out()
    }

    /// The elements' bytes in row-major order.
    ///
    /// # Errors
    /// Evaluation failed.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.copy_out()
    }

    /// The only element.
    ///
    /// # Errors
    /// There is not exactly one, it is not `T`, or evaluation failed.
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.to_vec::<T>()?[..] {
            [value] => Ok(value),
            _ => Err(Error::Op {
                op: "item",
                inputs: format!("{self:?}"),
                message: "only an array of one element is an item".to_owned(),
            }),
        }
    }

    /// An array that lies compactly is read where it is: a copy would be queued behind whatever
    /// the device has been given to do since.
    fn copy_out<T: Copy + Plain>(&self) -> Result<Vec<T>> {
        let whole = if self.is_row_contiguous()? {
            self.clone()
        } else {
            let copy = self.contiguous()?;
            copy.eval()?;
            copy
        };
        let n_bytes = whole.n_bytes();
        let n = n_bytes / size_of::<T>();
        let mut values = Vec::<T>::with_capacity(n);
        // SAFETY: the vector has room for `n` values, whose bytes are initialised here.
        let bytes = unsafe {
            values.as_mut_ptr().write_bytes(0, n);
            std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), n_bytes)
        };
        if n_bytes > 0 {
            ffi::read(&whole.0, bytes).map_err(|e| error::of_op("read", &[self], e))?;
        }
        if !T::holds(bytes) {
            return Err(Error::Op {
                op: "copy_out",
                inputs: format!("{self:?}"),
                message: crate::dtype::NO_BOOL.to_owned(),
            });
        }
        // SAFETY: the bytes of all `n` values are initialised, and make values.
        unsafe { values.set_len(n) };
        Ok(values)
    }
}

/// A list of arrays in C++ memory, as functions of several arrays take it.
pub(crate) fn list<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> UniquePtr<ffi::Arrays> {
    let arrays = arrays.into_iter();
    let mut list = ffi::arrays_new(arrays.size_hint().0).expect("reserving a list of handles");
    for array in arrays {
        ffi::arrays_push(list.pin_mut(), &array.0).expect("appending a handle");
    }
    list
}

/// The arrays of a C++ list, in order.
pub(crate) fn unlist(
    op: &'static str,
    inputs: &[&Array],
    result: std::result::Result<UniquePtr<ffi::Arrays>, cxx::Exception>,
) -> Result<Vec<Array>> {
    let list = result.map_err(|thrown| error::of_op(op, inputs, thrown))?;
    let n = ffi::arrays_len(&list).expect("counting handles throws nothing");
    Ok((0..n).map(|i| Array(ffi::arrays_get(&list, i).expect("index below length"))).collect())
}

/// The pointer form of an optional array, as the bridge takes it. Valid as long as the borrow.
pub(crate) fn opt(array: Option<&Array>) -> *const ffi::Array {
    array.map_or(std::ptr::null(), |a| a.0.as_ptr())
}

/// Computes the arrays and waits for them.
///
/// # Errors
/// Whatever an operation in their graphs reports when it runs; memory first of all.
pub fn eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::eval(&list(arrays)).map_err(|e| error::of_op("eval", &[], e))
}

/// Starts to compute the arrays and returns without waiting.
///
/// # Errors
/// An operation was refused while the work was being laid out.
pub fn async_eval<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    ffi::async_eval(&list(arrays)).map_err(|e| error::of_op("async_eval", &[], e))
}

/// The same arrays with the launches of [`CudaKernel`](crate::CudaKernel)s that lead to them
/// joined, where many follow each other: evaluating them takes a small part of the host's time
/// then. Of what has not been evaluated, only what is returned should be used afterwards: anything
/// else would be computed once more. On other backends nothing is joined.
///
/// # Errors
/// Memory is short, or a kernel cannot be compiled.
pub fn joined<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<Vec<Array>> {
    unlist("joined", &[], ffi::joined(&list(arrays)))
}

/// Joins arrays along an existing axis.
///
/// # Errors
/// Shapes differ in another axis, or the list is empty.
pub fn concatenate(arrays: &[&Array], axis: i32) -> Result<Array> {
    Array::wrap("concatenate", arrays, ffi::concatenate(&list(arrays.iter().copied()), axis))
}

/// Joins arrays of one shape along a new axis.
///
/// # Errors
/// Shapes differ, or the list is empty.
pub fn stack(arrays: &[&Array], axis: i32) -> Result<Array> {
    Array::wrap("stack", arrays, ffi::stack(&list(arrays.iter().copied()), axis))
}
