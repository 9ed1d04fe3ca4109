"""No mixing between positions: the control.

Not from a paper. Each output is ``out(value(x))`` of its own position, as in attention where every position attends
only to itself. A task that this control learns does not measure attention.
Cost: O(N) time and memory. Without query and key projections, a layer has 2·d_model² fewer parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from zoo.contract import Dims, Mixer, Tensors, Traits
from zoo.registry import register


@dataclass(frozen=True, kw_only=True)
class NoneConfig:
    """No options."""


@register("none", config=NoneConfig)
class NoMixing(Mixer):
    """Control: each position sees only itself."""

    traits = Traits(
        family="control",
        source="control",
        year=None,
        time="O(N)",
        memory="O(N)",
        causal=True,
        rotary=False,
        subquadratic=True,
    )

    def __init__(self, dims: Dims, config: NoneConfig) -> None:
        super().__init__(dims)
        self.value = nn.Linear(dims.d_model, dims.d_model)
        self.out = nn.Linear(dims.d_model, dims.d_model)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.out(self.value(x))
        return y

    def begin(self, x: Tensor) -> Tensors:
        return ()

    def advance(self, x: Tensor, tensors: Tensors, position: int) -> tuple[Tensor, Tensors]:
        return self.out(self.value(x)), ()

    def absorb(self, x: Tensor) -> tuple[Tensor, Tensors]:
        return self.forward(x), ()

    def state_size(self, length: int) -> int:
        return 0

    def cache_size(self, length: int) -> int:
        return 0
