"""Small samples of matching."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(64, {"samples": 300}), (200, {"samples": 301})]
