"""Choose the data order of a comparison: all its runs have the same."""

import sys
from collections.abc import Callable, Collection

from lmplay.compare.jobs import Job, RunIndex
from lmplay.data.plan_spec import NEWEST_ORDER, ORDERS


def choose_order(index: RunIndex, asked: int | None, jobs: Callable[[], Collection[Job]]) -> None:
    """Let all runs have the data order that is asked for, else the newest.

    If nothing is asked for and all runs of `jobs`, made anew for each order, are there in an earlier one, it is that.
    """
    orders = reversed(ORDERS) if asked is None else ()
    found = next((order for order in orders if _all_there(index, order, jobs)), asked or NEWEST_ORDER)
    index.use_order(found)
    if asked is None and found != NEWEST_ORDER:
        print(
            f"data order {found}: all runs are there in it (--data-order {NEWEST_ORDER} trains new ones)",
            file=sys.stderr,
        )


def _all_there(index: RunIndex, order: int, jobs: Callable[[], Collection[Job]]) -> bool:
    index.use_order(order)
    return not any(job.is_missing for job in jobs())
