"""Compilers, export and torch.func: ``docs/transforms.md`` says what goes through, and it is so."""

from __future__ import annotations

import pytest

from tests.transforms import TABLE, func_grad, func_vmap, line_of, made, row, rows, tried
from zoo import available

SOME = [("local", True)]


def written(name: str, causal: bool) -> str:
    """The line of the page."""
    line = line_of(TABLE.read_text(), name, causal)
    assert line, f"docs/transforms.md has no line of {name}: python -m tests.transforms {name}"
    return line


@pytest.mark.parametrize(("attention", "causal"), rows(available()))
def test_per_sample_gradients_are_those_of_eager_code(attention: str, causal: bool) -> None:
    """vmap of grad where the page says so, else grad alone."""
    line = written(attention, causal)
    if line.endswith("| ✓ |"):
        func_vmap(*made(attention, causal, padded=True))
    else:
        func_grad(*made(attention, causal, padded=True))
        assert f"| {tried(func_vmap, attention, causal)} |" in line


@pytest.mark.parametrize(("attention", "causal"), SOME)
def test_the_page_says_what_goes_through(attention: str, causal: bool) -> None:
    assert row(attention, causal) == written(attention, causal)


@pytest.mark.long
@pytest.mark.parametrize(("attention", "causal"), rows(available()))
def test_the_whole_page_says_what_goes_through(attention: str, causal: bool) -> None:
    assert row(attention, causal) == written(attention, causal)
