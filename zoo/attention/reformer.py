"""Reformer: attention within buckets of a locality-sensitive hash.

Reformer: The Efficient Transformer, arXiv:2001.04451, section 2. Queries and keys are shared, ``k = q / |q|``.
``h(x) = argmax([x R; -x R])`` with random rotations R; positions are sorted by (bucket, position) and cut into
chunks of S; each chunk attends to itself and to the chunk before it. Rounds with different R are joined by their
log-sum-exp (equations 4 to 6). A position attends to itself only where nothing else is there (logit −1e5).
Cost: O(R N (S D + log N)) time; O(R N) memory. The hash multiplies with N / (2S) columns, so it is quadratic with a
small factor: as much as the attention itself at N = 12 S², 49,152 for S = 64.
Backward computes the chunks again instead of keeping them. No N × N tensor is ever made, masked or not.

Departures from the paper:
- The rotations stay the same between calls; ``redraw()`` draws new ones.
- The number of buckets follows each sample's own real length, and padding is left out of the sort, so neither
  padding nor batch-mates change anything.
- A pair that meets in several rounds counts once in each, as in the authors' code (equation 6 divides it out).
- Logits are q·k without 1/√D, as in the authors' code: k has unit length.
- Causal form: chunks start anew at each bucket and attend within the bucket. In the sorted order of the paper the
  chunk limits depend on how many *future* positions fall into earlier buckets, which leaks the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.contract import Attention, Dims, Kernel, Traits, at_least
from zoo.registry import register

SELF = -1e5
HIDDEN = -1e30
HASH_ELEMENTS = 2**22  # of rotated vectors held at once


@dataclass(frozen=True, kw_only=True)
class ReformerConfig:
    """n_hashes: R, rounds of hashing. bucket_size: S, mean positions in a bucket, and the chunk length."""

    n_hashes: int = 4
    bucket_size: int = 64

    def __post_init__(self) -> None:
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
        super().__init__()
        self.causal, self.config = dims.causal, config
        columns = half_buckets(torch.tensor(dims.max_len), config.bucket_size)
        shape = (config.n_hashes, dims.n_heads, dims.d_head, int(columns))
        self.register_buffer("rotations", torch.randn(shape))

    def redraw(self) -> None:
        self.rotations.copy_(torch.randn(self.rotations.shape))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """See ``Attention.forward``. ``k`` is not read: the keys are the normalised queries."""
        k = F.normalize(q, dim=-1, eps=1e-6)
        with torch.no_grad():
            slots = [self._slots(q, rotation, key_padding_mask) for rotation in self.rotations]
        device = q.device.type
        with torch.autocast(device, enabled=False):
            out: Tensor = _ChunkAttention.apply(  # type: ignore[no-untyped-call]
                q, k.to(q.dtype), v, slots, self.config.bucket_size, self.causal
            )
        return out

    def _slots(self, q: Tensor, rotation: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sort the positions of one round.

        Returns:
            position: (B, H, slots) what stands in each slot of the sorted, chunked sequence; -1 = nothing.
            bucket: (B, H, slots / S) the bucket of each chunk; all 0 where chunks attend across buckets.
        """
        B, H, N, _ = q.shape
        size = self.config.bucket_size
        padding = q.new_zeros(B, N, dtype=torch.bool) if key_padding_mask is None else key_padding_mask
        half = half_buckets((~padding).sum(1), size)  # (B,)
        columns = int(half_buckets(torch.tensor(N), size))
        nowhere = max(1, 2 * columns)  # one past the last bucket: where padding goes
        bucket = self._hash(q, rotation[..., :columns], half).masked_fill(padding[:, None], nowhere)
        bucket, order = bucket.sort(stable=True)  # (B, H, N)
        order = order.masked_fill(bucket == nowhere, -1)
        if not self.causal:
            position = F.pad(order, (0, -N % size), value=-1)
            return position, position.new_zeros(B, H, position.shape[-1] // size)
        # Each bucket starts a chunk of its own: shift a position by the empty slots of the buckets before its.
        counts = torch.zeros(B, H, nowhere + 1, dtype=torch.long, device=q.device)
        counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
        empty = F.pad((-counts % size).cumsum(-1), (1, -1))
        slot = torch.arange(N, device=q.device) + empty.gather(-1, bucket)
        most = (-(-N // size) + nowhere + 1) * size
        position = torch.full((B, H, most), -1, device=q.device).scatter_(-1, slot, order)
        starts = torch.full_like(position, nowhere).scatter_(-1, slot, bucket)
        return position, starts[..., ::size].contiguous()

    def _hash(self, q: Tensor, rotation: Tensor, half: Tensor) -> Tensor:
        """Bucket of each position, (B, H, N), with 2 * half (B,) buckets in use; 0 where half is 0."""
        B, H, N, _ = q.shape
        columns, wide = rotation.shape[-1], torch.promote_types(q.dtype, torch.float32)
        out = torch.zeros(B, H, N, dtype=torch.long, device=q.device)
        unused = torch.arange(columns, device=q.device) >= half[:, None]  # (B, columns)
        step = max(1, HASH_ELEMENTS // max(1, B * H * columns))
        for start in range(0, N if columns else 0, step):
            part = slice(start, start + step)
            rotated = (q[:, :, part].to(wide) @ rotation.to(wide)).masked_fill(unused[:, None, None], 0)
            high, at_high = rotated.max(-1)
            low, at_low = rotated.min(-1)
            out[:, :, part] = torch.where(high >= -low, at_high, at_low + columns)
        return out

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel("chunked matmul, recomputed in backward")


def half_buckets(length: Tensor, bucket_size: int) -> Tensor:
    """Columns of R for a sample of ``length``: half its buckets; 0 (one bucket) where it fits into one."""
    half = (length + 2 * bucket_size - 1) // (2 * bucket_size)
    return torch.where(length <= bucket_size, torch.zeros_like(half), half)


class _ChunkAttention(torch.autograd.Function):
    """softmax over the union of the rounds, for slots that are known; keeps q, k, v, out and one log-sum-exp.

    Backward needs no weights of a single round: with the log-sum-exp of all rounds, ``exp(logit - lse)`` is a pair's
    weight in the result, whichever round it comes from.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, slots: list[tuple[Tensor, Tensor]], size: int, causal: bool
    ) -> Tensor:
        out = torch.zeros_like(
            q, dtype=torch.promote_types(q.dtype, torch.float32), memory_format=torch.contiguous_format
        )
        lse = out.new_full(q.shape[:-1], HIDDEN)
        for position, bucket in slots:
            chunks = _Chunks(position, bucket, q.shape[2], size, causal)
            logits = chunks.logits(chunks.take(q), chunks.look_back(chunks.take(k)))
            round_lse = logits.logsumexp(-1, keepdim=True)
            weights = (logits - round_lse).exp().to(v.dtype)
            round_out = chunks.put((weights @ chunks.look_back(chunks.take(v))).to(out.dtype))
            both = torch.logaddexp(lse, chunks.put(round_lse)[..., 0])
            new = (chunks.put(round_lse)[..., 0] - both).exp()[..., None]
            out = out * (lse - both).exp()[..., None] + round_out * new
            lse = both
        result = out.masked_fill(~chunks.present[..., None], 0).to(q.dtype)
        ctx.size, ctx.causal = size, causal
        ctx.save_for_backward(q, k, v, result, lse, *(x for pair in slots for x in pair))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *slots = ctx.saved_tensors
        delta = (grad * out).to(lse.dtype).sum(-1, keepdim=True)
        grads = [torch.zeros_like(x, dtype=lse.dtype) for x in (q, k, v)]
        for position, bucket in zip(slots[::2], slots[1::2], strict=True):
            chunks = _Chunks(position, bucket, q.shape[2], ctx.size, ctx.causal)
            qs, gs = chunks.take(q), chunks.take(grad)
            ks, vs = (chunks.look_back(chunks.take(x)) for x in (k, v))
            logits = chunks.logits(qs, ks)
            weights = (logits - chunks.take(lse[..., None])).exp()
            # A logit that was set to a constant passes no gradient on.
            slope = weights * ((gs @ vs.transpose(-1, -2)).to(lse.dtype) - chunks.take(delta))
            slope = slope.masked_fill(chunks.itself | chunks.hidden, 0).to(q.dtype)
            grads[0] += chunks.put((slope @ ks).to(lse.dtype))
            grads[1] += chunks.put(chunks.fold((slope.transpose(-1, -2) @ qs).to(lse.dtype)))
            grads[2] += chunks.put(chunks.fold((weights.to(v.dtype).transpose(-1, -2) @ gs).to(lse.dtype)))
        dq, dk, dv = (g.to(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))
        return dq, dk, dv, None, None, None


class _Chunks:
    """Moves tensors between positions (B, H, N, ·) and chunks (B, H, chunks, S, ·), for one round."""

    def __init__(self, position: Tensor, bucket: Tensor, length: int, size: int, causal: bool) -> None:
        B, H, slots = position.shape
        self.size, self.length = size, length
        filled = position >= 0
        base = torch.arange(B * H, device=position.device).view(B, H, 1)
        self.rows = (position.clamp(min=0) + base * length).flatten()
        # slot of each position: scatter the slot numbers; empty slots write to a column that is cut off
        slot = torch.zeros(B, H, length + 1, dtype=torch.long, device=position.device)
        number = torch.arange(slots, device=position.device).expand_as(position)
        slot.scatter_(-1, position.where(filled, length), number)
        self.slots = (slot[..., :length] + base * slots).flatten()
        self.present = torch.zeros_like(slot, dtype=torch.bool)
        self.present.scatter_(-1, position.where(filled, length), True)
        self.present = self.present[..., :length]

        at = position.view(B, H, -1, size)
        seen = self.look_back(at[..., None], value=-1)[..., 0]  # (B, H, chunks, 2S)
        self.itself = at[..., :, None] == seen[..., None, :]
        self.hidden = (seen < 0)[..., None, :] | (at < 0)[..., :, None]
        if causal:
            other = F.pad(bucket, (1, 0), value=-1)[..., :-1] != bucket  # the chunk before is another bucket's
            other = torch.stack([other, torch.zeros_like(other)], -1).repeat_interleave(size, -1)
            self.hidden = self.hidden | other[..., None, :] | (seen[..., None, :] > at[..., :, None])

    def take(self, x: Tensor) -> Tensor:
        """(B, H, N, ·) -> (B, H, chunks, S, ·)."""
        B, H, _, width = x.shape
        return x.reshape(-1, width).index_select(0, self.rows).view(B, H, -1, self.size, width)

    def put(self, x: Tensor) -> Tensor:
        """(B, H, chunks, S, ·) -> (B, H, N, ·); positions without a slot get 0."""
        B, H, _, _, width = x.shape
        out: Tensor = x.reshape(-1, width).index_select(0, self.slots).view(B, H, self.length, width)
        return out.masked_fill_(~self.present[..., None], 0)

    def look_back(self, x: Tensor, value: float = 0) -> Tensor:
        """(B, H, chunks, S, ·) -> (B, H, chunks, 2S, ·): each chunk after the one before it."""
        before = F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0), value=value)
        return torch.cat([before, x], dim=3)

    def fold(self, x: Tensor) -> Tensor:
        """The transpose of ``look_back``: (B, H, chunks, 2S, ·) -> (B, H, chunks, S, ·)."""
        own = x[:, :, :, self.size :].clone()
        own[:, :, :-1] += x[:, :, 1:, : self.size]
        return own

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, H, chunks, S, 2S) in at least float32; constants where a key is hidden or is the query itself."""
        logits = q @ k.transpose(-1, -2)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.masked_fill_(self.itself, SELF).masked_fill_(self.hidden, HIDDEN)
