"""Measure what the process that trains a run takes of its machine, from outside."""

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

from lmplay.runs.names import PROCESS
from lmplay.runs.run import Run

GPU = ("--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits")


def machine_use(run: Run) -> dict[str, float]:
    """Return the figures that can be had; {} for a process of another machine or one that has ended."""
    pid = run.get(PROCESS, "pid")
    if not isinstance(pid, int) or run.get(PROCESS, "host") != socket.gethostname():
        return {}
    found = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        found["system/memory_bytes"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError, IndexError):
        found["system/load"] = os.getloadavg()[0]
    if run.get("device", "type") == "cuda":
        found |= _gpu()
    return found


def _gpu() -> dict[str, float]:
    """Return the use of the first GPU, as nvidia-smi tells it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run([program, *GPU], capture_output=True, text=True, timeout=5, check=True).stdout
        use, memory, power = (float(cell) for cell in said.splitlines()[0].split(","))
        return {"system/gpu_percent": use, "system/gpu_memory_bytes": memory * 2**20, "system/gpu_watts": power}
    return {}
