"""Where to write names so that they cover neither one another nor the marks they name.

Everything here is plain geometry in pixels, y upwards, and deterministic.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float


class Anchor(NamedTuple):
    """A mark to be named: its centre, its radius, and the width and height of the name."""

    x: float
    y: float
    radius: float
    width: float
    height: float


GAP = 4.0  # between a mark and its name, and between names
LINE_COST = 0.15  # pixels a name moves away rather than cover one square pixel of a line
CROSSING_COST = 10.0  # the same for a name that its leader would cross
HAIR = np.array([-1.0, -1.0, 1.0, 1.0])  # a point made a box of 2 pixels
ANGLES = np.deg2rad([0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 68, 292, 112, 248])


def shared_areas(boxes: FloatArray, others: Sequence[Box]) -> FloatArray:
    """Area that each of `boxes` (K, 4) shares with all of `others` together: (K,)."""
    if not others:
        return np.zeros(len(boxes))
    rest = np.array(others)  # (M, 4)
    low = np.maximum(boxes[:, None, :2], rest[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], rest[None, :, 2:])
    overlaps: FloatArray = np.prod(np.clip(high - low, 0, None), axis=-1)
    return np.asarray(overlaps.sum(axis=1))


def place(anchors: Sequence[Anchor], area: Box, marks: Sequence[Box], lines: Sequence[Box]) -> list[Box]:
    """A box for each anchor's name, as near to it as can be.

    Names keep off the marks and off each other wherever the area has room left; lines, and the leaders
    of names placed before, are avoided where that costs little.

    Args:
        anchors: the marks to be named, in order of precedence.
        area: the box all names stay in.
        marks: boxes no name may touch (markers, text already there).
        lines: boxes better left free (small boxes along lines and error bars).
    """
    taken, avoided = list(marks), list(lines)
    placed: list[Box] = []
    for anchor in anchors:
        best, lowest = None, math.inf
        for reach, boxes in rings(anchor, area):
            if reach >= lowest:
                break
            leaders = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2] * 2, axis=1)  # (K, 4): centre twice
            start = np.array([anchor.x, anchor.y, anchor.x, anchor.y])
            crossings = sum(shared_areas(start + share * (leaders - start) + HAIR, placed) for share in (0.3, 0.5, 0.7))
            cost = (
                reach
                + LINE_COST * shared_areas(boxes, avoided)
                + CROSSING_COST * crossings
                + 1e6 * shared_areas(boxes, taken)
            )
            if cost.min() < lowest:
                best, lowest = Box(*map(float, boxes[cost.argmin()])), float(cost.min())
        assert best is not None
        placed.append(best)
        taken.append(Box(best.left - GAP / 2, best.bottom - GAP / 2, best.right + GAP / 2, best.top + GAP / 2))
        x, y = (best.left + best.right) / 2, (best.bottom + best.top) / 2
        avoided += [
            Box(*(np.array([x, y, x, y]) + share * np.array([anchor.x - x, anchor.y - y] * 2) + HAIR))
            for share in np.linspace(0, 1, 2 + int(math.dist((x, y), (anchor.x, anchor.y)) / 5))
        ]
    return placed


def rings(anchor: Anchor, area: Box) -> Iterator[tuple[float, FloatArray]]:
    """Boxes (K, 4) around an anchor, kept inside the area, at growing distances."""
    reach = 0.0
    half = np.array([anchor.width, anchor.height]) / 2
    low, high = np.array(area[:2]) + half, np.array(area[2:]) - half
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # (K, 2)
    while reach <= max(area.right - area.left, area.top - area.bottom):
        centres = np.array([anchor.x, anchor.y]) + directions * (anchor.radius + GAP + reach + half)
        centres = np.clip(centres, low, high)
        yield reach, np.concatenate([centres - half, centres + half], axis=1)
        reach += 4 if reach < 60 else 10


def spread(centres: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres moved as little as keeps a column of labels from overlapping, between `low` and `high`.

    Labels that would collide are pooled into a stack around their common mean, and stacks that then
    collide are pooled again. The order of the wishes is kept.
    """
    order = sorted(range(len(centres)), key=lambda i: centres[i])
    stacks: list[tuple[list[int], float, float]] = []  # members, bottom, height

    def settle(members: list[int]) -> tuple[list[int], float, float]:
        height = sum(heights[i] for i in members)
        offset, wishes = 0.0, []
        for i in members:
            wishes.append(centres[i] - offset - heights[i] / 2)
            offset += heights[i]
        return members, min(max(sum(wishes) / len(wishes), low), max(high - height, low)), height

    for index in order:
        stacks.append(settle([index]))
        while len(stacks) > 1 and stacks[-2][1] + stacks[-2][2] > stacks[-1][1]:
            upper, lower = stacks.pop(), stacks.pop()
            stacks.append(settle(lower[0] + upper[0]))

    result = [0.0] * len(centres)
    for members, bottom, _ in stacks:
        for i in members:
            result[i] = bottom + heights[i] / 2
            bottom += heights[i]
    return result
