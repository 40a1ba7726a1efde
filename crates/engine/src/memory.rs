//! How much memory a request may still ask for. MLX's CPU allocator cannot refuse, so requests are
//! measured before.

use std::collections::BTreeMap;

use kvcache::Budgets;
use mlx::{Backend, Device};
use protocol::CacheSettings;

use crate::Result;
use crate::cache::Folder;

/// Bytes that can be allocated now; none where nobody can tell.
pub(crate) fn available_bytes() -> Result<Option<u64>> {
    let cached = mlx::memory::cache_bytes()? as u64;
    if Device::current_backend() == Backend::Cpu {
        return Ok(system_available_bytes().map(|free| free + cached));
    }
    let facts = Device::current_facts()?;
    let bytes = |key: &str| facts.get(key).and_then(|bytes| bytes.parse::<u64>().ok());
    let active = mlx::memory::active_bytes()? as u64;
    // CUDA says what is free on the card, Metal how much a program should hold in all.
    let free = bytes("free_memory").map(|free| free + cached);
    let working_set = bytes("max_recommended_working_set_size");
    Ok(free.or(working_set.map(|total| total.saturating_sub(active))))
}

/// Bytes for the tiers of the cache after a model is loaded. What nobody set is a share of what is
/// free: the rest is for the passes themselves and for other programs.
pub(crate) fn budgets(
    device: &Device,
    settings: &CacheSettings,
    folder: Option<&Folder>,
) -> Result<Budgets> {
    let on_disk = folder.map_or(0, Folder::budget_bytes);
    let free = available_bytes()?.unwrap_or(MIN_CACHE_BYTES);
    let (device_share, host_share) = match device.backend() {
        Backend::Cpu => (0.5, 0.0),
        Backend::Metal => (0.6, 0.0),
        Backend::Cuda => (0.8, 0.25),
    };
    let share = |of: u64, share: f64| (of as f64 * share) as u64;
    let on_device = settings.device_bytes.unwrap_or(share(free, device_share));
    let of_host = system_available_bytes().unwrap_or(0);
    // Where device and host have one memory, a copy there would only take room from the device.
    let on_host = match device.backend() {
        Backend::Cuda => settings.host_bytes.unwrap_or(share(of_host, host_share)),
        Backend::Cpu | Backend::Metal => settings.host_bytes.unwrap_or(0),
    };
    Ok(Budgets([on_device, on_host, on_disk]))
}

/// Where nobody can tell what is free.
const MIN_CACHE_BYTES: u64 = 4 << 30;

/// All memory of the device, as CUDA or Metal names it; that of the machine where it is the CPU.
pub(crate) fn total_bytes(device: &Device, facts: &BTreeMap<String, String>) -> Option<u64> {
    if device.backend() == Backend::Cpu {
        return meminfo_bytes("MemTotal:");
    }
    ["total_memory", "memory_size"].iter().find_map(|key| facts.get(*key)?.parse().ok())
}

/// Linux's own estimate of what programs can get without swapping, within the limit of the control
/// group, as containers have one.
fn system_available_bytes() -> Option<u64> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let in_group = number("memory.max").zip(number("memory.current"));
    let in_group = in_group.map_or(u64::MAX, |(max, current)| max.saturating_sub(current));
    Some(meminfo_bytes("MemAvailable:")?.min(in_group))
}

/// One line of Linux's /proc/meminfo.
fn meminfo_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib * 1024)
}
