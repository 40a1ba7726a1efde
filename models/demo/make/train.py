"""Trains the demo model for a given time on conversations written while it trains.

    python train.py --config configs/qwen3_5.json --files .. --out OUT --minutes 9
    torchrun --nproc-per-node 2 train.py ...      # the same on two GPUs

The architecture is whatever `--config` names; rows are padded, plainly causal and start at position 0,
so dense and recurrent models train alike. Loss: 1 on assistant turns, `--other` on everything else.
"""

import argparse
import json
import os
import queue as queues
import random
import shutil
import time
from pathlib import Path

BEGIN = time.time()

import torch  # noqa: E402: the time of the imports counts
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import delta  # noqa: E402
import hybrid  # noqa: E402
from muon import optimizers  # noqa: E402

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def options():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--files", type=Path, required=True, help="folder with tokenizer and chat template")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--init", type=Path, help="continue from this model instead of random weights")
    p.add_argument("--minutes", type=float, default=5, help="from the start of the program")
    p.add_argument("--save-minutes", type=float, default=2, help="between checkpoints")
    p.add_argument("--workers", type=int, default=11, help="writer processes per GPU")
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
    kind = dict(dtype=torch.float32, attn_implementation="sdpa")
    if args.init:  # its own config leads
        model = AutoModelForCausalLM.from_pretrained(args.init, **kind)
    else:
        model = AutoModelForCausalLM.from_config(config, **kind)
        if config.model_type == "qwen3_5_text":
            hybrid.initialise(model)
    model.config.use_cache = False
    return model.to(device).train()


def forward_of(model, compile):
    """From token ids to hidden states; a form of our own where transformers' is slow."""
    if model.config.model_type == "qwen3_5_text":
        return hybrid.Forward(model, compile)
    if compile:
        for layer in model.model.layers:
            layer.compile(dynamic=True)
    return lambda ids: model.model(input_ids=ids, use_cache=False).last_hidden_state


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
        if WORLD > 1:
            flat = torch.cat([m.grad.flatten() for m in self.copies])
            dist.all_reduce(flat)
            for m, part in zip(self.copies, flat.split([m.numel() for m in self.copies])):
                m.grad.copy_(part.view_as(m))
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
        self.r = random.Random(RANK)

    def next(self):
        try:
            rows = self.queue.get(block=len(self.seen) < 32)
        except queues.Empty:
            self.again += 1
            return self.r.choice(self.seen)
        self.fresh += 1
        rows = torch.from_numpy(rows.view("int16"))
        rows = rows.to(torch.int32) & 0xFFFF
        if self.device != "cpu":
            rows = rows.pin_memory().to(self.device, non_blocking=True)
        self.seen.append(rows)
        if len(self.seen) > 600:
            self.seen.pop(self.r.randrange(len(self.seen)))
        return rows


def save(model, masters, args, lines):
    """Writes the weights rounded to bf16, the files beside them and the log."""
    from transformers import AutoModelForCausalLM

    out = args.out
    out.mkdir(parents=True, exist_ok=True)
    tok = json.loads((args.files / "tokenizer.json").read_text())
    ids = {t["content"]: t["id"] for t in tok["added_tokens"]}
    copy = AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16)
    copy.load_state_dict({n: m.detach() for n, m in masters.named}, strict=False)
    copy.tie_weights()
    copy.config.use_cache, copy.config.dtype, copy.config.bos_token_id = True, torch.bfloat16, None
    copy.config.eos_token_id, copy.config.pad_token_id = ids["<|im_end|>"], ids["<|endoftext|>"]
    g = copy.generation_config
    g.bos_token_id, g.pad_token_id = None, ids["<|endoftext|>"]
    g.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    g.do_sample, g.temperature, g.top_p, g.top_k = True, 0.6, 0.9, 20
    copy.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (args.files / name).resolve() != (out / name).resolve():
            shutil.copy(args.files / name, out / name)
    (out / "train_log.jsonl").write_text("\n".join(json.dumps(x) for x in lines) + "\n")


def together(value, device):
    """Rank 0's number, on every rank; through the processor, so that no GPU waits."""
    if WORLD == 1:
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0, group=together.group)
    return box.item()


def start_up():
    """The device of this rank. Kernels that are wrong on it end the run before it costs anything."""
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}"
        torch.cuda.set_device(device)
    if WORLD > 1:
        dist.init_process_group("gloo" if device == "cpu" else "nccl")
        together.group = dist.new_group(backend="gloo")
    if device != "cpu":
        delta.check(device)
    return device


def step_once(forward, model, masters, batches, args, loss_fn):
    """Gradients of one step into the masters; returns its loss and number of tokens."""
    micro = [unpack(batches.next(), args.other) for _ in range(args.accumulate)]
    total = sum(m[2].sum() for m in micro)
    if WORLD > 1:
        dist.all_reduce(total)
    step_loss, tokens = 0.0, 0
    for ids, targets, weights in micro:
        loss = loss_fn(forward(ids), model.lm_head.weight, targets, weights) / total
        loss.backward()
        step_loss = step_loss + loss.detach()
        tokens += ids.numel()
    masters.take_gradients()
    return step_loss, tokens


def train(args, device, queue, progress):
    model = build(args, device)
    masters = Masters(model)
    opts = optimizers(masters.named, args.lr_muon, args.lr_adam)
    base = [[g["lr"] for g in o.param_groups] for o in opts]
    compile = device != "cpu" and not args.no_compile
    forward = forward_of(model, compile)
    loss_fn = torch.compile(head_loss, dynamic=True) if compile else head_loss
    batches = Batches(queue, device)
    step, tokens, lines, saved = 0, 0, [], 0.0
    if RANK == 0:
        print(f"{sum(p.numel() for p in model.parameters())} parameters, {WORLD} x {device}", flush=True)
    while True:
        share = together((time.time() - BEGIN) / (60 * args.minutes), device)
        if share >= 1:
            break
        progress.value = args.from_progress + (args.to_progress - args.from_progress) * share
        factor = min(1.0, (step + 1) / 60, (1 - share) / args.decay)
        for o, rates in zip(opts, base):
            for g, lr in zip(o.param_groups, rates):
                g["lr"] = lr * factor
        loss, n = step_once(forward, model, masters, batches, args, loss_fn)
        for o in opts:
            o.step()
        masters.give_weights()
        step, tokens = step + 1, tokens + n * WORLD
        if step % 25 == 0 or step < 4:
            if WORLD > 1:
                dist.all_reduce(loss)
            seconds = time.time() - BEGIN
            lines.append(dict(step=step, seconds=round(seconds, 1), tokens=tokens, loss=round(loss.item(), 4),
                              fresh=batches.fresh, again=batches.again, lr=round(factor, 3)))
            if RANK == 0 and (step % 100 == 0 or step < 4):
                print(json.dumps(lines[-1]), flush=True)
            if RANK == 0 and seconds - saved > 60 * args.save_minutes:
                save(model, masters, args, lines)
                saved = time.time() - BEGIN
    if RANK == 0:
        save(model, masters, args, lines)
        print(f"saved after {step} steps, {tokens / 1e6:.0f} M tokens, {batches.again} batches seen again", flush=True)


def main():
    args = options()
    # the writers fork before a GPU is touched
    queue, progress = data.start(args.files / "tokenizer.json", args.workers, args.seed + 50 * RANK, args.rows_tokens)
    progress.value = args.from_progress
    torch.set_float32_matmul_precision("high")
    train(args, start_up(), queue, progress)
    if WORLD > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
