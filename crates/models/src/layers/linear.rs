//! y = x Wᵀ + b, with W `[out, in]` in floats or quantized.

use kernels::{activation, dense, experts, quantized};
use mlx::{Array, Dtype, Key, Quantized};

use crate::Result;

/// A weight matrix `[out, in]`, or a stack of them.
#[derive(Debug)]
pub enum Matrix {
    /// In floats.
    Dense(Array),
    /// In one of MLX's quantized forms.
    Quantized(Quantized, Product),
}

/// How a quantized matrix is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// By the device's quantized product.
    Fused,
    /// Dequantized first: the slow twin, for forms that the device's fused product gets wrong.
    Expanded,
}

/// Numbers of rows for which products are proven.
const PROOF_ROWS: [i32; 6] = [1, 16, 32, 64, 128, 256];

impl Product {
    /// x Wᵀ in the dtype of x: wider scales must not widen the rest of the model.
    fn apply(self, x: &Array, weight: &Quantized) -> Result<Array> {
        match self {
            Product::Fused if weight.weight.n_dims() == 2 => {
                Ok(only(quantized::products(x, &[weight])?))
            }
            Product::Fused => Ok(quantized::batched(x, weight)?),
            Product::Expanded => {
                let floats = weight.dequantize(x.dtype())?.swap_axes(-1, -2)?;
                Ok(x.matmul(&floats)?.astype(x.dtype())?)
            }
        }
    }

    /// Fused if the device's products of `weight` `[.., out, in]` are those of the dequantized
    /// matrix, else expanded. They are tried for one number of rows of each tile height that MLX's
    /// CUDA kernels have, which are compiled apart and can be wrong apart. Of a stack the first few
    /// matrices are tried, chosen by index; in groups of rows they go through the kernel that many
    /// rows of one matrix are tried with.
    pub(crate) fn proven(weight: &Quantized, shape: &[i32], dtype: Dtype) -> Result<Self> {
        let (n_in, n_stack) = (shape[shape.len() - 1], shape[..shape.len() - 2].iter().product());
        let most = PROOF_ROWS[PROOF_ROWS.len() - 1];
        let x = Key::from_seed(0)?.uniform(&[most, n_in], Dtype::F32)?;
        let x = x.offset(-0.5)?.astype(dtype)?;
        let few = weight.first(3.min(n_stack))?;
        for n_rows in PROOF_ROWS {
            let rows = x.slice_axis(0, 0..n_rows)?.contiguous()?;
            let (fused, expanded) = if shape.len() == 2 {
                (Product::Fused.apply(&rows, weight)?, Product::Expanded.apply(&rows, weight)?)
            } else {
                let which = (0..n_rows).map(|i| i % 3.min(n_stack)).collect::<Vec<_>>();
                let which = Array::from_slice(&which, &[n_rows])?.astype(Dtype::U32)?;
                let rows = rows.reshape(&[n_rows, 1, n_in])?;
                let by = |product: Product| product.apply_chosen(&rows, &few, &which, false);
                (by(Product::Fused)?, by(Product::Expanded)?)
            };
            // A form that the device does not have is an error of its evaluation.
            if !agree(&fused, &expanded).unwrap_or(false) {
                return Ok(Product::Expanded);
            }
        }
        Ok(Product::Fused)
    }

    /// The same of a product with a matrix for each head `[H, out, in]`.
    pub(crate) fn proven_per_head(
        weight: &Quantized,
        shape: &[i32; 3],
        dtype: Dtype,
    ) -> Result<Self> {
        let [n_heads, _, n_in] = *shape;
        let all = [1, n_heads, 33, n_in];
        let x = Key::from_seed(0)?.uniform(&all, Dtype::F32)?.offset(-0.5)?.astype(dtype)?;
        for n_rows in [1, 5, 33] {
            let x = x.slice_axis(2, 0..n_rows)?.contiguous()?;
            let by = |product: Product| product.apply(&x, weight);
            if !agree(&by(Product::Fused)?, &by(Product::Expanded)?).unwrap_or(false) {
                return Ok(Product::Expanded);
            }
        }
        Ok(Product::Fused)
    }

    /// x `[.., 1, in]` times the matrices that `which` names, in the dtype of x.
    fn apply_chosen(
        self,
        x: &Array,
        stack: &Quantized,
        which: &Array,
        sorted: bool,
    ) -> Result<Array> {
        Ok(match self {
            Product::Fused => quantized::chosen(x, stack, which, sorted)?,
            Product::Expanded => experts::product(x, &stack.dequantize(x.dtype())?, which, sorted)?,
        })
    }
}

/// Whether the two differ by rounding alone: their root-mean-square distance against their size.
fn agree(a: &Array, b: &Array) -> Result<bool> {
    let tolerance = if b.dtype() == Dtype::F32 { 1e-3 } else { 0.03 };
    let (a, b) = (a.astype(Dtype::F32)?, b.astype(Dtype::F32)?);
    let axes = (0..b.n_dims() as i32).collect::<Vec<_>>();
    let distance = a.sub(&b)?.square()?.mean(&axes)?.item::<f32>()?.sqrt();
    let size = b.square()?.mean(&axes)?.item::<f32>()?.sqrt();
    Ok(distance <= tolerance * size)
}

fn only<T>(list: Vec<T>) -> T {
    list.into_iter().next().expect("one product for one matrix")
}

impl Matrix {
    /// The floats, where it is in floats.
    fn floats(&self) -> Option<&Array> {
        match self {
            Matrix::Dense(weight) => Some(weight),
            Matrix::Quantized(..) => None,
        }
    }

    /// The codes, if the device multiplies with them as they are.
    pub(crate) fn codes(&self) -> Option<&Quantized> {
        match self {
            Matrix::Quantized(weight, Product::Fused) => Some(weight),
            _ => None,
        }
    }

    /// `[.., in]` → `[.., out]` in the dtype of x.
    pub fn apply(&self, x: &Array) -> Result<Array> {
        match self {
            Matrix::Dense(weight) => Ok(dense::product(x, weight)?),
            Matrix::Quantized(weight, product) => product.apply(x, weight),
        }
    }
}

/// Linear layers of one shape, chosen by index: experts.
#[derive(Debug)]
pub struct Stack {
    /// The weights `[n, out, in]`.
    pub weight: Matrix,
    /// `[n, out]`.
    pub bias: Option<Array>,
}

impl Stack {
    /// Rows `x` `[.., 1, in]` through the layers `which` (u32, broadcast against the axes before)
    /// → `[.., 1, out]`. `sorted` promises that the indices ascend, for speed.
    pub fn forward(&self, x: &Array, which: &Array, sorted: bool) -> Result<Array> {
        let y = match &self.weight {
            Matrix::Dense(w) => experts::product(x, w, which, sorted)?,
            Matrix::Quantized(w, product) => product.apply_chosen(x, w, which, sorted)?,
        };
        Ok(match &self.bias {
            Some(bias) => y.add(&bias.take(which, 0)?.expand_dims(&[-2])?)?,
            None => y,
        })
    }

    /// silu(gate x) ⊙ up x of the layers `which`, as [`Stack::forward`] takes x and `which`.
    pub fn swiglu(
        gate: &Stack,
        up: &Stack,
        x: &Array,
        which: &Array,
        sorted: bool,
    ) -> Result<Array> {
        let plain = gate.bias.is_none() && up.bias.is_none();
        if let (true, Some(gate), Some(up)) = (plain, gate.weight.codes(), up.weight.codes()) {
            return Ok(quantized::chosen_swiglu(x, gate, up, which, sorted)?);
        }
        let gate = gate.forward(x, which, sorted)?;
        Ok(activation::swiglu(&gate, &up.forward(x, which, sorted)?)?)
    }
}

/// A linear layer for each head.
#[derive(Debug)]
pub struct PerHead {
    /// `[H, out, in]`.
    weight: Matrix,
}

impl PerHead {
    /// With the stored weights `[H, out, in]`.
    pub fn new(weight: Matrix) -> Self {
        Self { weight }
    }

    /// `[B, H or 1, L, in]` → `[B, H, L, out]`.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match &self.weight {
            Matrix::Dense(w) => Ok(dense::product(x, w)?),
            Matrix::Quantized(w, product) => {
                let heads = [x.dim(0), w.weight.dim(0), x.dim(2), x.dim(3)];
                product.apply(&x.broadcast_to(&heads)?, w)
            }
        }
    }

    /// By the transposed matrices: `[B, H or 1, L, out]` → `[B, H, L, in]`.
    pub fn transposed(&self, x: &Array) -> Result<Array> {
        let w = match &self.weight {
            Matrix::Dense(w) => w.clone(),
            Matrix::Quantized(w, _) => w.dequantize(x.dtype())?,
        };
        Ok(dense::product_transposed(x, &w)?)
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
        self.biased(self.weight.apply(x)?)
    }

    /// `onto` `[.., out]` plus what `x` `[.., in]` becomes.
    pub fn forward_onto(&self, onto: &Array, x: &Array) -> Result<Array> {
        match (self.weight.codes(), &self.bias) {
            (Some(codes), None) => Ok(quantized::product_onto(onto, x, codes)?),
            _ => Ok(onto.add(&self.forward(x)?)?),
        }
    }

    /// Several layers of one input: together where they are of one kind.
    pub fn forward_all<const N: usize>(layers: [&Linear; N], x: &Array) -> Result<[Array; N]> {
        let codes = layers.iter().filter_map(|l| l.weight.codes()).collect::<Vec<_>>();
        let floats = layers.iter().filter_map(|l| l.weight.floats()).collect::<Vec<_>>();
        let made = if codes.len() == N {
            quantized::products(x, &codes)?
        } else if floats.len() == N {
            dense::products(x, &floats)?
        } else {
            layers.iter().map(|layer| layer.weight.apply(x)).collect::<Result<Vec<_>>>()?
        };
        let made = made.into_iter().zip(layers).map(|(y, layer)| layer.biased(y));
        let made = made.collect::<Result<Vec<_>>>()?;
        Ok(made.try_into().expect("one output for each layer"))
    }

    /// silu(gate x) ⊙ up x.
    pub fn swiglu(gate: &Linear, up: &Linear, x: &Array) -> Result<Array> {
        if gate.bias.is_none() && up.bias.is_none() {
            if let (Some(gate), Some(up)) = (gate.weight.codes(), up.weight.codes()) {
                return Ok(quantized::swiglu(x, gate, up)?);
            }
            if let (Some(gate), Some(up)) = (gate.weight.floats(), up.weight.floats()) {
                return Ok(dense::swiglu(x, gate, up)?);
            }
        }
        Ok(activation::swiglu(&gate.forward(x)?, &up.forward(x)?)?)
    }

    fn biased(&self, y: Array) -> Result<Array> {
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
                assert_eq!(Product::proven(&weight, &[40, 192], dtype).unwrap(), Product::Fused);
            }
        }
    }

    #[test]
    fn chosen_products_of_a_stack_agree_with_the_dequantized_stack() {
        Device::open().unwrap();
        let w = Key::from_seed(5).unwrap().normal(&[5, 24, 96], Dtype::F32).unwrap();
        for (mode, bits, group_size) in [(QuantMode::Affine, 4, 32), (QuantMode::Nvfp4, 4, 16)] {
            let weight = w.quantize(Quantization { mode, bits, group_size }).unwrap();
            let found = Product::proven(&weight, &[5, 24, 96], Dtype::F32).unwrap();
            assert_eq!(found, Product::Fused);
            let found = Product::proven_per_head(&weight, &[5, 24, 96], Dtype::F32).unwrap();
            assert_eq!(found, Product::Fused);
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
