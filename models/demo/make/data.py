"""Endless training batches: worker processes write conversations, tokenize and sort them by length.

A batch is `[rows, length]` uint16: the token id; bit 15: the loss counts it in full; bit 14: not at all.
Rows hold one conversation each, from position 0, so every architecture can train on them.
"""

import multiprocessing as mp
import os
import random

import numpy as np

LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
FULL, NONE = 1 << 15, 1 << 14
# token budgets of conversations and their share of all tokens once the curriculum is complete
SPANS = ((30, 90, 0.10), (90, 260, 0.20), (260, 700, 0.20), (700, 1500, 0.14), (1500, 2700, 0.14), (2700, 4000, 0.22))
CHARS_PER_TOKEN = 3.0


def loss_bits(ids, marks):
    """FULL for what the assistant writes: its text and `<|im_end|>`. NONE for the empty think block,
    which the template writes: whether to think is the prompt's choice, never the model's."""
    im_start, im_end, assistant, think, end_think, two_newlines = marks
    bits = np.zeros(len(ids), dtype=np.uint16)
    ends = np.flatnonzero(ids == im_end)
    starts = np.flatnonzero((ids[:-1] == im_start) & (ids[1:] == assistant))
    for s in starts:
        end = ends[np.searchsorted(ends, s)] + 1
        first = s + 3
        if ids[first + 1] == two_newlines:
            bits[first : first + 4] = NONE
            first += 4
        bits[first:end] = FULL
    return bits


def marks_of(tok):
    ids = [tok.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>", "assistant", "<think>", "</think>")]
    newlines = tok.encode("\n\n").ids
    assert all(i is not None for i in ids) and len(newlines) == 1, "marks must be single tokens"
    return (*ids, newlines[0])


def draw_budget(r, progress):
    """Characters for one conversation; long ones come in as training goes on."""
    limit = 300 if progress < 0.04 else 800 if progress < 0.12 else 1600 if progress < 0.22 else 9999
    while True:
        x = r.random() * TOTAL
        for low, high, weight in WEIGHTS:
            if x < weight:
                break
            x -= weight
        if low < limit:
            return int(r.uniform(low, min(high, limit)) * CHARS_PER_TOKEN)


WEIGHTS = [(low, high, share / (low + high)) for low, high, share in SPANS]
TOTAL = sum(w for _, _, w in WEIGHTS)


def texts(r, progress, n):
    from render import render
    from talkgen.compose import conversation

    out = []
    for _ in range(n):
        thinking = r.random() < 0.13
        budget = draw_budget(r, progress)
        c = conversation(r, min(budget, 2500) if thinking else budget)
        tools = [t.schema for t in c.tools] if c.tools else None
        msgs = c.msgs
        if thinking:  # a thought stays only after the last question, so end on a random turn
            users = [i for i, m in enumerate(msgs) if m["role"] == "user"]
            cut = users[int(r.random() * len(users))]
            end = next((i for i in range(cut + 1, len(msgs)) if msgs[i]["role"] == "user"), len(msgs))
            msgs = msgs[:end]
        out.append(render(c.system, tools, msgs, thinking))
    return out


def worker(tokenizer_file, seed, rows_tokens, progress, queue):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(tokenizer_file)
    marks = marks_of(tok)
    r = random.Random(seed)
    waiting = {n: [] for n in LENGTHS}
    while True:
        for enc in tok.encode_batch_fast(texts(r, progress.value, 64)):
            ids = np.array(enc.ids, dtype=np.uint16)
            if len(ids) > LENGTHS[-1]:
                continue
            length = next(n for n in LENGTHS if len(ids) <= n)
            row = np.full(length, NONE, dtype=np.uint16)  # padding: any token, never a target
            row[: len(ids)] = ids | loss_bits(ids, marks)
            waiting[length].append(row)
            if len(waiting[length]) == max(1, rows_tokens // length):
                queue.put(np.stack(waiting[length]))
                waiting[length] = []


def start(tokenizer_file, n_workers, seed, rows_tokens, depth=96):
    """Returns the queue of batches and the shared progress value (0 to 1) that drives the curriculum."""
    ctx = mp.get_context("fork")
    progress, queue = ctx.Value("d", 0.0), ctx.Queue(depth)
    for i in range(n_workers):
        ctx.Process(target=worker, args=(str(tokenizer_file), seed * 1000 + i, rows_tokens, progress, queue), daemon=True).start()
    return queue, progress
