"""Learning-rate schedules: pure functions of how far the training is."""

import math


def learning_rate_factor(
    schedule: str,
    step: float,
    total: float,
    warmup_steps: int,
    cooldown_fraction: float = 0.2,
    final: float = 0.0,
    warmup_from: float | None = None,
    restart_steps: int = 0,
    restart_shrink: float = 1.0,
) -> float:
    """The part of the peak learning rate for update `step` (from 0) of `total`.

    Linear warm-up over `warmup_steps` updates, then constant; or down to `final` along half a cosine or a line; or wsd (warm-up, stable,
    decay; arXiv 2404.06395, 2405.18392): constant, then linearly down to `final` over the last `cooldown_fraction` of all updates; or
    cosine_restarts (arXiv 1608.03983): half a cosine down to `final` every `restart_steps` updates, each of them, `final` too,
    `restart_shrink` times the one before.

    The warm-up lasts a quarter of all updates at the most, and its first update has a rate above 0: 1 / warmup_steps. With `warmup_from`
    it is the papers' instead: from that part of the peak at update 0 to the peak at update `warmup_steps`, however short the run; a cool-down
    that comes before its end starts from the rate reached.
    """
    as_in_papers = warmup_from is not None
    warmup = warmup_steps if as_in_papers else min(warmup_steps, total // 4)

    def warming_up(step: float) -> float:
        return (
            warmup_from + (1.0 - warmup_from) * min(step / warmup, 1.0)
            if as_in_papers and warmup
            else min((step + 1) / max(warmup, 1), 1.0)
        )

    start = warmup
    if schedule == "wsd":
        start = total * (1.0 - cooldown_fraction)
        start = start if as_in_papers else max(start, warmup)
    if step < start or schedule == "constant":
        return warming_up(step)
    if schedule == "cosine_restarts":
        number, since = divmod(step - warmup, restart_steps)
        return restart_shrink**number * _between(final, 1.0, since / restart_steps, _half_cosine)
    past = min(max(step - start, 0.0) / max(total - start, 1.0), 1.0)
    return _between(
        final, warming_up(start) if schedule == "wsd" else 1.0, past, _half_cosine if schedule == "cosine" else _line
    )


def cooled_down(level: float, past: float, final: float) -> float:
    """The rate on a line from `level` to `final`, `past` (0 to 1) of the way."""
    return _between(final, level, min(past, 1.0), _line)


def _between(low: float, high: float, past: float, shape) -> float:
    return low + (high - low) * shape(past)


def _half_cosine(past: float) -> float:
    return (1.0 + math.cos(math.pi * past)) / 2.0


def _line(past: float) -> float:
    return 1.0 - past
