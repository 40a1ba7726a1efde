"""A training forward for `qwen3_5` text models: the modules' own weights, a fast gated delta.

    python hybrid.py     # compares it and its gradients with transformers, without a GPU

It takes whole rows that start at position 0, right-padded and causal, and keeps no cache. One
function per kind of layer, so that torch.compile sees each kind once.
"""

import torch
import torch.nn.functional as F

from delta import gated_delta


def rms(x, weight, eps, offset=1.0):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * (offset + weight.to(wide.dtype))


def unit(x, scale):
    """Length `scale` over the last axis; the epsilon stands under the sum, not the mean."""
    return x * (torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) * scale)


def linear_mixer(m, x):
    """`m` is a Qwen3_5GatedDeltaNet; x `[B, L, hidden]`."""
    batch, length, _ = x.shape
    u = F.pad(m.in_proj_qkv(x), (0, 0, m.conv_kernel_size - 1, 0))
    taps = [u[:, j : j + length] * m.conv1d.weight[:, 0, j] for j in range(m.conv_kernel_size)]
    wide = torch.promote_types(x.dtype, torch.float32)
    mixed = F.silu(sum(t.to(wide) for t in taps))
    q, k, v = mixed.split((m.key_dim, m.key_dim, m.value_dim), -1)
    q = unit(q.unflatten(-1, (-1, m.head_k_dim)), m.head_k_dim**-0.5).to(x.dtype)
    k = unit(k.unflatten(-1, (-1, m.head_k_dim)), 1.0).to(x.dtype)
    v = v.unflatten(-1, (-1, m.head_v_dim)).to(x.dtype)
    beta = m.in_proj_b(x).to(wide).sigmoid()
    step = F.softplus(m.in_proj_a(x).to(wide) + m.dt_bias.to(wide))
    y = gated_delta(q, k, v, -m.A_log.to(wide).exp() * step, beta)
    z = m.in_proj_z(x).unflatten(-1, (-1, m.head_v_dim)).to(wide)
    y = rms(y, m.norm.weight, m.norm.variance_epsilon, 0.0) * F.silu(z)
    return m.out_proj(y.to(x.dtype).flatten(2))


def rotate(x, cos, sin):
    """Half-split rotation of the first dims; x `[B, L, H, D]`, cos and sin `[L, dims / 2]`."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def full_mixer(m, x, cos, sin):
    """`m` is a Qwen3_5Attention."""
    heads = (-1, m.head_dim)
    q, gate = m.q_proj(x).unflatten(-1, (-1, 2 * m.head_dim)).chunk(2, -1)
    q = rotate(rms(q, m.q_norm.weight, m.q_norm.eps), cos, sin).to(x.dtype)
    k = m.k_proj(x).unflatten(-1, heads)
    k = rotate(rms(k, m.k_norm.weight, m.k_norm.eps), cos, sin).to(x.dtype)
    v = m.v_proj(x).unflatten(-1, heads)
    group = m.num_key_value_groups
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    return m.o_proj((y * gate.sigmoid()).flatten(2))


def feed_forward(layer, x):
    norm = layer.post_attention_layernorm
    h, m = rms(x, norm.weight, norm.eps).to(x.dtype), layer.mlp
    return x + m.down_proj(F.silu(m.gate_proj(h)) * m.up_proj(h))


def linear_layer(layer, x):
    norm = layer.input_layernorm
    h = rms(x, norm.weight, norm.eps).to(x.dtype)
    return feed_forward(layer, x + linear_mixer(layer.linear_attn, h))


def full_layer(layer, x, cos, sin):
    norm = layer.input_layernorm
    h = rms(x, norm.weight, norm.eps).to(x.dtype)
    return feed_forward(layer, x + full_mixer(layer.self_attn, h, cos, sin))


class Forward:
    """Hidden states after the last norm, as the model's own forward gives them."""

    def __init__(self, model, compile=False):
        self.model = model.model
        self.linear, self.full = linear_layer, full_layer
        if compile:
            self.linear = torch.compile(linear_layer, dynamic=True)
            self.full = torch.compile(full_layer, dynamic=True)

    def __call__(self, ids):
        model = self.model
        x = model.embed_tokens(ids)
        wide = torch.promote_types(x.dtype, torch.float32)
        position = torch.arange(ids.shape[1], device=ids.device, dtype=wide)
        angle = position[:, None] * model.rotary_emb.inv_freq.to(wide)
        cos, sin = angle.cos(), angle.sin()
        for layer in model.layers:
            if layer.block_type == "linear_attention":
                x = self.linear(layer, x)
            else:
                x = self.full(layer, x, cos, sin)
        return rms(x, model.norm.weight, model.norm.eps).to(x.dtype)


@torch.no_grad()
def initialise(model):
    """Memory from one to about a thousand tokens in every layer; transformers' start forgets at
    once. Convolutions start as PyTorch's own do."""
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            m = layer.linear_attn
            m.A_log.uniform_(1.0, 16.0).log_()
            step = torch.empty_like(m.dt_bias).uniform_(-6.9, -2.3).exp()  # 0.001 to 0.1
            m.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
            m.conv1d.weight.uniform_(-0.5, 0.5)


def check():
    """Raises if result or gradients differ from transformers' on a small random model."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(3)
    config = Qwen3_5TextConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=4,
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, linear_num_key_heads=2,
        linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=24,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.25})
    model = Qwen3_5ForCausalLM._from_config(config, attn_implementation="sdpa")
    initialise(model)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data.uniform_(-0.3, 0.3)
    ids = torch.randint(0, 97, (3, 70))
    results = []
    for f in (lambda: model.model(input_ids=ids, use_cache=False).last_hidden_state, lambda: Forward(model)(ids)):
        model.zero_grad()
        hidden = f()
        (hidden * torch.linspace(-1, 2, hidden.numel()).view_as(hidden)).sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append({"hidden": hidden.detach(), **grads})
    worst = 0.0
    for name, want in results[0].items():
        error = ((results[1][name] - want).norm() / want.norm()).item()
        worst = max(worst, error)
        if not error < 1e-4:
            raise AssertionError(f"{name} differs by {error}")
    print(f"training forward against transformers: relative error {worst:.1e}", flush=True)


if __name__ == "__main__":
    check()
