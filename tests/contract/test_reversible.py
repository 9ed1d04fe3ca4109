"""Reversible layers: the gradients of the plain two-stream computation, in memory that does not grow with depth."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compare.runs.measure import count_flops, saved_bytes
from zoo import Encoder, describe

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 3, "max_len": 48}
MASK = torch.rand(3, 40, generator=torch.Generator().manual_seed(2)) < torch.tensor([[0.0], [0.3], [1.0]])


def plain(encoder: Encoder, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The paper read literally, every activation kept for backward."""
    order = None
    if mask is not None:  # real positions first
        hidden, order = mask, mask.sort(dim=1, stable=True).indices[..., None]
        x, mask = x.take_along_dim(order, 1), mask.sort(1).values
    x1 = x2 = encoder.dropout(encoder.positions(x))
    for layer in encoder.layers:
        x1 = x1 + layer.dropout(layer.attention(layer.norm1(x2), key_padding_mask=mask))
        x2 = x2 + layer.dropout(layer.feed_forward(layer.norm2(x1)))
    y = encoder.norm((x1 + x2) / 2)
    if order is None:
        return y
    return y.take_along_dim(order.argsort(1), 1).masked_fill(hidden[..., None], 0)


def twins(name: str, **options: object) -> tuple[Encoder, Encoder]:
    torch.manual_seed(0)
    encoder = Encoder(name, reversible=True, **(SMALL | options))
    return encoder, copy.deepcopy(encoder)


def trained(encoder: Encoder, run: object, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """The output, the gradients and the buffers of a training step."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = run(encoder, x, mask)
    (y * torch.arange(16, device=x.device)).sum().backward()
    buffers = [b for b in encoder.buffers() if b.is_floating_point() and b.numel()]
    return [y, x.grad, *(p.grad for p in encoder.parameters()), *buffers]


def through(encoder: Encoder, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return encoder(x, key_padding_mask=mask)


def assert_equal(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["32", "64"])
def test_gradients_are_those_of_the_plain_computation(name: str, dtype: torch.dtype, tolerance: float) -> None:
    encoder, twin = (copy.to(dtype) for copy in twins(name, dropout=0.2))
    x = torch.randn(3, 40, 16, dtype=dtype)
    assert_equal(trained(encoder, through, x, MASK), trained(twin, plain, x, MASK), tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_replays_its_own_random_numbers(name: str) -> None:
    encoder, twin = (copy.cuda() for copy in twins(name, dropout=0.2))
    x = torch.randn(3, 40, 16, device="cuda")
    assert_equal(trained(encoder, through, x, MASK.cuda()), trained(twin, plain, x, MASK.cuda()), 1e-4)


def test_saved_bytes_do_not_grow_with_depth(name: str) -> None:
    def saved(n_layers: int) -> int:
        encoder, _ = twins(name, n_layers=n_layers)
        return saved_bytes(lambda: encoder(torch.randn(3, 48, 16), key_padding_mask=MASK.new_zeros(3, 48)), encoder)

    assert saved(8) == saved(2)


def test_steps_equal_forward(name: str) -> None:
    if not describe(name).traits.causal:
        pytest.skip("no causal form")
    encoder = twins(name, causal=True, conv_width=4, n_layers=2)[0].eval()
    if encoder.layers[0].attention.cache_size(1) is None:
        pytest.skip("no step form")
    x, state, steps = torch.randn(2, 20, 16), None, []
    for position in x.unbind(1):
        y, state = encoder.step(position, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), encoder(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_as_it_was(dtype: torch.dtype, inside: bool) -> None:
    """Backward outside the context sees the lower precision, and inside it no weight that forward has cast."""

    def gradients(encoder: Encoder, run: object) -> list[Tensor]:
        with torch.autocast("cpu", dtype=dtype):
            loss = (run(encoder, x) * torch.arange(16)).sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [p.grad for p in encoder.parameters()]

    encoder, twin = twins("full", dropout=0.0)
    x = torch.randn(3, 40, 16)
    assert_equal(gradients(encoder, through), gradients(twin, plain), 1e-4)


def test_flops_are_those_of_one_more_forward() -> None:
    encoder, twin = twins("naive")
    x = torch.randn(3, 40, 16)
    forward = count_flops(lambda: plain(twin, x))
    step = count_flops(lambda: plain(twin, x).square().mean().backward())
    assert count_flops(lambda: encoder(x).square().mean().backward()) == step + forward


def test_backward_leaves_random_numbers_and_state_alone() -> None:
    encoder, twin = twins("routing", dropout=0.2)
    x = torch.randn(3, 40, 16)
    results = []
    for model, run in ((encoder, through), (twin, plain)):
        torch.manual_seed(1)
        first = run(model, x).square().mean()
        run(model, 2 * x)  # moves the centroids, which the backward of the first must not notice
        centroids, drawn = [b.clone() for b in model.buffers()], torch.get_rng_state()
        first.backward(retain_graph=True)
        assert torch.equal(torch.get_rng_state(), drawn)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), centroids, strict=True))
        once = [p.grad.clone() for p in model.parameters()]
        first.backward()
        for p, grad in zip(model.parameters(), once, strict=True):
            torch.testing.assert_close(p.grad, 2 * grad)
        results.append(once)
    assert_equal(*results, 1e-4)


def test_frozen_and_shared_parameters() -> None:
    encoder, twin = twins("full", dropout=0.0)
    for model in (encoder, twin):
        model.layers[1].requires_grad_(False)
        model.layers[2].feed_forward = model.layers[0].feed_forward
    x = torch.randn(3, 40, 16)
    for model, run in ((encoder, through), (twin, plain)):
        run(model, x).square().mul(torch.arange(16)).sum().backward()
    for ours, theirs in zip(encoder.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_parameters_that_change_before_backward_are_told() -> None:
    encoder, _ = twins("full")
    loss = encoder(torch.randn(3, 40, 16)).square().mean()
    with torch.no_grad():
        encoder.layers[0].norm1.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_hooks_put_in_place_of_a_layer_s_result_learns() -> None:
    encoder, twin = (copy.double() for copy in twins("full", dropout=0.0))
    steering = [nn.Parameter(torch.randn(16, dtype=torch.float64)) for _ in range(2)]
    first, second, _ = encoder.layers
    first.attention.register_forward_hook(lambda _part, _inputs, y: y + steering[0])
    first.register_forward_hook(lambda _part, _inputs, y: (y[0], y[1] * steering[1]))
    second.register_forward_pre_hook(lambda _part, streams: (streams[0] / 2, streams[1]))
    between: list[Tensor] = []
    second.register_forward_hook(lambda _part, _inputs, y: between.append(y[0]))

    def read(x: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x2 = twin.positions(x)
        streams = []
        for number, layer in enumerate(twin.layers):
            x1 = x1 / 2 if number == 1 else x1
            x1 = x1 + layer.attention(layer.norm1(x2)) + (steering[0] if number == 0 else 0)
            x2 = x2 + layer.feed_forward(layer.norm2(x1))
            x2 = x2 * steering[1] if number == 0 else x2
            streams.append(x1)
        return twin.norm((x1 + x2) / 2), streams[1]

    x = torch.randn(3, 40, 16, dtype=torch.float64)
    results = []
    for model, run in ((encoder, lambda x: (encoder(x), between[0])), (twin, read)):
        y, seen = run(x)
        ((y + seen) * torch.arange(16)).sum().backward()
        results.append([y, seen, *(p.grad for p in (*model.parameters(), *steering))])
        for vector in steering:
            vector.grad = None
    assert_equal(*results, 1e-9)


def test_a_part_may_be_switched_off_by_a_hook() -> None:
    encoder, twin = twins("full", dropout=0.0)
    for model in (encoder, twin):
        model.layers[1].attention.register_forward_hook(lambda _part, _inputs, y: torch.zeros_like(y))
    x = torch.randn(3, 40, 16)
    for model, run in ((encoder, through), (twin, plain)):
        (run(model, x) * torch.arange(16)).sum().backward()
    assert encoder.layers[1].attention.mixer.out.weight.grad is None
    for ours, theirs in zip(encoder.parameters(), twin.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_hooks_that_backward_cannot_undo_are_told() -> None:
    encoder, _ = twins("full")
    layer, between = encoder.layers[0], list[Tensor]()
    hook = layer.register_forward_hook(lambda _part, _inputs, y: between.append(y[0]))
    encoder(torch.randn(3, 40, 16))
    with pytest.raises(RuntimeError, match="begins at the encoder's result, which this loss does not use"):
        between[0].sum().backward()
    hook.remove()
    layer.register_forward_hook(lambda _part, _inputs, y: (y[0].mul_(2), y[1]))
    with pytest.raises(ValueError, match="a hook changed a reversible layer's result in place"):
        encoder(torch.randn(3, 40, 16))


def test_without_layers_it_is_the_embedding() -> None:
    encoder, twin = twins("full", n_layers=0, dropout=0.0)
    x = torch.randn(3, 40, 16)
    assert_equal(trained(encoder, through, x), trained(twin, plain, x), 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "post"}, "reversible layers need norm='pre', got 'post'"),
        ({"checkpointing": True}, "expected reversible or checkpointing, got both"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Encoder(reversible=True, **SMALL, **options)
    assert "\n" not in str(caught.value)
