"""The base of the six tasks of MAD: sizes and options, and the text and baselines of its recall tasks.

Poli et al., "Mechanistic Design and Scaling of Hybrid Architectures" (arXiv 2403.17844); code:
github.com/athms/mad-lab, `mad/data/instances.py` and `configs/tasks/`. MAD scores a model by its mean accuracy over the
settings of a task: the defaults, and each option and the length changed alone. The docstring of each task lists the
settings.

Departures, in all six tasks: 1,280 validation samples choose learning rates and never stop a training, while MAD uses
1,280 test samples for both. Accuracy is the share of right answers, while MAD's torchmetrics averages this share over
classes. A sample that two splits share is dropped from one of them.
"""

from abc import abstractmethod
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tasks.base import IGNORE, Kind, TaskDefaults
from tasks.cache import Split
from tasks.generated import Generated

SAMPLES = 1_280  # in validation and in test
MOST_IDS = 2**15  # the most that int16 rows can hold

Ids = NDArray[np.int16]
Numbers = NDArray[np.int64]
Marks = NDArray[np.bool_]


def defaults(seq_len: int) -> TaskDefaults:
    """MAD's model and batches of 128 samples."""
    return TaskDefaults(
        seq_len=seq_len,
        d_model=128,
        n_heads=16,
        n_layers=2,
        lr=1e-3,
        conv_width=None,
        embedding_std=0.02,
        tokens_per_step=128 * seq_len,
    )


@dataclass(frozen=True, kw_only=True)
class MadConfig:
    """What MAD varies in each of its tasks.

    Attributes:
        vocab_size: number of ids.
        train_samples: samples in train.
    """

    task: ClassVar[str]
    least_ids: ClassVar[int] = 4

    vocab_size: int = 16
    train_samples: int = 12_800

    def __post_init__(self) -> None:
        if not self.least_ids <= self.vocab_size <= MOST_IDS:
            raise ValueError(
                f"expected {self.least_ids} <= {self.task}.vocab_size <= {MOST_IDS}, got {self.vocab_size}"
            )
        if self.train_samples < 1:
            raise ValueError(f"expected {self.task}.train_samples >= 1, got {self.train_samples}")


class Mad(Generated):
    """A task of MAD. At shorter training lengths it draws new samples for every batch."""

    kind: ClassVar[Kind] = "token"
    causal = True
    max_len = 65_536
    seed = 240317844
    vocab_size: int
    config: Any

    def __init__(self, seq_len: int, config: MadConfig | None = None) -> None:
        super().__init__(seq_len, config)
        self.vocab_size = self.n_classes = self.config.vocab_size

    @property
    def cache_key(self) -> str:
        return "-".join(map(str, (self.seq_len, *astuple(self.config), f"g{self.generator}")))

    def count(self, split: Split) -> int:
        return min(self.config.train_samples if split == "train" else SAMPLES, self.max_tokens[split] // self.seq_len)


class Recall(Mad):
    """A language of keys and their values. Training asks for every next token, the test for values of known keys.

    The answer at a position is the input at the next position: an encoder that sees both directions would copy it.
    """

    causal_only = True
    fixed_places = "questions lie among the pairs, so an early question asks for one of the first pairs"

    @abstractmethod
    def text(self, rng: np.random.Generator, rows: int, seq_len: int, *, training: bool) -> tuple[Ids, Marks]:
        """N or N + 1 tokens of each sample, and which of them follow from the text before; both (rows, …)."""

    @property
    @abstractmethod
    def values(self) -> range:
        """The ids of values."""

    def draw(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        return asked_one_before(*self.text(rng, rows, seq_len, training=False), seq_len)

    def draw_train(self, rng: np.random.Generator, rows: int, seq_len: int) -> tuple[Ids, Ids]:
        text, foretold = self.text(rng, rows, seq_len, training=True)
        return asked_one_before(text, np.ones_like(foretold), seq_len)

    def baselines(self) -> dict[str, float]:
        """The most frequent value of train; the most frequent value of the text so far; its last value."""
        test = self.whole("test")
        asked = test.targets != IGNORE
        frequent = np.bincount(self.whole("train").inputs.ravel(), minlength=self.vocab_size)[self.values].argmax()
        so_far, last = [], []
        for inputs, here in zip(test.inputs, asked, strict=True):
            shown = inputs[:, None] == np.array(self.values)
            so_far.append(shown.cumsum(axis=0)[here].argmax(axis=1))
            places = np.maximum.accumulate(np.where(shown.any(axis=1), np.arange(self.seq_len), 0))
            last.append(inputs[places[here]])
        answers = test.targets[asked]
        return {
            "most frequent value": float(np.mean(answers == self.values.start + frequent)),
            "most frequent value so far": float(np.mean(answers == self.values.start + np.concatenate(so_far))),
            "last value": float(np.mean(answers == np.concatenate(last))),
        }


def asked_one_before(text: Ids, asked: Marks, seq_len: int) -> tuple[Ids, Ids]:
    """Inputs, and as target at each position the next token if it is asked; both (rows, N)."""
    targets = np.full((len(text), seq_len), IGNORE, np.int16)
    following = text[:, 1 : seq_len + 1]
    targets[:, : following.shape[1]] = np.where(asked[:, 1 : seq_len + 1], following, IGNORE)
    return text[:, :seq_len], targets


def first_seen(keys: Numbers) -> Numbers:
    """(rows, P) the first position of the key at each position."""
    order = np.argsort(keys, axis=1, kind="stable")
    in_order = np.take_along_axis(keys, order, axis=1)
    new = np.ones(keys.shape, np.bool_)
    new[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    starts = np.maximum.accumulate(np.where(new, np.arange(keys.shape[1]), 0), axis=1)
    first = np.empty_like(order)
    np.put_along_axis(first, order, np.take_along_axis(order, starts, axis=1), axis=1)
    return first


def pairs(
    rng: np.random.Generator, rows: int, *, seq_len: int, vocab_size: int, noise_ids: int = 0, noise_share: float = 0.0
) -> tuple[Ids, Marks]:
    """The text of recall and of noisy recall: pairs of a key and its value; two ids of noise replace some pairs.

    Returns:
        (rows, P) tokens, P = N or N + 1, even; and which of them are values whose key came before.
    """
    n_pairs, quiet_ids = (seq_len + 1) // 2, vocab_size - noise_ids
    n_keys, everyone = quiet_ids // 2, np.arange(rows)
    keys = rng.integers(n_keys, size=(rows, n_pairs))
    values = rng.integers(n_keys, quiet_ids, size=(rows, n_pairs))
    noisy = rng.random((rows, n_pairs)) < noise_share
    noisy[:, -1] = noisy[everyone, rng.integers(n_pairs - 1, size=rows)] = False

    places = np.arange(n_pairs)
    first = first_seen(np.where(noisy, -1 - places, keys))
    shown = (first == places) & ~noisy
    shown[:, -1] = False
    first[:, -1] = np.where(shown, rng.random(shown.shape), 0).argmax(
        axis=1
    )  # the last pair asks for a key shown before
    pair = np.stack([np.take_along_axis(numbers, first, axis=1) for numbers in (keys, values)], axis=-1)
    if noise_ids:
        pair = np.where(noisy[..., None], rng.integers(quiet_ids, vocab_size, size=pair.shape), pair)
    foretold = np.stack([np.zeros_like(shown), first != places], axis=-1)
    return pair.reshape(rows, -1).astype(np.int16), foretold.reshape(rows, -1)
