"""What a float golden case and a family are, and the kinds of rope that cases share."""

from dataclasses import dataclass, field


@dataclass
class Family:
    """`prefix` of its classes in transformers; `base` sizes; `norm_centre`: what its norm weights
    lie around (0: the model adds 1); `text`: its config class is `<prefix>TextConfig`."""

    prefix: str
    base: dict
    norm_centre: int = 1
    text: bool = False


@dataclass
class Case:
    """One golden. `config` is laid over the family's base sizes; `wrong` maps the name of a
    mistake to what produces it: config overrides (None value = key removed) or the name of one in
    mistakes.py. `at_least` is the smallest relative change of the logits a mistake must cause,
    `floors` the same for single mistakes that cannot cause more."""

    family: str
    name: str
    why: str
    config: dict = field(default_factory=dict)
    spelling: str = "v5"  # v5 | v4 (rope_scaling.rope_type) | v4-type (rope_scaling.type)
    drop: tuple = ()  # fields removed from config.json: the class default applies
    wrong: dict = field(default_factory=dict)
    at_least: float = 0.05
    floors: dict = field(default_factory=dict)
    n_tokens: int = 33
    raw: dict = field(default_factory=dict)  # keys written into config.json as they are
    layout: str = "saved"  # how the file holds the tensors: a name in layouts.py
    extra: dict = field(default_factory=dict)  # further tensors of the file, which nobody reads
    scales: dict = field(default_factory=dict)  # {end of a tensor's name: power of two}
    batch: bool = False  # stores a second, shorter row as well


def rope(kind, theta=10000.0, **keys):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **keys))


PLAIN = rope("default")
# Short wavelengths, so that 33 tokens reach the scaled part of the spectrum.
YARN = dict(theta=100.0, factor=8.0, original_max_position_embeddings=512)
PLAIN100 = rope("default", 100.0)
LONG = dict(short_factor=[1.0, 1.1, 1.25, 1.4, 1.7, 2.0, 2.5],
            long_factor=[1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 17.0])


def yarn(**keys):
    return rope("yarn", **(YARN | keys))
