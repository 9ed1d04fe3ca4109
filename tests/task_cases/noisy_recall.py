"""Small samples of noisy_recall."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(32, {"pairs": 4}), (131, {"values": 10, "hay": 0.25})]
