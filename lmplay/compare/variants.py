"""Find the variants of experiments that are compared, installed or kept by a run."""

from dataclasses import dataclass
from pathlib import Path

from lmplay import registry


@dataclass(frozen=True)
class Variant:
    """A variant of an experiment.

    code_hash: that of the experiment's code as it was at the start. kept: the folder of the run whose own copy of the
    code this is, None for an experiment that is installed. label: what it is called; NAME:VARIANT unless two codes
    share that.
    """

    entry: registry.Entry
    name: str
    code_hash: str
    kept: Path | None = None
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.spec)

    @property
    def spec(self) -> str:
        """NAME:VARIANT."""
        return f"{self.entry.name}:{self.name}"


def find_variant(spec: str) -> Variant:
    """Find the variant that NAME[:VARIANT] stands for. Raises UserError if there is none."""
    entry, name = registry.find(spec)
    return Variant(entry, name, entry.code_hash)
