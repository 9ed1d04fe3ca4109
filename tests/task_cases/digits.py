"""All of digits, which is small."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(64, {}), (256, {}), (16, {"patch": 2}), (64, {"patch": 4})]
