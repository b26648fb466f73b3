"""Save and load checkpoints: whole or not there, and safe to load (safetensors and JSON: nothing in them is run)."""

import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lmplay.checksums import CHECKSUM, CHECKSUMS, broken_seal, of_file, seal
from lmplay.errors import UserError
from lmplay.files import beside_of, check_plain, disk_errors, make_folder, read_json, write_json, written_beside
from lmplay.runs import model_state
from lmplay.runs.names import ATTRIBUTES, BEST, MODEL, OPTIMIZER, STATE, STEP, checkpoint_name
from lmplay.runs.shape import STATE as STATE_SHAPE
from lmplay.runs.shape import STATE_CHECKSUMS, Misfit, fitting
from lmplay.text import printable

if TYPE_CHECKING:
    import torch

    from lmplay.runs.model_state import Kept

T = TypeVar("T")
Tensors = tuple[dict[str, Any], dict[str, Any]]  # of the model and of the optimizers, by name
OWN = (MODEL, OPTIMIZER, ATTRIBUTES)  # the files of a checkpoint with a checksum; the last one only if there is any


def save(
    folder: Path,
    step: int,
    model: "torch.nn.Module",
    optimizers: "list[torch.optim.Optimizer]",
    state: dict[str, Any],
    checksums: dict[str, list[int]] | None = None,
    kept: "Kept | None" = None,
    tensors: "Tensors | None" = None,
) -> Path:
    """Write `folder`/step_<step> and return it; delete older checkpoints except those marked `"keep": true`.

    checksums: of the run's other files, [size, checksum] by their path in its folder. kept: what the model holds
    outside of its parameters. tensors: those of model and optimizers, if they are gathered already. The checkpoint that
    `state` names as the best stays, too.

    The newest of the older ones stays, in case this one gets damaged. If the checkpoint of this step exists already,
    because the run ends right after it, its weights are the same and its mark stays.
    """
    from safetensors.torch import save_file

    make_folder(folder)
    target = folder / checkpoint_name(step)
    if os.path.isfile(target / STATE):
        marked, own = read_state(target)["keep"], read_checksums(target).get("checkpoint")
        write_state(target, {**state, "keep": state["keep"] or marked}, checksums or {}, own)
        return target
    with written_beside(target) as beside:
        beside.mkdir()
        with disk_errors(target):
            of_model, of_optimizers = tensors or (_model_tensors(model), optimizer_tensors(model, optimizers))
            save_file(of_model, str(beside / MODEL))
            save_file(of_optimizers, str(beside / OPTIMIZER))
            if kept is not None:
                kept.write(beside / ATTRIBUTES)
        write_state(beside, state, checksums or {})
    spared = state.get(BEST, {}).get(STEP)
    for old in find_all(folder)[:-2]:
        if not read_state(old)["keep"] and (spared is None or old.name != checkpoint_name(spared)):
            going = beside_of(old)  # half a checkpoint must not look like one
            old.rename(going)
            shutil.rmtree(going)
    return target


def write_state(
    checkpoint: Path, state: dict[str, Any], run: dict[str, list[int]], own: dict[str, int] | None = None
) -> None:
    """Write state.json with checksums; `run` and `own` as `read_checksums` returns them, `own` by default new ones."""
    if own is None:
        own = {name: of_file(checkpoint / name) for name in OWN if name != ATTRIBUTES or (checkpoint / name).is_file()}
    write_json(checkpoint / STATE, seal({**state, CHECKSUMS: {"checkpoint": own, "run": run}}))


def find_all(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first. One that can't be looked into counts as not there."""
    return sorted(p for p in folder.glob("step_*") if os.path.isfile(p / STATE))


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder`, None if there is none."""
    return max(find_all(folder), default=None)


def load(
    checkpoint: Path,
    model: "torch.nn.Module",
    optimizers: "list[torch.optim.Optimizer]",
    part_of: "Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None" = None,
) -> dict[str, Any]:
    """Restore the model and the optimizers, and return the state. Raises UserError for a damaged checkpoint.

    part_of: of a sharded model, what this rank holds of a state that belongs to a parameter; its weights are loaded
    already.
    """
    if part_of is None:
        load_weights(checkpoint, model)
    tensors = _read(checkpoint / OPTIMIZER, _checked_tensors)
    names = {id(p): n for n, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        packed = optimizer.state_dict()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = f"{number}/{names[id(parameter)]}/"
            entry = {
                key.removeprefix(prefix): tensor.item() if _is_count(tensor) else tensor
                for key, tensor in tensors.items()
                if key.startswith(prefix)
            }
            for value in entry.values():
                if not isinstance(value, (int, float)) and value.ndim and value.shape != parameter.shape:
                    raise _damaged(checkpoint / OPTIMIZER, f"its state of {names[id(parameter)]} has another shape")
            if part_of is not None:
                entry = {key: v if isinstance(v, (int, float)) else part_of(v, parameter) for key, v in entry.items()}
            if entry:
                packed["state"][index] = entry
        optimizer.load_state_dict(packed)
    return read_state(checkpoint)


def load_weights(checkpoint: Path, model: "torch.nn.Module") -> None:
    """Restore the model alone, with what it holds outside of its parameters.

    Raises UserError if the weights are damaged, not finite or of another architecture.
    """
    tensors = _read(checkpoint / MODEL, _checked_tensors)  # on the CPU: a table may have no room elsewhere
    wanted = model.state_dict()
    if spoiled := not_finite(tensors):
        initial = not_finite({name: wanted[name] for name in spoiled if name in wanted})  # a mask may hold infinities
        spoiled = [name for name in spoiled if name not in initial]
    if spoiled:
        raise UserError(
            f"{checkpoint}: its weights are not finite ({spoiled[0]}{_more(spoiled)}): nothing can be done with "
            "them: use an earlier checkpoint, or a run with a lower --lr"
        )
    try:
        missing, unknown = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # other shapes
        raise _unfit(checkpoint, _first_mismatch(error)) from error
    there = {_address(wanted[name]) for name in tensors if name in wanted}
    for what, names in (
        ("it lacks", [name for name in missing if name not in wanted or _address(wanted[name]) not in there]),
        ("it has", unknown),
    ):
        if names:
            raise _unfit(checkpoint, f"{what} {names[0]}{_more(names)}")
    if has_attributes(checkpoint):
        _read(checkpoint / ATTRIBUTES, lambda path: model_state.restore(_attributes(path), model))


def not_finite(tensors: "Mapping[str, torch.Tensor]") -> list[str]:
    """Return the names of those that hold NaN or infinity."""
    numbers = {name: tensor.detach() for name, tensor in tensors.items() if tensor.is_floating_point()}
    # NaN is the least and the largest of what holds it; no copy of the tensor is made
    return [
        name
        for name, tensor in numbers.items()
        if tensor.numel() and not all(math.isfinite(end.item()) for end in tensor.aminmax())
    ]


def _more(names: Sequence[str]) -> str:
    """Return the end of a list of which only the first name is said."""
    return f" and {len(names) - 1} more" if names[1:] else ""


def _unfit(checkpoint: Path, why: str) -> UserError:
    return UserError(f"{checkpoint}: its weights don't fit this model ({why}); use the settings it was trained with")


def _model_tensors(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """Return the model's state, tied weights once and every tensor with memory of its own.

    cuDNN keeps all weights of a recurrent layer in one block, which safetensors takes for tied weights that it can't
    save.
    """
    once = {
        _address(tensor): (name, tensor.detach()) for name, tensor in sorted(model.state_dict().items(), reverse=True)
    }
    return {
        name: tensor.contiguous() if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.contiguous().clone()
        for name, tensor in once.values()
    }


def _address(tensor: "torch.Tensor") -> tuple[object, ...]:
    """Return where in memory a tensor lies: equal for tied weights."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()


def optimizer_tensors(model: "torch.nn.Module", optimizers: "list[torch.optim.Optimizer]") -> "dict[str, torch.Tensor]":
    """Return the state of the optimizers, named "<number of the optimizer>/<parameter>/<key>"."""
    import torch

    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{number}/{names[id(p)]}/{key}": torch.as_tensor(value).detach().contiguous()
        for number, optimizer in enumerate(optimizers)
        for p, entry in optimizer.state.items()
        for key, value in entry.items()
        if isinstance(value, (torch.Tensor, int))
    }


def _is_count(tensor: "torch.Tensor") -> bool:
    """Tell whether this was a Python int: SparseAdam counts its steps in one, the others in a float tensor."""
    return tensor.ndim == 0 and str(tensor.dtype) == "torch.int64"


def read_state(checkpoint: Path, whole: bool = False) -> dict[str, Any]:
    """Return what a checkpoint notes about where the run stood. whole: with all that a run needs to go on.

    Raises UserError if it is damaged.
    """
    state = _read(checkpoint / STATE, partial(_sealed, needed=STATE_SHAPE if whole else ("keep",)))
    return {key: value for key, value in state.items() if key not in (CHECKSUM, CHECKSUMS)}


def read_anyway(checkpoint: Path) -> dict[str, Any]:
    """Return the state of a checkpoint whose files can be read, whatever its checksums say. Raises UserError."""
    for name in (MODEL, OPTIMIZER):
        _read(checkpoint / name, _tensors)
    state = _read(checkpoint / STATE, _json)
    return {key: value for key, value in state.items() if key not in (CHECKSUM, CHECKSUMS)}


def read_checksums(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's checksums; {} for one of an earlier version.

    "checkpoint": of its own files, by name. "run": [size, checksum] of the run's other files at that time, by their
    path in the run's folder. Raises UserError if state.json is damaged.
    """
    sums: dict[str, Any] = _read(checkpoint / STATE, _sealed).get(CHECKSUMS, {})
    return sums


def check_all(checkpoint: Path) -> None:
    """Raise UserError if one of a checkpoint's own files is damaged, as far as its checksums tell."""
    sums = read_checksums(checkpoint).get("checkpoint", {})
    for name in [MODEL, OPTIMIZER, *(sums.keys() & {ATTRIBUTES})]:
        _read(checkpoint / name, partial(_check, known=sums.get(name)))


def damage_in(checkpoint: Path) -> str | None:
    """Return which of a checkpoint's own files is damaged, None if none is."""
    try:
        check_all(checkpoint)
    except UserError as error:
        return str(error).partition(": the checkpoint is damaged")[0]
    return None


def _json(path: str, needed: Collection[str] = ("keep",)) -> dict[str, Any]:
    """Return the content of state.json. Raises ValueError for what is none, and if a key of `needed` is missing."""
    wrong: list[str] = []
    try:
        content: dict[str, Any] = fitting(read_json(Path(path)), STATE_SHAPE | STATE_CHECKSUMS, wrong)
    except Misfit:
        raise ValueError("it is not a JSON object") from None
    wrong += [key for key in needed if key not in content]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is missing or no value of it")
    return content


def _sealed(path: str, needed: Collection[str] = ("keep",)) -> dict[str, Any]:
    content = _json(path, needed)
    if broken := broken_seal(content):
        raise ValueError(broken)
    return content


def _check(path: str, known: int | None) -> None:
    if of_file(Path(path)) != known and known is not None:
        raise ValueError("its content is not what was written")


def _checked_tensors(path: str) -> "dict[str, torch.Tensor]":
    """Return the tensors of a checkpoint's file. Raises ValueError if it is damaged."""
    checkpoint, name = Path(path).parent, Path(path).name
    if os.path.isfile(checkpoint / STATE):
        _check(path, read_checksums(checkpoint).get("checkpoint", {}).get(name))
    return _tensors(path)


def has_attributes(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has, or by its checksums had, what the model held outside of its parameters."""
    there = (checkpoint / ATTRIBUTES).is_file()
    return there or ((checkpoint / STATE).is_file() and ATTRIBUTES in read_checksums(checkpoint).get("checkpoint", {}))


def read_attributes(checkpoint: Path) -> "Kept | None":
    """Return what the model held outside of its parameters, None for nothing. Raises UserError if it is damaged."""
    return _read(checkpoint / ATTRIBUTES, _attributes) if has_attributes(checkpoint) else None


def _attributes(path: str) -> "Kept":
    """Return what the model held outside of its parameters. Raises ValueError if the file is damaged."""
    from safetensors import SafetensorError

    if os.path.isfile(Path(path).parent / STATE):
        _check(path, read_checksums(Path(path).parent).get("checkpoint", {}).get(ATTRIBUTES))
    try:
        return model_state.read(Path(path))
    except (SafetensorError, KeyError) as error:
        raise ValueError(str(error)) from error


def _tensors(path: str) -> "dict[str, torch.Tensor]":
    """Return the tensors in a safetensors file. Raises ValueError if it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_plain(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read(path: Path, reader: Callable[[str], T]) -> T:
    """Return what `reader` makes of a checkpoint's file. Raises UserError if it can't be read."""
    try:
        return reader(str(path))
    except (OSError, ValueError) as error:
        raise _damaged(path, printable(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} can't be read ({why}): the checkpoint is damaged; delete the folder {path.parent} to go on from the "
        "one before, or start over with --fresh"
    )


def _first_mismatch(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
