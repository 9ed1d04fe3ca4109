"""Cost against length: exponents and crossovers of made-up costs whose truth is known, and how they are told."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from compare.quantities import FORWARD_BACKWARD as TIME
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.scaling import (
    Crossover,
    Fit,
    find_crossovers,
    fit_exponent,
    fit_exponents,
    fitted,
    length_series,
    matrix_share,
    rows_by_length,
)
from compare.report.facts.scaling import series_of as named_series
from compare.report.sections.growth import crossover_text
from compare.report.sections.lengths import TIME as TIME_CHART
from compare.report.sections.lengths import cost_against_length, crossover_chart
from tests.drawn import drawn, markdown_of, tables_of
from tests.make_records import ENVIRONMENT, MANY, Record, make_record
from tests.test_charts import assert_readable, labels_of

LENGTHS = tuple(2**power for power in range(9, 16))  # 512 to 32,768
Law = Callable[[float], float]


def quadratic(n: float) -> float:
    return 2e-3 + 2e-6 * n + 1e-9 * n**2


def linear(n: float) -> float:
    return 4e-3 + 4e-6 * n


TRUTH = 1000 * (1 + math.sqrt(3))  # where the two cross: N² / 10⁹ = 2 · 10⁻³ + 2 · 10⁻⁶ N


def measured(
    law: Law, variant: str, *, noise: float, rng: np.random.Generator, processes: int, repetitions: float = 0.0
) -> list[Record]:
    """Records of a cost that follows a law: each process is off by a factor, and its repetitions spread."""
    records = []
    for n in LENGTHS:
        for seed in range(processes):
            record = make_record(variant, seq_len=n, seed=seed)
            time = law(n) * math.exp(noise * rng.standard_normal())
            record[TIME.field] = time
            record[TIME.spread_field] = [time * math.exp(-0.6745 * repetitions), time * math.exp(0.6745 * repetitions)]
            record["spec"]["batch_size"] = 1
            records.append(record)
    return records


def series_of(records: list[Record]) -> list[Group]:
    (series,) = length_series(group_records([Source(records, ENVIRONMENT)]))
    return series


@pytest.mark.parametrize(("processes", "noise"), [(1, 0.1), (3, 0.05)])
def test_intervals_cover_the_true_crossover_at_their_nominal_rate(processes: int, noise: float) -> None:
    rng = np.random.default_rng(processes)
    covered, widths = [], []
    for _ in range(100):
        about = {"noise": noise, "rng": rng, "processes": processes, "repetitions": 0.02}
        records = measured(quadratic, "full", **about)
        for variant in ("linear", "performer", "local"):
            records += measured(linear, variant, **about)
        for found in find_crossovers(rows_by_length(series_of(records)), TIME).values():
            covered.append(found.low <= TRUTH <= found.high)
            widths.append(found.high / found.low)
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.median(widths) < 1 + 30 * noise / processes, "an interval that says nothing covers everything"


def test_intervals_cover_the_true_exponent_at_their_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    lengths, exponent = (2048, 4096, 8192, 16384), 1.3
    for processes in (1, 3):
        fits = [
            fit_exponent({n: list(n**exponent * np.exp(0.1 * rng.standard_normal(processes))) for n in lengths})
            for _ in range(1000)
        ]
        covered = np.mean([abs(fit.exponent - exponent) <= fit.half for fit in fits if fit])
        assert len(fits) == 1000
        assert 0.93 <= covered <= 0.97


def test_an_exponent_is_exact_without_noise_and_needs_three_lengths() -> None:
    found = fit_exponent({n: [3.0 * n**2] for n in (1024, 2048, 4096)})
    assert found is not None
    assert found == pytest.approx(Fit(2.0, 0.0), abs=1e-6)
    assert fit_exponent({n: [1.0] for n in (1024, 2048)}) is None
    assert fit_exponent({}) is None


def test_a_fit_takes_the_longest_lengths() -> None:
    assert fitted(dict.fromkeys(LENGTHS)) == [4096, 8192, 16384, 32768]
    assert fitted(dict.fromkeys((256, 1024, 4096, 16384))) == [1024, 4096, 16384], "three at the least"
    assert fitted(dict.fromkeys((1000, 2000))) == [1000, 2000]
    overhead = {n: [0.1 + 1e-9 * n**2] for n in LENGTHS}
    found = fit_exponent(overhead)
    assert found is not None
    assert found.exponent > 1.1


def quiet(**laws: Law) -> list[Record]:
    """Two processes a point that agree within a thousandth."""
    rng = np.random.default_rng(0)
    return [r for v, law in laws.items() for r in measured(law, v, noise=1e-3, rng=rng, processes=2)]


def crossover_of(law: Law) -> Crossover:
    return find_crossovers(rows_by_length(series_of(quiet(full=quadratic, linear=law))), TIME)["linear"]


def test_a_quiet_crossover_is_found_where_it_is() -> None:
    found = crossover_of(linear)
    assert found.length == pytest.approx(TRUTH, rel=0.01)
    assert found.low < found.length < found.high < 1.02 * found.low
    assert found.crossings == 1
    assert crossover_text(found).startswith("2,7")


def test_what_is_always_or_never_cheaper_says_so_and_no_more() -> None:
    assert crossover_text(crossover_of(lambda n: 0.5 * quadratic(n))) == "below\xa0512"
    assert crossover_text(crossover_of(lambda n: 2 * quadratic(n))) == "above\xa032,768"
    found = crossover_of(lambda n: quadratic(n) * (0.8 if n < 3000 else 1.3))
    assert crossover_text(found) == "above\xa032,768, though cheaper at some shorter length"


def test_of_several_crossings_the_last_counts() -> None:
    found = crossover_of(lambda n: quadratic(n) * (1.3 if n in (512, 4096) else 0.8))
    assert found.crossings == 3
    assert 4096 < found.length < 8192
    assert crossover_text(found).endswith("; the last of 3 crossings")


def test_the_same_cost_crosses_within_noise() -> None:
    rng = np.random.default_rng(1)
    same = []
    for _ in range(20):
        records = [r for v in MANY[:6] for r in measured(quadratic, v, noise=0.1, rng=rng, processes=1)]
        records += measured(linear, "linear", noise=0.1, rng=rng, processes=1)
        found = find_crossovers(rows_by_length(series_of(records)), TIME)
        assert not found.pop("linear").within_noise
        same += [crossover_text(crossover) == "within noise" for crossover in found.values()]
    assert np.mean(same) >= 0.9


def test_the_table_of_costs() -> None:
    records = quiet(full=quadratic, linear=linear, none=lambda n: 0.1 * linear(n))
    for record in records:
        record["flops"], record["matrix_rate_flops"] = 1e12, 4 * 1e12 / record[TIME.field]
    (table,) = tables_of(group_records([Source(records, ENVIRONMENT)]), "cost")
    cells = {line[0]: dict(zip(table.header, line, strict=True)) for line in table.rows}
    assert list(cells) == ["full", "linear", "none (control)"]
    assert cells["full"]["ratio to full"] == "1.00"
    assert cells["linear"]["ratio to full"] == f"{linear(32768) / quadratic(32768):.2f}"
    assert cells["full"]["power of N, time"].startswith("1.8")
    assert cells["linear"]["cheaper than full from N"].startswith("2,7")
    assert cells["full"]["cheaper than full from N"] == "–"
    assert cells["linear"]["share of matrix rate"] == "0.25"
    assert "forward + backward at 32,768" in table.header
    assert any("processes of one length differ" in note for note in table.notes)


def test_matrix_share_is_missing_where_the_rate_is() -> None:
    records = quiet(full=quadratic)
    (row,) = series_of(records)[0].rows
    assert matrix_share(row) is None


def test_batches_that_differ_have_no_exponent() -> None:
    records = quiet(full=quadratic, linear=linear)
    for record in records:
        record["spec"]["batch_size"] = 32_768 // record["seq_len"]
    (table,) = tables_of(group_records([Source(records, ENVIRONMENT)]), "cost")
    assert not any(title.startswith("power of N") for title in table.header)
    assert table.notes[0].startswith("The batch size differs between lengths")


def probe(length: int, status: str) -> Record:
    record = make_record("linear", seq_len=length, status=status)
    record["spec"] |= {"probe": 32768, "memory_limit": 2**30, "batch_size": 1}
    return record


def test_probes_are_in_no_table_but_that_of_the_longest_length() -> None:
    records = quiet(full=quadratic, linear=linear)
    for record in records:
        record["spec"]["memory_limit"] = 2**30
    tried = [probe(65_536, "oom"), probe(49_152, "ok"), probe(57_344, "oom"), probe(53_248, "oom")]
    groups = group_records([Source([*records, *tried], ENVIRONMENT)])
    assert [group.seq_len for group in groups] == list(LENGTHS)
    assert sum(len(group.records) for group in groups) == len(records)
    (table,) = tables_of(groups, "cost")
    assert table.header[-1] == "longest N in 1\xa0GiB"
    assert [line[-1] for line in table.rows] == ["32,768 (no longer length tried)", "49,152 (53,248: oom)"]
    report = markdown_of(groups)
    assert "49,152 (53,248: oom)" in report
    assert "Runs that did not finish" not in report


@pytest.mark.parametrize("variants", [("full", "linear", "xformers", "none"), MANY], ids=["few", "many"])
def test_the_charts_tell_exponents_and_crossovers_without_overlap(variants: tuple[str, ...]) -> None:
    records = [make_record(v, seq_len=n) for v in variants for n in (512, 1024, 2048, 4096)]
    for record in records:
        record["spec"]["batch_size"] = 1
    groups = group_records([Source(records, ENVIRONMENT)])
    (series,) = named_series(groups)
    charts = cost_against_length(series, TIME_CHART), crossover_chart(series, TIME_CHART)
    lengths, crossovers = (drawn(chart, groups) for chart in charts)
    assert lengths is not None
    assert crossovers is not None
    assert_readable(lengths)
    fit = fit_exponents(rows_by_length(groups), TIME)["linear"]
    assert f"linear N^{fit.words}" in [name for name, _ in labels_of(lengths)]
    assert_readable(crossovers)
    named = [name for name, _ in labels_of(crossovers)]
    assert len([v for v in variants if v in named]) >= len(variants) - 2, "all but full and the control's short name"


def test_nothing_to_cross_draws_no_chart() -> None:
    (series,) = named_series(series_of(quiet(linear=linear)))
    assert crossover_chart(series, TIME_CHART) is None
