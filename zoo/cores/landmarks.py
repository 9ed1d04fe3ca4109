"""Shared by the Nyström methods: segments for landmarks, and an inverse by matrix products alone."""

from __future__ import annotations

import torch
from torch import Tensor


def segments(real: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split the first ``real`` positions into ``count`` consecutive segments of nearly equal size, short ones first.

    A sample with fewer real positions than ``count`` has one segment for each position; the other segments are empty.

    real: (B,) integers. Returns where each segment starts and its size, both (B, count).
    """
    used = real.clamp(max=count)[:, None]
    size = real[:, None] // used.clamp(min=1)
    shorter = used - (real[:, None] - used * size)
    place = torch.arange(count, device=real.device)
    starts = place * size + (place - shorter).clamp(min=0)
    sizes = (size + (place >= shorter)) * (place < used)
    return starts, sizes


def iterate_inverse(a: Tensor, z: Tensor, iterations: int) -> Tensor:
    """Iterate from ``z`` towards the (pseudo-)inverse of ``a``: ``z ← ¼ z (13 I - a z (15 I - a z (7 I - a z)))``.

    The recurrence of arXiv:2102.03902, equation 13. a, z and the result: (B, H, M, M).
    """
    with torch.autocast(a.device.type, enabled=False):
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        flat, z = a.flatten(0, 1), z.flatten(0, 1)
        for _ in range(iterations):
            az = flat @ z
            inner = torch.baddbmm(15 * eye, az, 7 * eye - az, alpha=-1)
            inner = torch.baddbmm(13 * eye, az, inner, alpha=-1)
            z = 0.25 * z @ inner
    return z.view_as(a)
