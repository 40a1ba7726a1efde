"""The stranger's check: fresh random models, never seen before, Offshoot against transformers.

    python goldens/parity.py --offshoot target/release/offshoot [--n 20] [--seed S]
        [--families llama,qwen3] [--quantized]

Each model is drawn from the seed: sizes, rope kind, windows, biases, config spelling, sharding,
dtype; with --quantized every model is an MLX folder written by mlx-lm, most of them quantised
(their dtype is that of norms, scales and whatever is left unquantised).
`offshoot logits FOLDER --tokens … [--chunk N] --out F.npy` runs whole and in chunks of 1, 3, 7.

The reference is always transformers in f32, eager, on the folder's exact weights (dequantised
without rounding). Bounds, on max |a - b| / max |b| and on the mean KL divergence per position:
f32 folders 1e-3 and 1e-4; bf16 and f16 folders 4 times the error, and 16 times the KL, that
transformers itself makes when it runs the same weights in that dtype (never below FLOORS); twice
and four times that for MLX folders, because MLX's quantised CPU kernels also sum in that dtype.
Exits 1 if anything misses, 2 on wrong arguments.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy as np
import torch
import transformers

import make
import mlx_folder
from cases import FAMILIES

CHUNKS = [None, 1, 3, 7]
BOUNDS_F32 = (1e-3, 1e-4)
FLOORS = {"bfloat16": (2e-2, 1e-3), "float16": (3e-3, 1e-4)}


def draw_rope(rng, head_dim, n_tokens, kinds):
    """rope_parameters and max_position_embeddings; every length-dependent kind is drawn so that
    the sequence and the maximum length choose the same branch."""
    kind = rng.choice(kinds)
    base = rng.choice([100.0, 500.0, 10000.0, 1e6])
    rope, maximum = dict(rope_type=kind, rope_theta=base), rng.choice([256, 512, 2048])
    if kind in ("linear", "dynamic"):
        rope["factor"] = rng.choice([1.5, 2.0, 4.0, 8.0])
    if kind == "llama3":
        low = rng.choice([1.0, 2.0])
        rope |= dict(factor=rng.choice([4.0, 8.0, 32.0]), low_freq_factor=low,
                     high_freq_factor=low * rng.choice([2.0, 4.0]),
                     original_max_position_embeddings=rng.choice([32, 64, 128]))
    if kind == "yarn":
        rope |= dict(factor=rng.choice([2.0, 4.0, 16.0]),
                     original_max_position_embeddings=rng.choice([64, 512, 4096]))
        optional = dict(beta_fast=rng.choice([8.0, 24.0]), beta_slow=rng.choice([0.5, 2.0]),
                        truncate=rng.random() < 0.5, attention_factor=rng.choice([0.9, 1.3]),
                        mscale=rng.choice([0.7, 2.0]), mscale_all_dim=rng.choice([0.5, 1.0]))
        rope |= {k: v for k, v in optional.items() if rng.random() < 0.35}
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            rope[name] = [round(rng.uniform(1, 9), 3) for _ in range(head_dim // 2)]
        original = rng.choice([n_tokens // 2, 64])
        maximum = original * 8 if original < n_tokens else original
        rope |= dict(original_max_position_embeddings=original)
        if maximum == original or rng.random() < 0.5:
            rope["factor"] = rng.choice([4.0, 8.0])
    return dict(rope_parameters=rope, max_position_embeddings=maximum)


def draw_sizes(rng, unit):
    """Sizes whose tensor dimensions are pairwise different; widths are multiples of `unit`."""
    while True:
        kv, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 4])
        head_dim = 2 * rng.randrange(4, 21) if unit == 1 else rng.choice([16, 32, 48])
        heads = kv * group
        hidden = rng.randrange(30, 160) // unit * unit // heads * heads
        intermediate = rng.randrange(64, 200) // unit * unit
        sizes = dict(vocab_size=rng.randrange(50, 120), hidden_size=hidden, head_dim=head_dim,
                     intermediate_size=intermediate,
                     num_attention_heads=heads, num_key_value_heads=kv)
        widths = [sizes["vocab_size"], hidden, heads * head_dim, intermediate]
        widths += [kv * head_dim] if group > 1 else []
        aligned = hidden % unit == 0 and heads * head_dim % unit == 0
        if len(set(widths)) == len(widths) and hidden >= 24 and aligned:
            return sizes | dict(num_hidden_layers=rng.randrange(2, 5),
                                rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-2]))


def qwen2_sizes(rng, sizes, mlx):
    """qwen2 has no head_dim of its own: hidden / heads, which must be even."""
    if mlx:
        heads = rng.choice([4, 8])
        sizes |= dict(num_attention_heads=heads, num_key_value_heads=heads // 4)
    heads = sizes["num_attention_heads"]
    if sizes["hidden_size"] // heads % 2:
        sizes["hidden_size"] += heads
    return sizes | dict(head_dim=sizes["hidden_size"] // heads)


def draw_config(rng, family, n_tokens, mlx):
    """Keyword arguments of the family's config class."""
    config = draw_sizes(rng, 32 if mlx else 1)
    if family == "qwen2":
        config = qwen2_sizes(rng, config, mlx)
    # mlx-lm reads only these kinds well enough to load the folder it is to convert.
    kinds = ["default", "linear", "llama3", "yarn"]
    config |= draw_rope(rng, config["head_dim"], n_tokens,
                        kinds if mlx else kinds + ["dynamic", "longrope"])
    config |= dict(tie_word_embeddings=rng.random() < 0.4, initializer_range=0.1)
    window = rng.randrange(2, n_tokens)
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, window])
    if family in ("qwen2", "qwen3") and rng.random() < 0.6:
        config |= dict(use_sliding_window=True, sliding_window=window,
                       max_window_layers=rng.randrange(config["num_hidden_layers"]))
    if family == "llama" or family == "qwen3" and not mlx:  # mlx-lm's qwen3 knows no biases
        config["attention_bias"] = rng.random() < 0.4
    if family == "llama":
        config["mlp_bias"] = rng.random() < 0.4
    if family == "qwen2":
        config.pop("head_dim")
    return config


@torch.no_grad()
def write_hf(rng, family, kwargs, folder, dtype):
    """Saves a fresh random model, sharded or not, in either spelling; returns a description."""
    config_class, model_class = make.classes(family)
    model = model_class(config_class(**kwargs))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms start at one and biases at zero: neither would be noticed
            parameter += 0.2 * torch.randn_like(parameter)
    shard = rng.choice(["40KB", "120KB", "5GB"])
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    spelling = rng.choice(["v5", "v4", "v4-type"])
    if spelling != "v5":
        path = folder / "config.json"
        kind_key = "type" if spelling == "v4-type" else "rope_type"
        path.write_text(json.dumps(make.to_v4(json.loads(path.read_text()), kind_key)))
    shards = len(list(folder.glob("*.safetensors")))
    return f"hf {spelling} {shards} file{'s' * (shards > 1)}"


def write_mlx(rng, source, folder, dtype):
    """Converts with mlx-lm, quantised more often than not; returns a description."""
    choices = [None] + [dict(group_size=g, bits=b, mode="affine")
                        for b in (2, 3, 4, 5, 6, 8) for g in (32, 64)]
    choices += [dict(group_size=g, bits=b, mode=m) for m, (g, b) in mlx_folder.MODES.items()] * 3
    chosen = rng.choice(choices)
    overrides = {}
    if chosen and rng.random() < 0.5:
        overrides = {"lm_head": dict(bits=8, group_size=32),
                     "model.embed_tokens": dict(bits=8, group_size=32),
                     "model.layers.0.self_attn.v_proj": False}
    mlx_folder.convert(source, folder, dtype, chosen, overrides)
    if not chosen:
        return "mlx"
    return f"mlx {chosen['mode']} {chosen['bits']}/{chosen['group_size']}" + "+" * bool(overrides)


def divergence(got, expected):
    """Mean over positions of KL(expected || got), nats."""
    def log_softmax(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def bounds(model, dtype, tokens, expected, is_mlx):
    """(relative error, KL) allowed for a folder of this dtype."""
    if dtype == "float32":
        return BOUNDS_F32
    own = make.logits(model.to(getattr(torch, dtype)), tokens)
    floors = FLOORS[dtype]
    factor = 2 if is_mlx else 1
    return (max(factor * 4 * make.relative(own, expected), floors[0]),
            max(factor**2 * 16 * divergence(own, expected), floors[1]))


def ask(offshoot, folder, tokens, chunk, out):
    """Offshoot's logits, or a sentence that says what went wrong."""
    command = [offshoot, "logits", str(folder), "--tokens", ",".join(map(str, tokens)),
               "--out", str(out)] + ([] if chunk is None else ["--chunk", str(chunk)])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"exit status {done.returncode}: {tail}"
    if not out.exists():
        return "no output file"
    return np.load(out)


def compare(got, expected, allowed):
    """(text of the result, whether it passes)"""
    if isinstance(got, str):
        return got, False
    if got.shape != expected.shape or got.dtype != np.float32:
        return f"{got.dtype} {got.shape} instead of float32 {expected.shape}", False
    if not np.isfinite(got).all():
        return "not finite", False
    error, kl = make.relative(got, expected), divergence(got, expected)
    passes = error <= allowed[0] and kl <= allowed[1]
    return f"{error:9.1e} {kl:9.1e}   {allowed[0]:7.1e} {allowed[1]:7.1e}", passes


def check_model(arguments, idx, scratch):
    """Draws model number `idx`, prints its rows, returns the number of misses."""
    rng = random.Random(f"{arguments.seed}/{idx}")
    torch.manual_seed(rng.randrange(2**31))
    family = rng.choice(arguments.families)
    n_tokens = rng.randrange(20, 50)
    kwargs = draw_config(rng, family, n_tokens, arguments.quantized)
    dtype = rng.choice(["float32"] * 3 + ["bfloat16", "float16"])
    folder = scratch / f"model{idx}"
    layout = write_hf(rng, family, kwargs, folder, dtype)
    if arguments.quantized:
        source, folder = folder, scratch / f"mlx{idx}"
        layout = write_mlx(rng, source, folder, dtype)
    tokens = [rng.randrange(kwargs["vocab_size"]) for _ in range(n_tokens)]
    model = mlx_folder.reference(family, folder)
    expected = make.logits(model, tokens)
    allowed = bounds(model, dtype, tokens, expected, arguments.quantized)
    kind = kwargs["rope_parameters"]["rope_type"]
    label = f"{idx:3} {family:8} {layout:20} {dtype:9} {kind:9} {n_tokens:3}"
    n_misses = 0
    for chunk in CHUNKS:
        got = ask(arguments.offshoot, folder, tokens, chunk, scratch / f"{idx}-{chunk}.npy")
        text, passes = compare(got, expected, allowed)
        n_misses += not passes
        print(f"{label} {chunk or 'whole':>6} {text} {'ok' if passes else 'MISS'}", flush=True)
    return n_misses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offshoot", required=True, help="the executable to check")
    parser.add_argument("--n", type=int, default=20, help="number of models (default 20)")
    parser.add_argument("--seed", type=int, help="draw these models again (default: a fresh seed)")
    parser.add_argument("--families", default=",".join(FAMILIES),
                        type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--quantized", action="store_true", help="MLX folders made by mlx-lm")
    parser.add_argument("--keep", type=pathlib.Path, help="write the models here and leave them")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(FAMILIES):
        parser.error(f"unknown families {sorted(unknown)}; known: {', '.join(FAMILIES)}")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    mx.set_default_device(mx.cpu)
    print(f"seed {arguments.seed}; transformers {transformers.__version__}")
    print(f"{'  # family   layout               dtype     rope        T  chunk':64}"
          "     error        KL   allowed      KL")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.keep or pathlib.Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        n_misses = sum(check_model(arguments, idx, scratch) for idx in range(arguments.n))
    print(f"{arguments.n} models, {arguments.n * len(CHUNKS)} runs, {n_misses} misses")
    sys.exit(1 if n_misses else 0)


if __name__ == "__main__":
    main()
