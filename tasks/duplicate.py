"""Duplicate: restore the hidden second half of 0 w 0 w.

Kitaev et al., "Reformer: The Efficient Transformer" (arXiv 2001.04451), the synthetic task of its section on LSH
attention. w is N / 2 - 1 random symbols from 1 to 127; 128 replaces a hidden symbol:

>>> inputs, targets = generate(np.random.default_rng(0), 1, seq_len=12)
>>> print(inputs[0])
[  0 109  81  65  35  40   0 128 128 128 128 128]
>>> print(np.where(targets[0] == IGNORE, 0, targets[0]))  # 0 for "not asked", to line up
[  0   0   0   0   0   0   0 109  81  65  35  40]

Departure from the paper: its language model reads the second w symbol by symbol and can find the answer by the last
symbol. An encoder sees both directions, so this task hides the whole second w, and a model finds each answer by its
position alone, N / 2 back. A fixed pattern, such as a stride or a learned matrix of positions, can therefore solve the
task: it does not test content-based lookup.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, NoConfig, TaskDefaults, register
from tasks.baselines import majority
from tasks.generated import Generated

SYMBOLS, HIDDEN = 127, 128

Ids = NDArray[np.int16]


def generate(rng: np.random.Generator, rows: int, *, seq_len: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N), N even."""
    half = seq_len // 2
    inputs = np.zeros((rows, seq_len), np.int16)
    inputs[:, 1:half] = rng.integers(1, SYMBOLS + 1, size=(rows, half - 1))
    inputs[:, half + 1 :] = HIDDEN
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, half + 1 :] = inputs[:, 1:half]
    return inputs, targets


@register
class Duplicate(Generated):
    """The second half of 0 w 0 w; see the module's docstring.

    Raises:
        ValueError: where seq_len is odd.
    """

    name = "duplicate"
    kind = "token"
    causal = True
    summary = "restore the hidden second half of 0 w 0 w"
    min_len = 16
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=256,
        d_model=64,
        n_heads=1,
        n_layers=2,
        lr=2e-3,
        conv_width=3,
        embedding_std=0.1,
        tokens_per_step=4096,
    )
    generator = 1
    seed = 200104451

    fixed_places = "each answer is N / 2 positions before its question"
    vocab_size = SYMBOLS + 2
    n_classes = SYMBOLS + 1  # 0 is never an answer

    def __init__(self, seq_len: int, config: NoConfig | None = None) -> None:
        super().__init__(seq_len, config)
        if seq_len % 2:
            raise ValueError(f"duplicate: expected an even seq_len, for two equal halves, got {seq_len}")

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len)

    def baselines(self) -> dict[str, float]:
        """The most frequent symbol of train; the most frequent symbol of w."""
        train, test = self.whole("train").targets, self.whole("test")
        words = test.inputs[:, 1 : self.seq_len // 2]
        commonest = np.array([np.bincount(word).argmax() for word in words])
        return {
            "most frequent symbol": majority(train[train != IGNORE], words.ravel()),
            "most frequent of w": float(np.mean(words == commonest[:, None])),
        }
