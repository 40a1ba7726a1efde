"""A conversation under construction: messages, told facts, the style the answers must keep.

Every answer goes through `Conv.bot`, which applies the style (capitals, one word, JSON, …), so a
skill is written once and is seen in all styles. `checks` collects what the evaluation compares.
"""

import json

from .grammar import expand, fill, noise, pick
from .words import Values

ONE_TURN_STYLES = {
    "caps": ("Answer in capital letters: {q}", "{q} [Answer|Reply] in capitals[, please|].",
             "{q} (in capital letters[ please|])", "In capitals[, please|]: {q}", "{q} Use capital letters."),
    "oneword": ("Answer in one word: {q}", "{q} [Answer|Reply] in one word[, please|].", "In one word: {q}",
                "{q} [One word only|Just one word][.|, please.]", "[Only the answer, please|Just the answer]: {q}",
                "{q} Give me only the answer.", "{q} [Only|Just] the value[, please|, nothing else]."),
    "json": ('Answer in JSON: {q}', "{q} [Answer|Reply] in JSON[, please|].", "{q} (as JSON)"),
}


class Conv:
    """`style` is None or one of caps, lower, oneword, json, prefix, suffix, quote."""

    def __init__(self, r, test=False):
        self.r, self.test = r, test
        self.v = Values(r, test)
        self.msgs, self.tools = [], None
        self.system = None
        self.facts = {}  # key object -> value, in the order told
        self.old = {}
        self.people = {}
        self.persona = None
        self.style, self.style_arg = None, None
        self.once = None
        self.lists = {}
        self.size = 0
        self.checks = []
        self.last_user = None

    def user(self, template, _noise=True, **slots):
        text = expand(self.r, template)
        if _noise and not self.test:
            text = noise(self.r, text)
            if self.r.random() < 0.15:
                text = text.replace("avourite", "avorite").replace("colour", "color")
        text = fill(text, slots)
        if self.once:
            text = fill(expand(self.r, pick(self.r, ONE_TURN_STYLES[self.once])), {"q": text})
        self.raw_user(text)

    def raw_user(self, text):
        self.last_user = text
        self.msgs.append({"role": "user", "content": text})
        self.size += len(text) + 20

    def styled(self, text, short):
        style = self.once or self.style
        if style is None:
            return text
        if style == "caps":
            return text.upper()
        if style == "lower":
            return text.lower()
        if style == "oneword":
            return short if short is not None else text
        if style == "json":
            key = self.style_arg if not self.once and self.style_arg else "answer"
            return json.dumps({key: short if self.once and short is not None else text}, ensure_ascii=False)
        if style == "prefix":
            return self.style_arg + " " + text
        if style == "suffix":
            return text + " " + self.style_arg
        raise ValueError(style)

    def bot(self, template, short=None, think=None, raw=False, check=None, _fill=True, **slots):
        """One answer. `raw` answers (JSON asked for, repeated text) ignore the style."""
        text = expand(self.r, template) if _fill else template
        text = fill(text, slots)
        if not raw:
            text = self.styled(text, short)
        think = think or "[A simple message.|This is easy.] I answer it."
        think = fill(expand(self.r, think), slots)
        self.msgs.append({"role": "assistant", "content": text, "think": think})
        if check:
            self.checks.append((len(self.msgs) - 1, *check, short))
        self.once = None
        self.size += len(text) + 20

    def call(self, calls, think=None):
        self.msgs.append({"role": "assistant", "content": "", "tool_calls": calls, "think": think})
        self.size += 60

    def tool_result(self, text):
        self.msgs.append({"role": "tool", "content": text})
        self.size += len(text) + 30

    def maybe_once(self, p=0.06):
        """Sometimes the user asks for a style for this answer only."""
        if self.style is None and self.r.random() < p:
            self.once = pick(self.r, ("caps", "oneword", "oneword", "json"))
