"""The arithmetic of few seeds: means and paired differences with 95 % intervals, and many verdicts at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

ENOUGH_SEEDS = 3
SIGNIFICANT = 0.05
CERTAIN = 10**6  # degrees of freedom of what is not estimated from seeds
LEAST = 1e-12  # differences up to this are rounding


class Estimate(NamedTuple):
    """A mean over n seeds and the half-width of its 95 % t interval (None from a single seed)."""

    mean: float
    half: float | None
    n: int


class Difference(NamedTuple):
    """A mean paired difference over n shared seeds, the half-width of its 95 % interval (None from a single seed),
    and whether it is beyond noise, judged together with the others of its family."""

    mean: float
    half: float | None
    n: int
    beyond: bool


def t95(degrees: float) -> float:
    """The two-sided 95 % point of Student's t."""
    return float(stdtrit(degrees, 1 - SIGNIFICANT / 2))


def t_tails(t: float, degrees: float) -> float:
    """How likely Student's t is beyond t on either side."""
    return float(2 * stdtr(degrees, -abs(t)))


def estimate(values: Sequence[float]) -> Estimate | None:
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return Estimate(float(values[0]), None, 1)
    half = t95(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(float(np.mean(values)), half, n)


def binomial_half(score: float, size: float) -> float:
    """95 % half-width of a share counted over `size` independent predictions."""
    return 1.96 * math.sqrt(max(score * (1 - score), 0.0) / size)


def paired_noise(scores: Iterable[float], size: float | None) -> float:
    """Standard error that a test set of `size` predictions leaves in the difference of two scores on it.

    Of predictions paired on one test set only those count that one model has right and the other wrong. How many
    these are is not in the records. What is taken is the number if the two were right independently of one another:
    the sum of both binomial variances. Models find the same samples hard, so the truth is below it, and noise is
    rather over- than understated. 0 where the size is not known.
    """
    return math.sqrt(sum(max(score * (1 - score), 0.0) for score in scores) / size) if size else 0.0


def paired(values: Sequence[float], noise: float = 0.0) -> tuple[Estimate, float] | None:
    """Mean and interval of differences over seeds, and how likely a mean as far from 0 is where there is none.

    All seeds are tested on one test set, so its luck does not show in their spread: it comes on top. Both variances
    are added (never less than either), with the degrees of freedom of Welch and Satterthwaite.

    Args:
        values: one difference for each shared seed.
        noise: standard error from the test set itself, from `paired_noise`.
    """
    n = len(values)
    if n == 0:
        return None
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, None, 1), 1.0
    own = float(np.var(values, ddof=1)) / n
    total = own + noise**2
    degrees = CERTAIN if own < LEAST * total or total == 0 else int((n - 1) * (total / own) ** 2)
    error = math.sqrt(total)
    chance = 1.0 if abs(mean) < LEAST else 0.0 if error < LEAST else t_tails(mean / error, degrees)
    return Estimate(mean, t95(degrees) * error, n), chance


def discoveries(chances: Mapping[str, float]) -> set[str]:
    """The names that stand out, by the method of Benjamini and Hochberg: of those named, one in twenty is so by chance
    on average, at the most; and where none differs, any is named in one of twenty reports.

    Holm's method, which also bounds the chance of a single false name among true ones, would ask three seeds of 22
    variants for t = 20.9: it would call 18 % and 100 % the same.
    """
    ranked = sorted(chances, key=lambda name: chances[name])
    last = max(
        (rank for rank, name in enumerate(ranked, 1) if chances[name] <= SIGNIFICANT * rank / len(ranked)), default=0
    )
    return set(ranked[:last])


def judge(families: Mapping[str, tuple[Sequence[float], float]]) -> dict[str, Difference]:
    """Paired differences and which of them are beyond noise: judged together, all with enough seeds.

    Args:
        families: under each name, one difference for each shared seed, and the standard error from the test set.
    """
    found = {name: pair for name, (values, noise) in families.items() if (pair := paired(values, noise))}
    beyond = discoveries({name: chance for name, (mean, chance) in found.items() if mean.n >= ENOUGH_SEEDS})
    return {name: Difference(*mean, name in beyond) for name, (mean, _) in found.items()}


def in_points(found: Estimate | Difference, factor: float = 100, decimals: int = 1) -> str:
    """A difference of scores, in percentage points where nothing else is said, with its sign: "−4.1 ± 1.2"."""
    half = "" if found.half is None else f" ± {factor * found.half:.{decimals}f}"
    return f"{round(factor * found.mean, decimals) or 0.0:+.{decimals}f}{half}".replace("-", "−")
