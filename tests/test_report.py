"""The report: its arithmetic, its caution, and that nothing a record lacks brings it down."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.learning import learning_curve
from compare.report.facts.scaling import series_of
from compare.report.facts.stats import pareto_front
from compare.report.sections.accuracy import SPEED, accuracy_chart, weight_of
from compare.report.sections.curves import learning_curves
from compare.report.sections.lengths import TIME, cost_against_length
from compare.report.sections.results import columns_of
from compare.runs.outcome import new_record
from compare.spec import RunSpec
from compare.units import MISSING, count, percent, seconds, size
from tests.drawn import answer_to, drawn, sentences_of
from tests.here import compare_here
from tests.make_records import ENVIRONMENT, PROFILES, Record, make_record, write_folder


def groups_of(records: list[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def test_pareto_front_holds_exactly_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (3.0, 4.0), (4.0, 1.0), (4.0, 0.5)]
    assert pareto_front(points) == [0, 3, 4]
    assert pareto_front([]) == []


def test_units() -> None:
    assert (percent(-0.0001), percent(0.4567)) == ("0.0\N{NO-BREAK SPACE}%", "45.7\N{NO-BREAK SPACE}%")
    assert [seconds(x).replace("\xa0", " ") for x in (2e-5, 0.0123, 1.6, 600)] == [
        "20 µs",
        "12.3 ms",
        "1.6 s",
        "10 min",
    ]
    assert [size(x).replace("\xa0", " ") for x in (0, 512, 1.5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "512 B",
        "1.5 MiB",
        "3 GiB",
    ]
    assert [count(x).replace("\xa0", " ") for x in (9_999, 1_234_567, 1.2e12)] == ["9,999", "1.23 M", "1.2 T"]


def test_summary_claims_only_what_stands_beyond_noise() -> None:
    clear = sentences_of(groups_of([make_record(v, seed=s) for v in ("full", "linear", "none") for s in range(3)])[0])
    assert any(line.startswith("Most accurate: full") for line in clear)
    assert any(line.startswith("Fastest: linear") for line in clear)

    level = sentences_of(groups_of([make_record(v, seed=s) for v in ("full", "xformers") for s in range(3)])[0])
    assert "within noise of" in level[0]

    few = sentences_of(groups_of([make_record(v) for v in ("full", "linear", "none")])[0])
    assert not any(line.startswith(("Most accurate", "Fastest", "Lightest")) for line in few)
    assert all("no ranking" in line for line in few if not line.startswith("Not on equal terms"))


@pytest.mark.parametrize(
    ("variant", "family", "unturned"),
    [("linformer", "low-rank", False), ("none", "control", True), ("no_such", None, None)],
)
def test_every_record_names_the_family_of_its_variant_and_says_where_rotary_positions_have_no_effect(
    variant: str, family: str | None, unturned: bool | None
) -> None:
    sizes = {"seq_len": 64, "seed": 0, "batch_size": 1, "d_model": 8, "n_heads": 1, "n_layers": 1, "threads": 1}
    training = {"budget": None, "steps": 1, "conv_width": None, "embedding_std": 0.1, "lr": 0.1}
    same = {"positions": "rotary", "device": "cpu", "dtype": "float32"}
    spec = RunSpec(variant=variant, task="mqar", **sizes, **training, **same)
    record = new_record(spec, "ok", "")
    assert (record["family"], record["rotary_without_effect"]) == (family, unturned)
    other = new_record(dataclasses.replace(spec, positions="sinusoidal"), "ok", "")
    assert not other["rotary_without_effect"]


def test_curves_prefer_validation_and_find_the_changes_of_length() -> None:
    record = make_record("full", seq_len=4096)
    curve = learning_curve(record, "seconds")
    assert curve is not None
    assert curve.validated
    assert [length for _, length in curve.changes] == [1024, 4096]
    for point in record["curve"]:
        point["val_score"] = None
    curve = learning_curve(record, "step")
    assert curve is not None
    assert not curve.validated
    assert len(curve.score) == len(record["curve"])


def test_a_full_report_names_everything(tmp_path: Path) -> None:
    records = [make_record(v, seq_len=n, seed=s) for n in (512, 1024) for v in PROFILES for s in range(2)]
    write_report(write_folder(tmp_path, records))
    stems = {"cost_time_bytes", "cost_memory_bytes", "crossover_bytes"}
    kinds = ("accuracy_speed", "accuracy_memory", "curves_steps", "curves_seconds")
    stems |= {f"{kind}_bytes_{n}" for kind in kinds for n in (512, 1024)}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == {s + e for s in stems for e in (".png", ".svg")}
    report = (tmp_path / "report.md").read_text()
    assert all(f"(charts/{stem}.png)" in report for stem in stems)
    assert "* another kernel ran: xformers (torch sdpa math)." in report
    assert "1.51\xa0M †" in report
    assert ENVIRONMENT["command"] in report
    assert "neighbour bigram" in report
    assert "fewer than 3 seeds" in report
    assert "(2 seeds: no ranking)" in report


def test_drawing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record(variant) for variant in ("full", "none")])
    write_report(tmp_path)
    first = {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))}
    write_report(tmp_path)
    assert {path.name: path.read_bytes() for path in sorted(tmp_path.rglob("*.*"))} == first


def test_the_state_is_a_column_where_a_record_holds_it() -> None:
    records = [make_record("full"), make_record("linformer"), make_record("linear") | {"state_bytes": None}]
    (group,) = group_records([Source(records, ENVIRONMENT)])
    (state,) = [column for column in columns_of(group) if column.title == "state a layer"]
    shown = {row.variant: state.cell(row, group).text for row in group.rows}
    assert shown == {"full": size(2**20), "linformer": size(2**16), "linear": MISSING}
    for record in records:
        del record["state_bytes"]
    (group,) = group_records([Source(records, ENVIRONMENT)])
    assert "state a layer" not in [column.title for column in columns_of(group)]


def test_only_failed_runs_leave_a_table_and_no_charts(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record(v, status="oom") for v in ("full", "linear")]))
    report = (tmp_path / "report.md").read_text()
    assert list((tmp_path / "charts").iterdir()) == []
    assert "No run finished: full oom, linear oom." in report
    assert "oom after 3 steps &lt;at 1024>" in report
    assert "oom after 3 steps &lt;at 1024&gt;" in (tmp_path / "report.html").read_text()


def test_no_records_at_all(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, []))
    assert "There are no records" in (tmp_path / "report.md").read_text()


def test_old_charts_go_when_their_runs_have_gone(tmp_path: Path) -> None:
    write_report(write_folder(tmp_path, [make_record("full")]))
    write_report(write_folder(tmp_path, [make_record("full", task="mqar")]))
    assert {path.stem.split("_")[2] for path in (tmp_path / "charts").iterdir()} == {"mqar"}


NEEDED = {"run_id", "variant", "task", "seq_len", "seed", "status"}


@pytest.mark.parametrize("field", sorted(set(make_record("full")) - NEEDED))
def test_any_field_may_be_absent_or_null(field: str) -> None:
    records = [make_record(v, seq_len=n) for n in (512, 1024) for v in ("full", "xformers", "none")]
    for record in records[::2]:
        del record[field]
    for record in records[1::2]:
        record[field] = None
    groups = groups_of(records)
    for group in groups:
        assert sentences_of(group)
        drawn(accuracy_chart(group, SPEED), [group])
        drawn(accuracy_chart(group, weight_of(group.rows)), [group])
        drawn(learning_curves(group, "step"), [group])
    for series in series_of(groups):
        drawn(cost_against_length(series, TIME), groups)


def test_the_barest_record_is_reported(tmp_path: Path) -> None:
    bare = {"run_id": "x", "variant": "full", "task": "bytes", "seq_len": 64, "seed": 0, "status": "ok"}
    write_folder(tmp_path, [bare])
    (tmp_path / "environment.json").unlink()
    write_report(tmp_path)
    assert "the machine is unknown" in (tmp_path / "report.md").read_text()
    assert "| full | other |" in (tmp_path / "report.md").read_text()


def test_damaged_lines_are_named_in_both_reports(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record("full")])
    with (tmp_path / "records.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"run_id": "cut of\n')
    write_report(tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "Warning:" in text
        assert "line 2" in text


def test_different_data_under_one_task_is_a_warning(tmp_path: Path) -> None:
    other = make_record("linear")
    other["data"]["corpus_sha256"] = "a0" * 32
    write_report(write_folder(tmp_path, [make_record("full"), other]))
    assert "do not share one corpus_sha256" in (tmp_path / "report.md").read_text()


def test_reports_are_drawn_without_torch(tmp_path: Path) -> None:
    write_folder(tmp_path, [make_record("full")])
    script = (
        "import sys; from pathlib import Path; from compare.report import write_report; "
        f"write_report(Path({json.dumps(str(tmp_path))})); "
        "assert not {'torch', 'datasets', 'zoo', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("together", [False, True], ids=["in place", "--out"])
def test_nothing_is_drawn_of_records_that_are_all_damaged(tmp_path: Path, *, together: bool) -> None:
    folder = write_folder(tmp_path / "damaged", [])
    (folder / "records.jsonl").write_text('{"run_id": "cut of\n[]\n')
    before = sorted(tmp_path.rglob("*"))
    done = compare_here("report", str(folder), *(["--out", str(tmp_path / "out")] if together else []))
    assert done.returncode == 1
    assert done.stderr == f"error: {folder / 'records.jsonl'} has no readable record\n"
    assert sorted(tmp_path.rglob("*")) == before


EVIL = "<script>alert(1)</script> <img src=x onerror=y> `code` ![](http://a.b/c.png) &lt; | end]"


def test_names_are_words_in_the_markdown_and_no_markup(tmp_path: Path) -> None:
    """Of variants, options, data, metrics, reasons, notes, machines and commands."""
    records = [
        make_record("full", task=EVIL, seq_len=n) | {"label": f"full {EVIL}", "metric": EVIL, "kernel": EVIL}
        for n in (256, 512)
    ]
    records += [make_record("linear", task=EVIL, seq_len=n, status="oom") | {"reason": EVIL} for n in (256, 512)]
    for record in records:
        record |= {"data_notes": [EVIL], "baselines": {EVIL: 0.3}, "family": EVIL, "test_slices": {EVIL: 0.2}}
        record["curve"] = record["curve"][:3]
        record["spec"]["task_options"] = [["data", f"{EVIL}\n\n# of {record['seq_len']}"]]
    environment = ENVIRONMENT | {"cpu": EVIL, "command": f"compare\n```\n{EVIL}\n````\n{EVIL}"}
    write_report(write_folder(tmp_path, records, environment))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    fenced = re.search(r"^`````sh\n.*?^`````$\n", text, re.DOTALL | re.MULTILINE)
    assert fenced
    outside = text.replace(fenced[0], "")
    assert not re.search(r"<|(?<!\\)`|&(?!(amp|lt|gt);)", outside)
    assert set(re.findall(r"\]\((.*?)\)", outside)) == {f"charts/{p.name}" for p in tmp_path.glob("charts/*.png")}
    heads = re.findall(r"^#+ .*", outside, re.MULTILINE)
    assert not any(head.startswith("# of") for head in heads)
    for table in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<img src=x" not in page


def test_what_ran_alone_is_said_so() -> None:
    def short(*records: Record) -> str:
        return "\n".join(answer_to(groups_of(list(records))))

    full, failed = (make_record("full", seed=0), make_record("full", seed=1)), make_record("linear", status="oom")
    control = make_record("none")
    assert "Full is the only variant here that attends, so nothing can be compared with it." in short(*full)
    assert "Full is the only variant here that attends" in short(*full, control)
    assert "No variant but full has a score" in short(*full, failed)
    assert "No variant shares a seed with full" in short(full[0], make_record("linear", seed=1))
    assert "Only the control has a score: there is nothing to compare." in short(control)
    assert "Only the control has a score" in short(control, failed)
    cost = control | {"test_score": None, "curve": []}
    assert "Costs only, no scores." in short(cost)


def test_letters_that_no_font_has_flood_no_terminal(tmp_path: Path) -> None:
    record = make_record("full", label="full 数据 ትግርኛ עברית \U0001f600", task="classify") | {"curve": []}
    folder = write_folder(tmp_path, [record, record | {"seq_len": 512, "run_id": "longer"}])
    command = [sys.executable, "-m", "compare", "report", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "数据" in (folder / "report.md").read_text(encoding="utf-8")
