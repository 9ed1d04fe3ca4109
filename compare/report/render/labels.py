"""Placement of names, so that they cover neither one another nor the marks.

Everything here is plain geometry in pixels, y upwards, and deterministic.
"""

from collections.abc import Sequence
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
    """A mark to name: its centre, its radius, and the width and height of the name."""

    x: float
    y: float
    radius: float
    width: float
    height: float


GAP = 4.0  # between a mark and its name, and between names
# Costs in pixels of distance between a name and its mark:
LINE_COST = 0.15  # of each square pixel of a line that a name covers
CROSSING_COST = 50.0  # of each name, mark or other leader that a leader crosses
MISTAKEN_COST = 30.0  # of each other mark that a name could belong to
TOUCHING_COST = 1e4  # of each square pixel of a mark or another name that a name covers
SWEEPS = 3  # how often every name is placed again among the others
ANGLES = np.deg2rad(np.arange(0, 360, 22.5))
REACHES = np.concatenate([np.arange(0, 60, 5), np.arange(60, 200, 14), np.arange(200, 1000, 80)])
SAMPLES = np.linspace(0.1, 0.95, 12)  # points on a leader that are checked, as shares of its length


def shared_areas(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """The area (K,) that each of `boxes` (K, 4) shares with all `others` (M, 4) together."""
    width = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(boxes[:, None, 0], others[:, 0])  # (K, M)
    height = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(boxes[:, None, 1], others[:, 1])
    areas: FloatArray = (np.clip(width, 0, None) * np.clip(height, 0, None)).sum(axis=1)
    return areas


def leaders(starts: FloatArray, boxes: FloatArray) -> FloatArray:
    """Samples (…, S, 2) on the lines from points (…, 2) to the nearest points of their boxes (…, 4)."""
    nearest = np.clip(starts, boxes[..., :2], boxes[..., 2:])
    between: FloatArray = starts[..., None, :] + SAMPLES[:, None] * (nearest - starts)[..., None, :]
    return between


def hits(points: FloatArray, boxes: FloatArray) -> NDArray[np.bool_]:
    """Whether any of the points (K, S, 2) of each leader lies in each box (M, 4): (K, M)."""
    x, y = points[:, None, :, 0], points[:, None, :, 1]  # (K, 1, S)
    left, bottom, right, top = boxes.T[:, None, :, None]  # (1, M, 1) each
    inside: NDArray[np.bool_] = ((x > left) & (x < right) & (y > bottom) & (y < top)).any(axis=-1)
    return inside


def crossings(leader: FloatArray, others: FloatArray) -> FloatArray:
    """How many of the straight `others` (M, S, 2) each leader (K, S, 2) crosses: (K,)."""
    a, b = leader[:, None, 0], leader[:, None, -1]  # (K, 1, 2)
    c, d = others[None, :, 0], others[None, :, -1]  # (1, M, 2)

    def side(p: FloatArray, q: FloatArray, r: FloatArray) -> FloatArray:
        turn: FloatArray = (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1])
        return turn - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    crossed = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
    counts: FloatArray = crossed.sum(axis=1).astype(float)
    return counts


def as_boxes(boxes: Sequence[Box]) -> FloatArray:
    return np.array(boxes, dtype=float).reshape(-1, 4)


def mistaken(index: int, boxes: FloatArray, points: FloatArray, radii: FloatArray) -> FloatArray:
    """For each of the boxes (K, 4) of the mark at `index`, how many other marks at `points` (M, 2) are about as near to
    the box as its own mark: (K,)."""
    nearest = np.clip(points, boxes[:, None, :2], boxes[:, None, 2:])  # (K, M, 2)
    away = np.linalg.norm(nearest - points, axis=-1) - radii
    counts: FloatArray = (away < away[:, index, None] + 2 * GAP).sum(axis=1) - 1.0  # its own is among them
    return counts


def place(anchors: Sequence[Anchor], area: Box, marks: Sequence[Box], lines: Sequence[Box]) -> list[Box]:
    """A box for each anchor's name, as near to the anchor as possible.

    Names do not touch marks or each other as long as the area has room. They avoid lines where that costs little.
    Leaders avoid other names, marks and leaders where a detour is cheap enough. If possible, a name is clearly nearer
    to its own mark than to others.

    Args:
        anchors: the marks to name, in order of precedence.
        area: the box that holds all names.
        marks: boxes that no name may touch (markers, existing text).
        lines: boxes that names should avoid (small boxes along lines and error bars).
    """
    fixed, soft = as_boxes(marks), as_boxes(lines)
    points = np.array([(anchor.x, anchor.y) for anchor in anchors]).reshape(-1, 2)
    radii = np.array([anchor.radius for anchor in anchors])
    around = [candidates(anchor, area) for anchor in anchors]
    fixed_costs = []  # costs that do not depend on the places of other names
    for index, ((reach, boxes), point) in enumerate(zip(around, points, strict=True)):
        elsewhere = fixed[~((fixed[:, :2] <= point) & (fixed[:, 2:] >= point)).all(axis=1)]
        passed = hits(leaders(np.broadcast_to(point, (len(boxes), 2)), boxes), elsewhere).sum(axis=1)
        fixed_costs.append(
            reach
            + LINE_COST * shared_areas(boxes, soft)
            + TOUCHING_COST * shared_areas(boxes, fixed)
            + CROSSING_COST * passed
            + MISTAKEN_COST * mistaken(index, boxes, points, radii)
        )

    placed: dict[int, FloatArray] = {}
    for _ in range(1 + SWEEPS):
        for index, ((_, boxes), cost) in enumerate(zip(around, fixed_costs, strict=True)):
            others = [other for other in placed if other != index]
            if others:
                names = np.array([placed[other] for other in others])  # (M, 4)
                lead = leaders(points[others], names)
                own = leaders(np.broadcast_to(points[index], (len(boxes), 2)), boxes)
                met = hits(own, names).sum(axis=1) + hits(lead, boxes).sum(axis=0) + crossings(own, lead)
                apart = names + GAP * np.array([-1.5, -0.5, 1.5, 0.5])
                cost = cost + CROSSING_COST * met + TOUCHING_COST * shared_areas(boxes, apart)
            placed[index] = boxes[cost.argmin()]
    return [Box(*map(float, placed[index])) for index in range(len(anchors))]


def candidates(anchor: Anchor, area: Box) -> tuple[FloatArray, FloatArray]:
    """Candidate boxes (K, 4) around an anchor, inside the area, and their distances from the anchor (K,)."""
    half = np.array([anchor.width, anchor.height]) / 2
    low, high = np.array(area[:2]) + half, np.array(area[2:]) - half
    directions = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # (A, 2)
    away = anchor.radius + GAP + REACHES[:, None, None] + half  # (R, 1, 2)
    centres = np.clip(np.array([anchor.x, anchor.y]) + directions * away, low, high).reshape(-1, 2)
    boxes = np.concatenate([centres - half, centres + half], axis=1)
    nearest = np.clip(np.array([anchor.x, anchor.y]), boxes[:, :2], boxes[:, 2:])
    return np.linalg.norm(nearest - [anchor.x, anchor.y], axis=1), boxes


def spread(centres: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """The centres of a column of labels between `low` and `high`, moved as little as possible to avoid overlaps.

    Labels that would overlap are pooled into a stack around their common mean, and stacks that then overlap are pooled
    again. The order stays.
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
