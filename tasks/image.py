"""CIFAR-10 as a sequence of gray pixels, or of patches, as a vision transformer reads them.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009); as a task for long sequences: Tay et al.,
"Long Range Arena" (arXiv 2011.04006). The task reads `uoft-cs/cifar10` from the Hugging Face hub: 50,000 training
images, of which a seeded 10 % are the validation split, and 10,000 test images.

At length 1024 the tokens are the pixels, row by row, in gray = 0.2989 R + 0.587 G + 0.114 B, rounded. An id is its
pixel + 1; 0 is padding, so a black pixel does not count as padding. At 256, 64 and 16 the inputs are patches of 2, 4
and 8 pixels squared: the three colours of their pixels, as features in [-1, 1], with a linear map before the encoder
(Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929). Black, red, and white above blue:

>>> image = np.array([[[[0, 0, 0], [255, 0, 0]], [[255, 255, 255], [0, 0, 255]]]], np.uint8)
>>> print(tokens(image))
[[  1  77 256  30]]
>>> print(patches(image, size=1)[0])
[[-1. -1. -1.]
 [ 1. -1. -1.]
 [ 1.  1.  1.]
 [-1. -1.  1.]]
>>> print(patches(image, size=2)[0])
[[-1. -1. -1.  1. -1. -1.  1.  1.  1. -1. -1.  1.]]

Departures from Long Range Arena: pixels are shifted by 1 (LRA takes a black pixel for padding). Exact copies of an
image are dropped; if test and train share an image, train loses it. Near copies stay: 3 % of the test images have one
in train (Barz and Denzler, arXiv 1902.00423), and published scores include them. As in every task here, the mean over
positions replaces the vision transformer's class token.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, Table, fresh, matrix
from tasks.sources import fingerprint, open_splits

GENERATOR = 1  # raise it when the same images are split or stored in another way
SEED = 10
EVALUATED: tuple[Split, ...] = ("test", "validation")
CIFAR = "uoft-cs/cifar10"
COLUMNS = ("img", "image")
SIDE = 32
HELD_OUT = 0.1  # share of the training images that becomes each split that the source lacks
READ_AT_ONCE = 256  # images in memory while a whole split is read
FITTED = 10_000  # images that the baseline is fitted on

Pixels = NDArray[np.uint8]


def gray(images: Pixels) -> Pixels:
    """(B, H, W) from colours (B, H, W, 3), in integer arithmetic, so that every machine gives the same."""
    weighted = images.astype(np.int32) @ np.array([2989, 5870, 1140], np.int32)
    return ((weighted + 5000) // 10_000).astype(np.uint8)


def tokens(images: Pixels) -> NDArray[np.int64]:
    """The ids (B, H W) of images (B, H, W, 3): gray pixels + 1, row by row."""
    return gray(images).reshape(len(images), -1).astype(np.int64) + 1


def patches(images: Pixels, size: int) -> NDArray[np.float32]:
    """Images (B, H, W, 3) cut into squares of ``size`` pixels, row by row: (B, (H / size) (W / size), 3 size²).

    The features of a patch are its pixels, row by row, three colours each, scaled from 0 … 255 to [-1, 1].
    """
    batch, height, width, colours = images.shape
    grid = images.reshape(batch, height // size, size, width // size, size, colours)
    flat = grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, colours * size**2).astype(np.float32)
    flat /= np.float32(127.5)
    flat -= 1
    return flat


def deal(sizes: Mapping[Split, int]) -> dict[Split, tuple[Split, list[int]]]:
    """The origin of each split, test first: a split of the source, and the numbers of its images.

    A tenth of the images of train replaces each other split that the source lacks.
    """
    left = np.random.default_rng(SEED).permutation(sizes["train"])
    held_out = round(HELD_OUT * len(left))
    dealt: dict[Split, tuple[Split, list[int]]] = {}
    for split in EVALUATED:
        if split in sizes:
            dealt[split] = split, list(range(sizes[split]))
        else:
            dealt[split] = "train", sorted(left[:held_out].tolist())
            left = left[held_out:]
    return dealt | {"train": ("train", sorted(left.tolist()))}


@dataclass(frozen=True)
class Source:
    """The images of one split of the source.

    Args:
        table: rows of the hub's schema: the image in "img" or "image", its class in "label".
        where: the split and its data set, for messages.

    Raises:
        ValueError: a missing column; a column without images; a label that is not a whole number from 0.
    """

    table: Table
    where: str

    def __post_init__(self) -> None:
        names = self.table.column_names
        if "label" not in names or not set(COLUMNS) & set(names):
            raise ValueError(
                f"image: expected columns img (or image) and label in {self.where}, got {', '.join(names)}"
            )
        for number, label in enumerate(self.labels):
            if not isinstance(label, int) or label < 0:
                wanted = "expected whole numbers from 0 in the column label"
                raise ValueError(f"image: {wanted} of {self.where}, got {label!r} for image {number}")

    @cached_property
    def labels(self) -> list[Any]:
        labels: list[Any] = self.table["label"][:]
        return labels

    @property
    def class_names(self) -> list[str]:
        """The names that the source gives the classes; empty if it gives none."""
        return list(getattr(self.table.features["label"], "names", None) or [])

    @cached_property
    def files(self) -> Table:
        """Rows of one column: each image as stored, a dict of "bytes" and "path"."""
        import datasets

        column = next(name for name in COLUMNS if name in self.table.column_names)
        try:
            return self.table.select_columns(column).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError):  # from Arrow
            got = self.table.features[column]
            raise ValueError(f"image: expected images in the column {column} of {self.where}, got {got}") from None

    def pixels(self, numbers: list[int]) -> Iterator[bytes]:
        """The colours of these images, 32 x 32 x 3 bytes each.

        Raises:
            ValueError: an image that is missing, cannot be decoded, or has another size.
        """
        import datasets

        image = datasets.Image(mode="RGB")
        for number, row in zip(numbers, self.files.select(numbers), strict=True):
            (file,) = row.values()
            if file is None:
                raise ValueError(f"image: image {number} of {self.where} is missing: remove its row")
            try:
                picture = image.decode_example(file)
            except Exception as error:  # whatever PIL raises on a damaged file
                problem = f"cannot decode image {number} of {self.where}: {type(error).__name__}"
                raise ValueError(f"image: {problem}") from None
            if picture.size != (SIDE, SIDE):
                got = "{}x{}".format(*picture.size)
                wanted = f"expected images of {SIDE}x{SIDE} pixels"
                raise ValueError(f"image: {wanted}, got {got} (image {number} of {self.where}): resize them first")
            yield picture.tobytes()


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Source of the images.

    Attributes:
        data: a parquet or arrow file, a folder, or a hub id (owner/name) of images of 32 x 32 pixels, with columns
            img (or image) and label; empty = CIFAR-10 from the hub.
    """

    data: str = ""


@register
class Image(Task):
    """CIFAR-10 as pixels or patches; see the module's docstring."""

    name = "image"
    kind = "sequence"
    picture = True
    summary = "classify a small photograph (CIFAR-10): 1024 gray pixels; 256, 64 or 16 patches in colour"
    lengths = (16, 64, 256, 1024)
    min_len = 16
    max_len = 1024
    defaults = TaskDefaults(
        seq_len=1024,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=2e-3,
        conv_width=None,
        embedding_std=1.0,
        positions="sinusoidal",
        tokens_per_step=16_384,
    )
    config_type = ImageConfig

    def __init__(self, seq_len: int, config: ImageConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.patch = SIDE // math.isqrt(seq_len)
        self.vocab_size = 257 if self.patch == 1 else None
        self.n_features = None if self.patch == 1 else 3 * self.patch**2

    @property
    def source(self) -> str:
        return self.config.data or CIFAR

    @cached_property
    def n_classes(self) -> int:  # type: ignore[override]
        """The number of classes of the source."""
        return 1 + max(int(self.labels(split).max()) for split in SPLITS)

    @cached_property
    def cache_key(self) -> str:
        return f"{fingerprint(self.source, self.name)}-g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        opened = open_splits(self.source, self.name)
        sources = {name: Source(opened[name], f"{name} of {self.source}") for name in SPLITS if name in opened}
        names = {name: source.class_names for name, source in sources.items() if source.class_names}
        for name, class_names in names.items():
            if class_names != next(iter(names.values())):
                wanted = f"expected classes of the same names and order in every split of {self.source}"
                raise ValueError(f"image: {wanted}, got different ones in {name} and {next(iter(names))}")
        classes = sorted({label for source in sources.values() for label in source.labels})
        if len(trained := set(sources["train"].labels)) < 2:
            got = ", ".join(map(str, trained)) or "none"
            raise ValueError(f"image: expected two classes or more in train of {self.source}, got {got}")
        total = sum(len(source.labels) for source in sources.values())
        seen: set[bytes] = set()

        def rows(name: Split, numbers: list[int]) -> Iterator[Row]:
            labels = sources[name].labels
            for number, pixels in zip(numbers, sources[name].pixels(numbers), strict=True):
                yield {"pixels": pixels, "label": classes.index(labels[number]), "source": name, "total": total}

        return {
            split: Rows(len(numbers), fresh(rows(name, numbers), "pixels", seen))
            for split, (name, numbers) in deal({name: len(source.labels) for name, source in sources.items()}).items()
        }

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        images = matrix(columns["pixels"], np.uint8).reshape(-1, SIDE, SIDE, 3)
        inputs = tokens(images) if self.patch == 1 else patches(images, self.patch)
        return Batch(inputs, np.array(columns["label"], np.int64))

    def baselines(self) -> dict[str, float]:
        """The most frequent class; logistic regression on 16 x 16 gray pixels, fitted on at most 10,000 images."""
        from sklearn.linear_model import LogisticRegression

        train, test = self.labels("train"), self.labels("test")
        some = np.sort(np.random.default_rng(SEED).permutation(len(train))[:FITTED])
        regression = LogisticRegression(C=0.01, max_iter=1000).fit(self._small("train", some), train[some])
        return {
            "majority": majority(train, test),
            "logistic regression": float(regression.score(self._small("test", np.arange(len(test))), test)),
        }

    def _small(self, split: Split, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(rows, 256) gray pixels, 2 x 2 averaged, from 0 to 1."""
        parts = []
        for start in range(0, len(rows), READ_AT_ONCE):
            columns = self.tables[split][rows[start : start + READ_AT_ONCE]]
            images = gray(matrix(columns["pixels"], np.uint8).reshape(-1, SIDE, SIDE, 3))
            parts.append(images.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32) / 255)
        return np.concatenate(parts).reshape(len(rows), -1)

    def provenance(self) -> dict[str, str | int]:
        import datasets
        import PIL

        digest = hashlib.sha256()
        for row in self.tables["test"].select_columns(["pixels", "label"]):
            digest.update(row["pixels"] + b"%d" % row["label"])
        return {
            "generator": GENERATOR,
            "source": self.source,
            "datasets": datasets.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
            "test_sha256": digest.hexdigest(),
            "test_labels": " ".join(map(str, np.bincount(self.labels("test"), minlength=self.n_classes))),
            **{f"{split}_samples": self.size(split) for split in SPLITS},
        }

    def notes(self) -> list[str]:
        first = {split: self.tables[split][0] for split in SPLITS}
        carved = [split for split in EVALUATED if first[split]["source"] != split]
        notes = [f"no {split} split in {self.source}: {HELD_OUT:.0%} of train replaces it" for split in carved]
        copies = first["train"]["total"] - sum(map(self.size, SPLITS))
        return notes + ([f"left out: {copies:,} exact copies of other images"] if copies else [])
