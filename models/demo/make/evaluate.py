"""Measures the model skill by skill: greedy answers on held-out values, question forms and seeds.

    python evaluate.py --model .. --n 100 --json result.json
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch

from render import render
from talkgen import compose, facts, offshoot, talk, tasks, tools
from talkgen.conversation import Conv
from talkgen.grammar import expand, pick

TOKENIZER = None  # set by main; distances are measured in its tokens
LONGEST = 3900  # prompts stay below the trained context


def fresh(seed, system=None):
    c = Conv(random.Random(seed), test=True)
    c.system = system
    return c


def drop_checks(c):
    c.checks.clear()


def one(fn):
    """A skill tested on its own, after a greeting now and then."""

    def make(seed):
        c = fresh(seed)
        if c.r.random() < 0.3:
            talk.small(c, "hello")
        for _ in range(20):
            drop_checks(c)
            fn(c)
            c.once = None
            if c.checks:
                return c
        return c

    return make


def recall(n_facts, tokens, ask=facts.ask, before=None):
    """`n_facts` told, then about `tokens` of other talk, then the question."""

    def make(seed):
        c = fresh(seed)
        while len(c.facts) < n_facts:
            k = facts.new_key(c)
            v = facts.draw(c, k)
            t, v = facts.tell_text(c, k, v)
            c.facts[k] = v
            c.user(t, v=v)
            c.bot("Noted.")
        between = 0
        while between < tokens:
            first = len(c.msgs)
            if tokens > 400 and c.r.random() < 0.5:
                known = dict(c.facts)
                text = facts.filler(c.r, c.r.randrange(300, 1500))
                c.raw_user(pick(c.r, ("Please read this: {t}", "{t}", "Some notes:\n\n{t}")).replace("{t}", text))
                c.bot("Okay, I have read it.")
                assert known == c.facts
            else:
                pick(c.r, (offshoot.qa, talk.small, talk.unknown, tasks.count))(c)
            between += sum(len(TOKENIZER(m["content"])["input_ids"]) + 8 for m in c.msgs[first:])
        if before:
            before(c)
        drop_checks(c)
        ask(c)
        return c

    return make


def styled(style):
    """System prompt with one style; a told fact is asked for."""

    def make(seed):
        for k in range(200):
            c = fresh(seed * 200 + k)
            parts = []
            if style == "persona":
                c.persona = c.v.name()
                c.system = pick(c.r, compose.PERSONA).replace("{n}", c.persona)
                c.test = False  # all question forms; the name is held out
                offshoot.qa(c, offshoot.BY_ID["who"])
                return c
            compose._style(c, parts)
            if c.style == style:
                break
        c.system = parts[0]
        facts.tell(c)
        drop_checks(c)
        facts.ask(c) if style != "oneword" else pick(c.r, (facts.ask, tasks.math))(c)
        c.once = None
        c.checks[:] = [(i, "style_" + kind, c, short) for i, kind, _, short in c.checks]
        return c

    return make


def tool(n_tools, which="call"):
    def make(seed):
        c = fresh(seed)
        while True:
            tools.give_tools(c)
            if (len(c.tools) == 1) == (n_tools == 1):
                break
        if which == "none":
            c.tools = [t for t in c.tools]
            facts.tell(c)
            drop_checks(c)
            facts.ask(c)
            return c
        for _ in range(50):
            drop_checks(c)
            tools.use(c)
            c.checks[:] = [k for k in c.checks if (k[1] == "tool") == (which == "call")]
            if c.checks:
                return c
            c.msgs.clear()
        return c

    return make


def thinking_recall(seed):
    c = recall(2, 100)(seed)
    c.thinking = True
    return c


SKILLS = {
    "recall near": recall(1, 30), "recall 500 tokens back": recall(1, 500), "recall 1500 tokens back": recall(1, 1500), "recall 3000 tokens back": recall(1, 2900),
    "recall one of 5 facts": recall(5, 100), "recall one of 8, 1500 back": recall(8, 1500), "recall two facts at once": recall(3, 60, facts.ask_several),
    "recall after update": recall(2, 60, facts.ask, facts.update), "all facts": recall(4, 30, facts.ask_all), "not told": recall(2, 60, facts.ask_missing),
    "one of several people": one(facts.people), "facts as JSON": recall(3, 60, facts.as_json), "recall with thinking": thinking_recall,
    "JSON from text": one(tasks.make_json), "count": one(tasks.count), "arithmetic": one(tasks.math), "spell": one(tasks.spell), "repeat": one(tasks.repeat),
    "lists": one(tasks.listing), "kept list": one(tasks.own_list), "order": one(tasks.order), "Offshoot questions": one(offshoot.qa), "general knowledge": one(talk.knowledge), "out of scope": one(talk.unknown),
    "tool call, one tool": tool(1), "tool call, several tools": tool(3), "tool result used": tool(3, "answer"), "tools given, none needed": tool(3, "none"),
    "system: capitals": styled("caps"), "system: one word": styled("oneword"), "system: JSON": styled("json"), "system: prefix": styled("prefix"), "system: suffix": styled("suffix"), "system: name": styled("persona"),
}


def parse_json(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def parse_calls(text):
    calls = [parse_json(p.split("</tool_call>")[0]) for p in text.split("<tool_call>")[1:]]
    return calls


def good(kind, want, short, got):
    """Does the answer `got` satisfy the check?"""
    low = got.lower()
    if kind == "recall":
        return want.lower() in low and "not told" not in low
    if kind == "recall2" or kind == "all":
        return all(str(w).lower() in low for w in want)
    if kind == "missing":
        return "not told" in low
    if kind in ("exact",):
        return got == want
    if kind == "contains":
        return want.lower() in low
    if kind == "ends":
        return low.rstrip(".").endswith(want.lower().rstrip("."))
    if kind == "keywords":
        return all(w.lower() in low for w in want)
    if kind == "json":
        return parse_json(got) == want
    if kind == "json_len":
        return isinstance(parse_json(got), list) and len(parse_json(got)) == want
    if kind == "n_items":
        return len(set(got.split(", "))) == want
    if kind == "n_lines":
        return len(got.split("\n")) == want
    if kind == "tool":
        return parse_calls(got) == want
    if kind.startswith("style_"):
        return good_style(kind[6:], want, short, got)
    raise ValueError(kind)


def good_style(kind, c, short, got):
    if c.style == "caps":
        return short.upper() in got and got == got.upper()
    if c.style == "lower":
        return got == got.lower()
    if c.style == "oneword":
        return got == short
    if c.style == "json":
        value = parse_json(got)
        return isinstance(value, dict) and list(value) == [c.style_arg] and short.lower() in value[c.style_arg].lower()
    if c.style == "prefix":
        return got.startswith(c.style_arg) and short in got
    return got.endswith(c.style_arg) and short in got


def prompts(n, seed):
    for skill, make in SKILLS.items():
        for i in range(n):
            c = make(seed * 100_003 + i)
            if not c.checks:
                continue
            at, kind, want, short = c.checks[-1]
            thinking = getattr(c, "thinking", False)
            tools_ = [t.schema for t in c.tools] if c.tools else None
            prompt = render(c.system, tools_, c.msgs, thinking, at)
            if len(prompt) < LONGEST * 2 or len(TOKENIZER(prompt)["input_ids"]) <= LONGEST:
                yield skill, kind, want, short, prompt


def generate(model, tok, texts, batch_tokens, max_new):
    """Greedy answers, batched by length."""
    ids = [tok(t)["input_ids"] for t in texts]
    order, out = sorted(range(len(ids)), key=lambda i: len(ids[i])), [None] * len(ids)
    while order:
        size = 1
        while size < min(len(order), 512) and (size + 1) * (len(ids[order[size]]) + max_new) <= batch_tokens:
            size += 1
        part, order = order[:size], order[size:]
        width = max(len(ids[i]) for i in part)
        pad = tok.pad_token_id
        x = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in part], device=model.device)
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in part], device=model.device)
        y = model.generate(input_ids=x, attention_mask=mask, max_new_tokens=max_new, do_sample=False, temperature=None, top_p=None, top_k=None)
        for i, row in zip(part, y[:, width:].tolist()):
            text = tok.decode(row, skip_special_tokens=False)
            out[i] = text.split("<|im_end|>")[0].split("<|endoftext|>")[0]
    return out, [len(i) for i in ids]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, required=True)
    p.add_argument("--n", type=int, default=100)
    p.add_argument("--seed", type=int, default=7)
    p.add_argument("--json", type=Path)
    p.add_argument("--only", help="skills whose name contains this")
    p.add_argument("--show", type=int, default=2, help="failures printed per skill")
    p.add_argument("--batch-tokens", type=int, default=24_000)
    args = p.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if args.only:
        for k in [k for k in SKILLS if args.only not in k]:
            del SKILLS[k]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    global TOKENIZER
    tok = TOKENIZER = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device).eval()
    cases, start = list(prompts(args.n, args.seed)), time.time()
    with torch.no_grad():
        answers, lengths = generate(model, tok, [c[-1] for c in cases], args.batch_tokens, 170)
    table, failures = {}, {}
    for (skill, kind, want, short, prompt), got, length in zip(cases, answers, lengths):
        if "</think>" in got:
            got = got.split("</think>")[-1].lstrip("\n")
        ok = good(kind, want, short, got)
        row = table.setdefault(skill, {"right": 0, "of": 0, "prompt_tokens": 0})
        row["right"] += ok
        row["of"] += 1
        row["prompt_tokens"] += length
        if not ok and len(failures.setdefault(skill, [])) < args.show:
            failures[skill].append((prompt[-300:], want if not isinstance(want, Conv) else short, got))
    for skill, bad in failures.items():
        for prompt, want, got in bad:
            print(f"--- {skill}\n{prompt}\n   want {want!r}\n   got  {got!r}")
    for skill, row in table.items():
        row["prompt_tokens"] = round(row["prompt_tokens"] / row["of"])
        print(f"{skill:28} {row['right']:4}/{row['of']:<4} {100 * row['right'] / row['of']:5.1f} %   mean prompt {row['prompt_tokens']} tokens")
    right, of = sum(r["right"] for r in table.values()), sum(r["of"] for r in table.values())
    print(f"{'all':28} {right:4}/{of:<4} {100 * right / of:5.1f} %   {time.time() - start:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({"n": args.n, "seed": args.seed, "skills": table, "right": right, "of": of}, indent=1) + "\n")


if __name__ == "__main__":
    main()
