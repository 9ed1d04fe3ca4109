"""Checks of context parallelism against one process."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tests.parallel.small import Batch, Small, all_ranks, alone, batch, close, mean, mesh_of, refused, train
from zoo.attention.full import FullConfig
from zoo.attention.local import LocalConfig
from zoo.attention.retnet import RetNetConfig
from zoo.parallel.context import split_sequence

ROOT = Path(__file__).parents[2]
BACKENDS = ("full", "linear", "retnet", "mamba2", "gated_deltanet", LocalConfig(window=3), LocalConfig(window=15))
"""15 positions are more than a piece of 11 has."""
OTHERS: tuple[tuple[object, dict[str, object]], ...] = (
    ("full", {"positions": "rotary", "qk_norm": True}),
    ("full", {"positions": "learned", "reversible": True}),
    ("gated_deltanet", {"positions": "none", "checkpointing": True}),
    (LocalConfig(window=3), {"positions": "rotary", "norm": "post"}),
)


def equal(attn: object, length: int, padded: str, **options: object) -> None:
    """Results and gradients are those of one process."""
    ranks = dist.get_world_size()
    whole = Small(attn, **options)
    split = copy.deepcopy(whole)
    split_sequence(split.encoder, all_ranks())
    x, padding, _ = batch(0, length * ranks, anywhere=padded == "anywhere")
    mask = None if padded == "none" else padding
    want, got = (model.encoder(x, key_padding_mask=mask) for model in (whole, split))
    close(got, want)
    weights = torch.randn_like(want)
    for y in (want, got):
        (y * weights).sum().backward()
    for name, parameter in whole.encoder.named_parameters():
        other = split.encoder.get_parameter(name).grad
        assert other is not None, name
        close(mean(other, all_ranks()), parameter.grad)


def trains(attn: object) -> None:
    """20 optimizer steps have the losses of one process."""
    _, want = alone(attn, causal=True)
    model = Small(attn, causal=True)
    split_sequence(model.encoder, all_ranks())
    wrapped = DistributedDataParallel(model)

    def step(given: Batch) -> Tensor:
        x, padding, targets = given
        loss = F.cross_entropy(wrapped(x, padding), targets)
        loss.backward()
        return loss

    close(train(model.parameters(), step), want, atol=1e-8)


def half() -> None:
    """In bfloat16 results stay near those of one process; so do gradients."""
    for attn in BACKENDS[:6]:
        whole = Small(attn, causal=True).bfloat16()
        split = copy.deepcopy(whole)
        split_sequence(split.encoder, all_ranks())
        x, padding, _ = batch(0)
        want, got = (model.encoder(x, key_padding_mask=padding) for model in (whole, split))
        close(got, want, atol=0.1)
        got.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in split.encoder.parameters() if p.grad is not None)


def refusals() -> None:
    mesh = all_ranks()
    refused(lambda: split_sequence(Small("performer").encoder, mesh), "performer cannot split a sequence")
    refused(lambda: split_sequence(Small("full", class_token=True).encoder, mesh), "class token")
    refused(lambda: split_sequence(Small("full", attention_dropout=0.1).encoder, mesh), "attention_dropout")
    refused(lambda: split_sequence(Small(FullConfig(kernel="flash")).encoder, mesh), "full.kernel='flash'")
    refused(lambda: split_sequence(Small(RetNetConfig(kernel="triton")).encoder, mesh), "retnet.kernel='triton'")
    refused(lambda: split_sequence(Small("full").encoder, mesh_of(1, mesh.size())), "a mesh of one dimension, got 2")
    encoder = Small("full", causal=True).encoder
    split_sequence(encoder, mesh)
    refused(lambda: encoder(batch(0, 2 * mesh.size() + 1)[0]), f"a length that {mesh.size()} processes divide")
    refused(lambda: encoder(batch(0, 400 * mesh.size())[0]), "expected 1 to 320 positions")
    refused(lambda: encoder.step(batch(0)[0][:, 0]), "no steps")


def example() -> None:
    runpy.run_path(str(ROOT / "examples" / "split_sequence.py"))["main"](steps=1)


def checks() -> Iterator[tuple[str, Callable[[], None]]]:
    for attn, causal, padded in product(BACKENDS, (False, True), ("none", "end", "anywhere")):
        title = f"{attn}, causal={causal}, padding: {padded}"
        yield title, partial(equal, attn, 11, padded, causal=causal, conv_width=4)
    for attn, options in OTHERS:
        yield f"{attn}, {options}", partial(equal, attn, 11, "end", causal=True, **options)
    for attn in ("linear", "retnet", "mamba2", "gated_deltanet"):  # several chunks a piece
        yield f"{attn}, long", partial(equal, attn, 260 // dist.get_world_size(), "end", causal=attn == "linear")
    yield "bfloat16", half
    yield "refusals of context parallelism", refusals
    yield "full trains on pieces", partial(trains, "full")
    yield "the example", example


def trainings() -> Iterator[tuple[str, Callable[[], None]]]:
    for attn in BACKENDS[1:6]:
        yield f"{attn} trains on pieces", partial(trains, attn)
