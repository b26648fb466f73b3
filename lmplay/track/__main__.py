"""Follow a run for a tracker: python -m lmplay.track RUN TRACKER. lmp_trainer starts one such process for each."""

import sys
from pathlib import Path

from lmplay.track.follow import follow

if __name__ == "__main__":
    follow(Path(sys.argv[1]), sys.argv[2])
