"""Memorisation: learn the value of each key, which is the same in every sample.

A task of MAD (`tasks/mad.py`). Every other token is a key; the token after it (V - 1) asks for its value. V alone
determines the value of each key, so the sample holds no information about it: the model has to store the list. Ids:
(V - 1) / 2 keys, then values, of which a few belong to no key; the last id asks. Eight tokens, ten ids:

>>> task = MadMemorize(8, MadMemorizeConfig(vocab_size=10))
>>> inputs, targets = task.draw(np.random.default_rng(0), 1, 8)
>>> print(inputs[0])
[2 9 3 9 3 9 2 9]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[0 5 0 8 0 8 0 5]
>>> print(value_of(10))
[6 7 5 8]

The answer depends on the token before: with a convolution after the embedding the task needs no mixing at all, so the
default has no convolution. The task also suits encoders that see both directions: a value is never an input.

MAD's settings: V 256, 512, 1024, 2048, 4096 and 8192, N 32, 256 training samples. These hold 4,096 keys drawn with
replacement, so no model can score above 86 % at V 4096 and 63 % at V 8192, or above 91 % in the mean over all six
settings: training never shows the rest of the keys (a note beside each result gives the share that is shown).
Departures: those of all MAD tasks (`tasks/mad.py`); the list comes from another seed.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import IGNORE, register
from tasks.baselines import majority
from tasks.mad import Ids, Mad, MadConfig, defaults


def value_of(vocab_size: int) -> Ids:
    """(keys,) the value of each key; all differ."""
    n_keys = (vocab_size - 1) // 2
    values = np.arange(n_keys, vocab_size - 1, dtype=np.int16)
    return np.random.default_rng([Mad.seed, vocab_size]).permutation(values)[:n_keys]


@dataclass(frozen=True, kw_only=True)
class MadMemorizeConfig(MadConfig):
    """What MAD varies, and how many samples.

    Attributes:
        vocab_size: number of ids: keys, values, and the token that asks.
        train_samples: samples in train.
    """

    task: ClassVar[str] = "mad_memorize"

    vocab_size: int = 256
    train_samples: int = 256


@register
class MadMemorize(Mad):
    """MAD's memorisation; see the module's docstring."""

    name = "mad_memorize"
    summary = "MAD: learn by heart the value of each key"
    min_len = 8
    defaults = defaults(32)
    config_type = MadMemorizeConfig
    generator = 1

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        values = value_of(self.vocab_size)
        inputs = rng.integers(len(values), size=(rows, seq_len), dtype=np.int16)
        targets = np.full((rows, seq_len), IGNORE, np.int16)
        targets[:, 1::2] = values[inputs[:, 0 : seq_len - 1 : 2]]
        inputs[:, 1::2] = self.vocab_size - 1
        return inputs, targets

    def shown(self) -> float:
        """Share of what test asks whose key stands in train."""
        train, test = (self.whole(split).inputs[:, 0 : self.seq_len - 1 : 2] for split in ("train", "test"))
        return float(np.isin(test, train).mean())

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train."""
        train, test = self.whole("train").targets, self.whole("test").targets
        return {"most frequent value": majority(train[train != IGNORE], test[test != IGNORE])}

    def notes(self) -> list[str]:
        return [f"train shows the keys of {self.shown():.1%} of the questions: no model can score more"]
