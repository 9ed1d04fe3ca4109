"""Small samples of mad_compress."""

from pathlib import Path


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    return [(32, {"train_samples": 600}), (65, {"train_samples": 600, "vocab_size": 32})]
