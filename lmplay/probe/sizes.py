"""Experiments made equally small: depth and widths shrink as the baseline's do, to the width with which the parameters are its own."""

from dataclasses import dataclass

from lmplay import contract
from lmplay.compare.jobs import Variant, find_variant
from lmplay.errors import UserError
from lmplay.registry import DEFAULT_EXPERIMENT

CONTEXT_LEN = 64  # for which parameters are counted, so that an experiment is the same in all tasks
WIDTHS = ("n_embd", "n_hidden")  # keep their proportion
# Where an experiment offers them. N(0, 0.02) is made for wide models: at a width of 64 attention is flat with it, and a GPT stays at
# the plateau of associative recall for thousands of updates, which it leaves within 500 with torch's values.
INITIAL_VALUES = {"torch_init": True}


@dataclass(frozen=True)
class Size:
    """n_layer, n_head, n_embd of the baseline, and how long models of this size are trained."""

    n_layer: int
    n_head: int
    n_embd: int
    updates: int
    batch_size: int


SIZES = {"quick": Size(2, 4, 64, 1000, 32), "standard": Size(2, 4, 64, 6000, 64), "large": Size(4, 4, 128, 10000, 64)}


@dataclass(frozen=True)
class SizedVariant:
    """A model and the Config fields, as --set takes them, that make it this small."""

    model: Variant
    fields: tuple[str, ...]
    parameters: int

    @property
    def label(self) -> str:
        return self.model.spec


def find_small_model(spec: str) -> Variant:
    """As `find_variant`, but without a variant the one called tiny, where there is one."""
    model = find_variant(spec)
    return find_variant(f"{spec}:tiny") if ":" not in spec and "tiny" in model.entry.variants else model


def sized_variants(specs: list[str], size: Size, vocab_size: int) -> list[SizedVariant]:
    """Raises UserError: unknown, there twice, can't be made so small, or doesn't read forwards."""
    models = [find_small_model(spec) for spec in specs]
    for number, model in enumerate(models):
        if model in models[:number]:
            raise UserError(f"--exp names {model.spec} twice")
    baseline = find_small_model(DEFAULT_EXPERIMENT)
    target = _parameters(baseline, _fields(baseline, size, size.n_embd, vocab_size), vocab_size)
    return [_matched(model, size, target, vocab_size) for model in models]


def _matched(model: Variant, size: Size, target: int, vocab_size: int) -> SizedVariant:
    """The multiple of 2 n_head as width with which the parameters come nearest to `target`."""
    _check_reading(model, vocab_size)

    def made(step):
        fields = _fields(model, size, 2 * size.n_head * step, vocab_size)
        return SizedVariant(
            model, tuple(f"{name}={value}" for name, value in fields.items()), _parameters(model, fields, vocab_size)
        )

    low, high = 1, 4 * size.n_embd // (2 * size.n_head)
    while low < high:  # the first that has as many
        middle = (low + high) // 2
        low, high = (low, middle) if made(middle).parameters >= target else (middle + 1, high)
    return min((made(step) for step in {max(1, low - 1), low}), key=lambda c: abs(c.parameters - target))


def _fields(model: Variant, size: Size, width: int, vocab_size: int) -> dict:
    config, baseline = _config(model, vocab_size), _config(find_small_model(DEFAULT_EXPERIMENT), vocab_size)
    # an experiment whose layers are half of a block has twice as many
    n_layer = max(size.n_layer, round(getattr(config, "n_layer", 0) * size.n_layer / baseline.n_layer))
    wanted = {"n_layer": n_layer, "n_head": size.n_head, **INITIAL_VALUES}
    fields = {name: value for name, value in wanted.items() if hasattr(config, name)}
    if own := getattr(config, "n_embd", 0):
        fields |= {name: round(getattr(config, name) * width / own) for name in WIDTHS if hasattr(config, name)}
    return fields


def _config(model: Variant, vocab_size: int, **fields):
    return contract.load(model.entry).config(model.variant, vocab_size, CONTEXT_LEN, **fields)


def _parameters(model: Variant, fields: dict, vocab_size: int) -> int:
    import torch

    experiment, config = contract.load(model.entry), _config(model, vocab_size, **fields)
    try:
        with torch.device("meta"):
            built = experiment.build(config)
    except NotImplementedError:  # not every model can be made without numbers
        built = experiment.build(config)
    return sum(p.numel() for p in built.parameters())


def _check_reading(model: Variant, vocab_size: int) -> None:
    experiment = contract.load(model.entry)
    experiment = experiment.bound(_config(model, vocab_size))
    readings = experiment.directions(vocab_size - 1, CONTEXT_LEN) if experiment.causal else []
    if len(readings) != 1 or not readings[0].forward:
        raise UserError(
            f"{model.spec} doesn't read text from its beginning to its end only: the answers of these tasks would be no answers"
        )
