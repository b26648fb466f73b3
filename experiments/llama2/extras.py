"""What a copy of llama2 does not need: Llama's weights in and out, and two small models trained on TinyStories.

model.py does not know of this file: the harness looks here for hooks and variants that model.py lacks.
"""

import math

import torch

tuned_recipe = {  # for --recipe tuned: the best of those tried in experiments/modern/README.md
    "optimizer": "muon",
    "lr": 0.01,
    "embedding_lr": 10.0,
    "lr_schedule": "wsd",
    "warmup_steps": 8,
    "cooldown_fraction": 0.6,
}

variants = {
    "tinystories_12m": dict(vocab_size=4096, max_len=128, n_layer=8, n_head=8, n_embd=320, hidden_multiple=32),
    # An older LLaMA-like model, kept as it was: its own feed-forward, norm and scaling of the scores, a tied head with
    # a bias.
    "mpacl_12m": dict(
        vocab_size=4096,
        max_len=128,
        n_layer=4,
        n_head=8,
        n_embd=256,
        dropout=0.1,
        tied=True,
        head_bias=True,
        l2_norm=True,
        silu_sum=True,
        scores_by_width=True,
    ),
}

_HF_NAMES = {  # Hugging Face's name of each module, and ours; what is one matrix here is two or three there
    "embed_tokens": "tokens_embedding",
    "norm": "norm",
    "input_layernorm": "attention_norm",
    "self_attn.o_proj": "attention.out",
    "post_attention_layernorm": "feed_forward_norm",
    "mlp.down_proj": "feed_forward.down",
}
_HF_PARTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
}


def import_weights(state_dict: dict) -> dict:
    """Return this model's state dict, made from that of a Hugging Face Llama (names with or without `model.`).

    Raises ValueError for a name that Llama does not have and for a layer that is not whole.
    """
    weights, parts = {}, {}
    for name, tensor in state_dict.items():
        module = name.removeprefix("model.").removesuffix(".weight")
        if module.endswith("rotary_emb.inv_freq"):  # old checkpoints carry the frequencies
            continue
        if module == "lm_head":
            weights["head.weight"] = tensor
            continue
        layer = ""
        if module.startswith("layers."):
            _, number, module = module.split(".", 2)
            layer = f"blocks.{number}."
        if module in _HF_NAMES:
            weights[f"{layer}{_HF_NAMES[module]}.weight"] = tensor
        else:
            parts[layer, module] = tensor
    for layer in {layer for layer, _ in parts}:
        for ours, theirs in _HF_PARTS.items():
            if all((layer, part) in parts for part in theirs):
                weights[f"{layer}{ours}.weight"] = torch.cat([parts.pop((layer, part)) for part in theirs])
    if parts:
        raise ValueError(f"not the weights of a whole Llama: {''.join(next(iter(parts)))} is unknown or alone")
    if "tokens_embedding.weight" in weights:
        weights.setdefault("head.weight", weights["tokens_embedding.weight"])
    return weights


def export_weights(model) -> dict:
    """Return the state dict of a Hugging Face `LlamaForCausalLM` with the model's weights.

    `export_config` says the rest. Raises ValueError for a model with a part that Llama does not have.
    """
    c = model.config
    if c.head_bias or c.l2_norm or c.silu_sum or c.scores_by_width:
        raise ValueError("Llama's format holds no model with head_bias, l2_norm, silu_sum or scores_by_width")
    names = {ours: theirs for theirs, ours in _HF_NAMES.items()}
    width, n_kv_head = c.n_embd // c.n_head, c.n_kv_head or c.n_head
    sizes = {"attention.qkv": (c.n_embd, n_kv_head * width, n_kv_head * width)}
    weights = {}
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module == "head":
            weights["lm_head.weight"] = tensor
            continue
        layer = "model."
        if module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            layer = f"model.layers.{number}."
        if module in names:
            weights[f"{layer}{names[module]}.weight"] = tensor
        else:
            for part, rows in zip(_HF_PARTS[module], tensor.split(sizes.get(module, len(tensor) // 2))):
                weights[f"{layer}{part}.weight"] = rows.clone()
    return weights


def export_config(config) -> dict:
    """Return what config.json of a Hugging Face `LlamaForCausalLM` says of the model."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head or config.n_head,
        "hidden_size": config.n_embd,
        "intermediate_size": math.ceil(2 * config.mlp_ratio * config.n_embd / (3 * config.hidden_multiple))
        * config.hidden_multiple,
        "rms_norm_eps": 1e-5,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tied,
    }
