"""Learning-rate schedules: pure functions of how far the training is."""

import math

SCHEDULES = ("constant", "cosine", "linear", "wsd")


def learning_rate_factor(schedule: str, step: float, total: float, warmup_steps: int, cooldown_fraction: float = 0.2,
                         final: float = 0.0) -> float:
    """The part of the peak learning rate for update `step` (from 0) of `total`.

    Linear warm-up over `warmup_steps` updates, a quarter of them all at the most, then constant; or down to `final` along half
    a cosine or a line; or wsd (warm-up, stable, decay; arXiv 2404.06395, 2405.18392): constant, then linearly down to `final`
    over the last `cooldown_fraction` of all updates.
    """
    warmup = min(warmup_steps, total // 4)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = max(total * (1.0 - cooldown_fraction), warmup) if schedule == "wsd" else warmup
    past = min(max(step - start, 0.0) / max(total - start, 1.0), 1.0)
    shape = (1.0 + math.cos(math.pi * past)) / 2.0 if schedule == "cosine" else 1.0 - past
    return final + (1.0 - final) * shape
