"""Name the types that several modules of this room share."""

from pathlib import Path
from typing import Any

Document = list[tuple[str, bool]]  # segments of (text, scored)
Row = str | dict[str, Any] | Document  # of a source: one text, columns by name, or a whole document
Bookmark = tuple[int, str]  # a row of a stream that can be gone on with from there, and the commit of the stream
Where = str | tuple[str | Path, int]  # a file or dataset, with a line or row number: for messages
