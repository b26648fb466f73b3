"""Measure once per machine what it reaches, and keep it in the data folder for later runs."""

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from lmplay.errors import UserError
from lmplay.files import data_folder, read_json, written_beside
from lmplay.model.device import amp_dtype, choose_device, device_name

if TYPE_CHECKING:
    import torch

FILE = "measured.json"
SIZE = {"cuda": 8192, "mps": 2048}  # rows of the matrices that are multiplied
SMALL = 1024  # on a CPU
SECONDS = 0.25
FASTER = 1.2  # so much faster is worth a lower precision


def machine_key(device: "torch.device") -> str:
    """Return what figures of speed belong to: the hardware, the threads of a CPU, and torch."""
    import torch

    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device_name(device)}{threads}, torch {torch.__version__}"


def known(kind: str, key: str) -> Any:
    """Return what was kept of this kind under a key; None if nothing was, or it can't be read."""
    with contextlib.suppress(OSError, ValueError, UserError):
        content = read_json(data_folder() / FILE)
        of_kind = content.get(kind) if isinstance(content, dict) else None
        return of_kind.get(key) if isinstance(of_kind, dict) else None
    return None


def keep(kind: str, key: str, value: Any) -> None:
    """Keep a figure for later runs. Where that can't be, it is measured again."""
    with contextlib.suppress(OSError, UserError):
        path = data_folder() / FILE
        content: Any = None
        with contextlib.suppress(OSError, ValueError, UserError):
            content = read_json(path)
        content = content if isinstance(content, dict) else {}
        of_kind = content.get(kind)
        content[kind] = (of_kind if isinstance(of_kind, dict) else {}) | {key: value}
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(path) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def peak_flops(device: "torch.device", amp: bool) -> float:
    """Return the floating-point operations per second of a product of large matrices, in the precision of `amp`."""
    dtype, kind, key = _peak_key(device, amp)
    found = known(kind, key)
    if not isinstance(found, float) or not found > 0:
        found = product_rate(device, dtype)
        keep(kind, key, found)
    return found


def raised_peak(device: "torch.device", amp: bool) -> float:
    """Return `peak_flops` after one more product: what was kept may be of a moment when the machine was busy."""
    before = peak_flops(device, amp)
    dtype, kind, key = _peak_key(device, amp)
    now = product_rate(device, dtype, seconds=0.0)
    if now > before:
        keep(kind, key, now)
    return max(before, now)


def _peak_key(device: "torch.device", amp: bool) -> tuple["torch.dtype", str, str]:
    import torch

    dtype = (amp_dtype(device) if amp else None) or torch.float32
    return dtype, f"peak {str(dtype).removeprefix('torch.')}", machine_key(device)


def product_rate(device: "torch.device", dtype: "torch.dtype", seconds: float = SECONDS) -> float:
    """Multiply matrices for some seconds; return the operations per second of the fastest product."""
    import torch

    n = SIZE.get(device.type, SMALL)
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    result = a @ b
    best, begun = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begun < seconds:
        wait_for(device)
        start = time.perf_counter()
        torch.mm(a, b, out=result)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    if device.type == "cuda":  # the memory of the matrices is not the run's
        del a, b, result
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return 2.0 * n**3 / best


def wait_for(device: "torch.device") -> None:
    """Wait until a device has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def amp_factor(name: str) -> float:
    """Return how much faster the device of this name multiplies matrices with --amp; 1 where --amp does nothing."""
    device = choose_device(name)
    if amp_dtype(device) is None:
        return 1.0
    return peak_flops(device, True) / peak_flops(device, False)
