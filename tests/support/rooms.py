"""The rooms of lmplay/ and what each imports, as a page shows it: `python tests/support/rooms.py` mends the page."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BLOCK = re.compile(r"(<!-- rooms -->\n```\n).*?(```)", re.DOTALL)
WIDTH = 110


def modules() -> dict[str, Path]:
    """Return the modules of lmplay by name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((ROOT / "lmplay").rglob("*.py"))
    }


def room_of(module: str) -> str:
    """Return the room of a module: its folder, or its own name for a module that lies loose."""
    return module.split(".")[1] if "." in module else module


def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports, wherever in the file; `lmplay` itself is not drawn."""
    known = modules()
    found: dict[str, set[str]] = {room_of(module): set() for module in known if module != "lmplay"}
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.split(".")
                if module != "lmplay" and parts[0] == "lmplay" and len(parts) > 1 and parts[1] in found:
                    found[room_of(module)].add(parts[1])
    return {room: {other for other in others if other != room} for room, others in found.items()}


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return each room's level: 0 imports none, others are one above the highest that they import."""
    found: dict[str, int] = {}
    while len(found) < len(graph):
        free = [room for room in graph if room not in found and graph[room] <= found.keys()]
        assert free, f"a circle among {sorted(graph.keys() - found.keys())}"
        found.update({room: 1 + max((found[other] for other in graph[room]), default=-1) for room in free})
    return found


def wrapped(first: str, words: list[str]) -> list[str]:
    """Return lines of at most WIDTH with the words behind `first`, and below one another."""
    lines, line = [], first
    for index, word in enumerate(words):
        word += "," if index < len(words) - 1 else ""
        if len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line = " " * len(first)
        line += f" {word}"
    return [*lines, line.rstrip()]


def tree() -> str:
    """Return the rooms from the top to the bottom: the modules of each, and an arrow to each room that it imports."""
    graph = arrows()
    height = levels(graph)
    lines = []
    for room in sorted(graph, key=lambda room: (-height[room], room)):
        inside = sorted(
            module.removeprefix(f"lmplay.{room}.")
            for module in modules()
            if module.startswith(f"lmplay.{room}.") and not module.endswith("__init__")
        )
        lines += wrapped(f"{room + '/':<10}", inside) if inside else [f"{room}.py"]
        if graph[room]:
            lines += wrapped("        ->", sorted(graph[room], key=lambda other: (-height[other], other)))
    return "\n".join(lines) + "\n"


def mended(page: str) -> str:
    """Return the page with the block after `<!-- rooms -->` as the imports have it."""
    return BLOCK.sub(lambda match: match[1] + tree() + match[2], page)


if __name__ == "__main__":
    PAGE.write_text(mended(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
