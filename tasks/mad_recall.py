"""In-context recall: which value did this key have before?

A task of MAD (`tasks/mad.py`). A sample is a row of pairs, a key and its value; keys come again and again, each with
the value it had at first, and wherever a key comes again its value is asked for. Which value a key has is drawn anew
for each sample. The last pair always asks. Ids: V / 2 keys, then V / 2 values. Twelve tokens, eight ids:

>>> task = MadRecall(12, MadRecallConfig(vocab_size=8))
>>> inputs, targets = task.draw(np.random.default_rng(0), 1, 12)
>>> print(inputs[0])
[3 4 2 4 2 4 1 7 1 7 1 7]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[0 0 0 0 4 0 0 0 7 0 7 0]

Training asks for every next token, as MAD's does. Causal only: an encoder that sees both ways finds each answer at the
next position. Nothing is given away by place: keys are drawn independently of where they stand, and values of keys.

MAD's settings: V 16, N 128, 12,800 samples of training; and V 32, 64, 128, or N 256, 512, 1024, or 6,400, 3,200, 1,600,
800 samples. Departure besides those of all its tasks: N tokens where MAD's code feeds N - 1, without the last value,
which nothing is asked of and no earlier position of a causal encoder sees.
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
        vocab_size: keys and values, half of them each.
        train_samples: in train.
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
