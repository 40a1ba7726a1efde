"""MLX-converted folders, made and read with mlx-lm's own functions; used by quantized.py and
parity.py. mlx-lm's `convert` also wants a tokenizer, so its parts are called one by one, in its
order: load, cast, quantize, save weights, save config."""

import contextlib
import io
import json
import pathlib
import re
import tempfile

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_map_with_path
from mlx_lm import utils
from safetensors import safe_open

import make

MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def convert(source, target, dtype, quantization=None, overrides=None):
    """Writes `target` from the HF folder `source`, floats cast to `dtype` ("bfloat16", ...).

    `quantization`: {group_size, bits, mode} or None. `overrides`: {module path: dict or False},
    above what mlx-lm itself decides for the family.
    """
    model, config = utils.load_model(pathlib.Path(source), lazy=True)
    kind = getattr(mx, dtype)
    casts = getattr(model, "cast_predicate", lambda _: True)
    model.update(tree_map_with_path(
        lambda k, v: v.astype(kind) if casts(k) and mx.issubdtype(v.dtype, mx.floating) else v,
        model.parameters()))
    if quantization:
        own = getattr(model, "quant_predicate", None) or (lambda *_: True)
        with contextlib.redirect_stdout(io.StringIO()):
            model, config = utils.quantize_model(
                model, config, quantization["group_size"], quantization["bits"],
                mode=quantization["mode"], quant_predicate=lambda path, module: (
                    overrides or {}).get(path, own(path, module)))
    utils.save_model(target, model)
    utils.save_config(config, pathlib.Path(target) / "config.json")


def hub_blocks(name, weight):
    """A stacked float weight [E, out, in] as gpt_oss publishes it: `_blocks` u8
    [E, out, in/32, 16], two codes a byte, and `_scales` u8 [E, out, in/32]."""
    codes, scales = mx.quantize(mx.array(weight), group_size=32, bits=4, mode="mxfp4")
    blocks = np.array(codes).view(np.uint8).reshape(*scales.shape, 16)
    return {f"{name}_blocks": torch.from_numpy(blocks),
            f"{name}_scales": torch.from_numpy(np.array(scales))}


def parameters_of(path, config):
    """{group_size, bits, mode} of the quantised module `path`: its override (affine where it names
    no mode), else the top level."""
    top = config["quantization"]
    chosen = top.get(path, True)
    if isinstance(chosen, dict):
        return chosen["group_size"], chosen["bits"], chosen.get("mode", "affine")
    return top["group_size"], top["bits"], top.get("mode", "affine")


def dequantized(folder, config):
    """{HF name: f32 torch tensor} of an MLX folder, exact: scales and offsets are widened before
    they are used, so that nothing is rounded to the checkpoint's dtype."""
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("model*.safetensors")):
        tensors.update(mx.load(str(file)))
    result = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases") and f"{path}.scales" in tensors:
            continue
        if leaf == "weight" and f"{path}.scales" in tensors:
            group, bits, mode = parameters_of(path, config)
            scales, biases = tensors[f"{path}.scales"], tensors.get(f"{path}.biases")
            if mode == "affine":
                value = mx.dequantize(value, scales.astype(mx.float32), biases.astype(mx.float32),
                                      group_size=group, bits=bits)
            else:
                value = mx.dequantize(value, scales, group_size=group, bits=bits, mode=mode,
                                      dtype=mx.float32)
        result[name] = torch.from_numpy(np.array(value.astype(mx.float32)))
    return result


def to_hf(weights, config):
    """MLX's names and layouts turned back into those that transformers loads."""
    text = config.get("text_config", config)
    adds_one = text["model_type"].startswith(("qwen3_next", "qwen3_5"))
    result = {}
    for name, value in weights.items():
        if adds_one:  # its text class knows names without the wrapper's; gemma3 is loaded whole
            name = re.sub(r"^language_model\.", "", name)
        if name.endswith("conv1d.weight") and value.shape[-1] == 1:
            value = value.swapaxes(1, 2)
        elif adds_one and value.ndim == 1 and re.search(
                r"(layernorm|model\.norm|q_norm|k_norm)\.weight$", name):
            value = value - 1.0
        result[name] = value
    for name in [n for n in result if n.endswith("switch_mlp.gate_proj.weight")]:
        stem = name.removesuffix("switch_mlp.gate_proj.weight")
        gate, up, down = (result.pop(f"{stem}switch_mlp.{part}_proj.weight")
                          for part in ("gate", "up", "down"))
        result[f"{stem}experts.gate_up_proj"] = torch.cat([gate, up], 1)
        result[f"{stem}experts.down_proj"] = down
    for name in [n for n in result if n.endswith("mlp.experts.gate_proj.weight")]:  # gpt_oss
        stem = name.removesuffix("gate_proj.weight")
        for leaf, end in (("weight", ""), ("bias", "_bias")):
            gate, up = (result.pop(f"{stem}{part}_proj.{leaf}") for part in ("gate", "up"))
            both = torch.stack([gate, up], 2).flatten(1, 2)  # even and odd rows
            down = result.pop(f"{stem}down_proj.{leaf}")
            turn = leaf == "weight"
            result[f"{stem}gate_up_proj{end}"] = both.swapaxes(1, 2) if turn else both
            result[f"{stem}down_proj{end}"] = down.swapaxes(1, 2) if turn else down
    for name in [n for n in result if n.endswith("embed_q.weight")]:  # glm4_moe_lite
        stem = name.removesuffix("embed_q.weight")
        keys = result.pop(name).swapaxes(1, 2)
        both = torch.cat([keys, result.pop(f"{stem}unembed_out.weight")], 1)
        result[f"{stem}kv_b_proj.weight"] = both.flatten(0, 1)
    return {name: value.contiguous().numpy() for name, value in result.items()}


def reference(family, folder):
    """The transformers model of an HF or MLX folder, quantised or not: f32, eager."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(next(folder.glob("model*.safetensors")), "np") as file:
        if (file.metadata() or {}).get("format") != "mlx":
            return make.load(family, folder)
    weights = to_hf(dequantized(folder, config), config)
    with tempfile.TemporaryDirectory() as plain:
        keys = {k: v for k, v in config.items() if not k.startswith("quantization")}
        make.write_folder(plain, keys, weights)
        return make.load(family, plain, weights)


def join_kv_b(folder, chosen):
    """Puts glm4_moe_lite's per-head tensors back together as one quantised kv_b_proj, as older
    conversions have it; says whether there were any."""
    file = next(pathlib.Path(folder).glob("model*.safetensors"))
    tensors = mx.load(str(file))
    stems = [n.removesuffix("embed_q.weight") for n in tensors if n.endswith("embed_q.weight")]
    if not stems or any(f"{stem}{part}.scales" not in tensors for stem in stems
                        for part in ("embed_q", "unembed_out")):
        return False
    for stem in stems:
        keys, values = (mx.dequantize(*(tensors.pop(f"{stem}{part}.{leaf}")
                                        for leaf in ("weight", "scales", "biases")),
                                      group_size=chosen["group_size"], bits=chosen["bits"])
                        for part in ("embed_q", "unembed_out"))
        both = mx.concatenate([keys.swapaxes(1, 2), values], 1).flatten(0, 1)
        parts = mx.quantize(both, group_size=chosen["group_size"], bits=chosen["bits"])
        tensors |= dict(zip((f"{stem}kv_b_proj.{leaf}" for leaf in (
            "weight", "scales", "biases")), parts))
    mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
    index = file.with_name("model.safetensors.index.json")
    if index.exists():
        index.write_text(json.dumps(dict(weight_map={name: file.name for name in tensors})))
    return True


def mlx_lm_logits(folder, tokens, in_f32):
    """mlx-lm's own logits, f32 [tokens, vocab], in the folder's dtype or widened to f32."""
    model, _ = utils.load_model(pathlib.Path(folder))
    if in_f32:
        model.set_dtype(mx.float32)
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def deviations(config):
    """Why mlx-lm 0.32.2 may compute something else than transformers with this config, in words."""
    text = config.get("text_config", config)
    family = text["model_type"].removesuffix("_text") if "qwen3_5" in text["model_type"] else (
        text["model_type"])
    nested, old = text.get("rope_parameters") or {}, text.get("rope_scaling") or {}
    nested = nested.get("full_attention", nested)
    rope = nested or old
    kind = rope.get("rope_type", rope.get("type", "default"))
    linear = [i for i, k in enumerate(text.get("layer_types", ())) if k == "full_attention"]
    every = linear[0] + 1 if linear else 0
    reads_nested = ("qwen3", "qwen3_5", "qwen3_5_moe")
    facts = {
        "reads no nested rope_parameters": nested and family not in reads_nested,
        "reads nested rope_parameters only": not nested and family.startswith("qwen3_5"),
        "scales no rope": family == "qwen3_moe" and kind != "default",
        "long factors at every length": kind == "longrope",
        "dynamic rope": kind == "dynamic",
        "truncates yarn": kind == "yarn" and rope.get("truncate") is False,
        "yarn's attention_factor and mscale": kind == "yarn" and any(
            key in rope for key in ("attention_factor", "mscale", "mscale_all_dim")),
        "no window": text.get("use_sliding_window") or family == "mistral" and text.get(
            "sliding_window"),
        "intervals only": "layer_types" in text and family in (
            "gemma3_text", "qwen3_next", "qwen3_5", "qwen3_5_moe")
        and linear != list(range(every - 1, text["num_hidden_layers"], every or 1)),
        "rms_norm_eps in latent norms": family == "glm4_moe_lite" and text["rms_norm_eps"] != 1e-6,
        "pairs only": text.get("rope_interleave") is False,
        "other groups at zero": text.get("n_group", 1) > 1,
        "embedding factor in bf16": family == "gemma3_text",
        "no cap on logits": text.get("final_logit_softcapping"),
        "swiglu constants": text.get("swiglu_limit", 7.0) != 7.0,
    }
    return [name for name, holds in facts.items() if holds]
