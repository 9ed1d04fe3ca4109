"""Small samples of needle."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(32, {}), (65, {})]
