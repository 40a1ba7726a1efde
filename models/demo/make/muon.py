"""Muon for the matrices inside the layers (momentum, orthogonalised), AdamW for everything else."""

import torch


def orthogonalise(g, steps=5):
    """Newton-Schulz iteration toward the nearest semi-orthogonal matrices; `g` [n, rows, cols]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Parameters of one shape are stacked, so a step is a few batched products."""

    def __init__(self, params, lr=0.02, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                grads = [p.grad for p in params]
                bufs = [self.state[p].setdefault("m", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(bufs, grads, 1 - group["momentum"])
                mixed = torch._foreach_lerp(grads, bufs, group["momentum"])
                updates = orthogonalise(torch.stack(mixed)).float()
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, list(updates.unbind()), alpha=-scale)


def optimizers(named, lr_muon, lr_adam):
    """`named` holds (name, parameter) pairs; the tied embedding counts as everything else."""
    inner = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    ids = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in ids]
    adam = torch.optim.AdamW(rest, lr=lr_adam, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0,
                             fused=rest[0].is_cuda)
    return [Muon(inner, lr=lr_muon), adam]
