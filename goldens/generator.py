"""Weights from a counter: every golden checkpoint is a function of (tensor name, shape, seed).

The definition, with test values, is in README.md; the Rust side writes it again. All values are
f32 and equal bit for bit on both sides, so no weights are stored.
"""

import numpy as np

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15


def fnv1a64(text: str) -> int:
    """FNV-1a, 64 bits, over the UTF-8 bytes."""
    h = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def units(stream: int, n: int) -> np.ndarray:
    """`n` numbers u in [-1, 1), multiples of 2^-23, f32 [n]: splitmix64 of the stream's counter."""
    with np.errstate(over="ignore"):
        z = np.uint64(stream) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).astype(np.float32)


def matrix_exponent(n_in: int) -> int:
    """The smallest integer k with n_in * 4^k >= 3: keeps the scale of activations (gain 1 to 2)."""
    if n_in < 3:
        raise ValueError(f"a matrix needs an input width of at least 3, not {n_in}")
    k = 0
    while n_in >= 3 * 4 ** (1 - k):
        k -= 1
    return k


def tensor(name: str, shape: tuple[int, ...], seed: int, norm_centre: int = 1,
           scales: dict[str, int] | None = None) -> np.ndarray:
    """The tensor `name` of the checkpoint with this seed, f32, row-major.

    `norm_centre`: what norm weights lie around, 0 in families that add 1 to them. `scales`:
    {end of a name: e}; such tensors are multiplied by 2^e at the end.
    """
    u = units(fnv1a64(name) ^ seed, int(np.prod(shape)))
    if len(shape) == 1 and name.endswith("norm.weight"):
        # The gated norm has a plain weight in every family.
        centre = 1 if name.endswith("linear_attn.norm.weight") else norm_centre
        values = np.float32(centre) + np.float32(0.25) * u
    elif name.endswith("A_log"):
        values = np.float32(2.0) * u - np.float32(2.0)
    elif name.endswith("sinks"):
        values = np.float32(2.0) * u
    elif name.endswith(("embed_tokens.weight", "dt_bias")):
        values = u
    elif len(shape) == 1 or name.endswith("bias"):
        values = np.float32(0.25) * u
    else:
        values = u * np.float32(2.0 ** matrix_exponent(shape[-1]))
    for end, exponent in (scales or {}).items():
        if name.endswith(end):
            values = values * np.float32(2.0**exponent)
    assert values.dtype == np.float32
    return values.reshape(shape)


def tokens(seed: int, n: int, vocab: int, name: str = "tokens") -> list[int]:
    """`n` token ids, the same way: floor((u + 1) / 2 * vocab)."""
    u = units(fnv1a64(name) ^ seed, n).astype(np.float64)
    return [int(x) for x in np.floor((u + 1.0) / 2.0 * vocab)]
