"""Checks of combinations, on four processes and on eight, against one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.parallel.pipeline import loss_of
from tests.parallel.small import SAMPLES, Batch, Small, alone, close, mean, mesh_of, share, train
from zoo.parallel.context import split_sequence
from zoo.parallel.pipeline import Pipeline, split_layers
from zoo.parallel.tensor import split_heads, whole_state


def plain_step(model: nn.Module, data: DeviceMesh) -> Callable[[Batch], Tensor]:
    def step(given: Batch) -> Tensor:
        x, padding, targets = share(given, data)
        loss = F.cross_entropy(model(x, padding), targets)
        loss.backward()
        return mean(loss, data)

    return step


def data_and_tensor() -> None:
    mesh = mesh_of(2, 2, names=("data", "tensor"))
    whole, want = alone("hedgehog")
    model = Small("hedgehog")
    split_heads(model, mesh["tensor"])
    fully_shard(model, mesh=mesh["data"])
    close(train(model.parameters(), plain_step(model, mesh["data"])), want)
    for name, x in whole_state(model, mesh["tensor"]).items():
        close(x, whole.state_dict()[name], atol=1e-6)


def data_and_context() -> None:
    mesh = mesh_of(2, 2, names=("data", "context"))
    _, want = alone("gated_deltanet")
    model = Small("gated_deltanet")
    split_sequence(model.encoder, mesh["context"])
    step = plain_step(DistributedDataParallel(model), mesh["data"])
    close(train(model.parameters(), step), want, atol=1e-8)


def tensor_and_context() -> None:
    mesh = mesh_of(2, 2, names=("tensor", "context"))
    _, want = alone("full", positions="rotary", qk_norm=True)
    model = Small("full", positions="rotary", qk_norm=True)
    split_heads(model, mesh["tensor"])
    split_sequence(model.encoder, mesh["context"])
    fully_shard(model, mesh=mesh["context"])

    def step(given: Batch) -> Tensor:
        x, padding, targets = given
        loss = F.cross_entropy(model(x, padding), targets)
        loss.backward()
        return loss

    close(train(model.parameters(), step), want)


def stages(wrap: str) -> None:
    """Stages that a second dimension of the mesh holds twice, or splits into heads."""
    mesh = mesh_of(2, 2, names=("other", "pipeline"))
    _, want = alone("full")
    model = Small("full")
    stage: nn.Module = split_layers(model.encoder, mesh["pipeline"], model.head)
    data = None if wrap == "tensor" else mesh["other"]
    if wrap == "tensor":
        split_heads(stage, mesh["other"])
    elif wrap == "ddp":
        stage = DistributedDataParallel(stage, process_group=mesh["other"].get_group())
    else:
        fully_shard(stage, mesh=mesh["other"])
    samples = SAMPLES if data is None else SAMPLES // 2
    loss = partial(loss_of, samples=samples)
    pipeline = Pipeline(stage, mesh["pipeline"], micro_batches=2, loss=loss)

    def step(given: Batch) -> Tensor:
        x, padding, targets = given if data is None else share(given, data)
        total = pipeline.step(x, targets, key_padding_mask=padding)
        return total if data is None else mean(total, data)

    close(train(stage.parameters(), step), want, atol=1e-6)


def data_tensor_and_pipeline() -> None:
    mesh = mesh_of(2, 2, 2, names=("data", "tensor", "pipeline"))
    _, want = alone("full")
    model = Small("full")
    stage = split_layers(model.encoder, mesh["pipeline"], model.head)
    split_heads(stage, mesh["tensor"])
    fully_shard(stage, mesh=mesh["data"])
    loss = partial(loss_of, samples=SAMPLES // 2)
    pipeline = Pipeline(stage, mesh["pipeline"], micro_batches=2, loss=loss)

    def step(given: Batch) -> Tensor:
        x, padding, targets = share(given, mesh["data"])
        return mean(pipeline.step(x, targets, key_padding_mask=padding), mesh["data"])

    close(train(stage.parameters(), step), want, atol=1e-6)


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "data=2,tensor=2", data_and_tensor
    yield "data=2,context=2", data_and_context
    yield "tensor=2,context=2", tensor_and_context
    yield "data=2,pipeline=2", partial(stages, "ddp")
    yield "data=2,pipeline=2, sharded", partial(stages, "fsdp")
    yield "tensor=2,pipeline=2", partial(stages, "tensor")
