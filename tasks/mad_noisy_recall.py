"""Noisy in-context recall: which value did this key have before, among noise?

A task of MAD (`tasks/mad.py`): in-context recall (`tasks/mad_recall.py`) in which two ids of noise replace some of the
pairs. Ids: (V - 16) / 2 keys, as many values, 16 ids of noise. Twelve tokens, four keys and four values:

>>> task = MadNoisyRecall(12, MadNoisyRecallConfig(vocab_size=24, noise_share=0.4))
>>> inputs, targets = task.draw(np.random.default_rng(1), 1, 12)
>>> print(inputs[0])
[ 1  7  2  7  3  4 12 15  0  7  1  7]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[0 0 0 0 0 0 0 0 0 0 7 0]

Training asks for every next token, noise included, as in MAD. Causal only, as in-context recall. The task
`noisy_recall` also suits encoders that see both directions.

MAD's settings: V 32, N 128, a fifth of the pairs noise, 12,800 training samples; and V 48, 80, 144, or N 256, 512,
1024, or 6,400, 3,200, 1,600, 800 samples, or 0.4, 0.6, 0.8 of noise. Departures: those of in-context recall; and this
task keeps one pair before the last free of noise, where MAD may choose the last pair itself and then has no question.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import register
from tasks.mad import Ids, MadConfig, Marks, Recall, defaults, pairs

NOISE_IDS = 16


@dataclass(frozen=True, kw_only=True)
class MadNoisyRecallConfig(MadConfig):
    """What MAD varies.

    Attributes:
        vocab_size: number of ids: keys, values and 16 ids of noise.
        train_samples: samples in train.
        noise_share: share of the pairs that are noise.
    """

    task: ClassVar[str] = "mad_noisy_recall"
    least_ids: ClassVar[int] = NOISE_IDS + 4

    vocab_size: int = 32
    noise_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise_share < 1:
            raise ValueError(f"expected 0 <= mad_noisy_recall.noise_share < 1, got {self.noise_share}")


@register
class MadNoisyRecall(Recall):
    """MAD's noisy in-context recall; see the module's docstring."""

    name = "mad_noisy_recall"
    summary = "MAD: recall the value that a key had before, among noise"
    min_len = 8
    defaults = defaults(128)
    config_type = MadNoisyRecallConfig
    generator = 1

    @property
    def values(self) -> range:
        quiet = self.vocab_size - NOISE_IDS
        return range(quiet // 2, quiet)

    def text(self, rng: np.random.Generator, rows: int, seq_len: int, *, training: bool) -> tuple[Ids, Marks]:
        share = self.config.noise_share
        return pairs(rng, rows, seq_len=seq_len, vocab_size=self.vocab_size, noise_ids=NOISE_IDS, noise_share=share)
