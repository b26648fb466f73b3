"""Name the optimizers that a setting may choose."""

from typing import NamedTuple


class Optimizer(NamedTuple):
    """Names of the classes in torch.optim, for dense gradients and for row-sparse ones, and what they remember.

    states: numbers that are kept per weight, in memory and in checkpoints.
    """

    dense: str
    sparse: str
    states: int


OPTIMIZERS = {
    "adamw": Optimizer("AdamW", sparse="SparseAdam", states=2),
    "adam": Optimizer("Adam", sparse="SparseAdam", states=2),
    "adagrad": Optimizer("Adagrad", sparse="Adagrad", states=1),
    "sgd": Optimizer("SGD", sparse="SGD", states=1),
    "rmsprop": Optimizer("RMSprop", sparse="SGD", states=1),
    "muon": Optimizer("Muon", sparse="SparseAdam", states=2),  # AdamW for all but the inner matrices
}
