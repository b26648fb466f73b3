"""Choose how many threads of the CPU a run is computed with: another number changes its last digits."""

import torch

from lmplay.errors import UserError
from lmplay.model.device import device_name
from lmplay.runs.run import read_run
from lmplay.train.setup import Setup


def use_threads(setup: Setup, device: torch.device, resumed: bool) -> None:
    """Compute with the threads of --threads, else with those that a run that goes on had on a CPU like this one."""
    n = setup.settings.threads
    if not n and resumed and device.type == "cpu":
        n = _had(setup, device_name(device))
    if n and n != torch.get_num_threads():
        torch.set_num_threads(n)


def _had(setup: Setup, name: str) -> int:
    """Return the threads that the run had, 0 if it was computed elsewhere."""
    try:
        device = read_run(setup.folder).get("device") or {}
    except UserError:
        return 0
    threads = device.get("threads") if isinstance(device, dict) and device.get("name") == name else 0
    return threads if isinstance(threads, int) and threads > 0 else 0
