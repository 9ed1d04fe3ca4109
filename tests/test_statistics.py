"""What the report's arithmetic promises, on records whose truth is known: coverage, error rates, power."""

import math
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from compare.report.facts.groups import CONTROL_FAMILY, Group, Row
from compare.report.facts.stats import (
    Difference,
    Estimate,
    binomial_half,
    discoveries,
    estimate,
    judge,
    paired,
    paired_noise,
    sign_test,
    t95,
    t_tails,
)
from compare.report.sections.answer import clearly, is_within
from compare.report.sections.results import verdict
from compare.report.sections.wording import score_text
from tests.drawn import sentences_of

DRAWS = 2000
SPREAD = 0.02  # of a score over seeds


def group_of(
    scores: Mapping[str, Sequence[float]],
    test_size: int | None = None,
    *,
    metric: str | None = None,
    baselines: Mapping[str, float] | None = None,
    controls: Collection[str] = (),
) -> Group:
    """A group with these scores, one for each seed."""
    record = {"status": "ok", "test_size": test_size, "metric": metric, "baselines": baselines}

    def family(name: str) -> str:
        return CONTROL_FAMILY if name in controls else "kernel"

    rows = (
        Row(name, "", name, family(name), (record,), {str(seed): float(score) for seed, score in enumerate(values)})
        for name, values in scores.items()
    )
    return Group("task", 64, "", "", "", "", {}, tuple(rows))


def draw(rng: np.random.Generator, seeds: int, truth: Sequence[float]) -> NDArray[np.float64]:
    """Scores of variants (K, seeds) around their true means; what a seed shares, as its data order, moves all alike."""
    return np.array(truth)[:, None] + rng.normal(0, SPREAD, (len(truth), seeds)) + rng.normal(0, SPREAD, seeds)


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042), (61, 2.000), (121, 1.980)])
def test_interval_is_students(n: int, t: float) -> None:
    values = [float(value) for value in np.linspace(0, 1, n)]
    found = estimate(values)
    assert found is not None
    assert found.half is not None
    assert found.mean == pytest.approx(0.5)
    assert found.half == pytest.approx(t * np.std(values, ddof=1) / math.sqrt(n), rel=1e-3)


@pytest.mark.parametrize("degrees", [*range(1, 31), 60, 150, 199, 201, 10**6])
def test_tails_are_students(degrees: int) -> None:
    assert t_tails(0.0, degrees) == pytest.approx(1)
    assert t_tails(t95(degrees), degrees) == pytest.approx(0.05, rel=0.03)
    assert t_tails(-3.0, degrees) == t_tails(3.0, degrees) < t_tails(2.0, degrees)


def test_tails_of_one_and_two_degrees_have_closed_forms() -> None:
    for t in (0.3, 2.0, 20.0, 300.0):
        assert t_tails(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-6)
        assert t_tails(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)


def test_one_seed_has_no_interval_and_none_no_estimate() -> None:
    assert estimate([0.4]) == Estimate(0.4, None, 1)
    assert estimate([]) is None
    assert paired([]) is None
    assert judge({"a": ([0.1], 0.01), "b": ([], 0.01)}) == {"a": Difference(0.1, None, 1, False)}


def test_binomial_noise() -> None:
    assert binomial_half(0.5, 2000) == pytest.approx(0.0219, abs=1e-4)
    assert binomial_half(0.5, 10_000) == pytest.approx(0.0098, abs=1e-4)
    assert 1.96 * paired_noise((0.5, 0.5), 2000) == pytest.approx(math.sqrt(2) * 0.0219, abs=1e-4)
    assert paired_noise((0.5, 0.5), None) == 0


def test_a_difference_is_never_surer_than_the_test_set_or_the_seeds_allow() -> None:
    noise = paired_noise((0.5, 0.5), 2000)
    for values in ([0.01, 0.01, 0.01], [0.01, 0.012, 0.011], [0.0, 0.05, 0.1]):
        alone, both = paired(values), paired(values, noise)
        assert alone is not None
        assert both is not None
        assert alone[0].half is not None
        assert both[0].half is not None
        assert both[0].half >= 0.99 * 1.96 * noise
        assert both[0].half > 0.6 * alone[0].half
    assert group_of({"full": [0.5] * 3, "linear": [0.51] * 3}, 2000).against_full["linear"].beyond is False
    assert group_of({"full": [0.5] * 3, "linear": [0.51] * 3}, 200_000).against_full["linear"].beyond is True


def test_equal_scores_are_no_difference() -> None:
    assert group_of({"full": [1.0] * 3, "naive": [1.0] * 3}, 3000).against_full["naive"] == Difference(
        0.0, 0.0, 3, False, (-1.0, 1.0)
    )


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_95_percent_intervals_cover_the_truth_in_95_percent(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    means = differences = 0
    for _ in range(DRAWS):
        full, linear = draw(rng, seeds, [0.6, 0.57])
        mean = estimate(list(linear))
        found = group_of({"full": full, "linear": linear}).against_full["linear"]
        assert mean is not None
        assert mean.half is not None
        assert found.half is not None
        means += abs(mean.mean - 0.57) <= mean.half
        differences += abs(found.mean + 0.03) <= found.half
    assert 0.935 <= means / DRAWS <= 0.965
    assert 0.935 <= differences / DRAWS <= 0.965


def test_intervals_cover_the_truth_beyond_the_test_set_that_all_seeds_share() -> None:
    """Both models are right with the same chance over all samples there are, and find some of them hard; a test set
    holds 300 of them."""
    rng = np.random.default_rng(0)
    covered = blind = 0
    for _ in range(DRAWS // 2):
        common = rng.normal(0.5, 1.5, 300)
        chances = 1 / (1 + np.exp(-(common + rng.normal(0, 1.5, (2, 300)))))  # (models, samples)
        full, linear = (rng.random((2, 5, 300)) < chances[:, None]).mean(axis=-1)  # (seeds,)
        found = group_of({"full": full, "linear": linear}, 300).against_full["linear"]
        alone = group_of({"full": full, "linear": linear}).against_full["linear"]
        assert found.half is not None
        assert alone.half is not None
        covered += abs(found.mean) <= found.half
        blind += abs(alone.mean) <= alone.half
    assert covered / (DRAWS // 2) >= 0.945
    assert blind / (DRAWS // 2) < 0.85


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("variants", [1, 4, 22])
def test_where_nothing_differs_a_report_names_anyone_in_5_percent(seeds: int, variants: int) -> None:
    rng = np.random.default_rng(seeds)
    draws = DRAWS // 4
    wrong = 0
    for _ in range(draws):
        scores = draw(rng, seeds, [0.6] * (variants + 1))
        group = group_of(dict(zip(["full", *(f"v{i}" for i in range(variants))], scores, strict=True)))
        wrong += any("points" in verdict(found) for found in group.against_full.values())
    assert wrong / draws <= 0.075
    assert variants > 1 or wrong / draws >= 0.025


def test_of_the_variants_named_at_most_one_in_twenty_is_named_by_chance() -> None:
    rng = np.random.default_rng(0)
    truth = [0.6, *[0.6] * 11, *[0.45] * 11]
    names = ["full", *(f"same{i}" for i in range(11)), *(f"worse{i}" for i in range(11))]
    shares, found_worse = [], []
    for _ in range(DRAWS // 4):
        found = group_of(dict(zip(names, draw(rng, 5, truth), strict=True))).against_full
        named = [name for name, difference in found.items() if difference.beyond]
        shares.append(sum(name.startswith("same") for name in named) / max(len(named), 1))
        found_worse.append(sum(name.startswith("worse") for name in named) / 11)
        assert all(found[name].mean < 0 for name in named if name.startswith("worse"))
    assert float(np.mean(shares)) <= 0.05
    assert float(np.mean(found_worse)) >= 0.97


def test_discoveries_are_those_of_benjamini_and_hochberg() -> None:
    chances = (0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205, 0.212, 0.216)
    assert discoveries({str(chance): chance for chance in chances}) == {"0.001", "0.008"}
    assert discoveries({"a": 0.04, "b": 0.049}) == {"a", "b"}
    assert discoveries({"a": 0.04, "b": 0.051}) == set()
    assert discoveries({}) == set()


@pytest.mark.parametrize(("behind", "least", "most"), [(0.0, 0.0, 0.07), (0.3, 0.97, 1.0)])
def test_a_leader_is_declared_where_there_is_one(behind: float, least: float, most: float) -> None:
    rng = np.random.default_rng(1)
    draws, claims = DRAWS // 4, 0
    for _ in range(draws):
        scores = draw(rng, 3, [0.6, 0.6 - behind, 0.6 - behind])
        lines = sentences_of(group_of(dict(zip(("full", "linear", "local"), scores, strict=True))))
        claims += lines[0].startswith("Most accurate: full" if behind else "Most accurate")
    assert least <= claims / draws <= most


@pytest.mark.parametrize(("truth", "least", "most"), [(-0.01, 0.0, 0.04), (0.0, 0.9, 1.0)])
def test_only_what_is_not_worse_by_a_point_is_called_as_good(truth: float, least: float, most: float) -> None:
    rng = np.random.default_rng(2)
    draws = DRAWS // 2
    called = 0
    for _ in range(draws):
        full = 0.6 + rng.normal(0, 0.05, 5)
        found = group_of({"full": full, "linear": full + truth + rng.normal(0, 0.005, 5)}).against_full["linear"]
        called += is_within(found)
    assert least <= called / draws <= most


def test_two_seeds_allow_no_verdict() -> None:
    found = group_of({"full": [0.6, 0.6], "linear": [0.3, 0.3]}).against_full["linear"]
    assert not found.beyond
    assert not is_within(found)
    assert verdict(found).startswith("no verdict: 2 shared seeds")


def test_verdicts_are_plain_words() -> None:
    full = [0.60, 0.61, 0.62]
    scores = {"full": full, "below": [0.55, 0.57, 0.58], "level": [0.61, 0.60, 0.62], "above": [0.64, 0.65, 0.659]}
    found = group_of(scores).against_full
    assert verdict(found["below"]) == "4.3 ± 1.4 points below full"
    assert verdict(found["above"]) == "4.0 ± 0.1 points above full"
    assert verdict(found["level"]) == "within noise of full (+0.0 ± 2.5)"
    cut = Difference(-0.99, 0.03, 3, beyond=True, bounds=(-1.0, 1.0))
    assert verdict(cut) == "99.0 (96.0 to 100.0) points below full"
    assert verdict(cut._replace(mean=0.99)) == "99.0 (96.0 to 100.0) points above full"


def test_what_is_cut_off_by_bounds_costs_no_coverage() -> None:
    rng = np.random.default_rng(3)
    covered = uncut = 0
    for _ in range(DRAWS):
        found = estimate(list(1 - np.abs(rng.normal(0, 0.02, 3))))
        assert found is not None
        low, high = found._replace(bounds=(0.0, 1.0)).ends
        assert 0 <= low <= found.mean <= high <= 1
        truth = 1 - 0.02 * math.sqrt(2 / math.pi)
        covered += low <= truth <= high
        uncut += found.ends[0] <= truth <= found.ends[1]
    assert covered == uncut
    assert covered / DRAWS >= 0.9


@pytest.mark.parametrize("scores", [[0.024, 0.97, 0.975], [0.0, 0.0, 1.0], [0.99, 0.999, 0.97], [0.5, 0.9], [0.3]])
def test_no_score_and_no_difference_reaches_beyond_what_can_be(scores: list[float]) -> None:
    group = group_of({"full": [1.0, 1.0, 0.999], "linear": scores}, metric="accuracy")
    for found, least in ((group.score(group.rows[1]), 0.0), (group.against_full["linear"], -1.0)):
        assert found is not None
        assert least <= found.ends[0] <= found.mean <= found.ends[1] <= 1
    (text,) = (score_text(group.score(row), group.scale) for row in group.rows[1:])
    halves = [float(half) for half in re.findall(r"± ([\d.]+)", text + verdict(group.against_full["linear"]))]
    assert all(half <= 100 for half in halves)


def test_explained_variance_has_no_lower_bound() -> None:
    group = group_of({"full": [0.9, 0.95, 0.99], "linear": [-0.4, 0.1, 0.9]}, metric="explained variance")
    found = group.score(group.rows[1])
    assert found is not None
    assert found.ends[0] < -1
    assert found.ends[1] == 1


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([0.024, 0.97, 0.975], "2 of 3 solved (mean 65.6)"),  # 65.6 ± 136.2 by the t interval alone
        ([0.91, 0.3, 0.92, 0.1, 0.95], "3 of 5 solved (mean 63.6)"),
        ([0.91, 0.93, 0.99], "94.3 (84.0 to 100.0) (n=3)"),  # all solved it
        ([0.02, 0.03, 0.01], "2.0 (0.0 to 4.5) (n=3)"),  # none did
        ([0.6, 0.75, 0.95], "76.7 (33.0 to 100.0) (n=3)"),  # none far from it
    ],
)
def test_seeds_that_fall_apart_are_counted(scores: list[float], said: str) -> None:
    group = group_of({"full": [1.0] * len(scores), "linear": scores}, metric="accuracy")
    assert score_text(group.score(group.rows[1]), group.scale) == said


def test_what_counts_as_solved_is_gained_over_the_best_trivial_predictor() -> None:
    scores = {"full": [0.52, 0.53, 0.52], "linear": [0.46, 0.51, 0.47]}
    group = group_of(scores, metric="accuracy", baselines={"bigram": 0.45})
    assert [found.solved for row in group.rows if (found := group.score(row))] == [None, None], "too near one another"
    scores = {"full": [0.98, 0.97, 0.98], "linear": [0.62, 0.97, 0.98]}
    above = group_of(scores, metric="accuracy", baselines={"majority": 0.6})
    assert [found.solved for row in above.rows if (found := above.score(row))] == [None, 2]
    alone = group_of(scores, metric="accuracy")
    assert [found.solved for row in alone.rows if (found := alone.score(row))] == [None, None], (
        "0.62 is no failure there"
    )


def test_the_sign_test_is_exact() -> None:
    assert sign_test([True] * 3, [False] * 3) == (3, 0, 0.25)
    assert sign_test([True] * 6 + [False], [False] * 6 + [False]).chance == pytest.approx(2 / 64)
    assert sign_test([True, False], [True, False]) == (1, 1, 1.0)
    assert sign_test([True, False, True], [False, True, False]) == (2, 1, 1.0)


def test_where_all_solve_with_the_same_chance_no_verdict_is_passed_on_those_that_fall_apart() -> None:
    """A t test takes noise for normal, and the seeds of either side solve the task or do not."""
    rng = np.random.default_rng(4)
    named = 0
    for _ in range(DRAWS // 4):
        solved = rng.random((2, 8)) < 0.5
        scores = np.where(solved, 0.98, 0.02) + rng.normal(0, 0.002, (2, 8))
        group = group_of(dict(zip(("full", "linear"), scores, strict=True)), metric="accuracy")
        named += group.against_full["linear"].beyond
    assert named / (DRAWS // 4) <= 0.05


def test_seeds_that_fall_apart_get_counts_and_no_interval_in_words() -> None:
    scores = {"full": [0.99, 1.0, 1.0], "linear": [0.024, 0.97, 0.975], "local": [0.98, 0.99, 0.97]}
    group = group_of(scores, metric="accuracy")
    assert verdict(group.against_full["linear"]) == "no verdict: 2 of 3 seeds solved, full 3 of 3"
    said = " ".join(clearly(group))
    assert "Solved by some seeds only: linear (2 of 3)." in said
    assert "Inconclusive (the interval is too wide): local." in said
    assert "linear (2 of 3 solved)" not in said.partition("Inconclusive")[2]
    assert not is_within(group.against_full["linear"])
    sure = group_of({"full": [1.0] * 8, "linear": [0.02] * 7 + [0.97]}, metric="accuracy")
    assert verdict(sure.against_full["linear"]) == "below full: 1 of 8 seeds solved, full 8 of 8"


def test_controls_count_in_no_family_of_tests() -> None:
    rng = np.random.default_rng(5)
    rivals = {f"v{i}": list(0.6 + rng.normal(0, 0.02, 3)) for i in range(6)} | {"linear": [0.57, 0.573, 0.565]}
    alone = group_of({"full": [0.6, 0.605, 0.596], **rivals}).against_full
    for score in (0.1, 0.6):
        controls = {f"none{i}": list(score + rng.normal(0, 0.001, 3)) for i in range(8)}
        group = group_of({"full": [0.6, 0.605, 0.596], **rivals, **controls}, controls=controls.keys())
        found = group.against_full
        assert {name: found[name] for name in alone} == alone
        assert all(found[name].beyond for name in controls) is (score == 0.1), "each is judged by itself"
    together = group_of({"full": [0.6, 0.605, 0.596], **rivals, **{f"w{i}": [0.1, 0.1, 0.101] for i in range(8)}})
    assert {name for name, d in together.against_full.items() if d.beyond} > {n for n, d in alone.items() if d.beyond}
