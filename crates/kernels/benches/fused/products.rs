//! Products with matrices in floats and quantized, beside what the machine's arithmetic and memory
//! can do.

use std::hint::black_box;
use std::time::Instant;

use kernels::grouped::Groups;
use kernels::{dense, experts, quantized};
use mlx::{Array, Backend, Dtype, Gathered, QuantMode, Quantization, Quantized, Result};

use crate::{Form, Plan, repeated, values};

/// Products with quantized matrices. Several matrices by turns, so that none stays in a cache.
pub(crate) fn quantized_products(plan: &Plan) {
    let sizes: &[(i32, i32, i32)] = match plan.is_bench {
        true if plan.backend == Backend::Cuda => &[
            (1, 4096, 12288),
            (8, 4096, 12288),
            (32, 4096, 12288),
            (64, 4096, 12288),
            (128, 4096, 12288),
            (512, 4096, 12288),
            (2048, 4096, 12288),
        ],
        true => &[
            (1, 1024, 3072),
            (1, 3072, 1024),
            (1, 1024, 65536),
            (8, 1024, 3072),
            (512, 1024, 3072),
        ],
        false => &[(1, 128, 65), (5, 64, 33)],
    };
    let affine = |bits| Quantization { mode: QuantMode::Affine, bits, group_size: 64 };
    let mxfp4 = Quantization { mode: QuantMode::Mxfp4, bits: 4, group_size: 32 };
    for (name, form) in
        [("4 bits", affine(4)), ("8 bits", affine(8)), ("3 bits", affine(3)), ("mxfp4", mxfp4)]
    {
        for &(rows, n_in, n_out) in sizes {
            let random = || values(&[n_out, n_in], 0.3).astype(Dtype::Bf16).unwrap();
            let w: Vec<Quantized> = (0..if n_out > 10000 { 1 } else { 16 })
                .map(|_| random().quantize(form).unwrap())
                .collect();
            let parts = w.iter().flat_map(|w| [&w.weight, &w.scales].into_iter().chain(&w.biases));
            mlx::eval(parts).unwrap();
            let x = values(&[rows, n_in], 0.1).astype(Dtype::Bf16).unwrap();
            let each = |calls: usize, product: &dyn Fn(&Array, &Quantized) -> Result<Array>| {
                (0..calls).map(|i| product(&x, &w[i % w.len()])).collect::<Result<Vec<_>>>()
            };
            let stock_calls = if plan.backend == Backend::Cpu { 1 } else { 32 };
            let forms: Vec<Form<'_>> = vec![
                (
                    "stock MLX",
                    stock_calls,
                    Box::new(|calls| each(calls, &|x, w| x.quantized_matmul(w))),
                ),
                (
                    "products",
                    if rows > 100 { 4 } else { 32 },
                    Box::new(|calls| {
                        each(calls, &|x, w| Ok(quantized::products(x, &[w])?.remove(0)))
                    }),
                ),
            ];
            let mut forms = forms;
            if plan.backend == Backend::Cuda && rows >= 32 {
                let by_floats = |x: &Array, w: &Quantized| {
                    x.matmul(&w.dequantize(x.dtype())?.swap_axes(-1, -2)?)
                };
                forms.push(("dequantized", 32, Box::new(move |calls| each(calls, &by_floats))));
            }
            // MLX's CPU backend takes half a minute for a prompt.
            let skipped = usize::from(plan.backend == Backend::Cpu && rows > 100);
            let forms = forms.into_iter().skip(skipped).collect();
            plan.compare(&format!("quantized {rows}x{n_in} to {n_out}, {name}"), forms);
        }
    }
}

/// Products with matrices chosen by index: 8 of 128 for each row, sorted where there are many.
pub(crate) fn chosen(plan: &Plan) {
    let (n_in, n_out, n_matrices, k) =
        if plan.is_bench { (2048, 768, 128, 8) } else { (64, 32, 4, 2) };
    let rows: &[i32] = if plan.is_bench { &[1, 8, 32, 256, 2048] } else { &[1, 3] };
    let w = values(&[n_matrices, n_out, n_in], 0.3).astype(Dtype::Bf16).unwrap();
    let w = w.quantize(Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 }).unwrap();
    mlx::eval([&w.weight, &w.scales, w.biases.as_ref().unwrap()]).unwrap();
    for &rows in rows {
        let mut which = (0..rows * k).map(|i| (i * 37 % n_matrices) as u32).collect::<Vec<_>>();
        let sorted = rows >= 8;
        if sorted {
            which.sort_unstable();
        }
        let which = Array::from_slice(&which, &[rows * k]).unwrap();
        let x = values(&[rows * k, 1, n_in], 0.1).astype(Dtype::Bf16).unwrap();
        let calls = if plan.backend == Backend::Cuda { 16 } else { 1 };
        let each = |n: usize, product: &dyn Fn() -> Result<Array>| {
            (0..n).map(|_| product()).collect::<Result<Vec<_>>>()
        };
        let by = Gathered { lhs: None, rhs: Some(&which), sorted };
        let mut forms: Vec<Form<'_>> = vec![(
            "chosen",
            calls,
            Box::new(|n| each(n, &|| quantized::chosen(&x, &w, &which, sorted))),
        )];
        if plan.backend == Backend::Cuda {
            forms.push(("stock MLX", calls, Box::new(|n| each(n, &|| x.gather_qmm(&w, by)))));
            let by_floats = || experts::product(&x, &w.dequantize(x.dtype())?, &which, sorted);
            forms.push(("dequantized", calls, Box::new(move |n| each(n, &by_floats))));
        }
        plan.compare(&format!("chosen {rows}x{k} of {n_matrices}, {n_in} to {n_out}"), forms);
    }
}

/// All of what experts do, with matrices read for each pair and for all rows of a matrix at once.
pub(crate) fn experts(plan: &Plan) {
    let (n_hidden, n_inner, n_matrices, k) =
        if plan.is_bench { (2048, 768, 128, 8) } else { (128, 64, 4, 2) };
    let rows: &[i32] = if plan.is_bench { &[8, 16, 32, 64, 128, 512, 2048] } else { &[3] };
    let stack = |n_out, n_in| {
        let w = values(&[n_matrices, n_out, n_in], 0.3).astype(Dtype::Bf16).unwrap();
        w.quantize(Quantization { mode: QuantMode::Affine, bits: 4, group_size: 64 }).unwrap()
    };
    let [gate, up, down] =
        [(n_inner, n_hidden), (n_inner, n_hidden), (n_hidden, n_inner)].map(|(o, i)| stack(o, i));
    for &n in rows {
        let which = (0..n * k)
            .map(|i| (i64::from(i).pow(2) * 37 % i64::from(n_matrices - 1)) as u32)
            .collect::<Vec<_>>();
        let which = Array::from_slice(&which, &[n, k]).unwrap();
        let x = values(&[n, n_hidden], 0.1).astype(Dtype::Bf16).unwrap();
        let by_pairs = || {
            let x = x.reshape(&[n, 1, 1, n_hidden])?;
            let inner = quantized::chosen_swiglu(&x, &gate, &up, &which, false)?;
            quantized::chosen(&inner, &down, &which, false)?.reshape(&[n * k, n_hidden])
        };
        let by_groups = || {
            let groups = Groups::of(&which, n_matrices)?;
            let y = groups.product(&groups.swiglu(&x, &gate, &up)?, &down)?;
            y.take(&groups.places.flatten(0, 1)?, 0)
        };
        let calls = if plan.backend == Backend::Cuda { 8 } else { 1 };
        let mut forms: Vec<Form<'_>> = vec![];
        if n <= 128 {
            forms.push(("by pairs", calls, Box::new(move |n| repeated(n, &by_pairs))));
        }
        forms.push(("by groups", calls, Box::new(move |n| repeated(n, &by_groups))));
        plan.compare(&format!("experts {n}x{k} of {n_matrices}, {n_hidden} and {n_inner}"), forms);
    }
}

/// Products of rows with matrices of floats, and what the machine could do at best: multiply and
/// add in registers, and read memory.
pub(crate) fn products(plan: &Plan) {
    let sizes: &[(i32, i32, i32, Dtype)] = match plan.is_bench {
        false => &[(2, 16, 24, Dtype::F32)],
        true if plan.backend == Backend::Cuda => &[
            (1, 4096, 12288, Dtype::Bf16),
            (8, 4096, 12288, Dtype::Bf16),
            (8, 12288, 4096, Dtype::Bf16),
            (8, 4096, 4096, Dtype::Bf16),
            (32, 4096, 12288, Dtype::Bf16),
            (64, 4096, 12288, Dtype::Bf16),
        ],
        true => &[
            (1, 1024, 3072, Dtype::F32),
            (1, 1024, 3072, Dtype::Bf16),
            (1, 1024, 151_936, Dtype::Bf16),
            (4, 1024, 3072, Dtype::Bf16),
            (8, 1024, 3072, Dtype::Bf16),
            (16, 1024, 3072, Dtype::Bf16),
            (128, 1024, 3072, Dtype::F32),
            (128, 1024, 3072, Dtype::Bf16),
            (512, 1024, 3072, Dtype::F32),
            (512, 1024, 3072, Dtype::Bf16),
        ],
    };
    let effort = if plan.is_bench { 1 << 25 } else { 1 << 10 };
    for &(rows, n_in, n_out, dtype) in sizes {
        let name = format!("dense {rows}x{n_in}x{n_out}, {dtype}");
        if !plan.wants(&name) {
            continue;
        }
        let x = &values(&[rows, n_in], 0.1).astype(dtype).unwrap();
        let w = &values(&[n_out, n_in], 0.2).astype(dtype).unwrap();
        mlx::eval([x, w]).unwrap();
        let calls = if plan.backend == Backend::Cuda { 30 } else { 1 };
        let repeat = move |n: usize, form: fn(&Array, &Array) -> Result<Array>| {
            (0..n).map(|_| form(x, w)).collect()
        };
        let stock = |x: &Array, w: &Array| x.matmul(&w.swap_axes(-1, -2)?);
        let forms: Vec<Form<'_>> = vec![
            ("stock MLX", calls, Box::new(move |n| repeat(n, stock))),
            ("product", calls, Box::new(move |n| repeat(n, dense::product))),
        ];
        let us = plan.compare(&name, forms);
        if plan.backend == Backend::Cpu {
            let (read, peak) = (read_gb_per_s(effort), peak_gflops(effort));
            let gflops = 2e-3 * f64::from(rows) * f64::from(n_in) * f64::from(n_out) / us;
            let gb_per_s = 1e-3 * w.n_bytes() as f64 / us;
            let share = 100.0 * gflops / peak;
            println!(
                "    {gflops:.1} GFLOP/s of {peak:.1} ({share:.0} %), \
                 w at {gb_per_s:.1} GB/s of {read:.1}"
            );
        }
    }
}

/// Runs `work` on every processor, three times, and gives the shortest seconds.
pub(crate) fn on_all(work: &(dyn Fn(usize) + Sync)) -> f64 {
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let run = |_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for i in 0..n {
                scope.spawn(move || work(i));
            }
        });
        start.elapsed().as_secs_f64() / n as f64
    };
    (0..3).map(run).fold(f64::INFINITY, f64::min)
}

/// Billions of additions and multiplications a second that all processors make on registers.
pub(crate) fn peak_gflops(effort: usize) -> f64 {
    #[inline(always)]
    fn body(n: usize) {
        let mut sums = black_box([[1.0f32; 8]; 12]);
        let (a, b) = (black_box([0.5f32; 8]), black_box([0.25f32; 8]));
        for _ in 0..n {
            for sum in &mut sums {
                for i in 0..8 {
                    sum[i] = sum[i].mul_add(a[i], b[i]);
                }
            }
        }
        black_box(sums);
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn wide(n: usize) {
        body(n);
    }
    let seconds = on_all(&|_| {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { wide(effort) };
        }
        body(effort);
    });
    2.0 * 96.0 * effort as f64 / seconds / 1e9
}

/// Billions of bytes a second that all processors read of memory.
pub(crate) fn read_gb_per_s(effort: usize) -> f64 {
    let memory = vec![1u64; effort];
    let n = std::thread::available_parallelism().map_or(1, usize::from);
    let part = effort / n;
    let seconds = on_all(&|i| {
        let mut sums = [0u64; 32];
        for line in memory[i * part..(i + 1) * part].chunks_exact(32) {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(*value);
            }
        }
        black_box(sums);
    });
    8.0 * part as f64 / seconds / 1e9
}
