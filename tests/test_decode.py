"""Decoding: what the command takes, what is measured token by token, and how it is told."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compare.__main__ import command_cost
from compare.arguments import cost_parser, parse, run_parser
from compare.choice import left_out
from compare.diff import diff
from compare.display import outcome
from compare.errors import UsageError
from compare.plan import plan_runs
from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.scaling import length_series, longest_decoded, series_of
from compare.report.render.csv_table import csv_table
from compare.report.sections.decoding import time_against_state
from compare.report.sections.lengths import STATE, TOKEN, cost_against_length, crossover_chart
from compare.runs import decode
from compare.runs.decode import measure_decoding
from compare.spec import RunSpec, reproduce
from tests.drawn import answer_to, drawn, tables_of
from tests.here import compare_here
from tests.make_records import ENVIRONMENT, MANY, QUADRATIC, Record, make_decoded, make_record, write_folder
from tests.test_charts import assert_readable, labels_of
from tests.test_compare import SPEC, records_of
from zoo import Encoder, MultiHeadAttention, available, describe

pytestmark = pytest.mark.usefixtures("blank_charts")

LENGTHS = tuple(2**power for power in range(9, 15))  # 512 to 16,384
FEW = ("full", "linear", "performer", "local", "none")


def specs(*words: str) -> list[RunSpec]:
    return plan_runs(cost_parser().parse_args(list(words)), "cpu", 2).specs


def test_all_is_what_has_a_step_form_and_the_rest_is_told() -> None:
    words = ["--decode", "--variants", "all", "--seq-len", "512:1024"]
    able = {name for name in available() if describe(name).steps}
    found = specs(*words)
    assert "linear" in able
    assert {spec.variant for spec in found} == able
    assert {(spec.decode, spec.steps, spec.batch_size) for spec in found} == {(True, 0, 1)}
    assert set(left_out(cost_parser().parse_args(words))) == set(available()) - able
    assert left_out(cost_parser().parse_args(words[1:])) == []


def test_what_is_named_stays_with_or_without_a_step_form() -> None:
    words = ["--decode", "--variants", "linformer,none,all"]
    assert {"linformer", "none"} <= {spec.variant for spec in specs(*words, "--seq-len", "512")}
    assert not {"linformer", "none"} & set(left_out(cost_parser().parse_args(words)))


def test_only_what_is_causal_has_steps() -> None:
    assert not any(describe(name).steps for name in available() if not describe(name).traits.causal)


@pytest.mark.parametrize("flag", [["--compile"], ["--checkpointing"], ["--longest", "4096"]])
def test_what_says_nothing_of_steps_is_refused_in_one_line(flag: list[str]) -> None:
    with pytest.raises(UsageError, match=f"{flag[0]} cannot be combined with --decode") as error:
        command_cost(parse(["cost", "--decode", "--memory-limit", "4GB", *flag]), [])
    assert "\n" not in str(error.value)


def test_decoding_is_asked_of_cost_alone() -> None:
    with pytest.raises(UsageError, match="unrecognized arguments: --decode"):
        run_parser().parse_args(["--decode"])


def test_the_command_of_a_run_repeats_it() -> None:
    words = ["--decode", "--variants", "linear", "--no-control", "--seq-len", "512", "--memory-limit", "4GB"]
    (spec,) = specs(*words, "--batch-size", "4", "--d-model", "64", "--positions", "learned", "--dtype", "bfloat16")
    repeated = shlex.split(reproduce(spec))
    assert repeated[:5] == ["python", "-m", "compare", "cost", "--decode"]
    assert specs(*repeated[4:]) == [spec]
    plain = replace(spec, decode=False)
    assert plain.run_id != spec.run_id
    assert "cost" not in shlex.split(reproduce(plain))


@pytest.mark.parametrize(("batch_size", "dtype"), [(3, "float32"), (1, "bfloat16")])
def test_the_state_is_that_of_the_encoder(batch_size: int, dtype: str) -> None:
    N = 32
    spec = replace(SPEC, variant="linear", seq_len=N, steps=0, decode=True, batch_size=batch_size, dtype=dtype)
    task = SimpleNamespace(kind="token", vocab_size=20, n_features=None, n_classes=2)
    told: list[float] = []
    inputs = np.random.default_rng(0).integers(0, 20, (batch_size, N))
    found = measure_decoding(spec, task, inputs, told.append)
    encoder = Encoder("linear", d_model=16, n_heads=1, n_layers=1, conv_width=3, vocab_size=20, causal=True).eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
        _, state = encoder.step(torch.zeros(batch_size, dtype=torch.int64))
    assert found["cache_bytes"] == state.nbytes / batch_size
    low, high = found["token_seconds_spread"]
    assert 0 < low <= found["token_seconds"] <= high
    assert found["kernel"] == "torch ops"
    assert told == sorted(told)
    assert all(0 <= share < 0.75 for share in told), "nothing is told while steps are timed"


def test_two_sequences_and_features_are_walked_too() -> None:
    spec = replace(SPEC, variant="linear", seq_len=16, steps=0, decode=True, batch_size=2)
    pair = SimpleNamespace(kind="pair", vocab_size=20, n_features=None, n_classes=2)
    one = SimpleNamespace(kind="sequence", vocab_size=20, n_features=None, n_classes=2)
    features = SimpleNamespace(kind="sequence", vocab_size=None, n_features=3, n_classes=2)
    sizes = [
        measure_decoding(spec, task, inputs, lambda _: None)["cache_bytes"]
        for task, inputs in (
            (pair, np.zeros((2, 2, 16), np.int64)),
            (one, np.zeros((2, 16), np.int64)),
            (features, np.zeros((2, 16, 3), np.float32)),
        )
    ]
    assert len(set(sizes)) == 1, "of one sample"


class Walked:
    """In place of a model: steps that take what a law says on a clock of their own."""

    def __init__(self, law: Callable[[int], float], finite: bool = True) -> None:
        self.law, self.now, self.finite = law, 0.0, finite
        layer = SimpleNamespace(attention=MultiHeadAttention("linear", d_model=16, n_heads=1, causal=True))
        self.encoder = SimpleNamespace(step=self.step, layers=[layer])
        self.walked: list[int] = []

    def step(self, token: torch.Tensor, state: SimpleNamespace | None = None) -> tuple[torch.Tensor, SimpleNamespace]:
        before = 0 if state is None else state.length
        assert before == len(self.walked)
        self.walked.append(int(token))
        self.now += self.law(before)
        y = torch.full((1, 16), 0.0 if self.finite else torch.nan)
        return y, SimpleNamespace(length=before + 1, nbytes=before + 1, batch=1)

    def to(self, _: object) -> Walked:
        return self

    def eval(self) -> Walked:
        return self

    def parameters(self) -> list[torch.Tensor]:
        return []


def walk(law: Callable[[int], float], N: int, monkeypatch: pytest.MonkeyPatch, finite: bool = True) -> Record:
    model = Walked(law, finite)
    monkeypatch.setattr(decode, "Model", lambda spec, task: model)
    monkeypatch.setattr(decode.time, "perf_counter", lambda: model.now)
    spec = replace(SPEC, variant="linear", seq_len=N, steps=0, decode=True)
    found = measure_decoding(spec, SimpleNamespace(kind="sequence"), np.arange(N)[None], lambda _: None)
    assert model.walked == list(range(N)), "every position once, in order"
    return found


@pytest.mark.parametrize("N", [4, 16, 100, 512, 4096, 20_000])
def test_a_time_is_that_of_the_steps_just_before_the_length(N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = walk(lambda n: 1e-6 * (n + 1), N, monkeypatch)
    low, high = found["token_seconds_spread"]
    middle = found["token_seconds"]
    assert found["cache_bytes"] == N
    assert low < middle < high <= 1e-6 * N
    assert N < 64 or low > 0.9 * 1e-6 * N
    assert N < 64 or abs(middle - 1e-6 * (15 / 16) * N) < 0.05e-6 * N


def test_work_that_is_done_now_and_then_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a step that closes a bucket of 64 positions."""
    found = walk(lambda n: 6.5e-3 if n % 64 == 0 else 1e-4, 8192, monkeypatch)
    assert found["token_seconds"] == pytest.approx(2e-4)


def test_what_is_not_finite_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(decode.DivergedError, match="after 64 positions is not finite"):
        walk(lambda n: 1e-3, 64, monkeypatch, finite=False)


def test_decoding_from_command_to_page(tmp_path: Path) -> None:
    words = ["cost", "--decode", "--variants", "full,linear,linformer", "--no-control", "--tasks", "mqar"]
    words += ["--seq-len", "64", "--d-model", "16", "--n-heads", "2", "--n-layers", "2"]
    done = compare_here(*words, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    conv = 2 * 16
    for record in records_of(tmp_path):
        name, N = record["variant"], record["seq_len"]
        if not describe(name).steps:
            assert (record["status"], name in record["reason"]) == ("unsupported", True)
            continue
        assert record["status"] == "ok", record["reason"]
        assert record["token_seconds"] > 0
        encoder = Encoder(name, d_model=16, n_heads=2, n_layers=2, max_len=N, causal=True)
        assert record["cache_bytes"] == 4 * (conv + 2 * encoder.layers[0].attention.cache_size(N))
        assert not {"step_seconds", "test_score", "peak_memory_bytes"} & set(record)
    report = (tmp_path / "report.md").read_text()
    assert "linformer has no causal form, so it cannot decode step by step" in report
    assert "## Decoding, token by token" in report
    assert "## Cost against length" not in report
    stems = {path.stem for path in (tmp_path / "charts").glob("*.svg")}
    assert stems == {"decode_mqar_64"}


def decoded(*variants: str, seeds: int = 1, lengths: tuple[int, ...] = LENGTHS) -> list[Record]:
    return [make_decoded(v, seq_len=n, seed=seed) for v in variants for n in lengths for seed in range(seeds)]


def groups_of(records: list[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def cells(header: list[str], body: list[list[str]]) -> dict[str, dict[str, str]]:
    return {line[0]: dict(zip(header, line, strict=True)) for line in body}


def planted() -> list[Record]:
    """full: 0.2 ms + N / 10 µs and all keys and values; linear: 0.5 ms and 64 KiB. They cross at 3,000."""
    records = decoded("full", "linear", "none", seeds=2)
    rng = np.random.default_rng(0)
    for record in records:
        n = record["seq_len"]
        time, size = {
            "full": (2e-4 + 1e-7 * n, 2048 * n),
            "linear": (5e-4, 65_536),
            "none": (1e-4, 0),
        }[record["variant"]]
        time *= 1 + 1e-3 * rng.standard_normal()
        record |= {"token_seconds": time, "token_seconds_spread": [0.999 * time, 1.001 * time], "cache_bytes": size}
    return records


def test_the_tables_of_decoding() -> None:
    growth, lengths = tables_of(groups_of(planted()), "decoding")
    found = cells(growth.header, growth.rows)
    assert list(found) == ["full", "linear", "none (control)"]
    assert found["full"]["power of N, state"] == "1.00\xa0±\xa00.00"
    assert found["linear"]["power of N, state"] == "0.00\xa0±\xa00.00"
    assert found["full"]["power of N, time"].startswith("0.7")
    assert found["linear"]["power of N, time"].lstrip("−").startswith("0.00")
    assert found["full"]["state at 16,384"] == "32\xa0MiB"
    assert found["linear"]["state at 16,384"] == "64\xa0KiB"
    assert found["linear"]["share of full's state"] == "0.00195"
    assert found["none (control)"]["state at 16,384"] == "0\xa0B"
    assert found["none (control)"]["power of N, state"] == "–"
    assert found["linear"]["ratio to full"] == "0.272"
    assert 2900 < float(found["linear"]["faster than full from N"].split(" ")[0].replace(",", "")) < 3100
    assert found["full"]["faster than full from N"] == "–"
    assert any("processes of one length differ" in note for note in growth.notes)
    each = cells(lengths.header, lengths.rows)
    assert lengths.header == ["variant", *(f"{n:,}" for n in LENGTHS)]
    assert each["linear"]["512"].endswith(", 64\xa0KiB")
    assert each["full"]["1,024"].endswith(", 2\xa0MiB")
    assert any("token for each sample of the batch (1)" in note for note in lengths.notes)


def test_the_answer_in_words() -> None:
    lines = answer_to(groups_of(planted()))
    (longest,) = [line for line in lines if "Decoding" in line]
    assert longest.startswith("bytes, length 16,384: Decoding costs only, no scores. Fastest: linear, 0.27")
    assert "smallest state: linear, 0.00195 times full's state" in longest
    assert "State of one sample: full 32\xa0MiB; linear 64\xa0KiB." in longest
    (crossing,) = [line for line in lines if "against length" in line]
    assert re.search(r"faster than full \(time per token\) from some length on: linear from (2,9|3,0)\d\d\.", crossing)


def test_a_group_says_who_is_fastest_and_who_keeps_least(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, planted()))
    report = (tmp_path / "report.md").read_text()
    assert "Shortest time per token: full" in report, "at 512"
    assert "Shortest time per token: linear" in report, "at 16,384"
    assert "Smallest state: linear, 64\xa0KiB" in report
    assert "| time per token | state of a sample |" in report
    assert "tokens/s |" not in report


@pytest.mark.parametrize("variants", [FEW, MANY], ids=["few", "many"])
def test_the_charts_name_everyone_without_overlap(variants: tuple[str, ...]) -> None:
    records = decoded(*variants)
    for record in records:
        if record["variant"] == "performer" and record["seq_len"] > 4096:
            record["status"] = "timeout"
            del record["token_seconds"], record["cache_bytes"]
    groups = groups_of([*records, *(make_decoded("linformer", seq_len=n, status="unsupported") for n in LENGTHS)])
    (series,) = series_of(groups)
    (longest,) = longest_decoded(groups)
    charts = [cost_against_length(series, cost) for cost in (TOKEN, STATE)]
    charts += [crossover_chart(series, TOKEN), time_against_state(longest)]
    times, states, crossings, both = (drawn(chart, groups) for chart in charts)
    measured = {name.replace(" (control)", "") for name in variants} - {"none", "performer", "linformer"}
    for figure in (times, states, crossings, both):
        assert figure is not None
        assert_readable(figure)
        named = " ".join(name.replace("\n", " ") for name, _ in labels_of(figure))
        assert {name for name in measured - QUADRATIC if name not in named} == set()
    notes = " ".join(text.get_text().replace("\n", " ") for text in both.texts)
    assert "Not drawn (no state): none (control)" in notes
    assert "linformer (unsupported)" in notes
    assert "performer (timeout)" in notes
    assert "0 at every length: none (control)" in " ".join(text.get_text() for text in states.texts)


def test_decoding_and_training_in_one_folder_stay_apart(tmp_path: Path) -> None:
    trained = [make_record(v, seq_len=n) for v in FEW for n in LENGTHS[:3]]
    groups = groups_of([*trained, *decoded(*FEW)])
    assert [group.decodes for group in groups].count(True) == len(LENGTHS)
    assert len(length_series(groups)) == 2
    assert len(tables_of(groups, "cost")) == 1
    assert len(tables_of(groups, "decoding")) == 2
    write_report(write_folder(tmp_path, [*trained, *decoded(*FEW)]))
    report, page = ((tmp_path / f"report.{end}").read_text() for end in ("md", "html"))
    assert report.index("## Cost against length") < report.index("cost_time") < report.index("## Decoding, token")
    assert report.index("## Decoding, token") < report.index("decode_time")
    assert '<section id="cost"' in page
    assert '<section id="decoding"' in page


def test_one_length_has_a_chart_and_no_growth(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, decoded(*FEW, lengths=(1024,))))
    assert {path.stem for path in (tmp_path / "charts").glob("*.png")} == {"decode_bytes_1024"}
    assert "Growth:" not in (tmp_path / "report.md").read_text()


def test_batches_that_differ_are_told() -> None:
    records = [make_decoded(v, seq_len=n, batch_size=16_384 // n) for v in FEW for n in LENGTHS]
    growth, lengths = tables_of(groups_of(records), "decoding")
    assert {line[2] for line in growth.rows} == {"–"}
    assert any("(1, 16, 2, 32, 4, 8)" in note for note in lengths.notes)


def test_files_for_papers_hold_it() -> None:
    lines = csv_table(groups_of(planted())).splitlines()
    fields = dict(zip(lines[0].split(","), lines[1].split(","), strict=False))
    assert {"time per token [s]", "state of a sample [B]"} <= set(fields)


def test_diff_tells_a_state_that_grew_and_a_token_that_takes_longer() -> None:
    before, after = planted(), planted()
    for record in after:
        if record["variant"] == "linear":
            record["cache_bytes"] *= 2
            record["token_seconds"] *= 1.5
            record["token_seconds_spread"] = [1.5 * x for x in record["token_seconds_spread"]]
    changes = diff(Source(before, ENVIRONMENT), Source(after, ENVIRONMENT)).changes
    assert {change.variant for change in changes} == {"linear"}
    assert {change.what for change in changes} == {"time per token", "state of a sample, bytes"}


def test_a_run_that_ended_is_told_in_a_line() -> None:
    record = make_decoded("full", seq_len=512) | {"token_seconds": 0.00042}
    assert outcome(record) == "0.42 ms per token, 1,048,576 bytes of state, 12 s in total"


def test_a_token_by_recomputing_stands_beside_a_step() -> None:
    record = compare_record("linear", 256)
    assert record["status"] == "ok", record["reason"]
    for field in ("recompute_seconds", "prefill_seconds", "token_seconds"):
        assert record[field] > 0, field
    assert record["recompute_seconds"] > record["token_seconds"], "256 positions for one"
    assert record["recompute_bytes"] is not None


def compare_record(variant: str, seq_len: int) -> Record:
    from tests.here import run_here

    return run_here(replace(SPEC, variant=variant, seq_len=seq_len, batch_size=1, decode=True, steps=0, task="mqar"))


def test_the_report_tells_what_a_state_saves() -> None:
    records = [make_decoded(name, seq_len=n, seed=seed) for name in FEW for n in (512, 1024) for seed in range(3)]
    groups = group_records([Source(records, ENVIRONMENT)])
    assert not [table for table in tables_of(groups, "decoding") if table.caption.startswith("With and without")]
    for record in records:
        step, n = record["token_seconds"], record["seq_len"]
        record |= {"recompute_seconds": 50 * step, "recompute_bytes": 1000 * n, "prefill_seconds": n * step / 4}
        record |= {"recompute_seconds_spread": [49 * step, 51 * step]}
    groups = group_records([Source(records, ENVIRONMENT)])
    (table,) = (table for table in tables_of(groups, "decoding") if table.caption.startswith("With and without"))
    assert table.caption == "With and without a state, at 1,024: bytes"
    rows = {row[0]: row for row in table.rows}
    assert (rows["linear"][3], rows["linear"][7]) == ("50", "4")
    stems = [chart.stem for chart in decoding_charts(groups)]
    assert any(stem.startswith("decode_recompute") for stem in stems)


def decoding_charts(groups: list[Group]) -> list[object]:
    from tests.drawn import charts_of

    return list(charts_of(groups, "decode_"))
