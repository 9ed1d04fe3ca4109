"""Moderated t tests of few seeds, which share estimates of their noise (Smyth 2004, doi:10.2202/1544-6115.1027)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import digamma, polygamma, stdtr, stdtrit

from compare.report.facts.stats import SIGNIFICANT


class Evidence(NamedTuple):
    """A mean change, a variance with its degrees of freedom, and the squared error of the mean as a share of it."""

    change: float
    variance: float
    degrees: float
    share: float


class Tested(NamedTuple):
    """A mean change, the half-width of its 95 % interval, and its p-value."""

    change: float
    half: float
    chance: float


def moderate(evidence: Sequence[Evidence]) -> list[Tested]:
    """t tests with variances shrunk towards a common one, the more the better they agree with it (Smyth 2004)."""
    variances, degrees = (np.array([getattr(each, name) for each in evidence]) for name in ("variance", "degrees"))
    middle = float(np.median(variances)) if len(evidence) else 0.0
    if len(evidence) > 1 and middle > 0:
        logs = np.log(np.maximum(variances, 1e-5 * middle)) - digamma(degrees / 2) + np.log(degrees / 2)
        excess = float(np.var(logs, ddof=1) - np.mean(polygamma(1, degrees / 2)))
        total = float(degrees.sum())
        if excess > 0:
            prior = 2 * inverse_trigamma(excess)
            common = math.exp(float(np.mean(logs)) + float(digamma(prior / 2)) - math.log(prior / 2))
            variances = (prior * common + degrees * variances) / (prior + degrees)
            degrees = np.minimum(prior + degrees, total)
        else:
            variances = np.full(len(evidence), float(np.average(variances, weights=degrees)))
            degrees = np.full(len(evidence), total)
    tested = []
    for each, variance, freedom in zip(evidence, variances, degrees, strict=True):
        error = math.sqrt(variance * each.share)
        half = float(stdtrit(freedom, 1 - SIGNIFICANT / 2)) * error
        chance = (
            1.0 if each.change == 0 else 0.0 if error == 0 else 2 * float(stdtr(freedom, -abs(each.change) / error))
        )
        tested.append(Tested(each.change, half, chance))
    return tested


def inverse_trigamma(value: float) -> float:
    """The inverse of trigamma, by Newton's method on 1 / trigamma, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-10 * x:
            break
    return x


def holm(chances: Sequence[float]) -> float:
    """The largest significant p-value by Holm's method, with a family-wise error of 5 %; -1 if none is significant."""
    limit = -1.0
    for rank, chance in enumerate(sorted(chances)):
        if chance * (len(chances) - rank) > SIGNIFICANT:
            break
        limit = chance
    return limit
