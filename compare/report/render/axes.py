"""Axes with round ticks."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes

from compare.report.facts.scale import Scale

TICKS_APART = 0.12  # least distance between ticks, as a share of the axis: room for a label
TICK_STEPS = (
    *((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)),
    tuple(np.arange(10, 100) / 10),
)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round positions on a logarithmic axis: three to eight where possible, with room for their labels."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    apart = (high / low) ** TICKS_APART
    kept: list[float] = []
    for steps in TICK_STEPS:
        kept = []
        for tick in (step * 10.0**power for power in powers for step in steps):
            if low <= tick <= high and (not kept or tick >= kept[-1] * apart):
                kept.append(tick)
        if len(kept) >= 3:
            break
    return kept if len(kept) > 1 else [low, high]


def memory_ticks(low: float, high: float) -> list[float]:
    """Powers of two, at most eight; round numbers of the unit where the axis holds fewer than three powers."""
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    if len(powers) < 3:
        unit = 1024.0 ** (max(0.0, math.log2(high)) // 10)
        return [unit * tick for tick in nice_ticks(low / unit, high / unit)]
    return [2.0**power for power in powers[:: math.ceil(len(powers) / 8)]]


def log_ticks(axes: Axes, which: str, ticks: Sequence[float], show: Callable[[float], str]) -> None:
    """Make one axis ("x" or "y") logarithmic, with these ticks only."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks([], minor=True)
    axis.set_ticks(ticks, labels=[show(tick) for tick in ticks])


def score_axis(axes: Axes, words: str, values: Sequence[float], scale: Scale) -> None:
    """Make the y axis an axis of scores, with the best at its top."""
    least, most = (0.0, 1.0) if scale.is_fraction else (-math.inf, math.inf)
    low, high = max(min(values), least), min(max(values), most)
    pad = max(0.08 * (high - low), 0.01)  # room for a marker at 0 or 100 %
    axes.set_ylim(*(low - pad, high + pad)[:: scale.sign])
    inside = least - 1e-9, most + 1e-9
    axes.yaxis.set_major_formatter(
        lambda value, _: f"{scale.factor * value:.3g}" if inside[0] < value < inside[1] else ""
    )
    axes.set_ylabel(scale.axis(words))
