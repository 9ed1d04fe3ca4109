"""Estimates of what a micro-batch costs at sizes that nobody measured.

The cost of a variant grows with its sizes as a sum of terms with weights of at least 0, as Ernest fits the time of jobs
(Venkataraman et al., NSDI 2016): a part for each layer, one for each token and feature, one for each product with a
weight, one for each pair of positions. The law says how the cost grows from the nearest measured points to the wanted
one; the points say how high it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy.optimize import nnls

from compare.estimate.points import TIMED, Cost, Machine, Point, Shape

FEWEST_SHARED = 3  # shapes measured on both machines, for a ratio of their times
CLOSER = 4  # power of the distance by which far records weigh less in the law
PRIOR = 0.05  # weight of what the law is taken to be where the records leave a choice, beside a record's 1
LEAST = 0.01  # share of the first term in a law, at least: it never vanishes
TINY = 1e-300  # in place of 0 in the terms of a head without classes
# Factors on the range of an estimate, up and down; benchmarks/plan_check.py counts how often the ranges hold.
NOISE: dict[Cost, float] = {"step": 1.5, "forward": 1.5, "memory": 1.15, "flops": 1.02}  # of one against another
BEYOND = 0.2  # power of the ratio of lengths, of batches and of widths
OTHER_ENCODER, SCALED, UNSCALED = 1.4, 1.2, 1.8


def time_terms(shape: Shape) -> tuple[float, ...]:
    """Elements, calls of operations, products with weights, products of the head, pairs of positions. The first stands
    for all where the records cannot tell terms apart; the last is left out for a variant that has no such cost."""
    elements = shape.tokens * shape.d_model * shape.n_layers
    head = shape.tokens * shape.d_model * shape.classes
    return elements, shape.n_layers, elements * shape.d_model, head, elements * shape.seq_len


def memory_terms(shape: Shape) -> tuple[float, ...]:
    """Elements, a constant part, weights, outputs of the head, pairs of positions."""
    elements, layers, _, _, pairs = time_terms(shape)
    return elements, 1.0, layers * shape.d_model**2, shape.tokens * shape.classes, pairs


def flops_terms(shape: Shape) -> tuple[float, ...]:
    """Products with weights, elements, products of the head, pairs of positions."""
    elements, _, products, head, pairs = time_terms(shape)
    return products, elements, head, pairs


TERMS: dict[Cost, Callable[[Shape], tuple[float, ...]]] = {
    "step": time_terms,
    "memory": memory_terms,
    "flops": flops_terms,
}


class Basis(NamedTuple):
    """What an estimate rests on.

    Attributes:
        kind: how the wanted length lies to the measured ones.
        lengths: the measured lengths, one or two.
        encoder: whether they are of the same encoder and task.
        machine: the machine of the points.
        scaled: their times were multiplied by this ratio of the machines; 1 on the same machine, None = not scaled.
        folders: the folders of the records.
    """

    kind: Literal["measured", "interpolated", "extrapolated"]
    lengths: tuple[int, ...]
    encoder: bool
    machine: Machine
    scaled: float | None
    folders: tuple[str, ...]

    @property
    def words(self) -> str:
        where = " and ".join(f"{length:,}" for length in self.lengths)
        said = {
            "measured": "measured at this length",
            "interpolated": f"interpolated between {where}",
            "extrapolated": f"extrapolated from {where} by its order of cost",
        }[self.kind]
        if not self.encoder:
            said += ", of another encoder or task"
        if self.scaled is None:
            return f"{said}; times of {self.machine.words}, not scaled"
        return said if self.scaled == 1 else f"{said}; times of {self.machine.words} × {self.scaled:.2f}"


@dataclass(frozen=True)
class Estimate:
    """A cost with its range."""

    value: float
    low: float
    high: float
    basis: Basis


@dataclass
class Estimator:
    """Estimates costs from measured points.

    pairs: whether a cost of a variant, by its label, has a part that grows with the square of the length.
    ratios, known: what was computed so far.
    """

    points: Sequence[Point]
    pairs: Callable[[str, Cost], bool]
    ratios: dict[tuple[Machine, Machine], float | None] = field(init=False, default_factory=dict)
    known: dict[tuple[Cost, Shape, Machine], Estimate | None] = field(init=False, default_factory=dict)

    @cached_property
    def by_label(self) -> dict[tuple[str, str], list[Point]]:
        found: dict[tuple[str, str], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.shape.label, point.shape.same), []).append(point)
        return found

    def ratio(self, wanted: Machine, other: Machine) -> float | None:
        """Time on a wanted machine over time on another one, as the median over shapes that both measured; None where
        they share too few."""
        if wanted == other:
            return 1.0
        if (wanted, other) not in self.ratios:
            timed = [point for point in self.points if "step" in point.values]
            here, there = ({p.shape: p.median("step") for p in timed if p.machine == m} for m in (wanted, other))
            shared = [here[shape] / there[shape] for shape in here if shape in there]
            self.ratios[wanted, other] = statistics.median(shared) if len(shared) >= FEWEST_SHARED else None
        return self.ratios[wanted, other]

    def estimate(self, cost: Cost, shape: Shape, machine: Machine) -> Estimate | None:
        """The cost of a micro-batch on a machine; None where no record has this variant under these switches, or only
        records of one length, from which a quadratic cost cannot be extrapolated."""
        key = cost, shape, machine
        if key not in self.known:
            points = [point for point in self.by_label.get((shape.label, shape.same), []) if cost in point.values]
            compute = self.forward if cost == "forward" else self.by_law
            self.known[key] = compute(cost, points, shape, machine) if points else None
        return self.known[key]

    def forward(self, _: Cost, points: Sequence[Point], shape: Shape, machine: Machine) -> Estimate | None:
        """The nearest share of a forward in a step, of the step."""
        both = [point for point in points if "step" in point.values]
        step = self.estimate("step", shape, machine)
        if not both or step is None:
            return None
        nearest = min(both, key=lambda p: distance("forward", p, shape, machine, self.ratio(machine, p.machine)))
        share = nearest.median("forward") / nearest.median("step")
        return Estimate(step.value * share, step.low * share, step.high * share, step.basis)

    def by_law(self, cost: Cost, points: Sequence[Point], shape: Shape, machine: Machine) -> Estimate | None:
        """The law of the cost, at the level of the nearest points."""
        scales = {p.machine: self.ratio(machine, p.machine) if cost in TIMED else 1.0 for p in points}
        far = {id(p): distance(cost, p, shape, machine, scales[p.machine]) for p in points}
        known = [(p.shape, p.median(cost) * (scales[p.machine] or 1.0), far[id(p)] ** -CLOSER) for p in points]
        law = fit(cost, known, pairs=self.pairs(shape.label, cost))
        nearest = min(points, key=lambda p: far[id(p)])
        alike = [p for p in points if p.machine == nearest.machine and p.shape.near == nearest.shape.near]
        anchors = around(cost, alike, shape)
        kind = kind_of(anchors, shape)
        if kind == "extrapolated" and self.pairs(shape.label, cost) and len({p.shape.seq_len for p in points}) == 1:
            return None
        scale = scales[nearest.machine]
        levels = [math.log(p.median(cost) * (scale or 1.0) / law(p.shape)) for p in anchors]
        value = law(shape) * math.exp(between(anchors, levels, shape))
        folders = tuple(sorted({folder for p in anchors for folder in p.folders}))
        lengths = tuple(p.shape.seq_len for p in anchors)
        basis = Basis(kind, lengths, nearest.shape.near == shape.near, nearest.machine, scale, folders)
        width = width_of(cost, anchors, shape, machine, scale)
        return Estimate(value, value / width, value * width, basis)


def fit(cost: Cost, known: Sequence[tuple[Shape, float, float]], *, pairs: bool) -> Callable[[Shape], float]:
    """The law of a cost: weights of at least 0 for its terms, with the least squares of relative errors.

    Where the records leave a choice, as when all have one width, the cost grows with its first term.

    Args:
        known: shapes, their costs, and the weights of these.
        pairs: whether the law has the term of pairs of positions.
    """
    terms = TERMS[cost]
    last = None if pairs else -1
    taken = [
        *known,
        *(
            (other, value * terms(other)[0] / terms(shape)[0], PRIOR * weight)
            for shape, value, weight in known
            for other in (
                replace(shape, batch=4 * shape.batch),
                replace(shape, d_model=4 * shape.d_model),
                replace(shape, classes=4 * shape.classes),
            )
        ),
    ]
    matrix = np.array([[weight * term / value for term in terms(shape)[:last]] for shape, value, weight in taken])
    sizes = np.maximum(matrix.max(axis=0), TINY)
    weights = nnls(matrix / sizes, np.array([weight for *_, weight in taken]))[0] / sizes
    weights[0] = max(weights[0], LEAST * min(value / terms(shape)[0] for shape, value, _ in known))
    return lambda shape: float(np.dot(weights, terms(shape)[:last]))


def distance(cost: Cost, point: Point, shape: Shape, machine: Machine, scale: float | None) -> float:
    """The factor by which a point at another shape, or on another machine, widens the range of an estimate.

    scale: time on the wanted machine over time on that of the point; None = unknown.
    """
    other = point.shape
    far: float = apart(other.seq_len, shape.seq_len) ** BEYOND * apart(other.batch, shape.batch) ** BEYOND
    if other.near != shape.near:
        far *= OTHER_ENCODER * apart(other.d_model, shape.d_model) ** BEYOND
    if cost in TIMED and scale != 1.0:
        far *= SCALED if scale is not None else UNSCALED * apart(point.machine.threads, machine.threads)
    return far


def apart(a: float, b: float) -> float:
    """The ratio of two sizes, the larger one above."""
    return max(a / b, b / a)


def around(cost: Cost, points: Sequence[Point], shape: Shape) -> list[Point]:
    """The points at the wanted length, or at the nearest length below and above it; of each the nearest batch."""
    sides = (
        [p for p in points if p.shape.seq_len <= shape.seq_len],
        [p for p in points if p.shape.seq_len >= shape.seq_len],
    )
    chosen = [min(side, key=lambda p: distance(cost, p, shape, p.machine, 1.0)) for side in sides if side]
    return chosen[:1] if len({p.shape.seq_len for p in chosen}) == 1 else chosen


def between(anchors: Sequence[Point], levels: Sequence[float], shape: Shape) -> float:
    """The level at the wanted length, on a straight line over the logarithm of the length."""
    lengths = [math.log(p.shape.seq_len) for p in anchors]
    return float(np.interp(math.log(shape.seq_len), lengths, levels))


def kind_of(anchors: Sequence[Point], shape: Shape) -> Literal["measured", "interpolated", "extrapolated"]:
    if len(anchors) == 2:
        return "interpolated"
    return "measured" if anchors[0].shape.seq_len == shape.seq_len else "extrapolated"


def width_of(cost: Cost, anchors: Sequence[Point], shape: Shape, machine: Machine, scale: float | None) -> float:
    """The factor from an estimate up and down to the ends of its range."""
    seen = max(max(p.values[cost]) / min(p.values[cost]) for p in anchors)
    nearest = min(distance(cost, p, shape, machine, scale) for p in anchors)
    return max(NOISE[cost], math.sqrt(seen)) * nearest
