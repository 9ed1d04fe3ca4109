"""Scenes of pathfinder: two target snakes, distractors and discs, and their pictures.

The docstring of `tasks.pathfinder` has the rules. `sketch` grows the snakes of a scene, paddle by paddle where bitmaps
show free pixels; `draw` paints the scene.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain, count
from operator import or_
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

TRIES = 100  # attempts to extend a distractor before it is dropped
BACK = 1.5  # paddles removed at a dead end beyond the first: an exponential with this mean, rounded down
FINE = 8  # points across a pixel, for antialiasing


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
