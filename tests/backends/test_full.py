"""Full attention: what it saves, the choice of a kernel."""

from __future__ import annotations

import pytest
import torch

from compare.runs.measure import saved_bytes
from zoo.attention.full import FullAttention, FullConfig
from zoo.contract import Dims

DIMS = Dims(d_model=16, n_heads=2, max_len=60)


def test_padding_and_causal_together_save_no_matrix() -> None:
    def saved(length: int) -> int:
        backend = FullAttention(Dims(d_model=16, n_heads=2, max_len=length, causal=True), FullConfig())
        q, k, v = (torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.zeros(1, length, dtype=torch.bool)
        mask[:, : length // 3] = True
        return saved_bytes(lambda: backend(q, k, v, key_padding_mask=mask), backend)

    assert saved(4096) / saved(2048) < 2.5


def test_it_runs_the_kernel_asked_for_or_refuses() -> None:
    q, k, v = (torch.randn(2, 2, 60, 8) for _ in range(3))
    default = FullAttention(DIMS, FullConfig())(q, k, v)
    for kernel in ("flash", "math"):
        backend = FullAttention(DIMS, FullConfig(kernel=kernel))
        torch.testing.assert_close(backend(q, k, v), default)
        assert kernel in backend.kernel(q).name
    with pytest.raises(NotImplementedError, match=r"full\.kernel='efficient' cannot run on cpu"):
        FullAttention(DIMS, FullConfig(kernel="efficient"))(q, k, v)


def test_an_unknown_kernel_is_said() -> None:
    with pytest.raises(ValueError, match=r"full\.kernel must be one of auto, .*got 'fast'"):
        FullConfig(kernel="fast")
