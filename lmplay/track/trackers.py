"""Write into trackers: TensorBoard, Weights & Biases, Trackio, MLflow. Each is imported when it is used."""

import contextlib
import html
import importlib.util
import itertools
import logging
import netrc
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from lmplay.errors import UserError
from lmplay.runs.run import Run
from lmplay.runs.settings import TRACKERS
from lmplay.track.recorded import Event, config_of, tags_of

PROJECT = "lmplay"
MLFLOW_BATCH = 1000  # metrics that MLflow takes at once
MLFLOW_LONGEST = 6000  # characters of a parameter
ENDED = {"finished": "FINISHED", "stopped": "KILLED", "killed": "KILLED", "running": "RUNNING"}


class Tracker(Protocol):
    """One tracked run. id: what finds it again."""

    id: str

    def log(self, events: list[Event]) -> None:
        """Write events, by ascending step."""

    def close(self, state: str) -> None:
        """Write all that is left. state: how the run stands, as `alive.state_of` says."""


def check_trackers(wanted: tuple[str, ...]) -> None:
    """Raise UserError for the first tracker whose package is missing."""
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--track {name}: {name} is missing, install it with pip install 'lmplay[{name}]'")


def open_tracker(name: str, run: Run, known: str | None) -> Tracker:
    """Begin a tracked run, or continue the one that was noted as `known`. Whatever the package raises comes through."""
    makers: dict[str, Callable[[Run, str | None], Tracker]] = {
        "tensorboard": TensorBoard,
        "wandb": WandbLike,
        "trackio": WandbLike.of_trackio,
        "mlflow": MLflow,
    }
    assert set(makers) == set(TRACKERS)
    return makers[name](run, known)


class TensorBoard:
    """Event files in ./tensorboard/EXPERIMENT/RUN: `tensorboard --logdir tensorboard` shows them."""

    def __init__(self, run: Run, known: str | None):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.id = known or str(_free(Path("tensorboard", run.experiment, run.name).absolute()))
        self.writer = cast(Any, SummaryWriter(self.id))
        if not known:
            config = config_of(run)
            rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in config.items())
            self.writer.add_text("config", f"| setting | value |\n| --- | --- |\n{rows}", 0)
            self.writer.add_text("tags", ", ".join(tags_of(run)), 0)
            for summary in hparams(config, {"validation/loss": 0.0}):
                self.writer.file_writer.add_summary(summary)

    def log(self, events: list[Event]) -> None:
        for event in events:
            for name, value in event.scalars.items():
                self.writer.add_scalar(name, value, event.step, walltime=event.time)
            for name, text in event.texts.items():
                shown = text.replace("\n", "\n    ")
                self.writer.add_text(name, f"    {shown}", event.step, walltime=event.time)
        self.writer.flush()

    def close(self, state: str) -> None:
        self.writer.close()


class WandbLike:
    """Weights & Biases, offline without a login, and Trackio, which has its interface."""

    def __init__(self, run: Run, known: str | None):
        import wandb

        self.id = known or uuid.uuid4().hex[:8]
        self.html = wandb.Html
        with contextlib.redirect_stdout(sys.stderr):
            self.run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=self.id,
                name=run.name,
                group=run.experiment,
                tags=tags_of(run),
                config=config_of(run),
                resume="allow",
                mode=_mode(),
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
            )

    @classmethod
    def of_trackio(cls, run: Run, known: str | None) -> "WandbLike":
        """Begin or continue a run of Trackio, which finds it by its name."""
        import trackio

        self = cls.__new__(cls)
        self.id, self.html = known or run.name, trackio.Html
        with contextlib.redirect_stdout(sys.stderr):
            self.run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or PROJECT,
                name=self.id,
                group=run.experiment,
                config={**config_of(run), "tags": ", ".join(tags_of(run))},
                resume="allow" if known else "never",
                auto_log_gpu=False,
                auto_log_cpu=False,
                embed=False,
            )
        return self

    def log(self, events: list[Event]) -> None:
        at: dict[int, dict[str, Any]] = {}
        for event in events:
            shown = {name: self.html(f"<pre>{html.escape(text)}</pre>") for name, text in event.texts.items()}
            at.setdefault(event.step, {}).update({**event.scalars, **shown})
        for step, values in at.items():
            self.run.log(values, step=step)

    def close(self, state: str) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


def _mode() -> Any:
    """Return how wandb is to work: as its environment says, else offline where nobody has logged in."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return None
    host = (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").split("://")[-1].split("/")[0]
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc().authenticators(host):
            return None
    return "offline"


class MLflow:
    """MLflow: its SQLite file in the working folder unless MLFLOW_TRACKING_URI says where."""

    def __init__(self, run: Run, known: str | None):
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if known:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        there = self.client.get_experiment_by_name(project)
        experiment = there.experiment_id if there else self.client.create_experiment(project)
        tags = {"group": run.experiment, "tags": ", ".join(tags_of(run))}
        self.id = self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        params = [Param(name, str(value)[:MLFLOW_LONGEST]) for name, value in config_of(run).items()]
        for begin in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[begin : begin + 100])

    def log(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(1000 * event.time), event.step)
            for event in events
            for name, value in event.scalars.items()
        ]
        for begin in range(0, len(metrics), MLFLOW_BATCH):
            self.client.log_batch(self.id, metrics=metrics[begin : begin + MLFLOW_BATCH])
        for event in events:
            for name, text in event.texts.items():
                self.client.log_text(self.id, text, f"{name}/step_{event.step:08d}.txt")
                if name == "verdict":
                    self.client.set_tag(self.id, "verdict", text)

    def close(self, state: str) -> None:
        self.client.set_terminated(self.id, ENDED.get(state, "FAILED"))


def _free(folder: Path) -> Path:
    """Return the first of `folder`, folder_2, ... that is not there: another run of that name was sent before."""
    if not folder.exists():
        return folder
    return next(one for n in itertools.count(2) if not (one := folder.with_name(f"{folder.name}_{n}")).exists())


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
