"""Writes the float goldens: tiny configs, tensor lists and the logits transformers computes.

    python goldens/make.py [--only FAMILY[/CASE]]

Each case is read back from the very config.json that is committed, filled with generated weights
(generator.py) and run in f32 with eager attention. Every mistake named in cases.py is then made on
purpose; a case whose logits hardly change under it is an error. README.md describes the files.
"""

import argparse
import copy
import json
import pathlib
import shutil
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open

import generator
from cases import CASES, FAMILIES, Case

ROOT = pathlib.Path(__file__).parent


def classes(family):
    """The config and causal-LM classes of a family."""
    prefix = FAMILIES[family][0]
    return getattr(transformers, prefix + "Config"), getattr(transformers, prefix + "ForCausalLM")


def to_v4(config, kind_key):
    """The spelling of transformers 4: rope_theta and rope_scaling at the top."""
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {kind_key: kind} | scaling
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.46.3"
    return config


def published(case: Case):
    """config.json as committed, and {name: shape} of what save_pretrained writes."""
    config_class, model_class = classes(case.family)
    # A copy: config classes complete the rope dictionary in place.
    model = model_class(config_class(**copy.deepcopy(FAMILIES[case.family][1] | case.config)))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        with safe_open(pathlib.Path(folder, "model.safetensors"), "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    if case.spelling != "v5":
        config = to_v4(config, "type" if case.spelling == "v4-type" else "rope_type")
        if "original_max_position_embeddings" not in case.config.get("rope_parameters", {}):
            (config["rope_scaling"] or {}).pop("original_max_position_embeddings", None)
    for name in case.drop:
        config.pop(name)
    if case.raw.get("original_max_position_embeddings"):
        config["rope_scaling"].pop("original_max_position_embeddings")
    return config | case.raw, dict(sorted(shapes.items()))


def build(family, folder):
    """The model of a config.json, in f32 with eager attention."""
    config_class, model_class = classes(family)
    config = config_class.from_pretrained(folder)
    config._attn_implementation = "eager"
    return model_class(config).to(torch.float32).eval()


def fill(model, shapes, seed):
    """Generated weights into the model; every parameter must be named."""
    weights = {n: torch.from_numpy(generator.tensor(n, tuple(s), seed)) for n, s in shapes.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    assert bool(missing) == model.config.tie_word_embeddings
    model.tie_weights()
    return model


@torch.no_grad()
def logits(model, tokens):
    """f32 logits [tokens, vocab]."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def patch(model, kind):
    """Makes the named mistake on a filled model."""
    if kind == "tie":
        model.lm_head.weight = model.model.embed_tokens.weight
        return
    if kind == "qk_norm_after_rope":
        swap_norm_and_rope(model)
        return
    for layer in model.model.layers:
        attention = layer.self_attn
        if kind in ("no_q_norm", "no_k_norm"):
            setattr(attention, kind[3:], torch.nn.Identity())
        for name, parameter in layer.named_parameters():
            groups = {"no_bias": ".", "no_o_bias": "o_proj.", "no_mlp_bias": "mlp."}
            if name.endswith("bias") and kind in groups and groups[kind] in name:
                parameter.data.zero_()


def swap_norm_and_rope(model):
    """The head norms applied to rotated q and k (weights no longer commute with the rotation)."""
    for layer in model.model.layers:
        layer.self_attn.late_norms = (layer.self_attn.q_norm, layer.self_attn.k_norm)
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
    module = transformers.models.qwen3.modeling_qwen3
    plain = module.apply_rotary_pos_emb
    norms = iter([layer.self_attn.late_norms for layer in model.model.layers])

    def late(q, k, cos, sin):
        q, k = plain(q, k, cos, sin)
        q_norm, k_norm = next(norms)
        return q_norm(q), k_norm(k)

    module.apply_rotary_pos_emb = late
    model.undo = lambda: setattr(module, "apply_rotary_pos_emb", plain)


def one_per_line(table):
    """JSON with one key to a line."""
    rows = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def relative(a, b):
    """max |a - b| / max |b|"""
    return float(np.abs(a - b).max() / np.abs(b).max())


def mistaken(case, config, shapes, seed, tokens, mistake):
    """The logits under a mistake: a patch name, or overrides of the transformers-5 config."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {} if isinstance(mistake, str) else mistake
        changed = {k: v for k, v in (config | overrides).items()
                   if not (k == "layer_types" and v is None)}
        if "rope_parameters" in overrides:
            changed = {k: v for k, v in changed.items() if k not in (
                "rope_theta", "rope_scaling", "original_max_position_embeddings")}
        pathlib.Path(folder, "config.json").write_text(json.dumps(changed))
        model = fill(build(case.family, folder), shapes, seed)
    if isinstance(mistake, str):
        patch(model, mistake)
    result = logits(model, tokens)
    getattr(model, "undo", lambda: None)()
    return result


def base_times_ten(model):
    """The mistake every case must notice: rope_theta ten times too large."""
    parameters = copy.deepcopy(model.config.rope_parameters)
    parameters["rope_theta"] *= 10.0
    return dict(rope_parameters=parameters)


def write_case(case: Case):
    """Writes one case's folder; returns its sensitivities."""
    folder = ROOT / case.family / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, shapes = published(case)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "tensors.json").write_text(one_per_line(shapes))

    seed = generator.fnv1a64(f"{case.family}/{case.name}")
    model = fill(build(case.family, folder), shapes, seed)
    tokens = generator.tokens(seed, case.n_tokens, model.config.vocab_size)
    expected = logits(model, tokens)
    sensitivity = {}
    for name, mistake in ({"rope_theta x 10": base_times_ten(model)} | case.wrong).items():
        change = relative(mistaken(case, config, shapes, seed, tokens, mistake), expected)
        sensitivity[name] = round(change, 4)
        floor = 0.05 if name == "rope_theta x 10" else case.at_least
        assert change > floor, f"{case.family}/{case.name}: `{name}` changes only {change:.4f}"
    check_spread(case, model, expected, tokens)

    expected.astype("<f4").tofile(folder / "expected.f32")
    facts = dict(why=case.why, seed=f"0x{seed:016x}", tokens=tokens, rope_length=len(tokens),
                 shape=list(expected.shape), spelling=case.spelling,
                 logits_std=round(float(expected.std()), 3), sensitivity=sensitivity)
    (folder / "case.json").write_text(one_per_line(facts))
    return facts


@torch.no_grad()
def check_spread(case, model, expected, tokens):
    """Logits must differ between positions, attention must not be uniform."""
    assert 0.3 < expected.std() < 8.0, (case.name, expected.std())
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 0.3, case.name
    attentions = model(torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions
    last = torch.stack([a[0, :, -1] for a in attentions])  # [layers, heads, keys]
    n_keys = (last > 0).sum(-1).float()
    assert (last.max(-1).values * n_keys).mean() > 2.0, f"{case.name}: attention is near uniform"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="family, or family/case")
    only = parser.parse_args().only
    prefix = only.rstrip("/") + "/" if only else ""
    chosen = [c for c in CASES if f"{c.family}/{c.name}/".startswith(prefix)]
    if not chosen:
        parser.error(f"no case named {only}")
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}")
    for case in chosen:
        facts = write_case(case)
        changes = ", ".join(f"{k} {v:.1%}" for k, v in facts["sensitivity"].items())
        print(f"{case.family}/{case.name}: std {facts['logits_std']}; {changes}")


if __name__ == "__main__":
    main()
