"""The core of the blocked backends against one dense matrix of counted pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compare.runs.measure import saved_bytes
from tests.counted import counts, dense
from zoo.cores import blocks as core
from zoo.cores import tiles
from zoo.cores.blocks import attend, kernel_name
from zoo.cores.parts import (
    HIDDEN,
    Group,
    Part,
    Span,
    causal_bias,
    hide,
    layout_groups,
    window_spans,
)

KERNELS = ["fused", "plain"]


@pytest.fixture(params=KERNELS)
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use(request.param, monkeypatch)


# Runs a test with the fused kernel of the CPU, and with the matrix products of other devices.
both_kernels = pytest.mark.usefixtures("_kernel")


def use(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernel == "plain":
        monkeypatch.setattr(core, "_forward_kernel", core._plain_forward)
        monkeypatch.setattr(core, "_backward_kernel", core._plain_backward)


def qkv(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def check(
    parts: Sequence[Part],
    inputs: tuple[Tensor, Tensor, Tensor],
    *,
    padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Output and gradients of ``attend`` are those of the dense matrix. Returns the output."""
    B, H, N, D = inputs[0].shape
    count = counts(parts, B, H, N)
    out = attend(*inputs, parts, key_padding_mask=padding, scale=scale)
    want = dense(*inputs, count, padding, D**-0.5 if scale is None else scale)
    assert out.dtype == inputs[0].dtype
    grad = torch.randn_like(out)
    own = [out, *torch.autograd.grad(out, inputs, grad)]
    other = [want, *torch.autograd.grad(want, inputs, grad.double(), allow_unused=True)]
    tolerance = TOLERANCE[out.dtype]
    for a, b in zip(own, other, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a.double(), b.double(), atol=tolerance * max(1, b.abs().max().item()), rtol=0)
    real = count if padding is None else count * ~padding[:, None, None, :]
    assert (out[real.sum(-1) == 0] == 0).all()
    return out.detach()


# Parts of every kind, for B 2, H 3, N 22


def consecutive(n: int = 22) -> Part:
    """A window on ragged blocks."""
    return Part(groups=window_spans(-(-n // 4), 4, (-5, 3)), size=4)


def scattered_layout() -> Part:
    layout = torch.rand(3, 6, 6) < 0.4
    layout[1, 2] = False  # one row sees nothing
    return Part(groups=layout_groups(layout, 3, 4, {}), size=4)


def causal_layout() -> Part:
    layout = (torch.rand(6, 6) < 0.5).tril() | torch.eye(6, dtype=torch.bool)
    return Part(groups=layout_groups(layout, 3, 4, causal_bias(4)), size=4)


def permuted(*lead: int, slots: int = 24, size: int = 4, n: int = 22) -> Tensor:
    """(…, slots / size, size): some positions in random order, and empty slots among them."""
    rows = []
    for _ in range(max(1, torch.Size(lead).numel())):
        taken = torch.randperm(n)[: min(n, slots)]
        row = torch.full((slots,), -1)
        row[torch.randperm(slots)[: len(taken)]] = taken
        rows.append(row)
    return torch.stack(rows).view(*lead, slots // size, size)


def shared_positions() -> Part:
    return Part(groups=[Span(first=0, last=8, offset=0), Span(first=8, last=9)], size=4, positions=permuted(slots=36))


def positions_of_each_head() -> Part:
    return Part(groups=[Span(first=1, last=6, offset=-1, width=2)], size=4, positions=permuted(3))


def positions_of_each_sample() -> Part:
    """Some positions in no block at all, causal by position, and blocks that do not see others of another label."""
    return Part(
        groups=[Span(first=0, last=1), Span(first=1, last=4, offset=-1, width=3)],
        size=4,
        positions=permuted(2, 3, slots=20),
        causal=True,
        labels=torch.randint(2, (2, 3, 5)),
    )


def keys_cut_differently() -> Part:
    keys = torch.tensor([[1, 4, 9], [20, -1, 7]])
    return Part(groups=[Span(first=0, last=1, width=2), Span(first=4, last=6, offset=-4)], size=4, keys=keys)


def gathered_keys_cut_differently() -> Part:
    rows, columns = torch.tensor([0, 3, 6, 11, 17]), torch.tensor([[0], [1], [2], [3], [5]])
    keys = torch.tensor([[1, 4, 9], [20, -1, 7]])
    return Part(groups=[Group(rows=rows, columns=columns)], size=4, keys=keys, causal=True)


def biased() -> Part:
    """Any number may be a bias."""
    bias = torch.randn(4, 8).masked_fill(torch.rand(4, 8) < 0.3, HIDDEN)
    return Part(groups=[Span(first=2, last=6, offset=-2, width=2, bias=bias)], size=4)


PARTS: list[Callable[[], Part]] = [
    consecutive,
    scattered_layout,
    causal_layout,
    shared_positions,
    positions_of_each_head,
    positions_of_each_sample,
    keys_cut_differently,
    gathered_keys_cut_differently,
    biased,
]
SHAPE = (2, 3, 22, 8)


@both_kernels
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_a_part_is_softmax_over_the_pairs_that_it_shows(make: Callable[[], Part], padded: bool) -> None:
    torch.manual_seed(0)
    part = make()
    assert counts([part], 2, 3, 22).any()
    check([part], qkv(SHAPE), padding=torch.rand(2, 22) < 0.4 if padded else None)


@both_kernels
def test_parts_together_are_one_softmax_over_all_their_pairs() -> None:
    """A pair in several parts counts several times."""
    torch.manual_seed(0)
    parts = [make() for make in PARTS]
    assert (counts(parts, 2, 3, 22) > 1).any()
    check(parts, qkv(SHAPE))
    check(parts[::-1], qkv(SHAPE), padding=torch.rand(2, 22) < 0.4)
    check([parts[0], parts[0]], qkv(SHAPE))


def test_a_part_twice_changes_nothing_and_no_part_gives_nothing() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(SHAPE)
    part = scattered_layout()
    torch.testing.assert_close(attend(q, k, v, [part, part]), attend(q, k, v, [part]))
    assert (attend(q, k, v, [Part(groups=[], size=4)]) == 0).all()


@both_kernels
@pytest.mark.parametrize("causal", [False, True])
def test_all_blocks_are_full_attention(causal: bool) -> None:
    q, k, v = qkv(SHAPE)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    everything = Part(groups=[Span(first=row, last=row + 1, offset=-row, width=6) for row in range(6)], size=4)
    by_position = Part(groups=everything.groups, size=4, positions=permuted(2, 3), causal=causal)
    layout = torch.ones(6, 6, dtype=torch.bool)
    biases = causal_bias(4) if causal else {}
    grouped = Part(groups=layout_groups(layout.tril() if causal else layout, 3, 4, biases), size=4)
    torch.testing.assert_close(attend(q, k, v, [by_position]), want)
    torch.testing.assert_close(attend(q, k, v, [grouped]), want)
    if not causal:
        torch.testing.assert_close(attend(q, k, v, [everything]), want)


@both_kernels
def test_queries_that_see_nothing_get_0_and_finite_gradients() -> None:
    torch.manual_seed(0)
    part = Part(groups=[Span(first=1, last=3)], size=4)  # blocks 0, 3, 4, 5 see nothing
    padding = torch.zeros(2, 22, dtype=torch.bool)
    padding[0, 4:8] = True  # nor does block 1 of the first sample
    padding[1] = True
    for dtype in TOLERANCE:
        q, k, v = (x.detach() * 100 for x in qkv(SHAPE, dtype))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        for parts in ([part], [part, part], [Part(groups=[], size=4), part]):
            out = attend(*inputs, parts, key_padding_mask=padding)
            blind = torch.ones(2, 3, 22, dtype=torch.bool)
            blind[0, :, 8:12] = False
            assert (out[blind] == 0).all()
            assert (out[~blind] != 0).all()
            for grad in torch.autograd.grad(out.sum(), inputs):
                assert grad.isfinite().all()
                assert (grad[blind] == 0).all()


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_precision_stays_near_the_dense_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parts = [make() for make in PARTS]
    check(parts, qkv(SHAPE, dtype), padding=torch.rand(2, 22) < 0.3)
    for make in PARTS:
        check([make()], qkv(SHAPE, dtype))


@both_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_large_activations_give_finite_results(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, v = (x.detach() * 100 for x in qkv(SHAPE, dtype))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = attend(*inputs, [make() for make in PARTS], key_padding_mask=torch.rand(2, 22) < 0.3)
    for x in (out, *torch.autograd.grad(out.sum(), inputs)):
        assert x.isfinite().all()
    assert out.abs().max() <= v.abs().max() * 1.01  # a mean of values


@both_kernels
def test_under_autocast_it_computes_in_the_precision_of_its_queries() -> None:
    torch.manual_seed(0)
    q, k, v = qkv(SHAPE, torch.float32)
    part = consecutive()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k.to(torch.bfloat16), v, [part])
    torch.testing.assert_close(out, attend(q, k.to(torch.bfloat16).float(), v, [part]), atol=1e-6, rtol=1e-5)
    assert out.dtype == torch.float32


@both_kernels
@pytest.mark.parametrize("make", PARTS, ids=lambda make: make.__name__)
def test_gradients_are_those_of_finite_differences(make: Callable[[], Part]) -> None:
    torch.manual_seed(0)
    inputs = qkv((2, 3, 22, 2))
    parts = [make(), consecutive()]
    padding = torch.rand(2, 22) < 0.3
    assert torch.autograd.gradcheck(
        lambda q, k, v: attend(q, k, v, parts, key_padding_mask=padding), inputs, fast_mode=True
    )


@both_kernels
def test_a_scale_of_its_own() -> None:
    torch.manual_seed(0)
    for scale in (1.0, 0.1):
        check([scattered_layout(), consecutive()], qkv(SHAPE), scale=scale)


@both_kernels
def test_inputs_may_be_views() -> None:
    """As the shell gives them: heads not yet brought together."""
    torch.manual_seed(0)
    packed = torch.randn(2, 22, 3, 3, 8, dtype=torch.float64, requires_grad=True)  # b n i h d
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    check([consecutive(), positions_of_each_sample()], (q, k, v))


@both_kernels
@pytest.mark.parametrize("budget", [1, 300, 5000])
def test_the_size_of_a_tile_changes_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", {"cpu": budget})
    for make in PARTS:
        check([make()], qkv(SHAPE), padding=torch.rand(2, 22) < 0.3)


def test_it_keeps_inputs_output_and_a_number_a_query() -> None:
    q, k, v = qkv((1, 2, 512, 8), torch.float32)
    part = Part(groups=window_spans(32, 16, (-16, 16)), size=16)
    kept = saved_bytes(lambda: attend(q, k, v, [part, part]), torch.nn.Module())
    assert kept == 4 * (4 * 2 * 512 * 8 + 2 * 512)


def test_kernel_is_named_for_the_device() -> None:
    assert "flash (cpu)" in kernel_name(torch.zeros(1)).name
    assert "matmul" in kernel_name(torch.zeros(1, device="meta")).name


# Kernels


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("hidden", [False, True])
def test_the_two_kernels_agree(hidden: bool, dtype: torch.dtype) -> None:
    """Output, log-sum-exp and gradients, for a softmax of which these keys are a part."""
    torch.manual_seed(0)
    q, grad = (torch.randn(3, 2, 5, 8, dtype=torch.float64).to(dtype) for _ in range(2))
    k, v = (torch.randn(3, 2, 7, 8, dtype=torch.float64).to(dtype) for _ in range(2))
    bias = None
    if hidden:
        visible = torch.rand(3, 1, 5, 7) < 0.6
        visible[..., 0] = True
        bias = hide(visible)
    found = [kernel(q, k, v, bias, 0.3) for kernel in (core._forward_kernel, core._plain_forward)]
    (out, lse), (plain_out, plain_lse) = found
    assert lse.dtype == plain_lse.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.to(dtype), plain_out.to(dtype), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, plain_lse, atol=tolerance, rtol=1e-6)
    both = torch.logaddexp(lse, torch.randn_like(lse))
    whole = torch.randn_like(q)
    grads = [kernel(grad, q, k, v, whole, both, bias, 0.3) for kernel in (core._backward_kernel, core._plain_backward)]
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a.to(dtype), b.to(dtype), atol=2 * tolerance, rtol=2 * tolerance)


@both_kernels
def test_values_that_one_part_hides_do_not_overflow_beside_another() -> None:
    """Values of one sign whose sum over the hidden keys is no float16."""
    q, k, v = qkv((1, 1, 512, 8), torch.float16)
    v = torch.full_like(v, 500).requires_grad_()
    own = Part(groups=[Span(first=0, last=1)], size=512, positions=torch.arange(512)[None])
    later = Part(groups=[Span(first=0, last=1, bias=hide(torch.zeros(512, 512, dtype=torch.bool)))], size=512)
    for parts in ([own, later], [later, own]):
        out = attend(q, k, v, parts)
        torch.testing.assert_close(out, torch.full_like(out, 500))
        for grad in torch.autograd.grad(out.sum(), (q, k, v)):
            assert grad.isfinite().all()


@both_kernels
def test_products_of_gradients_and_values_do_not_overflow() -> None:
    """64 products of about 1,500 are no float16; the gradients that come of them are."""
    torch.manual_seed(0)
    q, k, v = qkv((1, 1, 64, 64), torch.float16)
    v = (v.detach() + 300).requires_grad_()
    out = attend(q, k, v, [Part(groups=[Span(first=0, last=4)], size=16)])
    for grad in torch.autograd.grad(out, (q, k, v), torch.full_like(out, 5)):
        assert grad.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_cuda_device_gives_what_the_cpu_gives(dtype: torch.dtype) -> None:
    def moved(part: Part, device: str) -> Part:
        groups = []
        for group in part.groups:
            tensors = {key: x.to(device) for key, x in vars(group).items() if isinstance(x, Tensor)}
            groups.append(type(group)(**(vars(group) | tensors)))
        tensors = {key: x.to(device) for key, x in vars(part).items() if isinstance(x, Tensor)}
        return Part(**(vars(part) | tensors | {"groups": groups}))

    torch.manual_seed(0)
    parts, inputs = [make() for make in PARTS], qkv(SHAPE, dtype)
    padding = torch.rand(2, 22) < 0.3
    results = []
    for device in ("cpu", "cuda"):
        q, k, v = (x.detach().to(device).requires_grad_() for x in inputs)
        out = attend(q, k, v, [moved(part, device) for part in parts], key_padding_mask=padding.to(device))
        results.append([x.cpu() for x in (out, *torch.autograd.grad(out.sum(), (q, k, v)))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
