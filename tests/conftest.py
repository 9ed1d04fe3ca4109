"""Cases of the backend contract: every registered name × the options of its oracle × causal where it can."""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from zoo import MultiHeadAttention, available, describe
from zoo.contract import Attention, Dims, Traits
from zoo.cores import scan
from zoo.registry import _entries, build

# `datasets` keeps a copy of every file it reads: not in the home folder of whoever tests.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each
    os.environ["OMP_NUM_THREADS"] = "1"
else:  # one cache for all of them: what a task generates is built once
    os.environ["ATTENTION_ZOO_CACHE"] = tempfile.mkdtemp(prefix="zoo-")
    atexit.register(shutil.rmtree, os.environ["ATTENTION_ZOO_CACHE"], ignore_errors=True)
CACHED, scan.CACHED = scan.CACHED, 1  # the shortest chunks, so that short inputs have several
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def find_oracle(name: str) -> ModuleType:
    """The oracle of a backend; AssertionError where nobody wrote one."""
    assert importlib.util.find_spec(f"tests.oracles.{name}"), (
        f"backend {name!r} has no oracle: write tests/oracles/{name}.py with OPTIONS and oracle(module, …)"
    )
    return importlib.import_module(f"tests.oracles.{name}")


@dataclass(frozen=True)
class Case:
    """One backend with one choice of options."""

    name: str
    options: tuple[tuple[str, object], ...] = ()
    causal: bool = False

    @property
    def traits(self) -> Traits:
        return describe(self.name).traits

    def config(self) -> object:
        return describe(self.name).config(**dict(self.options))

    def backend(self, *, d_model: int = 16, n_heads: int = 2, max_len: int = 96, seed: int = 0) -> nn.Module:
        """The bare Attention or Mixer."""
        torch.manual_seed(seed)
        dims = Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, causal=self.causal)
        return build(self.config(), dims).eval()

    def sublayer(self, *, d_model: int = 16, n_heads: int = 2, max_len: int = 96, seed: int = 0) -> MultiHeadAttention:
        torch.manual_seed(seed)
        return MultiHeadAttention(
            self.config(), d_model=d_model, n_heads=n_heads, max_len=max_len, causal=self.causal
        ).eval()

    def non_causal(self) -> Case:
        return replace(self, causal=False)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return self.name + (f"[{options}]" if options else "") + ("-causal" if self.causal else "")


def cases() -> list[Case]:
    """All cases. A backend without an oracle gives one case with its defaults, and fails the oracle law."""
    found = []
    for name in available():
        has_oracle = importlib.util.find_spec(f"tests.oracles.{name}") is not None
        for options in find_oracle(name).OPTIONS if has_oracle else [{}]:
            for causal in (False, True) if describe(name).traits.causal else (False,):
                found += [Case(name, tuple(options.items()), causal)]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(), ids=str)
    if "causal_case" in metafunc.fixturenames:
        metafunc.parametrize("causal_case", [case for case in cases() if case.causal], ids=str)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", available())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A declared exception to a law is a strict expected failure; tests that train for minutes have an hour."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(3600))
        law = item.get_closest_marker("law")
        callspec = getattr(item, "callspec", None)
        if not law or not callspec:
            continue
        given = callspec.params
        case = given.get("case") or given.get("causal_case") or Case(given.get("name", "none"))
        if law.args[0] in case.traits.exceptions:
            item.add_marker(pytest.mark.xfail(strict=True, reason=case.traits.exceptions[law.args[0]]))


def pytest_collection_finish() -> None:
    """What is imported and collected by now stays: looking through it for garbage takes half a second each time."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # for nanobind, which complains of what nobody has collected at the end


def heads(
    backend: nn.Module, length: int, *, batch: int = 2, d_model: int = 16, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Random inputs for a bare backend: (q, k, v) for an Attention (k is q where shared), (x,) for a Mixer."""
    if not isinstance(backend, Attention):
        return (torch.randn(batch, length, d_model, dtype=dtype, requires_grad=True),)
    shape = (batch, 2, length, d_model // 2)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    return (q, q, v) if backend.traits.shared_qk else (q, k, v)


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Leave the registry as it was."""
    available()
    before = dict(_entries)
    yield
    _entries.clear()
    _entries.update(before)


@pytest.fixture
def blank_charts() -> Iterator[None]:
    """For tests that read the words of a report and the names of its charts."""
    from tests import here

    with here.blank_charts():
        yield
