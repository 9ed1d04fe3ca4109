"""README and docs: code runs, commands parse, links lead somewhere, figures are those of the records."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tasks
import zoo
from benchmarks.peers._report import MEMORY, TIMES, Label, by_dtype, read_rows
from compare.arguments import (
    ablate_parser,
    cost_parser,
    diff_parser,
    evaluate_parser,
    plan_parser,
    predict_parser,
    run_parser,
)
from compare.folder_arguments import merge_parser, publish_parser
from compare.listing import backends, markdown, written
from compare.parallel import processes_of
from compare.plan import plan_runs
from compare.record import is_search, read_records
from compare.tips import read_tips
from tasks.base import IGNORE
from tasks.mqar import Mqar

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKED = [path for path in PAGES if re.search(r"^<!-- /", path.read_text(encoding="utf-8"), re.M)]


PARSE_ONLY = {
    **{"diff": diff_parser, "evaluate": evaluate_parser, "predict": predict_parser},
    **{"merge": merge_parser, "publish": publish_parser, "plan": plan_parser},
}
SMALL = "--no-control --seq-len 64 --steps 2 --d-model 16 --n-layers 1 --batch-size 4"


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, code) of every fenced block of a language."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        found += [(path.name, code) for code in re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)]
    return found


def commands() -> list[str]:
    """Every ``python -m compare …`` of the pages, without comments."""
    lines = [line for _, code in blocks("sh") for line in code.splitlines()]
    return list(dict.fromkeys(line.split("  #")[0].strip() for line in lines if line.startswith("python -m compare")))


def launches() -> list[str]:
    """Every command of the pages that starts several processes of a comparison."""
    lines = [line for _, code in blocks("sh") for line in code.splitlines()]
    return list(dict.fromkeys(line for line in lines if re.match(r"(torchrun|accelerate launch) .*-m compare", line)))


def words_of(backend: str) -> str:
    """The docstring of a backend's file, in one line."""
    source = (ROOT / f"zoo/attention/{backend}.py").read_text(encoding="utf-8")
    return " ".join((ast.get_docstring(ast.parse(source)) or "").split())


def printed(file: str) -> list[dict[str, Any]]:
    """The lines of JSON that a benchmark printed. file: below results/cpu-2core."""
    return list(map(json.loads, (ROOT / "results/cpu-2core" / file).read_text(encoding="utf-8").splitlines()))


def test_the_readme_is_read_in_five_minutes() -> None:
    size = len((ROOT / "README.md").read_bytes())
    assert size <= 8192, f"README.md has {size} bytes, more than 8192: move text to docs/"


def test_the_readme_counts_backends_and_tasks() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(zoo.available())} interchangeable attention backends" in text
    assert f"{len(tasks.available())} tasks" in text


def test_the_advice_of_the_readme_is_that_of_the_records() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    runs = {r["variant"]: r for r in read_records(ROOT / "results/cpu-2core/main/records.jsonl")[0]}
    score = {name: f"{100 * run['test_score']:.1f} %" for name, run in runs.items()}
    ratio = runs["linear"]["step_seconds"] / runs["full"]["step_seconds"]
    assert f"recalls {score['linear']} of the pairs where `full` recalls {score['full']}, in {ratio:.2f} of" in text
    assert f"Do not take `linformer` for it ({score['linformer']})" in text
    by_pairs: dict[tuple[str, int], list[float]] = {}
    for r in read_records(ROOT / "results/cpu-2core/recall_pairs/records.jsonl")[0]:
        if not is_search(r):
            pairs = dict(r["spec"]["task_options"])["pairs"]
            by_pairs.setdefault((r["variant"], pairs), []).append(r["test_score"])
    mean = {key: f"{100 * sum(scores) / len(scores):.1f} %" for key, scores in by_pairs.items()}
    assert f"`linear` recalls {mean['linear', 16]} of 16 pairs and {mean['linear', 256]} of 256" in text
    assert f"`reformer`, which recalls {mean['reformer', 256]} of 256" in text


@pytest.mark.parametrize("path", MARKED, ids=lambda path: path.name)
def test_tables_and_results_are_those_of_registries_and_records(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == written(path), f"{path.name} is older than its sources: `make readme`"


def test_every_table_is_shown() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in MARKED)
    assert [name for name in markdown() if f"<!-- {name} -->" not in shown] == []


@pytest.mark.parametrize(("page", "code"), [block for block in blocks("python") if block[0] != "extending.md"])
def test_code_runs(page: str, code: str) -> None:
    exec(compile(code, page, "exec"), {})


@pytest.mark.parametrize("command", [*launches(), "torchrun --nproc-per-node 2 -m compare"])
def test_launched_commands_can_be_shared(command: str) -> None:
    number, words = re.findall(r"--n(?:proc-per-node|um_processes) (\d) -m compare(.*)", command)[0]
    options = run_parser().parse_args(shlex.split(words))
    options.parallel = options.parallel or f"data={number}"
    assert processes_of(options.parallel) == int(number)
    assert plan_runs(options, "cpu", 1).specs


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command)[3:]
    if words[:1] == ["cost"]:
        plan_runs(cost_parser().parse_args(words[1:]), "cpu", 2)
    elif words[:1] == ["ablate"]:
        options = ablate_parser().parse_args(words[1:])
        assert read_tips(options.tips)
        plan_runs(options, "cpu", 2)
    elif words[:1] and words[0] in PARSE_ONLY:
        PARSE_ONLY[words[0]]().parse_args(words[1:])
    elif words[:1] not in (["list"], ["report"], ["reproduce"]) and "my_module" not in command:
        plan_runs(run_parser().parse_args(words), "cpu", 2)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_steps_on_a_gpu_are_those_of_the_records() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    told = page.split("## On a GPU")[1].split("The sparse family")[0]
    lines = (ROOT / "results/h200/cost/records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for line in lines if (record := json.loads(line))["status"] == "ok"]
    for length, part in zip((32768, 65536), told.split("At 65,536"), strict=True):
        times = {r["variant"]: 1e3 * r["step_seconds"] for r in records if r["seq_len"] == length}
        full = times.pop("full")
        assert re.search(rf"takes {full:.1f}\b", part)
        pairs = [(name, float(time)) for name, time in re.findall(r"`(\w+)` ([\d.]+\d)", part)]
        assert dict(pairs) == {name: float(f"{times[name]:.1f}") for name, _ in pairs}
        assert set(times) - dict(pairs).keys() <= {"mean", "xformers"}  # a control, and full's kernel by another name
        if length == 32768:
            faster, slower = part.split("Not faster")
            assert all(times[name] < full for name in re.findall(r"`(\w+)` \d", faster.split("Faster")[1]))
            assert all(times[name] >= full for name in re.findall(r"`(\w+)` \d", slower))


def test_what_the_page_says_of_limits_is_in_the_records() -> None:
    page = " ".join((ROOT / "docs/limits.md").read_text(encoding="utf-8").split())
    records = read_records(ROOT / "results/cpu-2core/roofline/records.jsonl")[0]
    assert {record["status"] for record in records} == {"ok"}
    assert {tuple(record["spec"][name] for name in ("n_layers", "d_model", "n_heads")) for record in records} == {
        (1, 256, 4)
    }
    share, moved = {}, {}
    for record in records:
        rate = record["flops"] / record["forward_backward_seconds"]
        share[record["variant"]] = rate / record["matrix_rate_flops"]
        moved[record["variant"]] = record["moved_bytes"] / record["flops"]
    assert max(share, key=lambda name: share[name]) == "full", "the page says that it is at the roof"
    far = ("gated_deltanet", "mamba2", "based", "topk")
    assert f"**{', '.join(f'`{name}`' for name in far[:-1])} and `{far[-1]}` are far from it**" in page
    assert max(share[name] for name in far) < 0.45
    assert all(3 <= moved[name] / moved["linear"] <= 5.2 for name in far), "three to five times the bytes"
    assert min(share[name] for name in ("linear", "cosformer", "linformer", "none")) > 0.65


def test_ratios_to_public_packages_are_those_of_the_records() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    told = page.split("## Beside public packages")[1].split("## ")[0]
    (found,) = by_dtype(read_rows(ROOT / "results/cpu-2core/peers/peers.jsonl"))
    train, _, inference = TIMES
    assert f"Over {len(found.labels)} pairs and {len(found.shapes)} shapes" in told
    assert f"median is {found.overall(train):.2f} of the packages' time in training" in told
    assert f"{found.overall(inference):.2f} in inference, and {found.overall(MEMORY):.2f} of their memory" in told
    slower: dict[Label, list[float]] = {}
    for of in found.labels:
        cells = [ratio for measure in TIMES for ratio in found.ratios(measure, of).values()]
        if round(max(cells), 2) > 1:
            slower[of] = cells
        if of.package != "linear-attention-transformer":
            assert max(found.ratios(MEMORY, of).values()) < 1.05, of
    listed = [f"`{of.backend}` ({min(cells):.2f} to {max(cells):.2f})" for of, cells in slower.items()]
    assert f"Slower than the package at some shape are {', '.join(listed[:-1])} and {listed[-1]}" in told


def test_few_steps_of_the_recurrent_are_those_of_the_records() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    assert "`gated_deltanet`, `mamba2` and `based` took less than a third of the steps of `linear`" in page
    runs = [r for r in read_records(ROOT / "results/cpu-2core/recall_8192/records.jsonl")[0] if not is_search(r)]
    steps = {name: [r["train_steps"] for r in runs if r["variant"] == name] for name in {r["variant"] for r in runs}}
    assert 3 * max(steps["gated_deltanet"] + steps["mamba2"] + steps["based"]) < min(steps["linear"])


def test_steps_to_recall_are_those_that_were_printed() -> None:
    page = (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    told = page.split("## Steps or another rate")[1].split("\n## ")[0]
    table = {name: cells.split(" | ") for name, cells in re.findall(r"^\| `(\w+)` \| (.*) \|$", told, re.M)}
    found: dict[str, list[str]] = {}
    for run in printed("recall_steps/causal.jsonl"):
        steps = next((100 * (i + 1) for i, share in enumerate(run["accuracy"]) if share >= 0.9), None)
        ended = f"{100 * run['accuracy'][-1]:.1f} % after {100 * len(run['accuracy']):,}"
        found.setdefault(run["variant"], []).append(ended if steps is None else str(steps))
    assert table == found


def test_the_start_of_queries_and_keys_is_that_of_the_records() -> None:
    scores: dict[tuple[str, str, float], list[float]] = {}
    for file in ("mqar_64.jsonl", "mqar_64_kernels.jsonl", "recall_128.jsonl"):
        for run in printed(f"initialisation/{file}"):
            scores.setdefault((run["task"], run["variant"], run["start"]), []).append(100 * run["test"])
    told = " ".join((ROOT / "zoo/contract.py").read_text(encoding="utf-8").replace("# ", "").split())
    linear = words_of("linear")
    cases = (
        ("mqar", "full", told),
        ("mqar", "nystromformer", told),
        ("mqar", "linear", linear),
        ("noisy_recall", "linear", linear),
    )
    for task, variant, words in cases:
        both = scores[task, variant, 0.333], scores[task, variant, 1.0]
        third, one = (f"{min(each):.1f} to {max(each):.1f} %" for each in both)
        assert third in words
        assert one in words
        assert (sum(both[0]) > sum(both[1]) + 3) == (variant != "linear")
    assert all(map(float.__lt__, *both)), "from 1 linear recalls more, with each seed"


def test_backends_tell_what_they_recall_after_few_steps() -> None:
    runs = {(run["variant"], run["rate"]): run["accuracy"] for run in printed("recall_steps/causal.jsonl")}
    told = {name: words_of(name) for name in ("gated_deltanet", "mamba2", "retnet")}

    def after(steps: int, name: str, rate: float = 3e-3) -> str:
        return f"{100 * runs[name, rate][steps // 100 - 1]:.1f} %"

    few, more = (after(steps, "gated_deltanet") for steps in (300, 400))
    assert f"reaches {few} after 300 optimizer steps and {more} after 400" in told["gated_deltanet"]
    (longer,) = printed("recall_steps/at_128.jsonl")
    few, more = (f"{100 * longer['accuracy'][steps // 100 - 1]:.1f} %" for steps in (300, 400))
    assert (
        f"At 128 tokens the layer reaches {few} after 300 optimizer steps and {more} after 400"
        in told["gated_deltanet"]
    )
    theirs = printed("recall_steps/authors.jsonl")
    assert [run["rate"] for run in theirs] == [1e-3, 3e-3, 1e-2]
    assert all(len(run["accuracy"]) == 10 and max(run["accuracy"]) < 0.03 for run in theirs)
    few, more = (after(steps, "mamba2") for steps in (300, 400))
    assert f"reaches {few} after 300 optimizer steps at 3e-3, and {more} after 400" in told["mamba2"]
    chance, other, late = after(400, "retnet"), after(400, "gated_deltanet"), after(1000, "retnet", 1e-3)
    assert f"at chance, {chance} at 3e-3, after 400 optimizer steps" in told["retnet"]
    assert f"``gated_deltanet`` has {other}, and reaches {late} at 1e-3 after 1,000" in told["retnet"]


def test_three_runs_of_the_main_job_agree() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    first, second, third = (recalled(folder) for folder in ("main", "main_2", "main_3"))
    told = {"full": "`full`", "linear": "`linear`", "linformer": "`linformer`", "none": "the control"}
    for name, words in told.items():
        ((one,), (again,), (last,)) = (next(iter(run[name].values())) for run in (first, second, third))
        least = {"full": 90, "linear": 50}.get(name, 0)
        most = 100 if least else 10
        assert all(least <= score <= most for score in (one, again, last)), name
        assert f"{words} {listed([again, last])}" in page


def recalled(folder: str) -> dict[str, dict[float, list[float]]]:
    """Variant -> learning rate -> accuracy of each seed, %, of results/cpu-2core/``folder``."""
    found: dict[str, dict[float, list[float]]] = {}
    for run in read_records(ROOT / f"results/cpu-2core/{folder}/records.jsonl")[0]:
        if not is_search(run):
            found.setdefault(run["variant"], {}).setdefault(run["spec"]["lr"], []).append(100 * run["test_score"])
    return found


def rate_words(rate: float) -> str:
    """ "3e-3"."""
    return f"{rate:.0e}".replace("e-0", "e-")


def listed(scores: list[float]) -> str:
    """ "99.0, 97.5 and 97.7 %"."""
    *first, last = (f"{score:.1f}" for score in scores)
    return f"{', '.join(first)} and {last} %" if first else f"{last} %"


LOOKING_UP = ("topk", "skyformer", "performer", "reformer", "s4d", "hyena", "gated_deltanet", "mamba2", "retnet")


@pytest.mark.parametrize(
    ("folder", "variants"),
    [("mqar_64", LOOKING_UP), ("mqar_64_causal", ("retnet",)), ("mqar_64_longer", ("gated_deltanet",))],
)
def test_backends_tell_what_they_recall_in_the_records(folder: str, variants: tuple[str, ...]) -> None:
    for name in variants:
        (scores,) = recalled(folder)[name].values()
        (told,) = re.findall(rf"recalls ([\d., and]+ %)[^%]*?``results/cpu-2core/{folder}``", words_of(name))
        assert told == listed(scores), name


def test_recall_at_64_tokens_is_that_of_the_records() -> None:
    page = (ROOT / "docs/findings.md").read_text(encoding="utf-8")
    told = page.split("## Who recalls at 64 tokens")[1].split("\n## ")[0]
    table = re.findall(r"^\| `(\w+)` \| (.*) \| (\S+) \| (.*) \| ([\d.]+) \|$", told, re.M)
    records = read_records(ROOT / "results/cpu-2core/mqar_64/records.jsonl")[0]
    options = {r["variant"]: r["label"].removeprefix(r["variant"]).strip() for r in records}
    assert set(options) == {entry.name for entry in backends() if entry.own}
    wanted = []
    for name, by_rate in recalled("mqar_64").items():
        ((rate, scores),) = by_rate.items()
        assert len(scores) >= 3, "fewer seeds are no ranking"
        assert len(scores) >= 5 or max(scores) - min(scores) < 15, f"{name}: seeds that fall apart need five"
        mean = sum(scores) / len(scores)
        each = ", ".join(f"{score:.1f}" for score in scores)
        wanted.append((mean, (name, options[name], rate_words(rate), each, f"{mean:.1f}")))
    assert table == [row for _, row in sorted(wanted, key=lambda pair: -pair[0])]
    words = " ".join(told.split())
    assert f"after 2,000 steps {listed(recalled('mqar_64_longer')['gated_deltanet'][3e-3])}" in words
    assert f"causal form: {listed(recalled('mqar_64_causal')['retnet'][3e-3])} after 4,000" in words
    found = {(r["variant"], r["spec"]["lr"]): r["val_score"] for r in records if is_search(r)}
    assert max(found["gated_deltanet", 1e-3], found["gated_deltanet", 1e-2], found["topk", 1e-2]) < 0.25


def test_sparse_methods_recall_what_they_can_see() -> None:
    """The shares of the questions that ``dilated`` and ``local`` reach, beside their scores."""
    test = Mqar(64).whole("test")
    dilated, local = [], []
    for row, answers in zip(test.inputs, test.targets, strict=True):
        for asked in np.flatnonzero(answers != IGNORE):
            first, second = row[:-1] == row[asked], row[1:] == answers[asked]
            (key,) = np.flatnonzero(first & second)
            dilated.append(key // 16 == asked // 16 or (asked - key) % 4 == 0)
            local.append(asked - key <= 10)
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    shares = [f"{100 * np.mean(seen):.1f} %" for seen in (dilated, local)]
    means = [f"{np.mean(recalled('mqar_64')[name][3e-3]):.1f} %" for name in ("dilated", "local")]
    assert f"distance: {shares[0]} of the questions, and it recalls {means[0]}" in page
    assert f"within 10 positions of {shares[1]}, and it recalls {means[1]}" in page


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "findings/index.html", "backends/linformer/index.html", "tasks/mqar/index.html"):
        assert (tmp_path / page).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add_attention.py"], "(2, 300, 64)"),
        (["read_records.py", str(ROOT / "results/cpu-2core/main")], "linformer"),
        (["choose_attention.py", "texts.csv", *SMALL.split(), "--variants", "linear"], "linear   accuracy"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_examples_run(words: list[str], said: str, tmp_path: Path) -> None:
    texts = [f"{word} {number} of them,{word}" for number in range(150) for word in ("fine", "poor")]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    script = [sys.executable, str(ROOT / "examples" / words[0]), *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ATTENTION_ZOO_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "examples" / "swap_bert.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "linformer: 2 layers swapped, " in done.stdout
    assert "largest difference: " in done.stdout
    assert (tmp_path / "swap_bert.png").stat().st_size > 10_000
    assert all(not cell.get("outputs") for cell in cells), "outputs would be figures that no command made"


def test_a_wheel_runs_from_any_folder(tmp_path: Path) -> None:
    def run(*words: str | Path, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    command = site / "bin" / "attention-zoo"
    assert "attention-zoo 0.1.0, torch " in run(command, "--version", PYTHONPATH=str(site))
    words = ["--variants", "linear", "--no-control", "--tasks", "mqar", "--seq-len", "32", "--steps", "1"]
    words += ["--d-model", "16", "--batch-size", "4", "--out", "out"]
    run(command, *words, PYTHONPATH=str(site))
    assert (tmp_path / "out" / "report.html").exists()
    where = run("-c", "import compare, tasks; print(compare.__file__, tasks.__file__)", PYTHONPATH=str(site))
    assert where.count(str(site)) == 2


def test_results_hold_records_and_the_pictures_that_are_shown() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.split()]
    if not files:
        pytest.skip("not a clone")
    assert sum(path.stat().st_size for path in files) <= 28 * 2**20
    shown = "".join(path.read_text(encoding="utf-8") for path in [*PAGES, ROOT / "results/README.md"])
    for path in files:
        if path.suffix not in (".jsonl", ".json", ".md"):
            assert path.suffix == ".png", path
            assert path.relative_to(ROOT / "results").as_posix() in shown, f"{path} is shown nowhere"


def test_scores_by_pairs_are_those_of_the_records() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    records, _ = read_records(ROOT / "results/cpu-2core/recall_pairs/records.jsonl")

    def scores(variant: str, pairs: int) -> list[float]:
        own = [r for r in records if r["variant"] == variant and not is_search(r)]
        found = [r for r in own if dict(r["spec"]["task_options"]).get("pairs", 16) == pairs]
        return [100 * r["test_score"] for r in sorted(found, key=lambda record: record["seed"])]

    for variant in ("linear", "cosformer"):
        before, after = (sum(scores(variant, pairs)) / 3 for pairs in (16, 256))
        assert re.search(rf"`{variant}` (falls )?from {before:.1f} to {after:.1f} %", page), (variant, before, after)
    for variant, pairs, words in (
        ("full", 4, "{:.1f}, {:.1f} and {:.1f} %"),
        ("topk", 64, "({:.1f}, {:.1f} and {:.1f} %)"),
    ):
        assert words.format(*scores(variant, pairs)) in page


def test_five_seeds_are_those_of_the_records() -> None:
    page = (ROOT / "docs/findings.md").read_text(encoding="utf-8").split("Five seeds on another")[1]
    found: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for run in read_records(ROOT / "results/cpu-2core/recall_pairs_seeds/records.jsonl")[0]:
        cell = run["variant"], str(dict(run["spec"]["task_options"])["pairs"]), rate_words(run["spec"]["lr"])
        found.setdefault(cell, []).append((run["seed"], 100 * run["test_score"]))
    assert set(map(len, found.values())) == {5}
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\S+) \| ([\d., ]+) \|$", page, re.M)
    assert told == [(*cell, ", ".join(f"{score:.1f}" for _, score in sorted(own))) for cell, own in found.items()]


def test_no_single_learning_rate_suits_all() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    assert "at 1e-3 neither `reformer` nor `topk` solves the task, and at 1e-2 `full` and `luna` do not" in page
    records, _ = read_records(ROOT / "results/cpu-2core/recall_8192/records.jsonl")
    searched = {(r["variant"], r["spec"]["lr"]): r["val_score"] for r in records if is_search(r)}
    rates = {"reformer": (1e-3, 1e-2), "topk": (1e-3, 3e-3), "full": (1e-2, 1e-3), "luna": (1e-2, 1e-3)}
    for variant, (bad, good) in rates.items():
        assert searched[variant, bad] < 0.5 < searched[variant, good]


def test_steps_and_rates_at_2048_are_those_of_the_records() -> None:
    page = " ".join((ROOT / "docs/findings.md").read_text(encoding="utf-8").split())
    records, _ = read_records(ROOT / "results/cpu-2core/recall_2048/records.jsonl")
    runs: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if not is_search(record):
            runs.setdefault(record["variant"], []).append(record)
    assert set(runs) == set(zoo.available())
    for variant in ("skyformer", "based", "gated_deltanet", "mamba2", "linear"):
        steps = [record["train_steps"] for record in runs[variant]]
        assert re.search(rf"`{variant}` (takes )?{min(steps):,} to {max(steps):,}", page), variant
    told = page.split("The best rate is ")[1].split("##")[0]
    for part, rate in zip(
        re.split(r", 3e-3 for|, and 1e-3 for", told.removeprefix("1e-2 for")), (1e-2, 3e-3, 1e-3), strict=True
    ):
        names = re.findall("`([a-z]+)`", part)
        assert names
        for name in names:
            assert {record["spec"]["lr"] for record in runs[name]} == {rate}, name
