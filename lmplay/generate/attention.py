"""Write the attention maps of a text to a file (lmp_generator --save-attention)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmplay.errors import UserError
from lmplay.generate.inside import Inside, inputs_of, inputs_of_tokens, read_once
from lmplay.generate.writing import choose_direction
from lmplay.own_files import own_file
from lmplay.runs.trained import TrainedRun


def save_attention(run: TrainedRun, text: str | list[int], file: Path, direction: str | None = None) -> dict[str, Any]:
    """Write the attention maps of a text, or of its tokens in the text's order, to an .npz file; return its arrays.

    `tokens` (T,): their texts, as they are read, the BOS token first. `attention` (layers, heads, T, T), float32: row i
    is what token i looked at; maps of unlike shapes are `attention_0`, `attention_1`, ... A text that the model can't
    read at once is cut. Raises UserError for a model without maps.
    """
    inside = read_once(run, _inputs(run, text, direction))
    if not inside.attention:
        raise UserError(
            f"{run.experiment.name} has no attention maps: its model never calls torch's scaled_dot_product_attention"
        )
    arrays: dict[str, Any] = {"tokens": np.array(inside.tokens), **_maps(inside)}
    with own_file(file) as beside, open(beside, "wb") as target:
        np.savez_compressed(target, **arrays)
    return arrays


def _inputs(run: TrainedRun, text: str | list[int], direction: str | None) -> torch.Tensor:
    if isinstance(text, str):
        return inputs_of(run, text, direction)
    most = run.context_len - 1
    from_end = choose_direction(run, direction).reversed
    return inputs_of_tokens(run, text[-most:] if from_end else text[:most], direction)


def _maps(inside: Inside) -> dict[str, np.ndarray]:
    maps = [one.numpy() for one in inside.attention]
    if all(one.shape == maps[0].shape for one in maps):
        return {"attention": np.stack(maps)}
    return {f"attention_{number}": one for number, one in enumerate(maps)}
