"""Ask from the window through make_batch to the logits whether a model sees what it must not see."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lmplay.model.asking import Asked, Caller, changed, random_window
from lmplay.model.findings import LEAK, Checked, Finding

LENGTH, LONG = 24, 72  # tokens of a window: of most questions, and of one more
POINTS = (0, 1, 2, 5, 11, 16, 23)  # from where on tokens are changed, a row each
LONG_POINTS = (LONG // 2, 64)


def scored_once(asked: Asked, checked: Checked) -> bool:
    """Whether each direction scores each token of a window exactly once."""
    checked.asked.append("scored once")
    window = random_window(asked, rows=2, length=LENGTH)
    length = window.size(1)
    order = asked.order(window)
    names = asked.experiment.direction_names or ("",)
    if order.shape != (len(window) * len(names), length):
        wanted = (len(window) * len(names), length)
        sentence = (
            f"make_batch of {asked.name} returns {tuple(order.shape)} targets for a window of {tuple(window.shape)}: "
            f"it must return {wanted}"
        )
        checked.findings.append(Finding("scored once", LEAK, sentence))
        return False
    for row in order.tolist():
        counts = {token: row.count(token) for token in range(length)}
        wrong = next((token for token, count in counts.items() if count != 1), None)
        if wrong is not None:
            often = {0: "never"}.get(counts[wrong], f"{counts[wrong]} times")
            sentence = (
                f"make_batch of {asked.name} scores token {wrong} of the window {often} (counted from 0): a causal "
                "model scores each token once"
            )
            checked.findings.append(Finding("scored once", LEAK, sentence))
            return False
    return True


def rows_apart(asked: Asked, caller: Caller, checked: Checked) -> bool:
    """Whether the other rows stay as they are when the first or the last row of a batch changes."""
    if "rows" not in checked.asked:
        checked.asked.append("rows")
    window = random_window(asked, rows=3, length=min(8, asked.max_len))
    n_directions = len(asked.experiment.direction_names) or 1
    for row in (0, len(window) - 1):
        here = torch.zeros_like(window, dtype=torch.bool)
        here[row] = True
        other = changed(asked, window, here)
        kept = (torch.arange(len(window)) != row).repeat_interleave(n_directions)

        def pair(model: torch.nn.Module, other: Tensor = other, kept: Tensor = kept) -> tuple[Tensor, Tensor]:
            return caller(model, window)[kept], caller(model, other)[kept]

        if asked.moved(pair):
            before, after = pair(asked.model)
            moved = (before - after).abs().amax((1, 2)).argmax().item() // n_directions
            victim = [number for number in range(len(window)) if number != row][int(moved)]
            sentence = (
                f"{asked.name} mixes the rows of a batch: in {caller.mode} mode the logits of row {victim} change when "
                f"row {row} changes, so a loss depends on which texts come together"
            )
            checked.findings.append(Finding("rows", LEAK, sentence))
            return False
    return True


def looks_ahead(asked: Asked, caller: Caller, checked: Checked) -> None:
    """Change every token from some point on, in the order of reading, and in each row from another point."""
    if "looks ahead" not in checked.asked:
        checked.asked.append("looks ahead")
    for length, wanted in ((LENGTH, POINTS), (LONG, LONG_POINTS)):
        if length == LONG and (caller.mode == "train" or asked.max_len <= LENGTH):
            continue
        length, last = min(length, asked.max_len), min(length, asked.max_len) - 1
        points = tuple(sorted({min(point, last - 4 if length > LENGTH else last) for point in wanted}))
        window = random_window(asked, rows=len(points), length=length)
        n_directions = len(asked.experiment.direction_names) or 1
        for direction in range(n_directions):
            order = asked.order(window)[direction::n_directions]  # (rows, T): the token that each position predicts
            late = torch.arange(length)[None] >= torch.tensor(points)[:, None]  # by position in the order
            here = torch.zeros_like(window, dtype=torch.bool).scatter(1, order, late)
            other = changed(asked, window, here)
            fixed = torch.arange(length)[None] <= torch.tensor(points)[:, None]
            case = (caller, direction, n_directions, fixed)
            if asked.moved(_pair(case, window, other)):
                sentence = _ahead_sentence(asked, caller.mode, *_culprit(asked, case, window, other))
                checked.findings.append(Finding("looks ahead", LEAK, sentence))
                return


Case = tuple[Caller, int, int, Tensor]


def _pair(case: Case, window: Tensor, other: Tensor) -> Callable[[torch.nn.Module], tuple[Tensor, Tensor]]:
    """Return what gives, before and after the change, the logits that must stay; others count as 0."""
    caller, direction, n_directions, fixed = case

    def pair(model: torch.nn.Module) -> tuple[Tensor, Tensor]:
        keep = fixed.to(caller.asked.device)[..., None]
        before, after = (caller(model, one)[direction::n_directions] for one in (window, other))
        return before.where(keep, 0.0), after.where(keep, 0.0)

    return pair


def _culprit(asked: Asked, case: Case, window: Tensor, other: Tensor) -> tuple[list[int], int, int | None]:
    """Return an order, the position in it of logits that moved, and the position of one token that moves them.

    The last is None if it takes several tokens.
    """
    caller, direction, n_directions, _ = case
    before, after = _pair(case, window, other)(asked.model)
    moves = (before - after).abs().nan_to_num(math.inf).amax(-1)  # (rows, T)
    row = int(moves.amax(1).argmax())
    position = int(moves[row].argmax())
    causes = torch.arange(position, window.size(1))  # one a row
    rows = window[row].repeat(len(causes), 1)
    order = asked.order(rows)[direction::n_directions]
    here = torch.zeros_like(rows, dtype=torch.bool).scatter(1, order.gather(1, causes[:, None]), True)
    at = torch.arange(window.size(1))[None] == position
    before, after = _pair((caller, direction, n_directions, at), rows, changed(asked, rows, here))(asked.model)
    alone = (before - after).abs().nan_to_num(math.inf).amax((1, 2))
    if not alone.any():
        return order[0].tolist(), position, None
    first = int((alone >= alone.max() / 2).nonzero()[0])
    return order[first].tolist(), position, position + first


def _ahead_sentence(asked: Asked, mode: str, order: list[int], position: int, cause: int | None) -> str:
    predicted = order[position]
    if cause is None:
        why = f"tokens that are read after it change, from token {order[-1]} back"
    elif cause == position:
        why = f"token {predicted} itself changes: it sees what it has to predict"
    else:
        why = f"token {order[cause]} changes, which it reads later"
    return (
        f"{asked.name} looks ahead: in {mode} mode the logits for token {predicted} change when {why} (tokens of a "
        f"window of {len(order)}, counted from 0)"
    )
