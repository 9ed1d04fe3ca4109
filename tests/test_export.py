"""Tables for papers: the CSV says what the records say, and the LaTeX is well formed and claims no more than it may."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from compare.report import write_report
from compare.report.facts.grouping import Source, group_records
from compare.report.facts.groups import Group
from compare.report.facts.stats import t95
from compare.report.render.csv_table import RECORDED, csv_table
from compare.report.render.latex import LINE, WIDEST_NAME, escape_tex, latex_table, latex_tables, letter, width_of
from tests.make_records import ENVIRONMENT, PROFILES, Record, make_record, many_records, write_folder

PDFLATEX = shutil.which("pdflatex")
NASTY = r"a_b & 50% #1 $x$ {y} \z ~ ^ <q> | ± − µ"


def groups_of(records: list[Record]) -> list[Group]:
    return group_records([Source(records, ENVIRONMENT)])


def with_scores(variant: str, scores: list[float], **same: float) -> list[Record]:
    return [make_record(variant, seed=seed) | {"test_score": score, **same} for seed, score in enumerate(scores)]


def lines_of(text: str) -> list[list[str]]:
    """The cells of every row of the LaTeX tables, heads included."""
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\) & ", row) for row in rows]


def whole_lines(text: str) -> list[list[str]]:
    """The head and the rows of one table, each with the cells that stand below one another in the file for width."""
    lines = [[cell for cell in line if cell] for line in lines_of(text)]
    heads = [index for index, line in enumerate(lines) if line[0] == "variant"]
    rows = heads[1] if len(heads) > 1 else len(lines)
    return [
        [line[0], *(cell for at in heads for cell in lines[at + index][1:])] for index, line in enumerate(lines[:rows])
    ]


def test_a_report_holds_both_tables(tmp_path: Path) -> None:
    records = [make_record("full"), make_record("linear")]
    write_report(write_folder(tmp_path, records))
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == csv_table(groups_of(records))
    assert (tmp_path / "table.tex").read_text(encoding="utf-8") == latex_tables(groups_of(records))


def test_the_csv_read_back_says_what_the_records_say(tmp_path: Path) -> None:
    records = many_records()
    (tmp_path / "table.csv").write_text(csv_table(groups_of(records)), encoding="utf-8")
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len({(record["label"], record["seq_len"]) for record in records})
    for line in table:
        runs = [r for r in records if (r["label"], str(r["seq_len"])) == named(line)]
        finished = [r for r in runs if r["status"] == "ok"]
        assert (int(line["runs"]), int(line["finished runs"])) == (len(runs), len(finished))
        for quantity in RECORDED:
            mean, half = (line[f"{quantity.title}{end} [{quantity.unit}]"] for end in ("", " half"))
            values = [r[quantity.field] for r in finished if r.get(quantity.field) is not None]
            assert bool(mean) == bool(values)
            assert bool(half) == (len(values) > 1)
            if values:
                assert float(mean) == pytest.approx(np.mean(values))
            if half:
                error = np.std(values, ddof=1) / len(values) ** 0.5
                assert float(half) == pytest.approx(t95(len(values) - 1) * error, abs=1e-12)


def named(line: dict[str, str]) -> tuple[str, str]:
    return f"{line['variant']} {line['options']}".strip(), line["length [tokens]"]


def test_the_csv_holds_the_paired_difference_and_the_flags() -> None:
    records = with_scores("full", [0.5, 0.6, 0.7]) + with_scores("linear", [0.4, 0.5], params=10)
    records.append(make_record("linear", seed=2, status="oom"))
    full, linear = csv.DictReader(csv_table(groups_of(records)).splitlines())
    assert full["difference to full [fraction]"] == full["flags"] == ""
    assert float(linear["difference to full [fraction]"]) == pytest.approx(-0.1)
    assert linear["seeds of the difference"] == "2"
    assert linear["flags"] == (
        "100 % fewer parameters than full; 1 of 3 seeds did not finish: 1 oom; fewer than 3 seeds: no ranking"
    )


def test_the_best_is_bold_where_a_ranking_is_allowed() -> None:
    clear = with_scores("full", [0.6, 0.6, 0.6]) + with_scores("linear", [0.4, 0.4, 0.4])
    control = with_scores("none", [0.9, 0.9, 0.9])
    assert r"$\mathbf{60.0}$" in latex_tables(groups_of(clear + control))
    noisy = with_scores("full", [0.5, 0.6, 0.7]) + with_scores("linear", [0.6, 0.5, 0.4])
    few = with_scores("full", [0.6, 0.6]) + with_scores("linear", [0.4, 0.4])
    for records in (noisy, few, clear[:3]):
        assert not any(r"\mathbf" in row[1] for row in whole_lines(latex_tables(groups_of(records))))


def test_low_is_best_where_it_is_cost() -> None:
    records = with_scores("full", [0.5] * 3, step_seconds=0.2) + with_scores("linear", [0.5] * 3, step_seconds=0.1)
    head, _, linear = whole_lines(latex_tables(groups_of(records)))
    assert linear[head.index("step (ms)")].startswith(r"$\mathbf{100.0}")


def test_every_group_is_a_well_formed_table_without_a_bare_special() -> None:
    cases = [(variant, length, seed) for variant in PROFILES for length in (8, 9) for seed in (0, 1)]
    records = [make_record(v, label=f"{v} {NASTY}", seq_len=length, seed=seed) for v, length, seed in cases]
    text = latex_tables(groups_of(records))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 2
    assert len(set(re.findall(r"\\label\{(.+)\}", text))) == 2
    (columns,) = {len(spec) for spec in re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)}
    assert {len(row) for row in lines_of(text)} == {columns}
    body = text.split("\n", 1)[1]  # the first line is a comment
    plain = re.sub(r"\\[&%$#_{}\\]|\\label\{.+\}", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[%#~^|<>±−µ]", re.sub(r"(?<=\d)~|\$[^$]*\$", "", plain).replace("~", ""))


def test_special_signs_are_escaped() -> None:
    assert escape_tex(NASTY) == (
        r"a\_b \& 50\% \#1 \$x\$ \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} "
        r"\textless{}q\textgreater{} \textbar{} $\pm$ $-$ \textmu{}"
    )


def test_footnotes_say_what_is_flagged_once() -> None:
    records = [make_record(variant, seed=seed) for variant in ("full", "xformers", "linear") for seed in range(2)]
    text = latex_tables(groups_of(records))
    assert text.count("fewer than 3 seeds: no ranking") == 1
    assert r"full\textsuperscript{a} &" in text
    assert r"xformers\textsuperscript{b,a} &" in text
    assert r"\textsuperscript{b}\,ran torch sdpa math" in text


def test_footnotes_never_run_out_of_letters() -> None:
    names = [letter(index) for index in range(1000)]
    assert names[:2] == ["a", "b"]
    assert names[25:28] == ["z", "aa", "ab"]
    assert len(set(names)) == 1000


def test_costs_alone_make_a_table_without_scores() -> None:
    records = [make_record(variant) | {"test_score": None, "val_score": None} for variant in ("full", "linear")]
    head = lines_of(latex_tables(groups_of(records)))[0]
    assert head[:2] == ["variant", "tokens/s"]


@pytest.mark.parametrize("export", [csv_table, latex_tables])
def test_nothing_measured_is_exported_all_the_same(export: object) -> None:
    assert callable(export)
    assert export([])
    failed = export(groups_of([make_record("full", status="oom")]))
    assert "oom" in failed


LONG = "linformer data=/a_folder_of_a_cluster/" + "averyverylongwordwithoutanend" * 3 + "/数据.csv"


def wide(name: str = "") -> list[Record]:
    """All that is measured, of every variant at two lengths."""
    cases = [(v, seq_len, seed) for v in PROFILES for seq_len in (1024, 4096) for seed in range(3)]
    records = [make_record(v, label=f"{v} {name}".strip(), seq_len=n, seed=seed) for v, n, seed in cases]
    return [record | {"token_seconds": 123.4567, "cache_bytes": 10**10 + 7} for record in records]


@pytest.mark.parametrize("label", ["", NASTY, LONG], ids=["plain", "nasty", "long"])
def test_columns_that_do_not_fit_the_line_stand_below_the_others(label: str) -> None:
    """By the widths that are reckoned with; where LaTeX is, it measures them below."""
    for group in groups_of(wide(label)):
        text, found = latex_table(group), []
        for table in re.findall(r"\\begin\{table\}.*?\\end\{table\}", text, re.DOTALL):
            (columns,) = re.findall(r"\\begin\{tabular\}\{(l[r]+)\}", table)
            lines = lines_of(table)
            assert {len(line) for line in lines} == {len(columns)}
            names, *others = (max(map(width_of, cells)) for cells in zip(*lines, strict=True))
            assert min(names, WIDEST_NAME) + sum(others) + 8 * len(columns) <= LINE
            head, *rows = whole_lines(table)
            assert len(rows) == len(PROFILES)
            found += head[1:]
        assert len(found) == len(set(found)) == 10
        assert text.count(r"\label") == text.count(r"\begin{table}") - text.count(r"\addtocounter{table}{-1}") == 1


@pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex")
@pytest.mark.parametrize("label", ["", NASTY, LONG], ids=["plain", "nasty", "long"])
def test_the_tables_compile_and_fit_the_line(label: str, tmp_path: Path) -> None:
    tables = latex_tables(groups_of(wide(label)))
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}" + tables + "\\end{document}"
    (tmp_path / "a.tex").write_text(document, encoding="utf-8")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout
    assert "Float too large" not in done.stdout


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_spreadsheet_runs_nothing_of_the_csv(begin: str) -> None:
    """Texts that begin as formulas do are quoted; numbers stay numbers."""
    evil = f"{begin}cmd|'/C calc'!A0"
    record = make_record("full", label=evil, task=evil) | {"variant": evil, "family": evil, "kernel": evil}
    worse = make_record("linear", task=evil, seed=0) | {"test_score": 0.1}
    table = csv_table(groups_of([record, make_record("full", task=evil), worse]))
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    assert rows
    for row in rows:
        for name, cell in row.items():
            if "[" in name or "runs" in name or "seeds" in name:
                assert not cell or np.isfinite(float(cell))
            else:
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert rows[0]["task"] == (f"'{evil}" if begin not in "\r\n" else evil.replace(begin, " "))
    assert any(row["difference to full [fraction]"].startswith("-") for row in rows)
