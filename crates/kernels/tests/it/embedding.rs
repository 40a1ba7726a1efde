//! Rows of quantized tables: the backend's form against the twin.

use kernels::embedding::{self, reference};
use mlx::{Array, Backend, Dtype, QuantMode, Quantization, Quantized};

use crate::{Values, bound, close, device};

fn table(mode: QuantMode, bits: i32, group_size: i32, dtype: Dtype) -> Quantized {
    let weight = Values(bits as u64).array(&[37, 3 * group_size * 2], |x| x).astype(dtype).unwrap();
    weight.quantize(Quantization { mode, bits, group_size }).unwrap()
}

#[test]
fn every_coding_and_dtype_agrees_with_the_twin() {
    let _device = device();
    let mut codings =
        vec![(QuantMode::Mxfp4, 4, 32), (QuantMode::Mxfp8, 8, 32), (QuantMode::Nvfp4, 4, 16)];
    for bits in [2, 3, 4, 5, 6, 8] {
        codings.extend([32, 64, 128].map(|group| (QuantMode::Affine, bits, group)));
    }
    for (mode, bits, group) in codings {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
            let table = table(mode, bits, group, dtype);
            for tokens in [
                Array::from_slice(&[36i32], &[1, 1]).unwrap(),
                Array::from_slice(&[0u32, 36, 5, 5, 17, 1], &[2, 3]).unwrap(),
                Array::from_slice(&[3i32, 9, 4, 1], &[2, 2]).unwrap().swap_axes(0, 1).unwrap(),
            ] {
                let found = embedding::rows(&table, &tokens, dtype).unwrap();
                let wanted = reference::rows(&table, &tokens, dtype).unwrap();
                assert_eq!(found.dtype(), dtype);
                let near = if dtype == Dtype::F32 { 1e-6 } else { bound(dtype) };
                close(&format!("{mode} {bits} {group} {dtype}"), &found, &wanted, near);
            }
        }
    }
}

#[test]
fn bad_inputs_are_refused_with_a_reason() {
    let _device = device();
    let good = table(QuantMode::Affine, 4, 32, Dtype::F32);
    let tokens = Array::from_slice(&[1i32, 36], &[2]).unwrap();
    let floats = tokens.astype(Dtype::F32).unwrap();
    let none = tokens.slice_axis(0, 0..0).unwrap();
    let coded = |bits, group_size| Quantized {
        quantization: Quantization { mode: QuantMode::Affine, bits, group_size },
        ..good.clone()
    };
    let cut = Quantized { scales: good.scales.slice_axis(0, 0..36).unwrap(), ..good.clone() };
    let flat = Quantized { weight: good.weight.reshape(&[-1]).unwrap(), ..good.clone() };
    let cases = [
        (embedding::rows(&flat, &tokens, Dtype::F32), "the table must have 2 dimensions"),
        (embedding::rows(&coded(0, 32), &tokens, Dtype::F32), "0 bits each do not fill"),
        (embedding::rows(&coded(4, 128), &tokens, Dtype::F32), "groups of 128 do not fill a row"),
        (embedding::rows(&cut, &tokens, Dtype::F32), "scales and biases must have shape [37, 6]"),
        (embedding::rows(&good, &floats, Dtype::F32), "tokens must be i32 or u32"),
        (embedding::rows(&good, &none, Dtype::F32), "tokens must be i32 or u32, one or more"),
        (embedding::rows(&good, &tokens, Dtype::U32), "u32 is no float"),
    ];
    for (found, reason) in cases {
        let message = found.unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn on_the_cpu_tokens_are_checked_when_they_are_read() {
    let device = device();
    let good = table(QuantMode::Affine, 4, 32, Dtype::F32);
    for list in [[1i32, 37], [-1, 0]] {
        let tokens = Array::from_slice(&list, &[2]).unwrap();
        // Nothing is read yet.
        let found = embedding::rows(&good, &tokens, Dtype::F32).unwrap();
        assert_eq!(found.shape(), [2, 192]);
        if device.backend() == Backend::Cpu {
            let message = found.eval().unwrap_err().to_string();
            assert!(message.contains("a token is not below 37"), "{message}");
        }
    }
}
