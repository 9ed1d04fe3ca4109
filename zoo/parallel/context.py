"""Context parallelism: one sequence split over processes, in equal pieces of neighbouring positions.

``split_sequence`` changes an encoder in place, as torch's ``fully_shard`` does: its modules keep their parameters and
names, and get the classes of this file, which communicate where a method looks beyond the own piece. All else in an
encoder (norms, feed-forward, projections) looks at one position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from zoo.attention.full import FullAttention
from zoo.attention.gated_deltanet import GatedDeltaNet, unit
from zoo.attention.linear import LinearAttention
from zoo.attention.local import LocalAttention
from zoo.attention.mamba2 import Mamba2, plain
from zoo.attention.retnet import RetNet
from zoo.contract import Backend, Kernel, Tensors, UnsupportedError
from zoo.cores.kernel_attention import divide
from zoo.embeddings import LearnedPositions, ShortConvolution, SinusoidalPositions, real_positions, reordered
from zoo.encoder import Encoder
from zoo.functional import accumulator, convolve_taps
from zoo.parallel.collectives import check_mesh, gather, widen
from zoo.parallel.recurrent import scan_decayed, scan_delta, turn
from zoo.parallel.ring import ring_attention
from zoo.shell import Shell, check_input
from zoo.state import State


class Split(nn.Module):
    """A module that sees the own piece of a sequence, and communicates over ``mesh``."""

    mesh: DeviceMesh

    @property
    def rank(self) -> int:
        return self.mesh.get_local_rank()

    def first(self, x: Tensor, dim: int) -> int:
        """The position in the sequence at which the own piece ``x`` begins."""
        return self.rank * x.shape[dim]

    def zero_padded(self, x: Tensor, reach: tuple[int, int], dim: int) -> Tensor:
        """The own piece with exactly ``reach`` positions on each side; positions that there are not are 0."""
        wide = widen(x, reach, self.mesh, dim)
        after = (self.mesh.size() - 1 - self.rank) * x.shape[dim]
        missing = max(0, reach[0] - self.first(x, dim)), max(0, reach[1] - after)
        return F.pad(wide, ((0, 0) * (x.dim() - 1 - dim)) + missing)


class OnTorch(Split):
    """A backend whose pieces run in plain torch on every device."""

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        return Kernel(f"torch ops on {self.mesh.size()} pieces of the sequence")


class SplitFull(OnTorch, FullAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return ring_attention(q, k, v, self.mesh, key_padding_mask=key_padding_mask, causal=self.causal)


class SplitLinear(OnTorch, LinearAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        dtype, map_ = accumulator(v), self.features
        with torch.autocast(v.device.type, enabled=False):
            queries, keys = map_.queries(q.to(dtype), 0), map_.keys(k.to(dtype), 0)
            if key_padding_mask is not None:
                keys = keys.masked_fill(key_padding_mask[:, None, :, None], 0)
            values = F.pad(v.to(dtype), (0, 1), value=1)
            if self.causal:
                still = values.new_zeros(1, *values.shape[1:3])  # logarithms of decays: nothing fades
                total = scan_decayed((queries, keys, values, still), self.mesh)
            else:
                total = queries @ gather(keys.mT @ values, self.mesh).sum(0)
            out, _ = divide(total)
        return out.to(v.dtype)


class SplitLocal(Split, LocalAttention):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        n, reach = q.shape[2], (self.config.window, 0 if self.causal else self.config.window)
        k, v = (widen(x, reach, self.mesh, 2) for x in (k, v))
        before = min(reach[0], self.first(q, 2))
        q = F.pad(q, (0, 0, before, k.shape[2] - n - before))
        if key_padding_mask is not None:
            key_padding_mask = widen(key_padding_mask.to(torch.uint8), reach, self.mesh, 1).bool()
        return super().forward(q, k, v, key_padding_mask=key_padding_mask)[:, :, before : before + n]


class SplitRetNet(OnTorch, RetNet):
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        q, k, v, gate = self._project(x, self.first(x, 1) + torch.arange(x.shape[1], device=x.device))
        log_decay = self._log_decay(q).expand(-1, -1, x.shape[1])
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], 0)
            log_decay = log_decay * ~key_padding_mask[:, None]
        sequences = q, k, v.to(q.dtype), log_decay
        read = scan_decayed(sequences, self.mesh)
        if not self.causal:
            read = read + scan_decayed(sequences, self.mesh, reverse=True) - (q * k).sum(-1, keepdim=True) * v
        return self._close(read, gate)


class SplitMamba2(OnTorch, Mamba2):
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        z, mixed, step = self.project(x).split(self.sizes, dim=-1)
        if key_padding_mask is not None:
            mixed = mixed.masked_fill(key_padding_mask[..., None], 0)
            step = step.masked_fill(key_padding_mask[..., None], -torch.inf)  # Δ = 0
        forth, *back = self._sequences(self.zero_padded(mixed, self.reach, 1), step)
        a, own = self._a(), self.skip[:, None]
        read = scan_decayed(plain(a, *forth), self.mesh)
        if back:
            c, b, _, step = back[0]
            read = read + scan_decayed(plain(a, *back[0]), self.mesh, reverse=True)
            own = own - (c * b).sum(-1) * step
        return self._close(read, own, forth[2], z)


class SplitGatedDeltaNet(OnTorch, GatedDeltaNet):
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        sequences = self._sequences(x, key_padding_mask)
        read = self._read(sequences, reverse=False)
        return self._leave(x, read if self.causal else read + self._read(sequences, reverse=True))

    def _read(self, sequences: Tensors, *, reverse: bool) -> Tensor:
        beta, log_decay, x = sequences
        past = len(self.conv) - 1
        x = self.zero_padded(x.to(beta.dtype), (0, past) if reverse else (past, 0), 2)
        (x,) = turn((x,), reverse)
        taps = self.conv.to(x)
        q, k, v = turn(F.silu(convolve_taps(x, taps)).chunk(3, dim=-1), reverse)
        return scan_delta((unit(q, q.shape[-1] ** -0.5), unit(k), v, beta, log_decay), self.mesh, reverse=reverse)


class SplitConvolution(Split, ShortConvolution):
    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        padded = self.zero_padded(x, self.reach, 1).transpose(1, 2)
        return x + F.conv1d(padded, self.weight, groups=x.shape[-1]).transpose(1, 2)


class SplitShell(Split, Shell):
    def _project(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        return super()._project(x, first + self.first(x, 1))


class SplitSinusoidal(Split, SinusoidalPositions):
    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return super().forward(x, first + self.first(x, 1))


class SplitLearned(Split, LearnedPositions):
    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return super().forward(x, first + self.first(x, 1))


class SplitEncoder(Split, Encoder):
    """Takes the whole input on every rank, encodes the own piece, and returns the whole result on every rank."""

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """See ``Encoder.forward``. All ranks give the same input.

        Raises:
            ValueError: also a length that the ranks do not divide.
        """
        self._check(x, "B, N")
        like = torch.empty(*x.shape[:2], self.d_model, device="meta")
        check_input(like, key_padding_mask, self.d_model, self.max_len)
        ranks, N = self.mesh.size(), x.shape[1]
        if N % ranks:
            raise ValueError(f"expected a length that {ranks} processes divide, got {N}: pad the input")
        padding = key_padding_mask
        if padding is not None:  # real positions to the front, of the whole sequence
            key_padding_mask, order = padding.sort(dim=1, stable=True)
            x = x.take_along_dim(order if x.dim() == 2 else order[..., None], 1)
            key_padding_mask = key_padding_mask.chunk(ranks, 1)[self.rank]
        piece = super().forward(x.chunk(ranks, 1)[self.rank], key_padding_mask=key_padding_mask)
        y = gather(piece, self.mesh).movedim(0, 1).flatten(1, 2)
        return y if padding is None else reordered(y, real_positions(padding)).masked_fill(padding[..., None], 0)

    def _start(self, x: Tensor) -> State:
        raise UnsupportedError("a sequence that is split over processes has no steps: decode with one process")


SPLIT: dict[type[nn.Module], type[Split]] = {
    cls.__bases__[1]: cls
    for cls in (
        SplitEncoder,
        SplitShell,
        SplitConvolution,
        SplitSinusoidal,
        SplitLearned,
        SplitFull,
        SplitLinear,
        SplitLocal,
        SplitRetNet,
        SplitMamba2,
        SplitGatedDeltaNet,
    )
}


def split_sequence(encoder: Encoder, mesh: DeviceMesh) -> None:
    """Split the sequences of ``encoder`` over the ranks of ``mesh``, in place.

    Every rank calls the encoder with the same whole batch and gets the whole result, so heads and losses stay as they
    are. Each gradient is then one part of W times the gradient: average the gradients over the mesh, as
    ``DistributedDataParallel`` does.

    Args:
        encoder: with the same parameters on every rank.
        mesh: one dimension.

    Raises:
        UnsupportedError: a backend, or a part of the encoder, that needs the whole sequence.
    """
    check_mesh(mesh)
    check_sequence(encoder)
    for module in encoder.modules():
        if type(module) in SPLIT:
            module.__class__ = SPLIT[type(module)]
            assert isinstance(module, Split)
            module.mesh = mesh


def check_sequence(encoder: Encoder) -> None:
    """Raise what ``split_sequence`` raises for an encoder that it cannot split."""
    if encoder.class_token is not None or encoder.grid:
        raise UnsupportedError("a class token or positions of a picture cannot be split into equal pieces")
    for module in encoder.modules():
        if isinstance(module, Backend) and not isinstance(module, Shell):
            _check(module)


def _check(backend: Backend) -> None:
    """Raise UnsupportedError for a backend, or options of it, that cannot run on pieces of a sequence."""
    if type(backend) not in SPLIT:
        able = sorted(cls.name for cls in SPLIT if issubclass(cls, Backend) and cls is not Shell)
        raise UnsupportedError(f"{backend.name} cannot split a sequence over processes; these can: {', '.join(able)}")
    if backend.dims.attention_dropout:
        raise UnsupportedError("attention_dropout cannot be split over the sequence: set it to 0")
    kernel = getattr(backend.built_from, "kernel", "auto")
    if kernel not in ("auto", "torch") and issubclass(SPLIT[type(backend)], OnTorch):
        raise UnsupportedError(
            f"{backend.name}.kernel={kernel!r} cannot run on pieces of a sequence: use kernel='auto'"
        )
