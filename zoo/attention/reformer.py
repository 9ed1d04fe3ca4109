"""Reformer: attention within buckets of a locality-sensitive hash.

Reformer: The Efficient Transformer, arXiv:2001.04451, section 2. Queries and keys are shared, ``k = q / |q|``. The hash
is ``h(x) = argmax([x R; -x R])`` with random rotations R. Positions are sorted by (bucket, position) and cut into
chunks of S; each chunk attends to itself and to the chunk before it. Rounds with different R are joined by their
log-sum-exp (equations 4 to 6). A position attends to itself only where it sees nothing else (logit −1e5).
Cost: O(R N (S D + log N)) time; O(R N) memory. The hash multiplies with N / (2S) columns, so it is quadratic with a
small factor: it costs as much as the attention itself at N = 12 S², 49,152 for S = 64.

On mqar at 64 tokens ``reformer`` recalls 100.0, 100.0 and 100.0 % with buckets of 8 after 1,000 optimizer steps of 64
samples (learning rate 1e-3, the best of three; three seeds, ``results/cpu-2core/mqar_64``).

Departures from the paper:
- The rotations stay the same between calls; ``redraw()`` draws new ones. The authors' code draws in every forward.
- Queries start at variance 1/3, the default here, as in ports to torch; the authors' Glorot weights give 1.
- The number of buckets follows each sample's own real length, and the sort leaves padding out. So neither padding nor
  the rest of the batch changes a sample's output. (Causal: see below.)
- A pair that meets in several rounds counts once in each, as in the authors' code (equation 6 counts it once).
- Logits are q·k without 1/√D, as in the authors' code: k has unit length.
- Causal form: chunks start anew at each bucket and attend within the bucket. In the paper's sorted order the chunk
  limits depend on how many *future* positions fall into earlier buckets, which leaks the future. A number of buckets
  that follows the length would leak it too, so the number follows ``max_len``. Choose ``max_len`` near the lengths in
  use: inputs far below it leave few positions in a bucket, so queries see few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Kernel, Tensors, Traits, at_least, one_of
from zoo.cores.blocks import KERNELS, attend, attend_rows, kernel_name
from zoo.cores.cache import append, empty, fill, room
from zoo.cores.parts import Part, Span, made_once, seen_rows
from zoo.functional import accumulator
from zoo.registry import register

SELF = -1e5
HASH_ELEMENTS = 2**22  # numbers of rotated vectors held at once: about what a core's cache holds
HASH_ELEMENTS_ELSEWHERE = 2**27


@dataclass(frozen=True, kw_only=True)
class ReformerConfig:
    """n_hashes: R, rounds of hashing. bucket_size: S, mean positions in a bucket, and the chunk length.
    kernel: ``triton`` (GPUs only), ``torch``, or ``auto`` (the first of the two that can run).
    """

    n_hashes: int = 4
    bucket_size: int = 64
    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("reformer.kernel", self.kernel, KERNELS)
        at_least(1, **{"reformer.n_hashes": self.n_hashes, "reformer.bucket_size": self.bucket_size})


@register("reformer", config=ReformerConfig)
class ReformerAttention(Attention):
    """Positions attend within chunks of hash-sorted neighbours; queries and keys are shared."""

    traits = Traits(
        family="content sparse",
        source="Kitaev et al., arXiv:2001.04451",
        year=2020,
        time="O(N·R·S), hash O(N²·R/S)",
        memory="O(N·R)",
        causal=True,
        capacity="n_hashes",
        stochastic=True,
        subquadratic=True,
        shared_qk=True,
    )
    rotations: Tensor

    def __init__(self, dims: Dims, config: ReformerConfig) -> None:
        super().__init__(dims)
        self.config = config
        shape = (config.n_hashes, dims.n_heads, dims.d_head, half_of(dims.max_len, config.bucket_size))
        self.register_buffer("rotations", torch.randn(shape))

    def redraw(self) -> None:
        self.rotations = torch.randn(self.rotations.shape).to(self.rotations)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """See ``Attention.forward``. ``k`` is not read: the keys are the normalised queries."""
        k = F.normalize(q, dim=-1, eps=1e-6)
        with torch.no_grad():
            parts = [self._round(q, rotation, key_padding_mask) for rotation in self.rotations]
        return attend(q, k, v, parts, scale=1.0, kernel=self.config.kernel)

    def _round(
        self, q: Tensor, rotation: Tensor, key_padding_mask: Tensor | None, hashed: Tensor | None = None
    ) -> Part:
        """The keys that queries see in one round: a chunk sees itself and the chunk before it. Padding is in no chunk.

        hashed: the result of ``_hash``, if known.
        """
        size = self.config.bucket_size
        position, bucket = self._slots(q, rotation, key_padding_mask, hashed)
        chunks = position.shape[-1] // size
        (chunked,) = made_once(neighbours, chunks, size, q.device, like=q)
        return replace(
            chunked,
            positions=position.view(*position.shape[:2], chunks, size),
            causal=self.causal,
            labels=bucket if self.causal else None,
        )

    def _slots(
        self, q: Tensor, rotation: Tensor, key_padding_mask: Tensor | None, hashed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sort the positions of one round.

        Returns:
            position: (B, H, slots) the position in each slot of the sorted, chunked sequence; -1 = none.
            bucket: (B, H, slots / S) the bucket of each chunk; all 0 where chunks attend across buckets.
        """
        B, H, N, _ = q.shape
        size = self.config.bucket_size
        padding = q.new_zeros(B, N, dtype=torch.bool) if key_padding_mask is None else key_padding_mask
        half = None
        if not self.causal:
            half = half_buckets((~padding).sum(1), size)  # (B,)
            rotation = rotation[..., : half_of(N, size)]
        nowhere = max(1, 2 * rotation.shape[-1])  # one past the last bucket: the bucket of padding
        bucket = self._hash(q, rotation, half) if hashed is None else hashed
        bucket = bucket.masked_fill(padding[:, None], nowhere)
        bucket, order = bucket.sort(stable=True)  # (B, H, N)
        order = order.masked_fill(bucket == nowhere, -1)
        if not self.causal:
            position = F.pad(order, (0, -N % size), value=-1)
            return position, position.new_zeros(B, H, position.shape[-1] // size)
        # Each bucket starts a new chunk: shift a position by the empty slots of all earlier buckets.
        counts = bucket.new_zeros(B, H, nowhere + 1)
        counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
        empty = F.pad((-counts % size).cumsum(-1), (1, -1))
        slot = torch.arange(N, device=q.device) + empty.gather(-1, bucket)
        most = (-(-N // size) + nowhere + 1) * size
        position = order.new_full((B, H, most), -1).scatter_(-1, slot, order)
        starts = torch.full_like(position, nowhere).scatter_(-1, slot, bucket)
        return position, starts[..., ::size].contiguous()

    def _hash(self, q: Tensor, rotation: Tensor, half: Tensor | None = None) -> Tensor:
        """The bucket of each position, (B, H, N): one of 2 * half (B,), or of all without ``half``; 0 if half is 0."""
        B, H, N, _ = q.shape
        columns, wide = rotation.shape[-1], accumulator(q)
        out = q.new_zeros(B, H, N, dtype=torch.long)
        at_once = HASH_ELEMENTS if q.device.type == "cpu" else HASH_ELEMENTS_ELSEWHERE
        step = max(1, at_once // max(1, B * H * columns))
        for start in range(0, N if columns else 0, step):
            part = slice(start, start + step)
            rotated = q[:, :, part].to(wide) @ rotation.to(wide)
            if half is not None:
                unused = torch.arange(columns, device=q.device) >= half[:, None]  # (B, columns)
                rotated = rotated.masked_fill(unused[:, None, None], 0)
            high, at_high = rotated.max(-1)
            low, at_low = rotated.min(-1)
            out[:, :, part] = torch.where(high >= -low, at_high, at_low + columns)
        return out

    def begin(self, x: Tensor) -> Tensors:
        """Keys, values and buckets."""
        buckets = x.new_empty(*x.shape[:2], 0, self.config.n_hashes, dtype=torch.int32)
        return *empty(x), buckets

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        size, seen = self.config.bucket_size, position + 1
        bucket = torch.stack([self._hash(q, rotation) for rotation in self.rotations], dim=-1)  # (B, H, 1, R)
        tensors = append(tensors, (F.normalize(q, dim=-1, eps=1e-6), v, bucket), position, self.max_len)
        keys, values, buckets = tensors
        same = buckets[:, :, :seen] == bucket  # (B, H, seen, R)
        chunk = (same.cumsum(2) - 1) // size  # within that bucket
        times = (same & (chunk >= chunk[:, :, -1:] - 1)).sum(-1, dtype=accumulator(q))  # rounds that show the key
        places, bias = seen_rows(times)
        bias = bias.masked_fill(places == position, SELF)
        return attend_rows(q, keys, values, places, bias, scale=1.0), tensors

    def absorb(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensors]:
        k = F.normalize(q, dim=-1, eps=1e-6)
        buckets = [self._hash(q, rotation) for rotation in self.rotations]
        rounds = zip(self.rotations, buckets, strict=True)
        parts = [self._round(q, rotation, None, hashed) for rotation, hashed in rounds]
        kept = fill(self.begin(v[:, :, 0]), (k, v, torch.stack(buckets, dim=-1)), self.max_len)
        return attend(q, k, v, parts, scale=1.0), kept

    def state_size(self, length: int) -> int:
        """Two chunks a round, if no two rounds show the same keys."""
        return 2 * min(2 * self.config.bucket_size * self.config.n_hashes, length) * self.d_model

    def cache_size(self, length: int) -> int:
        """Keys, values, and the bucket of each key in each round."""
        numbers = 2 * self.d_model + self.config.n_hashes * self.dims.n_heads
        return room(length, self.max_len) * numbers

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return kernel_name(x, self.config.kernel)


def neighbours(chunks: int, size: int, device: torch.device) -> list[Part]:
    """A chunk sees itself and the chunk before it; a query sees itself only where it sees nothing else."""
    itself = SELF * torch.eye(size, dtype=torch.float32, device=device)
    spans = [Span(first=0, last=1, bias=itself)]
    if chunks > 1:
        spans.append(Span(first=1, last=chunks, offset=-1, width=2, bias=F.pad(itself, (size, 0))))
    return [Part(groups=spans, size=size)]


def half_of(length: int, bucket_size: int) -> int:
    """``half_buckets`` for an int."""
    return 0 if length <= bucket_size else (length + 2 * bucket_size - 1) // (2 * bucket_size)


def half_buckets(length: Tensor, bucket_size: int) -> Tensor:
    """Columns of R for a sample of ``length``: half its buckets; 0 where one bucket holds it all."""
    return (length + 2 * bucket_size - 1) // (2 * bucket_size) * (length > bucket_size)
