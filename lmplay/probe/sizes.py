"""Make experiments equally small: shrink depth and widths until each has as many parameters as the baseline."""

from dataclasses import dataclass
from typing import Any

from lmplay import contract
from lmplay.compare.variants import Variant, find_variant
from lmplay.errors import UserError
from lmplay.registry import DEFAULT_EXPERIMENT

CONTEXT_LEN = 64  # for which parameters are counted, so that an experiment is the same in all tasks
WIDTHS = ("n_embd", "n_hidden")  # keep their proportion
# If an experiment offers them. N(0, 0.02) is made for wide models: at a width of 64 it keeps attention flat, and a GPT
# stays on the plateau of associative recall for thousands of steps, which it leaves within 500 with torch's values.
INITIAL_VALUES = {"torch_init": True}


@dataclass(frozen=True)
class Size:
    """n_layer, n_head and n_embd of the baseline, and how long models of this size are trained."""

    n_layer: int
    n_head: int
    n_embd: int
    steps: int
    batch_size: int


SIZES = {
    "quick": Size(n_layer=2, n_head=4, n_embd=64, steps=1000, batch_size=32),
    "standard": Size(n_layer=2, n_head=4, n_embd=64, steps=6000, batch_size=64),
    "large": Size(n_layer=4, n_head=4, n_embd=128, steps=10000, batch_size=64),
}


@dataclass(frozen=True)
class SizedVariant:
    """A variant and the Config fields, as --set takes them, that make it this small."""

    variant: Variant
    fields: tuple[str, ...]
    parameters: int

    @property
    def label(self) -> str:
        """NAME:VARIANT."""
        return self.variant.spec


def find_small_variant(spec: str) -> Variant:
    """Find a variant as `find_variant` does; a plain NAME means its variant tiny if there is one."""
    variant = find_variant(spec)
    return find_variant(f"{spec}:tiny") if ":" not in spec and "tiny" in variant.entry.variants else variant


def sized_variants(specs: list[str], size: Size, vocab_size: int) -> list[SizedVariant]:
    """Make each of `specs` as small as the baseline is at `size`.

    Raises UserError for a variant that is unknown, named twice, can't be made so small, or doesn't read forwards.
    """
    variants = [find_small_variant(spec) for spec in specs]
    for number, variant in enumerate(variants):
        if variant in variants[:number]:
            raise UserError(f"--exp names {variant.spec} twice")
    baseline = find_small_variant(DEFAULT_EXPERIMENT)
    target = _parameters(baseline, _fields(baseline, size, width=size.n_embd, vocab_size=vocab_size), vocab_size)
    return [_sized(variant, size, target=target, vocab_size=vocab_size) for variant in variants]


def _sized(variant: Variant, size: Size, *, target: int, vocab_size: int) -> SizedVariant:
    """Choose as width the multiple of 2 n_head that brings the parameters nearest to `target`."""
    _check_direction(variant, vocab_size)
    unit = 2 * size.n_head

    def made(units: int) -> SizedVariant:
        fields = _fields(variant, size, width=units * unit, vocab_size=vocab_size)
        return SizedVariant(
            variant=variant,
            fields=tuple(f"{name}={value}" for name, value in fields.items()),
            parameters=_parameters(variant, fields, vocab_size),
        )

    low, high = 1, 4 * size.n_embd // unit
    while low < high:  # the first that has as many
        middle = (low + high) // 2
        low, high = (low, middle) if made(middle).parameters >= target else (middle + 1, high)
    return min((made(units) for units in {max(1, low - 1), low}), key=lambda one: abs(one.parameters - target))


def _fields(variant: Variant, size: Size, *, width: int, vocab_size: int) -> dict[str, Any]:
    """Return the Config fields that give a variant the depth of `size` and this width."""
    config, baseline = _config(variant, vocab_size), _config(find_small_variant(DEFAULT_EXPERIMENT), vocab_size)
    # an experiment whose layers are half of a block has twice as many
    n_layer = max(size.n_layer, round(getattr(config, "n_layer", 0) * size.n_layer / baseline.n_layer))
    wanted = {"n_layer": n_layer, "n_head": size.n_head, **INITIAL_VALUES}
    fields = {name: value for name, value in wanted.items() if hasattr(config, name)}
    if own := getattr(config, "n_embd", 0):
        fields |= {name: round(getattr(config, name) * width / own) for name in WIDTHS if hasattr(config, name)}
    return fields


def _config(variant: Variant, vocab_size: int, **fields: Any) -> Any:
    return contract.load(variant.entry).config(variant.name, vocab_size, CONTEXT_LEN, **fields)


def _parameters(variant: Variant, fields: dict[str, Any], vocab_size: int) -> int:
    import torch

    experiment, config = contract.load(variant.entry), _config(variant, vocab_size, **fields)
    try:
        with torch.device("meta"):
            built = experiment.build(config)
    except NotImplementedError:  # not every model can be made without numbers
        built = experiment.build(config)
    return sum(p.numel() for p in built.parameters())


def _check_direction(variant: Variant, vocab_size: int) -> None:
    experiment = contract.load(variant.entry)
    experiment = experiment.bound(_config(variant, vocab_size))
    directions = experiment.directions(vocab_size - 1, CONTEXT_LEN) if experiment.causal else []
    if len(directions) != 1 or not directions[0].forward:
        raise UserError(
            f"{variant.spec} doesn't read text from its beginning to its end only: the answers of these tasks would be "
            "no answers"
        )
