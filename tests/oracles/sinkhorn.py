"""Sections 3.1 to 3.3 of arXiv:2002.11296, bucket by bucket and query by query, on the real positions only."""

import torch
from torch import Tensor

OPTIONS: list[dict[str, object]] = [
    {"bucket_size": 8},
    {"bucket_size": 7, "sort": "top"},
    {"bucket_size": 5, "iterations": 2, "temperature": 1.5},
    {},
]


def sort_matrix(config, queries: list[Tensor], keys: list[Tensor], causal: bool) -> Tensor:
    """R: (n, n) for the n descriptors of the filled buckets; rows that may take nothing in are 0."""
    n = len(keys)
    R = torch.zeros(n, n, dtype=queries[0].dtype)
    may = [[v < u or not causal for v in range(n)] for u in range(n)]
    scores = [[queries[u] @ keys[v] / len(keys[v]) ** 0.5 for v in range(n)] for u in range(n)]
    if config.sort == "top":
        for u in range(n):
            open_to = [v for v in range(n) if may[u][v]]
            if open_to:
                weights = torch.softmax(torch.stack([scores[u][v] for v in open_to]) / config.temperature, 0)
                best = int(weights.argmax())
                R[u, open_to[best]] = weights[best]
        return R
    R = torch.stack([torch.stack(row) for row in scores])
    R = (torch.relu(R) + 1e-6) ** (1 / config.temperature) * torch.tensor(may)
    for _ in range(config.iterations):
        total = R.sum(1, keepdim=True)
        R = R / total.where(total > 0, 1)
        total = R.cumsum(0) if causal else R.sum(0, keepdim=True)
        R = R / total.where(total > 0, 1)
    return R


def oracle(module, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
    B, H, N, D = q.shape
    size = module.config.bucket_size
    out = torch.zeros_like(q)
    for b in range(B):
        real = [i for i in range(N) if key_padding_mask is None or not key_padding_mask[b, i]]
        starts = sorted({i // size * size for i in real})  # of the buckets that hold anything
        members = [[i for i in real if start <= i < start + size] for start in starts]
        for h in range(H) if real else ():
            queries = []
            for start, inside in zip(starts, members, strict=True):
                over = [i for i in real if i <= start] if module.causal else inside
                queries.append(q[b, h, over].mean(0) if over else torch.zeros(D, dtype=q.dtype))
            keys = [k[b, h, inside].mean(0) for inside in members]
            R = sort_matrix(module.config, queries, keys, module.causal)
            for u, inside in enumerate(members):
                moved = {}  # offset -> key and value, where any position stands at that offset of a taken bucket
                for w, others in enumerate(members):
                    for i in others if R[u, w] > 0 else ():
                        key, value = moved.get(i - starts[w], (0, 0))
                        moved[i - starts[w]] = (key + R[u, w] * k[b, h, i], value + R[u, w] * v[b, h, i])
                for t in inside:
                    own = [i for i in inside if i <= t or not module.causal]
                    seen = [*moved.values(), *((k[b, h, i], v[b, h, i]) for i in own)]
                    logits = torch.stack([key @ q[b, h, t] for key, _ in seen]) / D**0.5
                    out[b, h, t] = torch.softmax(logits, 0) @ torch.stack([value for _, value in seen])
    return out
