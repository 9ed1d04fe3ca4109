"""The longest length that fits into a given memory: a search in which running out of memory is an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from compare.record import RETRIED, Record
from compare.spec import RunSpec

FINENESS = 16  # the search ends when a length that fits and one that does not are a sixteenth apart


def search_longest(
    specs: Sequence[RunSpec],
    cap: int,
    records: Sequence[Record],
    run: Callable[[Sequence[RunSpec]], list[Record]],
) -> None:
    """Find the longest length that fits, of each variant on each task, from the measured lengths up to ``cap``.

    Each probe is a run in a fresh process with a record of its own, which ``spec.probe`` marks. A probe that already
    has a record is not repeated.

    Args:
        specs: the measured runs.
        cap: the longest length to try.
        records: all records so far, including earlier probes.
        run: runs specs and returns their records.
    """
    statuses = {record["run_id"]: record["status"] for record in records if record["status"] not in RETRIED}
    alike: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:
        if spec.seed == 0:
            alike.setdefault((spec.label, spec.task), []).append(spec)
    for measured in alike.values():
        answers = {spec.seq_len: statuses[spec.run_id] for spec in measured if spec.run_id in statuses}
        fitting = [spec for spec in measured if answers.get(spec.seq_len) == "ok"]
        if fitting:
            extend(answers, prober(max(fitting, key=lambda spec: spec.seq_len), statuses, run), cap)


def prober(
    measured: RunSpec, statuses: dict[str, str], run: Callable[[Sequence[RunSpec]], list[Record]]
) -> Callable[[int], str]:
    """Return a function: length -> status of a probe of it, on the measured samples."""

    def probe(length: int) -> str:
        spec = replace(measured, seq_len=length, probe=measured.seq_len)
        return statuses.get(spec.run_id) or str(run([spec])[0]["status"])

    return probe


def extend(answers: dict[int, str], probe: Callable[[int], str], cap: int) -> None:
    """Probe lengths and add them to ``answers``, length -> status, until the longest that fits is known to a sixteenth.

    Lengths double until one does not fit, or up to ``cap``; then the gap is halved. One of ``answers`` must be ok.
    """
    low = max(length for length, status in answers.items() if status == "ok")
    high = min((length for length in answers if length > low), default=None)
    while (low < cap) if high is None else (high - low > max(1, low // FINENESS)):
        length = min(2 * low, cap) if high is None else (low + high) // 2
        answers[length] = probe(length)
        if answers[length] == "ok":
            low = length
        else:
            high = length
