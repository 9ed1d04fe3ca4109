"""Pathfinder: do the two discs mark the two ends of one dashed curve?

Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units" (arXiv 1805.08315) and
Kim, Linsley et al., "Disentangling neural mechanisms for perceptual grouping" (arXiv 1906.01558), whose generator is
github.com/drewlinsley/pathfinder; read pixel by pixel in Tay et al., "Long Range Arena" (arXiv 2011.04006), whose
settings for 32, 64 and 128 pixels are those of `SCALES`.

A snake is a chain of dashes, "paddles". Two target snakes grow from two seeds near the centre, paddle by paddle in
turns. A paddle of length L points at a pixel of the circle of radius L + margin around its pivot; the next pivot is
another margin beyond it. Direction j follows i with P ∝ cos²(min(continuity · angle between them, π/2)), among the
directions whose surroundings, a margin wide, are free. Distractors, shorter snakes, then grow in the remaining room. A
fair coin decides the label: 1, the discs mark both ends of one target; 0, one end of each target.

>>> from tasks.contours import Scale
>>> scale = Scale(20, length=2, thickness=1.0, margins=(1,), seed_distance=4, radius=1.5, continuity=1.5, distractors=2)
>>> scene = sketch(random.Random(3), scale, contour=4)
>>> for row in draw(scene):
...     print("".join("·:-*#"[pixel // 52] for pixel in row))
····················
················-#-·
·····:*-········###·
······:·········-#-·
····-············-··
···:*···············
····:············-··
················:*··
···-·············:··
···#·········:*-····
···-····-#*-··:·····
········###·········
····-:··-#-·········
····:#·······-······
·········-···#······
········:*···-······
·········:··········
····················
····················
····················
>>> scene.label
1

A token is a pixel + 1, row by row; 0 is padding (LRA and its descendants take a black pixel for padding). The task does
not train at shorter lengths: in a smaller picture the pixel below is fewer tokens away, so positions learned there are
wrong in a larger picture.

Departures from the published generator: targets and distractors have the same contrast, where LRA's 32-pixel pictures
give them two, a cue; a dead end removes the last few paddles, not all; a paddle is drawn among all free paddles, where
LRA tries three; averaging antialiases the lines, not Lanczos. LRA has 160k training pictures a level. If `data` names
LRA's own release, the task reads it and splits it anew, 80 / 10 / 10.

With short targets the distance of the discs reveals the label, here and in the published generator: a curve without
room to bend always has the same distance between its ends. A guess from the discs alone, one of the baselines, is right
at 32, 64 and 128 pixels in 67, 75 and 80 % with targets of 6 paddles, 58, 61 and 65 % with 9, and 53, 57 and 51 % with
14, the default.
"""

import hashlib
import math
import platform
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, fresh, matrix
from tasks.contours import SCALES, draw, sketch
from tasks.parallel import in_parallel

GENERATOR = 1  # raise it when the same arguments generate something else
SEED = 1805
CONTOURS = (6, 9, 14)  # paddles in a target: easy, intermediate, hard
MAX_EVAL = 2_000
CHUNK = 100  # pictures drawn at a time
FITTED = 5_000  # pictures that the baselines are fitted on


class Chunk(NamedTuple):
    """Some pictures of a split."""

    seq_len: int
    contour: int
    split: str
    number: int
    pictures: int


def generate(chunk: Chunk) -> list[tuple[bytes, int]]:
    """Pictures and their labels."""
    rng = random.Random(f"{SEED} {chunk.seq_len} {chunk.contour} {chunk.split} {chunk.number}")
    scenes = (sketch(rng, SCALES[chunk.seq_len], chunk.contour) for _ in range(chunk.pictures))
    return [(draw(scene).tobytes(), scene.label) for scene in scenes]


def read_index(folder: Path) -> list[tuple[str, int]]:
    """(path inside the folder, label) of each picture of a release, in the order of its metadata/*.npy.

    The metadata are lines of text, or arrays of strings with the same fields: folder, file, number, label, …

    Raises:
        ValueError: a missing file, or a line of another form.
    """
    files = sorted(folder.glob("metadata/*.npy"))
    if not files:
        raise ValueError(f"data: expected a folder with metadata/*.npy and imgs, got {str(folder)!r}")
    index = []
    for file in files:
        for number, fields in enumerate(_lines(file), start=1):
            if len(fields) < 4 or fields[3] not in ("0", "1"):
                line = " ".join(fields)
                raise ValueError(f"{file}:{number}: expected folder, file, number and label 0 or 1, got {line!r}")
            index.append((f"{fields[0]}/{fields[1]}", int(fields[3])))
    if len({label for _, label in index}) < 2:
        raise ValueError(f"data: expected pictures of both labels, got {len(index)} of one label in {str(folder)!r}")
    return index


def _lines(file: Path) -> list[list[str]]:
    """The fields of each line."""
    try:
        with file.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                stream.seek(0)
                table = np.load(stream, allow_pickle=False).astype(str)
                return list(table.reshape(len(table), -1).tolist())
        return [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{file}: expected lines of text or an array of strings: {error}") from None


def read_picture(file: Path, pixels: int) -> bytes | None:
    """The pixels of a picture file; None if the file is not a picture, as one file of LRA's release.

    Raises:
        ValueError: the file is missing, or the picture has another size.
    """
    from PIL import Image

    if not file.is_file():
        raise ValueError(f"data: expected every picture that the metadata lists, but {str(file)!r} is missing")
    try:
        with Image.open(file) as image:
            size, gray = image.size, bytes(image.convert("L").tobytes())
    except OSError:
        return None
    if size != (pixels, pixels):
        raise ValueError(
            f"data: expected {pixels} x {pixels} pixels at seq_len {pixels**2}, "
            f"got {size[0]} x {size[1]} in {str(file)!r}"
        )
    return gray


def deal(name: str) -> Split:
    """The split of a picture file, the same on every machine."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48
    return "test" if share < 0.1 else "validation" if share < 0.2 else "train"


def find_discs(pictures: NDArray[np.uint8], radius: float) -> NDArray[np.int64]:
    """Rows and columns (B, 2, 2) of the two discs of pictures (B, P, P): where a whole disc is brightest."""
    count, side, _ = pictures.shape
    reach = int(radius)
    framed = np.pad(pictures, ((0, 0), (reach, reach), (reach, reach)))
    darkest = np.full_like(pictures, 255)
    around = range(-reach, reach + 1)
    for dy, dx in ((y, x) for y in around for x in around if math.hypot(abs(y) + 0.5, abs(x) + 0.5) <= radius):
        moved = framed[:, reach + dy : reach + dy + side, reach + dx : reach + dx + side]
        np.minimum(darkest, moved, out=darkest)
    rows, columns = np.indices((side, side))
    discs = []
    for _ in range(2):
        y, x = np.divmod(darkest.reshape(count, -1).argmax(axis=1), side)
        discs.append(np.stack([y, x], axis=1))
        near = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2 <= radius**2
        darkest[near] = 0
    return np.stack(discs, axis=1)


@dataclass(frozen=True, kw_only=True)
class PathfinderConfig:
    """Options of pathfinder.

    Attributes:
        samples: training pictures; validation and test have an eighth of that each, at most 2,000.
        contour: paddles in a target snake: 6, 9 or 14.
        data: a folder of LRA's release, such as pathfinder32/curv_contour_length_14; the task uses all of its pictures.
            Empty: generated pictures.
    """

    task: ClassVar[str] = "pathfinder"
    samples: int = 16_000
    contour: int = 14
    data: str = ""

    def __post_init__(self) -> None:
        if self.samples < 64:
            raise ValueError(f"expected {self.task}.samples >= 64, got {self.samples}")
        if self.contour not in CONTOURS:
            raise ValueError(f"expected {self.task}.contour among 6, 9, 14, got {self.contour}")
        unused = (self.samples, self.contour) != (PathfinderConfig.samples, PathfinderConfig.contour)
        if self.data and unused:
            raise ValueError(
                f"{self.task}.data cannot be combined with {self.task}.samples or {self.task}.contour: drop them"
            )


@register
class Pathfinder(Task):
    """Do two discs mark the ends of one curve? See the module's docstring."""

    name = "pathfinder"
    kind = "sequence"
    picture = True
    summary = "do two discs lie on one dashed curve? 32, 64 or 128 pixels square"
    min_len = 32 * 32
    max_len = 128 * 128
    lengths = tuple(SCALES)
    defaults = TaskDefaults(
        seq_len=1024,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=1e-3,
        conv_width=None,
        embedding_std=1.0,
        positions="sinusoidal",
        tokens_per_step=32_768,
    )
    config_type: ClassVar[type] = PathfinderConfig

    vocab_size = 257
    n_classes = 2

    @cached_property
    def index(self) -> list[tuple[str, int]]:
        """Pictures and labels of the release at ``data``."""
        return read_index(Path(self.config.data).expanduser())

    @cached_property
    def index_sha256(self) -> str:
        return hashlib.sha256("".join(f"{name} {label}\n" for name, label in self.index).encode()).hexdigest()

    @property
    def cache_key(self) -> str:
        if self.config.data:
            return f"{self.seq_len}-{self.index_sha256[:16]}-g{GENERATOR}"
        return f"{self.seq_len}-{self.config.contour}-{self.config.samples}-g{GENERATOR}"

    def build(self) -> dict[Split, Rows]:
        seen: set[bytes] = set()
        built: dict[Split, Rows] = {}
        for split in reversed(SPLITS):
            if self.config.data:
                listed = [(name, label) for name, label in self.index if deal(name) == split]
                built[split] = Rows(len(listed), fresh(self._read(listed), "pixels", seen))
            else:
                count = self.config.samples if split == "train" else min(MAX_EVAL, self.config.samples // 8)
                built[split] = Rows(count, fresh(self._generate(split, count), "pixels", seen))
        return built

    def _generate(self, split: Split, count: int) -> Iterator[Row]:
        chunks = [
            Chunk(self.seq_len, self.config.contour, split, number, min(CHUNK, count - number * CHUNK))
            for number in range(-(-count // CHUNK))
        ]
        # One chunk takes less time than starting a process.
        for pictures in in_parallel(generate, chunks) if len(chunks) > 1 else map(generate, chunks):
            for pixels, label in pictures:
                yield {"pixels": pixels, "label": label}

    def _read(self, listed: list[tuple[str, int]]) -> Iterator[Row]:
        folder = Path(self.config.data).expanduser()
        for name, label in listed:
            pixels = read_picture(folder / name, math.isqrt(self.seq_len))
            if pixels is not None:
                yield {"pixels": pixels, "label": label}

    def take(self, split: Split, rows: NDArray[np.int64]) -> Batch:
        columns = self.tables[split][rows]
        return Batch(matrix(columns["pixels"], np.uint8).astype(np.int64) + 1, np.array(columns["label"], np.int64))

    def baselines(self) -> dict[str, float]:
        """The most frequent label; logistic regression on the pixels; boosted trees on the positions of the two discs.

        The regression sees pixels averaged to 32 x 32, the trees the rows, columns and distance of the discs.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression

        train, test = self.labels("train"), self.labels("test")
        pixels, discs = self._summary("train", FITTED)
        linear = LogisticRegression(C=0.01, max_iter=1000).fit(pixels, train[:FITTED])
        trees = HistGradientBoostingClassifier(max_iter=50, early_stopping=False).fit(discs, train[:FITTED])
        pixels, discs = self._summary("test", len(test))
        return {
            "majority": majority(train, test),
            "logistic regression": float(np.mean(linear.predict(pixels) == test)),
            "the discs alone": float(np.mean(trees.predict(discs) == test)),
        }

    def _summary(self, split: Split, count: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The first `count` pictures: (rows, 1024) brightness at 32 x 32, 0 to 1; (rows, 5) positions of the discs."""
        table, side, step = self.tables[split], math.isqrt(self.seq_len), 256
        brightness, places = [], []
        for start in range(0, min(count, len(table)), step):
            pixels = table[start : min(count, start + step)]["pixels"]
            pictures = matrix(pixels, np.uint8).reshape(-1, side, side)
            blocks = pictures.reshape(-1, 32, side // 32, 32, side // 32).mean(axis=(2, 4), dtype=np.float32)
            brightness.append(blocks.reshape(-1, 1024) / 255)
            discs = find_discs(pictures, SCALES[self.seq_len].radius)
            apart = np.hypot(*(discs[:, 1] - discs[:, 0]).T)
            places.append(np.column_stack([discs.reshape(-1, 4), apart]))
        return np.concatenate(brightness), np.concatenate(places)

    def provenance(self) -> dict[str, str | int]:
        test = hashlib.sha256()
        for row in self.tables["test"]:
            test.update(row["pixels"] + bytes([row["label"]]))
        provenance: dict[str, str | int] = {"generator": GENERATOR, "python": platform.python_version()}
        if self.config.data:
            provenance = {"index_sha256": self.index_sha256}
        for split in SPLITS:
            provenance[f"{split}_samples"] = self.size(split)
            provenance[f"{split}_connected"] = int(self.labels(split).sum())
        return provenance | {"test_sha256": test.hexdigest()}

    def notes(self) -> list[str]:
        if not self.config.data:
            return []
        lost = len(self.index) - sum(map(self.size, SPLITS))
        return [f"{lost} of {len(self.index)} pictures left out: unreadable, or equal to another"] if lost else []
