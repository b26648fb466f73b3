"""Checkpoints: whole or not there, and safe to load (safetensors and JSON: nothing in them is run)."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model

from lmplay.errors import UserError
from lmplay.files import written_beside

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def save(folder: Path, step: int, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer], state: dict) -> Path:
    """Writes `folder`/step_<step>; then removes the older ones that are not marked `"keep": true`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}"
    if (target / STATE).is_file() and _read_state(target) == state:
        return target
    with written_beside(target) as beside:
        beside.mkdir()
        save_model(model, str(beside / MODEL))
        save_file(_optimizer_tensors(model, optimizers), str(beside / OPTIMIZER))
        (beside / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    for old in find_all(folder)[:-1]:
        if not _read_state(old).get("keep"):
            shutil.rmtree(old)
    for leftover in folder.glob(".step_*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def find_all(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("step_*") if (p / STATE).is_file())


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, or None."""
    return (find_all(folder) or [None])[-1]


def load(checkpoint: Path, model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict:
    """Restores model and optimisers and returns the state. Raises UserError for a damaged checkpoint."""
    load_weights(checkpoint, model)
    tensors = _read(checkpoint / OPTIMIZER, lambda path: load_file(path))
    names = {id(p): n for n, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        packed = optimizer.state_dict()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = f"{number}/{names[id(parameter)]}/"
            entry = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if entry:
                packed["state"][index] = entry
        optimizer.load_state_dict(packed)
    return _read_state(checkpoint)


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Restores the model alone. Raises UserError where the weights are damaged or of another architecture."""
    def read(path):
        try:
            load_model(model, path, strict=True, device=str(next(model.parameters()).device))
        except RuntimeError as error:
            raise UserError(f"{checkpoint}: its weights don't fit this model ({_first_mismatch(error)}); "
                            "use the settings it was trained with") from error
    _read(checkpoint / MODEL, read)


def _optimizer_tensors(model, optimizers) -> dict[str, torch.Tensor]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {f"{number}/{names[id(p)]}/{key}": value.detach().contiguous()
            for number, optimizer in enumerate(optimizers) for p, entry in optimizer.state.items()
            for key, value in entry.items() if isinstance(value, torch.Tensor)}


def _read_state(checkpoint: Path) -> dict:
    return _read(checkpoint / STATE, lambda path: json.loads(Path(path).read_text(encoding="utf-8")))


def _read(path: Path, reader):
    try:
        return reader(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({str(error).splitlines()[0]}): the checkpoint is damaged; delete the folder "
                        f"{path.parent} to go on from the one before, or start over with --fresh") from error


def _first_mismatch(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
