"""Small samples of state_tracking."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(24, {"elements": 2}), (33, {})]
