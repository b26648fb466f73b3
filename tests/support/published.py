"""Models as others publish them: random weights, written by transformers."""

import json
from pathlib import Path

import torch

from lmplay.convert.hf_tokenizer import _byte_pairs
from lmplay.data.tokenizers import load_tokenizer

GPT2 = dict(n_layer=1, n_head=2, n_embd=16, n_inner=36, n_positions=32, vocab_size=257)
LLAMA = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, intermediate_size=37)
LLAMA |= dict(max_position_embeddings=32, vocab_size=257, rms_norm_eps=1e-5, rope_parameters=dict(rope_theta=300.0))


def publish(transformers, folder: Path, kind: str, bos: int = 256, **settings) -> Path:
    """A model with random weights and the tokenizer bytes, written by transformers."""
    config = getattr(transformers, f"{kind}Config")(**settings, bos_token_id=bos, eos_token_id=256)
    torch.manual_seed(3)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    _byte_pairs(load_tokenizer("bytes")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder
