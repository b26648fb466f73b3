"""The faults: LMPLAY_FAULTS=full tries as many as docs/reliability.md says; without it a few of each kind are tried.

LMPLAY_FAULTS_PART=1/2 takes every second case, for two cores. LMPLAY_FAULTS_LOG names a file with a line for each case.
"""

import os

import pytest

from support.fault_cases import Cases, Tally
from support.fault_server import FaultServer


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether all faults are to be tried."""
    return os.environ.get("LMPLAY_FAULTS") == "full"


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """A run, and a server that runs it on a disk that fails."""
    folder = tmp_path_factory.mktemp("faults")
    try:
        server = FaultServer(folder)
    except FileNotFoundError:
        pytest.skip("needs Linux and a C compiler")
    try:
        yield Cases(server, folder)
    finally:
        server.close()


@pytest.fixture
def tally(request):
    """Counts what was tried; at the end the test fails if something was wrong."""
    counted = Tally(request.node.name, os.environ.get("LMPLAY_FAULTS_LOG"), os.environ.get("LMPLAY_FAULTS_PART"))
    yield counted
    counted.check()
