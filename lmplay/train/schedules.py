"""Learning-rate schedules: pure functions of how far the training is."""

import math

SCHEDULES = ("constant", "cosine", "linear", "wsd")


def learning_rate_factor(schedule: str, done: float, warmup: float, cooldown: float, final: float) -> float:
    """The share of the peak learning rate to use where `done`, in [0, 1), of the training is done.

    Linear warm-up over the first `warmup` of it, then
    constant; cosine or linear down to `final`; or wsd (warm-up, stable, decay; arXiv 2404.06395, 2405.18392): constant, then
    linear down to `final` over the last `cooldown`.
    """
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "wsd":
        start = max(1.0 - cooldown, warmup)
        past = 0.0 if done <= start else (done - start) / (1.0 - start)
    else:
        past = (done - warmup) / (1.0 - warmup)
    past = min(past, 1.0)
    shape = (1.0 + math.cos(math.pi * past)) / 2.0 if schedule == "cosine" else 1.0 - past
    return final + (1.0 - final) * shape
