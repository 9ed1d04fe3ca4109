"""Trivial predictors that several tasks share. Labels are (rows,) integers; every score is an accuracy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]

FEATURES = 2**18


def majority(train: Labels, test: Labels) -> float:
    """The most frequent class of train, as a constant guess."""
    return float(np.mean(test == np.bincount(train).argmax()))


def hashed_ngrams(train: Sequence[str], train_labels: Labels, test: Sequence[str], test_labels: Labels) -> float:
    """Logistic regression on the hashed words, and pairs of neighbouring words, of a text.

    Takes about a second for 5 million characters (see `some_rows`).
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier

    if len(np.unique(train_labels)) < 2:
        return majority(train_labels, test_labels)
    hashed = HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, 2), token_pattern=r"\w+", lowercase=False, binary=True, dtype=np.float32
    )
    classifier = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=20, tol=None, random_state=0)
    classifier.fit(hashed.transform(train), train_labels)
    return float(classifier.score(hashed.transform(test), test_labels))


def some_rows(lengths: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """A fixed random choice of rows, sorted, of at most ``total`` length together; at least one row.

    lengths: (rows,) length of each row.
    """
    order = np.random.default_rng(0).permutation(len(lengths))
    within = int(np.searchsorted(np.cumsum(lengths[order]), total, side="right"))
    return np.sort(order[: max(1, within)])
