"""Mistakes made on purpose on a filled transformers model, so that a golden can prove it would
notice them. Each function changes the model in place; one that must change a module of the library
returns a function that takes the change back.
"""

import sys

import torch
import torch.nn.functional as F


def text(model):
    """The stack of decoder layers, also inside a wrapper."""
    return getattr(model.model, "language_model", model.model)


def modules(model, name, ends=False):
    """The submodules of this (last part of the) attribute name."""
    for path, module in model.named_modules():
        leaf = path.rpartition(".")[2]
        if leaf == name or ends and leaf.endswith(name):
            yield module


def library(model):
    """The module of transformers in which the model's classes are defined."""
    return sys.modules[type(model).__module__]


def replace(module, name, function):
    """Puts `function` in place of a module's function; returns the way back."""
    plain = getattr(module, name)
    setattr(module, name, function(plain))
    return lambda: setattr(module, name, plain)


# Head and dense layers.

def tie(model):
    model.lm_head.weight = text(model).embed_tokens.weight


def drop_biases(model, part=""):
    for name, parameter in text(model).layers.named_parameters():
        if name.endswith(".bias") and part in name:
            parameter.data.zero_()


def drop_norms(model, name):
    for holder in list(text(model).modules()):
        if name in dict(holder.named_children()):
            setattr(holder, name, torch.nn.Identity())


def norm_after_rope(model):
    """The head norms applied to rotated q and k (weights do not commute with the rotation)."""
    pairs = []
    for layer in model.model.layers:
        pairs.append((layer.self_attn.q_norm, layer.self_attn.k_norm))
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
    norms = iter(pairs)

    def late(plain):
        def rope(q, k, cos, sin):
            q, k = plain(q, k, cos, sin)
            q_norm, k_norm = next(norms)
            return q_norm(q), k_norm(k)
        return rope

    return replace(library(model), "apply_rotary_pos_emb", late)


def shift_norms(model, by):
    """1 + w read as w (by = -1), or 1 added once more."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.weight.data += by


# Attention.

def split_gate_by_tensor(model):
    """q_proj read as [all queries | all gates]."""
    for layer in modules(model, "self_attn"):
        weight = layer.q_proj.weight.data
        n, width = weight.shape[0] // (2 * layer.head_dim), weight.shape[1]
        halves = weight.view(2, n, layer.head_dim, width).transpose(0, 1)
        layer.q_proj.weight.data = halves.reshape(weight.shape).contiguous()


def drop_gate(model):
    """Attention without the sigmoid gate: a gate of one half, doubled."""
    for layer in modules(model, "self_attn"):
        weight = layer.q_proj.weight.data
        weight.view(-1, 2, layer.head_dim, weight.shape[1])[:, 1] = 0.0
        layer.o_proj.weight.data *= 2.0


def drop_sinks(model):
    for layer in modules(model, "self_attn"):
        layer.sinks.data.fill_(-1e9)


def scale_by(model, width):
    """The softmax scale width^-½ and nothing more."""
    for layer in modules(model, "self_attn"):
        layer.scaling = width**-0.5


def latent_eps(model):
    """rms_norm_eps in the latent norms."""
    for name in ("q_a_layernorm", "kv_a_layernorm"):
        for norm in modules(model, name):
            norm.variance_epsilon = model.config.rms_norm_eps


def split_latent_by_tensor(model):
    """kv_b_proj read as [all keys | all values]."""
    for layer in modules(model, "self_attn"):
        weight = layer.kv_b_proj.weight.data
        n_keys = layer.num_heads * layer.qk_nope_head_dim
        keys = weight[:n_keys].view(layer.num_heads, -1, weight.shape[1])
        values = weight[n_keys:].view(layer.num_heads, -1, weight.shape[1])
        layer.kv_b_proj.weight.data = torch.cat([keys, values], 1).reshape(weight.shape)


def split_query_first_rope(model):
    """The query's rotated part taken first."""
    for layer in modules(model, "self_attn"):
        weight = layer.q_b_proj.weight.data
        heads = weight.view(layer.num_heads, layer.qk_head_dim, -1)
        layer.q_b_proj.weight.data = heads.roll(-layer.qk_rope_head_dim, 1).reshape(weight.shape)


# Experts.

def swap_gate_and_up(model):
    for experts in modules(model, "experts"):
        gate, up = experts.gate_up_proj.data.chunk(2, 1)
        experts.gate_up_proj.data = torch.cat([up, gate], 1)


def even_odd_gate_and_up(model):
    """Halves read as even and odd rows."""
    for experts in modules(model, "experts"):
        rows = experts.gate_up_proj.data
        experts.gate_up_proj.data = torch.cat([rows[:, ::2], rows[:, 1::2]], 1)


def halved_gate_and_up(model):
    """Even and odd columns read as halves."""
    for experts in modules(model, "experts"):
        for parameter in (experts.gate_up_proj, experts.gate_up_proj_bias):
            gate, up = parameter.data.chunk(2, -1)
            parameter.data = torch.stack([gate, up], -1).reshape(parameter.shape)


def drop_shared(model):
    for shared in modules(model, "shared_experts"):
        shared.down_proj.weight.data.zero_()
    for shared in modules(model, "shared_expert"):
        shared.down_proj.weight.data.zero_()


def drop_shared_gate(model):
    """The shared expert without its sigmoid gate: a gate of one half, doubled."""
    for gate in modules(model, "shared_expert_gate"):
        gate.weight.data.zero_()
    for shared in modules(model, "shared_expert"):
        shared.down_proj.weight.data *= 2.0


def drop_expert_biases(model):
    for experts in modules(model, "experts"):
        experts.gate_up_proj_bias.data.zero_()
        experts.down_proj_bias.data.zero_()


def expert_activation(model, low_clamp=False, plus_one=True, alpha=None):
    """gpt_oss's activation with another detail."""
    for experts in modules(model, "experts"):
        def apply_gate(gate_up, experts=experts):
            gate, up = gate_up[..., ::2], gate_up[..., 1::2]
            gate = gate.clamp(min=-experts.limit if low_clamp else None, max=experts.limit)
            up = up.clamp(min=-experts.limit, max=experts.limit)
            return (up + plus_one) * gate * torch.sigmoid(gate * (alpha or experts.alpha))
        experts._apply_gate = apply_gate


def softmax_over_all(model):
    """gpt_oss's router with the softmax before the choice."""
    for router in modules(model, "router"):
        def forward(x, router=router):
            logits = F.linear(x, router.weight, router.bias)
            values, indices = torch.topk(logits.softmax(-1), router.top_k)
            return logits, values, indices
        router.forward = forward


def softmax_over_chosen(model):
    """Qwen's router with the softmax after the choice."""
    for router in modules(model, "gate"):
        def forward(x, router=router):
            logits = F.linear(x.reshape(-1, x.shape[-1]), router.weight)
            values, indices = torch.topk(logits, router.top_k)
            return logits, values.softmax(-1), indices
        router.forward = forward


def sigmoid_router(model, weights_biased=False, choice_biased=True, best=2, others=float("-inf"),
                   score=torch.sigmoid):
    """GLM's router with another detail."""
    for router in modules(model, "gate"):
        def forward(x, router=router):
            logits = F.linear(x.reshape(-1, x.shape[-1]), router.weight)
            plain = score(logits)
            biased = plain + router.e_score_correction_bias
            choice = biased if choice_biased else plain
            groups = choice.view(len(choice), router.num_group, -1)
            chosen = groups.topk(best, -1).values.sum(-1).topk(router.topk_group, -1).indices
            keep = torch.zeros_like(groups[..., 0]).scatter(1, chosen, 1.0).bool()[..., None]
            choice = groups.masked_fill(~keep, others).reshape(choice.shape)
            indices = choice.topk(router.top_k, -1).indices
            weights = (biased if weights_biased else plain).gather(1, indices)
            if router.norm_topk_prob:
                weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
            return logits, weights * router.routed_scaling_factor, indices
        router.forward = forward


# Gated delta rule.

def zero(model, name):
    """Parameters of this name set to zero."""
    for path, parameter in model.named_parameters():
        if path.endswith(name):
            parameter.data.zero_()


def ungrouped_projections(model):
    """qwen3_next's grouped rows read as [all q | all k | all v | all z] and [all b | all a]."""
    for layer in modules(model, "linear_attn"):
        def split(qkvz, ba, layer=layer):
            n_k, n_v = layer.key_dim, layer.value_dim
            parts = torch.split(qkvz, [n_k, n_k, n_v, n_v], -1)
            widths = [layer.head_k_dim] * 2 + [layer.head_v_dim] * 2
            heads = [p.reshape(*p.shape[:2], -1, w) for p, w in zip(parts, widths)]
            return *heads, *ba.chunk(2, -1)
        layer.fix_query_key_value_ordering = split


def grouped_projections(model):
    """qwen3_5's plain rows read as grouped by key head."""
    for layer in modules(model, "linear_attn"):
        weight = layer.in_proj_qkv.weight.data
        groups = weight.view(layer.num_k_heads, -1, weight.shape[1])
        n_v = layer.value_dim // layer.num_k_heads
        parts = torch.split(groups, [layer.head_k_dim, layer.head_k_dim, n_v], 1)
        layer.in_proj_qkv.weight.data = torch.cat([p.reshape(-1, weight.shape[1]) for p in parts])


def swap_b_and_a(model):
    for layer in modules(model, "linear_attn"):
        layer.in_proj_b, layer.in_proj_a = layer.in_proj_a, layer.in_proj_b


def tiled_key_heads(model):
    """Value head h reads key head h mod Hk instead of h // (Hv/Hk)."""
    def tiled(plain):
        def rule(query, key, value, **others):
            n = value.shape[2] // key.shape[2]
            return plain(query.repeat(1, 1, n, 1), key.repeat(1, 1, n, 1), value, **others)
        return rule
    return replace(library(model), "torch_chunk_gated_delta_rule", tiled)


def eps_on_mean(model):
    """The l2 norm's epsilon added to the mean of squares."""
    def norm(_plain):
        return lambda x, dim=-1, eps=1e-6: x * torch.rsqrt(
            (x * x).sum(dim=dim, keepdim=True) + eps * x.shape[dim])
    return replace(library(model), "l2norm", norm)


def reversed_taps(model):
    for conv in modules(model, "conv1d"):
        conv.weight.data = conv.weight.data.flip(-1)


def conv_without_silu(model):
    for layer in modules(model, "linear_attn"):
        layer.activation = None


def gated_norm(model, plus=0.0, gate_first=False, gate=F.silu):
    """The norm after the delta rule with another detail."""
    for layer in modules(model, "linear_attn"):
        def forward(x, z, norm=layer.norm):
            x = x * gate(z) if gate_first else x
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
            x = x * (norm.weight + plus)
            return x if gate_first else x * gate(z)
        layer.norm.forward = forward


def half_width_rope(model, traditional=False):
    """Partial rotation at the end of each head, or in pairs (2i, 2i + 1)."""
    def wrong(plain):
        def rope(q, k, cos, sin, *others, **named):
            n = cos.shape[-1]
            if not traditional:
                turned = plain(q.flip(-1), k.flip(-1), cos, sin, *others, **named)
                return tuple(x.flip(-1) for x in turned)
            order = torch.arange(n).view(-1, 2).t().reshape(-1)
            back = torch.argsort(order)
            pick = lambda x, o: torch.cat([x[..., :n][..., o], x[..., n:]], -1)  # noqa: E731
            turned = plain(pick(q, order), pick(k, order), cos, sin, *others, **named)
            return tuple(pick(x, back) for x in turned)
        return rope
    return replace(library(model), "apply_rotary_pos_emb", wrong)


# Gemma.

def drop_embedding_scale(model):
    text(model).embed_tokens.embed_scale.fill_(1.0)


MISTAKES = {
    "tie": tie,
    "no_bias": drop_biases,
    "no_o_bias": lambda m: drop_biases(m, "o_proj."),
    "no_mlp_bias": lambda m: drop_biases(m, "mlp."),
    "no_router_bias": lambda m: drop_biases(m, "router."),
    "no_latent_bias": lambda m: drop_biases(m, "_a_proj"),
    "no_q_norm": lambda m: drop_norms(m, "q_norm"),
    "no_k_norm": lambda m: drop_norms(m, "k_norm"),
    "no_post_attention_norm": lambda m: drop_norms(m, "post_attention_layernorm"),
    "no_post_feedforward_norm": lambda m: drop_norms(m, "post_feedforward_layernorm"),
    "qk_norm_after_rope": norm_after_rope,
    "norms_without_one": lambda m: shift_norms(m, -1.0),
    "norms_with_two": lambda m: shift_norms(m, 1.0),
    "gate_by_tensor": split_gate_by_tensor,
    "no_gate": drop_gate,
    "no_sinks": drop_sinks,
    "nope_scale": lambda m: scale_by(m, m.config.qk_nope_head_dim),
    "plain_scale": lambda m: scale_by(m, m.config.qk_head_dim),
    "head_dim_scale": lambda m: scale_by(m, m.config.get_text_config().head_dim),
    "latent_eps": latent_eps,
    "latent_by_tensor": split_latent_by_tensor,
    "query_rope_first": split_query_first_rope,
    "gate_up_swapped": swap_gate_and_up,
    "gate_up_even_odd": even_odd_gate_and_up,
    "gate_up_halves": halved_gate_and_up,
    "no_shared": drop_shared,
    "no_shared_gate": drop_shared_gate,
    "no_expert_bias": drop_expert_biases,
    "gate_clamped_below": lambda m: expert_activation(m, low_clamp=True),
    "no_plus_one": lambda m: expert_activation(m, plus_one=False),
    "alpha_one": lambda m: expert_activation(m, alpha=1.0),
    "softmax_over_all": softmax_over_all,
    "softmax_over_chosen": softmax_over_chosen,
    "biased_weights": lambda m: sigmoid_router(m, weights_biased=True),
    "unbiased_choice": lambda m: sigmoid_router(m, choice_biased=False),
    "softmax_scores": lambda m: sigmoid_router(m, score=lambda x: x.softmax(-1)),
    "best_of_group": lambda m: sigmoid_router(m, best=1),
    "other_groups_zero": lambda m: sigmoid_router(m, others=0.0),
    "no_dt_bias": lambda m: zero(m, "dt_bias"),
    "no_a_log": lambda m: zero(m, "A_log"),
    "ungrouped": ungrouped_projections,
    "grouped": grouped_projections,
    "b_a_swapped": swap_b_and_a,
    "tiled_key_heads": tiled_key_heads,
    "eps_on_mean": eps_on_mean,
    "reversed_taps": reversed_taps,
    "conv_without_silu": conv_without_silu,
    "gated_norm_plus_one": lambda m: gated_norm(m, plus=1.0),
    "gate_before_norm": lambda m: gated_norm(m, gate_first=True),
    "sigmoid_in_gated_norm": lambda m: gated_norm(m, gate=torch.sigmoid),
    "rope_at_the_end": half_width_rope,
    "rope_in_pairs": lambda m: half_width_rope(m, traditional=True),
    "no_embedding_scale": drop_embedding_scale,
}


@torch.no_grad()
def make(model, name):
    """Makes the mistake; returns the function that takes back what it changed outside the model."""
    return MISTAKES[name](model) or (lambda: None)
