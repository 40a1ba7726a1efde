//! Checks of what callers hand over.

use mlx::{Array, Dtype, Error, Result};

/// The error of an operation that refuses its inputs.
pub(crate) fn refused(op: &'static str, inputs: &[&Array], message: String) -> Error {
    let inputs = inputs.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
    Error::Op { op, inputs, message }
}

/// The shape of `array` as exactly `N` sizes.
pub(crate) fn dims<const N: usize>(
    op: &'static str,
    name: &str,
    array: &Array,
) -> Result<[i32; N]> {
    <[i32; N]>::try_from(array.shape())
        .map_err(|_| refused(op, &[array], format!("{name} must have {N} dimensions")))
}

/// Refuses an `array` that is not of this shape.
pub(crate) fn expect_shape(
    op: &'static str,
    name: &str,
    array: &Array,
    shape: &[i32],
) -> Result<()> {
    if array.shape() == shape {
        return Ok(());
    }
    Err(refused(op, &[array], format!("{name} must have shape {shape:?}")))
}

/// Refuses an `array` of another dtype.
pub(crate) fn expect_dtype(
    op: &'static str,
    name: &str,
    array: &Array,
    dtype: Dtype,
) -> Result<()> {
    if array.dtype() == dtype {
        return Ok(());
    }
    Err(refused(op, &[array], format!("{name} must be {dtype}")))
}

/// Refuses an `array` that does not hold floating-point numbers of at most 32 bits.
pub(crate) fn expect_float(op: &'static str, name: &str, array: &Array) -> Result<()> {
    if matches!(array.dtype(), Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
        return Ok(());
    }
    Err(refused(op, &[array], format!("{name} must be f32, f16 or bf16")))
}
