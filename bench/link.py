"""The speed of the link between host and GPU, as PyTorch's copies of pinned memory reach it.

    python3 bench/link.py

Prints GB/s each way, the best of five copies of 1 GiB: what restores of `cache_speed` are held
against, on the same machine.
"""

import time

import torch

N_BYTES = 1 << 30


def best_gb_s(to: torch.Tensor, source: torch.Tensor) -> float:
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        to.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, N_BYTES / (time.perf_counter() - begun) / 1e9)
    return best


host = torch.empty(N_BYTES, dtype=torch.uint8, pin_memory=True)
device = torch.empty(N_BYTES, dtype=torch.uint8, device="cuda")
print(f"to the device {best_gb_s(device, host):.1f} GB/s")
print(f"to the host   {best_gb_s(host, device):.1f} GB/s")
