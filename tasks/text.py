"""Byte-level sentiment of film reviews: is this review positive or negative?

IMDB (Maas et al., "Learning Word Vectors for Sentiment Analysis", ACL 2011; `stanfordnlp/imdb` on the Hugging Face
hub), read byte by byte as in Tay et al., "Long Range Arena" (arXiv 2011.04006). An id is its byte + 1, 0 is
padding, and reviews are cut at N bytes:

>>> from tasks.cache import padded
>>> ids, padding = padded([b"A gem.", b"No."], limit=5, shift=1)
>>> print(ids)
[[ 66  33 104 102 110]
 [ 79 112  47   0   0]]
>>> print(padding[1].astype(int))
[0 0 0 1 1]

The literature calls both N 1000 and N 4000 "LRA Text"; the default is 4000.

Departures from LRA: validation is a tenth of train, where LRA validates on the test split. Of equal reviews the task
keeps one, in test rather than in train. It does not use the 50,000 reviews without a label.
"""

from dataclasses import dataclass

from tasks.base import TaskDefaults, register
from tasks.classify import GENERATOR, LabelledText
from tasks.labelled import LabelledRows, labelled_rows
from tasks.sources import fingerprint

HUB_ID = "stanfordnlp/imdb"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Source of the reviews.

    Attributes:
        data: a copy of stanfordnlp/imdb on this machine, or other data with columns text and label; empty = the hub.
    """

    data: str = ""


@register
class Text(LabelledText):
    """Byte-level sentiment of film reviews; see the module's docstring."""

    name = "text"
    summary = "positive or negative: film reviews of IMDB, byte by byte"
    min_len = 64
    max_len = 65_536
    defaults = TaskDefaults(
        seq_len=4000,
        d_model=64,
        n_heads=2,
        n_layers=2,
        lr=2e-3,
        conv_width=None,
        embedding_std=1.0,
        tokens_per_step=16_384,
    )
    config_type = TextConfig

    vocab_size = 257
    n_classes = 2

    @property
    def source(self) -> str:
        return self.config.data or HUB_ID

    @property
    def cache_key(self) -> str:
        return f"{fingerprint(self.source, self.name)}-g{GENERATOR}"

    def read(self) -> LabelledRows:
        labelled = labelled_rows(self.source, self.name, text_column="text", label_column="label", encode=list)
        if len(labelled.classes) != self.n_classes:
            raise ValueError(
                f"text.data: expected two classes, got {len(labelled.classes)} in the column label: use --task classify"
            )
        return labelled

    def provenance(self) -> dict[str, str | int]:
        return {"source": self.source, **super().provenance()}
