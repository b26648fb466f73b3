"""Write a GPT-2 or a Llama as a GGUF file in float32, which llama.cpp reads.

The names of tensors and keys are those of the package gguf; Llama's rotary channels are in the order of llama.cpp,
pairs side by side (its convert_hf_to_gguf.py).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from lmplay.convert.fold import Converted
from lmplay.convert.hf_tokenizer import byte_pair_merges
from lmplay.convert.huggingface import NotHeld, exported
from lmplay.data.tokenizers import END_OF_TEXT, Tokenizer
from lmplay.errors import UserError
from lmplay.files import written_beside
from lmplay.runs.checkpoints import disk_errors
from lmplay.runs.trained import TrainedRun

# By config.json's model_type, which is gguf's name of the architecture: a size as gguf calls it, and its key there
SIZES = {
    "gpt2": {
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "block_count": "n_layer",
        "feed_forward_length": "n_inner",
        "head_count": "n_head",
        "layer_norm_eps": "layer_norm_epsilon",
    },
    "llama": {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "head_count": "num_attention_heads",
        "head_count_kv": "num_key_value_heads",
        "layer_norm_rms_eps": "rms_norm_eps",
        "rope_freq_base": "rope_theta",
        "vocab_size": "vocab_size",
    },
}
# How llama.cpp cuts text before it merges bytes, by the names of tiktoken; other tokenizers are cut as GPT-2's
CUTS = {"tiktoken:gpt2": "gpt-2", "tiktoken:r50k_base": "gpt-2", "tiktoken:o200k_base": "gpt-4o"}


def write_gguf(target: Path, converted: Converted, run: TrainedRun) -> str:
    """Write the model into the file `target`, whole or not at all; return what to tell about the tokenizer.

    Raises UserError for an architecture that is no plain GPT-2 and no Llama, and without the package gguf.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("--format gguf needs the package gguf: pip install 'lmplay[gguf]'") from None
    weights, config = _plain(converted, run.tokenizer)
    kind = config["model_type"]
    with written_beside(target) as beside, disk_errors(target):
        writer = gguf.GGUFWriter(str(beside), kind)
        writer.add_name(target.stem)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _write_sizes(writer, config)
        said = _write_tokenizer(writer, run.tokenizer)
        names = gguf.get_tensor_name_map(
            gguf.MODEL_ARCH[kind.upper()], config.get("n_layer") or config["num_hidden_layers"]
        )
        for name, tensor in weights.items():
            ours = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert ours is not None, name
            writer.add_tensor(ours, _as_llama_cpp(name, tensor, config).detach().cpu().float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return said


def _plain(converted: Converted, tokenizer: Tokenizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights by Hugging Face's names and config.json's content. Raises UserError for another model."""
    why = "llama.cpp knows GPT-2 (gpt2ish:gpt2) and Llama (llama2)"
    try:
        weights, config = exported(converted, tokenizer)
    except NotHeld as error:
        raise UserError(f"{error}; {why}") from error
    kind = config["model_type"]
    if kind not in SIZES:
        raise UserError(f"this model is no plain GPT-2: its head has a bias; {why}: train with --set head_bias=false")
    if kind == "gpt2" and config["activation_function"] == "gelu":
        raise UserError(
            f"this model has the exact GELU, and llama.cpp only GPT-2's: train with --set tanh_gelu=true; {why}"
        )
    return weights, config


def _write_sizes(writer: Any, config: dict[str, Any]) -> None:
    """Write the sizes of the model."""
    for what, key in SIZES[config["model_type"]].items():
        getattr(writer, f"add_{what}")(config[key])
    if config["model_type"] == "llama":
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])


def _as_llama_cpp(name: str, tensor: Tensor, config: dict[str, Any]) -> Tensor:
    """Return a tensor as llama.cpp has it: linear layers (out, in), rotary channels in pairs."""
    if ".c_" in name and name.endswith(".weight"):
        return tensor.t()
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = next((heads[part] for part in heads if f".{part}." in name), None)
    if key is None:
        return tensor
    n_head, (rows, columns) = config[key], tensor.shape
    return tensor.view(n_head, 2, rows // n_head // 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer) -> str:
    """Write the tokenizer, with a BOS token before each text; return what was done."""
    import gguf

    if tokenizer.pattern is None:
        writer.add_tokenizer_model("no_vocab")
        return f"token ids only: {tokenizer.spec} is not a tokenizer of byte pairs"
    vocabulary, merges = byte_pair_merges(tokenizer)
    tokens = [*vocabulary, END_OF_TEXT]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), tokenizer.vocab_size)]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    others = [unused] * (len(tokens) - len(vocabulary) - 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(CUTS.get(tokenizer.spec, "gpt-2"))
    writer.add_token_list(tokens)
    writer.add_token_types([*[normal] * len(vocabulary), control, *others])
    writer.add_token_merges([f"{first} {second}" for first, second in merges])
    writer.add_bos_token_id(tokenizer.eot)
    writer.add_eos_token_id(tokenizer.eot)
    writer.add_add_bos_token(True)
    if tokenizer.spec in CUTS:
        return "with its tokenizer"
    return "with its tokenizer, but llama.cpp cuts some texts otherwise (numbers, contractions): its ids are surest"
