"""Small samples of adding."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(4, {}), (33, {})]
