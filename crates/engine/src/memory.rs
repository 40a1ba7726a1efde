//! How much memory a request may still ask for. MLX's CPU allocator cannot refuse, so requests are
//! measured before.

use mlx::{Backend, Device};

use crate::Result;

/// Bytes that can be allocated now; none where nobody can tell.
pub(crate) fn available_bytes(device: &Device) -> Result<Option<u64>> {
    let cached = mlx::memory::cache_bytes()? as u64;
    if device.backend() == Backend::Cpu {
        return Ok(system_available_bytes().map(|free| free + cached));
    }
    let total = device.facts()?.get("memory_size").and_then(|bytes| bytes.parse::<u64>().ok());
    let active = mlx::memory::active_bytes()? as u64;
    // A device keeps some for its driver and for the kernels themselves.
    Ok(total.map(|total| (total / 20 * 19).saturating_sub(active)))
}

/// Linux's own estimate of what programs can get without swapping.
fn system_available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib * 1024)
}
