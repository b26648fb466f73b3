"""What to draw, and how: the options of lmp_plotstats."""

from dataclasses import dataclass

X_AXES = {  # the choice: column, label
    "tokens": ("tokens", "training tokens"),
    "samples": ("samples", "training samples (windows)"),
    "steps": ("step", "steps"),
    "seconds": ("seconds", "training time"),
    "flops": ("flops", "training FLOPs"),
    "bytes": ("bytes", "bytes of training text"),
}
Y_LABELS = {
    "loss": "loss (nats per token)",
    "accuracy": "accuracy (share of tokens)",
    "bits_per_byte": "bits per byte",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
LOSSES = ("loss", "accuracy", "bits_per_byte")
TRAINING = ("learning_rate", "gradient_norm", "tokens_per_second")  # how training went

Limits = tuple[float | None, float | None]  # the lowest and the highest value of an axis, None: as the curves need it


@dataclass(frozen=True)
class PlotOptions:
    """What to draw, and how.

    baseline: an experiment or a run (None: the default). x: one of X_AXES. split: "train" or "validate" (None: validate
    if every run has a few validations). smooth: percent of x to both sides of each point (None: the default). raw: the
    unsmoothed points as well. plan_step: the name of a phase of the plan (None: all). columns: drawn besides loss and
    accuracy, each a name or a pattern such as "x_*". each_run: a line for each run, instead of one for all that differ
    in their seed only. training_plan: the name of a plan whose runs alone are drawn (None: all).

    xlim: in the unit of the column. ylim: by the name of a picture without log_. group: draw one line for each value
    of this setting, of this field of the Config, or of "experiment". style: one of styles.STYLES. training: the
    pictures of TRAINING as well.
    """

    baseline: str | None = None
    x: str = "tokens"
    log: bool = True
    split: str | None = None
    smooth: float | None = None
    raw: bool = False
    plan_step: str | None = None
    bits_per_byte: bool = False
    columns: tuple[str, ...] = ()
    each_run: bool = False
    training_plan: str | None = None
    xlim: Limits = (None, None)
    ylim: tuple[tuple[str, Limits], ...] = ()
    group: str | None = None
    style: str = "screen"
    training: bool = False

    @property
    def column(self) -> str:
        """The column of the CSV files that x stands for."""
        return X_AXES[self.x][0]
