"""Learning rates and counts of steps in the device's memory, from where a step that was captured reads them anew."""

from typing import Any

import torch
from torch import Tensor

from lmplay.train.group_schedules import ValuesOnDevice, set_values


class DeviceRates:
    """Lets optimizers read learning rates and steps from the device, until `release`."""

    def __init__(self, optimizers: list[torch.optim.Optimizer], device: torch.device) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.initial = torch.tensor([g["initial_lr"] for g in groups], dtype=torch.float64, device=device)
        self.factor = torch.ones((), dtype=torch.float64, device=device)
        self.rates = torch.zeros(len(groups), device=device)
        self.bind()

    def bind(self) -> None:
        """Let the optimizers read them from here (again, after `release`)."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for number, group in enumerate(groups):
            group["lr"] = self.rates[number]
            if "capturable" in group:
                group["capturable"] = self.rates.device.type == "cuda"
        self.values = ValuesOnDevice(self.optimizers, self.rates.device)
        for optimizer in self.optimizers:
            quiet: Any = optimizer
            quiet._warned_capturable_if_run_uncaptured = True  # private to torch; tried on 2.11 and 2.13
            for p, state in optimizer.state.items():
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(p.device)

    def set(self, factor: float, progress: float = 0.0) -> None:
        """Set every group's learning rate to `factor` of its initial one, without waiting for the device.

        progress: where the schedule stands, from 0 to 1, for what else changes over the steps.
        """
        self.factor.fill_(factor)
        self.values.set(progress)
        torch.mul(self.initial, self.factor, out=self.rates)

    def release(self) -> None:
        """Give the optimizers plain learning rates back."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"]
                if "capturable" in group:
                    group["capturable"] = False
        set_values(self.optimizers, 0.0)
