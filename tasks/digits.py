"""Handwritten digits as sequences of pixels: data that scikit-learn includes, without a download.

`sklearn.datasets.load_digits`: 1797 images of 8x8 pixels with values 0 to 16, the test part of the "Optical
Recognition of Handwritten Digits" of the UCI repository (Alpaydin and Kaynak, 1998). The task reads pixels row by row;
an id is its pixel + 1, and 0 is padding. At 64 tokens the image is unchanged. At 256 and 1024 tokens each pixel
repeats two and four times in both directions: the same picture on more positions. With `digits.patch` the inputs
are patches of 2 or 4 pixels squared, row by row, as features from -1 to 1 (16 or 4 of them at the picture's own size).
Two by two pixels, once, repeated, and as one patch:

>>> image = np.array([[[0, 16], [5, 0]]], np.uint8)
>>> print(tokens(image, 1))
[[ 1 17  6  1]]
>>> print(tokens(image, 2))
[[ 1  1 17 17  1  1 17 17  6  6  1  1  6  6  1  1]]
>>> print(patches(image, 1, size=2))
[[[-1.     1.    -0.375 -1.   ]]]

Splits are 70 / 15 / 15 % of each class, drawn with a seed. Splits by writer are impossible, since scikit-learn does not
name the writers: all three splits have the same thirteen. With about 1260 training images every model overfits; read
the test score, not the loss.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, fresh, matrix

GENERATOR = 1  # raise it when the same images are split in another way
SEED = 8
SIDE = 8
HELD_OUT = 0.15  # of each class, for validation and for test


def load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All images (1797, 8, 8) with values 0 to 16, and their classes (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8), digits.target.astype(np.int64)


def deal(labels: NDArray[np.int64]) -> dict[Split, list[int]]:
    """The samples of each split, in the order of the data, with the same share of every class."""
    rng = np.random.default_rng(SEED)
    dealt: dict[Split, list[int]] = {"test": [], "validation": [], "train": []}
    for label in np.unique(labels):
        samples = rng.permutation(np.flatnonzero(labels == label))
        held_out = round(HELD_OUT * len(samples))
        for split, part in zip(dealt, np.split(samples, [held_out, 2 * held_out]), strict=True):
            dealt[split] += part.tolist()
    return {split: sorted(samples) for split, samples in dealt.items()}


def tokens(images: NDArray[np.uint8], scale: int) -> NDArray[np.int64]:
    """The ids (B, (scale H) (scale W)) of images (B, H, W), each pixel repeated ``scale`` times in both directions."""
    larger = images.repeat(scale, axis=1).repeat(scale, axis=2)
    return larger.reshape(len(images), -1).astype(np.int64) + 1


def patches(images: NDArray[np.uint8], scale: int, size: int) -> NDArray[np.float32]:
    """Patches (B, N, size²) of images (B, H, W), each pixel repeated ``scale`` times; from 0 … 16 to -1 … 1."""
    larger = images.repeat(scale, axis=1).repeat(scale, axis=2)
    batch, height, width = larger.shape
    grid = larger.reshape(batch, height // size, size, width // size, size).transpose(0, 1, 3, 2, 4)
    return (grid.reshape(batch, -1, size**2) / 8 - 1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """How a picture is read.

    Attributes:
        patch: side of a patch in pixels: 1 reads pixels as tokens, 2 and 4 read patches as features.
    """

    patch: int = 1

    def __post_init__(self) -> None:
        if self.patch not in (1, 2, 4):
            raise ValueError(f"digits.patch: expected 1, 2 or 4, got {self.patch}")


@register
class Digits(Task):
    """scikit-learn's handwritten digits as pixels or patches; see the module's docstring.

    Raises:
        ValueError: a length that has no such picture.
    """

    name = "digits"
    kind = "sequence"
    picture = True
    summary = "classify a handwritten digit from its pixels; scikit-learn's images, no download"
    lengths = (4, 16, 64, 256, 1024)
    min_len = 4
    max_len = 1024
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=4e-3,
        conv_width=5,
        embedding_std=1.0,
        tokens_per_step=2048,
    )

    config_type = DigitsConfig
    n_classes = 10

    def __init__(self, seq_len: int, config: DigitsConfig | None = None) -> None:
        super().__init__(seq_len, config)
        patch = self.config.patch
        self.scale = math.isqrt(seq_len) * patch // SIDE
        if not self.scale:
            least = (SIDE // patch) ** 2
            raise ValueError(f"digits: expected seq_len of at least {least} with patches of {patch}, got {seq_len}")
        self.vocab_size = 18 if patch == 1 else None
        self.n_features = None if patch == 1 else patch**2

    @property
    def cache_key(self) -> str:
        return f"g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        images, labels = load()
        seen: set[bytes] = set()

        def rows(samples: list[int]) -> Iterator[Row]:
            for sample in samples:
                yield {"pixels": images[sample].tobytes(), "label": int(labels[sample])}

        return {
            split: Rows(len(samples), fresh(rows(samples), "pixels", seen)) for split, samples in deal(labels).items()
        }

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        images = matrix(columns["pixels"], np.uint8).reshape(-1, SIDE, SIDE)
        labels = np.array(columns["label"], np.int64)
        if self.config.patch == 1:
            return Batch(tokens(images, self.scale), labels)
        return Batch(patches(images, self.scale, self.config.patch), labels)

    def baselines(self) -> dict[str, float]:
        """The most frequent class; logistic regression on the 64 pixels."""
        from sklearn.linear_model import LogisticRegression

        (x, y), (test_x, test_y) = (
            (matrix(table["pixels"][:], np.uint8) / 16, np.array(table["label"][:]))
            for table in (self.tables["train"], self.tables["test"])
        )
        regression = LogisticRegression(max_iter=1000).fit(x, y)
        return {
            "majority": majority(y, test_y),
            "logistic regression": float(regression.score(test_x, test_y)),
        }

    def provenance(self) -> dict[str, str | int]:
        import sklearn

        test = self.tables["test"]
        digest = hashlib.sha256(b"".join(test["pixels"]) + bytes(test["label"]))
        return {
            "generator": GENERATOR,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "test_sha256": digest.hexdigest(),
            "test_labels": " ".join(map(str, np.bincount(test["label"], minlength=self.n_classes))),
            **{f"{split}_samples": self.size(split) for split in SPLITS},
        }
