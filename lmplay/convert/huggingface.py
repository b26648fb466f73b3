"""Write a trained model as a folder that Hugging Face's transformers loads."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from lmplay import contract
from lmplay.convert import model_card, own_code
from lmplay.convert.checked_text import LARGEST_DIFFERENCE, Text
from lmplay.convert.fold import Converted
from lmplay.convert.hf_tokenizer import write_tokenizer
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError
from lmplay.files import disk_errors, write_json, written_beside
from lmplay.model import adapters
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs.trained import TrainedRun

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
    """Write a folder for transformers, whole or not at all: weights, configs, tokenizer and a model card.

    An architecture that transformers does not have comes with its own code. Returns the largest difference of the
    logits that transformers computes from the folder, or None if it is not installed; and what to tell about the
    tokenizer. Raises UserError for code in folders of its own, and for other logits.
    """
    from safetensors.torch import save_file

    with written_beside(target) as beside:
        beside.mkdir()
        try:
            weights, config = exported(converted, run.tokenizer)
        except NotHeld:
            weights, config = own_code.write_code(beside, converted, run.tokenizer)
        if "GPT2WithHeadBias" in config.get("architectures", ()):
            (beside / f"modeling_{BIASED}.py").write_text(BIASED_SOURCE, encoding="utf-8")
        write_json(beside / "config.json", config)
        if run.experiment.can_write:
            write_json(beside / "generation_config.json", _generation_config(config, run))
        with disk_errors(target):
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
                str(beside / "model.safetensors"),
                metadata={"format": "pt"},
            )
        said = write_tokenizer(beside, run, text)
        difference = _check(beside, converted, run, text)
        card = model_card.card(target.name, converted, run, own=own_code.is_own(config), trust="auto_map" in config)
        (beside / "README.md").write_text(card, encoding="utf-8")
    return difference, said


class NotHeld(UserError):
    """A model that no published architecture holds."""


def exported(converted: Converted, tokenizer: Tokenizer) -> tuple[dict, dict]:
    """Return the weights by Hugging Face's names, and the content of config.json.

    Raises NotHeld for an architecture that transformers does not have.
    """
    experiment, config = converted.experiment, converted.config
    model: Any = converted.model
    export, export_config = experiment.hook("export_weights"), experiment.hook("export_config")
    if export_config is None and experiment.name == DEFAULT_EXPERIMENT:
        export_config = _gpt2_config
    if export is None or export_config is None:
        missing = "export_weights" if export is None else "export_config"
        raise NotHeld(f"{experiment.name} is no published architecture: it has no {missing}")
    bias = model.head.bias if export_config is _gpt2_config else None
    if bias is not None:
        weights = {name: tensor for name, tensor in model.state_dict().items() if name != "head.bias"}
        model = experiment.build(dataclasses.replace(config, head_bias=False))
        model.load_state_dict(weights)
    try:
        weights, content = export(model), export_config(config)
    except ValueError as error:
        raise NotHeld(f"{experiment.name} is no published architecture with these settings: {error}") from error
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


def _generation_config(config: dict, run: TrainedRun) -> dict:
    """Return how transformers write with the model: as lmp_generator does, up to the end of its context."""
    end = run.tokenizer.eot
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "max_length": run.context_len,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 0.95,
        **({"use_cache": False} if own_code.is_own(config) else {}),
    }


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
    load: Any = transformers.AutoModelForCausalLM if run.experiment.causal else transformers.AutoModel
    model = load.from_pretrained(str(folder), trust_remote_code=True).eval()
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
