"""Small samples of selective_copy."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(48, {}), (65, {})]
