"""A backend of one's own in a comparison: from the current folder or a package, and what is wrong with it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from compare.arguments import run_parser
from compare.display import Display
from compare.runs.options import RunOptions
from compare.runs.sequence import run_all
from compare.runs.supervisor import run_one
from tests.here import run_here
from tests.test_compare import ROOT, SPEC, TINY, compare, records_of


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The example of docs/extending.md, in a current folder of its own; the registry is left as it was."""
    import zoo
    from zoo.registry import _entries

    text = (ROOT / "docs/extending.md").read_text().partition("## Add a backend from your own package")[2]
    path = tmp_path / "my_module.py"
    path.write_text(text.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    zoo.available()
    before = dict(_entries)
    yield path
    sys.modules.pop("my_module", None)
    _entries.clear()
    _entries.update(before)


def test_the_example_of_the_docs_runs_from_its_own_folder(module: Path) -> None:
    from compare.plan import plan_runs

    words = [*TINY, "--variants", "my_module:MyAttention", "--set", "my_attention.scale=5", "--no-control"]
    done = compare(*words, "--save", "--out", "out", cwd=module.parent)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (record,) = records_of(module.parent / "out")
    assert (record["status"], record["variant"]) == ("ok", "my_module:MyAttention"), record["reason"]
    assert record["label"] == "my_module:MyAttention scale=5.0"
    assert record["state_bytes"] is None, "it does not say"
    assert "my_module:MyAttention" in (module.parent / "out" / "report.html").read_text()

    command = record["command"].removeprefix("python -m compare ").split()
    (spec,) = plan_runs(run_parser().parse_args(command), "cpu", record["spec"]["threads"]).specs
    assert spec.run_id == record["run_id"], "the command of the record repeats another run"

    model = ["evaluate", "--model", f"out/{record['model']}"]
    said = "its attention is my_module:MyAttention: import my_module first, or give --attn"
    assert compare(*model, cwd=module.parent).stderr == f"error: out/{record['model']}: {said}\n"
    scored = json.loads(compare(*model, "--attn", "my_module:MyAttention", "--json", cwd=module.parent).stdout)
    assert scored["test_score"] == record["test_score"]
    said = Console(file=io.StringIO())
    assert run_all([spec], module.parent / "out" / "records.jsonl", Display(said), {}, RunOptions()) == [record]
    assert "1 of 1 runs are already in" in said.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("module")
def test_a_class_of_ones_own_stands_beside_the_zoos() -> None:
    from compare.choice import choose_variants
    from compare.settings import read_settings

    assert choose_variants("full,my_module:MyAttention, full") == {
        "full": "full",
        "my_attention": "my_module:MyAttention",
    }
    assert read_settings(["my_attention.scale=2", "my_module:MyAttention.scale=3"]) == {
        "my_attention": (("scale", 3.0),)
    }
    assert {"linformer", "my_attention"} <= set(choose_variants("all,my_module:MyAttention"))


@pytest.mark.parametrize(
    ("change", "variant", "message"),
    [
        (
            ("def forward", "def forwards"),
            "my_module:MyAttention",
            "MyAttention breaks the contract: it must define",
        ),
        (("*, key_padding_mask=None", "**kwargs"), "my_module:MyAttention", r"got \(q, k, v, \*\*kwargs\)"),
        (("frozen=True, ", ""), "my_module:MyAttention", "config must be a frozen dataclass, got MyConfig"),
        (("class MyConfig:", "class MyConfig"), "my_module:MyAttention", "cannot import my_module: SyntaxError: "),
        (("@register", "# @register"), "my_module:MyAttention", "my_module:MyAttention is not registered: decorate it"),
        (("", ""), "my_module:MyAtention", "my_module has no class 'MyAtention', did you mean 'MyAttention'"),
        (('"my_attention"', '"full"'), "my_module:MyAttention", "as 'full' .* zoo.attention.full:FullAttention is"),
    ],
)
def test_a_class_that_cannot_be_compared_is_one_line_and_exit_2(
    change: tuple[str, str], variant: str, message: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from compare.__main__ import main

    module.write_text(module.read_text().replace(*change))
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--variants", f"full,{variant}"])
    complaint = capsys.readouterr().err
    assert stop.value.code == 2, complaint
    assert re.search(f"^error: --variants: .*{message}", complaint), complaint
    assert complaint.count("\n") == 1
    assert not (module.parent / "results").exists()


def test_a_class_that_fails_at_work_is_a_row(module: Path) -> None:
    module.write_text(
        module.read_text().replace("return F.scaled_dot_product_attention(q, ", "return v[..., :1, :]  # (")
    )
    sys.path.append(str(module.parent))
    record = run_here(replace(SPEC, variant="my_module:MyAttention"))
    assert record["status"] == "error"
    assert re.fullmatch(
        r"ValueError: my_module:MyAttention breaks the contract: forward must return its input's shape .* got shape .*",
        record["reason"],
    )


def test_an_installed_plugin_is_one_of_all_and_runs(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = module.parent / "site"
    info = site / "my_plugin-0.1.dist-info"
    info.mkdir(parents=True)
    module.rename(site / module.name)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[attention_zoo.backends]\nmy_attention = my_module:MyAttention\nbroken = nowhere:Broken\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    code = "from compare.choice import choose_variants; print(*choose_variants('all')); "
    code += "from compare.__main__ import main; main(['list', 'broken'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert {"my_attention", "full", "linformer"} <= set(done.stdout.split())
    assert "broken" not in done.stdout
    refused = (
        r"attention plug-in 'broken' of my-plugin 0.1 \(nowhere:Broken\) is left out: there is no module 'nowhere'.*\n"
    )
    assert re.fullmatch(f"{refused}error: list: {refused}", done.stderr), done.stderr
    record = run_one(replace(SPEC, variant="my_attention", threads=1), lambda _: None)
    assert record["status"] == "ok", record["reason"]
