"""Names for the classes of labels, the same in every split.

Splits may store labels in different ways. 1, 1.0 and "1" are one class, and so are True and "true". If another split
names its classes, a number means the class of that index:

>>> import datasets
>>> named = datasets.ClassLabel(names=["neg", "pos"])
>>> classes = name_classes({"train": (named, [1, 0]), "test": (datasets.Value("float64"), [1.0, 0.0, -1.0])}, "label")
>>> classes.names, classes.of("test", 1.0), classes.of("test", -1.0)
(['neg', 'pos'], 'pos', '')

Classes without names in the data are sorted by name, numbers by value:

>>> in_order({"10", "9", "-1"}), in_order({"pos", "neg", "10"})
(['-1', '9', '10'], ['10', 'neg', 'pos'])
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tasks.base import SPLITS
from tasks.cache import Split
from tasks.layouts import letters_of

MISSING = {"nan", "<na>", "#n/a"}
"""Words that programs write for a missing class, in any case."""
MISSING_AMONG_NUMBERS = {"na", "n/a", "none", "null", "?", "-", "."}
"""Words that mean a missing class only among numbers; elsewhere they may name a class."""
TRUTHS = {"false": "0", "true": "1"}
SHOWN = 5  # classes that a message lists

Column = tuple[Any, Sequence[Any]]
"""The feature of a column of labels, as in `datasets`, and its distinct values."""


@dataclass
class Classes:
    """The classes of a data set.

    Attributes:
        names: names of the classes, in the order of their numbers.
        unlabelled: splits in which no row has a class.
        remarks: sentences for the user about labels that were joined or kept apart.
    """

    names: list[str] = field(default_factory=list)
    unlabelled: list[Split] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    _spell: dict[Split, Callable[[Any], str]] = field(default_factory=dict)
    _name: dict[Split, dict[str, str]] = field(default_factory=dict)

    def of(self, split: Split, label: Any) -> str:
        """The name of the class of a label that a split stores; "" for no class."""
        return self._name[split][self._spell[split](label)]


def speller(feature: Any) -> Callable[[Any], str]:
    """A function from a stored label to text, "" for no class.

    The function raises a ValueError for a number beyond the named classes.
    """
    import datasets

    if isinstance(feature, datasets.ClassLabel):

        def name_of(label: Any) -> str:
            if label is None or label < 0:
                return ""
            if label >= len(feature.names):
                raise ValueError(f"expected labels below {len(feature.names)}, the number of classes, got {label}")
            return str(feature.names[label]).strip()

        return name_of

    single = getattr(feature, "dtype", "") in ("float16", "float32")

    def spell(label: Any) -> str:
        if isinstance(label, bytes):
            label = letters_of(label)
        if label is None or label != label:  # NaN
            return ""
        return str(np.float32(label) if single else label).strip()

    return spell


def key_of(spelling: str) -> str:
    """One key for all spellings of the same whole number or truth value."""
    if whole := re.fullmatch(r"([+-]?\d+)\.0*", spelling):
        spelling = whole[1]
    if spelling == "-0":
        return "0"
    return spelling.lower() if spelling.lower() in TRUTHS else spelling


def is_number(key: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", key.lower()) is not None


def name_classes(columns: Mapping[Split, Column], column: str) -> Classes:
    """The classes of the labels of all splits.

    Args:
        columns: the column of labels of each split.
        column: its name, for messages.

    Raises:
        ValueError: fewer than two classes in train; a split without any class of train; ambiguous labels.
    """
    import datasets

    splits = [split for split in SPLITS if split in columns]
    classes = Classes(_spell={split: speller(columns[split][0]) for split in splits})
    named = {s: _names(columns[s][0]) for s in splits if isinstance(columns[s][0], datasets.ClassLabel)}
    listed = {key_of(name): name for names in named.values() for name in names}

    # For each split: spelling -> key. A class has the same key in all splits; "" = no class.
    keys: dict[Split, dict[str, str]] = {}
    for split in splits:
        spellings = {classes._spell[split](label) for label in columns[split][1]}
        keys[split] = {spelling: key_of(spelling) for spelling in sorted(spellings)}
    plain = [split for split in splits if split not in named]
    for split in plain:
        _leave_out_missing(keys[split], None if split == "train" or named else keys["train"])
        if named:
            _numbers_to_names(keys[split], list(named.values()), f"the column {column!r} of {split}")
    _truths_to_numbers(keys)
    classes.remarks = _join_cases(keys)

    classes.unlabelled = [split for split in splits if not set(keys[split].values()) - {""}]
    best: dict[str, tuple[int, int, str]] = {}
    for order, split in enumerate(splits):
        for spelling, key in keys[split].items():
            best[key] = min(best.get(key, (len(spelling), order, spelling)), (len(spelling), order, spelling))
    name_of = {key: listed.get(key, spelling) for key, (_, _, spelling) in best.items()} | {"": ""}
    classes._name = {s: {spelling: name_of[key] for spelling, key in known.items()} for s, known in keys.items()}
    _check(classes, column)

    used = {name for names in classes._name.values() for name in names.values()} - {""}
    known = [name for split, names in named.items() for name in names if split == "train" or name in used]
    classes.names = [*dict.fromkeys(known), *in_order(used - set(known))]
    return classes


def _names(feature: Any) -> list[str]:
    return [str(name).strip() for name in feature.names]


def _leave_out_missing(known: dict[str, str], trained: Mapping[str, str] | None) -> None:
    """Give words for a missing class the key "".

    trained: the keys of train. If all of them are whole numbers from 0, the label -1 means no class.
    """
    words = MISSING
    rest = {key for key in known.values() if key.lower() not in MISSING | MISSING_AMONG_NUMBERS} - {""}
    if rest and all(is_number(key) or key in TRUTHS for key in rest):
        words = MISSING | MISSING_AMONG_NUMBERS
    hidden = trained is not None and all(key.isdecimal() for key in trained.values() if key)
    for spelling, key in known.items():
        if key.lower() in words or (key == "-1" and hidden):
            known[spelling] = ""


def _numbers_to_names(known: dict[str, str], named: Sequence[Sequence[str]], where: str) -> None:
    """Replace numbers of classes by the keys of their names, given the names in another split.

    Raises:
        ValueError: the numbers may also be names.
    """
    for spelling, key in known.items():
        if key == "-1" and "-1" not in map(key_of, named[0]):
            known[spelling] = ""
    used = sorted(set(known.values()) - {""})
    numbers = {key: TRUTHS.get(key, key) for key in used}
    as_names = {key_of(name).casefold() for names in named for name in names}
    literal = all(key.casefold() in as_names for key in used)
    counted = all(number.isdecimal() and int(number) < len(named[0]) for number in numbers.values())
    if not counted:
        return
    meant = {key: key_of(named[0][int(number)]) for key, number in numbers.items()}
    if literal and all(key == name for key, name in meant.items()):
        return
    if literal or any(list(names) != list(named[0]) for names in named):
        listed = shown(named[0])
        raise ValueError(
            f"expected labels of one kind in every split, got {shown(used)} in {where}, which may be "
            f"numbers or names of the classes {listed}: store names in every split"
        )
    for spelling, key in known.items():
        known[spelling] = meant.get(key, "")


def _truths_to_numbers(keys: Mapping[Split, dict[str, str]]) -> None:
    """Replace true and false by 1 and 0, if all labels are among these four and some are 1 or 0."""
    used = {key for known in keys.values() for key in known.values()} - {""}
    if used <= {*TRUTHS, *TRUTHS.values()} and used & set(TRUTHS.values()):
        for known in keys.values():
            known.update({spelling: TRUTHS.get(key, key) for spelling, key in known.items()})


def _join_cases(keys: Mapping[Split, dict[str, str]]) -> list[str]:
    """Join labels that differ only in case, unless train has both; returns sentences about them."""
    alike: dict[str, list[str]] = defaultdict(list)
    for known in keys.values():
        for key in known.values():
            if key not in alike[key.casefold()]:
                alike[key.casefold()].append(key)
    remarks = []
    for spellings in alike.values():
        if len(spellings) < 2:
            continue
        both_in_train = len(set(spellings) & set(keys["train"].values())) > 1
        what = "two classes or more" if both_in_train else "one class"
        remarks.append(f"labels that differ only in case are {what}: {shown(spellings)}")
        if not both_in_train:
            for known in keys.values():
                known.update({spelling: spellings[0] for spelling, key in known.items() if key in spellings})
    return remarks


def _check(classes: Classes, column: str) -> None:
    trained = set(classes._name["train"].values()) - {""}
    if len(trained) < 2:
        got = ", ".join(map(repr, trained)) or "none"
        raise ValueError(f"expected at least two classes in the column {column!r} of train, got {got}")
    for split, names in classes._name.items():
        if split not in classes.unlabelled and not trained & set(names.values()):
            got = shown(in_order(set(names.values()) - {""}))
            raise ValueError(
                f"expected classes of train in the column {column!r} of {split}, got {got}; "
                f"train has {shown(in_order(trained))}"
            )


def shown(names: Iterable[str]) -> str:
    """The first few names, quoted."""
    listed = [repr(name) for name in names]
    more = f" and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def in_order(names: set[str]) -> list[str]:
    """Sorted by value if all are numbers, else as text."""
    try:
        return sorted(names, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(names)
