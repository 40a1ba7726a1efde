"""The stranger's check: fresh random models, never seen before, Offshoot against transformers.

    python goldens/parity.py --offshoot target/release/offshoot [--n 20] [--seed S]
        [--families llama,qwen3] [--quantized] [--mlx-lm] [--dtypes float32]

Each model is drawn from the seed (draws.py): sizes, layer kinds, rope kind, windows, biases,
experts, config spelling, how the file holds the tensors, sharding, dtype; with --quantized every
model is an MLX folder written by mlx-lm, most of them quantised (their dtype is that of norms,
scales and whatever is left unquantised).
`offshoot logits FOLDER --tokens … [--chunk N] --out F.npy` runs whole and in chunks of 1, 3, 7.

The reference is always transformers in f32, eager, on the folder's exact weights (dequantised
without rounding). Tokens at which a router of the reference would choose closely are left out, so
that rounding does not change a choice of experts (MARGINS). With --mlx-lm one more row compares
with mlx-lm's own logits in the folder's dtype, if mlx-lm in f32 agrees with transformers; else it
says by how much the two references differ, and why. Bounds, on max |a - b| / max |b| and on the
mean KL divergence per position: f32 folders 1e-3 and 1e-4; bf16 and f16 folders 4 times the error,
and 16 times the KL, that transformers itself makes when it runs the same weights in that dtype
(never below FLOORS); twice and four times that for MLX folders, because MLX's quantised CPU kernels
also sum in that dtype.
Exits 1 if anything misses, 2 on wrong arguments.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

import mlx.core as mx
import numpy as np
import torch
import transformers

import draws
import make
import mlx_folder
from cases import FAMILIES

CHUNKS = [None, 1, 3, 7]
BOUNDS_F32 = (1e-3, 1e-4)
# The least distance of a choice of experts, as a share of the scores' spread.
MARGINS = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}
# MLX's quantised CPU kernels sum in the folder's dtype: 1 % off in f16 already.
MLX_MARGINS = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
FLOORS = {"bfloat16": (2e-2, 1e-3), "float16": (3e-3, 1e-4)}


def divergence(got, expected):
    """Mean over positions of KL(expected || got), nats."""
    def log_softmax(x):
        x = x.astype(np.float64) - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log_softmax(expected), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def in_dtype(model, dtype):
    """The model itself, in 16 bits but for what published files keep in f32."""
    wide = {name: buffer.clone() for name, buffer in model.named_buffers()
            if name.endswith("e_score_correction_bias")}
    model.to(dtype)
    for name, buffer in wide.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)
    return model


def bounds(model, dtype, tokens, expected, is_mlx):
    """(relative error, KL) allowed for a folder of this dtype."""
    if dtype == "float32":
        return BOUNDS_F32
    own = make.logits(in_dtype(model, getattr(torch, dtype)), tokens)
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


def against_mlx_lm(folder, tokens, expected, got):
    """Offshoot's whole run against mlx-lm's own, in words."""
    try:
        wide = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=True)
        own = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=False)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
        return f"cannot run the folder: {type(error).__name__} {str(error).splitlines()[0][:60]}"
    apart = make.relative(wide, expected)
    if not apart < 1e-4:
        config = json.loads((folder / "config.json").read_text())
        reasons = "; ".join(mlx_folder.deviations(config)) or "for no known reason"
        return f"{apart:.1e} from transformers in f32, not compared: {reasons}"
    own_error = make.relative(own, expected)
    if isinstance(got, str):
        return f"error {own_error:.1e} from transformers; Offshoot has none"
    return f"{make.relative(got, own):9.1e} {divergence(got, own):9.1e}   own error {own_error:.1e}"


def draw_model(arguments, idx, attempt, scratch):
    """(model, its folder, label, dtype, tokens) number `idx`; fails if its routers choose closely
    at nearly every token."""
    rng = random.Random(f"{arguments.seed}/{idx}" + f"/{attempt}" * (attempt > 0))
    torch.manual_seed(rng.randrange(2**31))
    family = rng.choice(arguments.families)
    n_tokens = rng.randrange(20, 50)
    kwargs = draws.draw_config(rng, family, n_tokens, arguments.quantized)
    dtype = rng.choice(arguments.dtypes)
    folder = scratch / f"model{idx}"
    shutil.rmtree(folder, ignore_errors=True)
    layout = draws.write_hf(rng, family, kwargs, folder, dtype, arguments.quantized)
    if arguments.quantized:
        source, folder = folder, scratch / f"mlx{idx}"
        shutil.rmtree(folder, ignore_errors=True)
        layout = draws.write_mlx(rng, source, folder, dtype)
    model = mlx_folder.reference(family, folder)
    margin = (MLX_MARGINS if arguments.quantized else MARGINS)[dtype]
    tokens = make.tokens_apart(model, rng.randrange(2**63), n_tokens, kwargs["vocab_size"], margin)
    rope = kwargs["rope_parameters"].get("full_attention", kwargs["rope_parameters"])
    label = f"{idx:3} {family:13} {layout:26} {dtype:9} {rope['rope_type']:9} {n_tokens:3}"
    return model, folder, label, dtype, tokens


def check_model(arguments, idx, scratch):
    """Draws model number `idx`, prints its rows, returns the number of misses."""
    for attempt in itertools.count():
        with contextlib.suppress(make.CloseChoices):
            drawn = draw_model(arguments, idx, attempt, scratch)
            break
    model, folder, label, dtype, tokens = drawn
    expected = make.logits(model, tokens)
    np.save(scratch / f"{idx}-expected.npy", expected)
    (scratch / f"{idx}-tokens.txt").write_text(",".join(map(str, tokens)))
    allowed = bounds(model, dtype, tokens, expected, arguments.quantized)
    n_misses = 0
    for chunk in CHUNKS:
        got = ask(arguments.offshoot, folder, tokens, chunk, scratch / f"{idx}-{chunk}.npy")
        text, passes = compare(got, expected, allowed)
        n_misses += not passes
        print(f"{label} {chunk or 'whole':>6} {text} {'ok' if passes else 'MISS'}", flush=True)
        if chunk is None and arguments.mlx_lm:
            print(f"{label} mlx-lm {against_mlx_lm(folder, tokens, expected, got)}", flush=True)
    return n_misses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offshoot", required=True, help="the executable to check")
    parser.add_argument("--n", type=int, default=20, help="number of models (default 20)")
    parser.add_argument("--seed", type=int, help="draw these models again (default: a fresh seed)")
    parser.add_argument("--families", default=",".join(FAMILIES),
                        type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--quantized", action="store_true", help="MLX folders made by mlx-lm")
    parser.add_argument("--mlx-lm", action="store_true", help="compare with mlx-lm as well")
    parser.add_argument("--dtypes", default="float32,float32,float32,bfloat16,float16",
                        type=lambda text: text.split(","), help="dtypes to draw from")
    parser.add_argument("--keep", type=pathlib.Path, help="write the models here and leave them")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(FAMILIES):
        parser.error(f"unknown families {sorted(unknown)}; known: {', '.join(FAMILIES)}")
    if unknown := set(arguments.dtypes) - set(MARGINS):
        parser.error(f"unknown dtypes {sorted(unknown)}; known: {', '.join(MARGINS)}")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(10**6)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    mx.set_default_device(mx.cpu)
    print(f"seed {arguments.seed}; transformers {transformers.__version__}")
    print(f"{'  # family        layout                     dtype     rope        T  chunk':76}"
          "     error        KL   allowed      KL")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = arguments.keep or pathlib.Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        n_misses = sum(check_model(arguments, idx, scratch) for idx in range(arguments.n))
    print(f"{arguments.n} models, {arguments.n * len(CHUNKS)} runs, {n_misses} misses")
    sys.exit(1 if n_misses else 0)


if __name__ == "__main__":
    main()
