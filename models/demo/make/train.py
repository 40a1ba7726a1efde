"""Trains the demo model for a given time on conversations written while it trains.

    python train.py --config configs/qwen3.json --files .. --out OUT --minutes 9

The architecture is whatever `--config` names; rows are padded, plainly causal and start at position 0,
so dense and recurrent models train alike. Loss: 1 on assistant turns, `--other` on everything else.
"""

import argparse
import json
import queue as queues
import random
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from muon import optimizers


def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--files", type=Path, required=True, help="folder with tokenizer and chat template")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--init", type=Path, help="continue from this model instead of random weights")
    p.add_argument("--minutes", type=float, default=5)
    p.add_argument("--workers", type=int, default=11)
    p.add_argument("--rows-tokens", type=int, default=98304, help="tokens in one micro-batch")
    p.add_argument("--accumulate", type=int, default=2)
    p.add_argument("--lr-muon", type=float, default=0.02)
    p.add_argument("--lr-adam", type=float, default=0.003)
    p.add_argument("--decay", type=float, default=0.45, help="last share of the time, falling to zero")
    p.add_argument("--other", type=float, default=0.05, help="loss weight outside assistant turns")
    p.add_argument("--from-progress", type=float, default=0.0, help="where the curriculum starts")
    p.add_argument("--to-progress", type=float, default=1.0, help="where it ends: 0.2 keeps below 1600 tokens")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--no-compile", action="store_true")
    return p.parse_args()


def build(args, device):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(args.seed)
    config = AutoConfig.for_model(**json.loads(args.config.read_text()))
    if args.init:  # its own config leads
        model = AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.float32, attn_implementation="sdpa")
    else:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    return model.to(device).train()


class Masters:
    """f32 copies that the optimizers change; the model itself computes in bf16, as it will be used."""

    def __init__(self, model):
        self.params = list(model.parameters())
        self.named = [(n, torch.nn.Parameter(p.detach().float().clone())) for n, p in model.named_parameters()]
        self.copies = [m for _, m in self.named]
        if self.params[0].is_cuda:  # most processors are slower in bf16
            model.to(torch.bfloat16)

    def take_gradients(self):
        for m, p in zip(self.copies, self.params):
            m.grad = p.grad.float()
            p.grad = None
        torch.nn.utils.clip_grad_norm_(self.copies, 1.0)

    @torch.no_grad()
    def give_weights(self):
        torch._foreach_copy_(self.params, self.copies)


def head_loss(hidden, weight, targets, weights):
    logits = (hidden @ weight.T).float()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (loss * weights.flatten()).sum()


def unpack(rows, other):
    """`[rows, length]` uint16 → inputs, targets and loss weights (padding weighs nothing)."""
    ids = (rows & (data.NONE - 1)).long()
    weights = torch.where(rows >= data.FULL, 1.0, other) * (rows & data.NONE == 0)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights[:, 1:].contiguous()


class Batches:
    """Fresh batches, or seen ones at random while the writers lag behind."""

    def __init__(self, queue, device):
        self.queue, self.device = queue, device
        self.seen, self.fresh, self.again = [], 0, 0
        self.r = random.Random(0)

    def next(self):
        try:
            rows = self.queue.get(block=len(self.seen) < 32)
        except queues.Empty:
            self.again += 1
            return self.r.choice(self.seen)
        self.fresh += 1
        rows = torch.from_numpy(rows.view("int16"))
        rows = rows.to(torch.int32) & 0xFFFF
        rows = rows.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else rows
        self.seen.append(rows)
        if len(self.seen) > 600:
            self.seen.pop(self.r.randrange(len(self.seen)))
        return rows


def save(model, args):
    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True
    model.config.bos_token_id = None
    tok = json.loads((args.files / "tokenizer.json").read_text())
    ids = {t["content"]: t["id"] for t in tok["added_tokens"]}
    model.config.eos_token_id, model.config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    g = model.generation_config
    g.bos_token_id, g.eos_token_id, g.pad_token_id = None, [ids["<|im_end|>"], ids["<|endoftext|>"]], ids["<|endoftext|>"]
    g.do_sample, g.temperature, g.top_p, g.top_k = True, 0.6, 0.9, 20
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (args.files / name).resolve() != (out / name).resolve():
            shutil.copy(args.files / name, out / name)


def main():
    args = options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    queue, progress = data.start(args.files / "tokenizer.json", args.workers, args.seed, args.rows_tokens)
    progress.value = args.from_progress
    torch.set_float32_matmul_precision("high")
    model = build(args, device)
    n_params = sum(p.numel() for p in model.parameters())
    masters = Masters(model)
    opts = optimizers(masters.named, args.lr_muon, args.lr_adam)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    loss_fn = head_loss
    if device == "cuda" and not args.no_compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
        loss_fn = torch.compile(head_loss, dynamic=True)
    batches, log = Batches(queue, device), []
    start, step, tokens, mean, lines = time.time(), 0, 0, None, []
    print(f"{n_params} parameters, {device}", flush=True)
    while True:
        share = (time.time() - start) / (60 * args.minutes)
        if share >= 1:
            break
        progress.value = args.from_progress + (args.to_progress - args.from_progress) * share
        factor = min(1.0, (step + 1) / 60, (1 - share) / args.decay)
        for o, rates in zip(opts, base):
            for g, lr in zip(o.param_groups, rates):
                g["lr"] = lr * factor
        micro = [unpack(batches.next(), args.other) for _ in range(args.accumulate)]
        total = sum(m[2].sum() for m in micro)
        step_loss = 0.0
        for ids, targets, weights in micro:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            loss = loss_fn(hidden, model.lm_head.weight, targets, weights) / total
            loss.backward()
            step_loss = step_loss + loss.detach()
            tokens += ids.numel()
        masters.take_gradients()
        for o in opts:
            o.step()
        masters.give_weights()
        step += 1
        if step % 25 == 0 or step < 4:
            seconds = time.time() - start
            value = step_loss.item()
            line = dict(step=step, seconds=round(seconds, 1), tokens=tokens, loss=round(value, 4), fresh=batches.fresh, again=batches.again, lr=round(factor, 3))
            lines.append(line)
            if step % 100 == 0 or step < 4:
                print(json.dumps(line), flush=True)
    save(model, args)
    (args.out / "train_log.jsonl").write_text("\n".join(json.dumps(x) for x in lines) + "\n")
    print(f"saved after {step} steps, {tokens / 1e6:.0f} M tokens, {batches.again} batches seen again", flush=True)


if __name__ == "__main__":
    main()
