"""Write texts for many prompts with a model that is loaded once (--prompts of lmp_generator)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.errors import UserError
from lmplay.files import read_clean
from lmplay.output import reader_left

if TYPE_CHECKING:
    from lmplay.generate.writing import Writer


def read_prompts(path: str) -> list[str]:
    """Return the prompts of a file: one per line, without empty lines; of .json and .jsonl texts or {"prompt": text}.

    "-" is standard input, one prompt per line. Raises UserError if there is none, or for what is no prompt.
    """
    text, kind = read_clean(path, "the prompts in"), Path(path).suffix.lower()
    if kind not in (".json", ".jsonl"):
        found: list[Any] = [line for line in text.splitlines() if line.strip()]
    else:
        try:
            lines = [line for line in text.splitlines() if line.strip()]
            found = json.loads(text) if kind == ".json" else [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{path} is no {kind[1:]} ({error}): write one prompt per line, or mend it") from None
    found = found if isinstance(found, list) else []
    given = [one.get("prompt") if isinstance(one, dict) else one for one in found]
    prompts = [one for one in given if isinstance(one, str)]
    if not prompts or len(prompts) < len(given):
        wrong = next((number for number, one in enumerate(given, start=1) if not isinstance(one, str)), None)
        what = path if wrong is None else f"prompt {wrong} of {path}"
        raise UserError(f'{what} holds no prompt: a text, or an object with the key "prompt", is expected')
    return prompts


def write_all(prompts: list[str], make: Callable[[str], "Writer"], seeds: range, as_json: bool) -> Iterator[str]:
    """Yield what is to be printed of each text, prompt by prompt, each with the same seeds.

    as_json: one line of JSON with prompt, sample, seed and text.
    """
    for number, prompt in enumerate(prompts, start=1):
        writer = make(prompt)
        for sample, (seed, parts) in enumerate(writer.some(seeds), start=1):
            text = "".join(parts)
            if as_json:
                row = {"prompt": prompt, "sample": sample, "seed": seed, "text": text}
                yield json.dumps(row, ensure_ascii=False)
            else:
                more = f", sample {sample}, seed {seed}" if len(seeds) > 1 else ""
                yield f"--- prompt {number} of {len(prompts)}{more}\n{text}"
            if reader_left():
                return
