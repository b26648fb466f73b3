"""Where prepared data is kept."""

import os
from pathlib import Path


def data_folder() -> Path:
    """$LMPLAY_DATA, or ~/.cache/lmplay: token stores, trained tokenizers, downloaded vocabularies. May not exist yet."""
    named = os.environ.get("LMPLAY_DATA")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "lmplay"
