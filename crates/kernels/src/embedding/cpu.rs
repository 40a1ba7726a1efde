//! Rows of a table with affine codes on the CPU.

use mlx::{Array, CpuKernel, Dtype, Quantized, Result};

use crate::cpu::{Floats, Parts, each_rows};

pub(super) fn run(
    table: &Quantized,
    biases: &Array,
    tokens: &Array,
    width: &[i32],
    dtype: Dtype,
) -> Result<Array> {
    let shape = [tokens.shape(), width].concat();
    let (bits, group) = (table.quantization.bits as usize, table.quantization.group_size as usize);
    let inputs = [&table.weight, &table.scales, biases, tokens];
    let made = CpuKernel::call(&inputs, &[(&shape, dtype)], move |ins, outs| {
        let (codes, vocab) = (ins[0].bytes(), ins[0].shape[0] as usize);
        let (scales, biases) = (Floats::new(&ins[1])?, Floats::new(&ins[2])?);
        let (tokens, _) = ins[3].bytes().as_chunks::<4>();
        let tokens = tokens.iter().map(|t| u32::from_le_bytes(*t) as usize).collect::<Vec<_>>();
        if tokens.iter().any(|token| *token >= vocab) {
            return Err(format!("a token is not below {vocab}"));
        }
        let (row_bytes, n_groups) = (codes.len() / vocab, ins[1].shape[1] as usize);
        let out = Parts::new(&mut outs[0])?;
        each_rows(tokens.len(), n_groups * group, &|rows| {
            let mut values = vec![0.0; n_groups * group];
            let (mut scale, mut bias) = (vec![0.0; n_groups], vec![0.0; n_groups]);
            for row in rows {
                let token = tokens[row];
                scales.read(token * n_groups, &mut scale);
                biases.read(token * n_groups, &mut bias);
                unpack(&codes[token * row_bytes..][..row_bytes], bits, &mut values);
                let terms = scale.iter().zip(&bias);
                for (values, (scale, bias)) in values.chunks_exact_mut(group).zip(terms) {
                    values.iter_mut().for_each(|x| *x = *x * scale + bias);
                }
                // SAFETY: a row belongs to one task.
                unsafe { out.write(row * n_groups * group, &values) };
            }
        });
        Ok(())
    })?;
    Ok(made.into_iter().next().expect("as many outputs as were asked for"))
}

/// Codes of up to 8 bits that lie one after another, low bits first, also across bytes.
fn unpack(codes: &[u8], bits: usize, values: &mut [f32]) {
    match bits {
        8 => values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(*code)),
        4 => {
            for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
                (pair[0], pair[1]) = (f32::from(code & 15), f32::from(code >> 4));
            }
        }
        _ => {
            let mask = (1u16 << bits) - 1;
            for (i, value) in values.iter_mut().enumerate() {
                let (byte, shift) = (i * bits / 8, i * bits % 8);
                let high = if shift + bits > 8 { codes[byte + 1] } else { 0 };
                *value = f32::from((u16::from_le_bytes([codes[byte], high]) >> shift) & mask);
            }
        }
    }
}
