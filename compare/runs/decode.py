"""The cost of one more token in causal decoding: the time of a step, and the bytes of the state."""

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
from compare.runs.measure import FORMULAS, peak_memory, synchronise, time_it
from compare.runs.model import Model
from compare.runs.outcome import DivergedError
from compare.spec import RunSpec
from tasks import Task
from zoo import MultiHeadAttention, describe
from zoo.state import State

WINDOWS = 8  # of steps, timed one after another at the end of the sequence
WINDOW = 128  # steps in a window, at most
SHARE = 64  # a window is at most the length over this: all windows together are at most an eighth


@torch.no_grad()
def measure_decoding(
    spec: RunSpec, task: Task, inputs: NDArray[Any], on_progress: Callable[[float], None]
) -> dict[str, Any]:
    """Decode ``seq_len`` positions from an empty state, and time the last ones.

    Args:
        spec: a spec with ``decode``.
        task: determines the kind of input.
        inputs: inputs of a batch of the task, ``seq_len`` positions.
        on_progress: called with the share done, except during the timed steps.

    Returns:
        Fields of a record: ``token_seconds``, the time of one step (a token for each sample), as median over windows of
        steps with quartiles; ``cache_bytes``, the state of one sample in the whole encoder after ``seq_len`` positions;
        the CPU time that other processes took meanwhile.

    Raises:
        NotImplementedError: the backend has no step form.
        DivergedError: the output is not finite.
    """
    entry = describe(spec.variant)
    if not entry.steps:
        form = "step form" if entry.traits.causal else "causal form"
        raise NotImplementedError(f"{entry.name} has no {form}, so it cannot decode step by step")
    torch.manual_seed(spec.seed)
    device = torch.device(spec.device)
    model = Model(spec, task).to(device).eval()
    tokens = iter(single(task, inputs, device).unbind(1))

    def walk(steps: int, state: State) -> tuple[float, Tensor, State]:
        """Do steps; return the seconds per step, the last output, and the state after it."""
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


def single(task: Task, inputs: NDArray[Any], device: torch.device) -> Tensor:
    """The inputs (B, N, …); the two sequences of a pair are samples of their own."""
    x = torch.from_numpy(inputs).to(device)
    return x.flatten(0, 1) if task.kind == "pair" else x


@torch.no_grad()
def measure_without_state(spec: RunSpec, task: Task, inputs: NDArray[Any]) -> dict[str, Any]:
    """What a token costs without a state, and what a state costs at once.

    Args:
        spec, task, inputs: as for ``measure_decoding``.

    Returns:
        Fields of a record: ``recompute_seconds`` and ``recompute_bytes``, time and added memory of a forward of all
        positions; ``prefill_seconds``, the time of a prefill of all positions.
    """
    torch.manual_seed(spec.seed)
    device = torch.device(spec.device)
    encoder = Model(spec, task).to(device).eval().encoder
    x = single(task, inputs, device)
    with torch.autocast(device.type, getattr(torch, spec.dtype), enabled=spec.dtype != "float32"):
        recompute = time_it(lambda: encoder(x), device, seconds=1.0)
        added = peak_memory(lambda: encoder(x), device)
        prefill = time_it(lambda: encoder.prefill(x), device, seconds=1.0)
    return {
        **{"recompute_seconds": recompute.median, "recompute_seconds_spread": list(recompute.spread)},
        "recompute_bytes": added,
        **{"prefill_seconds": prefill.median, "prefill_seconds_spread": list(prefill.spread)},
    }
