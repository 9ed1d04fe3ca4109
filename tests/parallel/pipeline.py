"""Checks of pipeline parallelism against one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tests.parallel.small import IDS, SAMPLES, Batch, Small, all_ranks, alone, batch, close, mesh_of, refused, train
from zoo.parallel.pipeline import Pipeline, split_layers

PARTS = 4  # micro-batches


def loss_of(predicted: Tensor, targets: Tensor, samples: int = SAMPLES) -> Tensor:
    """The part of a batch of ``samples`` in its mean loss."""
    return F.cross_entropy(predicted, targets, reduction="sum") / samples


def piped(model: Small, mesh: DeviceMesh) -> Pipeline:
    return Pipeline(split_layers(model.encoder, mesh, model.head), mesh, micro_batches=PARTS, loss=loss_of)


def equal(attn: object, **options: object) -> None:
    """Loss, gradients and predictions are those of one process, for batches of two shapes, with and without padding."""
    whole = Small(attn, n_layers=4, **options)
    pipeline = piped(copy.deepcopy(whole), all_ranks())
    names = dict(pipeline.stage.named_parameters())
    for number, padded in enumerate((True, False)):
        x, padding, targets = batch(number, 20 + number)
        mask = padding if padded else None
        want = F.cross_entropy(whole(x, mask), targets)
        want.backward()
        close(pipeline.step(x, targets, key_padding_mask=mask), want.detach(), atol=1e-6)
        predicted = pipeline.predict(x[:5], key_padding_mask=None if mask is None else mask[:5])
        if pipeline.is_last:
            with torch.no_grad():
                close(predicted, whole(x, mask)[:5])
        else:
            assert predicted is None
    for name, parameter in names.items():
        close(parameter.grad, whole.get_parameter(name).grad)


def parted() -> None:
    """The stages have all parameters, each once."""
    model = Small("full", n_layers=4)
    mesh = all_ranks()
    mine = {name for name, _ in split_layers(model.encoder, mesh, model.head).named_parameters()}
    all_names: list[set[str]] = [set() for _ in range(mesh.size())]
    torch.distributed.all_gather_object(all_names, mine)
    assert sorted(name for names in all_names for name in names) == sorted(dict(model.named_parameters()))


def trains() -> None:
    """20 optimizer steps have the losses of one process."""
    _, want = alone("full", n_layers=4)
    pipeline = piped(Small("full", n_layers=4), all_ranks())

    def step(given: Batch) -> Tensor:
        x, padding, targets = given
        return pipeline.step(x, targets, key_padding_mask=padding)

    close(train(pipeline.stage.parameters(), step), want, atol=1e-6)


def refusals() -> None:
    mesh = all_ranks()
    refused(
        lambda: split_layers(Small("full", n_layers=5).encoder, mesh), f"layers that {mesh.size()} processes divide"
    )
    refused(lambda: split_layers(Small("full", n_layers=4, reversible=True).encoder, mesh), "reversible")
    pipeline = piped(Small("full", n_layers=4), mesh)
    refused(lambda: pipeline.step(batch(0)[0][:7], batch(0)[2][:7]), f"{PARTS} micro-batches divide, got 7 samples")
    refused(lambda: Pipeline(pipeline.stage, mesh, micro_batches=1, loss=loss_of), "micro-batches, one a stage, got 1")
    single = piped(Small("full"), mesh_of(mesh.size(), 1, names=("other", "pipeline"))["pipeline"])
    refused(lambda: single.predict(torch.full((SAMPLES, 3), IDS)), f"token ids from 0 to {IDS - 1}")


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "stages of full", partial(equal, "full", causal=True, conv_width=3, positions="rotary")
    yield "stages of routing, which adapts", partial(equal, "routing", checkpointing=True, positions="learned")
    yield "parameters of stages", parted
    yield "pipeline parallelism trains", trains
    yield "refusals of pipeline parallelism", refusals
