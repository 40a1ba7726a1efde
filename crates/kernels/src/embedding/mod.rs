//! Rows of a quantized table as floats: the embeddings of tokens.
//!
//! | form | where |
//! |---|---|
//! | [`reference::rows`] | everywhere: the twin, MLX's rows of codes and scales, then its floats |
//! | `cpu.rs` | CPU, affine codes: one node, in f32 until a number is rounded |

mod cpu;
mod twin;

use mlx::{Array, Backend, Device, Dtype, QuantMode, Quantized, Result};

use crate::input::{dims, expect_shape, refused};

const OP: &str = "embedding";

/// Rows `tokens` (i32 or u32, of any shape) of `table` `[V, E]`, as `[.., E]` of a float `dtype`.
///
/// # Errors
/// Shapes or dtypes do not fit. For affine codes on the CPU, evaluation fails if a token is not
/// below V. Elsewhere nothing checks that, and what is read in its place means nothing.
pub fn rows(table: &Quantized, tokens: &Array, dtype: Dtype) -> Result<Array> {
    let width = check(table, tokens, dtype)?;
    let is_affine = table.quantization.mode == QuantMode::Affine && table.quantization.bits <= 8;
    match (Device::current_backend(), &table.biases) {
        (Backend::Cpu, Some(biases)) if is_affine => {
            cpu::run(table, biases, tokens, &[width], dtype)
        }
        _ => twin::run(table, tokens, dtype),
    }
}

/// The twin, in MLX's operations: what the other form is held against.
pub mod reference {
    use super::*;

    /// As [`super::rows`].
    ///
    /// # Errors
    /// Those of shapes and dtypes.
    pub fn rows(table: &Quantized, tokens: &Array, dtype: Dtype) -> Result<Array> {
        check(table, tokens, dtype)?;
        twin::run(table, tokens, dtype)
    }
}

/// E.
fn check(table: &Quantized, tokens: &Array, dtype: Dtype) -> Result<i32> {
    let q = table.quantization;
    let [vocab, words] = dims(OP, "the table", &table.weight)?;
    let refuse = |array: &Array, message: String| Err(refused(OP, &[array], message));
    if table.weight.dtype() != Dtype::U32 || q.bits < 1 || words * 32 % q.bits != 0 {
        let message = format!("{} bits each do not fill the table's words", q.bits);
        return refuse(&table.weight, message);
    }
    let width = words * 32 / q.bits;
    if q.group_size < 1 || width % q.group_size != 0 {
        return refuse(&table.weight, format!("groups of {} do not fill a row", q.group_size));
    }
    for list in [Some(&table.scales), table.biases.as_ref()].into_iter().flatten() {
        expect_shape(OP, "scales and biases", list, &[vocab, width / q.group_size])?;
    }
    if !matches!(tokens.dtype(), Dtype::I32 | Dtype::U32) || tokens.n_elements() == 0 {
        return refuse(tokens, "tokens must be i32 or u32, one or more".to_owned());
    }
    if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16) {
        return refuse(&table.weight, format!("{dtype} is no float of at most 32 bits"));
    }
    Ok(width)
}
