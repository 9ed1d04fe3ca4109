"""Small samples of pathfinder: generated, and read from a folder in the form of LRA's release."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_release(folder: Path, pixels: int, count: int) -> Path:
    """Noise, with a square where the label is 1; two folders of pictures, one text file of metadata for each."""
    rng = np.random.default_rng(0)
    (folder / "metadata").mkdir(parents=True)
    for part in range(2):
        (folder / "imgs" / str(part)).mkdir(parents=True)
        lines = []
        for number in range(count // 2):
            picture = rng.integers(256, size=(pixels, pixels), dtype=np.uint8)
            label = int(rng.integers(2))
            y, x = rng.integers(pixels - 4, size=2)
            picture[y : y + 4, x : x + 4] = 255 * label
            Image.fromarray(picture).save(folder / "imgs" / str(part) / f"sample_{number}.png")
            lines.append(f"imgs/{part} sample_{number}.png {number} {label} 1.0 14 4 2 0.5 1 1\n")
        (folder / "metadata" / f"{part}.npy").write_text("".join(lines))
    return folder


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    release = write_release(folder / "release", 32, 200)
    return [(1024, {"samples": 64, "contour": 6}), (4096, {"samples": 64}), (1024, {"data": str(release)})]
