"""Tiny random models of every family, and what transformers computes with them: tests/fixtures/families/NAME/.

    python tests/python/family_fixtures.py tests/fixtures/families [NAME...]

config.json and model.safetensors (bf16) are as transformers saves them; expected.safetensors is of the same weights
upcast to f32, eager attention, CPU, one thread. All parameters are random, norms and biases too, so that one that is
dropped shows. Seeds go up until greedy choices are clear.

tensor            type, shape      meaning
ids               u32 [24]         random tokens
logits            f32 [24, C]      of `ids`
padded_ids        u32 [2, 12]      the second row begins with padding
padding           u32 [2]          tokens of padding on the left of each row
padded_logits     f32 [2, 12, C]   with mask and positions as `generate` makes them; rows of padding mean nothing
prompt            u32 [P]          start of greedy generation
generated         u32 [24]         with cache; an end-of-text token does not stop it
"""

import argparse
import inspect
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

LENGTH, PADDED, NEW = 24, 12, 24
VOCAB, FFN = 48, 32
MARGIN = 0.01

SIZES = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=FFN, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)
FOUR = dict(num_hidden_layers=4)
MHA = dict(num_key_value_heads=4)
LONG = dict(short_factor=[1.0, 1.1, 1.3, 1.5], long_factor=[1.0, 2.0, 3.0, 4.0])
GPT2 = dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=1)
OPT = dict(
    vocab_size=VOCAB, hidden_size=32, ffn_dim=FFN, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
    word_embed_proj_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=2,
)


def rope(kind, **rest):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e3, **rest))


CASES = {
    "llama": ("Llama", dict(rope("default"))),
    "llama-biases": ("Llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "llama-linear": ("Llama", dict(rope("linear", factor=4.0), head_dim=12)),
    "llama-dynamic": ("Llama", dict(rope("dynamic", factor=2.0), max_position_embeddings=16)),
    "llama-llama3": (
        "Llama",
        rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama-yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-yarn-mscale": (
        "Llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=16.0, beta_slow=2.0, mscale=0.7,
             mscale_all_dim=0.3, truncate=False),
    ),
    "llama-longrope": (
        "Llama", rope("longrope", **LONG, factor=4.0, original_max_position_embeddings=16, attention_factor=1.3),
    ),
    "llama-gelu": ("Llama", dict(MHA, hidden_act="gelu", tie_word_embeddings=True)),
    "mistral": ("Mistral", dict(sliding_window=8, head_dim=12)),
    "mistral-full": ("Mistral", dict(sliding_window=None)),
    "mistral-tied": ("Mistral", dict(rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                          original_max_position_embeddings=16), tie_word_embeddings=True)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=12)),
    "qwen3-biases": ("Qwen3", dict(head_dim=8, attention_bias=True, tie_word_embeddings=True)),
    "qwen3-window": ("Qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "gemma": ("Gemma", dict(head_dim=12)),
    "gemma-biases": ("Gemma", dict(head_dim=12, attention_bias=True, hidden_act="gelu", tie_word_embeddings=False)),
    "gemma2": (
        "Gemma2",
        dict(FOUR, head_dim=12, query_pre_attn_scalar=10, sliding_window=8, attn_logit_softcapping=2.0,
             final_logit_softcapping=3.0),
    ),
    "gemma2-plain": (
        "Gemma2",
        dict(head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=None, final_logit_softcapping=None,
             attention_bias=True, layer_types=["full_attention", "sliding_attention"], sliding_window=8),
    ),
    "gemma3": (
        "Gemma3Text",
        dict(FOUR, head_dim=12, query_pre_attn_scalar=10, sliding_window=8, sliding_window_pattern=2,
             rope_parameters=dict(
                 full_attention=dict(rope_type="linear", rope_theta=1e4, factor=4.0),
                 sliding_attention=dict(rope_type="default", rope_theta=1e2))),
    ),
    "gemma3-capped": (
        "Gemma3Text",
        dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8, sliding_window_pattern=2, attention_bias=True,
             final_logit_softcapping=3.0, tie_word_embeddings=False),
    ),
    "phi3": ("Phi3", dict(rope("default", partial_rotary_factor=0.5))),
    "phi3-window": ("Phi3", dict(sliding_window=8, tie_word_embeddings=True)),
    "phi3-short": (
        "Phi3",
        dict(rope("longrope", partial_rotary_factor=0.5, short_factor=[1.1, 1.4], long_factor=[2.0, 4.0]),
             original_max_position_embeddings=64, max_position_embeddings=256),
    ),
    "phi3-long": ("Phi3", dict(rope("longrope", **LONG), original_max_position_embeddings=8, max_position_embeddings=256)),
    "olmo2": ("Olmo2", dict()),
    "olmo2-biases": ("Olmo2", dict(MHA, attention_bias=True, tie_word_embeddings=True)),
    "smollm3": ("SmolLM3", dict(FOUR, no_rope_layer_interval=2, attention_bias=True)),
    "smollm3-window": (
        "SmolLM3",
        dict(use_sliding_window=True, sliding_window=8, no_rope_layers=[0, 1], mlp_bias=True, tie_word_embeddings=False),
    ),
    "granite": (
        "Granite",
        dict(embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.4, attention_multiplier=0.2),
    ),
    "granite-biases": (
        "Granite",
        dict(rope("yarn", factor=4.0, original_max_position_embeddings=16), attention_bias=True, mlp_bias=True,
             attention_multiplier=0.3, tie_word_embeddings=True),
    ),
    "starcoder2": ("Starcoder2", dict(sliding_window=8)),
    "starcoder2-plain": ("Starcoder2", dict(use_bias=False, tie_word_embeddings=False)),
    "stablelm": ("StableLm", dict(use_qkv_bias=True)),
    "stablelm-parallel": ("StableLm", dict(use_parallel_residual=True, partial_rotary_factor=0.5)),
    "gpt2": ("GPT2", dict(GPT2)),
    "gpt2-inverse": ("GPT2", dict(GPT2, n_inner=40, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False)),
    "gpt2-unscaled": ("GPT2", dict(GPT2, n_inner=32, scale_attn_weights=False, activation_function="relu")),
    "opt": ("OPT", dict(OPT)),
    "opt-plain": ("OPT", dict(OPT, enable_bias=False, activation_function="gelu", tie_word_embeddings=False)),
    "gpt_neox": ("GPTNeoX", dict(MHA)),
    "gpt_neox-sequential": (
        "GPTNeoX", dict(MHA, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
    ),
    "gpt_neox-whole": (
        "GPTNeoX", dict(MHA, **rope("linear", factor=2.0, partial_rotary_factor=1.0), hidden_act="gelu_new"),
    ),
    "gpt_neox-plain": ("GPTNeoX", dict(MHA, **rope("default", partial_rotary_factor=1.0))),
    "falcon": ("Falcon", dict(multi_query=True, parallel_attn=True, bias=False, new_decoder_architecture=False)),
    "falcon-new": ("Falcon", dict(num_kv_heads=2, new_decoder_architecture=True, bias=False)),
    "falcon-sequential": (
        "Falcon", dict(multi_query=False, parallel_attn=False, bias=True, new_decoder_architecture=False, ffn_hidden_size=32),
    ),
    "falcon-one-norm": (
        "Falcon",
        dict(num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1, bias=True, ffn_hidden_size=40,
             tie_word_embeddings=False),
    ),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=16)),
    "mixtral-window": (
        "Mixtral",
        dict(num_local_experts=3, num_experts_per_tok=1, intermediate_size=16, sliding_window=8, head_dim=12,
             tie_word_embeddings=True),
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, mlp_only_layers=[0],
             norm_topk_prob=True),
    ),
    "qwen3_moe-steps": (
        "Qwen3Moe",
        dict(head_dim=8, num_experts=4, num_experts_per_tok=3, moe_intermediate_size=12, decoder_sparse_step=2,
             norm_topk_prob=False, attention_bias=True, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    ),
    "olmoe": (
        "Olmoe",
        dict(MHA, num_experts=4, num_experts_per_tok=2, intermediate_size=16, norm_topk_prob=False),
    ),
    "olmoe-normalised": (
        "Olmoe",
        dict(num_experts=4, num_experts_per_tok=2, intermediate_size=16, norm_topk_prob=True, attention_bias=True),
    ),
}


def u32(ids):
    return torch.tensor(ids, dtype=torch.int64).to(torch.uint32)


def make(name, seed):
    """A model with random parameters that are bf16 numbers, in f32."""
    family, options = CASES[name]
    config_class = getattr(transformers, f"{family}Config")
    sizes = {} if family in ("GPT2", "OPT") else SIZES
    config = config_class(**{**sizes, **options})
    model_class = transformers.AutoModelForCausalLM._model_mapping[config_class]
    model = model_class._from_config(config, attn_implementation="eager").eval().float()
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            one = 1.0 if parameter_name.endswith("weight") and family not in ("Gemma", "Gemma2", "Gemma3Text") else 0.0
            values = one + 0.2 * values
        else:
            values = 0.25 * values
        parameter.data.copy_(values.bfloat16().float())
    return model


@torch.no_grad()
def expected(model, name):
    ids = torch.randint(3, VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    padding = [0, 5]
    rows = [ids[:PADDED], [2] * padding[1] + ids[: PADDED - padding[1]]]
    mask = torch.tensor([[0] * n + [1] * (PADDED - n) for n in padding])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    extra = {"position_ids": positions} if "position_ids" in inspect.signature(model.forward).parameters else {}
    padded = model(torch.tensor(rows), attention_mask=mask, use_cache=False, **extra).logits
    prompt = ids[:12]
    out = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=NEW,
        min_new_tokens=NEW, do_sample=False, use_cache=True, eos_token_id=None, output_logits=True,
        return_dict_in_generate=True,
    )
    top = torch.stack(out.logits)[:, 0].topk(2).values
    tensors = {
        "ids": u32(ids), "logits": logits, "padded_ids": u32(rows), "padding": u32(padding), "padded_logits": padded,
        "prompt": u32(prompt), "generated": u32(out.sequences[0, len(prompt):].tolist()),
    }
    return {key: value.contiguous() for key, value in tensors.items()}, float((top[:, 0] - top[:, 1]).min())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for one folder per case")
    parser.add_argument("names", nargs="*", help="cases to make (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    for name in args.names or CASES:
        for seed in range(100):
            model = make(name, seed)
            tensors, margin = expected(model, name)
            if margin > MARGIN:
                break
        folder = args.output / name
        shutil.rmtree(folder, ignore_errors=True)
        model.bfloat16().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        made = {"script": "tests/python/family_fixtures.py", "seed": seed, **versions}
        save_file(tensors, folder / "expected.safetensors", metadata={"made": json.dumps(made, sort_keys=True)})
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: seed {seed}, smallest margin {margin:.4f}, logits to {tensors['logits'].abs().max():.1f}, {size} bytes")


if __name__ == "__main__":
    main()
