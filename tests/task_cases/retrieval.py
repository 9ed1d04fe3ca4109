"""Small samples of retrieval."""

import random
from pathlib import Path

WORDS = ["parse", '"tree"', "the", "a", "corpus", "na\xefve", "tag", "it's", "1.0", "null", "of", "grammar"]
SIZES = {"train": 260, "eval": 40, "test": 60}


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    write_files(folder)
    return [(64, {"data": str(folder)}), (100, {"data": str(folder)})]


def write_files(folder: Path) -> None:
    """LRA's three files, of texts of 20 to 130 bytes; the two of a pair are about as long."""
    rng = random.Random(0)
    for split, size in SIZES.items():
        lines = []
        for number in range(size):
            length = rng.randint(20, 130)
            first, second = (" ".join(rng.choices(WORDS, k=30))[:length] for _ in range(2))
            lines.append(f"{rng.choice(['0', '1', '0.0', '1.0'])}\tP{number}\tW{number}\t{first}\t{second}\n")
        (folder / f"new_aan_pairs.{split}.tsv").write_text("".join(lines), encoding="latin-1", newline="")
