//! What the CUDA forms share: sources made ready, and kernels kept.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use mlx::{Array, CudaKernel, CudaSource, Device, Launch, Result};

/// Of a large device: blocks of threads that run at a time where each takes what one has.
pub(crate) const MULTIPROCESSORS: i32 = 132;

thread_local! {
    /// Kernels by name. They belong to the thread that owns the device.
    static KERNELS: RefCell<HashMap<String, Rc<CudaKernel>>> = RefCell::new(HashMap::new());
}

/// A kernel: a function of one of the `.cu` files, called with some of its pointers null.
pub(crate) struct Kernel<'a> {
    /// Unlike that of every other kernel with other fields.
    pub(crate) name: String,
    /// The file that defines the function.
    pub(crate) source: &'a str,
    /// Names and arrays; absent ones are left out.
    pub(crate) inputs: Vec<(&'a str, Option<&'a Array>)>,
    /// Names of the outputs.
    pub(crate) outputs: Vec<&'a str>,
    /// Writes the call, in which `nullptr` stands for an absent input.
    pub(crate) call: &'a dyn Fn() -> String,
    /// Dynamic shared memory.
    pub(crate) shared_bytes: i32,
}

impl Kernel<'_> {
    /// Adds a launch to the graph.
    pub(crate) fn launch(&self, launch: &Launch<'_>) -> Result<Vec<Array>> {
        self.launch_with(launch, None)
    }

    /// The same of a source that calls `wait_for_inputs` itself: before that it reads none of the
    /// first `n_late` of [`Kernel::inputs`]. What it reads of the others no other launch between
    /// the same two evaluations may write, seen by MLX or not.
    pub(crate) fn launch_early(&self, launch: &Launch<'_>, n_late: usize) -> Result<Vec<Array>> {
        let late = &self.inputs[..n_late];
        self.launch_with(launch, Some(late.iter().filter(|(_, array)| array.is_some()).count()))
    }

    fn launch_with(&self, launch: &Launch<'_>, n_late: Option<usize>) -> Result<Vec<Array>> {
        let inputs = self.inputs.iter().filter_map(|(_, array)| *array).collect::<Vec<_>>();
        self.compiled(n_late)?.launch(&inputs, launch)
    }

    fn compiled(&self, n_late: Option<usize>) -> Result<Rc<CudaKernel>> {
        if let Some(kernel) = KERNELS.with_borrow(|kernels| kernels.get(&self.name).cloned()) {
            return Ok(kernel);
        }
        // Machine code is kept by MLX's text, and depends on this too.
        let waits = n_late.map_or("", |_| "// Waits itself.\n");
        let present = self.inputs.iter().filter(|(_, array)| array.is_some());
        let names = present.map(|(name, _)| *name).collect::<Vec<_>>();
        let kernel = Rc::new(CudaKernel::new(&CudaSource {
            name: &self.name,
            inputs: &names,
            outputs: &self.outputs,
            body: &format!("{waits}{}", (self.call)()),
            header: &bare(&[include_str!("vectors.cuh"), self.source]),
            row_contiguous: true,
            shared_bytes: self.shared_bytes,
            n_late,
        })?);
        KERNELS.with_borrow_mut(|kernels| kernels.insert(self.name.clone(), kernel.clone()));
        Ok(kernel)
    }
}

/// A number in a source, to the last bit.
pub(crate) fn literal(value: f32) -> String {
    format!("__uint_as_float({}u)", value.to_bits())
}

/// Declares `n`, the number of elements of an input that has a dimension.
pub(crate) fn count(input: &str) -> String {
    format!("long n = 1;\nfor (int i = 0; i < {input}_ndim; ++i) n *= {input}_shape[i];")
}

/// The sources without comments and indentation: MLX copies and hashes the text at every launch.
fn bare(parts: &[&str]) -> String {
    let lines = parts.iter().flat_map(|part| part.lines());
    let code = lines.map(|line| line.split("//").next().unwrap_or_default().trim());
    code.filter(|line| !line.is_empty()).fold(String::new(), |text, line| text + line + "\n")
}

/// Shared memory that one block may have on the present device, bytes; 0 where tensor cores know no
/// tf32.
pub(crate) fn shared_limit_bytes() -> i32 {
    thread_local!(static LIMIT: i32 = limit_of(compute_capability()));
    LIMIT.with(|limit| *limit)
}

/// Whether groups of four warps multiply tiles of shared memory, as on Hopper alone.
pub(crate) fn has_warp_groups() -> bool {
    thread_local!(static HAS: bool = compute_capability() == (9, 0));
    HAS.with(|has| *has)
}

/// By CUDA's table of compute capabilities.
fn limit_of(capability: (u32, u32)) -> i32 {
    1024 * match capability {
        (8, 0 | 7) => 163,
        (8, _) | (12, _) => 99,
        (9..=11, _) => 227,
        _ => 0,
    }
}

fn compute_capability() -> (u32, u32) {
    let facts = Device::current_facts().unwrap_or_default();
    let number = |key: &str| facts.get(key).and_then(|text| text.parse().ok()).unwrap_or(0);
    (number("compute_capability_major"), number("compute_capability_minor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_lose_comments_and_keep_code() {
        let text = "// What it is.\n#pragma unroll\n  for (;;) {  // forever\n\n  }\n";
        assert_eq!(bare(&[text, "int x;"]), "#pragma unroll\nfor (;;) {\n}\nint x;\n");
    }

    #[test]
    fn shared_memory_is_known_by_capability() {
        for (capability, kib) in
            [((7, 5), 0), ((8, 0), 163), ((8, 6), 99), ((9, 0), 227), ((10, 0), 227), ((12, 0), 99)]
        {
            assert_eq!(limit_of(capability), kib * 1024, "{capability:?}");
        }
    }
}
