"""Follow a run for a tracker: python -m lmplay.track RUN TRACKER. lmp_trainer starts one such process for each.

Its standard input is a pipe that the trainer closes when the training has ended.
"""

import os
import sys
import threading
from pathlib import Path

from lmplay.track.follow import follow


def closed(ended: threading.Event) -> None:
    """Wait until the pipe is closed, also by the death of the trainer."""
    while os.read(0, 1):
        pass
    ended.set()


if __name__ == "__main__":
    training_ended = threading.Event()
    threading.Thread(target=closed, args=(training_ended,), daemon=True).start()
    follow(Path(sys.argv[1]), sys.argv[2], training_ended)
