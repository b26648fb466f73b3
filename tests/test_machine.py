"""Cores and memory, within the limits of a container."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay import machine

UNLIMITED = {"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"}
VERSION_2 = {
    "cpu.max": "150000 100000",
    "memory.max": "1000",
    "memory.current": "400",
    "memory.stat": "anon 300\ninactive_file 90\n",
}
VERSION_1 = {
    "cpu.cfs_quota_us": "50000\n",
    "cpu.cfs_period_us": "100000\n",
    "memory.limit_in_bytes": "1000\n",
    "memory.usage_in_bytes": "400\n",
    "memory.stat": "cache 100\ntotal_inactive_file 90\n",
}


@pytest.mark.parametrize(
    ("files", "quota", "room"),
    [(VERSION_2, 1.5, 690), (VERSION_1, 0.5, 690), (UNLIMITED, None, None), ({}, None, None)],
)
def test_limits_of_a_control_group(tmp_path, files, quota, room):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == quota
    assert machine.memory_room(tmp_path) == room


def test_this_process():
    assert 1 <= machine.cores() <= os.cpu_count()
    assert 0 < machine.free_memory()
    assert 2**20 < machine.peak_memory()


@pytest.mark.process
def test_half_a_core():
    """In a real control group: one core, one thread of OpenMP."""
    root = next((path for path in (machine.CGROUPS / "cpu", machine.CGROUPS) if path.is_dir()), None)
    group = root / f"lmplay_{os.getpid()}" if root else Path("nowhere")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        version_2 = (group / "cpu.max").exists()
        try:
            (group / ("cpu.max" if version_2 else "cpu.cfs_quota_us")).write_text(
                "50000 100000" if version_2 else "50000"
            )
        except OSError:
            pytest.skip("a control group can't be given a quota here")
        script = (
            f"import os, pathlib; pathlib.Path('{group}/cgroup.procs').write_text(str(os.getpid()))\n"
            "from lmplay.machine import cores; from lmplay.model.device import prepare_process\n"
            "prepare_process(); print(cores(), os.environ['OMP_NUM_THREADS'])"
        )
        environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        found = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=100
        )
        assert found.stdout.split() == ["1", "1"]
    finally:
        group.rmdir()
