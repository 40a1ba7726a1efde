"""Writes the quantised goldens: MLX-converted folders as mlx-lm writes them, the logits of their
exact dequantised weights, and raw test vectors of every packing.

    python goldens/quantized.py [--only BEGINNING_OF_A_NAME]

README.md describes the files.
"""

import argparse
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
# No choice of experts may be so close that the rounding of a 16-bit run could change it.
ROUTER_MARGIN = 0.08
NATIVE_BOUND = 0.07

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
    """One folder. `written`: entries put into config.json's `quantization` by hand. `layout`: how
    the source holds its tensors, a name in layouts.py."""

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
    layout: str = "saved"


# Widths of 64, 128, 96, 160, 32: only the last is shared by several.
EXPERTS = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=96)
SHARED = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=32,
              shared_expert_intermediate_size=160)
HYBRID = dict(hidden_size=64, intermediate_size=160, num_attention_heads=4,
              num_key_value_heads=1, head_dim=32,
              linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16,
              linear_value_head_dim=24, layer_types=["linear_attention", "full_attention"],
              rope_parameters=dict(rope_type="default", rope_theta=1000.0,
                                   partial_rotary_factor=0.25))
# rms_norm_eps is 1e-6 because mlx-lm uses it in the latent norms as well.
GLM = dict(num_attention_heads=2, num_key_value_heads=2, q_lora_rank=128, kv_lora_rank=32,
           qk_nope_head_dim=64, qk_rope_head_dim=8, v_head_dim=96, n_routed_experts=5,
           num_experts_per_tok=2, moe_intermediate_size=32, rms_norm_eps=1e-6,
           intermediate_size=160)
GPT_OSS = dict(num_attention_heads=4, num_key_value_heads=1, head_dim=32, num_local_experts=5,
               num_experts_per_tok=2, intermediate_size=32, sliding_window=7, swiglu_limit=7.0)
YARN = dict(rope_parameters=dict(rope_type="yarn", rope_theta=100.0, factor=8.0, truncate=False,
                                 original_max_position_embeddings=512))
# So wide that truncation, which mlx-lm always does, changes nothing.
WIDE_YARN = dict(rope_parameters=YARN["rope_parameters"] | dict(beta_fast=1e4, beta_slow=1e-4))
GEMMA3 = dict(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=1, head_dim=24,
              sliding_window=7, sliding_window_pattern=2, query_pre_attn_scalar=10,
              layer_types=["sliding_attention", "full_attention", "sliding_attention"],
              rope_parameters=dict(
                  full_attention=dict(rope_type="linear", rope_theta=1000.0, factor=2.0),
                  sliding_attention=dict(rope_type="default", rope_theta=100.0)))


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
    Case("qwen3_moe", "affine4_32", "stacked experts; the router in 8 bits and groups of 64 below "
         "4 bits and groups of 32; a dense layer", "bfloat16", "affine", 4, 32,
         EXPERTS | dict(mlp_only_layers=[0], norm_topk_prob=True)),
    Case("qwen3_moe", "mxfp4_f16", "mxfp4 experts; the router's override names no mode: affine",
         "float16", "mxfp4", 4, 32,
         EXPERTS | dict(mlp_only_layers=[0], norm_topk_prob=False, tie_word_embeddings=True)),
    Case("qwen3_next", "affine4_32", "grouped projections quantised by rows; norms with their 1 "
         "added; the convolution turned; shared expert and its gate", "bfloat16", "affine", 4, 32,
         HYBRID | SHARED),
    Case("qwen3_5", "affine4_64_f16", "text model of a wrapper, below `language_model.model.`; "
         "dense; f16 scales; what 64 does not divide stays unquantised", "float16", "affine", 4,
         64, HYBRID, spelling="v5", layout="qwen3_5"),
    Case("qwen3_5_moe", "affine4_32", "as published, converted: fused experts split and stacked, "
         "below `language_model.model.`", "bfloat16", "affine", 4, 32,
         HYBRID | SHARED, spelling="v5",
         layout="qwen3_5_moe"),
    Case("glm4_moe_lite", "affine4_32", "kv_b_proj split into embed_q and unembed_out for each "
         "head and quantised; the router is not", "bfloat16", "affine", 4, 32, GLM),
    Case("glm4_moe_lite", "affine4_32_kv_b", "kv_b_proj in one, quantised, as older conversions "
         "have it; 4 bits in groups of 32 have the shapes of 2 bits in groups of 64", "bfloat16",
         "affine", 4, 32, GLM | dict(num_hidden_layers=1)),
    Case("gpt_oss", "mxfp4_hub", "as published: experts' blocks and scales with gate and up in "
         "even and odd rows, everything else bf16; yarn, not truncated", "bfloat16", "mxfp4", 4, 32,
         GPT_OSS | YARN, layout="gpt_oss_hub"),
    Case("gpt_oss", "mxfp4", "the same layout converted by mlx-lm: gate and up apart; the rest "
         "affine in 8 bits, the router too", "bfloat16", "affine", 8, 64,
         GPT_OSS | WIDE_YARN, layout="gpt_oss_hub"),
    Case("gemma3_text", "affine4_32", "norms without their 1, as in the source; tied",
         "bfloat16", "affine", 4, 32, GEMMA3),
]


# mlx-lm finds a layer's kind from a number; where the text of a config has only the list, it gets
# both.
def interval(config):
    text = config.get("text_config", config)
    if "linear_attention" in text.get("layer_types", ()):
        text["full_attention_interval"] = text["layer_types"].index("full_attention") + 1


def write_hub(case, folder, config, shapes, seed):
    """gpt_oss's published form: experts in mxfp4, the rest in bf16."""
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(("gate_up_proj", "down_proj")):  # stored [E, out, in], unlike in floats
            shape = [shape[0], shape[2], shape[1]]
        value = generator.tensor(name, tuple(shape), seed)
        if len(shape) == 3:
            tensors |= mlx_folder.hub_blocks(name, value)
        else:
            tensors[name] = torch.from_numpy(value).to(torch.bfloat16)
    config |= dict(torch_dtype="bfloat16", quantization_config=dict(
        quant_method="mxfp4", modules_to_not_convert=[
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head"]))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_source(case, folder, seed):
    """A HF folder with generated weights for mlx-lm to convert."""
    layout = "saved" if case.layout == "gpt_oss_hub" else case.layout
    config, shapes = make.published(make.Case(
        case.family, case.name, case.why, BASE | case.config, spelling=case.spelling,
        layout=layout))
    interval(config)
    if case.layout == "gpt_oss_hub":
        config["layer_types"] = ["sliding_attention", "full_attention"]
        return write_hub(case, folder, config, shapes, seed)
    weights = {n: generator.tensor(n, tuple(s), seed, make.FAMILIES[case.family].norm_centre)
               for n, s in shapes.items()}
    make.write_folder(folder, config, weights)


def convert(case, folder, seed):
    """Writes the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    if case.name.endswith("_hub"):
        return write_source(case, folder, seed)
    with tempfile.TemporaryDirectory() as source:
        write_source(case, pathlib.Path(source), seed)
        mlx_folder.convert(
            source, folder, case.dtype,
            dict(group_size=case.group, bits=case.bits, mode=case.mode), case.overrides)
    if case.name.endswith("_kv_b"):
        assert mlx_folder.join_kv_b(folder, dict(group_size=case.group, bits=case.bits))
    if case.written:
        config = json.loads((folder / "config.json").read_text())
        for key in ("quantization", "quantization_config"):
            config[key] |= case.written
        (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True))


def write_case(case):
    """Writes one folder; returns its facts. Of the seeds, the first at which mlx-lm's run in the
    folder's dtype stays near the reference (a choice of experts that rounding changed does not)."""
    folder = ROOT / f"{case.family}_{case.name}"
    for attempt in range(20):
        seed = generator.fnv1a64(f"quantized/{folder.name}" + f"#{attempt}" * (attempt > 0))
        convert(case, folder, seed)
        model = mlx_folder.reference(case.family, folder)
        vocab = (BASE | case.config)["vocab_size"]
        tokens = make.tokens_apart(model, seed, N_TOKENS, vocab, ROUTER_MARGIN)
        expected = make.logits(model, tokens)
        widened = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=True)
        native = mlx_folder.mlx_lm_logits(folder, tokens, in_f32=False)
        agrees = make.relative(widened, expected) < 1e-4
        if not agrees or make.relative(native, expected) < NATIVE_BOUND:
            break
    else:
        raise AssertionError(f"{folder.name}: mlx-lm is far from the reference at every seed")
    expected.astype("<f4").tofile(folder / "expected.f32")
    facts = dict(why=case.why, dtype=case.dtype, tokens=tokens, rope_length=len(tokens),
                 shape=list(expected.shape), logits_std=round(float(expected.std()), 3),
                 mlx_lm_f32_difference=make.relative(widened, expected),
                 mlx_lm_native_difference=make.relative(native, expected))
    if agrees:
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="the beginning of a folder's name")
    only = parser.parse_args().only
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    mx.set_default_device(mx.cpu)
    ROOT.mkdir(exist_ok=True)
    for case in [c for c in CASES if f"{c.family}_{c.name}".startswith(only)]:
        facts = write_case(case)
        size = sum(f.stat().st_size for f in (ROOT / f"{case.family}_{case.name}").iterdir())
        print(f"{case.family}_{case.name}: std {facts['logits_std']}, mlx-lm differs by "
              f"{facts['mlx_lm_f32_difference']:.1e} in f32, "
              f"{facts['mlx_lm_native_difference']:.1e} in {case.dtype}; {size} bytes")
    if not only:
        print(f"vectors: {write_vectors()} packings")


if __name__ == "__main__":
    main()
