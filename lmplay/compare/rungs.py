"""The rungs of a ladder: their sizes, and how the settings of the lowest are carried up.

Rules, as nanochat states them (github.com/karpathy/nanochat, scripts/base_train.py, 2026): the batch grows as
tokens^0.383 (S. Bergsma et al., "Power Lines", arXiv 2505.13738), all rates with the square root of the batch, AdamW's
also as width^-0.5, and the weight decay as sqrt(batch) / tokens, so that a weight forgets over the same share of a run
(X. Wang, L. Aitchison, arXiv 2405.13698). Nanochat's Muon scales a step by sqrt(max(1, rows / columns)): its norm stays
as matrices get wider. Under match_rms, 0.2 sqrt(max(rows, columns)), it grows, which width^-0.5 undoes. They are rules
of thumb, so a rate beside the carried one is tried at the top.
"""

import dataclasses
import re
from dataclasses import dataclass

from lmplay.compare.tuning import applied
from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice

HEAD_WIDTH, SMALL_HEAD_WIDTH = 64, 32
BATCH_POWER, WIDTH_POWER = 0.383, -0.5
SIZE_FIELDS = ("n_layer", "n_head", "n_embd")
LAPTOP = ("2x64", "3x96", "4x128")
LAPTOP_TOKENIZER, LAPTOP_CONTEXT = "bpe:2048", 128
TOKENS_PER_PARAMETER = (1, 2, 5, 12)
ENOUGH_TOKENS = 5


@dataclass(frozen=True)
class Size:
    """The size of a rung: layers, width, heads."""

    name: str
    n_layer: int
    n_embd: int
    n_head: int

    @property
    def fields(self) -> tuple[str, ...]:
        """As --set takes them."""
        return tuple(f"{field}={getattr(self, field)}" for field in SIZE_FIELDS)

    def below(self) -> "Size":
        """Return a cheaper size, for the baseline alone."""
        if self.name.startswith("d") and self.n_layer > 1:
            return size_of(f"d{self.n_layer - 1}")
        layers = max(1, self.n_layer - 1)
        width = self.n_embd * layers // self.n_layer if layers < self.n_layer else self.n_embd // 2
        return size_of(f"{layers}x{max(8, width // 8 * 8)}")


@dataclass(frozen=True)
class Rung:
    """A size with what its runs are given. tokens: of training. parameters: of the baseline, matrices and head."""

    size: Size
    parameters: int
    tokens: int
    batch_size: int

    @property
    def name(self) -> str:
        return self.size.name


def size_of(text: str) -> Size:
    """Return the size of "d3" (3 layers, width 192, heads of 64) or "3x96" (heads of 32). Raises UserError."""
    if found := re.fullmatch(r"d([1-9]\d?)", text):
        n = int(found[1])
        return Size(text, n_layer=n, n_embd=HEAD_WIDTH * n, n_head=n)
    if found := re.fullmatch(r"([1-9]\d?)x([1-9]\d{0,4})", text):
        layers, width = int(found[1]), int(found[2])
        heads = max(1, width // SMALL_HEAD_WIDTH)
        if width % (2 * heads) == 0:
            return Size(text, n_layer=layers, n_embd=width, n_head=heads)
    raise UserError(f"--ladder: {text!r} is no size: take dN (dN is N layers, width 64 N) or LAYERSxWIDTH such as 3x96")


def sizes_of(ladder: str) -> tuple[Size, ...]:
    """Return the sizes of --ladder, in the order typed. Raises UserError for fewer than two or one named twice."""
    sizes = tuple(map(size_of, LAPTOP if ladder == "laptop" else ladder.split(",")))
    if len(sizes) < 2 or len({one.name for one in sizes}) < len(sizes):
        raise UserError(f"--ladder {ladder}: at least two sizes are needed, each once, such as d2,d3,d4")
    return sizes


def base_settings(settings: Settings, ladder: str) -> Settings:
    """Return the settings of the lowest rung as typed, with what a named ladder brings. Raises UserError."""
    for name in ("epochs", "max_steps", "max_minutes", "extra_steps"):
        if getattr(settings, name):
            raise UserError(
                f"--ladder sets how long runs are: leave out --{name.replace('_', '-')}, or give --max-tokens"
            )
    for assignment in settings.set:
        if (field := assignment.partition("=")[0]) in SIZE_FIELDS:
            raise UserError(f"--ladder sets {field}: leave out --set {assignment}")
    if ladder != "laptop":
        return settings
    return dataclasses.replace(
        settings,
        tokenizer=settings.tokenizer or LAPTOP_TOKENIZER,
        context_len=settings.context_len or LAPTOP_CONTEXT,
    )


def rung_settings(settings: Settings, rung: Rung) -> Settings:
    """Return the settings of a rung's runs, before what is carried up for each arm."""
    fields = (*settings.set, *rung.size.fields)
    return dataclasses.replace(settings, set=fields, max_tokens=rung.tokens, batch_size=rung.batch_size)


def batch_at(batch_size: int, tokens: float, of: float) -> int:
    """Return the batch at `tokens` of training where `batch_size` belongs to `of` tokens."""
    return max(1, round(batch_size * (tokens / of) ** BATCH_POWER))


def carried(choice: Choice, settings: Settings, lowest: Rung, rung: Rung) -> Choice:
    """Return an arm's choice at the lowest rung as it is at another: its rates and weight decay by the rules.

    settings: those of the arm's runs at the lowest rung, without the choice.
    """
    if rung == lowest:
        return choice
    own = applied(settings, choice)
    batch = (rung.batch_size / lowest.batch_size) ** 0.5
    width = (rung.size.n_embd / lowest.size.n_embd) ** WIDTH_POWER
    values = dict(choice.values)
    values["weight_decay"] = _short(own.weight_decay * batch * lowest.tokens / rung.tokens)
    if own.optimizer == "muon":  # the rates of embeddings and head, AdamW's, are factors of the matrices'
        matrices = width if own.muon_scale == "match_rms" else 1.0  # there a step's norm grows with sqrt(width)
        others = width / matrices
        values["lr"] = _short(own.lr * batch * matrices)
        values |= {"embedding_lr": _short(own.embedding_lr * others), "head_lr": _short(own.head_lr * others)}
    else:
        values["lr"] = _short(own.lr * batch * (width if own.optimizer in ("adamw", "adam") else 1.0))
    return Choice(tuple(values.items()))


def with_rate(choice: Choice, settings: Settings, factor: float) -> Choice:
    """Return a choice with `factor` times its learning rate."""
    rate = _short(applied(settings, choice).lr * factor)
    return Choice(tuple((dict(choice.values) | {"lr": rate}).items()))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
