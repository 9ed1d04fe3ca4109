"""The process of one run: reads a RunSpec, a RunOptions and, where it has several processes, a Seat as JSON on stdin,
and writes JSON lines on stdout.

Events: ``{"phase": …, "done": 0..1 or null, "loss": … or null, "step": … or null}`` while it works,
``{"warning": …}``, at the end ``{"record": {…}}``. A supervisor starts it; nothing imports it.
"""

from __future__ import annotations

import sys
import time

from compare.launch import Seat
from compare.runs.child import limit_memory, settle_in
from compare.runs.options import RunOptions
from compare.spec import RunSpec


def main() -> None:
    started = time.perf_counter()
    events = settle_in()
    first, second, *seat = sys.stdin.read().splitlines()
    spec, run_options = RunSpec.from_json(first), RunOptions.from_json(second)
    if spec.device == "cpu":
        limit_memory(spec.memory_limit)
    from compare.runs.execute import execute  # imports torch: after the limit is set
    from compare.runs.ranks import ALONE, join

    ranks = ALONE
    for text in seat:
        events.phase("meeting the other processes")
        ranks = join(Seat.from_json(text), spec)
    events.send({"record": execute(spec, run_options, events, started, ranks)})
