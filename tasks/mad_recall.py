"""In-context recall: which value did this key have before?

A task of MAD (`tasks/mad.py`). A sample is a sequence of pairs of a key and its value. Each key repeats with its first
value, and each repetition asks for that value. Every sample draws the value of each key anew. The last pair always
asks. Ids: V / 2 keys, then V / 2 values. Twelve tokens, eight ids:

>>> task = MadRecall(12, MadRecallConfig(vocab_size=8))
>>> inputs, targets = task.draw(np.random.default_rng(0), 1, 12)
>>> print(inputs[0])
[3 4 2 4 2 4 1 7 1 7 1 7]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[0 0 0 0 4 0 0 0 7 0 7 0]

Training asks for every next token, as in MAD. Causal only: an encoder that sees both directions finds each answer at
the next position. Positions reveal no answer: keys are independent of their positions, and values of their keys.

MAD's settings: V 16, N 128, 12,800 training samples; and V 32, 64, 128, or N 256, 512, 1024, or 6,400, 3,200, 1,600,
800 samples. Departure besides those of all MAD tasks: the input has N tokens, where MAD's code feeds N - 1, without the
last value; nothing is asked there, and no earlier position of a causal encoder sees it.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import register
from tasks.mad import Ids, MadConfig, Marks, Recall, defaults, pairs


@dataclass(frozen=True, kw_only=True)
class MadRecallConfig(MadConfig):
    """What MAD varies.

    Attributes:
        vocab_size: number of ids, half of them keys and half values.
        train_samples: samples in train.
    """

    task: ClassVar[str] = "mad_recall"


@register
class MadRecall(Recall):
    """MAD's in-context recall; see the module's docstring."""

    name = "mad_recall"
    summary = "MAD: recall the value that a key had before"
    min_len = 8
    defaults = defaults(128)
    config_type = MadRecallConfig
    generator = 1

    @property
    def values(self) -> range:
        return range(self.vocab_size // 2, self.vocab_size)

    def text(self, rng: np.random.Generator, rows: int, seq_len: int, *, training: bool) -> tuple[Ids, Marks]:
        return pairs(rng, rows, seq_len=seq_len, vocab_size=self.vocab_size)
