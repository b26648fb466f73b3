"""How much of a machine a run uses: its model FLOPs per second as a part of the peak (MFU), and what is left of it."""

import json

import torch

from lmplay import contract
from lmplay.model.measured import machine_key, raised_peak
from lmplay.runs.names import MFU
from lmplay.train.compile_choice import LEAST_PEAK, Length
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState


class Use:
    """Turns FLOPs and seconds into parts of the peak. of_a_token: the seconds that a token takes at the peak."""

    def __init__(self, setup: Setup, device: torch.device, flops: float, devices: int = 1) -> None:
        """flops: of the training so far. devices: how many like this one share each step."""
        self.setup, self.device, self.before = setup, device, flops
        self.peak = devices * raised_peak(device, setup.settings.amp)
        self.of_a_token = setup.cost.flops_per_token / (len(setup.experiment.direction_names) or 1) / self.peak

    def __call__(self, flops: float, seconds: float) -> float:
        """Return the part of the peak since the last call. flops: of the training so far. seconds: since then."""
        done, self.before = flops - self.before, flops
        return done / seconds / self.peak

    def so_far(self, state: TrainState) -> dict[str, float]:
        """Return the part of the peak in the whole training so far, as run.json's progress has it."""
        if not state.seconds:
            return {}
        return {MFU: round(state.flops(self.setup.cost, self.setup.context_len) / state.seconds / self.peak, 6)}

    def length(self, state: TrainState) -> Length:
        """Return what is left of the run."""
        setup, settings = self.setup, self.setup.settings
        steps = max(0, state.n_steps - state.step)
        of_a_step = settings.batch_size * setup.context_len * setup.cost.flops_per_token + setup.cost.flops_per_step
        seconds = steps * of_a_step / self.peak / LEAST_PEAK
        if settings.max_minutes is not None:
            seconds = min(seconds, max(0.0, 60 * settings.max_minutes - state.seconds))
        key = {
            "machine": machine_key(self.device),
            "code": setup.entry.code_hash,
            "config": contract.config_values(setup.config),
            "settings": {n: getattr(settings, n) for n in ("batch_size", "mini_batch_size", "amp", "optimizer")},
            "graphs": settings.cuda_graph != "off",
        }
        return Length(steps=steps, most_seconds=seconds, key=json.dumps(key, sort_keys=True, default=str))
