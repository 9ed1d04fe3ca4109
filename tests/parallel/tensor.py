"""Checks of tensor parallelism against one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from compare.runs.measure import own_part
from tests.parallel.small import Batch, Small, all_ranks, alone, batch, close, refused, train
from zoo.attention.dilated import DilatedConfig
from zoo.attention.linformer import LinformerConfig
from zoo.attention.routing import RoutingConfig
from zoo.parallel.context import split_sequence
from zoo.parallel.tensor import clip_grad_norm, own_tensors, split_heads, whole_state

CASES: tuple[tuple[object, dict[str, object]], ...] = (
    ("full", {"qk_norm": True, "positions": "rotary", "causal": True}),  # a norm that all heads share
    ("hedgehog", {"causal": True}),  # parameters of each head
    (LinformerConfig(rank=5), {"checkpointing": True}),  # a parameter that all heads share
    (LinformerConfig(rank=5, sharing="none"), {"reversible": True, "activation": "swiglu", "d_ff": 48}),
    ("reformer", {"norm": "post", "ff_chunk": 5}),  # queries that are keys; random parts of each head
)


def equal(attn: object, **options: object) -> None:
    """Results, gradients, their norm and the state dict are those of one process."""
    mesh = all_ranks()
    whole = Small(attn, **options).eval()
    for parameter in whole.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # so that heads differ
    split = copy.deepcopy(whole)
    split_heads(split, mesh)
    assert {name: x.shape for name, x in whole.state_dict().items()} == _shapes(split, mesh)
    x, padding, targets = batch(0)
    want, got = (model(x, padding) for model in (whole, split))
    close(got, want, atol=1e-6 if attn == "reformer" else 1e-9)
    for y in (want, got):
        F.cross_entropy(y, targets).backward()
    close(clip_grad_norm(split, 0.1, mesh), torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.1))
    with torch.no_grad():  # gradients are joined as parameters are
        for model in (whole, split):
            for parameter in model.parameters():
                parameter.copy_(parameter.grad)
    state = whole_state(split, mesh)
    for name, gradient in state.items():
        close(gradient, whole.state_dict()[name])
    own = own_tensors(split, state, mesh)
    for name, part in split.state_dict().items():
        assert type(own[name]) is type(part)
        close(own_part(own[name]), own_part(part), atol=0)


def _shapes(split: Small, mesh: DeviceMesh) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in whole_state(split, mesh).items()}


def trains() -> None:
    """20 optimizer steps have the losses of one process."""
    _, want = alone("hedgehog")
    model = Small("hedgehog")
    split_heads(model, all_ranks())

    def step(given: Batch) -> Tensor:
        x, padding, targets = given
        loss = F.cross_entropy(model(x, padding), targets)
        loss.backward()
        return loss

    close(train(model.parameters(), step), want)


def frozen() -> None:
    """Parameters that do not train stay so."""
    model = Small("hedgehog").requires_grad_(False)
    split_heads(model, all_ranks())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def refusals() -> None:
    mesh = all_ranks()
    refused(lambda: split_heads(Small("mamba2"), mesh), "mamba2 cannot split its heads over processes: it has its own")
    refused(lambda: split_heads(Small(DilatedConfig(segment=4)), mesh), "dilated cannot split its heads: the offset")
    refused(lambda: split_heads(Small(RoutingConfig(half_local=True)), mesh), "routing cannot split its heads")
    refused(lambda: split_heads(Small("full", n_heads=1), mesh), f"heads that {mesh.size()} processes divide, got 1")
    refused(lambda: split_heads(Small("full", d_ff=33), mesh), "features (d_ff)")
    model = Small("full")
    split_sequence(model.encoder, mesh)
    refused(lambda: split_heads(model, mesh), "split heads before the sequence")


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for attn, options in CASES:
        yield f"heads of {attn}, {options}", partial(equal, attn, **options)
    yield "tensor parallelism trains", trains
    yield "frozen", frozen
    yield "refusals of tensor parallelism", refusals
