"""Write a trained model as a folder that Hugging Face's transformers loads."""

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lmplay import contract
from lmplay.convert.checked_text import LARGEST_DIFFERENCE, Text
from lmplay.convert.fold import Converted
from lmplay.data.tokenizers import END_OF_TEXT, Tokenizer, byte_level_alphabet
from lmplay.errors import UserError
from lmplay.files import write_json, written_beside
from lmplay.model import adapters
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs.checkpoints import disk_errors
from lmplay.runs.trained import TrainedRun

if TYPE_CHECKING:
    import tokenizers

# GPT-2's format has no bias of the head. A type of its own keeps anybody from loading it as a GPT-2 without the bias.
BIASED = "gpt2_with_head_bias"
BIASED_SOURCE = f'''"""GPT-2 with a bias in its head: load it with trust_remote_code=True."""

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


class GPT2WithHeadBiasConfig(GPT2Config):
    model_type = "{BIASED}"


class GPT2WithHeadBias(GPT2LMHeadModel):
    config_class = GPT2WithHeadBiasConfig

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.post_init()
'''


def write_hf(target: Path, converted: Converted, run: TrainedRun, text: Text) -> tuple[float | None, str]:
    """Write config.json, model.safetensors and, for a tokenizer of byte pairs, tokenizer.json; whole or not at all.

    Returns the largest difference of the logits that transformers computes from the folder, or None if it is not
    installed; and what to tell about the tokenizer. Raises UserError for an experiment without export_weights, for
    settings that the format does not hold, and for other logits.
    """
    from safetensors.torch import save_file

    weights, config = _exported(converted, run.tokenizer)
    with written_beside(target) as beside:
        beside.mkdir()
        write_json(beside / "config.json", config)
        if "auto_map" in config:
            (beside / f"modeling_{BIASED}.py").write_text(BIASED_SOURCE, encoding="utf-8")
        with disk_errors(target):
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
                str(beside / "model.safetensors"),
                metadata={"format": "pt"},
            )
        said = _write_tokenizer(beside, run, text)
        difference = _check(beside, converted, run, text)
    return difference, said


def _exported(converted: Converted, tokenizer: Tokenizer) -> tuple[dict, dict]:
    """Return the weights by Hugging Face's names, and the content of config.json."""
    experiment, config = converted.experiment, converted.config
    model: Any = converted.model
    export, export_config = experiment.hook("export_weights"), experiment.hook("export_config")
    if export_config is None and experiment.name == DEFAULT_EXPERIMENT:
        export_config = _gpt2_config
    if export is None or export_config is None:
        raise UserError(
            f"{experiment.name} can't be written for Hugging Face: it has no "
            f"{'export_weights' if export is None else 'export_config'}"
        )
    bias = model.head.bias if export_config is _gpt2_config else None
    if bias is not None:
        weights = {name: tensor for name, tensor in model.state_dict().items() if name != "head.bias"}
        model = experiment.build(dataclasses.replace(config, head_bias=False))
        model.load_state_dict(weights)
    try:
        weights, content = export(model), export_config(config)
    except ValueError as error:
        raise UserError(f"{experiment.name} can't be written for Hugging Face: {error}") from error
    if content.get("tie_word_embeddings"):
        weights.pop("lm_head.weight")
    if bias is not None:
        weights["lm_head.bias"] = bias
        content |= {
            "model_type": BIASED,
            "architectures": ["GPT2WithHeadBias"],
            "auto_map": {
                "AutoConfig": f"modeling_{BIASED}.GPT2WithHeadBiasConfig",
                "AutoModelForCausalLM": f"modeling_{BIASED}.GPT2WithHeadBias",
            },
        }
    return weights, content | {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot, "dtype": "float32"}


def _gpt2_config(config: Any) -> dict:
    """Return GPT-2's config.json for the Config of the default experiment, which has no export_config of its own.

    Settings that the Config of an older run lacks count as their defaults.
    """
    own = contract.config_values(config)
    embedding_dropout = own.get("embedding_dropout")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.max_len,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_inner": int(own.get("mlp_ratio", 4.0) * config.n_embd),
        "activation_function": "gelu_new" if config.tanh_gelu else "gelu",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout if embedding_dropout is None else embedding_dropout,
        "attn_pdrop": own.get("attention_dropout", 0.0),
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": config.tied,
    }


@torch.no_grad()
def _check(folder: Path, converted: Converted, run: TrainedRun, text: Text) -> float | None:
    """Return the largest difference to the logits that transformers computes from the folder, None without it.

    Raises UserError if it is more than LARGEST_DIFFERENCE.
    """
    try:
        import transformers
    except ImportError:
        return None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True).eval()
    largest = 0.0
    ours = converted.model.cpu()
    with adapters.derived_once(ours):
        for inputs, _ in text.batches(run, torch.device("cpu")):
            logits = adapters.split_output(ours(inputs))[0]
            largest = max(largest, float((logits - model(inputs).logits).abs().max()))
    if not largest <= LARGEST_DIFFERENCE:
        raise UserError(
            f"transformers computes other logits from what would be written: they differ by up to {largest:.2g} on "
            f"{text.origin}. Nothing was written"
        )
    return largest


def _write_tokenizer(folder: Path, run: TrainedRun, text: Text) -> str:
    """Write tokenizer.json for a tokenizer of byte pairs; return what was done."""
    tokenizer = run.tokenizer
    if tokenizer.pattern is None:
        return _no_tokenizer(folder, f"{tokenizer.spec} is not a tokenizer of byte pairs")
    made = _byte_pairs(tokenizer, tokenizer.pattern)
    sample = tokenizer.decode([token for token in text.tokens.tolist() if token != tokenizer.eot])
    if made.encode(sample, add_special_tokens=False).ids != tokenizer.encode(sample):
        return _no_tokenizer(folder, f"the library tokenizers cuts text otherwise than {tokenizer.spec}")
    made.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": run.context_len,
            "clean_up_tokenization_spaces": False,
        },
    )
    return "tokenizer.json"


def _no_tokenizer(folder: Path, why: str) -> str:
    """Let AutoTokenizer refuse the folder, which would make something unusable of it; return what was done."""
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "NoTokenizerWasExported"})
    return f"no tokenizer.json: {why}; lmplay.load_run(RUN).tokenizer makes the token ids"


def _byte_pairs(tokenizer: Tokenizer, pattern: str) -> "tokenizers.Tokenizer":
    """Return the same tokenizer, made with the library `tokenizers`.

    Each token is the merge of the two tokens that the merges before it make of its bytes.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Built

    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    ranks = {token: i for i, token in enumerate(tokens)}
    shown = byte_level_alphabet()

    def name(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    halves = [_halves(token, ranks) for token in tokens if len(token) > 1]
    merges = [(name(first), name(second)) for first, second in halves]
    built = Built(models.BPE(vocab={name(token): i for token, i in ranks.items()}, merges=merges, fuse_unk=False))
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    begin = (END_OF_TEXT, tokenizer.eot)  # a text begins with the token that every context began with in training
    built.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B", special_tokens=[begin]
    )
    return built


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens that merge to this one."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
