"""`offshoot quantize` against mlx-lm's own conversion, on fresh random models of every family.

    python goldens/quantize_parity.py --offshoot target/release/offshoot [--n 1] [--seed S]
        [--families llama,gpt_oss]

Each source is a Hub folder drawn from the seed, in bf16 and in f32, in a form that mlx-lm reads as
Offshoot does (README.md of this folder says where they differ). For every setting:
- every tensor of both outputs has the same name, dtype and bytes (what mlx-lm casts and Offshoot
  does not, the decays of qwen3_next, is compared after the cast);
- every coding that mlx-lm reads from the two config.json is the same;
- mlx-lm loads Offshoot's output, Offshoot loads mlx-lm's, and from f32 sources the logits of both
  programs on either agree within 1e-4 of the largest.
Exits 1 if anything differs.
"""

import argparse
import contextlib
import io
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
from mlx_lm import utils
from mlx_lm.convert import mixed_quant_predicate_builder

import draws
import make
import mlx_folder
from cases import FAMILIES

BOUND = 1e-4
N_TOKENS = 21
ROUTERS = ("mlp.gate", "mlp.router", "mlp.shared_expert_gate")
# Arguments of the command, and what they mean to mlx-lm.
SETTINGS = {
    "affine 4/64": (["--bits", "4"], dict(group_size=64, bits=4, mode="affine"), {}),
    "affine 3/32, embedding 8/32, o_proj kept": (
        ["--bits", "3", "--group-size", "32", "--at", "embed_tokens=8:32", "--keep", "o_proj"],
        dict(group_size=32, bits=3, mode="affine"),
        {"embed_tokens": dict(group_size=32, bits=8, mode="affine"), "o_proj": False}),
    "affine 8/32, f16": (["--bits", "8", "--group-size", "32", "--dtype", "f16"],
                         dict(group_size=32, bits=8, mode="affine"), {}),
    "affine 5/128": (["--bits", "5", "--group-size", "128"],
                     dict(group_size=128, bits=5, mode="affine"), {}),
    "mxfp4": (["--mode", "mxfp4"], dict(group_size=32, bits=4, mode="mxfp4"), {}),
    "mxfp8": (["--mode", "mxfp8"], dict(group_size=32, bits=8, mode="mxfp8"), {}),
    "nvfp4": (["--mode", "nvfp4"], dict(group_size=16, bits=4, mode="nvfp4"), {}),
    "mixed_2_6": (["--recipe", "mixed_2_6"], dict(group_size=64, bits=2, mode="affine"), "mixed"),
    "mixed_4_6": (["--recipe", "mixed_4_6"], dict(group_size=64, bits=4, mode="affine"), "mixed"),
    "floats": (["--mode", None], None, {}),
}


class ByPath:
    """What `mlx_folder.convert` asks for a path: the last parts of names decide, or mlx-lm's mixed
    recipe, from which routers are excepted."""

    def __init__(self, rules, recipe, source):
        self.rules, self.mixed = rules, None
        if rules == "mixed":
            model, _ = utils.load_model(source, lazy=True)
            self.mixed = mixed_quant_predicate_builder(recipe, model, 64)

    def get(self, path, default):
        if self.mixed:
            return default if path.endswith(ROUTERS) else self.mixed(path, None)
        for end, rule in self.rules.items():
            if path.endswith(end):
                return rule
        return default


class Spelling:
    """Chooses the spelling that mlx-lm reads for a family: the old one but for qwen3_5."""

    def __init__(self, family):
        self.chosen = "v5" if family.startswith("qwen3_5") else "v4"

    def choice(self, _):
        return self.chosen

    def random(self):
        return 1.0  # lists of kinds are written out


def agreeable(config, family):
    """Without what mlx-lm computes otherwise or refuses."""
    theta = dict(rope_type="default", rope_theta=1000.0)
    partial = config["rope_parameters"].get("partial_rotary_factor")
    if family == "gemma3_text":
        theta = dict(full_attention=theta, sliding_attention=dict(theta, rope_theta=100.0))
        config.pop("final_logit_softcapping", None)
    elif partial:
        theta["partial_rotary_factor"] = partial
    elif family == "gpt_oss":  # where none is stated it has a rope of its own
        theta |= dict(rope_type="linear", factor=2.0)
    config |= dict(rope_parameters=theta, max_position_embeddings=512)
    if family in ("mistral", "qwen2", "qwen3", "qwen3_moe"):
        config["sliding_window"] = None
        if family != "mistral":
            config["use_sliding_window"] = False
    if family == "gemma3_text":
        # mlx-lm finds no head of its own in the wrapper's Hub files, wants a whole pattern, and
        # rounds √hidden to bf16.
        kinds = ["sliding_attention", "full_attention"] * config["num_hidden_layers"]
        config |= dict(hidden_size=64, tie_word_embeddings=True, sliding_window_pattern=2,
                       layer_types=kinds[:config["num_hidden_layers"]])
    if family == "glm4_moe_lite":  # mlx-lm does not divide the weight of a single expert
        config |= dict(rms_norm_eps=1e-6, n_group=1, topk_group=1, num_experts_per_tok=2)
    if family in draws.HYBRID:
        config["attention_bias"] = False
    return config


def write_source(rng, family, folder, dtype):
    config = agreeable(draws.draw_config(rng, family, N_TOKENS, True), family)
    torch.manual_seed(rng.randrange(1 << 30))
    spell = draws.spell
    draws.spell = lambda _, *rest: spell(Spelling(family), *rest)
    try:
        draws.write_hf(rng, family, config, folder, dtype, True)
    finally:
        draws.spell = spell
    path = folder / "config.json"
    written = json.loads(path.read_text())
    if written["model_type"] == "gemma3":  # where mlx-lm looks for it
        path.write_text(json.dumps(written | dict(vocab_size=config["vocab_size"])))
    return config["vocab_size"]


def read(folder):
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(file))
    return tensors


def compare_tensors(ours, theirs, is_cast):
    """The first difference in words, or None. `is_cast`: from the source's dtype to another."""
    if set(ours) != set(theirs):
        return f"names: {sorted(set(ours) ^ set(theirs))[:4]}"
    for name, wanted in theirs.items():
        found = ours[name]
        if name.endswith(("A_log", "dt_bias")):
            found = found.astype(wanted.dtype)
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            return f"{name}: {found.dtype}{found.shape} instead of {wanted.dtype}{wanted.shape}"
        if np.array_equal(np.array(found.view(mx.uint8)), np.array(wanted.view(mx.uint8))):
            continue
        # Offshoot adds the 1 of a norm in f32; mlx-lm in the source's dtype, before any cast.
        if not (name.endswith("norm.weight") and is_cast
                and mx.allclose(found, wanted, rtol=2**-8, atol=0)):
            return f"{name}: other bytes"
    return None


def codings(folder, tensors):
    """{path: (group, bits, mode)} of every quantised path, as config.json states it."""
    config = json.loads((folder / "config.json").read_text())
    paths = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    if not paths:
        assert "quantization" not in config and "quantization_config" not in config
        return {}
    assert config["quantization"] == config["quantization_config"]
    return {path: mlx_folder.parameters_of(path, config) for path in paths}


def offshoot_logits(offshoot, folder, tokens):
    out = folder.parent / "logits.npy"
    subprocess.run([offshoot, "logits", folder, "--tokens", ",".join(map(str, tokens)),
                    "--out", out], check=True, capture_output=True)
    return np.load(out)


def difference(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


def check(offshoot, source, place, dtype, name, tokens):
    """What differs, in words, and the differences of logits."""
    arguments, quantization, rules = SETTINGS[name]
    short = dict(bfloat16="bf16", float32="f32")[dtype]
    arguments = [short if argument is None else argument for argument in arguments]
    kind = "float16" if "f16" in arguments else dtype
    ours, theirs = place / "ours", place / "theirs"
    made = subprocess.run([offshoot, "quantize", source, ours, *arguments, "--json"],
                          capture_output=True, text=True)
    with contextlib.redirect_stdout(io.StringIO()):
        overrides = ByPath(rules, name, source)
        mlx_folder.convert(source, theirs, kind, quantization, overrides)
    if made.returncode:
        coded = any(key.endswith(".scales") for key in read(theirs))
        refused = "nothing would be quantized" in made.stderr and not coded
        return (None if refused else made.stderr.strip()), []
    # Without its option for that, mlx-lm leaves codes of the source alone.
    if quantization is None and any(key.endswith(".scales") for key in read(theirs)):
        theirs = ours
    wrong = compare_tensors(read(ours), read(theirs), kind != dtype)
    if not wrong and codings(ours, read(ours)) != codings(theirs, read(theirs)):
        wrong = "codings in config.json"
    gaps = []
    for folder in (ours, theirs):
        reference = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=True)
        found = offshoot_logits(offshoot, folder, tokens)
        assert np.isfinite(reference).all()
        if kind == "float32":
            gaps.append(difference(found, reference))
    if max(gaps, default=0) > BOUND:
        wrong = wrong or f"logits differ by {max(gaps):.1e}"
    return wrong, gaps


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--offshoot", required=True)
    parser.add_argument("--n", type=int, default=1, help="models of each family and dtype")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--families", default=",".join(FAMILIES))
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    mx.set_default_device(mx.cpu)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    n_checked, n_wrong = 0, 0
    for family in args.families.split(","):
        gaps, n_families = [], n_checked
        for i in range(args.n):
            for dtype in ("bfloat16", "float32"):
                rng = random.Random(f"{seed} {family} {i}")
                with tempfile.TemporaryDirectory() as folder:
                    source = pathlib.Path(folder, "source")
                    vocab = write_source(rng, family, source, dtype)
                    tokens = [rng.randrange(vocab) for _ in range(N_TOKENS)]
                    for name in SETTINGS:
                        with tempfile.TemporaryDirectory() as place:
                            wrong, found = check(
                                args.offshoot, source, pathlib.Path(place), dtype, name, tokens)
                        n_checked, gaps = n_checked + 1, gaps + found
                        if wrong:
                            n_wrong += 1
                            print(f"{family} {i} {dtype}, {name}: {wrong}", flush=True)
        largest = f"{max(gaps):.1e}" if gaps else "-"
        print(f"{family}: {n_checked - n_families} outputs, logits differ by {largest} at most",
              flush=True)
    print(f"{n_checked} outputs, {n_wrong} wrong")
    sys.exit(1 if n_wrong else 0)


if __name__ == "__main__":
    main()
