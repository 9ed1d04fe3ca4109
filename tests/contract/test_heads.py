"""An ``Attention`` computes some of its heads without the others, unless it says why not (``joined_heads``)."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Case
from zoo import describe
from zoo.contract import Attention
from zoo.parallel.tensor import own_heads


def test_a_rank_with_some_of_the_heads_computes_them_as_the_whole_does(case: Case) -> None:
    if not issubclass(describe(case.name).cls, Attention):
        pytest.skip("a Mixer: it has its own projections")
    whole = case.backend(d_model=32, n_heads=4).double()
    if whole.joined_heads:
        pytest.skip(whole.joined_heads)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # so that heads differ
    q, k, v = torch.randn(3, 2, 4, 90, 8, dtype=torch.float64).unbind()
    k = q if case.traits.shared_qk else k
    padding = torch.arange(90) >= torch.tensor([90, 61])[:, None]
    want = whole(q, k, v, key_padding_mask=padding)
    for rank in range(2):
        at = slice(2 * rank, 2 * rank + 2)
        got = own_heads(whole, rank, 2)(q[:, at], k[:, at], v[:, at], key_padding_mask=padding)
        torch.testing.assert_close(got, want[:, at], atol=1e-9, rtol=1e-9)


def test_heads_that_are_joined_are_not_computed_alone() -> None:
    for case in (Case("dilated", (("segment", 16),)), Case("routing", (("window", 8), ("half_local", True)))):
        whole = case.backend(d_model=32, n_heads=4).double()
        q, k, v = torch.randn(3, 2, 4, 90, 8, dtype=torch.float64).unbind()
        apart = torch.cat([own_heads(whole, r, 2)(*(x.chunk(2, 1)[r] for x in (q, k, v))) for r in range(2)], dim=1)
        assert whole.joined_heads
        assert (apart - whole(q, k, v)).abs().max() > 0.1
