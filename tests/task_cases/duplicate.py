"""Small samples of duplicate."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(16, {}), (34, {})]
