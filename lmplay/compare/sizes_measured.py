"""Count what the models of a ladder cost, and measure how fast they train here."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from lmplay import contract
from lmplay.compare.jobs import RunIndex
from lmplay.compare.model_checks import loaded
from lmplay.compare.variants import Variant
from lmplay.errors import UserError
from lmplay.runs.settings import Settings

TIMED_STEPS = 3
MOST_SEQUENCES = 16  # in a timed step


@dataclass(frozen=True)
class Counted:
    """One model. parameters: of matrices and head. context_len: of a sequence. FLOPs: of training, per token, step."""

    parameters: int
    all_parameters: int
    context_len: int
    flops_per_token: float
    flops_per_step: float

    def steps(self, tokens: int, batch_size: int) -> int:
        """Return about how many steps a run takes."""
        return max(1, round(tokens / batch_size / self.context_len))

    def flops(self, tokens: int, batch_size: int) -> float:
        """Return the FLOPs of a run."""
        return self.flops_per_token * tokens + self.flops_per_step * self.steps(tokens, batch_size)


def config_of(index: RunIndex, variant: Variant, settings: Settings) -> tuple[contract.Experiment, Any]:
    """Return the experiment of a variant and the Config of `settings`. Raises UserError for fields it lacks."""
    experiment = loaded(variant)
    fields = contract.parse_fields(list(settings.set))
    length = settings.context_len or index.plan.context_len
    config = experiment.config(variant.name, index.data.tokenizer.vocab_size, length, **fields)
    return experiment.bound(config), config


def count_model(index: RunIndex, variant: Variant, settings: Settings) -> Counted:
    """Count a model without training it: matrices and head are all that multiplies, so no table of embeddings.

    A head that shares the table's weights counts. Raises UserError.
    """
    import torch

    from lmplay.model.cost import cost_of  # it imports torch, without which compare.py takes config_of from here

    experiment, config = config_of(index, variant, settings)
    cost = cost_of(experiment, config)
    try:
        with torch.device("meta"):
            model = experiment.build(config)
    except (NotImplementedError, RuntimeError):
        model = experiment.build(config)
    multiplied = {
        id(p): p.numel()
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.ndim >= 2
    }
    if not multiplied:
        raise UserError(f"{variant.spec} has no matrices: --ladder does not know how many tokens it needs")
    return Counted(
        parameters=sum(multiplied.values()),
        all_parameters=cost.parameters,
        context_len=config.max_len,
        flops_per_token=cost.flops_per_token,
        flops_per_step=cost.flops_per_step,
    )


def known_pace(index: RunIndex, variant: Variant, settings: Settings) -> float | None:
    """Return the median seconds per token of finished runs of this model in --out; None if there are none."""
    config, paces = contract.config_values(config_of(index, variant, settings)[1]), []
    for run in index.runs:
        if run.spec == variant.spec and run.config == config and run.get("status") == "finished":
            tokens, seconds = run.number("progress", "tokens"), run.number("progress", "seconds")
            if tokens and seconds:
                paces.append(seconds / tokens)
    return statistics.median(paces) if paces else None


def measured_pace(index: RunIndex, variant: Variant, settings: Settings) -> float:
    """Return the seconds per token that a few steps take on random tokens, without the optimizer's part."""
    import torch

    from lmplay.model.device import device_here

    device = device_here(settings.device)
    experiment, config = config_of(index, variant, settings)
    model = experiment.build(config).to(device)
    vocab_size = index.data.tokenizer.vocab_size
    rows = min(MOST_SEQUENCES, settings.batch_size)
    tokens = torch.randint(vocab_size, (rows, config.max_len), device=device)
    seconds = []
    for _ in range(TIMED_STEPS):
        begun = time.perf_counter()
        output = model(tokens)
        logits = output[0] if isinstance(output, tuple) else output
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
        loss.backward()
        float(loss.detach())  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds) / tokens.numel()
