"""Tensor parallelism: each process computes some heads of every layer, and some hidden features of its feed-forward.

torch's plan (``ColwiseParallel``, ``RowwiseParallel``) splits the four linear maps of a layer, as in Megatron-LM
(arXiv:1909.08053): their parameters become DTensors. A backend is built again with the heads of one rank, and gets its
part of what it has for each head. All else is the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils import parametrize

from zoo.contract import Attention, UnsupportedError
from zoo.functional import accumulator, once
from zoo.layers import EncoderLayer
from zoo.parallel.collectives import check_mesh
from zoo.registry import build
from zoo.shell import Shell

PLAN: dict[str, type[ColwiseParallel] | type[RowwiseParallel]] = {
    "attention.mixer.qkv": ColwiseParallel,
    "attention.mixer.out": RowwiseParallel,
    "feed_forward.hidden": ColwiseParallel,
    "feed_forward.out": RowwiseParallel,
}


def split_heads(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split heads and feed-forward of every layer of ``model`` over the ranks of ``mesh``, in place.

    Every rank calls the model with the same batch, and gets the same result. Seed the ranks alike, so that dropout
    drops the same. ``whole_state`` returns the state dict of the whole model, ``clip_grad_norm`` clips its gradients.

    Args:
        model: an encoder, or a module that has one, with the same parameters on every rank.
        mesh: one dimension.

    Raises:
        UnsupportedError: a backend whose heads cannot be computed apart.
        ValueError: heads or hidden features that the ranks do not divide.
    """
    check_mesh(mesh)
    rank, ranks = mesh.get_local_rank(), mesh.size()
    check_heads(model, ranks)
    for _, layer in _layers(model):
        shell = _shell(layer)
        for name, parts in _joined(layer).items():
            for parameter in layer.get_submodule(name).parameters():
                with torch.no_grad():
                    parameter.copy_(_reordered(parameter, parts, ranks))
        parallelize_module(layer, mesh, {name: style() for name, style in PLAN.items()})
        shell.n_heads //= ranks
        shell.attention = own_heads(shell.attention, rank, ranks)
        apart = _head_dims(shell.attention, ranks)
        shared: list[tuple[nn.Module, str]] = [(norm, "weight") for norm in shell.qk_norms]
        shared += [(shell.attention, name) for name, _ in shell.attention.named_parameters() if name not in apart]
        for module, name in shared:
            parametrize.register_parametrization(module, name, _Shared(mesh), unsafe=True)


def check_heads(model: nn.Module, ranks: int) -> None:
    """Raise what ``split_heads`` raises for a model that it cannot split over so many ranks."""
    for _, layer in _layers(model):
        _check(layer, ranks)


def own_heads(backend: Attention, rank: int, ranks: int) -> Attention:
    """The ``backend`` for the heads of one rank: with its part of each tensor that has heads, and a copy of others."""
    with torch.device("meta"):
        own = _resized(backend, 1 / ranks)
    apart = _head_dims(own, ranks)
    state = {
        name: (x.chunk(ranks, apart[name])[rank] if name in apart else x).clone()
        for name, x in backend.state_dict().items()
    }
    own.load_state_dict(state, assign=True)
    for ours, parameter in zip(own.parameters(), backend.parameters(), strict=True):
        ours.requires_grad_(parameter.requires_grad)
    return own.train(backend.training)


def _resized(backend: Attention, factor: float) -> Attention:
    dims = backend.dims
    resized = replace(dims, d_model=round(dims.d_model * factor), n_heads=round(dims.n_heads * factor))
    other = build(backend.built_from, resized)
    assert isinstance(other, Attention)
    return other


def _head_dims(own: Attention, ranks: int) -> dict[str, int]:
    """Tensors of which each rank has a part, and their dimension of heads: that whose size depends on the heads."""
    with torch.device("meta"):
        part, whole = (_resized(own, factor).state_dict() for factor in (1, ranks))
    differing = {
        name: [i for i, size in enumerate(x.shape) if size != whole[name].shape[i]] for name, x in part.items()
    }
    return {name: dims[0] for name, dims in differing.items() if dims}


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.mesh = mesh
        return x.view_as(x)

    @staticmethod
    @once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.mesh.get_group())
        return total, None


class _Shared(nn.Module):
    """A parameter that all heads use: its gradient is the sum of those of all ranks."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh = mesh

    def forward(self, x: Tensor) -> Tensor:
        shared: Tensor = _Sum.apply(x, self.mesh)  # type: ignore[no-untyped-call]
        return shared


def whole_state(model: nn.Module, mesh: DeviceMesh) -> dict[str, Tensor]:
    """The ``state_dict`` that a split ``model`` has on one process. All ranks must call it."""
    return whole_tensors(model, model.state_dict(), mesh)


def whole_tensors(model: nn.Module, tensors: Mapping[str, Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
    """What ``tensors`` are on one process: each has the name and the split of one in the split ``model``.

    They may be its parameters, or an optimizer's averages of these. All ranks must call it.
    """
    whole = {plain_name(name): x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}
    for name, dim in _apart(model, mesh.size()).items():
        if name in whole:
            pieces = [torch.empty_like(whole[name]) for _ in range(mesh.size())]
            dist.all_gather(pieces, whole[name].contiguous(), group=mesh.get_group())
            whole[name] = torch.cat(pieces, dim)
    for name, parts in _interleaved(model).items():
        if name in whole:
            whole[name] = _reordered(whole[name], mesh.size(), parts)
    return whole


def own_tensors(model: nn.Module, tensors: Mapping[str, Tensor], mesh: DeviceMesh) -> dict[str, Tensor]:
    """What ``tensors`` of one process are in the split ``model``: the inverse of ``whole_tensors``."""
    rank, ranks = mesh.get_local_rank(), mesh.size()
    apart, interleaved, own = _apart(model, ranks), _interleaved(model), {}
    for name, like in model.state_dict().items():
        if (x := tensors.get(plain := plain_name(name))) is None:
            continue
        if plain in interleaved:
            x = _reordered(x, interleaved[plain], ranks)
        if plain in apart:
            x = x.chunk(ranks, apart[plain])[rank].clone()
        if isinstance(like, DTensor):
            x = distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        own[name] = x
    return own


def plain_name(name: str) -> str:
    """The name on one process of a tensor of a split model."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def _interleaved(model: nn.Module) -> dict[str, int]:
    """Weights and biases whose rows have another order in the split model, and of how many parts they are."""
    return {
        f"{path}{name}.{kind}": parts
        for path, layer in _layers(model)
        for name, parts in _joined(layer).items()
        for kind in ("weight", "bias")
    }


def clip_grad_norm(model: nn.Module, limit: float, mesh: DeviceMesh) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` of a split ``model``: returns ``grad_norm``, that of the gradients before.

    torch's function takes no mixture of tensors and DTensors.
    """
    norm = grad_norm(model, mesh)
    scale = (limit / (norm + 1e-6)).clamp(max=1)
    for parameter in model.parameters():
        if (grad := parameter.grad) is not None:
            (grad.to_local() if isinstance(grad, DTensor) else grad).mul_(scale)
    return norm


def grad_norm(model: nn.Module, mesh: DeviceMesh) -> Tensor:
    """The norm of all gradients of a split ``model``, each counted once. All ranks must call it."""
    apart, squares = _apart(model, mesh.size()), []
    for name, parameter in model.named_parameters():
        if (grad := parameter.grad) is None:
            continue
        square = grad.square().sum(dtype=accumulator(grad))
        square = square.full_tensor() if isinstance(square, DTensor) else square
        if name in apart:
            dist.all_reduce(square, group=mesh.get_group())
        squares.append(square)
    return torch.stack(squares).sum().sqrt()


def _apart(model: nn.Module, ranks: int) -> dict[str, int]:
    """The tensors of backends of which each rank has the part of its heads, and their dimension of heads."""
    return {
        f"{path}attention.mixer.attention.{name}": dim
        for path, layer in _layers(model)
        for name, dim in _head_dims(_shell(layer).attention, ranks).items()
    }


def _layers(model: nn.Module) -> Iterator[tuple[str, EncoderLayer]]:
    """The layers of a model, each with the beginning of its parameters' names."""
    for path, module in model.named_modules():
        if isinstance(module, EncoderLayer):
            yield f"{path}." if path else "", module


def _shell(layer: EncoderLayer) -> Shell:
    shell = layer.attention.mixer
    assert isinstance(shell, Shell)
    return shell


def _joined(layer: EncoderLayer) -> dict[str, int]:
    """Linear maps whose rows are several parts, each of which is split: queries, keys and values; value and gate."""
    gated = layer.feed_forward.activation == "swiglu"
    return {"attention.mixer.qkv": _shell(layer).inputs, "feed_forward.hidden": 2 if gated else 1}


def _reordered(x: Tensor, first: int, second: int) -> Tensor:
    """Swap the order of ``first`` × ``second`` groups of rows: those of a part become those of a rank, or back."""
    return x.reshape(first, second, -1, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def _check(layer: EncoderLayer, ranks: int) -> None:
    """Raise ValueError for a layer that cannot be split over so many ranks."""
    mixer = layer.attention.mixer
    if not isinstance(mixer, Shell):
        raise UnsupportedError(f"{mixer.name} cannot split its heads over processes: it has its own projections")
    if type(mixer) is not Shell:
        raise ValueError("expected an encoder that nothing has split yet: split heads before the sequence")
    if mixer.attention.joined_heads:
        raise UnsupportedError(f"{mixer.attention.name} cannot split its heads: {mixer.attention.joined_heads}")
    for what, size in (("heads", mixer.n_heads), ("features (d_ff)", layer.feed_forward.out.in_features)):
        if size % ranks:
            raise ValueError(f"expected {what} that {ranks} processes divide, got {size}")
