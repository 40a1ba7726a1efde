//! Small arrays that the host has filled and every layer reads: positions, lengths, block tables.
//! On CUDA they lie in the host's memory, where each read takes the link's latency, so they are
//! copied once, all in one launch. Elsewhere they are where they are read.

use mlx::{Array, Backend, Device, Launch, Result};

use crate::cuda::{Kernel, count};

const THREADS: i32 = 256;

/// Arrays with the same contents, near the device.
///
/// # Errors
/// Memory is short.
pub fn upload(arrays: &[&Array]) -> Result<Vec<Array>> {
    if Device::current_backend() != Backend::Cuda || arrays.is_empty() {
        return Ok(arrays.iter().map(|array| (*array).clone()).collect());
    }
    let names = |kind: &str| (0..arrays.len()).map(|i| format!("{kind}{i}_")).collect::<Vec<_>>();
    let (ins, outs) = (names("from"), names("to"));
    let call = || {
        let copy = |(from, to): (&String, &String)| {
            let n = count(from);
            format!("{{\n{n}\nif (i < n) {to}[i] = {from}[i];\n}}\n")
        };
        let copies = ins.iter().zip(&outs).map(copy).collect::<String>();
        format!("const long i = blockIdx.x * blockDim.x + threadIdx.x;\n{copies}")
    };
    let kernel = Kernel {
        name: format!("offshoot_upload_{}", arrays.len()),
        source: "",
        inputs: ins.iter().map(String::as_str).zip(arrays.iter().map(|a| Some(*a))).collect(),
        outputs: outs.iter().map(String::as_str).collect(),
        call: &call,
        shared_bytes: 0,
    };
    let most = arrays.iter().map(|array| array.n_elements()).max().unwrap_or(0) as i32;
    let outputs = arrays.iter().map(|array| (array.shape(), array.dtype())).collect::<Vec<_>>();
    kernel.launch(&Launch {
        outputs: &outputs,
        grid: [(most + THREADS - 1) / THREADS * THREADS, 1, 1],
        group: [THREADS, 1, 1],
        ints: &[],
        dtypes: &[],
    })
}
