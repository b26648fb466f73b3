"""Ask what this process may use of the machine: cores and memory, within the limits of its container."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    It is at most the quota of the container (Linux control groups), rounded up: half a core is one.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups("cpu") if (quota := cpu_quota(folder)) is not None]
    return max(1, min([count, *(int(-(-quota // 1)) for quota in quotas)]))


def free_memory() -> int:
    """Return the bytes of main memory that this process can still take before the system ends processes."""
    rooms = [room for folder in _groups("memory") if (room := memory_room(folder)) is not None]
    return max(0, min([_available(), *rooms]))


def peak_memory() -> int:
    """Return the most bytes of main memory that this process has held so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _available() -> int:
    """Return the bytes of main memory that are free, or can be made free, on the whole machine."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    import psutil

    return psutil.virtual_memory().available


def _peak_on_windows() -> int:
    try:
        import psutil
    except ImportError:
        return 0
    return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))


def cpu_quota(folder: Path) -> float | None:
    """Return how many cores a control group may keep busy, None if there is no limit. Version 2, or 1."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us"),
        _text(folder / "cpu.cfs_period_us"),
    ]
    if len(words) == 2 and all(word.strip().isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def memory_room(folder: Path) -> int | None:
    """Return the bytes that a control group may still take, None if there is no limit. Version 2, or 1.

    File pages that nothing uses count as free: the system drops them first.
    """
    for limit, used, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        numbers = [_text(folder / name).strip() for name in (limit, used)]
        if all(number.isdigit() for number in numbers):
            statistics = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
            return int(numbers[0]) - int(numbers[1]) + int(statistics.get(droppable, 0))
    return None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, from its own to the root."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = CGROUPS / controller if names else CGROUPS
        inside = [part for part in path.split("/") if part and ".." not in path]  # "/..": outside of what is mounted
        yield from (root.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
