"""How many steps a backend needs to recall, and how far its first gradients agree.

    python -m benchmarks.recall_steps --variants linear,gated_deltanet --rates 3e-3 --steps 400 --causal
    python -m benchmarks.recall_steps --variants retnet,mamba2 --task mqar --n-heads 4 --batch-size 64

Two tasks, both with 64 keys and 64 values, and with nothing at a fixed position:

- ``noisy``: noisy in-context recall (MAD, arXiv:2403.17844). Pairs are at random even positions of the first half, and
  every other position of the second half asks for a pair; the rest is hay of 64 more ids.
- ``mqar``: the project's task with random ids between its tokens, each sample rotated by a random even offset.

The script prints a line of JSON for each variant and rate, of one seed: settings, agreement, and the accuracy on 64
fixed samples every 100 steps. The agreement is the cosine between the gradients of the value embeddings from two
batches of 384 samples, before the first step. A method whose first reading holds a part of every value learns from the
start which values occur, and then which value belongs to which key. A method whose weights have either sign starts at a
saddle, with an agreement near 0.

``--initialisation authors`` initialises gated_deltanet and mamba2 as in the code of their authors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.initialisation import as_authors
from compare.runs.model import decay_groups
from tasks import IGNORE
from tasks.mqar import generate
from zoo import Encoder
from zoo.heads import TokenHead

Draw = Callable[[np.random.Generator, int], tuple[Tensor, Tensor]]
KEYS = 64  # also the number of values, and of ids of hay
VOCAB = 3 * KEYS


def noisy(rng: np.random.Generator, rows: int, *, seq_len: int, pairs: int) -> tuple[Tensor, Tensor]:
    """Ids, keys first, then values, then hay; targets are values from 0 to 63, or IGNORE. Both (rows, seq_len)."""
    half = seq_len // 2
    inputs = rng.integers(2 * KEYS, VOCAB, (rows, seq_len))
    keys = rng.permuted(np.tile(np.arange(KEYS), (rows, 1)), axis=1)[:, :pairs]
    values = rng.integers(0, KEYS, (rows, pairs))
    places = 2 * rng.permuted(np.tile(np.arange(half // 2), (rows, 1)), axis=1)[:, :pairs]
    np.put_along_axis(inputs, places, keys, 1)
    np.put_along_axis(inputs, places + 1, KEYS + values, 1)
    asked = rng.integers(0, pairs, (rows, len(range(half, seq_len, 2))))
    inputs[:, half::2] = np.take_along_axis(keys, asked, 1)
    targets = np.full((rows, seq_len), IGNORE)
    targets[:, half::2] = np.take_along_axis(values, asked, 1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def rolled(rng: np.random.Generator, rows: int, *, seq_len: int, pairs: int) -> tuple[Tensor, Tensor]:
    """As `noisy`, for mqar."""
    ids, answers = (
        x.astype(np.int64) for x in generate(rng, rows, seq_len=seq_len, n_pairs=pairs, vocab_size=2 * KEYS)
    )
    ids = np.where(ids == 0, rng.integers(0, 2 * KEYS, ids.shape), ids)
    answers = np.where(answers == IGNORE, IGNORE, answers - KEYS)
    place = (np.arange(seq_len) + 2 * rng.integers(0, seq_len // 2, (rows, 1))) % seq_len
    return tuple(torch.from_numpy(np.take_along_axis(x, place, 1)) for x in (ids, answers))


def model_of(variant: str, options: argparse.Namespace) -> nn.Sequential:
    torch.manual_seed(options.seed)
    encoder = Encoder(
        variant,
        d_model=options.d_model,
        n_heads=options.n_heads,
        n_layers=2,
        dropout=0.0,
        max_len=options.seq_len,
        positions="none",
        conv_width=3,
        vocab_size=VOCAB,
        embedding_std=0.1,
        causal=options.causal,
    )
    if options.initialisation == "authors":
        encoder.apply(as_authors)
    return nn.Sequential(encoder, TokenHead(options.d_model, KEYS))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    asked = targets != IGNORE
    return F.cross_entropy(model[1](model[0](inputs)[asked]), targets[asked])


def agreement(model: nn.Sequential, draw: Draw) -> float:
    """The cosine between two batches' gradients of the values' embeddings, from -1 to 1."""
    weight = model[0].embedding.weight
    grads = [
        torch.autograd.grad(loss_of(model, *draw(np.random.default_rng(seed), 384)), weight)[0][KEYS : 2 * KEYS]
        for seed in (100, 200)
    ]
    return F.cosine_similarity(*(grad.flatten() for grad in grads), dim=0).item()


def train(model: nn.Sequential, draw: Draw, rate: float, options: argparse.Namespace) -> Iterator[float]:
    """The accuracy after every 100 steps; training ends above 99 %."""
    optimizer = torch.optim.AdamW(decay_groups(model, 0.01), lr=rate)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))
    rng = np.random.default_rng(options.seed + 1)
    inputs, targets = draw(np.random.default_rng(99), 64)
    for step in range(1, options.steps + 1):
        loss = loss_of(model, *draw(rng, options.batch_size))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        if step % 100 == 0:
            with torch.no_grad():
                right = model(inputs).argmax(-1)[targets != IGNORE] == targets[targets != IGNORE]
            yield right.float().mean().item()
            if right.float().mean() > 0.99:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=lambda words: words.split(","), required=True)
    parser.add_argument("--rates", type=lambda words: [float(word) for word in words.split(",")], default=[3e-3])
    parser.add_argument("--task", choices=["noisy", "mqar"], default="noisy")
    parser.add_argument("--initialisation", choices=["ours", "authors"], default="ours")
    parser.add_argument("--causal", action="store_true")
    sizes = {
        "steps": 400,
        "seq_len": 64,
        "pairs": 0,
        "d_model": 64,
        "n_heads": 2,
        "batch_size": 32,
        "seed": 0,
        "threads": 1,
    }
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pairs = options.pairs or (8 if options.task == "noisy" else 4)
    make = noisy if options.task == "noisy" else rolled

    def draw(rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
        return make(rng, rows, seq_len=options.seq_len, pairs=pairs)

    settings = {name: getattr(options, name) for name in ("task", "initialisation", "causal", *sizes)} | {
        "pairs": pairs
    }
    for variant in options.variants:
        for rate in options.rates:
            model = model_of(variant, options)
            line = {"variant": variant, "rate": rate, **settings, "agreement": round(agreement(model, draw), 3)}
            accuracy = [round(share, 4) for share in train(model, draw, rate, options)]
            print(json.dumps(line | {"accuracy": accuracy}), flush=True)


if __name__ == "__main__":
    main()
