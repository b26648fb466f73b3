"""Show what each token of a text costs one model or two (--score of lmp_generator)."""

import argparse
from pathlib import Path

from lmplay.cli.written_text import print_any_character
from lmplay.errors import UserError
from lmplay.files import read_clean


def score(typed: argparse.Namespace) -> None:
    """Print and draw what each token of a text costs one model or two (--score)."""
    if len(typed.run) > 2:
        raise UserError(f"--score compares two runs at most, not {len(typed.run)}")
    if typed.prompt:
        raise UserError("--score takes its text from its file: leave out the prompt")
    base = chosen_base(typed.output)
    text = read_clean(typed.score, "the text in")
    name = "text" if typed.score == "-" else Path(typed.score).stem
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    try:
        import matplotlib  # noqa: F401  # missing: say so before the models compute
    except ImportError as error:
        raise UserError(f"{error.name} is missing: install it with 'pip install {error.name}'") from error
    from lmplay.generate.token_losses import losses_of_text, tracks_of
    from lmplay.report import text_map
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    device = choose_device(typed.device)
    runs = [find_run(one, typed.out) for one in typed.run or [None]]
    tracks = tracks_of([load_run(run, device) for run in runs], typed.direction)
    drawn = text_map.map_text([track.name for track in tracks], *losses_of_text(text, tracks))
    print_any_character()
    print(text_map.summary(drawn))
    base = base or text_map.free_base(typed.out, name, drawn)
    base.parent.mkdir(parents=True, exist_ok=True)
    for path in text_map.write(drawn, f"{name}: {' and '.join(drawn.names)}", base):
        print(f"wrote {path}")


def chosen_base(output: Path | None) -> Path | None:
    """Return where --score writes by -o, without the suffix. Raises UserError if something is there already."""
    from lmplay.report.text_map import SUFFIXES, taken

    if output is None:
        return None
    base = output.with_suffix("") if output.suffix in SUFFIXES else output
    if not base.name or base.is_dir():
        raise UserError(f"-o takes a file to write, and {output} is a folder")
    if there := taken(base):
        raise UserError(f"there is {there[0]} already: choose another -o, or delete it first")
    return base
