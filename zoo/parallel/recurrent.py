"""Linear recurrences over a sequence that is split over processes.

A piece turns the state S before it into ``P S + R``. Every rank scans its piece from the state 0, and sends P and R to
all others. From those of the ranks before it each rank knows the state before its piece, and adds what its positions
read of that state. So all ranks scan at once: none waits for the state of another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from zoo.contract import Tensors
from zoo.cores.recurrences import decayed, delta
from zoo.cores.scan import scan
from zoo.parallel.collectives import before


def scan_decayed(sequences: Tensors, mesh: DeviceMesh, *, reverse: bool = False) -> Tensor:
    """``scan`` of ``decayed`` over the whole sequence: the results of the own piece, (B, H, n, D).

    sequences: q, k (B, H or 1, n, M), v (B, H, n, D), log_decay (B or 1, H, n), the own piece in float32 at least.
    reverse: from the last position of the last rank to the first of the first. Each rank sends H (M D + 1) numbers a
    sample: P is one factor a head.
    """
    q, k, v, log_decay = turn(sequences, reverse)
    M, (B, H, _, D) = q.shape[-1], v.shape
    own = scan(decayed, (q, k, v, log_decay), (v.new_zeros(B, H, M, D),), folds=True)
    with torch.autocast(v.device.type, enabled=False):
        left = F.pad(log_decay[..., 1:], (0, 1)).flip(-1).cumsum(-1).flip(-1).exp()  # at the end, of each position
        writes = k.mT @ (v * left[..., None])
        keeps = log_decay.sum(-1).exp()[..., None, None]
        state = before(keeps, writes, mesh, reverse=reverse)
        read = own + q @ state * log_decay.cumsum(-1).exp()[..., None]
    return read.flip(2) if reverse else read


def scan_delta(sequences: Tensors, mesh: DeviceMesh, *, reverse: bool = False) -> Tensor:
    """``scan`` of ``delta`` over the whole sequence: the results of the own piece, (B, H, n, D).

    sequences: q, k (B, H, n, M), v (B, H, n, D), beta, log_decay (B, H, n), the own piece in float32 at least. Each
    rank sends H M (M + D) numbers a sample: P is a matrix, the product of all ``a_t (I - β_t k_tᵀ k_t)``.

    One scan finds R, P and the readings. M further columns of the values are 0 while their first state is the identity,
    so they hold the product of matrices up to each position. M further queries, the rows of the identity, read both
    states after the last position.
    """
    q, k, v, beta, log_decay = turn(sequences, reverse)
    M, (B, H, n, D) = q.shape[-1], v.shape
    identity = torch.eye(M, dtype=v.dtype, device=v.device).expand(B, H, M, M)
    q, k, v = torch.cat([q, identity], dim=2), F.pad(k, (0, 0, 0, M)), F.pad(v, (0, M, 0, M))
    beta, log_decay = (F.pad(x, (0, M)) for x in (beta, log_decay))
    read = scan(delta, (q, k, v, beta, log_decay), (F.pad(identity, (D, 0)),), folds=True)
    own, passed = read[:, :, :n, :D], read[:, :, :n, D:]
    writes, keeps = read[:, :, n:, :D], read[:, :, n:, D:]
    with torch.autocast(v.device.type, enabled=False):
        out = own + passed @ before(keeps, writes, mesh, reverse=reverse)
    return out.flip(2) if reverse else out


def turn(sequences: Tensors, reverse: bool) -> Tensors:
    """The sequences (B, H, n, …), with ``reverse`` from the last position to the first."""
    return tuple(x.flip(2) for x in sequences) if reverse else sequences
