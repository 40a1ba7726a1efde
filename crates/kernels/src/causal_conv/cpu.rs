//! The causal convolution on the CPU: a band of channels runs through all steps, the rows of its
//! window kept as f32.

use mlx::{Array, CpuKernel, Dtype, Result, TensorMut, TensorRef};

use super::{CausalConv, Convolved, Sizes};
use crate::cpu::{Failure, Floats, Parts, each, exp, for_processor, madd};

/// Channels of a band.
const BAND: usize = 512;

struct Task<'a> {
    u: Floats<'a>,
    weight: Floats<'a>,
    tail: Option<Floats<'a>>,
    lengths: Option<&'a [i32]>,
    sizes: Sizes,
    out: Parts<'a>,
    new_tail: Parts<'a>,
}

/// The convolution as one node of the graph.
pub(super) fn run(conv: &CausalConv<'_>, sizes: Sizes) -> Result<Convolved> {
    let native = |x: &Array| {
        let dtype = if x.dtype() == Dtype::Bf16 { Dtype::Bf16 } else { Dtype::F32 };
        x.astype(dtype)
    };
    let (u, weight) = (native(conv.u)?, native(conv.weight)?);
    let tail = conv.tail.map(native).transpose()?;
    let mut inputs = vec![&u, &weight];
    inputs.extend(&tail);
    inputs.extend(conv.lengths);
    let (has_tail, has_lengths) = (tail.is_some(), conv.lengths.is_some());
    let tail_shape = [sizes.rows, sizes.width - 1, sizes.channels];
    let outputs = [(u.shape(), u.dtype()), (&tail_shape[..], u.dtype())];
    let mut made = CpuKernel::call(&inputs, &outputs, move |ins, outs| {
        let mut rest = ins[2..].iter();
        let tail = if has_tail { rest.next() } else { None };
        let lengths = if has_lengths { rest.next() } else { None };
        Task::new(ins, tail, lengths, sizes, outs)?.run();
        Ok(())
    })?
    .into_iter();
    let dtype = conv.u.dtype();
    match (made.next(), made.next()) {
        (Some(out), Some(tail)) => {
            Ok(Convolved { out: out.astype(dtype)?, tail: tail.astype(dtype)? })
        }
        _ => unreachable!("as many outputs as were asked for"),
    }
}

impl<'a> Task<'a> {
    fn new(
        ins: &[TensorRef<'a>],
        tail: Option<&TensorRef<'a>>,
        lengths: Option<&TensorRef<'a>>,
        sizes: Sizes,
        outs: &'a mut [TensorMut<'_>],
    ) -> std::result::Result<Self, Failure> {
        let [out, new_tail] = outs else {
            return Err("two outputs were asked for".to_owned());
        };
        Ok(Self {
            u: Floats::new(&ins[0])?,
            weight: Floats::new(&ins[1])?,
            tail: tail.map(Floats::new).transpose()?,
            lengths: lengths.map(TensorRef::as_slice).transpose()?,
            sizes,
            out: Parts::new(out)?,
            new_tail: Parts::new(new_tail)?,
        })
    }

    fn run(&self) {
        let s = self.sizes;
        let n_bands = (s.channels as usize).div_ceil(BAND);
        each(s.rows as usize * n_bands, &|i| {
            let first = i % n_bands * BAND;
            self.band(i / n_bands, first, BAND.min(s.channels as usize - first));
        });
    }

    /// Channels `first..first + n` of one sequence.
    fn band(&self, row: usize, first: usize, n: usize) {
        let s = self.sizes;
        let (steps, width, channels) = (s.steps as usize, s.width as usize, s.channels as usize);
        let count = self.lengths.map_or(steps, |l| (l[row].max(0) as usize).min(steps));
        let mut by_channel = vec![0.0; n * width];
        self.weight.read(first * width, &mut by_channel);
        let mut weight = vec![0.0; width * BAND];
        for (i, w) in by_channel.iter().enumerate() {
            weight[i % width * BAND + i / width] = *w;
        }
        // The window as a ring: step t's row lies in slot (t + width − 1) mod width.
        let mut ring = vec![0.0; width * BAND];
        let before = width - 1;
        if let Some(tail) = &self.tail {
            for slot in 0..before {
                let from = (row * before + slot) * channels + first;
                tail.read(from, &mut ring[slot * BAND..][..n]);
            }
        }
        let mut out = [0.0; BAND];
        for t in 0..count {
            let slot = (t + before) % width;
            self.u.read((row * steps + t) * channels + first, &mut ring[slot * BAND..][..n]);
            window(&ring, &weight, (slot + 1) % width, &mut out);
            // SAFETY: this band of this sequence, which no other task touches.
            unsafe { self.out.write((row * steps + t) * channels + first, &out[..n]) };
        }
        for i in 0..before {
            let slot = (count + i) % width;
            // SAFETY: as above.
            unsafe {
                let to = (row * before + i) * channels + first;
                self.new_tail.write(to, &ring[slot * BAND..][..n]);
            }
        }
    }
}

for_processor! {
    /// silu of the weighted sum over the ring's rows, the oldest of which lies in `oldest`.
    window = window_body(ring: &[f32], weight: &[f32], oldest: usize, out: &mut [f32; BAND])
}

#[inline(always)]
fn window_body<const FUSED: bool>(
    ring: &[f32],
    weight: &[f32],
    oldest: usize,
    out: &mut [f32; BAND],
) {
    let (ring, _) = ring.as_chunks::<BAND>();
    let (weight, _) = weight.as_chunks::<BAND>();
    *out = [0.0; BAND];
    for (j, weight) in weight.iter().enumerate() {
        let row = &ring[(oldest + j) % ring.len()];
        for c in 0..BAND {
            out[c] = madd::<FUSED>(row[c], weight[c], out[c]);
        }
    }
    for x in out {
        *x /= 1.0 + exp::<FUSED>(-*x);
    }
}
