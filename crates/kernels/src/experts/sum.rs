//! What experts make of tokens, weighed and added onto them.
//!
//! ```text
//! out = onto + Σ weightᵢ · yᵢ + σ(gate) · shared
//! ```
//! The sum is f32 and rounded once. On CUDA it is one launch, on the CPU one node.

use std::ops::Range;

use mlx::{Array, Backend, CpuKernel, Device, Dtype, Launch, Result};

use super::OP;
use crate::cpu::{Parts, Rows, each_rows, exp, for_processor, madd, numbers};
use crate::cuda::Kernel;
use crate::input::{dims, expect_dtype, expect_float, expect_shape};

const THREADS: i32 = 64;
/// Elements of a thread, at most: 16 bytes of 16-bit floats.
const MAX_RUN: i32 = 8;
/// Elements that are worked on together: they stay in the processor's nearest cache.
const BLOCK: usize = 1024;

/// N tokens of E elements, k experts for each.
#[derive(Clone, Copy, Debug)]
pub struct Sum<'a> {
    /// `[N, E]`.
    pub onto: &'a Array,
    /// What the chosen experts gave, `[N·k, E]` in the dtype of `onto`.
    pub y: &'a Array,
    /// The row of y for each pair, `[N, k]`, u32; those of a token one after another if absent.
    pub places: Option<&'a Array>,
    /// `[N, k]`, f32.
    pub weights: &'a Array,
    /// What a block that every token passes gave.
    pub shared: Option<Shared<'a>>,
}

/// Added beside the experts.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// `[N, E]`.
    pub y: &'a Array,
    /// `[N, 1]`: its sigmoid multiplies y. None: 1.
    pub gate: Option<&'a Array>,
}

#[derive(Clone, Copy)]
struct Sizes {
    n: i32,
    width: i32,
    k: i32,
}

impl Sum<'_> {
    /// `[N, E]` in the dtype of `onto`, in the fastest form that this backend has.
    ///
    /// # Errors
    /// Shapes or dtypes do not fit each other. A place beyond y shows at evaluation on the CPU;
    /// elsewhere it is the caller's duty that there is none.
    pub fn run(&self) -> Result<Array> {
        let sizes = self.check()?;
        match Device::current_backend() {
            _ if self.onto.n_elements() == 0 => Ok(self.onto.clone()),
            Backend::Cpu => self.on_cpu(sizes),
            Backend::Cuda => self.on_cuda(sizes),
            Backend::Metal => self.twin(sizes),
        }
    }

    /// The same in MLX's operations: what the other forms are held against.
    ///
    /// # Errors
    /// Those of [`Sum::run`].
    pub fn reference(&self) -> Result<Array> {
        self.twin(self.check()?)
    }

    fn check(&self) -> Result<Sizes> {
        let ([n, width], [_, k]) =
            (dims(OP, "onto", self.onto)?, dims(OP, "weights", self.weights)?);
        expect_float(OP, "onto", self.onto)?;
        let dtype = self.onto.dtype();
        expect_dtype(OP, "y", self.y, dtype)?;
        expect_shape(OP, "y", self.y, &[n * k, width])?;
        expect_dtype(OP, "weights", self.weights, Dtype::F32)?;
        expect_shape(OP, "weights", self.weights, &[n, k])?;
        if let Some(places) = self.places {
            expect_dtype(OP, "places", places, Dtype::U32)?;
            expect_shape(OP, "places", places, &[n, k])?;
        }
        if let Some(Shared { y, gate }) = self.shared {
            expect_dtype(OP, "shared", y, dtype)?;
            expect_shape(OP, "shared", y, &[n, width])?;
            if let Some(gate) = gate {
                expect_dtype(OP, "gate", gate, dtype)?;
                expect_shape(OP, "gate", gate, &[n, 1])?;
            }
        }
        Ok(Sizes { n, width, k })
    }

    /// The arrays that there are, in the order in which the forms take them.
    fn inputs(&self) -> [(&'static str, Option<&Array>); 6] {
        [
            ("onto", Some(self.onto)),
            ("y", Some(self.y)),
            ("weights", Some(self.weights)),
            ("places", self.places),
            ("shared", self.shared.map(|shared| shared.y)),
            ("gate", self.shared.and_then(|shared| shared.gate)),
        ]
    }

    fn twin(&self, s: Sizes) -> Result<Array> {
        let y = match self.places {
            Some(places) => self.y.take(&places.flatten(0, 1)?, 0)?,
            None => self.y.clone(),
        };
        let y = y.reshape(&[s.n, s.k, s.width])?.astype(Dtype::F32)?;
        let mut sum = y.mul(&self.weights.expand_dims(&[-1])?)?.sum(&[1])?;
        if let Some(Shared { y, gate }) = self.shared {
            let y = y.astype(Dtype::F32)?;
            let weighed = match gate {
                Some(gate) => y.mul(&gate.astype(Dtype::F32)?.sigmoid()?)?,
                None => y,
            };
            sum = sum.add(&weighed)?;
        }
        self.onto.astype(Dtype::F32)?.add(&sum)?.astype(self.onto.dtype())
    }

    fn on_cuda(&self, s: Sizes) -> Result<Array> {
        let run = (1..=MAX_RUN).rev().find(|n| n.count_ones() == 1 && s.width % n == 0);
        let run = run.expect("1 divides every width");
        let inputs = self.inputs();
        let list = inputs.map(|(name, array)| if array.is_some() { name } else { "nullptr" });
        let [onto, y, weights, places, shared, gate] = list;
        let kinds = list.map(|name| if name == "nullptr" { '0' } else { '1' });
        let kernel = Kernel {
            name: format!("offshoot_add_chosen_{}", String::from_iter(kinds)),
            source: include_str!("sum.cu"),
            inputs: inputs.to_vec(),
            outputs: vec!["out"],
            call: &|| {
                format!(
                    "offshoot::add_chosen<K, RUN, T>({onto}, {y}, {places}, {weights}, {shared}, \
                     {gate}, out, onto_shape[0], onto_shape[1]);"
                )
            },
            shared_bytes: 0,
        };
        let n_threads = i64::from(s.n) * i64::from(s.width / run);
        let n_groups = (n_threads + i64::from(THREADS) - 1) / i64::from(THREADS);
        let made = kernel.launch(&Launch {
            outputs: &[(self.onto.shape(), self.onto.dtype())],
            grid: [n_groups as i32 * THREADS, 1, 1],
            group: [THREADS, 1, 1],
            ints: &[("K", s.k), ("RUN", run)],
            dtypes: &[("T", self.onto.dtype())],
        })?;
        Ok(made.into_iter().next().expect("one output was asked for"))
    }

    fn on_cpu(&self, s: Sizes) -> Result<Array> {
        let inputs = self.inputs();
        let has = inputs.map(|(_, array)| array.is_some());
        let inputs = inputs.iter().filter_map(|(_, array)| *array).collect::<Vec<_>>();
        let (n, width, k) = (s.n as usize, s.width as usize, s.k as usize);
        let outputs = [(self.onto.shape(), self.onto.dtype())];
        let made = CpuKernel::call_strided(&inputs, &outputs, move |ins, outs| {
            let [out] = outs else { return Err("one output was asked for".to_owned()) };
            let mut ins = ins.iter();
            let mut next = |i: usize| if has[i] { ins.next() } else { None };
            let [onto, y, weights, places, shared, gate] = std::array::from_fn(&mut next);
            let rows = |t: Option<_>| t.map(Rows::new).transpose();
            let missing = || "an input is missing".to_owned();
            let task = Task {
                onto: rows(onto)?.ok_or_else(missing)?,
                y: rows(y)?.ok_or_else(missing)?,
                weights: numbers(weights.ok_or_else(missing)?, f32::from_le_bytes),
                places: places.map(|t| numbers(t, u32::from_le_bytes)),
                shared: rows(shared)?,
                gate: rows(gate)?,
                k,
                out: Parts::new(out)?,
            };
            if task.places.iter().flatten().any(|&place| place as usize >= n * k) {
                return Err(format!("a place is none of {} rows", n * k));
            }
            each_rows(n, width * (k + 1), &|tokens| add(&task, tokens));
            Ok(())
        })?;
        Ok(made.into_iter().next().expect("one output was asked for"))
    }
}

struct Task<'a> {
    onto: Rows<'a>,
    y: Rows<'a>,
    weights: Vec<f32>,
    places: Option<Vec<u32>>,
    shared: Option<Rows<'a>>,
    gate: Option<Rows<'a>>,
    k: usize,
    out: Parts<'a>,
}

for_processor! {
    /// For these tokens.
    add = add_body(task: &Task<'_>, tokens: Range<usize>)
}

#[inline(always)]
fn add_body<const FUSED: bool>(task: &Task<'_>, tokens: Range<usize>) {
    let (mut sums, mut values) = ([0.0; BLOCK], [0.0; BLOCK]);
    let width = task.onto.width;
    for token in tokens {
        let mut gate = [0.0];
        let shared_weight = task.gate.map_or(1.0, |gates| {
            gates.read(token, 0, &mut gate);
            1.0 / (1.0 + exp::<FUSED>(-gate[0]))
        });
        for from in (0..width).step_by(BLOCK) {
            let n = BLOCK.min(width - from);
            let (sum, value) = (&mut sums[..n], &mut values[..n]);
            sum.fill(0.0);
            let mut add = |rows: &Rows<'_>, row: usize, weight: f32| {
                rows.read(row, from, value);
                sum.iter_mut()
                    .zip(&*value)
                    .for_each(|(sum, x)| *sum = madd::<FUSED>(weight, *x, *sum));
            };
            for pair in token * task.k..(token + 1) * task.k {
                let row = task.places.as_ref().map_or(pair, |places| places[pair] as usize);
                add(&task.y, row, task.weights[pair]);
            }
            if let Some(shared) = &task.shared {
                add(shared, token, shared_weight);
            }
            add(&task.onto, token, 1.0);
            // SAFETY: a token belongs to one task.
            unsafe { task.out.write(token * width + from, sum) };
        }
    }
}
