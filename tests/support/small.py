"""Small text, plans and flags, with which a run takes a moment."""

import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
TINY = (
    "--exp gpt2ish --set n_layer=1 --set n_embd=16 --set n_head=2 --context-len 16 --batch-size 4 --mini-batch-size 3 "
    "--warmup-steps 2 --device cpu"
).split()


def make_text(paragraphs: int, seed: int) -> str:
    """Paragraphs of made-up words."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aeioulnrst", k=draw.randint(1, 7))) for _ in range(60)]
    return "\n\n".join(" ".join(draw.choices(words, k=draw.randint(10, 60))) for _ in range(paragraphs)) + "\n"


def write_plan(folder: Path, name: str, datasets: dict, steps: list[dict], tokenizer="bytes") -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"tokenizer": tokenizer, "datasets": datasets, "steps": steps}), encoding="utf-8")
    return str(path)
