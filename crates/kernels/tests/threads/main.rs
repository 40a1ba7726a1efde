//! Whether the number of threads changes results on the CPU: the same work in processes of their
//! own, because a process decides on its threads once. What depends on it is in the fingerprint of
//! what `engine` keeps for later in deterministic mode; what does not need not be.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::process::Command;

use kernels::{Attention, Kv, Masks, Positions, dense, experts, quantized};
use mlx::{Array, Backend, Device, Dtype, Key, QuantMode, Quantization};

/// Set to the number of threads in a process that computes.
const THREADS: &str = "OFFSHOOT_TEST_THREADS";
const N_THREADS: [usize; 4] = [1, 2, 3, 7];
/// Of activations: where one is worked on alone, a few, and many.
const N_ROWS: [i32; 4] = [1, 2, 13, 70];

fn normal(seed: u64, shape: &[i32], dtype: Dtype) -> Array {
    Key::from_seed(seed).unwrap().normal(shape, Dtype::F32).unwrap().astype(dtype).unwrap()
}

/// FNV-1a of the bits of results.
fn tell(name: &str, arrays: &[Array]) {
    let bytes = arrays.iter().flat_map(|array| array.to_bytes().unwrap());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    println!("bits of {name}: {hash:016x}");
}

/// Sizes at which the work is parted by the number of threads, and does not part evenly.
fn products() {
    let (n_in, n_out) = (384, 1036);
    let forms = [(2, 32), (3, 64), (4, 64), (5, 64), (6, 32), (8, 64)]
        .map(|(bits, group_size)| Quantization { mode: QuantMode::Affine, bits, group_size });
    let of_mode = |mode, bits, group_size| Quantization { mode, bits, group_size };
    let others = [of_mode(QuantMode::Mxfp4, 4, 32), of_mode(QuantMode::Nvfp4, 4, 16)];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let x = |rows: i32| normal(1, &[rows, n_in], dtype);
        let [w, up] = [2, 3].map(|seed| normal(seed, &[n_out, n_in], dtype));
        for rows in N_ROWS {
            tell(&format!("float, {rows} rows, {dtype}"), &[dense::product(&x(rows), &w).unwrap()]);
        }
        for form in forms.iter().chain(&others) {
            let [w, up] = [&w, &up].map(|matrix| matrix.quantize(*form).unwrap());
            for rows in N_ROWS {
                let mut found = quantized::products(&x(rows), &[&w, &up]).unwrap();
                found.push(quantized::swiglu(&x(rows), &w, &up).unwrap());
                tell(&format!("{form:?}, {rows} rows, {dtype}"), &found);
            }
        }
        let w = normal(4, &[5, 260, n_in], dtype);
        let coded = w.quantize(forms[2]).unwrap();
        for rows in N_ROWS {
            let which = (0..2 * rows as u32).map(|i| i * 7 % 5).collect::<Vec<_>>();
            let which = Array::from_slice(&which, &[rows, 2]).unwrap();
            let x = x(rows).reshape(&[rows, 1, 1, n_in]).unwrap();
            let found = [
                experts::product(&x, &w, &which, false).unwrap(),
                quantized::chosen(&x, &coded, &which, false).unwrap(),
            ];
            tell(&format!("chosen, {rows} rows, {dtype}"), &found);
        }
    }
}

fn attention(queries: i32, n_keys: i32, dtype: Dtype) {
    let q = normal(5, &[2, 6, queries, 40], dtype);
    let keys = normal(6, &[2, 2, n_keys, 40], dtype);
    let values = normal(7, &[2, 2, n_keys, 24], dtype);
    let masks = Masks::default();
    let attention = Attention {
        q: &q,
        kv: Kv::Rows { keys: &keys, values: &values, first_key: 0 },
        scale: 0.2,
        positions: Positions::Same(n_keys - queries),
        window: None,
        sinks: None,
        masks: &masks,
    };
    let name = format!("attention over {n_keys} keys, {queries} queries, {dtype}");
    tell(&name, &[attention.run().unwrap()]);
}

fn compute(n_threads: usize) {
    kernels::set_threads(n_threads);
    Device::open().unwrap();
    assert_eq!(kernels::n_threads(), n_threads);
    products();
    for (queries, dtype) in [(1, Dtype::F32), (1, Dtype::Bf16), (41, Dtype::F32)] {
        attention(queries, 250, dtype);
        attention(queries, 3000, dtype);
    }
}

#[test]
fn of_all_that_is_summed_only_attention_over_many_keys_depends_on_the_number_of_threads() {
    if let Ok(n_threads) = std::env::var(THREADS) {
        return compute(n_threads.parse().unwrap());
    }
    if Device::open().unwrap().backend() != Backend::Cpu {
        return;
    }
    let of_threads = N_THREADS.map(|n| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.arg("--nocapture").env(THREADS, n.to_string()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines =
            text.lines().filter_map(|line| line.split_once("bits of ")?.1.rsplit_once(": "));
        let lines = lines.map(|(name, bits)| (name.to_owned(), bits.to_owned()));
        lines.collect::<BTreeMap<_, _>>()
    });
    let [one, more @ ..] = &of_threads;
    assert_eq!(one.len(), 2 * N_ROWS.len() * (1 + 8 + 1) + 6);
    let mut n_parted = 0;
    for (name, bits) in one {
        let is_equal = more.iter().all(|other| other[name] == *bits);
        if name.contains("3000 keys") {
            n_parted += usize::from(!is_equal);
        } else {
            assert!(is_equal, "{name}");
        }
    }
    assert!(n_parted > 0, "nothing depends on the number of threads: it need not be remembered");
}
