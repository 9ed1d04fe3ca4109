"""Small samples of mad_memorize."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(32, {"vocab_size": 8192}), (65, {"train_samples": 600})]
