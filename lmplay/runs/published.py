"""Start from weights that others published, hf:FOLDER_OR_ID, where an experiment has `import_weights`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmplay import contract, registry
from lmplay.data.json_checks import optional, positive_int
from lmplay.data.published import (
    HF,
    MODEL_CONFIG,
    TOKENIZER_JSON,
    first_token,
    json_of,
    published_folder,
)
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.errors import UserError
from lmplay.files import check_plain
from lmplay.runs.architectures import MODEL_TYPES, fields_of, same_but
from lmplay.runs.checkpoints import not_finite
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun

LONGEST = 2**22  # tokens of a context
HEAD_BIAS = "lm_head.bias"  # GPT-2's format has none; lmplay writes it under this name


def check_readable(spec: str, experiment: contract.Experiment) -> None:
    """Raise UserError if there is no hf:FOLDER_OR_ID, or if the experiment reads no published weights."""
    published_folder(spec)
    if experiment.hook("import_weights") is None:
        raise UserError(f"{spec}: {experiment.name} has no import_weights: it starts from runs only")


def load_into(
    model: torch.nn.Module, spec: str, experiment: contract.Experiment, tokenizer: Tokenizer, flag: str
) -> None:
    """Load the weights of hf:FOLDER_OR_ID into a model of the experiment.

    flag: what was typed before `spec`. Raises UserError where architecture, settings or tokens are others.
    """
    folder = published_folder(spec)
    _check_same_tokens(folder, tokenizer, f"{flag} {spec}")
    _check_settings(folder, spec, experiment, model)
    _load(folder, spec, experiment, model)


def load_published(
    spec: str, device: torch.device, exp: str | None = None, fields: list[str] | None = None
) -> TrainedRun:
    """Load hf:FOLDER_OR_ID, ready to write: as `exp` with `fields`, FIELD=VALUE, or as its config.json says.

    Raises UserError if no experiment has this architecture.
    """
    folder = published_folder(spec)
    content, given = json_of(folder, MODEL_CONFIG), contract.parse_fields(list(fields or ()))
    tokenizer = load_tokenizer(f"{HF}{folder}")
    if exp is None:
        experiment, known = _experiment_of(content, spec)
        variant = next(iter(experiment.variants))
    else:
        entry, variant = registry.find(exp)
        experiment = contract.load(entry)
        known = _known_fields(content, experiment, spec)
    length = content.get("max_position_embeddings") or content.get("n_positions")
    _check_size(folder, spec, length, tokenizer.vocab_size, known)
    values: dict[str, Any] = {**known, **given}
    config = experiment.config(variant, tokenizer.vocab_size, length, **values)
    model = experiment.build(config)
    _check_settings(folder, spec, experiment, model)
    _load(folder, spec, experiment, model)
    info = {"experiment": {"name": experiment.name, "variant": variant}, "config": contract.config_values(config)}
    return TrainedRun(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        experiment=experiment.bound(config),
        context_len=config.max_len,
        run=Run(folder, info),
        checkpoint=folder / "published",
        bos=first_token(folder, tokenizer),
    )


def _check_size(folder: Path, spec: str, length: Any, vocab_size: int, known: dict[str, Any]) -> None:
    """Raise UserError where config.json asks for more numbers than the folder has bytes: before memory is taken."""
    try:
        length = optional(positive_int)(length) or 1
    except ValueError as error:
        raise UserError(f"{spec}: the context length in {MODEL_CONFIG} {error}") from None
    width, n_bytes = known.get("n_embd", 1), sum(file.stat().st_size for file in _files(folder, spec))
    if length > LONGEST or max(vocab_size * width, known.get("n_layer", 1) * width**2) > n_bytes:
        raise UserError(f"{spec}: {MODEL_CONFIG} has larger sizes than the weights beside it")


def _check_same_tokens(folder: Path, tokenizer: Tokenizer, what: str) -> None:
    """Raise UserError where the ids of a published model stand for other text than those of `tokenizer`.

    A folder without a tokenizer says nothing.
    """
    if not any((folder / name).is_file() for name in (TOKENIZER_JSON, "tokenizer.model")):
        return
    theirs = load_tokenizer(f"{HF}{folder}")
    added = json_of(folder, TOKENIZER_JSON).get("added_tokens", ())
    special = {theirs.eot, tokenizer.eot, *(token["id"] for token in added)}
    shared = [id for id in range(min(theirs.vocab_size, tokenizer.vocab_size)) if id not in special]
    other = next((id for id in shared if theirs.decode_bytes([id]) != tokenizer.decode_bytes([id])), None)
    if other is not None or theirs.vocab_size != tokenizer.vocab_size or theirs.eot != tokenizer.eot:
        raise UserError(
            f"{what}: its tokens are not those of {tokenizer.spec}, so that its weights mean something else: train "
            f"with --tokenizer {what.split(' ')[-1]}"
        )


def _experiment_of(content: dict[str, Any], spec: str) -> tuple[contract.Experiment, dict[str, Any]]:
    """Return the experiment with the architecture of a config.json, and the fields of its Config."""
    kind = str(content.get("model_type") or "")
    if kind in MODEL_TYPES:
        for entry in registry.list_experiments():
            if entry.error or not any(b"def import_weights" in path.read_bytes() for path in entry.code_files):
                continue
            experiment = contract.load(entry)
            if _model_type(experiment) == MODEL_TYPES[kind].base:
                return experiment, fields_of(kind, content, spec)
    raise UserError(
        f"{spec}: no experiment is known to have its architecture ({kind or f'no {MODEL_CONFIG}'}): name one that has "
        "import_weights with --exp NAME:VARIANT and --set FIELD=VALUE"
    )


def _model_type(experiment: contract.Experiment) -> str | None:
    """Return the architecture at Hugging Face of an experiment's models, None if it names none."""
    export = experiment.hook("export_config")
    if export is None:
        return "gpt2" if experiment.name == registry.DEFAULT_EXPERIMENT else None
    return export(experiment.Config()).get("model_type")


def _known_fields(content: dict[str, Any], experiment: contract.Experiment, spec: str) -> dict[str, Any]:
    """Return what a config.json says of an experiment's Config; {} where it says nothing."""
    kind = str(content.get("model_type"))
    known = kind in MODEL_TYPES and _model_type(experiment) == MODEL_TYPES[kind].base
    return fields_of(kind, content, spec) if known else {}


def _check_settings(folder: Path, spec: str, experiment: contract.Experiment, model: Any) -> None:
    """Raise UserError where config.json has other settings than the model: shapes don't tell all of them."""
    fields = _known_fields(json_of(folder, MODEL_CONFIG), experiment, spec)
    if different := same_but(fields, contract.config_values(model.config)):
        flags = " ".join(f"--set {name}={str(value).lower()}" for name, value in fields.items())
        raise UserError(f"{spec} has another {different}: its settings are {flags}")


def _load(folder: Path, spec: str, experiment: contract.Experiment, model: torch.nn.Module) -> None:
    check_readable(spec, experiment)
    read: Any = experiment.hook("import_weights")
    tensors = read_weights(folder, spec)
    bias = tensors.pop(HEAD_BIAS, None)
    wanted = model.state_dict()
    for name in [name for name in tensors if name.endswith("wpe.weight")]:  # a shorter context reads the first ones
        tensors[name] = tensors[name][: getattr(model.config, "max_len", None)]
    try:
        weights = read(tensors)
    except ValueError as error:
        raise UserError(f"{spec}: {error}") from error
    if bias is not None:
        weights["head.bias"] = bias
    if spoiled := not_finite(weights):
        raise UserError(f"{spec}: its weights are not finite ({spoiled[0]})")
    lacking = [name for name in wanted if name not in weights]
    unknown = [name for name in weights if name not in wanted]
    wrong = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    if lacking or unknown or wrong:
        why = (
            f"{wrong[0]} is {tuple(weights[wrong[0]].shape)}, not {tuple(wanted[wrong[0]].shape)}"
            if wrong
            else f"it {'lacks' if lacking else 'has'} {(lacking or unknown)[0]}"
        )
        raise UserError(f"{spec} does not fit {experiment.name} with these settings: {why}")
    model.load_state_dict(weights)


def read_weights(folder: Path, spec: str) -> dict[str, Tensor]:
    """Return all tensors of a folder, floats in float32: .safetensors files, else .bin files. No code is run.

    Raises UserError if there are none, or they can't be read.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in _files(folder, spec):
        try:
            check_plain(file)
            safe = file.suffix == ".safetensors"
            found = load_file(str(file)) if safe else torch.load(file, map_location="cpu", weights_only=True)
            tensors |= {
                name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()
            }
        except Exception as error:  # each format has its own
            raise UserError(f"{file} can't be read ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    return tensors


def _files(folder: Path, spec: str) -> list[Path]:
    """Return the files of weights in a folder. Raises UserError if there are none."""
    files = sorted(folder.glob("*.safetensors")) or sorted([*folder.glob("*.bin"), *folder.glob("*.pt*")])
    if not files:
        raise UserError(f"{spec}: there are no weights in {folder} (*.safetensors, *.bin)")
    return files
