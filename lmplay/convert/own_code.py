"""Give transformers an experiment's own code, for an architecture that it does not have."""

import shutil
from pathlib import Path

from torch import Tensor

from lmplay import contract, registry
from lmplay.convert.fold import Converted
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError

MODEL_TYPE = "lmplay"
SOURCE = '''"""A model of the experiment @NAME@ of lmplay: load it with trust_remote_code=True."""

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .model import Config, Model


class LmplayConfig(PretrainedConfig):
    model_type = "@TYPE@"

    def __init__(self, fields=None, next_token=True, **others):
        self.fields, self.next_token = fields or {}, next_token
        super().__init__(**others)


class LmplayModel(PreTrainedModel, GenerationMixin):
    config_class = LmplayConfig

    def __init__(self, config):
        super().__init__(config)
        with torch.device("cpu"):  # not "meta", where tables that the model computes would have no values
            self.model = Model(Config(**config.fields))
        self.post_init()

    def _init_weights(self, module):
        pass  # the model's own code has done it

    def forward(self, input_ids, attention_mask=None, labels=None, **others):
        """Return the logits (B, T, V) of token ids (B, T), and the loss of labels (B, T), -100 where not scored."""
        if attention_mask is not None and not attention_mask[:, 0].all():
            raise ValueError("this model reads every token: put padding on the right")
        output = self.model(input_ids)
        logits = output[0] if isinstance(output, tuple) else output
        loss = None
        if labels is not None:
            if not self.config.next_token:
                raise ValueError("this model does not predict the next token: compute its loss from the logits")
            loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
'''


def is_own(config: dict) -> bool:
    """Tell whether a config.json is of a model that brings its code."""
    return config["model_type"] == MODEL_TYPE


def write_code(folder: Path, converted: Converted, tokenizer: Tokenizer) -> tuple[dict[str, Tensor], dict]:
    """Write the experiment's files and a modeling file into `folder`; return the weights and config.json's content.

    Tied weights are written once for each of their names. Raises UserError for code in folders, which transformers
    does not load.
    """
    experiment, entry = converted.experiment, registry.read_entry(converted.experiment.folder)
    files = [path for path in entry.files if path.name != registry.EXTRAS]
    if deeper := [path for path in files if path.parent != entry.folder]:
        raise UserError(
            f"{experiment.name} can't be written for Hugging Face: transformers loads no code from folders "
            f"({deeper[0].relative_to(entry.folder)}): put the files beside model.py"
        )
    for path in files:
        shutil.copyfile(path, folder / path.name)
    module = f"modeling_{MODEL_TYPE}"
    source = SOURCE.replace("@NAME@", experiment.name).replace("@TYPE@", MODEL_TYPE)
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    found = {"AutoModel": f"{module}.LmplayModel"}
    if experiment.causal:
        found["AutoModelForCausalLM"] = f"{module}.LmplayModel"
    config = converted.config
    content = {
        "model_type": MODEL_TYPE,
        "architectures": ["LmplayModel"],
        "auto_map": {"AutoConfig": f"{module}.LmplayConfig", **found},
        "fields": contract.config_values(config),
        "next_token": experiment.causal and experiment.hook("make_batch") is None,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_len,
        "tie_word_embeddings": False,
        "use_cache": False,
        "bos_token_id": tokenizer.eot,
        "eos_token_id": tokenizer.eot,
        "dtype": "float32",
    }
    weights = {f"model.{name}": tensor.detach().clone() for name, tensor in converted.model.state_dict().items()}
    return weights, content
