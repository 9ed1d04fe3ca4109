"""Selective copying: repeat, in order, the tokens scattered among blanks.

A task of MAD (`tasks/mad.py`). The text is n tokens out of V - 2 ids, each after a random number of blanks (V - 2). The
copy token (V - 1) follows, then n blanks; the answer at the i-th of these is the i-th token. Three tokens to copy among
sixteen, six ids:

>>> task = MadSelectiveCopy(16, MadSelectiveCopyConfig(vocab_size=6, n_copy=3))
>>> inputs, targets = task.draw(np.random.default_rng(0), 1, 16)
>>> print(inputs[0])
[4 4 4 4 4 4 2 4 4 3 4 3 5 4 4 4]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[0 0 0 0 0 0 0 0 0 0 0 0 0 2 3 3]

MAD assigns the blanks to the gaps before the n tokens, and this task does the same, so that scores are comparable. So
the last token is always right before the copy token, and its position reveals one answer in n. `selective_copy`
scatters the tokens evenly. Encoders that see both directions gain nothing more: the answers are in the text alone.

MAD's settings: V 16, N 256, n 16, 12,800 training samples; and V 32, 64, 128, or N 512, 1024, or n 32, 64, 96, or
6,400, 3,200, 1,600, 800 samples. Departures: those of all MAD tasks (`tasks/mad.py`).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import IGNORE, register
from tasks.baselines import majority
from tasks.mad import Ids, Mad, MadConfig, defaults


def generate(rng: np.random.Generator, rows: int, *, seq_len: int, vocab_size: int, n_copy: int) -> tuple[Ids, Ids]:
    """Inputs and targets, both (rows, N)."""
    blank, text = vocab_size - 2, seq_len - n_copy - 1
    tokens = rng.integers(blank, size=(rows, n_copy), dtype=np.int16)
    before = rng.integers(n_copy, size=(rows, text - n_copy)) + n_copy * np.arange(rows)[:, None]
    blanks = np.bincount(before.ravel(), minlength=rows * n_copy).reshape(rows, n_copy)
    inputs = np.full((rows, seq_len), blank, np.int16)
    np.put_along_axis(inputs, np.arange(n_copy) + blanks.cumsum(axis=1), tokens, axis=1)
    inputs[:, text] = vocab_size - 1
    targets = np.full((rows, seq_len), IGNORE, np.int16)
    targets[:, -n_copy:] = tokens
    return inputs, targets


@dataclass(frozen=True, kw_only=True)
class MadSelectiveCopyConfig(MadConfig):
    """What MAD varies.

    Attributes:
        vocab_size: number of ids: tokens to copy, the blank, and the copy token.
        train_samples: samples in train.
        n_copy: number of tokens to copy.
    """

    task: ClassVar[str] = "mad_selective_copy"

    n_copy: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_copy < 1:
            raise ValueError(f"expected mad_selective_copy.n_copy >= 1, got {self.n_copy}")


@register
class MadSelectiveCopy(Mad):
    """MAD's selective copying; see the module's docstring.

    Raises:
        ValueError: seq_len is too short for n_copy tokens, n_copy questions, the copy token and a blank.
    """

    name = "mad_selective_copy"
    summary = "MAD: repeat, in order, the tokens scattered among blanks"
    fixed_places = "the last token to copy is right before the copy token, because MAD puts blanks before tokens only"
    min_len = 4
    defaults = defaults(256)
    config_type = MadSelectiveCopyConfig
    generator = 1

    def __init__(self, seq_len: int, config: MadSelectiveCopyConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.n_copy: int = self.config.n_copy
        if seq_len < self.shortest_train:
            raise ValueError(
                f"mad_selective_copy: expected seq_len >= {self.shortest_train} for n_copy={self.n_copy}, got {seq_len}"
            )

    @property
    def shortest_train(self) -> int:
        return 2 * self.n_copy + 2

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return generate(rng, rows, seq_len=seq_len, vocab_size=self.vocab_size, n_copy=self.n_copy)

    def baselines(self) -> dict[str, float]:
        """The most frequent token of train; of the text; the same with the last answer read off its fixed position."""
        n, test = self.n_copy, self.whole("test")
        answers = test.targets[:, -n:]
        commonest = np.array([np.bincount(row).argmax() for row in answers])[:, None]
        guesses = np.broadcast_to(commonest, answers.shape).copy()
        guesses[:, -1] = test.inputs[:, -n - 2]
        return {
            "most frequent token": majority(self.whole("train").targets[:, -n:].ravel(), answers.ravel()),
            "most frequent of the text": float(np.mean(answers == commonest)),
            "that, and the last token": float(np.mean(answers == guesses)),
        }
