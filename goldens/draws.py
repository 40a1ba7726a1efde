"""Random models for parity.py: configs of every family, and folders in every layout.

A draw takes `rng` (random.Random) and gives keyword arguments of the family's config class. `mlx`
says that mlx-lm is to convert the folder: then widths are multiples of 32 and only what its loader
accepts is drawn.
"""

import json
import re

import torch
from safetensors.torch import load_file, save_file

import layouts
import make
import mlx_folder
from cases import FAMILIES

HYBRID = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
ROUTED = ("qwen3_moe", "qwen3_next", "qwen3_5_moe", "glm4_moe_lite", "gpt_oss")


def draw_rope(rng, n_dims, n_tokens, kinds):
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
            rope[name] = [round(rng.uniform(1, 9), 3) for _ in range(n_dims // 2)]
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


def draw_experts(rng, sizes, mlx):
    """Experts; with mlx-lm's 8-bit routers in groups of 64, `hidden_size` divides by 64."""
    if mlx:
        sizes["hidden_size"] = rng.choice([64, 128])
    n_experts = rng.choice([3, 5, 6, 7, 9, 12])
    step = 32 if mlx else 2
    return dict(num_experts=n_experts, num_experts_per_tok=rng.randrange(1, min(5, n_experts)),
                moe_intermediate_size=step * rng.randrange(1, 4 if mlx else 30))


def draw_dense_layers(rng, n_layers):
    """Which layers of a Qwen model have no experts, in either of the two ways to say it."""
    if rng.random() < 0.3:
        return dict(decoder_sparse_step=2)
    return dict(mlp_only_layers=[i for i in range(n_layers) if rng.random() < 0.25])


def draw_linear(rng, config, mlx):
    """A hybrid's layer kinds and the sizes of its gated delta layers."""
    n_layers = config["num_hidden_layers"] = rng.randrange(2, 7)
    interval = rng.randrange(2, n_layers + 1)
    kinds = ["full_attention" if (i + 1) % interval == 0 else "linear_attention"
             for i in range(n_layers)]
    if not mlx and rng.random() < 0.4:  # mlx-lm knows intervals only
        kinds = [rng.choice(["full_attention", "linear_attention"]) for _ in range(n_layers - 1)]
        kinds.insert(rng.randrange(n_layers), "full_attention")
    n_key_heads, n_per_key = rng.randrange(1, 4), rng.randrange(1, 4)
    key, value = rng.sample([6, 8, 10, 12, 16, 20, 24] if not mlx else [16, 32, 64], 2)
    return dict(layer_types=kinds, linear_num_key_heads=n_key_heads,
                linear_num_value_heads=n_key_heads * n_per_key, linear_key_head_dim=key,
                linear_value_head_dim=value, linear_conv_kernel_dim=rng.choice([4, 4, 3, 2]))


def draw_hybrid(rng, family, n_tokens, mlx):
    config = draw_sizes(rng, 32 if mlx else 1) | dict(rms_norm_eps=rng.choice([1e-6, 1e-5]))
    config |= dict(head_dim=rng.choice([8, 16, 24, 40]) if not mlx else rng.choice([32, 64]))
    config |= draw_linear(rng, config, mlx)
    partial = rng.choice([0.25, 0.25, 0.5, 1.0])
    kinds = ["default", "default", "linear", "llama3", "yarn"]
    config |= draw_rope(rng, 0, n_tokens, kinds)
    config["rope_parameters"]["partial_rotary_factor"] = partial
    if family != "qwen3_5":
        config |= draw_experts(rng, config, mlx)
        config["shared_expert_intermediate_size"] = (32 if mlx else 3) * rng.randrange(1, 4)
    if family == "qwen3_next":
        config |= dict(norm_topk_prob=rng.random() < 0.6)
        config |= draw_dense_layers(rng, config["num_hidden_layers"])
        if mlx and config.pop("decoder_sparse_step", 1) == 2:  # mlx-lm converts per-expert files
            config["mlp_only_layers"] = [0]
        if mlx and len(config["mlp_only_layers"]) == config["num_hidden_layers"]:
            config["mlp_only_layers"] = []
    if family == "qwen3_5_moe":
        config.pop("intermediate_size")
    return config | dict(attention_bias=rng.random() < 0.3)


def draw_glm(rng, n_tokens, mlx):
    config = draw_sizes(rng, 32 if mlx else 1)
    config |= draw_experts(rng, config, mlx)
    config["n_routed_experts"] = n_experts = config.pop("num_experts")
    heads = config["num_attention_heads"] = rng.randrange(1, 6)
    width = (lambda: 32 * rng.randrange(1, 4)) if mlx else (lambda: rng.randrange(6, 40))
    rotated = 2 * rng.randrange(2, 10)
    config |= dict(num_key_value_heads=heads, q_lora_rank=rng.choice([width(), width(), None]),
                   kv_lora_rank=width(), qk_nope_head_dim=width(), qk_rope_head_dim=rotated,
                   v_head_dim=width(), n_shared_experts=rng.choice([1, 1, 2]),
                   norm_topk_prob=rng.random() < 0.7,
                   routed_scaling_factor=rng.choice([1.0, 1.8, 2.5]),
                   rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-2]),
                   attention_bias=rng.random() < 0.3, rope_interleave=mlx or rng.random() < 0.8)
    groups = [g for g in (2, 3, 4, 6) if n_experts % g == 0 and n_experts // g > 1]
    if groups and rng.random() < 0.5:
        n_group = rng.choice(groups)
        topk_group = rng.randrange(1, n_group)
        allowed = topk_group * n_experts // n_group
        config |= dict(n_group=n_group, topk_group=topk_group, num_experts_per_tok=min(
            config["num_experts_per_tok"], allowed))
    if not mlx and rng.random() < 0.4:
        config["mlp_layer_types"] = [rng.choice(["dense", "sparse", "sparse"])
                                     for _ in range(config["num_hidden_layers"])]
    config.pop("head_dim")
    return config | draw_rope(rng, rotated, n_tokens, ["default", "default", "linear", "yarn"])


def draw_gpt_oss(rng, n_tokens, mlx):
    config = draw_sizes(rng, 32 if mlx else 1)
    experts = draw_experts(rng, config, mlx)
    kinds = ["sliding_attention", "full_attention"]
    layer_types = [rng.choice(kinds) for _ in range(config["num_hidden_layers"])]
    if mlx and len(set(layer_types)) < 2:  # mlx-lm wants both kinds
        layer_types[:2] = kinds
    config |= dict(
        num_local_experts=experts["num_experts"],
        num_experts_per_tok=experts["num_experts_per_tok"],
        intermediate_size=experts["moe_intermediate_size"],
        sliding_window=rng.randrange(2, n_tokens), rms_norm_eps=rng.choice([1e-5, 1e-2]),
        layer_types=layer_types)
    if not mlx:  # mlx-lm knows only the published values
        config |= dict(swiglu_limit=rng.choice([7.0, 1.0]), attention_bias=rng.random() < 0.8)
    return config | draw_rope(rng, config["head_dim"], n_tokens, ["yarn", "yarn", "default"])


def draw_gemma3(rng, n_tokens, mlx):
    config = draw_sizes(rng, 32 if mlx else 1)
    n_layers = config["num_hidden_layers"] = rng.randrange(2, 7)
    pattern = rng.randrange(2, 5)
    full = draw_rope(rng, config["head_dim"], n_tokens, ["default", "linear", "llama3", "yarn"])
    full["rope_parameters"].pop("truncate", None)  # transformers reads it outside layer types alone
    kinds = ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention"
             for i in range(n_layers)]
    if not mlx and rng.random() < 0.4:
        kinds = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(n_layers)]
    config |= dict(
        rope_parameters=dict(full_attention=full["rope_parameters"], sliding_attention=dict(
            rope_type="default", rope_theta=rng.choice([100.0, 1000.0, 10000.0]))),
        max_position_embeddings=full["max_position_embeddings"], sliding_window_pattern=pattern,
        layer_types=kinds, sliding_window=rng.randrange(2, n_tokens),
        query_pre_attn_scalar=rng.choice([8, 16, 33, 64]))
    if not mlx:
        config |= dict(attention_bias=rng.random() < 0.3)
    if rng.random() < 0.3:
        config["final_logit_softcapping"] = rng.choice([5.0, 30.0])
    return config


def draw_dense(rng, family, n_tokens, mlx):
    config = draw_sizes(rng, 32 if mlx else 1)
    if family == "qwen2":
        config = qwen2_sizes(rng, config, mlx)
    # mlx-lm reads only these kinds well enough to load the folder it is to convert.
    kinds = ["default", "linear", "llama3", "yarn"]
    config |= draw_rope(rng, config["head_dim"], n_tokens,
                        kinds if mlx else kinds + ["dynamic", "longrope"])
    window = rng.randrange(2, n_tokens)
    if family == "mistral":
        config["sliding_window"] = rng.choice([None, window])
    if family in ("qwen2", "qwen3") and rng.random() < 0.6:
        config |= dict(use_sliding_window=True, sliding_window=window,
                       max_window_layers=rng.randrange(config["num_hidden_layers"]))
    if family == "qwen3_moe":
        config |= draw_experts(rng, config, mlx) | dict(norm_topk_prob=rng.random() < 0.5)
        config |= draw_dense_layers(rng, config["num_hidden_layers"])
        if rng.random() < 0.4:
            config |= dict(use_sliding_window=True, sliding_window=window)
    no_bias = family.startswith("qwen3") and mlx  # mlx-lm's qwen3 and qwen3_moe know no biases
    if family not in ("mistral", "qwen2") and not no_bias:
        config["attention_bias"] = rng.random() < 0.4
    if family == "llama":
        config["mlp_bias"] = rng.random() < 0.4
    if family == "qwen2":
        config.pop("head_dim")
    return config


def draw_config(rng, family, n_tokens, mlx):
    """Keyword arguments of the family's config class."""
    special = dict(glm4_moe_lite=draw_glm, gpt_oss=draw_gpt_oss, gemma3_text=draw_gemma3)
    if family in HYBRID:
        config = draw_hybrid(rng, family, n_tokens, mlx)
    elif family in special:
        config = special[family](rng, n_tokens, mlx)
    else:
        config = draw_dense(rng, family, n_tokens, mlx)
    owns_head = family == "gpt_oss" or mlx and family == "glm4_moe_lite"
    tied = not owns_head and rng.random() < 0.4
    return config | dict(tie_word_embeddings=tied, initializer_range=0.1)


@torch.no_grad()
def stir(model):
    """Moves what is at the same value everywhere after initialisation (norms, biases, decays): no
    mistake with it would be noticed."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(-4.0, 1.0)
        elif name.endswith("sinks"):
            parameter.normal_()
        elif parameter.ndim == 1 or name.endswith("bias"):
            parameter += 0.2 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer += 0.2 * torch.randn_like(buffer)


def read(folder):
    """All tensors of a folder."""
    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def rewrite(folder, tensors, n_shards):
    """The tensors as the folder's only content beside its config."""
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.index.json")]:
        file.unlink()
    shards = [{} for _ in range(n_shards)]
    for i, (name, tensor) in enumerate(sorted(tensors.items())):
        shards[i % n_shards][name] = tensor.contiguous().clone()
    if n_shards == 1:
        return save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
    names = [f"model-{i + 1:05}-of-{n_shards:05}.safetensors" for i in range(n_shards)]
    for name, shard in zip(names, shards):
        save_file(shard, folder / name, metadata={"format": "pt"})
    where = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    size = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        dict(metadata=dict(total_size=size), weight_map=where)))


def fuse(tensors):
    """Experts one by one put together as layouts.fused says."""
    result, parts = {}, {}
    for name, tensor in tensors.items():
        match = layouts.EXPERT.fullmatch(name)
        if match:
            parts.setdefault(match[1], {})[match[3], int(match[2])] = tensor
        else:
            result[name] = tensor
    for stem, of in parts.items():
        n = 1 + max(expert for _, expert in of)
        rows = [torch.cat([of["gate_proj", e], of["up_proj", e]]) for e in range(n)]
        result[f"{stem}.gate_up_proj"] = torch.stack(rows)
        result[f"{stem}.down_proj"] = torch.stack([of["down_proj", e] for e in range(n)])
    return result


def to_hub(tensors):
    """gpt_oss's experts in blocks: [E, in, out] in floats, [E, out, in] in blocks."""
    result = {}
    for name, tensor in tensors.items():
        if re.search(r"experts\.(gate_up|down)_proj$", name):
            turned = tensor.float().swapaxes(1, 2).contiguous()
            result |= mlx_folder.hub_blocks(name, turned.numpy())
        else:
            result[name] = tensor
    return result


def draw_layout(rng, family, kwargs, mlx):
    """How the file is to hold the tensors."""
    fits = kwargs["hidden_size"] % 32 == 0 and kwargs.get("intermediate_size", 1) % 32 == 0
    if family == "gpt_oss":
        return "gpt_oss_hub" if mlx or fits and rng.random() < 0.7 else "saved"
    if mlx and family in ("qwen3_5", "qwen3_5_moe"):
        return family
    if mlx:  # mlx-lm stacks experts that it finds one by one
        wraps = family == "gemma3_text" and kwargs["tie_word_embeddings"] and (
            "final_logit_softcapping" not in kwargs)
        return rng.choice(["saved", "gemma3"]) if wraps else "saved"
    # transformers' class of the wrapper does not cap logits.
    gemma3 = ["saved"] if "final_logit_softcapping" in kwargs else ["saved", "gemma3"]
    choices = {"qwen3_5": ["saved", "qwen3_5"], "gemma3_text": gemma3,
               "qwen3_5_moe": ["saved", "fused", "qwen3_5_moe"]}
    return rng.choice(choices.get(family, ["saved", "fused"] if family in ROUTED else ["saved"]))


def is_regular(old, kwargs):
    """Whether the number in an old config gives the list of layer kinds."""
    key = "full_attention_interval" if "full_attention_interval" in old else (
        "sliding_window_pattern")
    return key in old and all((kind == "full_attention") == ((i + 1) % old[key] == 0)
                              for i, kind in enumerate(kwargs["layer_types"]))


def spell(rng, config, kwargs, mlx):
    """(config.json in a spelling, its name)"""
    choices = ["v5", "v4", "v4-type"]
    if config["model_type"] in ("qwen3_moe", "qwen3_next") and mlx:
        choices.remove("v5")
    if config["model_type"] == "gemma3_text":  # transformers passes over its rope_scaling.type
        choices.remove("v4-type")
    spelling = rng.choice(choices)
    if spelling == "v5":
        return config, spelling
    old = make.to_v4(config, "type" if spelling == "v4-type" else "rope_type")
    if "layer_types" in kwargs and not (is_regular(old, kwargs) and rng.random() < 0.6):
        old["layer_types"] = kwargs["layer_types"]
    if "mlp_layer_types" in kwargs:
        old["mlp_layer_types"] = kwargs["mlp_layer_types"]
        old.pop("first_k_dense_replace")
    return old, spelling


@torch.no_grad()
def write_hf(rng, family, kwargs, folder, dtype, mlx):
    """Saves a fresh random model, sharded or not, in one of the layouts and spellings; returns a
    description."""
    config_class, model_class = make.classes(family)
    model = model_class(config_class(**kwargs))
    stir(model)
    wide = {}
    # Published files keep these in f32 beside 16-bit weights.
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias") or name.endswith("A_log") and (
                rng.random() < 0.5):
            wide[name] = value.clone()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    path = folder / "config.json"
    config, spelling = spell(rng, json.loads(path.read_text()), kwargs, mlx)
    if family in HYBRID and mlx:  # mlx-lm knows intervals only
        config["full_attention_interval"] = 1 + kwargs["layer_types"].index("full_attention")
    layout = draw_layout(rng, family, kwargs, mlx)
    tensors = read(folder) | wide
    if layout in ("fused", "qwen3_5_moe"):
        tensors = fuse(tensors)
    if layout == "gpt_oss_hub":
        tensors = to_hub(tensors)
        config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=[
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
            "lm_head"])
    if layout in layouts.VISION:
        tensors = layouts.LAYOUTS[layout](tensors) if layout != "qwen3_5_moe" else (
            layouts.inside(tensors, "model.language_model."))
        config = layouts.config_of(layout, config, FAMILIES[family].prefix)
        if mlx:  # where mlx-lm looks for it
            config["vocab_size"] = kwargs["vocab_size"]
    path.write_text(json.dumps(config))
    n_shards = rng.choice([1, 1, 2, 3])
    rewrite(folder, tensors, n_shards)
    return f"hf {layout} {spelling} {n_shards} file{'s' * (n_shards > 1)}"


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
    label = f"mlx {chosen['mode']} {chosen['bits']}/{chosen['group_size']}" + "+" * bool(overrides)
    if chosen["mode"] == "affine" and rng.random() < 0.5 and mlx_folder.join_kv_b(folder, chosen):
        label += " kv_b"
    return label
