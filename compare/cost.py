"""The longest length that fits into a given memory: a search in which running out of memory is an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compare.record import RETRIED, read_records
from compare.run import run_all

if TYPE_CHECKING:
    from compare.progress import Progress
    from compare.spec import RunSpec
    from compare.worker import RunOptions

FINENESS = 16  # the search ends when what fits and what does not are a sixteenth apart


def search_longest(specs: list[RunSpec], cap: int, records: Path, progress: Progress, run_options: RunOptions) -> None:
    """Find the longest length of each variant on each task, up to ``cap``, from what was measured on.

    Each probe is a run in a fresh process with a record of its own, which ``spec.probe`` marks; one that is there
    already is not repeated.
    """
    found = {
        record["run_id"]: record["status"] for record in read_records(records)[0] if record["status"] not in RETRIED
    }
    alike: dict[tuple[str, str], list[RunSpec]] = {}
    for spec in specs:
        if spec.seed == 0:
            alike.setdefault((spec.label, spec.task), []).append(spec)
    for measured in alike.values():
        answers = {spec.seq_len: found[spec.run_id] for spec in measured if spec.run_id in found}
        fitting = [spec for spec in measured if answers.get(spec.seq_len) == "ok"]
        if fitting:
            longest = max(fitting, key=lambda spec: spec.seq_len)
            extend(answers, prober(longest, found, records, progress, run_options), cap)


def prober(
    measured: RunSpec, found: dict[str, str], records: Path, progress: Progress, run_options: RunOptions
) -> Callable[[int], str]:
    """Length -> status of a probe of it, on the samples that were measured."""

    def probe(length: int) -> str:
        spec = replace(measured, seq_len=length, probe=measured.seq_len)
        return found.get(spec.run_id) or str(run_all([spec], records, progress, {}, run_options)[0]["status"])

    return probe


def extend(answers: dict[int, str], probe: Callable[[int], str], cap: int) -> None:
    """Add to ``answers``, length -> status, until they hold the longest that fits to within a sixteenth.

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
