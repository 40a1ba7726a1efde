"""The table of float golden cases: what each one is for, and the mistakes it must notice.

A further family is one entry in `FAMILIES` and its rows in `CASES`; those with experts are in
cases_experts.py, those with a gated delta rule in cases_hybrid.py. Sizes are pairwise different
wherever the family allows it, so that a swapped axis cannot pass.
"""

import cases_experts
import cases_hybrid
from case import LONG, PLAIN, PLAIN100, Case, Family, rope, yarn

# Base sizes. vocab, hidden, heads*head_dim, intermediate and kv*head_dim all differ; qwen2 has
# no head_dim of its own, so there heads*head_dim == hidden.
BASE = dict(num_hidden_layers=3, vocab_size=89, hidden_size=48, intermediate_size=104,
            num_attention_heads=6, num_key_value_heads=2, head_dim=14,
            max_position_embeddings=512, rms_norm_eps=1e-5)
QWEN2 = {k: v for k, v in BASE.items() if k != "head_dim"} | dict(hidden_size=60)
# heads*head_dim 88, kv*head_dim 44; query_pre_attn_scalar is not head_dim.
GEMMA3 = dict(num_hidden_layers=5, vocab_size=79, hidden_size=56, intermediate_size=104,
              num_attention_heads=4, num_key_value_heads=2, head_dim=22, sliding_window=7,
              sliding_window_pattern=3, query_pre_attn_scalar=10, max_position_embeddings=512,
              rms_norm_eps=1e-5)
GEMMA3_VISION = {
    "vision_tower.vision_model.embeddings.patch_embedding.weight": [16, 3, 14, 14],
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight": [16, 16],
    "vision_tower.vision_model.post_layernorm.bias": [16],
    "multi_modal_projector.mm_input_projection_weight": [16, 56],
    "multi_modal_projector.mm_soft_emb_norm.weight": [16]}
FAMILIES = {
    "llama": Family("Llama", BASE),
    "mistral": Family("Mistral", BASE | dict(vocab_size=83, intermediate_size=92)),
    "qwen2": Family("Qwen2", QWEN2 | dict(vocab_size=97)),
    "qwen3": Family("Qwen3", BASE | dict(vocab_size=79, hidden_size=54)),
    "gemma3_text": Family("Gemma3", GEMMA3, norm_centre=0, text=True),
} | cases_experts.FAMILIES | cases_hybrid.FAMILIES



def two_ropes(full, sliding=100.0, kind="default", **keys):
    """Gemma's: `full` is the base of the global layers, `kind` and `keys` their scaling."""
    inner = rope(kind, full, **keys)["rope_parameters"]
    return dict(rope_parameters=dict(
        full_attention=inner, sliding_attention=rope("default", sliding)["rope_parameters"]))


GEMMA3_CASES = [
    Case("gemma3_text", "default",
         "norms add 1 and stand on both sides; scaled embedding; window on two layers of three, "
         "with a base of their own; tied head by default",
         two_ropes(1000.0), batch=True, at_least=0.02, wrong={
             "norms read as w, not 1 + w": "norms_without_one", "1 added twice": "norms_with_two",
             "embedding not scaled": "no_embedding_scale",
             "norm after attention dropped": "no_post_attention_norm",
             "norm after mlp dropped": "no_post_feedforward_norm", "q_norm dropped": "no_q_norm",
             "k_norm dropped": "no_k_norm", "head_dim^-0.5": "head_dim_scale",
             "local base on all layers": two_ropes(100.0), "global base on all layers":
             two_ropes(1000.0, 1000.0), "window 8": dict(sliding_window=8),
             "window 6": dict(sliding_window=6), "no window": dict(sliding_window=512),
             "silu": dict(hidden_activation="silu"),
             "every second layer full": dict(layer_types=[
                 "sliding_attention", "full_attention"] * 2 + ["sliding_attention"])}),
    Case("gemma3_text", "v4_spelling",
         "rope_theta, rope_local_base_freq and sliding_window_pattern at the top; positions of "
         "global layers divided by the factor, those of local ones not",
         two_ropes(500.0, 50.0, "linear", factor=4.0), spelling="v4", wrong={
             "scaling ignored": two_ropes(500.0, 50.0), "local layers scaled too": dict(
                 rope_parameters=dict(full_attention=rope("linear", 500.0, factor=4.0)[
                     "rope_parameters"], sliding_attention=rope("linear", 50.0, factor=4.0)[
                     "rope_parameters"])),
             "local base missed": two_ropes(500.0, 10000.0, "linear", factor=4.0)}),
    Case("gemma3_text", "fields_missing",
         "no rope (1e6 and 1e4), layer_types and pattern (every 6th is full), window (4096, beyond "
         "this sequence), head_dim and query_pre_attn_scalar (256), rms_norm_eps (1e-6), tie "
         "(tied)",
         dict(num_hidden_layers=7, sliding_window_pattern=6, head_dim=256, sliding_window=4096,
              query_pre_attn_scalar=256, rms_norm_eps=1e-6),
         drop=("rope_parameters", "layer_types", "_sliding_window_pattern", "sliding_window",
               "head_dim", "query_pre_attn_scalar", "rms_norm_eps", "tie_word_embeddings",
               "attention_bias", "final_logit_softcapping", "attn_logit_softcapping",
               "hidden_activation", "use_bidirectional_attention"),
         wrong={"window 16": dict(sliding_window=16)},
         floors={"rope_theta x 10": 0.02}),
    Case("gemma3_text", "softcapping_untied",
         "final_logit_softcapping; a head of its own; attention_bias on q, k, v and o",
         two_ropes(1000.0) | dict(final_logit_softcapping=2.0, tie_word_embeddings=False,
                                  attention_bias=True),
         wrong={"not capped": dict(final_logit_softcapping=None), "tied head": "tie",
                "biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias"}),
    Case("gemma3_text", "rope_llama3", "llama3 scaling on the global layers",
         two_ropes(1000.0, 100.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
         wrong={"scaling ignored": two_ropes(1000.0)}, at_least=0.02),
    Case("gemma3_text", "wrapper",
         "as published: a text_config with little in it (8 and 4 heads, head_dim 256, every 6th "
         "layer full by default), names below `language_model.model.`, a vision tower and a "
         "projector to be passed over",
         two_ropes(1e6, 1e4, "linear", factor=8.0)
         | dict(num_hidden_layers=7, sliding_window_pattern=6, head_dim=256, num_attention_heads=8,
                num_key_value_heads=4, query_pre_attn_scalar=256, rms_norm_eps=1e-6),
         spelling="v4", layout="gemma3", extra=GEMMA3_VISION,
         drop=("rope_theta", "rope_local_base_freq", "sliding_window_pattern", "head_dim",
               "num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar",
               "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "attention_bias"),
         floors={"rope_theta x 10": 0.02},
         wrong={"window 8": dict(sliding_window=8)}),
]

CASES = [
    # llama
    Case("llama", "default", "head_dim is not hidden / heads; no bias; own head",
         rope("default", 500.0) | dict(rms_norm_eps=0.05),
         wrong={"rms_norm_eps 1e-6": dict(rms_norm_eps=1e-6), "tied head": "tie"}, batch=True),
    Case("llama", "v4_spelling", "rope_theta at the top, rope_scaling null",
         rope("default", 300.0), spelling="v4", wrong={"rope_theta missed": PLAIN}),
    Case("llama", "fields_missing",
         "no rope, head_dim, tie_word_embeddings, biases, rms_norm_eps: class defaults "
         "(1e4, hidden / heads, untied, none, 1e-6)",
         dict(head_dim=8, rms_norm_eps=1e-6),
         drop=("rope_parameters", "head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias",
               "rms_norm_eps", "hidden_act", "pretraining_tp"),
         wrong={"rope_theta 1e6": rope("default", 1e6), "tied head": "tie"}),
    Case("llama", "kv_heads_missing", "num_key_value_heads absent: as many as query heads",
         dict(num_attention_heads=3, num_key_value_heads=3, head_dim=14),
         spelling="v4", drop=("num_key_value_heads",)),
    Case("llama", "biases", "attention_bias on q, k, v, o and mlp_bias on gate, up, down",
         dict(attention_bias=True, mlp_bias=True), wrong={
             "all biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias",
             "mlp biases dropped": "no_mlp_bias"}),
    Case("llama", "tied", "the head is the embedding; no lm_head tensor",
         dict(tie_word_embeddings=True), spelling="v4"),
    Case("llama", "rope_linear", "positions divided by the factor", rope("linear", factor=4.0),
         spelling="v4-type", wrong={"scaling ignored": PLAIN}),
    Case("llama", "rope_dynamic_within",
         "sequence within max_position_embeddings: plain rope, the factor changes nothing",
         rope("dynamic", factor=4.0) | dict(max_position_embeddings=40),
         wrong={"read as linear": rope("linear", factor=4.0)}),
    Case("llama", "rope_dynamic_beyond",
         "sequence beyond max_position_embeddings: the base is stretched for `rope_length`",
         rope("dynamic", factor=4.0) | dict(max_position_embeddings=12), spelling="v4",
         wrong={"scaling ignored": PLAIN, "read as linear": rope("linear", factor=4.0)}),
    Case("llama", "rope_llama3", "one kept, one blended, the rest slowed frequencies",
         rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64),
         wrong={"scaling ignored": PLAIN, "read as linear": rope("linear", factor=8.0)}),
    Case("llama", "rope_llama3_v4", "the same kind in the old spelling, other constants",
         rope("llama3", 1000.0, factor=4.0, low_freq_factor=2.0, high_freq_factor=6.0,
              original_max_position_embeddings=128), spelling="v4",
         wrong={"scaling ignored": rope("default", 1000.0), "low, high as 1, 4": rope(
             "llama3", 1000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
             original_max_position_embeddings=128)}),
    Case("llama", "rope_yarn", "truncate by default, m = 0.1 ln s + 1", yarn(),
         wrong={"scaling ignored": PLAIN100, "m ignored": yarn(attention_factor=1.0),
                "truncate false": yarn(truncate=False)}, at_least=0.01),
    Case("llama", "rope_yarn_no_truncate", "truncate false", yarn(truncate=False),
         spelling="v4", wrong={"truncate true": yarn()}, at_least=0.01),
    Case("llama", "rope_yarn_betas", "own beta_fast and beta_slow",
         yarn(beta_fast=12.0, beta_slow=3.0), wrong={"betas 32, 1": yarn()}, at_least=0.01),
    Case("llama", "rope_yarn_attention_factor", "attention_factor given: mscale rules are off",
         yarn(attention_factor=1.5), spelling="v4", wrong={"m from factor": yarn()}),
    Case("llama", "rope_yarn_mscale_both", "m = g(s, mscale) / g(s, mscale_all_dim)",
         yarn(mscale=2.0, mscale_all_dim=0.5),
         wrong={"m from factor": yarn(), "m = 1": yarn(attention_factor=1.0)}, at_least=0.01),
    Case("llama", "rope_yarn_mscale_alone", "mscale without mscale_all_dim counts for nothing",
         yarn(mscale=3.0), spelling="v4-type",
         wrong={"mscale applied": yarn(attention_factor=1.6238)}),
    Case("llama", "rope_yarn_no_original",
         "original_max_position_embeddings absent: max_position_embeddings stands in",
         rope("yarn", 100.0, factor=8.0) | dict(max_position_embeddings=256),
         wrong={"O = 2048": yarn(original_max_position_embeddings=2048)}, at_least=0.01,
         spelling="v4"),
    Case("llama", "rope_longrope_short",
         "max_position_embeddings equals the original context: short factors by either rule; "
         "m from `factor`",
         rope("longrope", 100.0, factor=8.0, original_max_position_embeddings=64, **LONG)
         | dict(max_position_embeddings=64),
         wrong={"scaling ignored": PLAIN100, "long factors": rope(
             "longrope", 100.0, factor=8.0, original_max_position_embeddings=64,
             short_factor=LONG["long_factor"], long_factor=LONG["long_factor"])}),
    Case("llama", "rope_longrope_long",
         "longer than the original context, by the sequence and by the maximum: long factors; "
         "m from max_position / original; the original length spelled at the top",
         rope("longrope", 100.0, original_max_position_embeddings=16, **LONG),
         spelling="v4", raw=dict(original_max_position_embeddings=16),
         wrong={"short factors": rope(
             "longrope", 100.0, original_max_position_embeddings=16,
             short_factor=LONG["short_factor"], long_factor=LONG["short_factor"]),
             "m ignored": rope("longrope", 100.0, original_max_position_embeddings=16,
                               attention_factor=1.0, **LONG)}),
    Case("llama", "rope_longrope_by_length",
         "the sequence is within the original context, the maximum is beyond: short factors, "
         "because `rope_length` decides; attention_factor given",
         rope("longrope", 100.0, original_max_position_embeddings=64, attention_factor=1.3, **LONG),
         spelling="v4-type",
         wrong={"long factors": rope(
             "longrope", 100.0, original_max_position_embeddings=64, attention_factor=1.3,
             short_factor=LONG["long_factor"], long_factor=LONG["long_factor"])}),
    # mistral
    Case("mistral", "window", "a window of 7 on every layer, itself included",
         dict(sliding_window=7), wrong={
             "no window": dict(sliding_window=None), "window 8": dict(sliding_window=8),
             "window 6": dict(sliding_window=6)}, batch=True),
    Case("mistral", "window_v4", "the same field in an old file; rope_theta 1e6",
         rope("default", 1e6) | dict(sliding_window=11), spelling="v4", n_tokens=40,
         wrong={"no window": dict(sliding_window=None), "rope_theta missed": PLAIN}),
    Case("mistral", "window_null", "sliding_window null: full attention",
         dict(sliding_window=None), wrong={"window 16": dict(sliding_window=16)}),
    Case("mistral", "fields_missing",
         "sliding_window absent (4096, beyond this sequence), head_dim absent (hidden / heads)",
         dict(head_dim=8), drop=("sliding_window", "head_dim", "rope_parameters",
                                 "tie_word_embeddings"),
         wrong={"window 16": dict(sliding_window=16), "tied head": "tie"}),
    Case("mistral", "tied_linear", "tied head and linear rope under a window",
         rope("linear", factor=2.0) | dict(tie_word_embeddings=True, sliding_window=9),
         spelling="v4-type",
         wrong={"scaling ignored": PLAIN, "no window": dict(sliding_window=None)}),
    # qwen2
    Case("qwen2", "default", "biases on q, k, v; none on o; window fields present but not in use",
         dict(use_sliding_window=False, sliding_window=8, max_window_layers=1),
         raw=dict(sliding_window=8),
         wrong={"biases dropped": "no_bias", "window used": dict(
             use_sliding_window=True, sliding_window=8, layer_types=None)}),
    Case("qwen2", "window_from_layer", "use_sliding_window: layers from max_window_layers on",
         dict(use_sliding_window=True, sliding_window=6, max_window_layers=1), spelling="v4",
         wrong={"no window": dict(use_sliding_window=False, layer_types=None),
                "window on every layer": dict(max_window_layers=0, layer_types=None),
                "layers before, not after": dict(layer_types=[
                    "sliding_attention", "full_attention", "full_attention"])}),
    Case("qwen2", "layer_types", "layer_types wins over max_window_layers",
         dict(use_sliding_window=True, sliding_window=5, max_window_layers=0, layer_types=[
             "sliding_attention", "full_attention", "sliding_attention"]),
         wrong={"max_window_layers": dict(layer_types=None)}),
    Case("qwen2", "fields_missing", "rope_theta absent (1e4), tie absent (untied)",
         drop=("rope_theta", "rope_scaling", "tie_word_embeddings", "use_sliding_window",
               "sliding_window", "max_window_layers"), spelling="v4",
         wrong={"rope_theta 1e6": rope("default", 1e6), "tied head": "tie"}),
    Case("qwen2", "tied", "tied head, rope_theta 1e6",
         rope("default", 1e6) | dict(tie_word_embeddings=True),
         wrong={"rope_theta missed": PLAIN}),
    # qwen3
    Case("qwen3", "default", "RMS over each head of q and k before rope",
         rope("default", 1e6) | dict(rms_norm_eps=1e-6), wrong={
             "q_norm dropped": "no_q_norm", "k_norm dropped": "no_k_norm",
             "rope_theta missed": PLAIN, "norm after rope": "qk_norm_after_rope"},
         batch=True),
    Case("qwen3", "head_dim_missing", "head_dim absent: 128, not hidden / heads",
         rope("default", 1e6) | dict(head_dim=128, num_attention_heads=3, num_key_value_heads=1,
                                     num_hidden_layers=2), drop=("head_dim",), spelling="v4",
         wrong={"q_norm dropped": "no_q_norm"}),
    Case("qwen3", "biases", "attention_bias on q, k, v and o",
         dict(attention_bias=True), wrong={
             "biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias"}),
    Case("qwen3", "rope_yarn", "yarn as the published long-context advice writes it",
         yarn(), spelling="v4", wrong={"scaling ignored": PLAIN100}, at_least=0.03),
    Case("qwen3", "rope_yarn_nested", "yarn with every key",
         yarn(beta_fast=20.0, beta_slow=2.0, attention_factor=1.2, truncate=False),
         wrong={"scaling ignored": PLAIN100, "plain yarn": yarn()}, at_least=0.02),
    Case("qwen3", "tied_window", "tied head; window on layers >= 2; no layer_types in the file",
         dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=5,
              max_window_layers=2), spelling="v4",
         wrong={"no window": dict(use_sliding_window=False, layer_types=None),
                "window on every layer": dict(max_window_layers=0, layer_types=None)}),
    Case("qwen3", "layer_types", "layer_types with a window on the first layer only",
         dict(use_sliding_window=True, sliding_window=4, max_window_layers=3, layer_types=[
             "sliding_attention", "full_attention", "full_attention"]),
         wrong={"max_window_layers": dict(layer_types=None)}),
] + GEMMA3_CASES + cases_experts.CASES + cases_hybrid.CASES
