"""A run that something happens to, and what must come out: the results of one that nothing happened to."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from support.fault_server import READS, Ended, Fault, FaultServer, Job
from support.results import differences, results
from support.small import TINY, make_text, write_plan

RUN = "--max-steps 4 --save-interval 2 --validation-interval 2 --validation-tokens 100 --lr-schedule constant".split()
BPE = {"train": "bpe", "vocab_size": 265}


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
        (self.folder / "one.txt").write_text(make_text(12, 1), encoding="utf-8")
        write_plan(self.folder, "plan", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}], BPE)
        first = self.new()
        assert self.train(first).status == 0
        # what is known of the model is kept: asking takes longer than the training
        (first / "data" / "checks").rename(self.folder / "checks")
        root = self.new()
        ended = self.train(root, Fault(str(root)))
        assert ended.status == 0, ended.err
        self.n_writes, self.expected = ended.count, results(self.run(root))
        root = self.new()
        self.n_reads = self.train(root, Fault(str(root), kinds=READS)).count

    def new(self, like: Path | None = None) -> Path:
        """Return an empty folder for a run and its data, or a copy of the folder `like`."""
        self._made += 1
        root = self.folder / f"case_{self._made}"
        if like is not None:
            shutil.copytree(like, root)
        elif (self.folder / "checks").exists():
            shutil.copytree(self.folder / "checks", root / "data" / "checks")
        else:
            root.mkdir()
        return root

    def run(self, root: Path, name: str = "run") -> Path:
        """Return the folder of the run."""
        return root / "gpt_out" / name

    def job(self, root: Path, fault: Fault | None = None, *more: str, name: str = "run") -> Job:
        """Return the job of training."""
        flags = [*TINY, *RUN, "--training-plan", str(self.folder / "plan.json"), "--run-name", name, *more]
        flags += ["--out", str(root / "gpt_out")]
        return Job("trainer", flags, str(self.folder), fault, {"LMPLAY_DATA": str(root / "data")})

    def train(self, root: Path, fault: Fault | None = None, *more: str) -> Ended:
        """Train in a folder, until the end or until the fault ends it."""
        return self.server.run(self.job(root, fault, *more))

    def wrong(
        self, root: Path, ended: Ended, name: str = "run", expected: dict[str, object] | None = None
    ) -> list[str]:
        """Return what is not as it must be after a command that was to end well."""
        if ended.status != 0:
            return [f"status {ended.status}: {ended.err[-1500:]}"]
        found = differences(expected or self.expected, results(self.run(root, name)))
        left = [str(path.relative_to(root)) for path in root.rglob(".*.tmp")]
        left += [str(path.relative_to(root)) for path in root.rglob(".*.partial")]
        return [f"{name} differs" for name in found] + [f"{name} is left" for name in left]

    def done(self, root: Path) -> None:
        """Remove a folder that is no longer needed."""
        shutil.rmtree(root, ignore_errors=True)


class Tally:
    """Counts what was tried and what was wrong, and keeps it in a log.

    part: "2/4" for the second quarter of the cases, so that several processes share them.
    """

    def __init__(self, name: str, log: str | None = None, part: str | None = None):
        self.name, self.log, self.tried, self.wrong = name, log, 0, []
        self._part, self._parts = map(int, (part or "1/1").split("/"))
        self._seen = 0

    def passes_over(self) -> bool:
        """Tell whether the next case is one for another process."""
        self._seen += 1
        return self._seen % self._parts != self._part % self._parts

    def add(self, what: object, wrong: list[str]) -> None:
        """Note one case, and what was not as it must be."""
        self.tried += 1
        self.wrong += [f"{what}: {line}" for line in wrong]
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(f"{self.name} {self.tried} {'WRONG' if wrong else 'right'} {what} {wrong}\n")

    def check(self) -> None:
        """Fail if something was wrong."""
        assert not self.wrong, f"{len(self.wrong)} of {self.tried}: " + "\n".join(self.wrong[:20])
