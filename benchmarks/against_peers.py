"""How fast lmplay trains beside nanoGPT's step written plainly, litgpt, and transformers under its Trainer.

    python benchmarks/against_peers.py [--shapes NAME ...] [--sides NAME ...] [--rounds 5] [--json FILE]

Every side is a process of its own and takes its turns while the others wait: the same shape, batch, precision and
optimizer, plain and compiled. litgpt and transformers live in virtual environments that are made from peers/*.txt, with
the torch that runs here. Given are the median of tokens per second and, for each library, the median over the rounds
of its best mode's time as a multiple of lmplay's best mode, with quartiles. Written after every shape.
A library whose environment can't be made, as without a network, is left out. `speed.py --parts peers` is the same.

The shapes: v50257 and v4096 are 6 layers of 384 at context 256, 16 sequences, of these vocabularies; v257 is 4 layers
of 128 at context 128, 32 sequences, and short the same at context 64, 12 sequences; llama2 is v4096 with Llama's blocks
(no plain side). litgpt has no learned positions: its GPT-2 has rotary ones.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VENVS = Path.home() / ".cache" / "lmplay" / "peers"
LARGE = {"layers": 6, "heads": 6, "width": 384, "context": 256, "rows": 16, "hidden": 1536, "model": "gpt2"}
NARROW = {"layers": 4, "heads": 4, "width": 128, "hidden": 512, "vocabulary": 257}
SHAPES: dict[str, dict[str, Any]] = {
    "v50257": LARGE | {"vocabulary": 50257},
    "v4096": LARGE | {"vocabulary": 4096},
    "v257": LARGE | NARROW | {"context": 128, "rows": 32},
    "short": LARGE | NARROW | {"context": 64, "rows": 12},
    "llama2": LARGE | {"vocabulary": 4096, "hidden": 1024, "model": "llama2"},
    "small": LARGE | {"layers": 1, "heads": 2, "width": 16, "context": 16, "rows": 2, "hidden": 64, "vocabulary": 97},
}
LIBRARIES = ("lmplay", "plain", "litgpt", "transformers")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="as lmp_trainer takes it (default: auto)")
    p.add_argument("--shapes", nargs="+", default=[s for s in SHAPES if s != "small"], choices=list(SHAPES))
    p.add_argument("--sides", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    p.add_argument("--no-compile", action="store_true", help="leave the compiled sides out")
    p.add_argument("--amp", choices=("auto", "on", "off"), default="auto", help="auto: where it is faster here")
    p.add_argument("--rounds", type=int, default=5, help="turns of each side")
    p.add_argument("--seconds", type=float, default=4.0, help="length of a turn")
    p.add_argument("--venvs", type=Path, default=VENVS, help="their environments")
    p.add_argument("--json", type=Path, help="write there (default: benchmarks/results/speed_<machine>.json)")
    args = p.parse_args()
    import torch

    from lmplay.model.device import choose_device, device_name
    from lmplay.model.measured import FASTER, amp_factor

    device = choose_device(args.device)
    amp = args.amp == "on" or (args.amp == "auto" and amp_factor(str(device)) >= FASTER)
    name = device_name(device)
    path = args.json or HERE / "results" / f"speed_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results |= {"machine": name, "torch": str(torch.__version__), "python": platform.python_version()}
    results |= {"threads": torch.get_num_threads(), "device": device.type}
    modes = ("",) if args.no_compile else ("", " compiled")
    for shape in args.shapes:
        results.setdefault("peers", {})[shape] = of_shape(
            shape,
            amp=amp,
            device=str(device),
            rounds=args.rounds,
            seconds=args.seconds,
            sides=args.sides,
            modes=modes,
            venvs=args.venvs,
        )
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def of_shape(
    name: str,
    *,
    amp: bool,
    device: str,
    rounds: int,
    seconds: float = 3.0,
    sides: Sequence[str] = LIBRARIES,
    modes: Sequence[str] = ("", " compiled"),
    venvs: Path = VENVS,
) -> dict[str, Any]:
    """Measure a shape, print how fast each side is, and return what was found."""
    wanted = [side for side in sides if side != "plain" or SHAPES[name]["model"] == "gpt2"]
    names = [f"{side}{mode}" for mode in modes for side in wanted]
    shape = SHAPES[name] | {"amp": amp, "device": device}
    found = measure(names, shape, rounds=rounds, seconds=seconds, venvs=venvs)
    for row in lines(name, found):
        print(row, flush=True)
    return found


def measure(names: list[str], shape: dict[str, Any], *, rounds: int, seconds: float, venvs: Path) -> dict[str, Any]:
    """Return what the sides did: of each the first loss and seconds per step in each round, or why it failed."""
    found: dict[str, Any] = {"shape": shape, "sides": {}}
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        missing: set[str] = set()
        for name in names:
            library = name.split()[0]
            try:
                if library in missing:
                    continue
                sides[name] = stack.enter_context(started(name, shape, venvs))
                found["sides"][name] = {"first_loss": sides[name].loss, "seconds": []}
            except NoEnvironment as error:
                missing.add(library)
                found["sides"][name] = {"failed": str(error)[-600:]}
                print(f"{library} is left out: {str(error)[-300:]}", flush=True)
            except (OSError, subprocess.CalledProcessError, ValueError) as error:
                found["sides"][name] = {"failed": str(error)[-600:]}
                print(f"{name}: {str(error)[-300:]}", flush=True)
        counts = {name: max(1, round(seconds / max(side.seconds(2) / 2, 1e-6))) for name, side in sides.items()}
        for _ in range(rounds):
            for name, side in sides.items():
                found["sides"][name]["seconds"].append(side.seconds(counts[name]) / counts[name])
    return found


class NoEnvironment(Exception):
    """Why the environment of a library can't be made."""


class Side:
    """A process that takes steps in turns."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.loss = self._answer()["loss"]

    def seconds(self, steps: int) -> float:
        """Let it take steps, and return their seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    return json.loads(line)
            said.append(line)
        raise ValueError("it ended: " + "".join(said[-8:]).strip())


@contextlib.contextmanager
def started(name: str, shape: dict[str, Any], venvs: Path) -> Iterator[Side]:
    """Start a side in the environment of its library."""
    library = name.split()[0]
    python = environment(library, venvs) if (HERE / "peers" / f"{library}.txt").exists() else sys.executable
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [python, HERE / "peers" / "turns.py", name, json.dumps(shape)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
    )
    try:
        yield Side(process)
    finally:
        process.kill()
        process.wait()


def environment(library: str, venvs: Path) -> Path:
    """Return the interpreter of a library's environment, which is made where there is none for these pins."""
    import torch

    wanted = (HERE / "peers" / f"{library}.txt").read_text("utf-8") + f"torch=={torch.__version__.split('+')[0]}\n"
    folder = venvs / library
    python, made = folder / "bin" / "python", folder / "made_from.txt"
    if made.exists() and made.read_text("utf-8") == wanted:
        return python
    print(f"making {folder}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
        (folder / "wanted.txt").write_text(wanted, encoding="utf-8")
        command = [python, "-m", "pip", "install", "-q", "--retries", "1", "-r", folder / "wanted.txt"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoEnvironment(f"{folder} can't be made: {error}") from error
    if done.returncode:
        raise NoEnvironment(f"pip can't install peers/{library}.txt: {done.stdout.strip()[-400:]}")
    made.write_text(wanted, encoding="utf-8")
    return python


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """Return what to print of a shape: each side's speed, and each library's best mode beside lmplay's best."""
    tokens = found["shape"]["rows"] * found["shape"]["context"]
    rounds = {side: row["seconds"] for side, row in found["sides"].items() if row.get("seconds")}
    rows = [f"{name} {side}: {tokens / statistics.median(values):,.0f} tokens/s" for side, values in rounds.items()]
    best: dict[str, list[float]] = {}
    for side, values in rounds.items():
        library = side.split()[0]
        if library not in best or statistics.median(values) < statistics.median(best[library]):
            best[library] = values
    for library in [one for one in best if one != "lmplay" and "lmplay" in best]:
        ratios = sorted(a / b for a, b in zip(best[library], best["lmplay"], strict=True))
        quarter = len(ratios) // 4
        found.setdefault("times_as_fast_as", {})[library] = row = {
            "median": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        }
        rows.append(f"{name}: lmplay is {row['median']} times as fast as {library} (quartiles {row['quartiles']})")
    return rows


if __name__ == "__main__":
    main()
