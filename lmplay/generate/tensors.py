"""Write the tensors that a model computes inside of a text to a file (lmp_generator --dump-tensors)."""

import json
from pathlib import Path

import torch

from lmplay.errors import UserError
from lmplay.model import adapters
from lmplay.own_files import check_new, own_file
from lmplay.runs.trained import TrainedRun


def dump_tensors(run: TrainedRun, prompt: list[int], file: Path) -> dict[str, torch.Tensor]:
    """Write the model's `tensors(tokens)` of the BOS token and `prompt` (token ids) to a safetensors file; return them.

    The file's metadata name the checkpoint, the experiment and the tokens. Raises UserError if the model offers no
    tensors, the prompt is too long or the file can't be there.
    """
    from safetensors.torch import save

    make = adapters.offered(run.model, "tensors")
    if make is None:
        raise UserError(
            f"{run.experiment.name} has no tensors to dump: its Model offers no tensors(tokens) (experiments/README.md)"
        )
    tokens = [run.first_token, *prompt]
    if len(tokens) > run.context_len:
        raise UserError(
            f"the prompt has {len(prompt):,} tokens and the model reads {run.context_len - 1:,}: shorten it"
        )
    check_new(file, "--dump-tensors")
    with torch.inference_mode(), adapters.derived_once(run.model):
        tensors = make(torch.tensor([tokens], device=adapters.device_of(run.model)))
    tensors = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    about = {"experiment": run.experiment.name, "checkpoint": str(run.checkpoint), "tokens": json.dumps(tokens)}
    with own_file(file) as beside:
        beside.write_bytes(save(tensors, about))
    return tensors
