"""Small labelled pictures in the schema of CIFAR-10 on the hub."""

import io
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
from numpy.typing import NDArray

FEATURES = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue", "gray"])}


def png(image: NDArray[np.uint8]) -> bytes:
    """The file of a picture (H, W, 3) or (H, W)."""
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def table(images: Sequence[NDArray[np.uint8]], labels: Sequence[int]) -> datasets.Dataset:
    """Rows as on the hub."""
    files = [{"bytes": png(image), "path": f"{number}.png"} for number, image in enumerate(images)]
    return datasets.Dataset.from_dict(
        {"img": files, "label": [int(label) for label in labels]}, features=datasets.Features(FEATURES)
    )


def noise(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (count, 32, 32, 3) of nothing, and classes at random."""
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(count, 32, 32, 3), dtype=np.uint8), rng.integers(4, size=count)


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    """A copy of the hub's folder with two splits, read as patches; one file without splits, read as pixels."""
    (folder / "plain_text").mkdir()
    table(*noise(70, 0)).to_parquet(folder / "plain_text" / "train-00000-of-00001.parquet")
    table(*noise(30, 1)).to_parquet(folder / "plain_text" / "test-00000-of-00001.parquet")
    (folder / "alone").mkdir()
    file = folder / "alone" / "pictures.parquet"
    table(*noise(150, 2)).to_parquet(file)
    return [(64, {"data": str(folder)}), (1024, {"data": str(file)})]
