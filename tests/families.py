"""Every model family of conf/model as a tiny random model: overrides of a run, for tests of all of them."""

from __future__ import annotations

from typing import Any

# Two layers and a hidden size of 32. The vocabulary holds that of the stand-in tokenizer (968) and a mask token.
COMMON = {"vocab_size": 1024, "max_position_embeddings": 160, "num_hidden_layers": 2, "hidden_size": 32,
          "num_attention_heads": 4}  # fmt: skip
GATED = {"intermediate_size": 48, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}


def _tiny(model: str, **architecture: Any) -> list[str]:
    """Overrides that make ``model`` random and of the sizes given; its other settings are those of its yaml."""
    sizes = {**COMMON, **architecture}
    return [f"model={model}", "model.weights=random", *(f"model.architecture.{k}={v}" for k, v in sizes.items())]


FAMILIES: dict[str, list[str]] = {
    "roberta": _tiny("roberta-large", intermediate_size=48),
    "opt": _tiny("opt-1.3b", ffn_dim=48, word_embed_proj_dim=32, bos_token_id=0),
    "llama": _tiny("llama-2-7b", **{**GATED, "num_key_value_heads": 4}),
    "vicuna": _tiny("vicuna-7b", **{**GATED, "num_key_value_heads": 4}),
    "mistral": _tiny("mistral-7b", **GATED, sliding_window=12),
    "qwen3": _tiny("qwen3-0.6b-base", **GATED, head_dim=16),
    # One layer of each kind: sliding and full attention.
    "gemma": _tiny("gemma-3-270m", **{**GATED, "num_key_value_heads": 1}, head_dim=16, sliding_window=12,
                   sliding_window_pattern=2, query_pre_attn_scalar=16),
    "gpt2": _tiny("gpt2", bos_token_id=0, eos_token_id=2),
    "gpt_neox": _tiny("pythia-160m", intermediate_size=48),
}  # fmt: skip
MASKED = ("roberta",)  # of these, the models that predict a mask token: for tasks with a mask template
