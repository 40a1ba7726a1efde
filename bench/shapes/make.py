"""Writes the shapes: config.json of published models, as transformers 5 saves them.

    python bench/shapes/make.py

Each config goes through transformers' own class; the model is then built without memory (meta
device) and its parameters are counted, which README.md compares with the published sizes.
"""

import json
import pathlib
import tempfile

import torch
import transformers

ROOT = pathlib.Path(__file__).parent
QWEN = dict(vocab_size=151936, bos_token_id=151643, eos_token_id=151645, rms_norm_eps=1e-6)


def rope(theta, **keys):
    return dict(rope_type="default", rope_theta=theta) | keys


QWEN3 = QWEN | dict(head_dim=128, max_position_embeddings=40960, rope_parameters=rope(1e6))
SHAPES = {
    "qwen3-0.6b": ("Qwen3Config", "Qwen3ForCausalLM", QWEN3 | dict(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, max_window_layers=28, tie_word_embeddings=True)),
    "qwen3-8b": ("Qwen3Config", "Qwen3ForCausalLM", QWEN3 | dict(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, max_window_layers=36)),
    "qwen3-30b-a3b": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", QWEN3 | dict(
        hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
        num_key_value_heads=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], max_window_layers=48)),
    "qwen3-next-80b-a3b": ("Qwen3NextConfig", "Qwen3NextForCausalLM", QWEN | dict(
        hidden_size=2048, intermediate_size=5120, num_hidden_layers=48, num_attention_heads=16,
        num_key_value_heads=2, head_dim=256, max_position_embeddings=262144,
        rope_parameters=rope(1e7, partial_rotary_factor=0.25), linear_conv_kernel_dim=4,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16,
        linear_num_value_heads=32, num_experts=512, num_experts_per_tok=10,
        moe_intermediate_size=512, shared_expert_intermediate_size=512, norm_topk_prob=True,
        decoder_sparse_step=1, mlp_only_layers=[])),
    "qwen3.5-35b-a3b": ("Qwen3_5MoeConfig", "Qwen3_5MoeForConditionalGeneration", dict(
        image_token_id=248056, video_token_id=248057, vision_start_token_id=248053,
        vision_end_token_id=248054, tie_word_embeddings=False,
        text_config=dict(
            vocab_size=248320, eos_token_id=248044, hidden_size=2048, num_hidden_layers=40,
            num_attention_heads=16, num_key_value_heads=2, head_dim=256, rms_norm_eps=1e-6,
            max_position_embeddings=262144, linear_conv_kernel_dim=4, linear_key_head_dim=128,
            linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32,
            num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512,
            shared_expert_intermediate_size=512, attn_output_gate=True,
            mamba_ssm_dtype="float32", mtp_num_hidden_layers=1,
            mtp_use_dedicated_embeddings=False,
            rope_parameters=rope(1e7, partial_rotary_factor=0.25, mrope_interleaved=True,
                                 mrope_section=[11, 11, 10])),
        vision_config=dict(
            depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, in_channels=3,
            num_position_embeddings=2304, out_hidden_size=2048, patch_size=16,
            spatial_merge_size=2, temporal_patch_size=2, hidden_act="gelu_pytorch_tanh"))),
    "glm-4.7-flash": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", dict(
        vocab_size=154880, hidden_size=2048, intermediate_size=10240, moe_intermediate_size=1536,
        num_hidden_layers=47, num_attention_heads=20, num_key_value_heads=20, q_lora_rank=768,
        kv_lora_rank=512, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
        n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=4, norm_topk_prob=True,
        routed_scaling_factor=1.8, n_group=1, topk_group=1, topk_method="noaux_tc",
        first_k_dense_replace=1, num_nextn_predict_layers=1, rms_norm_eps=1e-5,
        max_position_embeddings=202752, rope_parameters=rope(1e6, partial_rotary_factor=1.0),
        bos_token_id=None, eos_token_id=[154820, 154827, 154829], pad_token_id=154820)),
    "gpt-oss-20b": ("GptOssConfig", "GptOssForCausalLM", dict(
        vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=24,
        num_attention_heads=64, num_key_value_heads=8, head_dim=64, num_local_experts=32,
        num_experts_per_tok=4, experts_per_token=4, sliding_window=128, rms_norm_eps=1e-5,
        max_position_embeddings=131072, initial_context_length=4096, router_aux_loss_coef=0.9,
        rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0,
                             beta_slow=1.0, truncate=False,
                             original_max_position_embeddings=4096),
        eos_token_id=200002, pad_token_id=199999)),
}


def count(model_name, config):
    """Parameters of the model built on the meta device (a tied head counts once)."""
    with torch.device("meta"):
        model = getattr(transformers, model_name)(config)
    text = sum(p.numel() for n, p in model.named_parameters() if "visual" not in n)
    return text, sum(p.numel() for p in model.parameters()) - text


def main():
    transformers.utils.logging.set_verbosity_error()
    for name, (config_name, model_name, keys) in SHAPES.items():
        config = getattr(transformers, config_name)(**keys)
        config.architectures = [model_name]
        config.dtype = "bfloat16"
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            saved = json.loads(pathlib.Path(folder, "config.json").read_text())
            again = transformers.AutoConfig.from_pretrained(folder)
        assert type(again) is type(config)
        (ROOT / f"{name}.json").write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
        text, vision = count(model_name, again)
        print(f"{name}: {text:,} parameters" + f" and {vision:,} of vision" * bool(vision))


if __name__ == "__main__":
    main()
