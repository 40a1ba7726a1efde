"""Tiny text grammar: `[a|b|c]` picks one alternative (nesting allowed), `{slot}` is filled last.

Templates are parsed once and cached, since one training run expands them tens of millions of times.
Noise (typos, lower case) is applied before the slots are filled, so values stay as they are told.
"""

import zlib
from functools import lru_cache


def _parse(text, pos, depth):
    options, current, literal = [], [], []
    while pos < len(text):
        ch = text[pos]
        if ch == "[":
            if literal:
                current.append("".join(literal))
                literal = []
            node, pos = _parse(text, pos + 1, depth + 1)
            current.append(node)
            continue
        if depth and ch in "|]":
            if literal:
                current.append("".join(literal))
                literal = []
            options.append(tuple(current))
            current = []
            pos += 1
            if ch == "]":
                return tuple(options), pos
            continue
        literal.append(ch)
        pos += 1
    if depth:
        raise ValueError(f"unclosed [ in template: {text}")
    if literal:
        current.append("".join(literal))
    return (tuple(current),), pos


@lru_cache(maxsize=None)
def _compiled(text):
    return _parse(text, 0, 0)[0]


def _emit(node, r, out):
    option = node[0] if len(node) == 1 else node[int(r.random() * len(node))]
    for part in option:
        if isinstance(part, str):
            out.append(part)
        else:
            _emit(part, r, out)


def expand(r, template):
    """Pick one alternative everywhere; `{slot}` marks stay."""
    if "[" not in template:
        return template
    out = []
    _emit(_compiled(template), r, out)
    return "".join(out)


def fill(text, slots):
    """Replace every `{slot}`."""
    for key, value in slots.items():
        mark = "{" + key + "}"
        if mark in text:
            value = str(value)
            if value[:1] in "aeio" and " a " + mark in text:
                text = text.replace(" a " + mark, " an " + mark)
            text = text.replace(mark, value)
    return text


def pick(r, items):
    """A uniform choice, cheaper than `random.choice`."""
    return items[int(r.random() * len(items))]


def held_out(value, share=12):
    """True for the one in `share` values that training never sees."""
    return zlib.crc32(str(value).lower().encode()) % share == 0


NEAR = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj",
    "i": "uo", "j": "hk", "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o",
    "q": "w", "r": "et", "s": "ad", "t": "ry", "u": "yi", "v": "cb", "w": "qe", "x": "zc",
    "y": "tu", "z": "x",
}
CHAT = {
    "you": "u", "your": "ur", "are": "r", "please": "pls", "what is": "whats", "I am": "im",
    "what's": "whats", "I'm": "im", "don't": "dont", "can't": "cant", "thanks": "thx",
    "because": "cuz", "and": "&", "do not": "dont", "cannot": "cant", "it's": "its",
}


def _typo(r, word):
    i = 1 + int(r.random() * (len(word) - 1))
    kind = r.random()
    if kind < 0.3 and i + 1 < len(word):
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind < 0.55:
        return word[:i] + word[i + 1 :]
    if kind < 0.75:
        return word[:i] + word[i] + word[i:]
    near = NEAR.get(word[i])
    return word[:i] + pick(r, near) + word[i + 1 :] if near else word


def noise(r, text):
    """What hurried people type: lower case, lost punctuation, chat spelling, typos."""
    x = r.random()
    if x < 0.4:
        return text
    if x < 0.8:
        if "{" in text:
            parts = text.split("{")
            text = parts[0].lower() + "".join(
                "{" + p.split("}", 1)[0] + "}" + p.split("}", 1)[1].lower() for p in parts[1:]
            )
        else:
            text = text.lower()
    if x < 0.65 and text and text[-1] in "?.!" and "\n" not in text:
        text = text[:-1]
    if x > 0.93:
        for long, short in CHAT.items():
            if r.random() < 0.6:
                text = text.replace(long, short)
    if 0.7 < x < 0.93 and '"' not in text and "\n" not in text:
        words = text.split(" ")
        for _ in range(1 if r.random() < 0.7 else 2):
            k = int(r.random() * len(words))
            w = words[k]
            if len(w) > 3 and w.isalpha():
                words[k] = _typo(r, w)
        text = " ".join(words)
    return text
