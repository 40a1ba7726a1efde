//! How prompts are cut into passes. A size is settled when a model is loaded, so that what else
//! runs never changes a result, but for a smaller one on CUDA, which a prompt gets that begins
//! while others decode: they wait for each of its passes.

use mlx::Backend;
use models::ModelInfo;
use protocol::LoadRequest;

/// On a CPU products of so many rows are as fast as those of more, and those who decode wait less.
const TOKENS_CPU: usize = 64;
/// Of these each expert sees a few.
const TOKENS_CPU_EXPERTS: usize = 256;
/// A model of which a token reads less than this share has experts.
const EXPERTS_SHARE: f64 = 0.5;
/// On a GPU it depends on the model: those who decode wait for each pass, which should not take
/// much longer than theirs, and a small model's should be worth its launches. Tokens times active
/// parameters: about 25 ms of a large GPU.
const PRODUCTS_GPU: f64 = 5e12;
const TOKENS_GPU: [usize; 2] = [256, 2048];
/// Into so many parts a pass is cut for prompts that begin while others decode.
const PARTS_BESIDE: usize = 8;

/// Tokens of a pass over a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// Of one that begins while nobody decodes.
    pub tokens: usize,
    /// Of others.
    pub tokens_beside: usize,
}

impl Chunks {
    /// For a model, or as the request asks for it.
    pub fn of(request: &LoadRequest, backend: Backend, info: &ModelInfo) -> Self {
        if let Some(n) = request.chunk_tokens {
            let tokens = n.max(1) as usize;
            return Self { tokens, tokens_beside: tokens };
        }
        let share = info.weight_bytes_per_token as f64 / info.weight_bytes.max(1) as f64;
        let tokens = match backend {
            Backend::Cpu if share < EXPERTS_SHARE => TOKENS_CPU_EXPERTS,
            Backend::Cpu => TOKENS_CPU,
            Backend::Cuda | Backend::Metal => on_gpu(info.n_parameters as f64 * share),
        };
        let tokens_beside = match backend {
            Backend::Cuda if !request.deterministic => tokens.div_ceil(PARTS_BESIDE),
            _ => tokens,
        };
        Self { tokens, tokens_beside }
    }
}

/// A power of two of tokens for a model that uses so many parameters for each.
fn on_gpu(n_active: f64) -> usize {
    let [least, most] = TOKENS_GPU;
    let n = (PRODUCTS_GPU / n_active.max(1.0)) as usize;
    let rounded = n.checked_ilog2().map_or(0, |log| 1 << log);
    rounded.clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_a_gpu_they_are_shorter_for_larger_models() {
        for (n_active, n_tokens) in
            [(0.6e9, 2048), (3.3e9, 1024), (8.2e9, 512), (70e9, 256), (0.0, 2048)]
        {
            assert_eq!(on_gpu(n_active), n_tokens, "{n_active}");
        }
    }
}
