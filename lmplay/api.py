"""The Python API, for notebooks and scripts: what the commands do, with objects instead of files and text.

A run is given as a `Run`, as the path of its folder or of one of its checkpoints, or as its name in `folder` (default:
$LMPLAY_OUT, else gpt_out).
"""

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.errors import OutOfTime, UserError, did_you_mean
from lmplay.model.device import choose_device, precision, prepare_process
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs import folder as run_folder
from lmplay.runs import names
from lmplay.runs.alive import state_of
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings, default_out

if TYPE_CHECKING:
    import pandas
    import torch
    from matplotlib.figure import Figure

    from lmplay.compare.job_trainer import Progress
    from lmplay.data.tokenizers import Tokenizer
    from lmplay.generate.inside import Inside
    from lmplay.report.comparison import Comparison
    from lmplay.runs.trained import TrainedRun

AnyRun = Run | str | Path
ALWAYS_LISTED = ("seed", "lr", "batch_size")
COLUMNS: dict[str, tuple[str, ...]] = {
    "name": (),
    "experiment": ("experiment", "name"),
    "variant": ("experiment", "variant"),
    "plan": ("plan", "name"),
    "status": ("status",),
    "step": ("progress", "step"),
    "tokens": ("progress", "tokens"),
    "train_loss": ("progress", "final", "loss"),
    "validation_loss": ("progress", "validation_loss"),
    "seconds": ("progress", "seconds"),
    "parameters": ("parameters", "total"),
}
BUDGETS = ("max_tokens", "max_steps", "max_minutes", "extra_steps")


def list_runs(folder: str | Path | None = None) -> "pandas.DataFrame":
    """Return one row per run in `folder`, by name.

    Columns: name, experiment, variant, plan, status, step, tokens, train_loss and validation_loss (nats per token, the
    last ones), seconds, parameters; then seed, lr, batch_size; then what the runs differ in of the other settings that
    decide the result, of the budgets, and, within an experiment, of the Config; then checkpoints (paths, oldest first)
    and path. What is not known is None.

    Raises UserError if there is no folder of a run. A run that can't be read is left out with a warning.
    """
    import pandas

    runs = _find([], folder)
    settings = [key for key in (*Settings().identity, *BUDGETS) if key not in ("exp", *ALWAYS_LISTED)]
    fields = dict.fromkeys(key for run in runs for key in run.keys("config"))
    asked = [("settings", key) for key in ALWAYS_LISTED]
    asked += [("settings", key) for key in settings if _differ(runs, "settings", key)]
    asked += [("config", key) for key in fields if any(_differ(alike, "config", key) for alike in _by_experiment(runs))]
    rows = [_row(run) | {key: run.value(section, key) for section, key in asked} for run in runs]
    ends = [{"checkpoints": run.checkpoints, "path": run.folder} for run in runs]
    columns = [*COLUMNS, *(key for _, key in asked), "checkpoints", "path"]
    return pandas.DataFrame(
        [row | end for row, end in zip(rows, ends, strict=True)], columns=list(dict.fromkeys(columns))
    )


def _row(run: Run) -> dict[str, Any]:
    row = {column: run.get(*keys) if keys else run.name for column, keys in COLUMNS.items()}
    return row | {"status": state_of(run) or None}


def _by_experiment(runs: list[Run]) -> list[list[Run]]:
    return [[run for run in runs if run.experiment == name] for name in {run.experiment for run in runs}]


def _differ(runs: list[Run], section: str, key: str) -> bool:
    return len({repr(run.value(section, key)) for run in runs}) > 1


def curves(run: AnyRun, split: str = "validate", *, folder: str | Path | None = None) -> "pandas.DataFrame":
    """Return a run's figures: one row per step (split "train") or per validation ("validate").

    The columns are those of its CSV file. loss is in nats per token; tokens, flops and seconds are those used for
    training so far. Raises UserError for an unknown run or split.
    """
    if split not in names.TABLES:
        raise UserError(f"split is one of {', '.join(names.TABLES)}, not {split!r}")
    return _one(run, folder).table(split)


@dataclass(frozen=True)
class LoadedRun:
    """A trained model, ready to be used.

    model: a torch module in evaluation mode on `device`; tokens (B, T) int64 -> logits (B, T, V).
    """

    trained: "TrainedRun"
    device: "torch.device"

    @property
    def run(self) -> Run:
        """The run: its folder, its run.json (`info`) and its tables."""
        return self.trained.run

    @property
    def model(self) -> "torch.nn.Module":
        """The torch module."""
        return self.trained.model

    @property
    def tokenizer(self) -> "Tokenizer":
        """What cuts text into tokens: `encode(text)` and `decode(ids)`."""
        return self.trained.tokenizer

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.trained.checkpoint)!r}, {self.trained.experiment.name}, {self.device})"

    def generate(
        self,
        prompt: str = "",
        max_len: int = 200,
        seed: int | None = None,
        *,
        direction: str | None = None,
        use_cache: bool = True,
        **sampling: Any,
    ) -> str:
        """Return the prompt and what the model adds to it, up to `max_len` tokens; a masked model fills in each [MASK].

        seed: the same seed writes the same text (default: a new one each time). direction: for a model that reads in
        several. sampling: temperature (0.8), top_k (0: all), top_p (0.95), repetition_penalty (1), do_sample (True), as
        the flags of lmp_generator. Raises UserError if the model can't write, and for values out of range.
        """
        from lmplay.generate.sampling import Sampling
        from lmplay.generate.writing import make_writer

        known = Sampling.__dataclass_fields__
        for name in sampling:
            if name not in known:
                raise UserError(f"generate takes no {name!r}.{did_you_mean(name, known)}")
        writer = make_writer(
            self.trained, prompt, Sampling(**sampling), direction=direction, max_len=max_len, use_cache=use_cache
        )
        seed = int.from_bytes(os.urandom(4)) if seed is None else seed
        with precision(self.device, False, self.trained.context_len):
            return "".join(writer.parts(seed))

    def score(self, text: str, *, direction: str | None = None) -> "pandas.DataFrame":
        """Return one row per token of `text`: token (its text), bytes (how many) and loss (nats).

        direction: for a model that reads in several (default: its first). A text longer than the context is scored in
        windows that overlap by half. The mean of `loss` is the loss in nats per token. Raises UserError if the model is
        not causal.
        """
        import pandas

        from lmplay.generate.token_losses import losses_of_text, tracks_of

        first = next(iter(self.trained.experiment.direction_names), None)
        pieces, losses = losses_of_text(text, tracks_of([self.trained], direction or first))
        return pandas.DataFrame(
            {
                "token": [piece.decode("utf-8", "replace") for piece in pieces],
                "bytes": [len(piece) for piece in pieces],
                "loss": losses[:, 0],
            }
        )

    def inputs(self, text: str, *, direction: str | None = None) -> "torch.Tensor":
        """Return what the model is fed to read `text`, (1, T) int64: the BOS token, then the tokens as it reads them.

        For hooks of your own: `model(run.inputs(text))`. Raises UserError for a text that is too long.
        """
        from lmplay.generate.inside import inputs_of

        return inputs_of(self.trained, text, direction)

    def look_inside(self, text: str, *, direction: str | None = None) -> "Inside":
        """Let the model read `text` and return its tokens, logits, attention maps and residual stream.

        Raises UserError for a text that is too long.
        """
        from lmplay.generate.inside import look_inside

        return look_inside(self.trained, text, direction)


def load_run(run: AnyRun | None = None, device: str = "auto", *, folder: str | Path | None = None) -> LoadedRun:
    """Load a trained model: the newest weights of a run, or those of a checkpoint; None: of the run trained last.

    device: "auto", "cpu", "cuda", "cuda:1" or "mps". Raises UserError if something is missing, damaged or changed.
    """
    prepare_process()
    from lmplay.runs import trained

    chosen = choose_device(device)
    return LoadedRun(trained.load_run(_one(run, folder), chosen), chosen)


def plot_runs(
    runs: AnyRun | Iterable[AnyRun] | None = None,
    column: str = "loss",
    *,
    diff: bool = False,
    folder: str | Path | None = None,
    **options: Any,
) -> "Figure":
    """Draw runs over one another, as lmp_plotstats does, and return the matplotlib figure.

    runs: one or several, or a folder of runs; None: all in `folder`. column: "loss", "accuracy" or a column of the CSV
    files. diff: draw the difference to the baseline. options: baseline (an experiment or a run), x ("tokens", "steps",
    "seconds", "flops", "samples", "bytes"), log (True), split ("train" or "validate"), smooth (percent), raw,
    plan_step, bits_per_byte, each_run, xlim (low, high), group (a field), style ("screen", "paper", "dark"). Raises
    UserError if there is nothing to draw.
    """
    from lmplay.report.overlay import draw_runs
    from lmplay.report.plot_options import PlotOptions

    known = PlotOptions.__dataclass_fields__
    for name in options:
        if name not in known:
            raise UserError(f"plot_runs takes no {name!r}.{did_you_mean(name, known)}")
    wanted = [] if runs is None else [runs] if isinstance(runs, (Run, str, Path)) else list(runs)
    found = [one for one in wanted if isinstance(one, Run)]
    paths = [one for one in wanted if not isinstance(one, Run)]
    if paths or not wanted:
        found += _find(paths, folder)
    return draw_runs(found, PlotOptions(**options), column, diff)


def run_comparison(
    candidates: str | Iterable[str] = (),
    baseline: str = DEFAULT_EXPERIMENT,
    seeds: int | None = None,
    *,
    lr: float | Iterable[float] | None = None,
    tune: Mapping[str, Iterable[float | str]] | None = None,
    extend: int = 0,
    until_sure: bool = False,
    max_seeds: int = 8,
    within: float | None = None,
    aa: bool = False,
    allow_leak: bool = False,
    retry_crashed: bool = False,
    confidence: float = 0.95,
    run_name: str | None = None,
    budget: float | str | None = None,
    timeout: float | None = None,
    on_progress: "Callable[[Progress], None] | None" = None,
    jobs: int | None = 1,
    together: int | None = 1,
    on: str | None = None,
    **settings: Any,
) -> "Comparison":
    """Compare experiments with a baseline, as lmp_compare does: train what is missing, and return the verdicts.

    candidates, baseline: NAME[:VARIANT], or a run, which stands for the code that it keeps. seeds: pairs of runs
    (default 3; with until_sure 2 at first). lr: one peak learning rate, or several of which each arm gets its own best
    (default: its recipe's). tune: the same for other settings and fields of the Config, such as {"embedding_lr": [1,
    10]}; extend: how often the grid may grow where an arm's best value is at its edge. until_sure: add seeds until the
    answer is sure, up to `max_seeds`. within: a difference below this (nats per token) counts as equal. aa: compare the
    baseline with itself. allow_leak: judge models that are not causal, too. retry_crashed: train again what crashed
    under the same code. confidence: of the interval. run_name: what the names of new runs' folders begin with.
    settings: of all runs, named as the flags of lmp_trainer, such as training_plan="quick", max_steps=500,
    set=["n_layer=2"]. budget: minutes, or "2h", into which the runs are made to fit. timeout: seconds after which it
    ends, in the middle of a run too. on_progress: is called before and after each run that is trained, with its `run`,
    `state`, `folder` and `which`; what it raises ends the comparison. jobs: how many runs are trained side by side;
    together: how many seeds of one arm in one process, stacked; None: as many as pay. on: where, as the flag --on.

    The runs are kept in `out` (default: $LMPLAY_OUT, else "gpt_out") and are not trained again. `str()` of the result
    is what lmp_compare prints, `.to_json()` what its --json writes; `.candidates[0].verdict` has the difference and its
    interval. May be called in any thread. Raises UserError (docs/python-api.md has its classes), OutOfTime at the
    timeout, with what can be said so far as `.result` (None if nothing), and KeyboardInterrupt if it is stopped. The
    same call goes on.
    """
    from lmplay.compare import compare
    from lmplay.compare.budget import MOST_PAIRS, read_budget
    from lmplay.compare.jobs import Stopped
    from lmplay.compare.tuning import axes_of

    known = Settings.__dataclass_fields__
    for name in settings:
        if name not in known:
            raise UserError(f"run_comparison takes no {name!r}.{did_you_mean(name, known)}")
    given: dict[str, Any] = {"same_init": True} | settings
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    rates = {} if lr is None else {"lr": [lr] if isinstance(lr, (int, float)) else lr}
    tried: dict[str, Iterable[float | str]] = {**rates, **(tune or {})}
    request = compare.ComparisonRequest(
        baseline=baseline,
        candidates=(candidates,) if isinstance(candidates, str) else tuple(candidates),
        settings=replace(Settings(**given), run_name=None),
        seeds=seeds if seeds is not None else 2 if until_sure else MOST_PAIRS if budget else 3,
        budget=read_budget(str(budget)) if budget is not None else None,
        timeout=timeout,
        on_progress=on_progress,
        tune=axes_of([f"{field}={','.join(map(str, values))}" for field, values in tried.items()]),
        extend=extend,
        given=frozenset(given),
        aa=aa,
        allow_leak=allow_leak,
        retry_crashed=retry_crashed,
        confidence=confidence,
        prefix=Settings(run_name=run_name).run_name or "",
        until_sure=until_sure,
        within=within,
        max_seeds=max_seeds,
        jobs=jobs,
        together=together,
        on=on,
        any_interval="validation_interval" not in settings,
    )
    try:
        return compare.run_comparison(request)
    except Stopped as stopped:
        if not stopped.out_of_time:
            raise KeyboardInterrupt from None
        error = OutOfTime(f"the comparison took longer than {timeout:g} s: the same call goes on")
        error.result = stopped.result
        raise error from None


def _one(run: AnyRun | None, folder: str | Path | None) -> Run:
    return run if isinstance(run, Run) else run_folder.find_run(run, Path(folder or default_out()))


def _find(paths: list[str | Path], folder: str | Path | None) -> list[Run]:
    runs, skipped = run_folder.find_runs(paths, Path(folder or default_out()))
    for line in skipped:
        warnings.warn(line, stacklevel=3)
    return runs
