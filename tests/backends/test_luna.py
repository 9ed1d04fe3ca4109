"""Luna: the limit at which it becomes full attention, rotary positions, parameters.

No installable package has it (the authors' code is a fork of fairseq), so the oracle stands alone.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import count_flops
from tests.oracles.luna import oracle
from zoo.attention.luna import Luna, LunaConfig
from zoo.contract import Dims
from zoo.registry import build


def luna(config: LunaConfig, *, d_model: int = 16, n_heads: int = 2, max_len: int = 64, rotary: bool = False) -> Luna:
    torch.manual_seed(0)
    backend = build(config, Dims(d_model=d_model, n_heads=n_heads, max_len=max_len, rotary=rotary))
    assert isinstance(backend, Luna)
    return backend


def test_with_one_memory_for_each_position_it_is_full_attention() -> None:
    """Memory m copies position m (a sharp pack over orthogonal positions); unpack then attends to those copied.

    So M of N memories attend to M positions, and the error against attention to all falls to 0 at M = N.
    """
    torch.manual_seed(0)
    N = C = 8
    x = torch.linalg.qr(torch.randn(N, C, dtype=torch.float64)).Q[None]
    q, k, v = (torch.randn(C, C, dtype=torch.float64) for _ in range(3))
    exact = F.scaled_dot_product_attention(x @ q.T, x @ k.T, x @ v.T)
    errors = []
    for M in (1, 4, 8):
        module = luna(LunaConfig(projected_len=M, tie_kv=False), d_model=C, n_heads=1).double()
        with torch.no_grad():
            module.memory.copy_(1e3 * x[0, :M])
            for linear, weight in (
                (module.pack_query, torch.eye(C)),
                (module.pack_context, torch.eye(C).repeat(2, 1)),
                (module.unpack_query, q),
                (module.unpack_context, torch.cat([k, v])),
                (module.out, torch.eye(C)),
            ):
                linear.weight.copy_(weight)
        errors.append((module(x) - exact).abs().max().item())
    assert errors[0] > errors[1] > 0.01
    assert errors[2] < 1e-9


@pytest.mark.parametrize("tie_kv", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_rotary_turns_the_side_of_the_positions(tie_kv: bool, padded: bool) -> None:
    module = luna(LunaConfig(projected_len=5, tie_kv=tie_kv), rotary=True).double()
    x = torch.randn(2, 50, 16, dtype=torch.float64)
    mask = torch.rand(2, 50) < 0.3 if padded else torch.zeros(2, 50, dtype=torch.bool)
    ours, literal = module(x, key_padding_mask=mask), oracle(module, x, key_padding_mask=mask)
    real = ~mask[..., None]
    torch.testing.assert_close(ours * real, literal * real, atol=1e-6, rtol=1e-6)  # the tables of angles are float32
    module.rotary = None
    assert (module(x, key_padding_mask=mask) - ours).abs().max() > 0.01


def test_without_rotary_it_knows_no_order() -> None:
    module = luna(LunaConfig()).double()
    x = torch.randn(1, 50, 16, dtype=torch.float64)
    order = torch.randperm(50)
    torch.testing.assert_close(module(x)[:, order], module(x[:, order]))


def test_rotary_needs_pairs() -> None:
    with pytest.raises(ValueError, match="d_head must be even, got 5"):
        luna(LunaConfig(), d_model=10, rotary=True)


def test_tying_saves_one_map_in_each_attention() -> None:
    def size(tie_kv: bool) -> int:
        return sum(p.numel() for p in luna(LunaConfig(projected_len=16, tie_kv=tie_kv)).parameters())

    linear = 16 * 16 + 16
    assert size(True) == 5 * linear + 16 * 16
    assert size(False) == 7 * linear + 16 * 16


def test_cost_is_linear() -> None:
    def flops(length: int, projected_len: int) -> int:
        module = luna(LunaConfig(projected_len=projected_len), max_len=length)
        x: Tensor = torch.randn(1, length, 16)
        return count_flops(lambda: module(x))

    attention = [flops(n, 16) - flops(n, 8) for n in (1024, 2048)]
    assert 1.9 < attention[1] / attention[0] < 2.1


@pytest.mark.parametrize("projected_len", [0, -1, 2.5])
def test_bad_options_are_said(projected_len: object) -> None:
    with pytest.raises(ValueError, match=rf"luna\.projected_len must be an integer of at least 1, got {projected_len}"):
        LunaConfig(projected_len=projected_len)  # type: ignore[arg-type]


def test_more_memories_than_positions_are_merely_unusual() -> None:
    out = luna(LunaConfig(projected_len=500))(torch.randn(2, 7, 16))
    assert out.isfinite().all()
    assert out.std() > 0
