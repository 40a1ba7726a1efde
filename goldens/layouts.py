"""How a checkpoint file may hold the tensors of a model: tables {name: shape} of other forms than
the one save_pretrained writes, and configs inside a wrapper.
"""

import re

EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


def fused(shapes):
    """Experts in two tensors: `gate_up_proj` [E, 2I, D], gate first, and `down_proj` [E, D, I]."""
    n_experts = 1 + max(int(m[2]) for m in map(EXPERT.fullmatch, shapes) if m)
    result = {}
    for name, shape in shapes.items():
        if not (match := EXPERT.fullmatch(name)):
            result[name] = shape
        elif match[3] == "down_proj":
            result[f"{match[1]}.down_proj"] = [n_experts, *shape]
        else:
            result[f"{match[1]}.gate_up_proj"] = [n_experts, 2 * shape[0], shape[1]]
    return result


def inside(shapes, model):
    """`model.` as `model`; the head stays where it is."""
    return {re.sub(r"^model\.", model, name): shape for name, shape in shapes.items()}


LAYOUTS = {
    "saved": lambda shapes: shapes,
    "fused": fused,
    "qwen3_5": lambda shapes: inside(shapes, "model.language_model."),
    "qwen3_5_moe": lambda shapes: inside(fused(shapes), "model.language_model."),
    "gemma3": lambda shapes: inside(shapes, "language_model.model."),
}
VISION = {
    "qwen3_5": dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=24, out_hidden_size=56),
    "gemma3": dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=24,
                   num_attention_heads=2, num_hidden_layers=1, image_size=28, patch_size=14),
}
VISION["qwen3_5_moe"] = VISION["qwen3_5"]


def config_of(layout, text, classes):
    """The config.json of a layout around the text model's config: itself, or a wrapper's."""
    if layout not in VISION:
        return text
    config = dict(architectures=[classes + "ForConditionalGeneration"], model_type=layout,
                  text_config=dict(text), vision_config=VISION[layout])
    for key in ("dtype", "torch_dtype", "transformers_version"):
        if key in text:
            config[key] = config["text_config"].pop(key)
    config["text_config"].pop("architectures")
    if layout != "gemma3":
        config["tie_word_embeddings"] = text["tie_word_embeddings"]
    return config
