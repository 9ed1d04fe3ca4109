"""Full softmax attention on torch's fused kernels.

Attention Is All You Need, arXiv:1706.03762, equation 1: ``softmax(q kᵀ / √D) v``; the fused kernels follow
FlashAttention, arXiv:2205.14135. Cost: O(N² D) time, O(N D) memory.
Departures from the paper: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.nn.attention import sdpa_kernel

from zoo.contract import Dims, Kernel, Tensors, Traits, one_of
from zoo.cores.cache import CachedAttention, cached_attention
from zoo.functional import SDPA_NAMES, full_attention, sdpa_kernel_name
from zoo.registry import register

KERNELS = {name: backend for backend, name in SDPA_NAMES.items()}


@dataclass(frozen=True, kw_only=True)
class FullConfig:
    """kernel: ``auto`` lets torch choose; ``flash``, ``efficient``, ``cudnn`` or ``math`` runs or raises an error."""

    kernel: str = "auto"

    def __post_init__(self) -> None:
        one_of("full.kernel", self.kernel, ("auto", *KERNELS))


@register("full", config=FullConfig)
class FullAttention(CachedAttention):
    """Softmax attention on fused kernels: the reference of every comparison."""

    traits = Traits(
        family="exact",
        source="Vaswani et al., arXiv:1706.03762",
        year=2017,
        time="O(N²)",
        memory="O(N)",
        causal=True,
        exact=True,
        weights=True,
    )

    def __init__(self, dims: Dims, config: FullConfig) -> None:
        super().__init__(dims)
        self.config = config

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """See ``Attention.forward``. Raises NotImplementedError where the chosen kernel cannot run."""
        with self._restricted(q, "" if key_padding_mask is None else " and a padding mask"):
            return full_attention(q, k, v, key_padding_mask=key_padding_mask, causal=self.causal, dropout=self.dropped)

    def advance(self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        with self._restricted(q):
            return cached_attention(q, k, v, tensors, position, self.max_len, dropout=self.dropped)

    @contextmanager
    def _restricted(self, q: Tensor, beside: str = "") -> Iterator[None]:
        """Restrict torch to the kernel that the option names."""
        if self.config.kernel == "auto":
            yield
            return
        try:
            with sdpa_kernel(KERNELS[self.config.kernel]):
                yield
        except RuntimeError as error:
            if "backend" not in str(error) and "kernel" not in str(error):
                raise
            raise NotImplementedError(
                f"full.kernel={self.config.kernel!r} cannot run on {q.device.type} with {q.dtype}{beside}; "
                "use kernel='auto'"
            ) from error

    def kernel(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Kernel:
        if self.config.kernel == "auto":
            return sdpa_kernel_name(x, key_padding_mask, causal=self.causal, dropout=self.dropped)
        return Kernel(f"torch SDPA {self.config.kernel} ({x.device.type})")
