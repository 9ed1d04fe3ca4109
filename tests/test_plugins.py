"""Backends from one's own module by its place, from packages by entry points, and what goes wrong there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from zoo import Encoder, available, describe
from zoo.registry import _load_plugins

pytestmark = pytest.mark.usefixtures("own_registry")

PLUGIN = '''
from dataclasses import dataclass

from zoo import register
from zoo.contract import Attention, Traits


@dataclass(frozen=True)
class Config:
    """scale: of the values."""

    scale: float = 1.0


@register("NAME", config=Config)
class Scaled(Attention):
    """Values, scaled."""

    traits = Traits(family="test", source="none", year=None, time="O(N)", memory="O(N)", causal=False)

    def __init__(self, dims, config):
        super().__init__(dims)
        self.scale = config.scale

    def forward(self, q, k, v, *, key_padding_mask=None):
        return self.scale * v


class Loose:
    pass
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to put modules and distributions in; plug-ins are looked for anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    _load_plugins.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    _load_plugins.cache_clear()


def install(folder: Path, distribution: str, **points: str) -> None:
    """A distribution with entry points, as pip leaves it."""
    info = folder / f"{distribution.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.1\n")
    listed = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[attention_zoo.backends]\n{listed}")


def test_a_class_in_a_module_of_ones_own_is_found_by_its_place(folder: Path) -> None:
    (folder / "mine_by_place.py").write_text(PLUGIN.replace("NAME", "mine_by_place"))
    entry = describe("mine_by_place:Scaled")
    assert entry.name == "mine_by_place"
    assert entry.explanations == {"scale": "of the values."}
    assert describe("mine_by_place") is entry
    assert "mine_by_place" in available()
    encoder = Encoder("mine_by_place:Scaled", d_model=8, n_heads=2, n_layers=1, max_len=16)
    assert encoder(torch.randn(1, 5, 8)).shape == (1, 5, 8)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (
            None,
            "nowhere:Scaled",
            "there is no module 'nowhere': name it as in `import nowhere`, from the current folder",
        ),
        (None, "nowhere.py:Scaled", "there is no module 'nowhere.py': name it as in `import nowhere`"),
        (None, ":Scaled", "cannot import : ValueError: Empty module name"),
        ("def (:\n", "MODULE:Scaled", r"cannot import MODULE: SyntaxError: .*\(MODULE.py, line 1\)"),
        (
            "import not_there\n",
            "MODULE:Scaled",
            "cannot import MODULE: ModuleNotFoundError: No module named 'not_there'",
        ),
        (PLUGIN + "1 / 0\n", "MODULE:Scaled", "cannot import MODULE: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "MODULE:Scaled", "cannot import MODULE: SystemExit: 3"),
        (PLUGIN, "MODULE:Scald", "^MODULE has no class 'Scald', did you mean 'Scaled'"),
        (PLUGIN, "MODULE:", "MODULE has no class ''"),
        (PLUGIN, "MODULE:Loose", "MODULE:Loose is not registered: decorate it with @register"),
        (
            PLUGIN.replace("v, *, key_padding_mask=None", "v"),
            "MODULE:Scaled",
            r"^MODULE:Scaled breaks the contract: forward must take \(q, k, v, \*, key_padding_mask=None\)",
        ),
        (
            PLUGIN.replace("NAME", "full"),
            "MODULE:Scaled",
            "^cannot register MODULE:Scaled as 'full' with Config: zoo.attention.full:FullAttention is registered as",
        ),
    ],
)
def test_a_module_that_cannot_be_used_is_told_in_one_line(
    text: str | None, place: str, message: str, folder: Path
) -> None:
    module = folder.name  # another one in each test
    if text is not None:
        (folder / f"{module}.py").write_text(text.replace("NAME", module))
    before = set(available())
    with pytest.raises(ValueError, match=message.replace("MODULE", module)) as caught:
        describe(place.replace("MODULE", module))
    assert "\n" not in str(caught.value)
    if "1 / 0" in (text or ""):
        assert set(available()) == before, "half a module stays registered"


def test_a_package_brings_backends_by_entry_points(folder: Path) -> None:
    for module in ("plugin_a", "plugin_b"):
        (folder / f"{module}.py").write_text(PLUGIN.replace("NAME", f"from_{module}"))
    install(folder, "two-plugins", from_plugin_a="plugin_a:Scaled", from_plugin_b="plugin_b")
    assert {"from_plugin_a", "from_plugin_b"} <= set(available())
    assert describe("from_plugin_a").cls.__module__ == "plugin_a"


def test_a_broken_plugin_is_named_in_one_line_and_the_others_go_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "plugin_good.py").write_text(PLUGIN.replace("NAME", "good_one"))
    (folder / "plugin_bad.py").write_text(PLUGIN.replace("NAME", "bad_one") + "import not_there\n")
    (folder / "plugin_rule.py").write_text(PLUGIN.replace("NAME", "rule_one").replace("dims, config", "d_model"))
    (folder / "plugin_thief.py").write_text(PLUGIN.replace("NAME", "linformer"))
    (folder / "plugin_other.py").write_text(PLUGIN.replace("NAME", "another_name"))
    install(
        folder,
        "my-plugins",
        good_one="plugin_good:Scaled",
        bad_one="plugin_bad:Scaled",
        rule_one="plugin_rule",
        linformer="plugin_thief:Scaled",
        reformer="plugin_good",
        promised="plugin_other:Scaled",
    )
    with caplog.at_level(logging.WARNING):
        names = available()
        available()
    assert "good_one" in names
    assert "bad_one" not in names
    said = {record.getMessage() for record in caplog.records}
    left_out = "attention plug-in '{}' of my-plugins 0.1 ({}) is left out: {}".format
    assert said == {
        left_out("bad_one", "plugin_bad:Scaled", f"cannot import plugin_bad: {missing('not_there')}"),
        left_out("rule_one", "plugin_rule", "plugin_rule:Scaled breaks the contract: __init__ must take "
                 "(dims, config), got (d_model)"),
        left_out("linformer", "plugin_thief:Scaled", "cannot register plugin_thief:Scaled as 'linformer' with Config: "
                 "zoo.attention.linformer:LinformerAttention is registered as 'linformer' with LinformerConfig"),
        left_out("reformer", "plugin_good", "expected plugin_good to register 'reformer', got nothing of that name"),
        left_out("promised", "plugin_other:Scaled", "expected plugin_other:Scaled to register 'promised', "
                 "got 'another_name'"),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"'bad_one' of my-plugins 0.1 .* is left out: cannot import plugin_bad"):
        describe("bad_one")
    assert describe("linformer").own


def missing(module: str) -> str:
    return f"ModuleNotFoundError: No module named '{module}'"


def test_two_plugins_of_one_name_are_refused_and_both_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for module in ("plugin_first", "plugin_second"):
        (folder / f"{module}.py").write_text(PLUGIN.replace("NAME", "wanted_twice"))
    install(folder, "first", wanted_twice="plugin_first:Scaled")
    install(folder, "second", wanted_twice="plugin_second:Scaled")
    with caplog.at_level(logging.WARNING):
        assert "wanted_twice" not in available()
    assert len(caplog.records) == 1
    for part in ("first 0.1 (plugin_first:Scaled)", "second 0.1 (plugin_second:Scaled)"):
        assert part in caplog.text
    with pytest.raises(
        ValueError, match=r"first 0.1 \(.*\) and second 0.1 \(.*\) have the same name|second 0.1 .* and first"
    ):
        describe("wanted_twice")
