"""Sections 2.2 and 2.3 of arXiv:2001.04451 with plain lists: hash, sort, chunk, union of the rounds."""

import math

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"bucket_size": 4, "n_hashes": 3},
    {"bucket_size": 7, "n_hashes": 1},
    {"bucket_size": 16, "n_hashes": 2},
    {},
]


def partners(vectors: Tensor, rotation: Tensor, size: int, max_len: int | None) -> list[list[int]]:
    """For each real position of one head, the positions that it may attend to in one round.

    max_len: what the number of buckets follows in the causal form; None = both directions, and the length.
    """
    n, longest = len(vectors), len(vectors) if max_len is None else max_len
    half = 0 if longest <= size else math.ceil(longest / (2 * size))
    rotated = vectors @ rotation[:, :half].to(vectors.dtype)
    buckets = torch.cat([rotated, -rotated], dim=-1).argmax(-1).tolist() if half else [0] * n
    if max_len is not None:  # chunks within each bucket, counted from its first member
        chunk, count = [], dict.fromkeys(buckets, 0)
        for bucket in buckets:
            chunk.append((bucket, count[bucket] // size))
            count[bucket] += 1
        return [[j for j in range(i + 1) if chunk[j] in (chunk[i], (chunk[i][0], chunk[i][1] - 1))] for i in range(n)]
    rank = {i: s for s, i in enumerate(sorted(range(n), key=lambda i: (buckets[i], i)))}
    return [[j for j in range(n) if rank[i] // size - 1 <= rank[j] // size <= rank[i] // size] for i in range(n)]


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, _ = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        real = torch.arange(N) if key_padding_mask is None else (~key_padding_mask[b]).nonzero()[:, 0]
        if len(real) == 0:
            continue
        for h in range(H):
            queries, values = q[b, h, real], v[b, h, real]
            logits = queries @ (queries / queries.norm(dim=-1, keepdim=True)).T
            logits = logits.masked_fill(torch.eye(len(real), dtype=torch.bool), -1e5)
            times = torch.zeros(len(real), len(real), dtype=q.dtype)  # rounds in which a pair meets
            max_len = module.dims.max_len if module.causal else None
            for rotation in module.rotations[:, h]:
                for i, seen in enumerate(partners(queries, rotation, module.config.bucket_size, max_len)):
                    times[i, seen] += 1
            logits = logits.masked_fill(times == 0, -torch.inf)
            weights = torch.exp(logits - logits.max(-1, keepdim=True).values) * times
            out[b, h, real] = weights / weights.sum(-1, keepdim=True) @ values
    return out
