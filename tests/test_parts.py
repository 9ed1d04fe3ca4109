"""Parts: from layouts and windows, against the pairs that they show; and of any kind, against the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.counted import counts
from tests.test_blocks import KERNELS, TOLERANCE, check, permuted, qkv, use
from zoo.cores import tiles
from zoo.cores.parts import (
    HIDDEN,
    Group,
    Part,
    Span,
    causal_bias,
    hide,
    layout_groups,
    random_layout,
    window_block,
    window_spans,
)


@pytest.mark.parametrize("heads", [0, 3])
def test_groups_of_a_layout_show_what_the_layout_shows(heads: int) -> None:
    torch.manual_seed(0)
    layout = torch.rand(max(1, heads), 6, 6) < 0.4
    layout[0, 1] = False
    part = Part(groups=layout_groups(layout if heads else layout[0], 3, 4, {}), size=4)
    want = layout.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :22, :22].double()
    torch.testing.assert_close(counts([part], 1, 3, 22)[0], want.expand(3, -1, -1))


def test_rows_alike_stand_in_one_group() -> None:
    row = torch.arange(50)
    layout = (row[:, None] - row).abs() <= 1
    groups = layout_groups(layout, 2, 4, {})
    assert sorted(tuple(group.columns.shape) for group in groups) == [(4, 2), (96, 3)]
    biased = layout_groups(layout.tril(), 2, 4, causal_bias(4))
    assert sorted(tuple(group.columns.shape) for group in biased) == [(2, 1), (98, 2)]


@pytest.mark.parametrize("size", [1, 3, 4, 16, 40])
@pytest.mark.parametrize("reach", [(-5, 0), (0, 0), (-3, 3), (-40, 7), (0, 6), (-100, 100), (-1, 4)])
@pytest.mark.parametrize("skip", [0, 1, 4, 9, 30])
def test_spans_of_a_window_show_the_window(size: int, reach: tuple[int, int], skip: int) -> None:
    part = Part(groups=window_spans(-(-22 // size), size, reach, skip=skip), size=size)
    i, j = torch.arange(22)[:, None], torch.arange(22)
    want = (j - i >= reach[0]) & (j - i <= reach[1]) & (j >= skip)
    torch.testing.assert_close(counts([part], 1, 1, 22)[0, 0], want.double())


def test_a_long_window_takes_few_spans() -> None:
    spans = window_spans(1000, 16, (-16, 16))
    assert len(spans) == 3
    assert sum(span.last - span.first for span in spans) == 1000
    assert len(window_spans(1000, 16, (-16, 16), skip=20)) <= 5


def test_block_sizes_follow_the_window_within_bounds() -> None:
    assert [window_block(window) for window in (1, 2, 16, 17, 64, 100, 128, 129, 10_000)] == [
        16, 16, 16, 32, 64, 128, 128, 128, 128,
    ]  # fmt: skip


def test_what_is_hidden_is_finite() -> None:
    bias = hide(torch.tensor([True, False]))
    assert bias.tolist() == [0, pytest.approx(HIDDEN)]
    assert bias.dtype == torch.float32
    assert bias.isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_random_layouts_hold_window_global_and_random_blocks(causal: bool) -> None:
    torch.manual_seed(0)
    layout = random_layout(40, 5, 2, 3, causal)
    row = torch.arange(40)
    fixed = ((row[:, None] - row).abs() <= 2) | (row < 2) | (row[:, None] < 2)
    fixed = fixed.tril() if causal else fixed
    assert layout[fixed].all()
    assert ((layout & ~fixed).sum(-1)[9:] == 3).all()
    if causal:
        assert not layout.triu(1).any()


@st.composite
def any_part(draw: st.DrawFn, B: int, H: int, N: int) -> Part:
    """Positions, keys, labels, order and layout as they come."""
    size = draw(st.integers(1, 9))
    blocks, positions = -(-N // size), None
    order = draw(st.sampled_from(["consecutive", "shared", "per head", "per sample"]))
    if order != "consecutive":
        blocks = draw(st.integers(1, blocks + 2))
        lead = {"shared": (), "per head": (H,), "per sample": (B, H)}[order]
        positions = permuted(*lead, slots=blocks * size, size=size, n=N)
    keys, key_size, key_blocks = None, size, blocks
    if draw(st.booleans()):
        key_size, key_blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
        keys = permuted(slots=key_blocks * key_size, size=key_size, n=N)
    labels = torch.randint(3, (B, H, blocks)) if keys is None and draw(st.booleans()) else None
    groups: list[Group | Span] = []
    if draw(st.booleans()):
        layout = torch.rand(H, blocks, key_blocks) < draw(st.floats(0, 1))
        found: dict[int, list[list[int]]] = {}
        for head, row in layout.any(-1).nonzero().tolist():
            columns = head * key_blocks + layout[head, row].nonzero()[:, 0]
            found.setdefault(len(columns), []).append([head * blocks + row, *columns.tolist()])
        for width, numbers in found.items():
            table = torch.tensor(numbers)
            bias = draw_bias(draw, size, width * key_size)
            groups.append(Group(rows=table[:, 0], columns=table[:, 1:], bias=bias))
    else:
        first = 0
        while first < blocks:
            last = draw(st.integers(first + 1, blocks))
            rows = min(last - first, key_blocks)
            width = draw(st.integers(1, key_blocks - rows + 1))
            start = draw(st.integers(0, key_blocks - rows - width + 1))
            bias = draw_bias(draw, size, width * key_size)
            groups.append(Span(first=first, last=first + rows, offset=start - first, width=width, bias=bias))
            first = last
    return Part(groups=groups, size=size, positions=positions, keys=keys, causal=draw(st.booleans()), labels=labels)


def draw_bias(draw: st.DrawFn, rows: int, columns: int) -> Tensor | None:
    kind = draw(st.sampled_from(["none", "hidden", "any"]))
    if kind == "none":
        return None
    bias = hide(torch.rand(rows, columns) < 0.6)
    return bias + torch.randn(rows, columns) if kind == "any" else bias


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_parts_are_one_softmax(data: st.DataObject) -> None:
    draw = data.draw
    torch.manual_seed(draw(st.integers(0, 2**16)))
    B, H, N, D = (draw(st.integers(1, high)) for high in (3, 3, 40, 9))
    parts = [draw(any_part(B, H, N)) for _ in range(draw(st.integers(1, 3)))]
    padding = torch.rand(B, N) < draw(st.sampled_from([0.0, 0.3, 1.0])) if draw(st.booleans()) else None
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tiles, "TILE_ELEMENTS", {"cpu": draw(st.sampled_from([1, 200, 2**19]))})
        use(draw(st.sampled_from(KERNELS)), monkeypatch)
        check(parts, qkv((B, H, N, D), dtype), padding=padding)
