//! y = x Wᵀ + b, with W `[out, in]` in floats or quantized.

use mlx::{Array, Dtype, Key, Quantized};

use crate::Result;

/// A weight matrix `[out, in]`.
#[derive(Debug)]
pub enum Matrix {
    /// In floats, stored transposed as `[in, out]`.
    Dense(Array),
    /// In one of MLX's quantized forms.
    Quantized(Quantized, Product),
}

/// How a quantized matrix is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// By MLX's quantized product.
    Fused,
    /// Dequantized first: the slow twin, for forms that the device's fused product gets wrong.
    Expanded,
}

impl Product {
    /// x Wᵀ in the dtype of x: wider scales must not widen the rest of the model.
    fn apply(self, x: &Array, weight: &Quantized) -> Result<Array> {
        let y = match self {
            Product::Fused => x.quantized_matmul(weight)?,
            Product::Expanded => x.matmul(&weight.dequantize(x.dtype())?.swap_axes(0, 1)?)?,
        };
        Ok(y.astype(x.dtype())?)
    }

    /// Fused if the device's product of `weight` with 1 and with 16 rows (which are different
    /// kernels) is that of the dequantized matrix, else expanded.
    pub(crate) fn proven(weight: &Quantized, n_in: i32, dtype: Dtype) -> Result<Self> {
        let x = Key::from_seed(0)?.uniform(&[16, n_in], Dtype::F32)?.offset(-0.5)?.astype(dtype)?;
        for rows in [&x, &x.slice_axis(0, 0..1)?] {
            let (fused, expanded) =
                (Product::Fused.apply(rows, weight)?, Product::Expanded.apply(rows, weight)?);
            if !agree(&fused, &expanded)? {
                return Ok(Product::Expanded);
            }
        }
        Ok(Product::Fused)
    }
}

/// Whether the two differ by rounding alone: their root-mean-square distance against their size.
fn agree(a: &Array, b: &Array) -> Result<bool> {
    let tolerance = if b.dtype() == Dtype::F32 { 1e-3 } else { 0.03 };
    let (a, b) = (a.astype(Dtype::F32)?, b.astype(Dtype::F32)?);
    let distance = a.sub(&b)?.square()?.mean(&[0, 1])?.item::<f32>()?.sqrt();
    let size = b.square()?.mean(&[0, 1])?.item::<f32>()?.sqrt();
    Ok(distance <= tolerance * size)
}

impl Matrix {
    /// `[.., in]` → `[.., out]` in the dtype of x.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match self {
            Matrix::Dense(transposed) => Ok(x.matmul(transposed)?.astype(x.dtype())?),
            Matrix::Quantized(weight, product) => product.apply(x, weight),
        }
    }
}

/// A linear layer.
#[derive(Debug)]
pub struct Linear {
    /// The weights.
    pub weight: Matrix,
    /// `[out]`.
    pub bias: Option<Array>,
}

impl Linear {
    /// `[.., in]` → `[.., out]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.weight.apply(x)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlx::{Device, QuantMode, Quantization};

    fn quantized(dtype: Dtype, quantization: Quantization) -> Quantized {
        let w = Key::from_seed(1).unwrap().normal(&[40, 192], dtype).unwrap();
        w.quantize(quantization).unwrap()
    }

    #[test]
    fn both_products_agree_where_the_device_is_right() {
        Device::open().unwrap();
        for (mode, bits, group_size) in
            [(QuantMode::Affine, 4, 64), (QuantMode::Affine, 3, 32), (QuantMode::Mxfp4, 4, 32)]
        {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let weight = quantized(dtype, Quantization { mode, bits, group_size });
                assert_eq!(Product::proven(&weight, 192, dtype).unwrap(), Product::Fused);
            }
        }
    }

    #[test]
    fn a_product_with_another_matrix_is_noticed() {
        Device::open().unwrap();
        let q = Quantization { mode: QuantMode::Affine, bits: 8, group_size: 64 };
        let (one, mut other) = (quantized(Dtype::F32, q), quantized(Dtype::F32, q));
        // One group's scale of one row is 20 % too large, as a faulty kernel might have it.
        let spoiled = other.scales.slice(&[7, 1], &[8, 2]).unwrap().scale(1.2).unwrap();
        other.scales = other.scales.slice_update(&spoiled, &[7, 1], &[8, 2]).unwrap();
        let x = Key::from_seed(3).unwrap().normal(&[5, 192], Dtype::F32).unwrap();
        let y = |w: &Quantized| Product::Fused.apply(&x, w).unwrap();
        assert!(agree(&y(&one), &y(&one)).unwrap());
        assert!(!agree(&y(&one), &y(&other)).unwrap());
        assert!(!agree(&y(&one).scale(f32::NAN).unwrap(), &y(&one)).unwrap());
    }
}
