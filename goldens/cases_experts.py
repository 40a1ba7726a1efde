"""Float golden cases of the families with experts and plain attention: qwen3_moe, glm4_moe_lite,
gpt_oss."""

from case import PLAIN, PLAIN100, Case, Family, rope, yarn

QWEN3_MOE = dict(num_hidden_layers=3, vocab_size=79, hidden_size=54, intermediate_size=104,
                 num_attention_heads=6, num_key_value_heads=2, head_dim=14, num_experts=7,
                 num_experts_per_tok=3, moe_intermediate_size=22, norm_topk_prob=True,
                 max_position_embeddings=512, rms_norm_eps=1e-5)
FAMILIES = {"qwen3_moe": Family("Qwen3Moe", QWEN3_MOE)}

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

CASES = QWEN3_MOE_CASES
