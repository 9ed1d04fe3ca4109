"""State tracking: what is the product of all permutations so far?

The word problem of a permutation group, as in Merrill et al., "The Illusion of State in State-Space Models" (arXiv
2404.08819), and Liu et al., "Transformers Learn Shortcuts to Automata" (arXiv 2210.10749). Every token is a random
permutation of a few elements; the answer at each position is the product of the tokens up to this position, applied in
the order of the text. Two elements give parity: 0 is the identity, 1 swaps. Twelve tokens, two elements; then three
elements, whose six permutations are numbered in the order of `itertools.permutations`:

>>> inputs, targets = generate(np.random.default_rng(0), 1, seq_len=12, elements=2)
>>> print(inputs[0], targets[0])
[1 1 1 1 1 1 1 0 1 0 0 0] [1 0 1 0 1 0 1 1 0 0 0 0]
>>> inputs, targets = generate(np.random.default_rng(0), 1, seq_len=12, elements=3)
>>> print(inputs[0], targets[0])
[3 5 5 3 5 3 4 1 5 1 1 0] [3 2 3 4 1 2 1 0 5 3 5 5]

The task also scores ranges of positions, which shows how far a model carries the state. The first answers are easy (the
first is the first token itself). Positions reveal nothing else: each token makes all products equally likely.

Theory for all lengths at once, at a fixed number of layers and in finite precision: five elements (S5) are complete for
NC1 (Barrington 1989), so if TC0 is not NC1, neither attention nor a recurrence with diagonal factors (S4, Mamba) tracks
them (Merrill et al.). Two and three elements are in TC0, and no theorem excludes attention; attention learns to count,
and fails on longer texts (Liu et al., who also need log N layers for S5). A linear recurrence with factors between 0
and 1, as in retnet, mamba2 and gated_deltanet here, cannot compute parity. With factors down to -1 it can. With matrix
factors that are products of several reflections for each token, or with more layers, it computes any permutation
(Grazzi et al., arXiv 2411.12537). A nonlinear recurrent network needs one layer. At one short length many of these
models learn the task anyway: read the slices, and test beyond the training length.

Causal only: later tokens say nothing about an answer. Departures: all of S5, where Merrill et al. also try its subgroup
A5; a score for each position, where Merrill et al. count texts that are right as a whole.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from tasks.base import Batch, TaskDefaults, register
from tasks.baselines import majority
from tasks.generated import Generated

SIZES = (2, 3, 5)
FIRST = 8  # positions of the first slice; each further slice ends at twice the position
WINDOW = 4  # tokens that a baseline sees

Ids = NDArray[np.int16]


def products(elements: int) -> Ids:
    """(P, P) at [a, b] the number of the permutation that applies ``b`` after ``a``; number 0 is the identity."""
    group = np.array(list(permutations(range(elements))))
    places = elements ** np.arange(elements)
    number = np.zeros(elements**elements, np.int16)
    number[group @ places] = np.arange(len(group))
    return number[group[:, group] @ places].T


def generate(rng: np.random.Generator, rows: int, *, seq_len: int, elements: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N)."""
    after = products(elements)
    inputs = rng.integers(len(after), size=(rows, seq_len), dtype=np.int16)
    targets = inputs.copy()
    for place in range(1, seq_len):
        targets[:, place] = after[targets[:, place - 1], inputs[:, place]]
    return inputs, targets


@dataclass(frozen=True, kw_only=True)
class StateTrackingConfig:
    """The group of permutations.

    Attributes:
        elements: number of permuted elements: 2 (parity), 3 or 5.
    """

    elements: int = 5

    def __post_init__(self) -> None:
        if self.elements not in SIZES:
            raise ValueError(
                f"expected state_tracking.elements among {', '.join(map(str, SIZES))}, got {self.elements}"
            )


@register
class StateTracking(Generated):
    """Products of permutations; see the module's docstring."""

    name = "state_tracking"
    kind = "token"
    summary = "the product of all permutations so far; also scored by position"
    causal = True
    causal_only = True
    fixed_places = "each answer depends on all tokens before it, so the first answers on the first tokens"
    min_len = 24  # so that two elements give enough different samples
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=64,
        d_model=64,
        n_heads=4,
        n_layers=2,
        lr=2e-3,
        conv_width=None,
        embedding_std=1.0,
        tokens_per_step=4096,
    )
    config_type = StateTrackingConfig
    generator = 1
    seed = 240408819

    def __init__(self, seq_len: int, config: StateTrackingConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.vocab_size = self.n_classes = len(products(self.config.elements))
        ends = [FIRST << doublings for doublings in range(int(slice_of(np.array([seq_len]))[0]))] + [seq_len]
        starts = [1, *(end + 1 for end in ends)]
        self.slice_names = tuple(f"positions {start}–{end}" for start, end in zip(starts, ends, strict=False))

    @property
    def cache_key(self) -> str:
        return f"{self.seq_len}-{self.config.elements}-g{self.generator}"

    @property
    def shortest_train(self) -> int:
        return FIRST

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len, elements=self.config.elements)

    def to_batch(self, inputs: Ids, targets: Ids) -> Batch:
        batch = super().to_batch(inputs, targets)
        slices = np.broadcast_to(slice_of(np.arange(1, inputs.shape[1] + 1)), inputs.shape).copy()
        return Batch(batch.inputs, batch.targets, slices=slices)

    def baselines(self) -> dict[str, float]:
        """The most frequent product of train; the last token; the product of the last four tokens."""
        test, after = self.whole("test"), products(self.config.elements)
        seen = test.inputs
        for back in range(1, WINDOW):
            earlier = np.pad(test.inputs, ((0, 0), (back, 0)))[:, : self.seq_len]  # 0 is the identity
            seen = after[earlier, seen]
        return {
            "most frequent product": majority(self.whole("train").targets.ravel(), test.targets.ravel()),
            "last token": float(np.mean(test.targets == test.inputs)),
            f"product of the last {WINDOW}": float(np.mean(test.targets == seen)),
        }


def slice_of(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The slice of each position, counted from 1: up to 8, up to 16, up to 32 and so on."""
    return np.ceil(np.log2(np.maximum(positions, FIRST) / FIRST)).astype(np.int64)
