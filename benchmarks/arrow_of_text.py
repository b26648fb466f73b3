"""Is real text easier to read forwards? Trains both directions on corpora of this machine and says by how much they
differ.

    python benchmarks/arrow_of_text.py --man de fr es         # Debian's manual pages in these languages
    python benchmarks/arrow_of_text.py --man en --mirrored    # from its end, by character: the sign must flip
    python benchmarks/arrow_of_text.py --files a.txt b.txt --name mine --seeds 3 --flags "--max-tokens 3e6"

Each corpus gets a tokenizer of its own and is split into training and validation documents. `lmp_compare --exp
reverse_time:tiny --baseline gpt2ish:tiny` compares the directions under N seeds each: same windows, same order, the
BOS token first. groff renders the manual pages (`apt-get install groff`), one document per page, without hyphens and
padding. Everything is kept below --out; the same command goes on where it stopped. At the end it prints a table of all
corpora in --out.
"""

import argparse
import csv
import gzip
import json
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MAN = Path("/usr/share/man")
GROFF = ["groff", "-K", "utf8", "-T", "utf8", "-mandoc", "-rLL=2000n", "-rHY=0", "-dAD=l", "-P-cbou"]
DEFAULT_FLAGS = (
    "--context-len 128 --batch-size 32 --lr 1e-3 --lr-schedule wsd --max-tokens 4e6 --validation-tokens 0 "
    "--loss-by-position 12"
)


def render(page: Path) -> str:
    """The text of a manual page as one reads it; "" for one that only points to another."""
    source = gzip.open(page).read() if page.suffix == ".gz" else page.read_bytes()
    if len(source) < 300 or source.lstrip().startswith(b".so "):
        return ""
    done = subprocess.run(GROFF, input=source, capture_output=True)
    text = re.sub(r"[ \t]+", " ", done.stdout.decode("utf-8", "replace"))
    return re.sub(r"\n\s*\n+", "\n\n", "\n".join(line.strip() for line in text.splitlines())).strip()


def pages(language: str, limit: int) -> list[Path]:
    """Pages of a language, each once; "en" are those at the top."""
    folders = sorted(MAN.glob("man[1-8]")) if language == "en" else sorted((MAN / language).glob("man[1-8]"))
    found = [
        page for folder in folders for page in sorted(folder.iterdir()) if page.is_file() and not page.is_symlink()
    ]
    return found[:: -(-len(found) // limit)] if found else []


def write_texts(name: str, texts: list[str], folder: Path, mirrored: bool) -> None:
    folder.mkdir(parents=True)
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for text in dict.fromkeys(filter(None, texts)):
            file.write(json.dumps({"text": text[::-1] if mirrored else text}, ensure_ascii=False) + "\n")
    content = {
        "description": f"{name}, for the arrow of time",
        "tokenizer": {"train": "bpe", "vocab_size": 4096},
        "datasets": {name: {"files": "texts.jsonl", "validation": {"fraction": 0.1}}},
        "steps": [{"datasets": [name], "epochs": 100}],
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def compare(name: str, folder: Path, seeds: int, flags: str) -> None:
    command = [
        "lmp_compare",
        "--exp",
        "reverse_time:tiny",
        "--baseline",
        "gpt2ish:tiny",
        "--seeds",
        str(seeds),
        "--training-plan",
        str(folder / f"{name}.json"),
        "--out",
        str(folder / "runs"),
        *shlex.split(flags),
    ]
    print(shlex.join(command), flush=True)
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def table(out: Path) -> None:
    print(
        "| corpus | seeds | forward | backward | backward minus forward | 95% interval | relative |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for file in sorted(out.glob("*/runs/compare_*.csv")):
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
        base, other = rows[0], rows[-1]
        forward, backward = float(base["validation_loss"]), float(other["validation_loss"])
        difference, low, high = (float(other[name]) for name in ("difference", "low", "high"))
        print(
            f"| {file.parents[1].name} | {other['seeds']} | {forward:.4f} | {backward:.4f} | {difference:+.4f} | "
            f"{low:+.4f} to {high:+.4f} | {100 * difference / forward:+.2f}% |"
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--man", nargs="+", default=[], metavar="LANGUAGE", help="languages of manual pages, such as en de fr ja"
    )
    p.add_argument(
        "--files", nargs="+", default=[], type=Path, metavar="FILE", help="text files: one corpus, cut at blank lines"
    )
    p.add_argument("--name", default="files", help="what the corpus of --files is called")
    p.add_argument(
        "--mirrored",
        action="store_true",
        help="write every text from its end, character by character, before anything else",
    )
    p.add_argument("--pages", type=int, default=2000, help="about N pages of each language at most (default 2000)")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--flags", default=DEFAULT_FLAGS, help=f"of all runs (default: {DEFAULT_FLAGS})")
    p.add_argument("--out", type=Path, default=Path("arrow_out"))
    typed = p.parse_args()
    for language in typed.man:
        name = f"man_{language}" + "_mirrored" * typed.mirrored
        if not (typed.out / name).exists():
            with ThreadPoolExecutor() as pool:
                texts = list(pool.map(render, pages(language, typed.pages)))
            write_texts(name, texts, typed.out / name, typed.mirrored)
        compare(name, typed.out / name, typed.seeds, typed.flags)
    if typed.files:
        name = typed.name + "_mirrored" * typed.mirrored
        if not (typed.out / name).exists():
            texts = [part for file in typed.files for part in re.split(r"\n\n+", file.read_text(encoding="utf-8"))]
            joined = ["\n\n".join(texts[k : k + 40]) for k in range(0, len(texts), 40)]
            write_texts(name, joined, typed.out / name, typed.mirrored)
        compare(name, typed.out / name, typed.seeds, typed.flags)
    table(typed.out)


if __name__ == "__main__":
    main()
