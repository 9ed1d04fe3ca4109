"""Builds the data of a comparison before its runs, each data set once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from compare.display import Display
from compare.progress import Runs
from compare.runs.data import make_task
from compare.spec import DataId, RunSpec
from tasks.cache import DamagedCacheWarning


def prepare_data(specs: Sequence[RunSpec], display: Display) -> dict[DataId, str]:
    """Build the data of all runs in the cache; show errors, warnings and notes.

    Returns:
        Data that could not be prepared -> the reason, in one line.
    """
    failed, runs = {}, Runs(specs, [])
    wanted = {(spec.data_id, length): spec for spec in specs for length in (spec.seq_len, *spec.test_lens)}
    for (data_id, length), spec in wanted.items():
        task = make_task(spec, length)
        title = f"{runs.task_of(spec)} · N {length}"
        try:
            with (
                display.preparing(f"{title}: preparing data") as on_progress,
                warnings.catch_warnings(record=True, action="always", category=DamagedCacheWarning) as damaged,
            ):
                task.prepare(on_progress)
                facts = task.facts
        except (ValueError, OSError) as error:
            failed[data_id] = " ".join(str(error).split())
            display.error(failed[data_id])
        else:
            for warning in damaged:
                display.warn(str(warning.message))
            for note in facts["notes"]:
                display.say(f"{title}: {note}")
    return failed
