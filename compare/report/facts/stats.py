"""The arithmetic of few seeds: means and paired differences with 95 % intervals, and many verdicts at once."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtr, stdtrit

ENOUGH_SEEDS = 3
SIGNIFICANT = 0.05
CERTAIN = 10**6  # degrees of freedom of what is not estimated from seeds
UNBOUNDED = (-math.inf, math.inf)
SOLVED, FAR = 0.9, 0.5  # of the gain that the best run has over the best trivial predictor
APART = 0.2  # of a score
LEAST = 1e-12  # differences up to this are rounding


class Estimate(NamedTuple):
    """A mean over n seeds and the half-width of its 95 % t interval (None from a single seed).

    bounds: of what was measured. solved: how many of the seeds solved the task, where some did and others did not: then
    neither the mean nor its interval says what to expect of a seed.
    """

    mean: float
    half: float | None
    n: int
    bounds: tuple[float, float] = UNBOUNDED
    solved: int | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval; the mean twice where there is none."""
        return cut_interval(self.mean, self.half, self.bounds)

    @property
    def is_cut(self) -> bool:
        """Whether the bounds cut the interval, so that it is not as long on either side."""
        return self.ends != cut_interval(self.mean, self.half, UNBOUNDED)


class Difference(NamedTuple):
    """A mean paired difference over n shared seeds, the half-width of its 95 % interval (None from a single seed),
    and whether it is beyond noise, judged together with the others of its family.

    solved: how many of the seeds solved the task on either side, where the seeds of one side fall apart.
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
    """How many shared seeds solved a task on either side, and how likely it is by chance that these differ so."""

    mine: int
    theirs: int
    chance: float


def cut_interval(mean: float, half: float | None, bounds: tuple[float, float]) -> tuple[float, float]:
    """The ends of an interval, cut at the bounds of what was measured.

    The mean of what lies within bounds lies within them: what is cut off could not hold it, so the interval covers it
    as often as before. As the mean of the seeds lies within them too, something is always left (Mandelkern 2002,
    doi:10.1214/ss/1030550859, warns of data for which cutting leaves nothing).
    """
    half = half or 0.0
    return max(mean - half, min(bounds[0], mean)), min(mean + half, max(bounds[1], mean))


def solved_by(scores: Iterable[float], floor: float, top: float) -> list[bool]:
    """Which scores solve a task: those with at least 90 % of the gain that the best run of the table has over the best
    trivial predictor.

    Args:
        scores: of seeds.
        floor: of the best trivial predictor; 0 where there is none.
        top: of the best run.
    """
    return [score - floor >= SOLVED * (top - floor) for score in scores]


def fall_apart(scores: Sequence[float], floor: float, top: float) -> bool:
    """Whether seeds fall into solved and not: at least one solves the task, and at least one has less than half of the
    gain and 20 points less than another."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    return any(solved_by(scores, floor, top)) and low - floor < FAR * (top - floor) and high - low >= APART


def sign_test(mine: Sequence[bool], theirs: Sequence[bool]) -> Split:
    """The exact test of McNemar (1947, doi:10.1007/BF02295996) on seeds of which just one side solved the task: either
    side is as likely where there is no difference."""
    won = sum(own and not other for own, other in zip(mine, theirs, strict=True))
    lost = sum(other and not own for own, other in zip(mine, theirs, strict=True))
    chance = min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5))) if won + lost else 1.0
    return Split(sum(mine), sum(theirs), chance)


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


def judge(
    families: Mapping[str, tuple[Sequence[float], float]],
    aside: Collection[str] = (),
    splits: Mapping[str, Split] | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
) -> dict[str, Difference]:
    """Paired differences and which of them are beyond noise: judged together, all with enough seeds.

    Args:
        families: under each name, one difference for each shared seed, and the standard error from the test set.
        aside: names that are no members of the family, as controls: each is judged by itself, and makes no verdict on
            another stricter or milder.
        splits: names whose seeds fall into solved and not, on either side: the t test, which takes noise for normal,
            gives way to the exact one on these counts.
        bounds: of a difference.
    """
    splits = splits or {}
    found = {name: pair for name, (values, noise) in families.items() if (pair := paired(values, noise))}
    chances = {
        name: splits[name].chance if name in splits else chance
        for name, (mean, chance) in found.items()
        if mean.n >= ENOUGH_SEEDS
    }
    beyond = discoveries({name: chance for name, chance in chances.items() if name not in aside})
    beyond |= {name for name in aside if name in chances and chances[name] <= SIGNIFICANT}
    solved = {name: (split.mine, split.theirs) for name, split in splits.items()}
    return {
        name: Difference(mean.mean, mean.half, mean.n, name in beyond, bounds, solved.get(name))
        for name, (mean, _) in found.items()
    }


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices, by rising x, of the points that no other point beats: both coordinates better when larger."""
    best = -math.inf
    front = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], points[i][1]), reverse=True):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front[::-1]
