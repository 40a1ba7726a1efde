"""Float golden cases of the families with a gated delta rule: qwen3_next, qwen3_5, qwen3_5_moe."""

from case import Case, Family, rope

# Hk 2, Hv 6, Dk 12, Dv 10: key_dim 24, value_dim 60, conv_dim 108; heads*head_dim 96, kv 48.
L, A = "linear_attention", "full_attention"
BASE = dict(num_hidden_layers=5, vocab_size=79, hidden_size=56, num_attention_heads=4,
            num_key_value_heads=2, head_dim=24, linear_num_key_heads=2, linear_num_value_heads=6,
            linear_key_head_dim=12, linear_value_head_dim=10, layer_types=[L, A, L, L, A],
            max_position_embeddings=512, rms_norm_eps=1e-5)
DENSE = BASE | dict(intermediate_size=104)
EXPERTS = BASE | dict(num_experts=7, num_experts_per_tok=3, moe_intermediate_size=22,
                      shared_expert_intermediate_size=30)
FAMILIES = {
    "qwen3_next": Family("Qwen3Next", EXPERTS | dict(intermediate_size=104, vocab_size=83),
                         norm_centre=0),
    "qwen3_5": Family("Qwen3_5", DENSE, norm_centre=0, text=True),
    "qwen3_5_moe": Family("Qwen3_5Moe", EXPERTS | dict(vocab_size=73), norm_centre=0, text=True),
}


def quarter(theta=10000.0, **keys):
    """Plain rope on a quarter of each head."""
    return rope("default", theta, partial_rotary_factor=0.25, **keys)


NORMS = {"norms read as w, not 1 + w": "norms_without_one", "1 added twice": "norms_with_two",
         "1 added to the gated norm": "gated_norm_plus_one"}
DELTA = {"value heads read key head h mod Hk": "tiled_key_heads",
         "convolution reversed": "reversed_taps", "no silu after it": "conv_without_silu",
         "dt_bias dropped": "no_dt_bias", "A_log dropped": "no_a_log",
         "gate before the norm": "gate_before_norm", "gate by sigmoid": "sigmoid_in_gated_norm"}
GATED = {"query and gate halves per tensor": "gate_by_tensor", "output gate dropped": "no_gate",
         "q_norm dropped": "no_q_norm", "k_norm dropped": "no_k_norm"}
ROTATED = {"the whole head rotated": rope("default", partial_rotary_factor=1.0),
           "the last dims rotated": "rope_at_the_end", "rotated in pairs": "rope_in_pairs"}
SHARED = {"shared expert dropped": "no_shared", "its gate dropped": "no_shared_gate"}
# Keys so small that the l2 norm's epsilon counts.
SMALL = dict(scales={"conv1d.weight": -9}, at_least=0.03,
             wrong={"epsilon on the mean": "eps_on_mean"})
# Full attention on the second layer: the last position of one layer shows little of the base.
SPARSE_FLOOR = {"rope_theta x 10": 0.02}

MTP = {"mtp.fc.weight": [56, 112], "mtp.norm.weight": [56], "mtp.pre_fc_norm_hidden.weight": [56],
       "mtp.pre_fc_norm_embedding.weight": [56],
       "mtp.layers.0.input_layernorm.weight": [56],
       "mtp.layers.0.self_attn.q_proj.weight": [192, 56],
       "mtp.layers.0.self_attn.k_norm.weight": [24]}
VISUAL = {"model.visual.blocks.0.attn.qkv.weight": [48, 16],
          "model.visual.blocks.0.attn.qkv.bias": [48],
          "model.visual.blocks.0.norm1.weight": [16],
          "model.visual.patch_embed.proj.weight": [16, 3, 2, 4, 4],
          "model.visual.merger.linear_fc2.weight": [56, 64]}

QWEN3_NEXT = [
    Case("qwen3_next", "default",
         "rows of the projections grouped by key head; gated attention; shared expert; norms add 1",
         quarter(), batch=True, floors=SPARSE_FLOOR,
         wrong={"projections not grouped": "ungrouped", "two experts": dict(num_experts_per_tok=2),
                "weights not divided": dict(norm_topk_prob=False)}
         | NORMS | DELTA | GATED | ROTATED | SHARED),
    Case("qwen3_next", "v4_spelling",
         "full_attention_interval 3, rope_theta and partial_rotary_factor at the top; "
         "mlp_only_layers names a dense layer",
         rope("default", 300.0, partial_rotary_factor=0.5)
         | dict(layer_types=[L, L, A, L, L], mlp_only_layers=[1, 2]), spelling="v4",
         floors=SPARSE_FLOOR, wrong={
             "rope_theta missed": rope("default", partial_rotary_factor=0.5),
             "a quarter rotated": rope("default", 300.0, partial_rotary_factor=0.25),
             "projections not grouped": "ungrouped"}),
    Case("qwen3_next", "fields_missing",
         "layer_types and interval absent (every 4th is full), norm_topk_prob (true), head_dim "
         "(256), rope (1e4, a quarter), rms_norm_eps (1e-6), tie, sparse step, dense layers",
         quarter() | dict(layer_types=[L, L, L, A, L], head_dim=256, rms_norm_eps=1e-6),
         drop=("layer_types", "norm_topk_prob", "head_dim", "rope_parameters", "rms_norm_eps",
               "tie_word_embeddings", "decoder_sparse_step", "mlp_only_layers", "attention_bias",
               "linear_conv_kernel_dim"), floors=SPARSE_FLOOR,
         wrong={"weights not divided": dict(norm_topk_prob=False), "tied head": "tie",
                "the whole head rotated": rope("default", partial_rotary_factor=1.0)}),
    Case("qwen3_next", "fused", "experts in two tensors, gate first; MTP tensors to be passed over",
         quarter() | dict(norm_topk_prob=False), layout="fused", extra=MTP, floors=SPARSE_FLOOR,
         wrong={"gate and up swapped": "gate_up_swapped",
                "gate and up by even and odd rows": "gate_up_even_odd",
                "weights divided": dict(norm_topk_prob=True)}),
    Case("qwen3_next", "dense", "decoder_sparse_step 2 leaves layers 0, 2 and 4 dense; tied head; "
         "attention_bias on q, k, v and o; a convolution of 3 taps",
         quarter() | dict(decoder_sparse_step=2, tie_word_embeddings=True, attention_bias=True,
                          linear_conv_kernel_dim=3), spelling="v4", floors=SPARSE_FLOOR,
         raw=dict(full_attention_interval=4, layer_types=[L, A, L, L, A]),
         wrong={"biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias"}),
    Case("qwen3_next", "small_keys", "the l2 norm's epsilon is on the sum of squares", quarter(),
         floors=SPARSE_FLOOR, **SMALL),
    Case("qwen3_next", "rope_yarn", "yarn on a quarter of each head",
         rope("yarn", 100.0, factor=8.0, original_max_position_embeddings=512,
              partial_rotary_factor=0.25) | dict(layer_types=[L, A, L, A, L]), spelling="v4",
         floors=SPARSE_FLOOR, at_least=0.02,
         wrong={"scaling ignored": quarter(100.0)}),
]

QWEN3_5 = [
    Case("qwen3_5", "default",
         "separate projections, rows not grouped; gated attention; dense; norms add 1; the text "
         "model saved alone (root `qwen3_5_text`)",
         quarter(), batch=True, floors=SPARSE_FLOOR,
         wrong={"projections grouped": "grouped", "b and a swapped": "b_a_swapped"}
         | NORMS | DELTA | GATED | ROTATED),
    Case("qwen3_5", "wrapper",
         "as published: text_config, names below `model.language_model.`, a vision tower and MTP "
         "tensors to be passed over; mrope on text is plain rope; layer_types beside the interval",
         quarter(700.0, mrope_interleaved=True, mrope_section=[1, 1, 1])
         | dict(layer_types=[L, L, L, A, L, A], num_hidden_layers=6), layout="qwen3_5",
         raw=dict(full_attention_interval=4, mtp_num_hidden_layers=1), extra=MTP | VISUAL,
         floors=SPARSE_FLOOR, wrong={"rope_theta missed": quarter(), "projections grouped":
                                     "grouped"}),
    Case("qwen3_5", "wrapper_tied", "a wrapper whose head is tied: no lm_head tensor",
         quarter(500.0) | dict(tie_word_embeddings=True), layout="qwen3_5", extra=VISUAL,
         floors=SPARSE_FLOOR, wrong={"rope_theta missed": quarter()}),
    Case("qwen3_5", "v4_spelling",
         "full_attention_interval 2, rope_theta and partial_rotary_factor at the top; as many "
         "value as key heads",
         rope("default", 300.0, partial_rotary_factor=0.5)
         | dict(layer_types=[L, A, L, A, L], linear_num_key_heads=3, linear_num_value_heads=3),
         spelling="v4", floors=SPARSE_FLOOR, wrong={
             "rope_theta missed": rope("default", partial_rotary_factor=0.5),
             "a quarter rotated": rope("default", 300.0, partial_rotary_factor=0.25)}),
    Case("qwen3_5", "fields_missing",
         "layer_types and interval absent (every 4th is full), head_dim (256), rope (1e4, a "
         "quarter), rms_norm_eps (1e-6), tie (untied)",
         quarter() | dict(layer_types=[L, L, L, A, L], head_dim=256, rms_norm_eps=1e-6),
         drop=("layer_types", "head_dim", "rope_parameters", "rms_norm_eps", "attention_bias",
               "tie_word_embeddings"), floors=SPARSE_FLOOR,
         wrong={"tied head": "tie",
                "the whole head rotated": rope("default", partial_rotary_factor=1.0)}),
    Case("qwen3_5", "linear_fields_missing",
         "Hk 16, Hv 32, Dk = Dv = 128 and 4 taps by default",
         quarter() | dict(num_hidden_layers=2, layer_types=[L, A], linear_num_key_heads=16,
                          linear_num_value_heads=32, linear_key_head_dim=128,
                          linear_value_head_dim=128),
         drop=("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
               "linear_value_head_dim", "linear_conv_kernel_dim"), floors=SPARSE_FLOOR,
         wrong={"value heads read key head h mod Hk": "tiled_key_heads"}),
    Case("qwen3_5", "small_keys", "the l2 norm's epsilon is on the sum of squares", quarter(),
         floors=SPARSE_FLOOR, **SMALL),
    Case("qwen3_5", "biases", "attention_bias on q (with its gate), k, v and o",
         quarter() | dict(attention_bias=True), floors=SPARSE_FLOOR,
         wrong={"biases dropped": "no_bias", "o_proj bias dropped": "no_o_bias"}),
]

QWEN3_5_MOE = [
    Case("qwen3_5_moe", "default",
         "experts one by one as save_pretrained writes them; weights always divided by their sum; "
         "shared expert; root `qwen3_5_moe_text`",
         quarter(), batch=True, floors=SPARSE_FLOOR,
         wrong={"projections grouped": "grouped", "b and a swapped": "b_a_swapped",
                "two experts": dict(num_experts_per_tok=2),
                "gate and up swapped": "gate_up_swapped"} | NORMS | DELTA | GATED | SHARED),
    Case("qwen3_5_moe", "wrapper",
         "as published: text_config, names below `model.language_model.`, experts in two tensors, "
         "a vision tower and MTP tensors to be passed over",
         quarter(700.0, mrope_interleaved=True, mrope_section=[1, 1, 1])
         | dict(layer_types=[L, L, L, A, L]), layout="qwen3_5_moe",
         raw=dict(full_attention_interval=4, mtp_num_hidden_layers=1), extra=MTP | VISUAL,
         floors=SPARSE_FLOOR, wrong={
             "rope_theta missed": quarter(), "gate and up swapped": "gate_up_swapped",
             "gate and up by even and odd rows": "gate_up_even_odd"}),
    Case("qwen3_5_moe", "v4_spelling_tied",
         "full_attention_interval 3, rope_theta and partial_rotary_factor at the top; tied head; "
         "a norm_topk_prob that this family does not read",
         rope("default", 300.0, partial_rotary_factor=0.5)
         | dict(layer_types=[L, L, A, L, L], tie_word_embeddings=True), spelling="v4",
         raw=dict(norm_topk_prob=False), floors=SPARSE_FLOOR,
         wrong={"rope_theta missed": rope("default", partial_rotary_factor=0.5)}),
    Case("qwen3_5_moe", "fields_missing",
         "layer_types and interval absent (every 4th is full), head_dim (256), rope (1e4, a "
         "quarter), rms_norm_eps (1e-6), tie (untied)",
         quarter() | dict(layer_types=[L, L, L, A, L], head_dim=256, rms_norm_eps=1e-6),
         drop=("layer_types", "head_dim", "rope_parameters", "rms_norm_eps", "attention_bias",
               "tie_word_embeddings"), floors=SPARSE_FLOOR,
         wrong={"tied head": "tie",
                "the whole head rotated": rope("default", partial_rotary_factor=1.0)}),
]

CASES = QWEN3_NEXT + QWEN3_5 + QWEN3_5_MOE
