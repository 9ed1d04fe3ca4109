"""The words of the command line: values, what one can type wrong, help, and what ``list`` prints and writes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compare.arguments import cost_parser, run_parser
from compare.errors import UsageError
from tests.make_records import make_record, write_folder
from tests.test_compare import ROOT, compare


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 2**34), ("512 MiB", 2**29), ("1.5g", 3 * 2**29), ("4096", 4096), ("8kb", 8192)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert run_parser().parse_args(["--memory-limit", text]).memory_limit == size


@pytest.mark.parametrize(
    ("text", "found"), [("8k", [8192]), ("512:16K", [2**n for n in range(9, 15)]), ("1k, 3000", [1024, 3000])]
)
def test_a_length_may_be_told_in_k(text: str, found: list[int]) -> None:
    for parser in (run_parser(), cost_parser()):
        assert parser.parse_args(["--seq-len", text]).seq_len == found
    assert cost_parser().parse_args(["--longest", "64k"]).longest == 65_536


@pytest.mark.parametrize("text", ["0", "-1GB", "16XB", "much", ""])
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="expected a size such as 500MB or 16GB"):
        run_parser().parse_args([f"--memory-limit={text}"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--variants", "linfromer"],
            r"--variants: unknown attention 'linfromer'. Did you mean 'linformer'\? Available: .*block_sparse, ",
        ),
        (["--variants", ""], "expected at least one variant"),
        (["--tasks", "mqr"], r"unknown task 'mqr' \(did you mean 'mqar'\?\); known: all, quick, lra, diagnostics, "),
        (["--seq-len", "0"], "--seq-len: expected a positive integer, got '0'"),
        (["--seq-len", "-5"], "expected a positive integer, got '-5'"),
        (["--seq-len", "many"], "expected a positive integer, got 'many'"),
        (["--seq-len", "1024,"], "expected a positive integer, got ''"),
        (["--seq-len", "9999999"], "seq_len.*9999999"),
        (["--seeds", "0"], "--seeds: expected a positive integer"),
        (["--budget", "nan"], "--budget: expected a positive number, got 'nan'"),
        (["--budget", "5", "--steps", "5"], "not allowed with"),
        (["--checkpointing", "--reversible"], "--reversible: not allowed with argument --checkpointing"),
        (["--d-model", "30", "--n-heads", "4"], "d_model must be a multiple of n_heads, got d_model=30, n_heads=4"),
        (
            ["--set", "linformer.rnk=3"],
            r"linformer has no option 'rnk' \(did you mean 'rank'\?\); its options: rank, sh",
        ),
        (["--set", "linformer.rank=big"], "expected an integer, got 'big'"),
        (["--set", "linformer.rank=0"], "linformer.rank must be an integer of at least 1, got 0"),
        (["--set", "linformer.rank"], "expected NAME.OPTION=VALUE"),
        (["--set", "nobody.rank=3"], "--set: unknown attention 'nobody'. Available: "),
        (["--set", "linfromer.rank=3"], r"--set: unknown attention 'linfromer'. Did you mean 'linformer'\?"),
        (["--set", "full.size=3"], "full has no option 'size'; its options: kernel"),
        (["--set", "naive.size=3"], "naive has no option 'size'; it has no options"),
        (["--variants", "nowhere:MyAttention"], "--variants: there is no module 'nowhere'"),
        (["--set", "nowhere:MyAttention.rank=3"], "--set: there is no module 'nowhere'"),
        (
            ["--set", "reformer.n_hashes=3"],
            "variant or task of this comparison .full, linformer, linear, none, noisy_recall., got 'reformer'",
        ),
        (["--set", "block_sparse.layout=3"], "block_sparse has no option 'layout'"),
        (
            ["--tasks", "mqar", "--seq-len", "64", "--length-schedule", "from-16th"],
            r"from-16th \(50 % at N/16, .*\) trains at 4 of 64 tokens, but mqar has training samples of 32 tokens or",
        ),
        (
            ["--tasks", "digits", "--length-schedule", "from-16th"],
            "trains at .* tokens, but digits has training samples of full length only: take another schedule",
        ),
        (["--length-schedule", "short"], "invalid choice: 'short' .choose from '?from-64th'?, '?from-16th"),
        (["--lr-schedule", "step"], "invalid choice: 'step' .choose from '?constant-then-linear"),
        (["--warmup", "1"], "expected a share, at least 0 and below 1, got '1'"),
        (
            ["--warmup", "0", "--lr-schedule", "inverse-square-root"],
            "--warmup 0 cannot be combined with --lr-schedule inverse-square-root",
        ),
        (["--tasks", "mqar", "--data", "x.csv"], "--data: expected a task that takes it .*classify.*, got mqar"),
        (["--positions", "rotary-2d", "--tasks", "mqar"], "--positions rotary-2d: mqar has no pictures"),
        (["--dtype", "float16", "--device", "cpu"], "--dtype float16: expected a GPU, got a CPU"),
        (["--clip-norm", "-1"], "--clip-norm: expected 0 or a positive number, got '-1'"),
        (["--engine", "slurm"], "--engine slurm needs --timeout SECONDS"),
        (["ablate", "--tips", "amp+amp-fp16"], r"--tips amp\+amp-fp16: amp changes nothing beside the others"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "/nonexistent/x"], "folder /nonexistent/x does not exist"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--frobnicate"], r"unrecognized arguments: --frobnicate \(python"),
        (["--variant", "full"], r"unrecognized arguments: --variant full; did you mean --variants\? \(python"),
        (["--seqlen=64"], r"unrecognized arguments: --seqlen=64; did you mean --seq-len\?"),
        (["-variants", "full"], r"did you mean --variants\?"),
        (["—variants", "full"], r"did you mean --variants\?"),
        (["cost", "--longst", "64"], r"did you mean --longest\?"),
        (["run", "--seqlen=64"], r"unrecognized arguments: --seqlen=64; did you mean --seq-len\?"),
        (["reproduce", "mad-memorise"], r"reproduce: expected a plan among .* .did you mean 'mad-memorize'"),
        (["reproduce", "mad-memorize", "--sedes", "1"], r"did you mean --seeds\?"),
        (["reprot", "results"], r"unrecognized arguments: reprot results; did you mean report\?"),
        (
            ["--lr", "1e-3,3e-3"],
            "--lr: expected one rate, got '1e-3,3e-3'; to choose among several, use --lr-grid 1e-3,3e",
        ),
        (["--seeds", "0,1,2"], "--seeds: expected the number of seeds .3 runs seeds 0, 1 and 2., got '0,1,2'"),
        (["--seq-len", "8kk"], "--seq-len: expected a positive integer, got '8kk'"),
        (["--seq-len", "k"], "--seq-len: expected a positive integer, got 'k'"),
        (
            ["--memory-limit", "16"],
            "--memory-limit: expected a size with its unit such as 500MB or 16GB, .* got 16 bytes",
        ),
        (["report", "/nonexistent"], "/nonexistent has no records.jsonl"),
        (["report"], "required: DIR"),
        (["list", "linfromer"], r"list: unknown attention 'linfromer'. Did you mean 'linformer'\?"),
        (["list", "full", "extra"], "unrecognized arguments: extra"),
        (["list", "full", "--markdown"], "not allowed with"),
        (["list", "--write", "/nonexistent/README.md"], "--write /nonexistent/README.md: .*No such file"),
        (
            ["list", "--write", str(ROOT / "LICENSE")],
            "expected a marker, <!-- results/FOLDER --> or one of <!-- backends -->, ",
        ),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compare.__main__ import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    complaint = capsys.readouterr().err
    assert stop.value.code == 2, complaint
    assert re.search(message, complaint), complaint
    assert complaint.count("\n") == 1
    assert not list(tmp_path.iterdir()), "a usage error left something behind"


@pytest.mark.alone
def test_help_is_quick_and_does_not_import_torch() -> None:
    start = time.perf_counter()
    done = compare("--help")
    assert time.perf_counter() - start < 1
    assert done.returncode == 0
    assert "--variants" in done.stdout
    code = "import sys; from compare.arguments import cost_parser, run_parser; run_parser().format_help()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_list_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compare.__main__ import main

    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    listed = capsys.readouterr().out
    assert stop.value.code == 0
    assert max(map(len, listed.splitlines())) <= columns
    assert "…" not in listed, "a cell is cut short"
    for part in ("block_sparse", "linformer", "rank=256", "low-rank", "+524,288", "4.0 MiB", "O(N·M)", "mqar", "cache"):
        assert part in listed
    assert listed.index("exact") < listed.index("low-rank") < listed.index("control")


def test_list_of_one_is_what_describe_prints(capsys: pytest.CaptureFixture[str]) -> None:
    import zoo
    from compare.__main__ import main

    with pytest.raises(SystemExit) as stop:
        main(["list", "linformer"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{zoo.describe('linformer')}\n"


def test_the_tables_are_written_between_their_markers(tmp_path: Path) -> None:
    from compare.__main__ import main
    from compare.listing import markdown

    page, tables = tmp_path / "page.md", markdown()
    names = ("tasks", "suites", "backends", "backends in full")
    page.write_text("".join(f"a\n<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names))
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            main(["list", "--write", str(page)])
        assert stop.value.code == 0
        assert page.read_text() == "".join(f"a\n<!-- {n} -->\n{tables[n]}\n<!-- /{n} -->\n" for n in names)


def test_results_are_written_between_markers_that_name_their_folder(tmp_path: Path) -> None:
    from compare.listing import results, written

    folder = tmp_path / "results" / "one"
    charts = folder / "charts"
    charts.mkdir(parents=True)
    (charts / "accuracy_speed_mqar_64.png").touch()
    (charts / "other.png").touch()
    write_folder(folder, [make_record(variant, task="mqar", seq_len=64) for variant in ("full", "linear", "none")])
    page = tmp_path / "page.md"
    names = ("results/one", "results/one other")
    page.write_text("".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names))
    first, other = results(folder, "results/one"), results(folder, "results/one", "other")
    assert first.startswith("![accuracy speed mqar 64](results/one/charts/accuracy_speed_mqar_64.png)\n\nTask: ")
    assert other.startswith("![other](results/one/charts/other.png)\n\nTask: ")
    assert written(page) == "".join(
        f"<!-- {name} -->\n{text}\n<!-- /{name} -->\n" for name, text in zip(names, (first, other), strict=True)
    )
    (tmp_path / "docs").mkdir()
    below = tmp_path / "docs" / "page.md"
    below.write_text("<!-- ../results/one -->\nold\n<!-- /../results/one -->\n")
    assert "](../results/one/charts/accuracy_speed_mqar_64.png)" in written(below)
    below.write_text("<!-- ../results/one -->\nold\n")
    with pytest.raises(ValueError, match=r"expected a line <!-- /\.\./results/one --> after <!-- ../results/one -->"):
        written(below)
    with pytest.raises(ValueError, match=r"chart \S+ does not exist"):
        results(folder, "results/one", "absent")
