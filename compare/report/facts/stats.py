"""Statistics of few seeds: means and paired differences with 95 % intervals, and many verdicts at once."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

ENOUGH_SEEDS = 3
SIGNIFICANT = 0.05
CERTAIN = 10**6  # degrees of freedom of an error that is not estimated from seeds
UNBOUNDED = (-math.inf, math.inf)
SOLVED, FAR = 0.9, 0.5  # shares of the gain that the best run has over the best trivial predictor
APART = 0.2  # difference between two scores
LEAST = 1e-12  # differences up to this are rounding errors


class Estimate(NamedTuple):
    """A mean over n seeds and the half-width of its 95 % t interval (None from a single seed).

    bounds: of the measured quantity. solved: how many seeds solved the task, where some did and others were far off:
    then neither the mean nor its interval predicts a seed. None elsewhere.
    """

    mean: float
    half: float | None
    n: int
    bounds: tuple[float, float] = UNBOUNDED
    solved: int | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the interval; the mean twice without one."""
        return cut_interval(self.mean, self.half, self.bounds)

    @property
    def is_cut(self) -> bool:
        """Whether the bounds cut the interval, which is then shorter on one side."""
        return self.ends != cut_interval(self.mean, self.half, UNBOUNDED)


class Difference(NamedTuple):
    """A mean paired difference over n shared seeds, the half-width of its 95 % interval (None from a single seed),
    and whether it is beyond noise, tested together with the others of its family.

    solved: how many seeds solved the task on either side, where some seeds of one side did and others were far off.
    """

    mean: float
    half: float | None
    n: int
    beyond: bool
    bounds: tuple[float, float] = UNBOUNDED
    solved: tuple[int, int] | None = None

    @property
    def ends(self) -> tuple[float, float]:
        return cut_interval(self.mean, self.half, self.bounds)

    @property
    def is_cut(self) -> bool:
        return self.ends != cut_interval(self.mean, self.half, UNBOUNDED)


class Split(NamedTuple):
    """How many shared seeds solved a task on either side, and the p-value of that difference."""

    mine: int
    theirs: int
    chance: float


def cut_interval(mean: float, half: float | None, bounds: tuple[float, float]) -> tuple[float, float]:
    """The ends of an interval, cut at the bounds of what was measured.

    The true mean of a bounded quantity lies within the bounds. The part that is cut off cannot hold it, so the coverage
    stays the same. The mean of the seeds lies within the bounds too, so a part of the interval always remains
    (Mandelkern 2002, doi:10.1214/ss/1030550859, warns of data for which cutting leaves nothing).
    """
    half = half or 0.0
    return max(mean - half, min(bounds[0], mean)), min(mean + half, max(bounds[1], mean))


def solved_by(scores: Iterable[float], floor: float, top: float) -> list[bool]:
    """Whether each score solves the task: reaches 90 % of the gain that the table's best run has over the best trivial
    predictor.

    Args:
        scores: the scores of seeds.
        floor: the score of the best trivial predictor; 0 without one.
        top: the score of the best run.
    """
    return [score - floor >= SOLVED * (top - floor) for score in scores]


def fall_apart(scores: Sequence[float], floor: float, top: float) -> bool:
    """Whether some seeds solve the task and others are far off: at least one solves it, and at least one has less than
    half of the gain and 20 points less than another."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return any(solved_by(scores, floor, top)) and low - floor < FAR * (top - floor) and high - low >= APART


def sign_test(mine: Sequence[bool], theirs: Sequence[bool]) -> Split:
    """The exact test of McNemar (1947, doi:10.1007/BF02295996) on the seeds for which only one side solved the task:
    without a difference, either side is equally likely."""
    won = sum(own and not other for own, other in zip(mine, theirs, strict=True))
    lost = sum(other and not own for own, other in zip(mine, theirs, strict=True))
    chance = min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5))) if won + lost else 1.0
    return Split(sum(mine), sum(theirs), chance)


def t95(degrees: float) -> float:
    """The two-sided 95 % point of Student's t."""
    return float(stdtrit(degrees, 1 - SIGNIFICANT / 2))


def t_tails(t: float, degrees: float) -> float:
    """The two-sided p-value of t."""
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
    """Half-width of the 95 % interval of a share of `size` independent predictions."""
    return 1.96 * math.sqrt(max(score * (1 - score), 0.0) / size)


def paired_noise(scores: Iterable[float], size: float | None) -> float:
    """Standard error of the difference of two scores that comes from a test set of `size` predictions.

    Only predictions that one model has right and the other wrong contribute. The records do not say how many these are,
    so this takes their number for two independent models: the sum of both binomial variances. Models find the same
    samples hard, so the true error is smaller, and the noise is rather overstated. 0 for an unknown size.
    """
    return math.sqrt(sum(max(score * (1 - score), 0.0) for score in scores) / size) if size else 0.0


def paired(values: Sequence[float], noise: float = 0.0) -> tuple[Estimate, float] | None:
    """Mean and interval of differences over seeds, and the p-value of that mean.

    All seeds share one test set, so their spread does not show its sampling noise. Both variances are added (never less
    than either), with the degrees of freedom of Welch and Satterthwaite.

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
    """The names that are significant by the method of Benjamini and Hochberg.

    On average at most one in twenty of them is due to chance; if none differs in truth, one report in twenty names any.
    Holm's method, which bounds the chance of even one false name, would need t = 20.9 for three seeds of 22 variants:
    it would find no difference between 18 % and 100 %.

    Args:
        chances: name -> the p-value of its test.
    """
    from scipy.stats import false_discovery_control  # takes a second to import; a report of fewer seeds needs none

    adjusted = false_discovery_control(list(chances.values())) if chances else ()
    return {name for name, chance in zip(chances, adjusted, strict=True) if chance <= SIGNIFICANT}


def judge(
    families: Mapping[str, tuple[Sequence[float], float]],
    aside: Collection[str] = (),
    splits: Mapping[str, Split] | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
) -> dict[str, Difference]:
    """Paired differences, with those beyond noise among all that have enough seeds, tested together.

    Args:
        families: name -> one difference for each shared seed, and the standard error from the test set.
        aside: names outside the family, such as controls: each is tested alone and does not change other verdicts.
        splits: for names of which some seeds solve the task and others are far off, the exact test on these counts,
            which replaces the t test: t assumes normal noise.
        bounds: of a difference.
    """
    splits = splits or {}
    pairs = {name: pair for name, (values, noise) in families.items() if (pair := paired(values, noise))}
    chances = {
        name: splits[name].chance if name in splits else chance
        for name, (mean, chance) in pairs.items()
        if mean.n >= ENOUGH_SEEDS
    }
    beyond = discoveries({name: chance for name, chance in chances.items() if name not in aside})
    beyond |= {name for name in aside if name in chances and chances[name] <= SIGNIFICANT}
    solved = {name: (split.mine, split.theirs) for name, split in splits.items()}
    return {
        name: Difference(mean.mean, mean.half, mean.n, name in beyond, bounds, solved.get(name))
        for name, (mean, _) in pairs.items()
    }


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising x, of the points that no other point beats; larger is better in both coordinates."""
    best = -math.inf
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1]), reverse=True):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]
