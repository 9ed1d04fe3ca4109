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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import chain, count
from operator import or_
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasks.base import SPLITS, Batch, Task, TaskDefaults, register
from tasks.baselines import majority
from tasks.cache import Row, Rows, Split, fresh, matrix
from tasks.parallel import in_parallel

GENERATOR = 1  # raise it when the same arguments generate something else
SEED = 1805
CONTOURS = (6, 9, 14)  # paddles in a target: easy, intermediate, hard
MAX_EVAL = 2_000
CHUNK = 100  # pictures drawn at a time
TRIES = 100  # attempts to extend a distractor before it is dropped
BACK = 1.5  # paddles removed at a dead end beyond the first: an exponential with this mean, rounded down
FINE = 8  # points across a pixel, for antialiasing
FITTED = 5_000  # pictures that the baselines are fitted on


@dataclass(frozen=True)
class Scale:
    """The measures of a picture of one size, in pixels.

    Attributes:
        pixels: height and width.
        length, thickness: of a paddle.
        margins: between a paddle and its pivots; each picture draws one of them.
        seed_distance: between the first pivots of the two targets.
        radius: of a disc.
        continuity: the straightness of snakes.
        distractors: paddles in all distractors together, at most.
    """

    pixels: int
    length: int
    thickness: float
    margins: tuple[int, ...]
    seed_distance: int
    radius: float
    continuity: float
    distractors: int


SCALES = {
    32 * 32: Scale(32, 2, 0.5, (1,), seed_distance=7, radius=1.5, continuity=1.0, distractors=20),
    64 * 64: Scale(64, 5, 1.0, (1,), seed_distance=12, radius=2.5, continuity=1.8, distractors=22),
    128 * 128: Scale(128, 5, 1.5, (2, 3), seed_distance=20, radius=3.0, continuity=1.8, distractors=35),
}

Paddle: TypeAlias = tuple[int, int, int]
"""Row and column of the pivot, and the index of one of its `Paddles`."""
Snake: TypeAlias = list[Paddle]
Point: TypeAlias = tuple[int, int]
Bitmap: TypeAlias = int
"""One bit a pixel, row after row, with a frame around the picture: a shift moves it, `&` finds overlaps."""


class Paddles:
    """The n paddles that can leave a pivot: one for each pixel of the circle around it.

    Attributes:
        scale, margin: the arguments.
        frame: pixels around the picture, so that no paddle reaches beyond.
        width: pixels in a row of a bitmap.
        outside: bitmap of the pixels that stay empty: the frame, and one pixel along the edges.
        tails, heads: near and far end of each paddle, relative to its pivot.
        steps: next pivot after each paddle, relative to its pivot.
        turns: paddles that may follow each paddle, with their weights.
        zones: bitmap of the pixels within a margin of each paddle, for a pivot at (0, 0).
        ink: (n, S, S) uint8 picture of each paddle, with the pivot in the middle; S = 2 frame + 1.
        disc: (S, S) uint8 picture of a disc, with its centre in the middle.
    """

    def __init__(self, scale: Scale, margin: int) -> None:
        self.scale, self.margin = scale, margin
        reach = scale.length + margin
        self.frame = reach + margin + 2
        self.width = scale.pixels + 2 * self.frame

        around = range(-reach, reach + 1)
        self.heads: list[Point] = [(y, x) for y in around for x in around if round(math.hypot(y, x)) == reach]
        heads = np.array(self.heads, np.float64)
        distance = np.hypot(*heads.T)[:, None]
        ahead = heads / distance  # unit vectors
        self.tails = _rounded(heads - scale.length * ahead)
        self.steps = _rounded(heads + margin * ahead)
        angle = np.arctan2(*heads.T)
        turn = np.abs(angle[:, None] - angle)
        turn = np.minimum(turn, 2 * np.pi - turn)
        weights = np.cos(np.minimum(scale.continuity * turn, np.pi / 2)) ** 2
        self.turns = [[(n, weight) for n, weight in enumerate(row) if weight > 1e-9] for row in weights.tolist()]

        def beside(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            """The distance of each point beyond either end of each paddle, and from the axis of the paddle."""
            up, right = ahead.T[:, :, None, None]
            along = y * up + x * right - (distance[:, :, None] - scale.length)
            return np.maximum(-along, along - scale.length), np.abs(x * up - y * right)

        points = np.arange(-self.frame, self.frame + 1, dtype=np.float64)
        beyond, aside = beside(points[:, None], points)
        near = np.hypot(np.maximum(beyond, 0), aside) <= margin + scale.thickness / 2
        rows = np.pad(near, ((0, 0), (0, 0), (0, self.width - len(points))))
        self.zones = [_bitmap(row) for row in rows]
        drawable = np.zeros((self.width, self.width), bool)
        edge = self.frame + 1
        drawable[edge:-edge, edge:-edge] = True
        self.outside = _bitmap(~drawable)

        fine = (points[:, None] + (np.arange(FINE) + 0.5) / FINE - 0.5).ravel()
        beyond, aside = beside(fine[:, None], fine)
        self.ink = _average((beyond <= 0) & (aside <= scale.thickness / 2))
        self.disc = _average(np.hypot(fine[:, None], fine) <= scale.radius)

    def zone(self, paddle: Paddle) -> Bitmap:
        y, x, n = paddle
        return self.zones[n] << (y * self.width + x)


def _rounded(points: NDArray[np.float64]) -> list[Point]:
    return [(y, x) for y, x in np.rint(points).astype(int).tolist()]


def _bitmap(pixels: NDArray[np.bool_]) -> Bitmap:
    return int.from_bytes(np.packbits(pixels.ravel(), bitorder="little").tobytes(), "little")


def _average(fine: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(…, S · FINE, S · FINE) points -> (…, S, S) pixels."""
    size = fine.shape[-1] // FINE
    pixels: NDArray[np.float64] = fine.reshape(*fine.shape[:-2], size, FINE, size, FINE).mean(axis=(-3, -1))
    return np.rint(255 * pixels).astype(np.uint8)


paddles_of = cache(Paddles)


@dataclass(frozen=True)
class Scene:
    """The contents of a picture: two targets, distractors, the centres of the two discs, and the label."""

    paddles: Paddles
    targets: list[Snake]
    distractors: list[Snake]
    discs: tuple[Point, Point]
    label: int


class Growth(NamedTuple):
    """Growing snakes.

    Attributes:
        snakes: all of one length.
        tips: zone of the last paddle of each snake; only its successor may enter it.
        taken: all other occupied zones.
    """

    snakes: list[Snake]
    tips: list[Bitmap]
    taken: Bitmap


def begin(paddles: Paddles, seeds: list[Paddle], taken: Bitmap) -> Growth | None:
    """Snakes of one paddle; None if a seed is not free."""
    tips = [paddles.zone(seed) for seed in seeds]
    for n, tip in enumerate(tips):
        if tip & reduce(or_, tips[:n], taken):
            return None
    return Growth([[seed] for seed in seeds], tips, taken)


def extend(rng: random.Random, paddles: Paddles, growth: Growth) -> Growth | None:
    """One more paddle for each snake; None if a snake is at a dead end."""
    snakes, tips, taken = [], list(growth.tips), growth.taken
    for own, snake in enumerate(growth.snakes):
        paddle = follow(rng, paddles, snake[-1], reduce(or_, tips[:own] + tips[own + 1 :], taken))
        if paddle is None:
            return None
        snakes.append([*snake, paddle])
        taken |= tips[own]
        tips[own] = paddles.zone(paddle)
    return Growth(snakes, tips, taken)


def follow(rng: random.Random, paddles: Paddles, last: Paddle, taken: Bitmap) -> Paddle | None:
    """A free paddle that may follow ``last``; None if there is none."""
    y, x, n = last
    dy, dx = paddles.steps[n]
    y, x = y + dy, x + dx
    around = taken >> (y * paddles.width + x)
    free = [(n, weight) for n, weight in paddles.turns[n] if not around & paddles.zones[n]]
    if not free:
        return None
    numbers, weights = zip(*free, strict=True)
    return y, x, rng.choices(numbers, weights)[0]


def grow(
    rng: random.Random,
    paddles: Paddles,
    seeds: Callable[[], list[Paddle]],
    length: int,
    taken: Bitmap,
    tries: Iterable[int],
) -> tuple[list[Snake], Bitmap] | None:
    """Snakes of ``length`` paddles, and the occupied zones with them; None after ``tries`` without success.

    A dead end removes the last paddle and some more, or starts from other seeds.
    """
    lengths: list[Growth] = []
    for _ in tries:
        grown = extend(rng, paddles, lengths[-1]) if lengths else begin(paddles, seeds(), taken)
        if grown is None:
            del lengths[max(0, len(lengths) - 1 - int(rng.expovariate(1 / BACK))) :]
            continue
        lengths.append(grown)
        if len(lengths) == length:
            return grown.snakes, reduce(or_, grown.tips, grown.taken)
    return None


def sketch(rng: random.Random, scale: Scale, contour: int) -> Scene:
    """A scene with targets of `contour` paddles and distractors of `contour` // 3."""
    paddles = paddles_of(scale, rng.choice(scale.margins))
    directions = range(len(paddles.heads))

    def two() -> list[Paddle]:
        centre = range(2 * scale.seed_distance, scale.pixels - 2 * scale.seed_distance)
        y, x = rng.choice(centre), rng.choice(centre)
        angle = 2 * math.pi * rng.random()
        dy, dx = round(scale.seed_distance * math.sin(angle)), round(scale.seed_distance * math.cos(angle))
        return [(y, x, rng.choice(directions)), (y + dy, x + dx, rng.choice(directions))]

    def one() -> list[Paddle]:
        return [(rng.randrange(scale.pixels), rng.randrange(scale.pixels), rng.choice(directions))]

    grown = grow(rng, paddles, two, contour, paddles.outside, count())
    assert grown is not None
    targets, taken = grown

    length = contour // 3
    distractors = []
    for _ in range(scale.distractors // length):
        grown = grow(rng, paddles, one, length, taken, range(TRIES))
        if grown is not None:
            [distractor], taken = grown
            distractors.append(distractor)

    label, first = rng.randrange(2), rng.randrange(2)
    y, x, n = targets[first][0]
    dy, dx = paddles.tails[n]
    start = y + dy, x + dx
    y, x, n = targets[first if label else 1 - first][-1]
    dy, dx = paddles.heads[n]
    return Scene(paddles, targets, distractors, (start, (y + dy, x + dx)), label)


def paint(paddles: Paddles, snakes: Iterable[Snake], discs: Iterable[Point] = ()) -> NDArray[np.uint8]:
    """(pixels, pixels) white on black."""
    size = 2 * paddles.frame + 1
    canvas = np.zeros((paddles.width, paddles.width), np.uint8)
    stamps = chain(
        ((y, x, paddles.ink[n]) for snake in snakes for y, x, n in snake), ((y, x, paddles.disc) for y, x in discs)
    )
    for y, x, stamp in stamps:
        window = canvas[y : y + size, x : x + size]
        np.maximum(window, stamp, out=window)
    return canvas[paddles.frame : -paddles.frame, paddles.frame : -paddles.frame]


def draw(scene: Scene) -> NDArray[np.uint8]:
    """The picture of a scene, (pixels, pixels)."""
    return paint(scene.paddles, chain(scene.targets, scene.distractors), scene.discs)


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
                found = " ".join(fields)
                raise ValueError(f"{file}:{number}: expected folder, file, number and label 0 or 1, got {found!r}")
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
            size, found = image.size, bytes(image.convert("L").tobytes())
    except OSError:
        return None
    if size != (pixels, pixels):
        raise ValueError(
            f"data: expected {pixels} x {pixels} pixels at seq_len {pixels**2}, "
            f"got {size[0]} x {size[1]} in {str(file)!r}"
        )
    return found


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
    found = []
    for _ in range(2):
        y, x = np.divmod(darkest.reshape(count, -1).argmax(axis=1), side)
        found.append(np.stack([y, x], axis=1))
        near = (rows - y[:, None, None]) ** 2 + (columns - x[:, None, None]) ** 2 <= radius**2
        darkest[near] = 0
    return np.stack(found, axis=1)


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
        found = self.tables[split][rows]
        return Batch(matrix(found["pixels"], np.uint8).astype(np.int64) + 1, np.array(found["label"], np.int64))

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
            found = table[start : min(count, start + step)]["pixels"]
            pictures = matrix(found, np.uint8).reshape(-1, side, side)
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
        found: dict[str, str | int] = {"generator": GENERATOR, "python": platform.python_version()}
        if self.config.data:
            found = {"index_sha256": self.index_sha256}
        for split in SPLITS:
            found[f"{split}_samples"] = self.size(split)
            found[f"{split}_connected"] = int(self.labels(split).sum())
        return found | {"test_sha256": test.hexdigest()}

    def notes(self) -> list[str]:
        if not self.config.data:
            return []
        lost = len(self.index) - sum(map(self.size, SPLITS))
        return [f"{lost} of {len(self.index)} pictures left out: unreadable, or equal to another"] if lost else []
