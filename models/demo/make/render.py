"""Conversations as text, byte for byte what `chat_template.jinja` gives (checked by `check`).

Rendering by hand is some fifty times faster than Jinja, and training needs gigabytes of it.
"""

import json

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TOOLS_HEAD = "# Tools\n\nYou can call these functions:\n<tools>\n"
TOOLS_TAIL = ('</tools>\n\nTo call one, answer with:\n<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>')


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def head(system, tools):
    """The system block, with the tools in it."""
    if tools:
        text = system + "\n\n" if system else ""
        return "<|im_start|>system\n" + text + TOOLS_HEAD + "".join(dumps(t) + "\n" for t in tools) + TOOLS_TAIL + "<|im_end|>\n"
    return f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""


def assistant_body(message):
    out = message["content"]
    for i, call in enumerate(message.get("tool_calls") or ()):
        out += ("\n" if out and i == 0 or i else "") + "<tool_call>\n" + f'{{"name": "{call["name"]}", "arguments": {dumps(call["arguments"])}}}' + "\n</tool_call>"
    return out


def render(system, tools, messages, thinking=False, upto=None):
    """The whole text; with `upto`, the prompt that asks for message number `upto`."""
    end = len(messages) if upto is None else upto
    last_query = max((i for i in range(end) if messages[i]["role"] == "user"), default=-1)
    out = [head(system, tools)]
    for i in range(end):
        m = messages[i]
        if m["role"] == "user":
            out.append(f"<|im_start|>user\n{m['content']}<|im_end|>\n")
        elif m["role"] == "assistant":
            think = m.get("think") if thinking and i > last_query else None
            out.append("<|im_start|>assistant\n<think>\n" + (think + "\n" if think else "\n") + "</think>\n\n" + assistant_body(m) + "<|im_end|>\n")
        else:
            if messages[i - 1]["role"] != "tool":
                out.append("<|im_start|>user")
            out.append(f"\n<tool_response>\n{m['content']}\n</tool_response>")
            if i + 1 == end or messages[i + 1]["role"] != "tool":
                out.append("<|im_end|>\n")
    if upto is not None:
        out.append("<|im_start|>assistant\n" + ("" if thinking else "<think>\n\n</think>\n\n"))
    return "".join(out)


def as_chat(system, messages, thinking):
    """The same conversation in the shape that `apply_chat_template` takes."""
    out = [{"role": "system", "content": system}] if system else []
    for m in messages:
        q = {"role": m["role"], "content": m["content"]}
        if m.get("tool_calls"):
            q["tool_calls"] = [{"type": "function", "function": c} for c in m["tool_calls"]]
        if thinking and m.get("think"):
            q["reasoning_content"] = m["think"]
        out.append(q)
    return out


def check(tokenizer, n=300):
    """Compare with the template over `n` random conversations; raises at the first difference."""
    import random

    from talkgen.compose import conversation

    for seed in range(n):
        r = random.Random(seed)
        c = conversation(r, r.choice((200, 600, 1500)))
        tools = [t.schema for t in c.tools] if c.tools else None
        for thinking in (False, True):
            cut = r.randrange(1, len(c.msgs) + 1)
            for upto in (None, cut):
                mine = render(c.system, tools, c.msgs, thinking, upto)
                theirs = tokenizer.apply_chat_template(
                    as_chat(c.system, c.msgs if upto is None else c.msgs[:upto], thinking), tools=tools, tokenize=False,
                    add_generation_prompt=upto is not None, enable_thinking=thinking)
                if mine != theirs:
                    raise AssertionError(f"seed {seed}: template differs\n{mine!r}\n{theirs!r}")
