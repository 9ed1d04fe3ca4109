"""Compression: restore a whole text from the encoder's output at its last token.

A task of MAD (`tasks/mad.py`). N - 1 random tokens out of V - 1 ids, then the compress token (V - 1). A feed-forward
decoder (`zoo.heads.RestoreHead`) restores every token before it from the encoder's output at the last position and the
index of the token alone. Nine tokens, eight ids:

>>> task = MadCompress(9, MadCompressConfig(vocab_size=8))
>>> inputs, targets = task.draw(np.random.default_rng(0), 1, 9)
>>> print(inputs[0])
[3 5 6 4 5 3 5 1 7]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[3 5 6 4 5 3 5 1 0]

The task also suits encoders that see both directions: the decoder reads only the last position.

MAD's settings: V 16, N 32, 12,800 training samples; and V 32, 64, 128, or N 64, 128, 256, or 6,400, 3,200, 1,600,
800 samples. Departures besides those of all MAD tasks: MAD also asks for the last token, which is always the same, so a
score s here is (s (V - 1) + 1) / V in MAD: 6 free points at V 16. The decoder reads the output of the encoder's last
LayerNorm, which MAD does not have, and its weights have torch's default initialisation, where MAD draws them with
standard deviation 0.02.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import IGNORE, register
from tasks.baselines import majority
from tasks.mad import Ids, Mad, MadConfig, defaults


@dataclass(frozen=True, kw_only=True)
class MadCompressConfig(MadConfig):
    """What MAD varies.

    Attributes:
        vocab_size: number of ids, the compress token included.
        train_samples: samples in train.
    """

    task: ClassVar[str] = "mad_compress"


@register
class MadCompress(Mad):
    """MAD's compression; see the module's docstring."""

    name = "mad_compress"
    kind = "restore"
    summary = "MAD: restore a text from the encoder's output at its last token alone"
    fixed_places = "each answer is the token at its own position"
    min_len = 8
    defaults = defaults(32)
    config_type = MadCompressConfig
    generator = 1

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        inputs = rng.integers(self.vocab_size - 1, size=(rows, seq_len), dtype=np.int16)
        targets = inputs.copy()
        inputs[:, -1], targets[:, -1] = self.vocab_size - 1, IGNORE
        return inputs, targets

    def baselines(self) -> dict[str, float]:
        """The most frequent token of train; the most frequent token of the text."""
        texts = self.whole("test").inputs[:, :-1]
        commonest = np.array([np.bincount(text).argmax() for text in texts])[:, None]
        return {
            "most frequent token": majority(self.whole("train").inputs[:, :-1].ravel(), texts.ravel()),
            "most frequent of the text": float(np.mean(texts == commonest)),
        }
