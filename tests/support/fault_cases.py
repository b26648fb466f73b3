"""A run that something happens to, and what must come out: the results of one that nothing happened to."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from support.fault_server import Ended, Fault, FaultServer, Job
from support.results import differences, results
from support.small import TINY, make_text, write_plan

RUN = "--run-name run --max-steps 6 --save-interval 2 --validation-interval 3 --validation-tokens 200".split()
BPE = {"train": "bpe", "vocab_size": 270}


@dataclass
class Cases:
    """Runs of one command, each in a folder of its own that holds the runs and the prepared data.

    expected: the results. n_writes, n_reads: operations on files of a run from nothing to its end.
    """

    server: FaultServer
    folder: Path
    expected: dict[str, object] = field(default_factory=dict)
    n_writes: int = 0
    n_reads: int = 0
    _made: int = 0

    def __post_init__(self) -> None:
        (self.folder / "one.txt").write_text(make_text(40, 1), encoding="utf-8")
        write_plan(self.folder, "plan", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}], BPE)
        self.train(self.new())  # asks the model, whose answers are kept in the data folder: once for the count
        root = self.new()
        first = self.train(root, Fault(str(root)))
        assert first.status == 0, first.err
        self.n_writes, self.expected = first.count, results(self.run(root))
        root = self.new()
        self.n_reads = self.train(root, Fault(str(root), kinds=2)).count

    def new(self) -> Path:
        """Return an empty folder for a run and its data."""
        self._made += 1
        root = self.folder / f"case_{self._made}"
        root.mkdir()
        return root

    def run(self, root: Path) -> Path:
        """Return the folder of the run."""
        return root / "gpt_out" / "run"

    def job(self, root: Path, fault: Fault | None = None, *more: str, command: str = "trainer") -> Job:
        """Return the job of training."""
        flags = [*TINY, *RUN, "--training-plan", str(self.folder / "plan.json"), "--out", str(root / "gpt_out"), *more]
        return Job(command, flags, str(self.folder), fault, {"LMPLAY_DATA": str(root / "data")})

    def train(self, root: Path, fault: Fault | None = None, *more: str) -> Ended:
        """Train in a folder, until the end or until the fault ends it."""
        return self.server.run(self.job(root, fault, *more))

    def wrong(self, root: Path, ended: Ended) -> list[str]:
        """Return what is not as it must be after a command that was to end well; the folder is removed if nothing."""
        if ended.status != 0:
            return [f"status {ended.status}: {ended.err[-1500:]}"]
        found = differences(self.expected, results(self.run(root)))
        left = [str(path.relative_to(root)) for path in root.rglob(".*.tmp")]
        left += [str(path.relative_to(root)) for path in root.rglob(".*.partial")]
        if not found and not left:
            shutil.rmtree(root)
        return [f"{name} differs" for name in found] + [f"{name} is left" for name in left]
