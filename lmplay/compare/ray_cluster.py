"""Connect to a Ray cluster: what tasks need there, and where they ask whether they are to end."""

import contextlib
import importlib.util
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmplay.data.carried import Packed, pack_store
from lmplay.errors import UserError
from lmplay.train.away import Ended, Lacking, News, Trip, train_away

INSTALL = "--on ray needs Ray, which is not installed: pip install 'lmplay[ray]'"
PACKAGE = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 1.0  # a signal is heard in between


def check_installed() -> None:
    """Raise UserError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(INSTALL)


class Desk:
    """Where tasks ask whether they are to save and end. It lives in the cluster."""

    def __init__(self) -> None:
        self._asked: set[str] = set()

    def ask(self, task: str) -> None:
        """Ask a task to save and end."""
        self._asked.add(task)

    def is_asked(self, task: str) -> bool:
        """Whether a task was asked."""
        return task in self._asked


def train_in_cluster(trip: Trip, desk: Any, name: str) -> Iterator[News | Lacking | Ended]:
    """Train a task on this machine of the cluster. Ray calls it."""
    import ray

    def wished() -> bool:
        try:
            return bool(ray.get(desk.is_asked.remote(name), timeout=LOOK_SECONDS))
        except ray.exceptions.RayError:  # the machine of the desk is lost: nobody asks
            return False

    yield from train_away(trip, ray.get, wished)


@dataclass
class Cluster:
    """The connection to a Ray cluster. address: as ray.init takes it; None: the one of this machine, or a new one.

    Connecting, and starting what is needed there, is left until a task is started.
    """

    address: str | None = None
    _desk: Any = None
    _stores: dict[str, list[Packed]] = field(default_factory=dict)
    _number: int = 0

    @property
    def desk(self) -> Any:
        """The actor at which tasks ask. Raises UserError where there is no cluster."""
        if self._desk is None:
            self._connect()
            import ray

            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=True
            )
            self._desk = ray.remote(Desk).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        return self._desk

    def resources(self) -> dict[str, float]:
        """Return what all machines have together."""
        _ = self.desk
        import ray

        return ray.cluster_resources()

    def put(self, content: bytes) -> Any:
        """Put bytes into the cluster's store."""
        import ray

        return ray.put(content)

    def stores(self, names: Sequence[str]) -> dict[str, list[Packed]]:
        """Return prepared data, in the cluster's store; each is put there once."""
        for name in names:
            if name not in self._stores:
                self._stores[name] = pack_store(name, self.put)
        return {name: self._stores[name] for name in names}

    def next_name(self) -> str:
        """Return a name for a task."""
        self._number += 1
        return str(self._number)

    def _connect(self) -> None:
        """Connect, and let every machine have this version of lmplay; a program that is connected sees to it itself."""
        import ray

        if ray.is_initialized():
            return
        package = {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__"]}
        options = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        with _signals_kept():
            try:
                ray.init(self.address, runtime_env=package, **options)
            except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
                where = self.address or "this machine"
                why = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"--on ray: no cluster answers at {where} ({why}): start one with ray start --head; one with a "
                    "token wants it here, too, and RAY_AUTH_MODE=token: see docs/machines.md"
                ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep the handlers of signals within the block: Ray sets its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    kept = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


_clusters: dict[str | None, Cluster] = {}  # by address: a comparison in several parts has one connection


def cluster_at(address: str | None) -> Cluster:
    """Return the cluster at an address, the same one each time."""
    return _clusters.setdefault(address, Cluster(address))
