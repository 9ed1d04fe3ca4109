"""A small model, its batches and its training, for checks on several processes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from zoo import Encoder
from zoo.heads import ClassificationHead

SAMPLES, LENGTH, IDS, CLASSES = 8, 24, 11, 5
Batch = tuple[Tensor, Tensor, Tensor]
Step = Callable[[Batch], Tensor]
"""Forward and backward of a batch; returns its loss."""


class Small(nn.Module):
    """An encoder and a head that pools, in float64; the same for all processes."""

    def __init__(self, attn: object, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_len": 320, "vocab_size": IDS, "dropout": 0.0}
        self.encoder = Encoder(attn, **(sizes | options))
        self.head = ClassificationHead(32, CLASSES)
        self.double()

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return self.head(self.encoder(x, key_padding_mask=padding), key_padding_mask=padding)


def batch(number: int, length: int = LENGTH, anywhere: bool = True) -> Batch:
    """Ids, padding anywhere or at the end, and classes."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randint(IDS, (SAMPLES, length), generator=generator)
    padding = torch.rand(SAMPLES, length, generator=generator) < torch.linspace(0, 1.01, SAMPLES)[:, None]
    return x, padding if anywhere else padding.sort(dim=1).values, x[:, 0] % CLASSES


def train(parameters: object, step: Step) -> Tensor:
    """The losses of 20 optimizer steps."""
    optimizer, losses = torch.optim.AdamW(parameters, lr=3e-3), []
    for number in range(20):
        optimizer.zero_grad()
        losses.append(step(batch(number)).detach())
        optimizer.step()
    return torch.stack(losses)


def alone(attn: object, **options: object) -> tuple[Small, Tensor]:
    """The model and the losses of a training on one process."""
    model = Small(attn, **options)

    def step(given: Batch) -> Tensor:
        x, padding, targets = given
        loss = F.cross_entropy(model(x, padding), targets)
        loss.backward()
        return loss

    return model, train(model.parameters(), step)


def share(given: Batch, mesh: DeviceMesh) -> Batch:
    """The samples of this rank of a data mesh."""
    x, padding, targets = (piece.chunk(mesh.size())[mesh.get_local_rank()] for piece in given)
    return x, padding, targets


def mean(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """Mean over the ranks of a mesh."""
    total = x.detach().clone()
    dist.all_reduce(total, group=mesh.get_group())
    return total / mesh.size()


def mesh_of(*sizes: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


def all_ranks() -> DeviceMesh:
    return mesh_of(dist.get_world_size())


def close(got: Tensor, want: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, atol=atol, rtol=0, check_dtype=False)


def refused(call: Callable[[], object], words: str) -> None:
    """Check that ``call`` raises ValueError with these ``words``, in one line."""
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        call()
    assert "\n" not in str(refusal.value)
