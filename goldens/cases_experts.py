"""Float golden cases of the families with experts and plain attention: qwen3_moe, glm4_moe_lite,
gpt_oss."""

from case import PLAIN, PLAIN100, Case, Family, rope, yarn

QWEN3_MOE = dict(num_hidden_layers=3, vocab_size=79, hidden_size=54, intermediate_size=104,
                 num_attention_heads=6, num_key_value_heads=2, head_dim=14, num_experts=7,
                 num_experts_per_tok=3, moe_intermediate_size=22, norm_topk_prob=True,
                 max_position_embeddings=512, rms_norm_eps=1e-5)
# nope 14, rope 8, v 18: heads*(nope + rope) 88, heads*v 72, heads*(nope + v) 128.
GLM = dict(num_hidden_layers=3, vocab_size=83, hidden_size=56, intermediate_size=104,
           num_attention_heads=4, num_key_value_heads=4, q_lora_rank=30, kv_lora_rank=26,
           qk_nope_head_dim=14, qk_rope_head_dim=8, v_head_dim=18, n_routed_experts=7,
           num_experts_per_tok=3, moe_intermediate_size=22, max_position_embeddings=512,
           rms_norm_eps=1e-5)
# intermediate_size 50 is one expert's width, the third of 56, 50 and 100.
GPT_OSS = dict(num_hidden_layers=3, vocab_size=79, hidden_size=56, intermediate_size=50,
               num_attention_heads=6, num_key_value_heads=2, head_dim=14, num_local_experts=7,
               num_experts_per_tok=3, sliding_window=8, max_position_embeddings=512,
               rms_norm_eps=1e-5, swiglu_limit=1.5)
FAMILIES = {
    "qwen3_moe": Family("Qwen3Moe", QWEN3_MOE),
    "glm4_moe_lite": Family("Glm4MoeLite", GLM),
    "gpt_oss": Family("GptOss", GPT_OSS),
}

QWEN3_MOE_CASES = [
    Case("qwen3_moe", "default",
         "softmax over all experts, the three best, divided by their sum; experts one by one; the "
         "number of experts is `num_local_experts`",
         rope("default", 1e6) | dict(rms_norm_eps=1e-6), batch=True, wrong={
             "weights not divided": dict(norm_topk_prob=False),
             "two experts": dict(num_experts_per_tok=2), "q_norm dropped": "no_q_norm",
             "k_norm dropped": "no_k_norm", "gate and up swapped": "gate_up_swapped",
             "gate and up by even and odd rows": "gate_up_even_odd", "rope_theta missed": PLAIN}),
    Case("qwen3_moe", "v4_spelling",
         "rope_theta at the top, `num_experts`; mlp_only_layers names a dense layer; weights are "
         "not divided by their sum",
         rope("default", 300.0) | dict(norm_topk_prob=False, mlp_only_layers=[1]), spelling="v4",
         wrong={"rope_theta missed": PLAIN, "weights divided": dict(norm_topk_prob=True),
                "softmax over the chosen": "softmax_over_chosen"}),
    Case("qwen3_moe", "sparse_step", "decoder_sparse_step 2: experts on layers 1 and 3 of 5 only",
         dict(num_hidden_layers=5, decoder_sparse_step=2), spelling="v4",
         wrong={"two experts": dict(num_experts_per_tok=2)}),
    Case("qwen3_moe", "fused", "experts in two tensors, gate first", layout="fused",
         wrong={"gate and up swapped": "gate_up_swapped",
                "gate and up by even and odd rows": "gate_up_even_odd"}),
    Case("qwen3_moe", "fields_missing",
         "norm_topk_prob absent (false), no rope (1e4), tie, head_dim, sparse step, dense layers",
         dict(norm_topk_prob=False, hidden_size=60, head_dim=10, rms_norm_eps=1e-6),
         drop=("norm_topk_prob", "rope_parameters", "tie_word_embeddings", "decoder_sparse_step",
               "mlp_only_layers", "rms_norm_eps", "head_dim", "use_sliding_window",
               "sliding_window", "attention_bias", "intermediate_size"),
         wrong={"weights divided": dict(norm_topk_prob=True), "tied head": "tie",
                "rope_theta 1e6": rope("default", 1e6)}),
    Case("qwen3_moe", "window",
         "use_sliding_window: every layer, whatever max_window_layers says; itself included",
         dict(use_sliding_window=True, sliding_window=7), raw=dict(max_window_layers=2), wrong={
             "no window": dict(use_sliding_window=False), "window 8": dict(sliding_window=8),
             "window 6": dict(sliding_window=6)}),
    Case("qwen3_moe", "biases_tied", "attention_bias on q, k, v and o; tied head",
         dict(attention_bias=True, tie_word_embeddings=True), spelling="v4",
         wrong={"biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias"}),
    Case("qwen3_moe", "rope_yarn", "yarn as the published long-context advice writes it",
         yarn(), spelling="v4-type", wrong={"scaling ignored": PLAIN100}, at_least=0.02),
    Case("qwen3_moe", "rope_llama3", "one kept, one blended, the rest slowed frequencies",
         rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64),
         wrong={"scaling ignored": PLAIN, "read as linear": rope("linear", factor=8.0)}),
]

# GLM's score is a sigmoid, its choice is biased, its weights are not.
ROUTER = {"weights biased": "biased_weights", "choice not biased": "unbiased_choice",
          "softmax scores": "softmax_scores", "weights not divided": dict(norm_topk_prob=False),
          "routed_scaling_factor 1": dict(routed_scaling_factor=1.0)}
LATENT = {"keys and values halves per tensor": "latent_by_tensor",
          "the query's rotated part first": "query_rope_first", "softmax scale from nope alone":
          "nope_scale", "rotated by halves": dict(rope_interleave=False)}
# The MTP layer of the published file, one beyond num_hidden_layers.
GLM_MTP = {"model.layers.3.eh_proj.weight": [56, 112], "model.layers.3.enorm.weight": [56],
           "model.layers.3.hnorm.weight": [56], "model.layers.3.input_layernorm.weight": [56],
           "model.layers.3.self_attn.kv_b_proj.weight": [128, 26],
           "model.layers.3.mlp.experts.0.gate_proj.weight": [22, 56],
           "model.layers.3.shared_head.head.weight": [83, 56],
           "model.layers.3.shared_head.norm.weight": [56],
           "model.layers.3.embed_tokens.weight": [83, 56]}
GLM_YARN = dict(theta=100.0, factor=8.0, original_max_position_embeddings=512)

GLM_CASES = [
    Case("glm4_moe_lite", "default",
         "latent attention, rotated in pairs; a dense layer, then experts chosen by biased "
         "sigmoids; one shared expert; experts one by one",
         rope("default", 300.0), batch=True, wrong={
             "rope_theta missed": PLAIN, "two experts": dict(num_experts_per_tok=2),
             "gate and up swapped": "gate_up_swapped", "shared expert dropped": "no_shared"}
         | ROUTER | LATENT),
    Case("glm4_moe_lite", "v4_spelling",
         "as published: rope_theta at the top, first_k_dense_replace 1, fields of the older "
         "kind; an MTP layer to be passed over",
         rope("default", 500.0), spelling="v4", extra=GLM_MTP,
         raw=dict(num_nextn_predict_layers=1), wrong={"rope_theta missed": PLAIN}),
    Case("glm4_moe_lite", "latent_norms", "the latent norms keep 1e-6 where rms_norm_eps is 0.05",
         dict(rms_norm_eps=0.05), wrong={"rms_norm_eps in them": "latent_eps",
                                         "rms_norm_eps 1e-6": dict(rms_norm_eps=1e-6)},
         at_least=0.02),
    Case("glm4_moe_lite", "groups",
         "12 experts in 4 groups, of which the 2 with the largest sum of their two best count; "
         "the others are out of the question even where the rest is negative",
         dict(n_routed_experts=12, n_group=4, topk_group=2, num_experts_per_tok=5),
         scales={"e_score_correction_bias": 2}, wrong={
             "groups ignored": dict(n_group=1, topk_group=1),
             "by the best of a group": "best_of_group", "others at zero": "other_groups_zero",
             "three groups": dict(topk_group=3)}),
    Case("glm4_moe_lite", "plain_queries",
         "q_lora_rank null: one q_proj; two shared experts; attention_bias on the latents and o; "
         "weights not divided; another routed_scaling_factor",
         dict(q_lora_rank=None, n_shared_experts=2, attention_bias=True, norm_topk_prob=False,
              routed_scaling_factor=2.5),
         wrong={"weights divided": dict(norm_topk_prob=True), "biases dropped": "no_bias",
                "o_proj bias dropped": "no_o_bias", "latent bias dropped": "no_latent_bias",
                "routed_scaling_factor 1.8": dict(routed_scaling_factor=1.8),
                "shared experts dropped": "no_shared"}),
    Case("glm4_moe_lite", "half_split_fused",
         "rope_interleave false; experts in two tensors; mlp_layer_types with a dense layer last; "
         "tied head",
         dict(rope_interleave=False, mlp_layer_types=["sparse", "sparse", "dense"],
              tie_word_embeddings=True), layout="fused",
         wrong={"rotated in pairs": dict(rope_interleave=True),
                "gate and up swapped": "gate_up_swapped",
                "gate and up by even and odd rows": "gate_up_even_odd"}),
    Case("glm4_moe_lite", "fields_missing",
         "mlp_layer_types (one dense), norm_topk_prob (true), routed_scaling_factor (1.8), "
         "rms_norm_eps (1e-5), groups (1), shared experts (1), rope (1e4), rope_interleave (true), "
         "experts per token (4), tie: class defaults",
         dict(num_experts_per_tok=4),
         drop=("mlp_layer_types", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps",
               "n_group", "topk_group", "n_shared_experts", "rope_parameters", "rope_interleave",
               "num_experts_per_tok", "tie_word_embeddings", "attention_bias", "qk_head_dim"),
         wrong={"tied head": "tie", "rope_theta 1e6": rope("default", 1e6)} | ROUTER),
    Case("glm4_moe_lite", "rope_yarn_mscale",
         "mscale_all_dim also multiplies the softmax scale by its square",
         rope("yarn", mscale=2.0, mscale_all_dim=1.0, **GLM_YARN), wrong={
             "scaling ignored": PLAIN100, "softmax scale without it": "plain_scale",
             "m = 1": rope("yarn", attention_factor=1.0, mscale_all_dim=1.0, **GLM_YARN)},
         at_least=0.02),
    Case("glm4_moe_lite", "rope_yarn", "yarn without mscale: the softmax scale stays",
         rope("yarn", **GLM_YARN), spelling="v4", wrong={"scaling ignored": PLAIN100,
              "softmax scale multiplied": rope("yarn", mscale=1.0, mscale_all_dim=1.0, **GLM_YARN)},
         at_least=0.02),
]

ROUTED = {"softmax before the choice": "softmax_over_all", "router bias dropped": "no_router_bias"}
ACTIVATION = {"not clamped": dict(swiglu_limit=1e9), "gate clamped below": "gate_clamped_below",
              "up without 1": "no_plus_one", "alpha 1": "alpha_one"}
GPT_YARN = dict(theta=100.0, factor=8.0, original_max_position_embeddings=512)

GPT_OSS_CASES = [
    Case("gpt_oss", "default",
         "window and full layers in turn; sinks; biases everywhere; softmax over the chosen; "
         "experts [E, in, out] with gate and up in even and odd columns; yarn, not truncated",
         rope("yarn", truncate=False, **GPT_YARN), batch=True, wrong={
             "sinks dropped": "no_sinks", "window 9": dict(sliding_window=9),
             "window 7": dict(sliding_window=7), "two experts": dict(num_experts_per_tok=2),
             "layers the other way round": dict(layer_types=[
                 "full_attention", "sliding_attention", "full_attention"]),
             "gate and up as halves": "gate_up_halves", "biases dropped": "no_bias",
             "o_proj bias dropped": "no_o_bias", "expert biases dropped": "no_expert_bias",
             "truncate true": rope("yarn", truncate=True, **GPT_YARN), "scaling ignored": PLAIN100,
             "m ignored": rope("yarn", truncate=False, attention_factor=1.0, **GPT_YARN)}
         | ROUTED | ACTIVATION, at_least=0.02),
    Case("gpt_oss", "v4_spelling",
         "rope_theta and rope_scaling at the top; swiglu_limit absent (7.0), reached by a quarter "
         "of the gates",
         rope("yarn", truncate=False, **GPT_YARN) | dict(swiglu_limit=7.0), spelling="v4",
         scales={"gate_up_proj": 2}, drop=("swiglu_limit", "swiglu_alpha"),
         raw=dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                  experts_per_token=3, initial_context_length=4096),
         wrong={"scaling ignored": PLAIN100, "not clamped": dict(swiglu_limit=1e9),
                "up without 1": "no_plus_one", "alpha 1": "alpha_one"}, at_least=0.02),
    Case("gpt_oss", "fields_missing",
         "no rope (yarn 32 over 4096, base 150000, not truncated), layer_types (window first), "
         "window (128, beyond this sequence), head_dim (64), rms_norm_eps, biases, tie",
         dict(head_dim=64, num_attention_heads=3, num_key_value_heads=1, sliding_window=128),
         drop=("rope_parameters", "layer_types", "sliding_window", "head_dim", "rms_norm_eps",
               "attention_bias", "tie_word_embeddings"),
         at_least=0.01, wrong={
             "plain rope": rope("default", 150000.0), "window 16": dict(sliding_window=16),
             "tied head": "tie", "truncate true": rope(
                 "yarn", 150000.0, factor=32.0, original_max_position_embeddings=4096)},
         floors={"truncate true": 1e-3}),
    Case("gpt_oss", "no_biases_tied",
         "attention_bias false; tied head; plain rope; full layers only; another swiglu_alpha",
         rope("default", 500.0) | dict(attention_bias=False, tie_word_embeddings=True,
                                       layer_types=["full_attention"] * 3, swiglu_alpha=1.2),
         wrong={"alpha 1.702": dict(swiglu_alpha=1.702), "sinks dropped": "no_sinks",
                "window": dict(layer_types=["sliding_attention"] * 3)}),
]

CASES = QWEN3_MOE_CASES + GLM_CASES + GPT_OSS_CASES
