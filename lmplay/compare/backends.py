"""Choose where runs are trained: --on, --jobs and --together."""

import dataclasses
from dataclasses import dataclass

from lmplay.compare.sites import Processes, Site, processes, threads_of
from lmplay.errors import UserError
from lmplay.runs.settings import Settings


@dataclass(frozen=True)
class Backend:
    """Where `--on` says that runs are trained: in processes here, or in a Ray cluster.

    jobs: processes; None: auto. address: of the cluster's head, HOST:PORT; "": the cluster of this machine.
    """

    jobs: int | None = 1
    ray: bool = False
    address: str = ""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return not self.ray


def backend_of(on: str | None, jobs: int | None = 1) -> Backend:
    """Return where --on and --jobs let runs be trained. Raises UserError, also where Ray is not installed."""
    if on is None:
        return Backend(jobs)
    if jobs != 1:
        raise UserError("--jobs N is short for --on processes:N: give one of them")
    kind, _, rest = on.partition(":")
    if kind == "processes":
        if rest == "auto":
            return Backend(None)
        if rest.isascii() and rest.isdigit() and int(rest) >= 1:
            return Backend(int(rest))
    elif kind == "ray" and (on == kind or (rest.startswith("//") and len(rest) > 2)):
        from lmplay.compare.ray_cluster import check_installed

        check_installed()
        return Backend(ray=True, address=rest[2:])
    raise UserError(f"--on takes processes:N, processes:auto, ray or ray://HOST:PORT, not {on!r}")


@dataclass(frozen=True)
class How:
    """How the runs that are missing are trained: where, and how many seeds of an arm in one process at most.

    auto: together only where a trial shows that it is faster.
    """

    site: Site
    together: int = 1
    auto: bool = False

    def seeds_to_add(self, needed: int | None, left: int) -> int:
        """Return how many seeds are added before the next look: as many as train together and are needed.

        A look that is left out makes no error more likely. needed: about how many seeds would decide; None if that
        can't be said. left: how many may be added at most.
        """
        return min(left, self.together, needed or (1 if self.auto else self.together))


ALONE = How(Processes())
MOST_TOGETHER = 8  # seeds, with --together auto


def how_to_train(settings: Settings, backend: Backend, together: int | None) -> tuple[How, Settings]:
    """Return how runs with these settings are trained, and the settings with the threads that each then has.

    together: as many seeds in each process; None: auto.
    """
    seeds, auto = together or MOST_TOGETHER, together is None
    if backend.ray:
        from lmplay.compare.ray_site import RayCluster, with_threads

        settings = with_threads(settings)
        return How(RayCluster(backend.address or None, settings), seeds, auto), settings
    if backend.jobs == 1 and together == 1:
        return ALONE, settings
    site = processes(backend.jobs, settings)
    return How(site, seeds, auto), dataclasses.replace(settings, threads=threads_of(site, settings))
