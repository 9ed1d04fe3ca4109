"""Fuzzy in-context recall: which value did this key have before? Both are one to three tokens long.

A task of MAD (`tasks/mad.py`). Keys and values are one to three different ids in a row. Two keys differ if any token,
the order or the number of tokens differs. When a key comes again, the task asks for each token of its value. The last
pair always repeats a key that was shown at a random position before. Training draws keys of one to three tokens, tests
draw keys of three tokens only. Pads (V - 1) fill each sample from the left and are ordinary ids. Ids: keys and values,
half of V - 1 each, then the pad. Thirty tokens, sixteen ids:

>>> inputs, targets = MadFuzzyRecall(30).draw(np.random.default_rng(0), 1, 30)
>>> print(inputs[0])
[15 15 15 15 15 15 15  4  3  6  8 12  3  4  0 11  8 10  1  6  3 12  9  5
  3  0 14  5  3  0]
>>> print(targets[0].clip(0))  # 0 for "not asked", to line up
[ 0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
  0  0  0  0  0 14]

Training asks for every next token, pads included, as in MAD. Causal only: an encoder that sees both directions finds
each answer at the next position.

MAD's settings: V 16, N 128, 12,800 training samples; and V 32, 64, 128, or N 256, 512, 1024, or 6,400, 3,200, 1,600,
800 samples. Departure besides those of all MAD tasks: the key asked for at the end is always in the text before. MAD's
code omits this key if its position falls too near the end (in 2.5 % of the tests at N 128).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tasks.base import register
from tasks.mad import Ids, MadConfig, Marks, Numbers, Recall, defaults, first_seen

SIZES = (1, 2, 3)  # tokens of a value, and of a key in training
LONGEST = 3


def motifs(rng: np.random.Generator, sizes: Numbers, first: int, among: int) -> Numbers:
    """(..., 3) so many different ids, in random order, out of ``among`` ids from ``first`` on; -1 beyond each size."""
    ids = np.full((*sizes.shape, LONGEST), -1)
    for place in range(LONGEST):
        drawn = rng.integers(among - place, size=sizes.shape)
        for taken in np.moveaxis(np.sort(ids[..., :place] - first, axis=-1), -1, 0):
            drawn += drawn >= taken  # skips the ids drawn before
        ids[..., place] = first + drawn
    return np.where(np.arange(LONGEST) < sizes[..., None], ids, -1)


def generate(
    rng: np.random.Generator, rows: int, *, seq_len: int, vocab_size: int, key_sizes: tuple[int, ...]
) -> tuple[Ids, Marks]:
    """(rows, N + 1) tokens, and which of them belong to values whose key came before."""
    n_keys, pad = (vocab_size - 1) // 2, vocab_size - 1
    n_pairs = (seq_len + 1) // 2  # the most that fit; column 0 holds the pair that is asked for at the end
    shape, everyone = (rows, 1 + n_pairs), np.arange(rows)[:, None]
    keys = motifs(rng, rng.choice(key_sizes, size=shape), 0, n_keys)
    values = motifs(rng, rng.choice(SIZES, size=shape), n_keys, pad - n_keys)
    codes = ((keys + 1) * (n_keys + 1) ** np.arange(LONGEST)).sum(axis=-1)
    first = first_seen(codes)
    pairs = np.concatenate([keys, np.take_along_axis(values, first[..., None], axis=1)], axis=-1)
    lengths = (pairs >= 0).sum(axis=-1)

    # Insert the pair of column 0 at a random token among the kept pairs, unless its key comes before that token.
    room = seq_len - lengths[:, :1] - 2 * LONGEST
    starts = lengths[:, 1:].cumsum(axis=1) - lengths[:, 1:]
    wanted = rng.integers(seq_len - 2 * lengths[:, :1])
    place = np.minimum((starts < wanted).sum(axis=1), (starts < room).sum(axis=1) - 1)[:, None]
    comes_by_itself = ((first[:, 1:] == 0) & (np.arange(n_pairs) < place)).any(axis=1, keepdims=True)
    columns = np.arange(n_pairs)
    order = np.where(comes_by_itself | (columns < place), columns + 1, np.where(columns == place, 0, columns))
    order = np.pad(order, ((0, 0), (0, 1)))  # and repeat it at the end

    pairs, lengths, codes = pairs[everyone, order], lengths[everyone, order], codes[everyone, order]
    kept = lengths.cumsum(axis=1) - lengths < room
    kept[:, -1] = True
    again = first_seen(np.where(kept, codes, -1 - np.arange(1 + n_pairs))) < np.arange(1 + n_pairs)
    tokens = (pairs >= 0) & kept[..., None]
    asked = np.broadcast_to(again[..., None] & (np.arange(2 * LONGEST) >= LONGEST), tokens.shape)

    filled = np.arange(seq_len + 1) > seq_len - tokens.sum(axis=(1, 2))[:, None]
    text = np.full((rows, seq_len + 1), pad, np.int16)
    foretold = np.zeros((rows, seq_len + 1), np.bool_)
    text[filled], foretold[filled] = pairs[tokens], asked[tokens]
    return text, foretold


@dataclass(frozen=True, kw_only=True)
class MadFuzzyRecallConfig(MadConfig):
    """What MAD varies.

    Attributes:
        vocab_size: tokens of keys, tokens of values, and the pad.
        train_samples: in train.
    """

    task: ClassVar[str] = "mad_fuzzy_recall"
    least_ids: ClassVar[int] = 8


@register
class MadFuzzyRecall(Recall):
    """MAD's fuzzy in-context recall; see the module's docstring."""

    name = "mad_fuzzy_recall"
    summary = "MAD: recall the value that a key had before, both one to three tokens long"
    min_len = 24
    defaults = defaults(128)
    config_type = MadFuzzyRecallConfig
    generator = 1

    @property
    def values(self) -> range:
        return range((self.vocab_size - 1) // 2, self.vocab_size - 1)

    def text(self, rng: np.random.Generator, rows: int, seq_len: int, *, training: bool) -> tuple[Ids, Marks]:
        sizes = SIZES if training else (LONGEST,)
        return generate(rng, rows, seq_len=seq_len, vocab_size=self.vocab_size, key_sizes=sizes)
