"""What a copy of gpt2ish does not need: GPT-2's weights in and out, and variants that exist for comparisons only.

model.py does not know of this file: the harness looks here for hooks and variants that model.py lacks.
"""

tuned_recipe = {  # for --recipe tuned: the best of those tried in experiments/modern/README.md
    "optimizer": "muon",
    "lr": 0.01,
    "embedding_lr": 10.0,
    "lr_schedule": "wsd",
    "warmup_steps": 8,
    "cooldown_fraction": 0.6,
}

variants = {
    # The baseline of jmward01/lmplay, with torch's initial values: for comparison with its figures.
    "historical": dict(torch_init=True, dropout=0.1),
    # The published architecture, which reads and writes Hugging Face weights.
    "gpt2": dict(n_layer=12, tied=True, head_bias=False, tanh_gelu=True),
    # Fair opponents of an idea that adds parameters or FLOPs of its own.
    "tiny_6l": dict(n_layer=6, n_head=4, n_embd=256, max_len=256),
    "tiny_8l": dict(n_layer=8, n_head=4, n_embd=256, max_len=256),
    "tiny_wide": dict(n_layer=4, n_head=5, n_embd=320, max_len=256),
    # Fair opponents of an idea that works on the embeddings: they start as large as the idea's do.
    "tiny_std02": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_std=0.2),
    "tiny_std1": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_std=1.0),
    "std02": dict(embedding_std=0.2),
    "std1": dict(embedding_std=1.0),
    # They learn as fast: ten times the rate. In muP (arXiv 2203.03466) the rate of the matrices falls with the width
    # and that of the embeddings does not. At a width of 768 that comes to a factor of 12 on a base of 64; nanochat
    # takes about 50.
    "tiny_fast_embedding": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_lr=10.0),
    "fast_embedding": dict(embedding_lr=10.0),
}

_HF_NAMES = {  # Hugging Face's name of each module, and ours
    "wte": "tokens_embedding",
    "wpe": "positions_embedding",
    "ln_f": "norm",
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}


def import_weights(state_dict: dict) -> dict:
    """Return this model's state dict, made from that of a Hugging Face GPT-2 (names with or without `transformer.`).

    Raises ValueError for a name that GPT-2 does not have.
    """
    weights = {}
    for name, tensor in state_dict.items():
        module, kind = name.removeprefix("transformer.").rsplit(".", 1)
        if module == "lm_head":
            weights["head.weight"] = tensor
            continue
        if module.endswith(".attn") and kind in ("bias", "masked_bias"):  # causal masks that old checkpoints carry
            continue
        layer = ""
        if module.startswith("h."):
            _, number, module = module.split(".", 2)
            layer = f"blocks.{number}."
        if module not in _HF_NAMES:
            raise ValueError(f"not the weights of a GPT-2: it has no {name}")
        if kind == "weight" and ".c_" in module:  # its Conv1D keeps (in, out)
            tensor = tensor.t()
        weights[f"{layer}{_HF_NAMES[module]}.{kind}"] = tensor
    if "tokens_embedding.weight" in weights:
        weights.setdefault("head.weight", weights["tokens_embedding.weight"])
    return weights


def export_weights(model) -> dict:
    """Return the state dict of a Hugging Face `GPT2LMHeadModel` with the model's weights.

    Its config says the rest: n_inner is the feed-forward layer's width, activation_function "gelu_new" for tanh_gelu
    and "gelu" without, tie_word_embeddings as tied. Raises ValueError for a head with a bias: GPT-2's format cannot
    hold one.
    """
    if model.config.head_bias:
        raise ValueError("GPT-2's format cannot hold the bias of the head: train with --set head_bias=false")
    names = {ours: theirs for theirs, ours in _HF_NAMES.items()}
    weights = {}
    for name, tensor in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module == "head":
            weights["lm_head.weight"] = tensor
            continue
        layer = ""
        if module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            layer = f"h.{number}."
        if kind == "weight" and ".c_" in names[module]:
            tensor = tensor.t().contiguous()
        weights[f"transformer.{layer}{names[module]}.{kind}"] = tensor
    return weights
