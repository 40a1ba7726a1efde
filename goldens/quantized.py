"""Writes the quantised goldens: MLX-converted folders as mlx-lm writes them, the logits of their
exact dequantised weights, and raw test vectors of every packing.

    python goldens/quantized.py

README.md describes the files.
"""

import copy
import json
import pathlib
import shutil
import tempfile
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import torch
import transformers
from safetensors.torch import save_file

import generator
import make
import mlx_folder

ROOT = pathlib.Path(__file__).parent / "quantized"
N_TOKENS = 29

# Pairwise different: vocab 72, hidden 64, heads*head_dim 128, kv 32, intermediate 192.
BASE = dict(num_hidden_layers=2, vocab_size=72, hidden_size=64, intermediate_size=192,
            num_attention_heads=8, num_key_value_heads=2, head_dim=16,
            max_position_embeddings=512, rms_norm_eps=1e-5,
            rope_parameters=dict(rope_type="default", rope_theta=1000.0))
# 96 and 160 divide by 32 only: with group 64 mlx-lm leaves o_proj and down_proj alone.
ODD = dict(num_attention_heads=4, num_key_value_heads=1, head_dim=24, intermediate_size=160)
WIDE = dict(hidden_size=128, intermediate_size=256, num_attention_heads=6, num_key_value_heads=2,
            head_dim=32, num_hidden_layers=1)


@dataclass
class Case:
    """One folder. `written`: entries put into config.json's `quantization` by hand."""

    family: str
    name: str
    why: str
    dtype: str
    mode: str
    bits: int
    group: int
    config: dict = field(default_factory=dict)
    overrides: dict = field(default_factory=dict)
    written: dict = field(default_factory=dict)
    spelling: str = "v4"


CASES = [
    Case("llama", "affine4_64_f16", "the common 4-bit form, f16 scales", "float16",
         "affine", 4, 64),
    Case("qwen3", "affine8_32_tied", "tied: the quantised embedding is the head", "bfloat16",
         "affine", 8, 32, ODD | dict(tie_word_embeddings=True), spelling="v5"),
    Case("qwen3", "affine3_64", "3-bit elements cross byte and word borders", "bfloat16",
         "affine", 3, 64, spelling="v5"),
    Case("llama", "affine2_32_biases", "layer biases (`bias`) beside offsets (`biases`)",
         "bfloat16", "affine", 2, 32, ODD | dict(attention_bias=True, mlp_bias=True)),
    Case("qwen3", "affine5_128", "group 128; o_proj (width 192) stays unquantised", "bfloat16",
         "affine", 5, 128, WIDE),
    Case("llama", "affine6_32_tied", "nested rope_parameters in an MLX folder; tied", "bfloat16",
         "affine", 6, 32, ODD | dict(tie_word_embeddings=True), spelling="v5"),
    Case("llama", "affine4_64_overrides",
         "per-path bits and groups; v_proj of layer 0 left alone and written as false; "
         "o_proj and down_proj skipped because 96 and 160 do not divide by 64",
         "bfloat16", "affine", 4, 64, ODD,
         overrides={"lm_head": dict(bits=8, group_size=64),
                    "model.embed_tokens": dict(bits=8, group_size=32),
                    "model.layers.1.mlp.gate_proj": dict(bits=6, group_size=32),
                    "model.layers.0.self_attn.v_proj": False},
         written={"model.layers.0.self_attn.v_proj": False}),
    Case("qwen3", "mxfp4_overrides", "overrides without a mode below mxfp4 are affine",
         "bfloat16", "mxfp4", 4, 32, ODD,
         overrides={"lm_head": dict(bits=8, group_size=64),
                    "model.embed_tokens": dict(bits=8, group_size=64),
                    "model.layers.0.mlp.down_proj": dict(bits=4, group_size=32),
                    "model.layers.1.self_attn.q_proj": dict(bits=8, group_size=32,
                                                            mode="mxfp8")}, spelling="v5"),
    Case("llama", "mxfp4_tied_f16", "mxfp4 throughout, f16 norms", "float16", "mxfp4", 4, 32,
         ODD | dict(tie_word_embeddings=True)),
    Case("llama", "mxfp8", "mxfp8 throughout", "bfloat16", "mxfp8", 8, 32,
         ODD | dict(attention_bias=True)),
    Case("qwen3", "nvfp4", "nvfp4 throughout, group 16", "bfloat16", "nvfp4", 4, 16, ODD),
]


def write_source(case, folder, seed):
    """A float HF folder with generated weights for mlx-lm to convert; returns its config."""
    config_class, model_class = make.classes(case.family)
    model = model_class(config_class(**copy.deepcopy(BASE | case.config)))
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if case.spelling == "v4":
        config = make.to_v4(config, "rope_type")
    (folder / "config.json").write_text(json.dumps(config))
    names = [n for n in model.state_dict()
             if not (n == "lm_head.weight" and config["tie_word_embeddings"])]
    shapes = {n: tuple(model.state_dict()[n].shape) for n in names}
    weights = {n: torch.from_numpy(generator.tensor(n, s, seed)) for n, s in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return config


def write_case(case):
    """Writes one folder; returns its facts."""
    folder = ROOT / f"{case.family}_{case.name}"
    shutil.rmtree(folder, ignore_errors=True)
    seed = generator.fnv1a64(f"quantized/{case.family}_{case.name}")
    with tempfile.TemporaryDirectory() as source:
        write_source(case, pathlib.Path(source), seed)
        mlx_folder.convert(
            source, folder, case.dtype,
            dict(group_size=case.group, bits=case.bits, mode=case.mode), case.overrides)
    if case.written:
        config = json.loads((folder / "config.json").read_text())
        for key in ("quantization", "quantization_config"):
            config[key] |= case.written
        (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))

    tokens = generator.tokens(seed, N_TOKENS, (BASE | case.config)["vocab_size"])
    expected = make.logits(mlx_folder.reference(case.family, folder), tokens)
    widened = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=True)
    native = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=False)
    expected.astype("<f4").tofile(folder / "expected.f32")
    facts = dict(why=case.why, dtype=case.dtype, tokens=tokens, rope_length=len(tokens),
                 shape=list(expected.shape), logits_std=round(float(expected.std()), 3),
                 mlx_lm_f32_difference=make.relative(widened, expected),
                 mlx_lm_native_difference=make.relative(native, expected))
    if facts["mlx_lm_f32_difference"] < 1e-4:
        native.astype("<f4").tofile(folder / "mlx_lm.f32")
    (folder / "case.json").write_text(make.one_per_line(facts))
    return facts


def vector_input():
    """f32 [3, 256]: an even spread; outliers, zeros and one-sided groups; tiny and huge scales."""
    w = np.stack([generator.tensor(f"vector.{i}.embed_tokens.weight", (1, 256), 0)[0]
                  for i in range(3)])
    w[1, 0:128] = 0.0
    w[1, 128:160] = np.abs(w[1, 128:160]) + np.float32(0.5)
    w[1, 160:192] = -np.abs(w[1, 160:192])
    w[1, 200] = 40.0
    w[2] *= np.float32(2.0) ** np.repeat(np.arange(-12, 4, dtype=np.float32), 16)
    return w


def write_vectors():
    """quantized/vectors.safetensors: `input` and, for each packing, what MLX makes of it."""
    w = vector_input()
    arrays = {"input": mx.array(w)}
    packings = [("affine", bits, group, kind) for bits in (2, 3, 4, 5, 6, 8)
                for group in (32, 64, 128) for kind in ("float32",)]
    packings += [("affine", 4, 64, "bfloat16"), ("affine", 3, 32, "float16")]
    packings += [(m, bits, group, "float32") for m, (group, bits) in mlx_folder.MODES.items()]
    for mode, bits, group, kind in packings:
        source = mx.array(w).astype(getattr(mx, kind))
        parts = mx.quantize(source, group_size=group, bits=bits, mode=mode)
        name = f"{mode}_{bits}_{group}" + ("" if kind == "float32" else f"_{kind}")
        arrays |= dict(zip([f"{name}.weight", f"{name}.scales", f"{name}.biases"], parts))
        if mode == "affine":
            wide = [parts[0]] + [p.astype(mx.float32) for p in parts[1:]]
            value = mx.dequantize(*wide, group_size=group, bits=bits)
        else:
            value = mx.dequantize(*parts, group_size=group, bits=bits, mode=mode,
                                  dtype=mx.float32)
        arrays[f"{name}.dequantized"] = value
    mx.save_safetensors(str(ROOT / "vectors.safetensors"), arrays,
                        metadata={"format": "mlx", "mlx": mx.__version__})
    return len(packings)


def main():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    mx.set_default_device(mx.cpu)
    ROOT.mkdir(exist_ok=True)
    for case in CASES:
        facts = write_case(case)
        size = sum(f.stat().st_size for f in (ROOT / f"{case.family}_{case.name}").iterdir())
        print(f"{case.family}_{case.name}: std {facts['logits_std']}, mlx-lm differs by "
              f"{facts['mlx_lm_f32_difference']:.1e} in f32, "
              f"{facts['mlx_lm_native_difference']:.1e} in {case.dtype}; {size} bytes")
    print(f"vectors: {write_vectors()} packings")


if __name__ == "__main__":
    main()
