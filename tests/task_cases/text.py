"""Small samples of text: made-up reviews in the schema of the hub's data set."""

from pathlib import Path

import datasets
import numpy as np

WORDS = [b"the", b"film", b"a", b"plot", b"actor", b"scene", b"slow", b"caf\xc3\xa9", b"end", b"really"]
TELLING = {0: [b"awful", b"dull"], 1: [b"great", b"moving"]}
FEATURES = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))


def reviews(seed: int, rows: int, *, longest: int = 40, noise: float = 0.1) -> dict[str, list[str] | list[int]]:
    """Reviews of 3 to longest words; one tells the class, except where noise flips it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=rows)
    texts = []
    for label in labels:
        words = list(rng.choice(WORDS, size=rng.integers(2, longest)))
        told = int(label) ^ int(rng.random() < noise)
        words.insert(int(rng.integers(min(6, len(words)))), rng.choice(TELLING[told]))
        texts.append(b"%d " % rng.integers(10**9) + b" ".join(words))
    return {"text": [text.decode() for text in texts], "label": labels.tolist()}


def imdb(**sizes: int) -> datasets.DatasetDict:
    """A data set of splits of these sizes, like the hub's."""
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(reviews(seed, rows), FEATURES)
            for seed, (split, rows) in enumerate(sizes.items())
        }
    )


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    imdb(train=300, test=50, unsupervised=5).save_to_disk(str(folder / "imdb"))
    return [(64, {"data": str(folder / "imdb")}), (1000, {"data": str(folder / "imdb")})]
