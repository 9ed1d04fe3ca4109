"""What one more token costs a causal encoder that goes position by position: time of a step, and the state it keeps."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from compare.runs.clocks import add_since, clocks, shares
from compare.runs.measure import FORMULAS, synchronise
from compare.runs.model import Model
from compare.runs.outcome import DivergedError
from compare.spec import RunSpec
from tasks import Task
from zoo import MultiHeadAttention, describe
from zoo.state import State

WINDOWS = 8  # of steps, timed one after another at the end of the walk
WINDOW = 128  # steps of each, at most,
SHARE = 64  # and at most this part of the length: all of them together an eighth


@torch.no_grad()
def measure_decoding(
    spec: RunSpec, task: Task, inputs: NDArray[Any], on_progress: Callable[[float], None]
) -> dict[str, Any]:
    """Walk ``seq_len`` positions from an empty state, and time the last of them.

    Args:
        spec: one of decoding.
        task: says what comes in.
        inputs: as of a batch of the task, ``seq_len`` positions.
        on_progress: told the share done, but for the steps that are timed.

    Returns:
        Fields of a record: ``token_seconds``, of one step (a token for each sample), the median over windows of steps,
        and its quartiles; ``cache_bytes``, kept of one sample by the whole encoder after ``seq_len`` positions; what
        others took of the machine meanwhile.

    Raises:
        NotImplementedError: a backend without a step form.
        DivergedError: what comes out is not finite.
    """
    entry = describe(spec.variant)
    if not entry.steps:
        form = "step form" if entry.traits.causal else "causal form"
        raise NotImplementedError(f"{entry.name} has no {form}, so it cannot decode step by step")
    torch.manual_seed(spec.seed)
    device = torch.device(spec.device)
    model = Model(spec, task).to(device).eval()
    x = torch.from_numpy(inputs).to(device)
    tokens = iter((x.flatten(0, 1) if task.kind == "pair" else x).unbind(1))

    def walk(steps: int, state: State) -> tuple[float, Tensor, State]:
        """Seconds a step, the last output, and the state after it."""
        start = time.perf_counter()
        for _ in range(steps):
            y, state = model.encoder.step(next(tokens), state)
        synchronise(device)
        return (time.perf_counter() - start) / steps, y, state

    N = spec.seq_len
    windows, window = min(WINDOWS, N - 1), max(1, min(WINDOW, N // SHARE))
    untimed, took, before = N - windows * window, [], clocks()
    with torch.autocast(device.type, getattr(torch, spec.dtype), enabled=spec.dtype != "float32"):
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            y, state = model.encoder.step(next(tokens))
        for done in range(1, untimed, window):
            _, _, state = walk(min(window, untimed - done), state)
            on_progress(done / N)
        for _ in range(windows):
            seconds, y, state = walk(window, state)
            took.append(seconds)
    spent = add_since({}, before, clocks())
    if not y.isfinite().all():
        raise DivergedError(f"the output after {N} positions is not finite")
    low, median, high = statistics.quantiles(took, n=4, method="inclusive")
    fused = set(re.findall("scaled_dot_product_([a-z]+)_attention", str(counter.get_flop_counts())))
    sublayer = model.encoder.layers[0].attention
    assert isinstance(sublayer, MultiHeadAttention)
    example = y.new_empty(len(y), 1, spec.d_model, dtype=getattr(torch, spec.dtype))
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "kernel": f"torch SDPA {', '.join(sorted(fused))} ({device.type})" if fused else "torch ops",
        "kernel_fallback": sublayer.kernel(example).fallback,
        "token_seconds": median,
        "token_seconds_spread": [low, high],
        "cache_bytes": state.nbytes // state.batch,
        **{f"measure_{name}": share for name, share in shares(spent, spec.threads).items()},
    }
