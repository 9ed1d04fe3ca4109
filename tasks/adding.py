"""The adding problem: the sum of the two marked numbers.

Hochreiter & Schmidhuber, "Long Short-Term Memory" (Neural Computation 1997), with the numbers of Le et al., "A Simple
Way to Initialize Recurrent Networks of Rectified Linear Units" (arXiv 1504.00941) and one mark in each half, as in
Arjovsky et al. (arXiv 1511.06464). Each position has two features: a number drawn from U(0, 1), and a mark, 1
or 0. Eight positions:

>>> inputs, targets = generate(np.random.default_rng(2), 1, seq_len=8)
>>> print(inputs[0].T.round(2))
[[0.84 0.26 0.11 0.3  0.41 0.81 0.45 0.09]
 [0.   1.   0.   0.   0.   0.   1.   0.  ]]
>>> print(targets[0].round(2))
[0.71]

The constant answer 1 has a squared error of 1/6, the variance of the sum: explained variance 0.

A control without attention can solve the task: a feed-forward layer computes number × mark at each position, and the
head's mean over positions adds the products. At N 32 the control explains 0.999 of the variance after 1,000 steps of
64 samples. Attention changes how fast a model learns: after 300 steps of 32 at N 128, 0.97 with softmax and 0.23
without attention. A causal encoder solves the task too (softmax at N 64 after 300 steps, both directions: 0.99;
causal: 0.95).

A mark falls on every position of its half equally often: a method that saw an eighth of the positions best would know
an eighth of the sum's variance.

Departure: the target is the plain sum of two numbers from 0 to 1. Hochreiter & Schmidhuber draw numbers from -1 to 1
and ask for 0.5 + sum / 4.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.base import EXPLAINED_VARIANCE, Batch, TaskDefaults, register
from tasks.generated import Generated

Floats = NDArray[np.float32]


def generate(rng: np.random.Generator, rows: int, *, seq_len: int) -> tuple[Floats, Floats]:
    """Inputs (rows, N, 2) and targets (rows, 1)."""
    half = seq_len // 2
    inputs = np.zeros((rows, seq_len, 2), np.float32)
    inputs[..., 0] = rng.random((rows, seq_len), np.float32)
    first, second = rng.integers(half, size=rows), rng.integers(half, seq_len, size=rows)
    everyone = np.arange(rows)
    inputs[everyone, first, 1] = inputs[everyone, second, 1] = 1
    return inputs, (inputs[everyone, first, :1] + inputs[everyone, second, :1])


@register
class Adding(Generated):
    """The sum of two marked numbers; see the module's docstring."""

    name = "adding"
    kind = "value"
    metric = EXPLAINED_VARIANCE
    causal = True  # the head's mean adds the outputs of all positions
    summary = "add the two marked numbers among N"
    min_len = 4
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=128,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=None,
        embedding_std=1.0,
        tokens_per_step=4096,
    )
    stored = np.float32
    generator = 1
    seed = 150400941

    vocab_size = None
    n_features = 2
    n_classes = 1

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Floats, Floats]:
        return generate(rng, rows, seq_len=seq_len)

    def to_batch(self, inputs: Floats, targets: Floats) -> Batch:
        return Batch(inputs.reshape(len(inputs), -1, self.n_features).copy(), targets[:, 0].copy())

    def baselines(self) -> dict[str, float]:
        """The mean of train; the first marked number plus 1/2 for the second, which explains half of the variance."""
        train, test = self.whole("train").targets, self.whole("test")
        first = np.take_along_axis(test.inputs[..., 0], test.inputs[..., 1].argmax(axis=1)[:, None], axis=1)[:, 0]

        def explained(guess: Floats | np.float32) -> float:
            return 1 - float(np.mean((test.targets - guess) ** 2) / np.var(test.targets))

        return {"mean of train": explained(train.mean()), "first marked + 1/2": explained(first + np.float32(0.5))}
