"""What puts a row on unequal terms in its group: the same marks and words in tables, charts and the summary."""

from collections.abc import Sequence
from typing import NamedTuple

from compare.quantities import PARAMETERS
from compare.report.facts.grouping import data_hashes
from compare.report.facts.groups import Group, Row
from compare.report.facts.values import status_of
from compare.spec import read_spec
from compare.units import plural

UNLIKE = 0.1  # of full's parameters
MEANINGS = {
    "*": "another kernel ran",
    "†": "parameters differ from full's by more than 10 %",
    "‡": "runs that did not finish",
    "§": "seeds differ from full's, so there are fewer pairs to compare",
    "¶": "data differs from full's",
    "◦": "a step in other micro-batches than full's, whose time and memory are those of one",
    "‖": "disturbed (e.g. by other processes) and left out of verdicts on time",
}


class Flag(NamedTuple):
    """One finding about a row: a key of `MEANINGS`, the detail that follows the mark, and words that need no mark."""

    mark: str
    detail: str
    words: str


def flags_of(row: Row, group: Group) -> list[Flag]:
    flags = (check(row, group) for check in (kernel, parameters, unfinished, seeds, data, micro_batch, busy))
    return [flag for flag in flags if flag]


def marked(row: Row, group: Group) -> str:
    """The row's name and its marks."""
    return row.name + "".join(flag.mark for flag in flags_of(row, group))


def in_words(row: Row, group: Group) -> str:
    """The row's name and, in brackets, all its flags in words."""
    words = "; ".join(flag.words for flag in flags_of(row, group))
    return f"{row.name} ({words})" if words else row.name


def flag_notes(rows: Sequence[Row], group: Group) -> list[str]:
    """For each mark that occurs, its meaning and the rows that have it."""
    flagged = [(row.name, flag) for row in rows for flag in flags_of(row, group)]
    return [
        f"{mark} {meaning}: {', '.join(f'{name} ({flag.detail})' for name, flag in flagged if flag.mark == mark)}."
        for mark, meaning in MEANINGS.items()
        if any(flag.mark == mark for _, flag in flagged)
    ]


def kernel(row: Row, group: Group) -> Flag | None:
    del group
    return Flag("*", row.kernels or "not named", f"ran {row.kernels or 'another kernel'}") if row.fell_back else None


def parameters(row: Row, group: Group) -> Flag | None:
    own = row.over_seeds(PARAMETERS)
    full = group.reference.over_seeds(PARAMETERS) if group.reference else None
    if own is None or full is None or abs(own.mean - full.mean) <= UNLIKE * full.mean:
        return None
    share = 100 * (own.mean / full.mean - 1)
    words = f"{abs(share):,.0f} % {'more' if share > 0 else 'fewer'} parameters than full"
    return Flag("†", f"{share:+,.0f} %".replace("-", "−"), words)


def unfinished(row: Row, group: Group) -> Flag | None:
    del group
    statuses = [status for record in row.records if (status := status_of(record)) != "ok"]
    if not statuses:
        return None
    kinds = ", ".join(f"{statuses.count(kind)} {kind}" for kind in sorted(set(statuses)))
    share = f"{len(statuses)} of {len(row.records)}"
    return Flag("‡", f"{share}: {kinds}", f"{share} {plural(len(row.records), 'seed')} did not finish: {kinds}")


def seeds(row: Row, group: Group) -> Flag | None:
    """Compares the seeds that were started; `unfinished` reports those that failed."""
    if group.reference is None:
        return None
    own, full = ({str(record.get("seed")) for record in of.records} for of in (row, group.reference))
    if own == full:
        return None
    detail = f"{len(own & full)} of its {len(own)} shared, full has {len(full)}"
    return Flag("§", detail, f"seeds differ from full's: {detail}")


def micro_batch(row: Row, group: Group) -> Flag | None:
    own, full = (read_spec(each.records[0])["accumulate"] for each in (row, group.reference or row))
    if own == full:
        return None
    words = f"{own} micro-batches a step" if own > 1 else "one micro-batch a step"
    return Flag("◦", words, words)


def busy(row: Row, group: Group) -> Flag | None:
    del group
    if not row.disturbed:
        return None
    seed, words = next(iter(row.disturbed.items()))
    share = f"{len(row.disturbed)} of {len(row.finished)} {plural(len(row.finished), 'run')}"
    detail = f"{share}: {words}" if len(row.disturbed) == 1 else f"{share}; seed {seed}: {words}"
    return Flag("‖", detail, f"{share} disturbed, e.g. by other processes")


def data(row: Row, group: Group) -> Flag | None:
    usual = data_hashes((group.reference or group.rows[0]).records)
    other = [
        f"{key} {value[:8]} instead of {usual[key][0][:8]}"
        for key, values in data_hashes(row.records).items()
        for value in values
        if key in usual and value != usual[key][0]
    ]
    return Flag("¶", ", ".join(other), f"data differs: {', '.join(other)}") if other else None
