"""Writes the float goldens: tiny configs, tensor lists and the logits transformers computes.

    python goldens/make.py [--only FAMILY[/CASE]]

Each case is read back from the very config.json that is committed, with a checkpoint file of
generated weights (generator.py), by transformers' own loader, and run in f32 with eager attention.
Every mistake named in cases.py is then made on purpose; a case whose logits hardly change under it
is an error. README.md describes the files.
"""

import argparse
import copy
import json
import pathlib
import re
import shutil
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

import generator
import layouts
import mistakes
from case import Case
from cases import CASES, FAMILIES

ROOT = pathlib.Path(__file__).parent
# No choice of experts may be closer than this share of the scores' spread.
ROUTER_MARGIN = 1e-3


def classes(family):
    """The config and causal-LM classes of a family."""
    kind = FAMILIES[family]
    config = kind.prefix + ("TextConfig" if kind.text else "Config")
    return getattr(transformers, config), getattr(transformers, kind.prefix + "ForCausalLM")


def to_v4(config, kind_key):
    """The spelling of transformers 4: rope_theta and rope_scaling at the top, and one number in
    place of a list of layer kinds."""
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    if "full_attention" in scaling:
        config["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
        scaling = dict(scaling["full_attention"])
    config["rope_theta"] = scaling.pop("rope_theta")
    if "partial_rotary_factor" in scaling:
        config["partial_rotary_factor"] = scaling.pop("partial_rotary_factor")
    kind = scaling.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {kind_key: kind} | scaling
    config["torch_dtype"] = config.pop("dtype")
    list_of_kinds = config.pop("layer_types", [])
    if "linear_attention" in list_of_kinds:
        config["full_attention_interval"] = list_of_kinds.index("full_attention") + 1
    if config["model_type"] == "gemma3_text":
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern")
    if config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    if config["model_type"] == "glm4_moe_lite":
        config["first_k_dense_replace"] = [*config.pop("mlp_layer_types"), "sparse"].index("sparse")
        config |= dict(moe_layer_freq=1, topk_method="noaux_tc", scoring_func="sigmoid",
                       partial_rotary_factor=1.0)
    config["transformers_version"] = "4.46.3"
    return config


def published(case: Case):
    """config.json as committed, and {name: shape} of the checkpoint file."""
    config_class, model_class = classes(case.family)
    # A copy: config classes complete the rope dictionary in place.
    model = model_class(config_class(**copy.deepcopy(FAMILIES[case.family].base | case.config)))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        with safe_open(pathlib.Path(folder, "model.safetensors"), "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    if case.spelling != "v5":
        config = to_v4(config, "type" if case.spelling == "v4-type" else "rope_type")
        if "original_max_position_embeddings" not in json.dumps(case.config):
            (config["rope_scaling"] or {}).pop("original_max_position_embeddings", None)
    for name in case.drop:
        config.pop(name)
    if case.raw.get("original_max_position_embeddings"):
        config["rope_scaling"].pop("original_max_position_embeddings")
    config = layouts.config_of(case.layout, config | case.raw, FAMILIES[case.family].prefix)
    shapes = layouts.LAYOUTS[case.layout](shapes) | case.extra
    return config, dict(sorted(shapes.items()))


def load(family, folder, ignored=()):
    """The model of a folder in f32 with eager attention, by transformers' own loader. `ignored`:
    tensors of the file that the model must not have."""
    config_class, model_class = classes(family)
    config = config_class.from_pretrained(folder)
    keys = json.loads(pathlib.Path(folder, "config.json").read_text())
    if keys["model_type"] == "gemma3":  # the text class does not know the wrapper's names
        model_class = transformers.Gemma3ForConditionalGeneration
        config = transformers.Gemma3Config.from_pretrained(folder)
    config._attn_implementation = config._experts_implementation = "eager"
    options = {}
    if hasattr(config, "quantization_config"):
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model, report = model_class.from_pretrained(
        folder, config=config, dtype=torch.float32, output_loading_info=True, **options)
    # The gemma3 wrapper's own vision tower stays at its initial weights: text does not touch it.
    missing = {name for name in report["missing_keys"]
               if not re.match(r"model\.(vision_tower|multi_modal_projector)\.", name)}
    # By layer, because the loader names the experts of a layer anew.
    unexpected = {tuple(name.split(".")[:3]) for name in report["unexpected_keys"]}
    allowed = {tuple(name.split(".")[:3]) for name in ignored}
    assert unexpected <= allowed and not report["mismatched_keys"], report
    tied = model.config.get_text_config().tie_word_embeddings
    assert missing <= ({"lm_head.weight"} if tied else set()), report
    return model.eval()


def write_folder(folder, config, weights):
    """config.json and model.safetensors."""
    folder = pathlib.Path(folder)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def logits(model, tokens):
    """f32 logits [tokens, vocab]."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


class CloseChoices(Exception):
    """A model whose routers choose closely wherever one looks."""


class Margins:
    """While active, notes how close the choices of a model's routers are: for each position the
    smallest gap between the last expert (or group) chosen and the first one not, as a share of the
    scores' spread."""

    def __init__(self, model):
        self.routers = [m for m in model.modules()
                        if type(m).__name__.lower().endswith("topkrouter")]
        self.gaps = []

    def __enter__(self):
        self.hooks = [m.register_forward_hook(self.note) for m in self.routers]
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def note(self, router, _, output):
        scores = output[0].float()
        if hasattr(router, "e_score_correction_bias"):
            scores = scores.sigmoid() + router.e_score_correction_bias
            if router.num_group > 1:
                groups = scores.view(len(scores), router.num_group, -1)
                best = groups.topk(2, -1).values.sum(-1)
                self.note_gap(best, router.topk_group)
                chosen = best.topk(router.topk_group, -1).indices
                scores = groups.gather(1, chosen[..., None].expand(-1, -1, groups.shape[-1]))
                scores = scores.flatten(1)
        self.note_gap(scores, router.top_k)

    def note_gap(self, scores, k):
        ranked = scores.sort(-1, descending=True).values
        spread = ranked[:, 0] - ranked[:, -1]
        if k < ranked.shape[1]:
            self.gaps.append((ranked[:, k - 1] - ranked[:, k]) / spread)

    def by_position(self):
        """[tokens], or none if nothing was chosen."""
        return torch.stack(self.gaps).amin(0) if self.gaps else None

    def smallest(self):
        return self.by_position().min().item() if self.gaps else float("inf")


def tokens_apart(model, seed, n, vocab, margin):
    """`n` token ids by the generator, leaving out each at which, after those before it, a router
    would choose more closely than `margin`; fails if these are nearly all."""
    tokens, rest = [], generator.tokens(seed, 100 * n, vocab)
    while len(rest) >= n:
        n_new = n - len(tokens)
        with Margins(model) as margins:
            logits(model, tokens + rest[:n_new])
        gaps = margins.by_position()
        close = [] if gaps is None else (gaps <= margin).nonzero().flatten().tolist()
        if not close:
            return tokens + rest[:n_new]
        n_kept = close[0] - len(tokens)
        tokens, rest = tokens + rest[:n_kept], rest[n_kept + 1:]
    raise CloseChoices("nearly every token makes a router choose closely")


def one_per_line(table):
    """JSON with one key to a line."""
    rows = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def relative(a, b):
    """max |a - b| / max |b|"""
    return float(np.abs(a - b).max() / np.abs(b).max())


def changed(config, overrides):
    """config.json with overrides in the spelling of transformers 5."""
    if "text_config" in config:
        return config | dict(text_config=changed(config["text_config"], overrides))
    result = {k: v for k, v in (config | overrides).items()
              if not (k == "layer_types" and v is None)}
    if "rope_parameters" in overrides:
        for name in ("rope_theta", "rope_scaling", "original_max_position_embeddings",
                     "partial_rotary_factor", "rope_local_base_freq"):
            result.pop(name, None)
    return result


def mistaken(case, config, weights, tokens, mistake):
    """The logits under a mistake: the name of one, or overrides of the config."""
    overrides = {} if isinstance(mistake, str) else mistake
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, changed(config, overrides), weights)
        model = load(case.family, folder, case.extra)
    undo = mistakes.make(model, mistake) if isinstance(mistake, str) else lambda: None
    try:
        return logits(model, tokens)
    finally:
        undo()


def base_times_ten(model):
    """The mistake every case must notice: rope_theta ten times too large."""
    parameters = copy.deepcopy(model.config.get_text_config().rope_parameters)
    for one in parameters.values() if "full_attention" in parameters else [parameters]:
        one["rope_theta"] *= 10.0
    return dict(rope_parameters=parameters)


def seeded(case, config, shapes):
    """(seed, weights, model, token lists) of the first seed at which no choice of experts is
    close."""
    lengths = dict(tokens=case.n_tokens)
    if case.batch:
        lengths["tokens_b"] = case.n_tokens - 12
    for attempt in range(100):
        seed = generator.fnv1a64(f"{case.family}/{case.name}" + f"#{attempt}" * (attempt > 0))
        weights = {name: generator.tensor(name, tuple(shape), seed,
                                          FAMILIES[case.family].norm_centre, case.scales)
                   for name, shape in shapes.items()}
        with tempfile.TemporaryDirectory() as folder:
            write_folder(folder, config, weights)
            model = load(case.family, folder, case.extra)
        vocab = model.config.get_text_config().vocab_size
        rows = {name: generator.tokens(seed, n, vocab, name) for name, n in lengths.items()}
        with Margins(model) as margins:
            for row in rows.values():
                logits(model, row)
                margins.gaps = [torch.cat(margins.gaps)] if margins.gaps else []
        if margins.smallest() > ROUTER_MARGIN:
            return seed, weights, model, rows, margins.smallest()
    raise AssertionError(f"{case.family}/{case.name}: every seed has a close choice of experts")


def write_case(case: Case):
    """Writes one case's folder; returns its facts."""
    folder = ROOT / case.family / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, shapes = published(case)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "tensors.json").write_text(one_per_line(shapes))

    seed, weights, model, rows, margin = seeded(case, config, shapes)
    tokens = rows["tokens"]
    expected = logits(model, tokens)
    sensitivity = {}
    for name, mistake in ({"rope_theta x 10": base_times_ten(model)} | case.wrong).items():
        change = relative(mistaken(case, config, weights, tokens, mistake), expected)
        sensitivity[name] = round(change, 4)
        floor = 0.05 if name == "rope_theta x 10" else case.at_least
        floor = case.floors.get(name, floor)
        assert change > floor, f"{case.family}/{case.name}: `{name}` changes only {change:.4f}"
    check_spread(case, model, expected, tokens)

    expected.astype("<f4").tofile(folder / "expected.f32")
    facts = dict(why=case.why, seed=f"0x{seed:016x}")
    if FAMILIES[case.family].norm_centre != 1:
        facts["norm_centre"] = FAMILIES[case.family].norm_centre
    if case.scales:
        facts["scales"] = case.scales
    facts |= dict(tokens=tokens, rope_length=len(tokens), shape=list(expected.shape),
                  spelling=case.spelling)
    if case.batch:
        facts["tokens_b"] = rows["tokens_b"]
        logits(model, rows["tokens_b"]).astype("<f4").tofile(folder / "expected_b.f32")
    if case.layout != "saved":
        facts["layout"] = case.layout
    if case.extra:
        facts["ignored"] = sorted(case.extra)
    if margin < float("inf"):
        facts["router_margin"] = round(margin, 5)
    facts |= dict(logits_std=round(float(expected.std()), 3), sensitivity=sensitivity)
    (folder / "case.json").write_text(one_per_line(facts))
    return facts


@torch.no_grad()
def check_spread(case, model, expected, tokens):
    """Logits must differ between positions, attention must not be uniform."""
    assert 0.3 < expected.std() < 8.0, (case.name, expected.std())
    assert np.abs(np.diff(expected, axis=0)).max(axis=1).min() > 0.3, case.name
    attentions = model(torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions
    attentions = [a for a in attentions if a is not None]
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
        print(f"{case.family}/{case.name}: std {facts['logits_std']}; {changes}", flush=True)


if __name__ == "__main__":
    main()
