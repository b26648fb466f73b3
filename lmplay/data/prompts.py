"""Read the prompts of a file (--prompts)."""

from pathlib import Path
from typing import Any

from lmplay.errors import UserError
from lmplay.files import parse_json, read_clean, shipped_files, typed_path
from lmplay.text import by_name


def read_prompts(path: str) -> list[str]:
    """Return the prompts of a file: one per line, without empty lines; of .json and .jsonl texts or {"prompt": text}.

    The name or the file of a plan stands for the plan's prompts; "-" is standard input, one prompt per line. Raises
    UserError if there is none, or for what is no prompt.
    """
    plan = None if path == "-" or typed_path(path).exists() else by_name(shipped_files("plans"), path)
    if plan is None and path != "-" and not typed_path(path).exists():
        raise UserError(f"{path} is neither a file nor a plan: name a file of prompts, or a plan that has some")
    path = str(plan or path)
    text, kind = read_clean(path), Path(path).suffix.lower()
    if kind not in (".json", ".jsonl"):
        found: Any = [line for line in text.splitlines() if line.strip()]
    else:
        try:
            lines = [line for line in text.splitlines() if line.strip()]
            found = [parse_json(line.encode()) for line in lines] if kind == ".jsonl" else parse_json(text.encode())
        except ValueError as error:
            raise UserError(f"{path} is no {kind[1:]} ({error}): write one prompt per line, or mend it") from None
    if isinstance(found, dict):
        found = found.get("prompts")
    found = found if isinstance(found, list) else []
    given = [one.get("prompt") if isinstance(one, dict) else one for one in found]
    prompts = [one for one in given if isinstance(one, str)]
    if not prompts or len(prompts) < len(given):
        wrong = next((number for number, one in enumerate(given, start=1) if not isinstance(one, str)), None)
        what = path if wrong is None else f"prompt {wrong} of {path}"
        raise UserError(f'{what} holds no prompt: a text, or an object with the key "prompt", is expected')
    return prompts
