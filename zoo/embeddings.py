"""Position encodings, and the optional short convolution after the embedding."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.contract import Dims, UnsupportedError
from zoo.forms import Formed

BASE, BASE_2D = 10_000.0, 100.0
Positions = Literal["sinusoidal", "learned", "rotary", "learned-2d", "rotary-2d", "none"]


class Table(nn.Module):
    """Numbers that depend on sizes only. They are not saved, but made again after every move or cast of the module, so
    ``to_empty`` cannot empty them and ``bfloat16()`` cannot round them.

    Args:
        make: returns the numbers, float32, on the CPU; picklable.
    """

    table: Tensor

    def __init__(self, make: Callable[[], Tensor]) -> None:
        super().__init__()
        self.make = make
        self.register_buffer("table", self._made(torch.get_default_device()), persistent=False)

    def _made(self, device: torch.device) -> Tensor:
        with torch.inference_mode(mode=False), torch.device("cpu"):  # not the default device: MPS has no float64
            return self.make().to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Table:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._made(self.table.device)
        return self

    def forward(self, like: Tensor) -> Tensor:
        """The numbers, on the device of ``like``."""
        if self.table.device != like.device:  # still on meta after load_state_dict(assign=True)
            made = self._made(like.device)
            if torch.compiler.is_compiling():
                return made
            self.table = made
        return self.table


def angles(length: int, width: int) -> Tensor:
    """Position × frequency, (length, width / 2), with frequencies from 1 down to 1 / BASE, float32."""
    frequency = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (torch.arange(length, dtype=torch.float64)[:, None] * frequency).float()


def waves(length: int, width: int) -> Tensor:
    """Cosines and sines of ``angles``: (2, length, width / 2)."""
    angle = angles(length, width)
    return torch.stack([angle.cos(), angle.sin()])


def sinusoids(length: int, width: int, scale: float) -> Tensor:
    """Sines and cosines of ``angles``, alternating, times ``scale``: (length, width)."""
    cos, sin = waves(length, width + width % 2)
    both = torch.stack([sin, cos], dim=-1).flatten(1)
    return both[:, :width].mul(scale)


def real_positions(key_padding_mask: Tensor) -> Tensor:
    """The number of real positions before each position: position numbers that skip padding. (B, N) bool -> long."""
    real = ~key_padding_mask
    return real.cumsum(1) - real.long()


def reordered(x: Tensor, places: Tensor) -> Tensor:
    """Position n of sample b is ``x[b, places[b, n]]``. x and the result: (B, N, C); places: (B, N) long."""
    B, N, C = x.shape
    rows = places + N * torch.arange(B, device=x.device)[:, None]
    return x.reshape(B * N, C).index_select(0, rows.flatten()).view(B, N, C)


class SinusoidalPositions(nn.Module):
    """Adds sin and cos of position × frequency (arXiv:1706.03762, section 3.5). (B, N, C), from position ``first`` on.

    Args:
        scale: amplitude. That of the token embeddings keeps positions from drowning small tokens.
    """

    def __init__(self, max_len: int, d_model: int, *, scale: float) -> None:
        super().__init__()
        self.table = Table(partial(sinusoids, max_len, d_model, scale))

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        rows: Tensor = self.table(x)[first : first + x.shape[1]]
        return x + rows.to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position. (B, N, C) -> (B, N, C), from ``first`` on."""

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(max_len, d_model) * 0.02)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        return x + self.table[first : first + x.shape[1]]


class Learned2DPositions(nn.Module):
    """Adds learned vectors of a row and a column, half of the features each (ViT, arXiv:2010.11929, appendix D.4).

    (B, N, C) -> (B, N, C); the positions are those of a square picture, row by row (see ``grid_of``), after a class
    token, if any, which has a vector of its own.
    """

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        side, lead = grid_of(max_len)
        self.row = nn.Parameter(torch.randn(side, d_model // 2) * 0.02)
        self.column = nn.Parameter(torch.randn(side, d_model - d_model // 2) * 0.02)
        self.first = nn.Parameter(torch.randn(lead, d_model) * 0.02) if lead else None

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        side = len(self.row)
        rows, columns = self.row.repeat_interleave(side, 0), self.column.repeat(side, 1)
        added = torch.cat([rows, columns], dim=1)
        if self.first is not None:
            added = torch.cat([self.first, added])
        return x + added[first : first + x.shape[1]]


def grid_of(max_len: int) -> tuple[int, int]:
    """The side of the square picture that has ``max_len`` positions, and the positions before it: 0, or 1.

    Raises:
        UnsupportedError: neither n² nor n² + 1.
    """
    side = math.isqrt(max_len)
    if max_len - side**2 > 1:
        raise UnsupportedError(f"positions of a picture need max_len n² (n² + 1 with a class token), got {max_len}")
    return side, max_len - side**2


def waves_2d(length: int, width: int) -> Tensor:
    """Cosines and sines for a square picture, (2, length, width / 2): half of the pairs turn by the row, half by the
    column. A class token before the picture is not turned."""
    side, lead = grid_of(length)
    frequency = BASE_2D ** (-torch.arange(0, width, 4, dtype=torch.float64) / width)
    angle = (torch.arange(side, dtype=torch.float64)[:, None] * frequency).float()  # (side, width / 4)
    both = torch.cat([angle.repeat_interleave(side, 0), angle.repeat(side, 1)], dim=1)
    both = F.pad(both, (0, 0, lead, 0))
    return torch.stack([both.cos(), both.sin()])


def make_positions(kind: Positions, max_len: int, d_model: int, scale: float) -> nn.Module:
    """What adds positions to the embedded input; rotary ones, which heads get, add nothing."""
    if kind == "sinusoidal":
        return SinusoidalPositions(max_len, d_model, scale=scale)
    learned: dict[Positions, type[nn.Module]] = {"learned": LearnedPositions, "learned-2d": Learned2DPositions}
    return learned[kind](max_len, d_model) if kind in learned else nn.Identity()


class RotaryPositions(nn.Module):
    """Turns pairs of features by position × frequency (RoFormer, arXiv:2104.09864). (B, H, N, D), from ``first`` on.

    Args:
        flat: False for a square picture: rows and columns turn pairs of their own, with frequencies down to 1 / 100
            (RoPE-ViT, arXiv:2403.13298, the axial form).

    Raises:
        ValueError: a head width without pairs for each, or ``max_len`` of no square picture.
    """

    def __init__(self, max_len: int, d_head: int, *, flat: bool = True) -> None:
        super().__init__()
        if flat and d_head % 2:
            raise ValueError(f"rotary positions turn pairs of features: d_head must be even, got {d_head}")
        if not flat and d_head % 4:
            raise ValueError(f"rotary positions of a picture need d_head a multiple of 4, got {d_head}")
        self.table = Table(partial(waves if flat else waves_2d, max_len, d_head))

    @classmethod
    def of(cls, dims: Dims, d_head: int) -> RotaryPositions | None:
        """The positions that the model's settings ask for; None for none."""
        return cls(dims.max_len, d_head, flat=dims.rotary != "2d") if dims.rotary else None

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        cos, sin = self.table(x)[:, first : first + x.shape[-2]].to(x.dtype)
        return turned(x, cos, sin)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn features m and m + D // 2 of ``x`` (…, N, D) as a pair, not an odd last one. cos, sin: (…, N, D // 2)."""
    half = cos.shape[-1]
    left, right, rest = torch.split(x, [half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


class ShortConvolution(Formed):
    """Depthwise convolution over neighbouring positions, added to its input. (B, N, C) -> (B, N, C).

    Centred in both directions; over past positions when causal. Padded positions count as zero.
    """

    def __init__(self, d_model: int, width: int, *, causal: bool) -> None:
        super().__init__()
        past = width - 1 if causal else (width - 1) // 2
        self.reach = (past, width - 1 - past)
        self.weight = nn.Parameter(torch.randn(d_model, 1, width) * width**-0.5)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        padded = F.pad(x.transpose(1, 2), self.reach)
        return x + F.conv1d(padded, self.weight, groups=x.shape[-1]).transpose(1, 2)

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The next position of the causal form. x: (B, C); past: (B, width - 1, C), earlier inputs, 0 at first."""

        def form(x: Tensor) -> tuple[Tensor, Tensor]:
            window = torch.cat([past, x], dim=1)
            return x + torch.einsum("bwc,cw->bc", window, self.weight[:, 0])[:, None], window[:, 1:]

        y, past = self.through(form, x[:, None])
        return y[:, 0], past
