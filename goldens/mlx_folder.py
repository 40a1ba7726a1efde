"""MLX-converted folders, made and read with mlx-lm's own functions; used by quantized.py and
parity.py. mlx-lm's `convert` also wants a tokenizer, so its parts are called one by one, in its
order: load, cast, quantize, save weights, save config."""

import contextlib
import io
import json
import pathlib
import tempfile

import mlx.core as mx
import numpy as np
import torch
from mlx.utils import tree_map
from mlx_lm import utils

import make

MODES = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}


def convert(source, target, dtype, quantization=None, overrides=None):
    """Writes `target` from the HF folder `source`, floats cast to `dtype` ("bfloat16", ...).

    `quantization`: {group_size, bits, mode} or None. `overrides`: {module path: dict or False}.
    """
    model, config = utils.load_model(pathlib.Path(source), lazy=True)
    kind = getattr(mx, dtype)
    model.update(tree_map(
        lambda v: v.astype(kind) if mx.issubdtype(v.dtype, mx.floating) else v,
        model.parameters()))
    if quantization:
        with contextlib.redirect_stdout(io.StringIO()):
            model, config = utils.quantize_model(
                model, config, quantization["group_size"], quantization["bits"],
                mode=quantization["mode"],
                quant_predicate=lambda path, _: (overrides or {}).get(path, True))
    utils.save_model(target, model)
    utils.save_config(config, pathlib.Path(target) / "config.json")


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


def reference(family, folder):
    """The transformers model of an HF or MLX folder, quantised or not: f32, eager."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    with tempfile.TemporaryDirectory() as plain:
        keys = {k: v for k, v in config.items() if not k.startswith("quantization")}
        pathlib.Path(plain, "config.json").write_text(json.dumps(keys))
        model = make.build(family, plain)
    weights = dequantized(folder, config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    assert bool(missing) == model.config.tie_word_embeddings
    model.tie_weights()
    return model


def mlx_lm_logits(folder, tokens, in_f32):
    """mlx-lm's own logits, f32 [tokens, vocab], in the folder's dtype or widened to f32."""
    model, _ = utils.load_model(pathlib.Path(folder))
    if in_f32:
        model.set_dtype(mx.float32)
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))
