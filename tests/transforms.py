"""Which transforms of torch each backend goes through: ``python -m tests.transforms`` writes ``docs/transforms.md``.

With names of backends it writes the lines of these.

A transform counts where it gives what eager code gives: for one layer, with padding and without, in float64 on a CPU.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import torch
from torch import Tensor

from zoo import Encoder, available, describe

TABLE = Path(__file__).parents[1] / "docs" / "transforms.md"
LENGTH, MOST = 130, 300  # several blocks, and several chunks of a scan
Inputs = tuple[Encoder, Tensor, Tensor | None]


def made(name: str, causal: bool, length: int = LENGTH, *, padded: bool) -> Inputs:
    """An encoder, an input and a mask."""
    torch.manual_seed(0)
    encoder = Encoder(name, d_model=16, n_heads=2, n_layers=1, d_ff=16, max_len=MOST, dropout=0.0, causal=causal)
    x = torch.randn(2, length, 16, dtype=torch.float64)
    return encoder.double().eval(), x, padding(length) if padded else None


def padding(length: int) -> Tensor:
    """Of the second sample the last fifth."""
    return torch.arange(length) >= torch.tensor([[length], [length - length // 5]])


def close(got: object, want: object) -> None:
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


def gradients(encoder: Callable[..., Tensor], x: Tensor, mask: Tensor | None, parameters: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of its sum of sines."""
    x = x.clone().requires_grad_()
    y = encoder(x, key_padding_mask=mask)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *parameters], materialize_grads=True)]


def compile_training(encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    encoder.train()
    twin = copy.deepcopy(encoder)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=False)
    want = gradients(twin, x, mask, list(twin.parameters()))
    close(gradients(compiled, x, mask, list(encoder.parameters())), want)


def compile_inference(encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    compiled = torch.compile(encoder, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        close(compiled(x, key_padding_mask=mask), encoder(x, key_padding_mask=mask))


def export_any(encoder: Encoder, x: Tensor, mask: Tensor | None, *, deferred: bool = False) -> None:
    """``deferred``: what torch cannot prove of all lengths the program checks of its own."""
    length = {1: torch.export.Dim("length", min=2, max=MOST)}
    shapes = {"x": length, "key_padding_mask": None if mask is None else length}
    with torch.no_grad():
        program = torch.export.export(
            encoder,
            (x,),
            {"key_padding_mask": mask},
            dynamic_shapes=shapes,
            prefer_deferred_runtime_asserts_over_guards=deferred,
        ).module()
        for number in (2, 37, MOST):
            x, its_mask = torch.randn(2, number, 16, dtype=x.dtype), None if mask is None else padding(number)
            close(program(x, key_padding_mask=its_mask), encoder(x, key_padding_mask=its_mask))


def export_one(encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    with torch.no_grad():
        program = torch.export.export(encoder, (x,), {"key_padding_mask": mask}).module()
        close(program(x, key_padding_mask=mask), encoder(x, key_padding_mask=mask))


def func_vmap(encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    """The gradients of each sample."""

    def loss(parameters: dict[str, Tensor], x: Tensor, mask: Tensor | None) -> Tensor:
        given = {"key_padding_mask": None if mask is None else mask[None]}
        return torch.func.functional_call(encoder, parameters, (x[None],), given).sin().sum()

    parameters = dict(encoder.named_parameters())
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, None if mask is None else 0))(parameters, x, mask)
    close([grad.sum(0) for grad in each.values()], gradients(encoder, x, mask, list(parameters.values()))[2:])


def func_grad(encoder: Encoder, x: Tensor, mask: Tensor | None) -> None:
    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(encoder, parameters, (x,), {"key_padding_mask": mask}).sin().sum()

    parameters = dict(encoder.named_parameters())
    close(list(torch.func.grad(loss)(parameters).values()), gradients(encoder, x, mask, list(parameters.values()))[2:])


# Each pair: what goes through the first goes through the second.
PAIRS: list[tuple[str, Callable[..., None], str, Callable[..., None]]] = [
    ("compile, training", compile_training, "compile, inference", compile_inference),
    ("export, any length", export_any, "export, one length", export_one),
    ("func.vmap of func.grad", func_vmap, "func.grad", func_grad),
]
COLUMNS = [name for pair in PAIRS for name in (pair[2], pair[0])]
REASONS = {  # of each, the errors of torch that it stands behind
    "reads numbers of a tensor on the host: a layout, or how long the samples are": (
        r"data-dependent|GuardOnDataDependent|data pointer of Tensor|can output dynamic shape|\.item\(\)|\.tolist\(\)"
    ),
    "lays out its work by the length, which is fixed with it": (
        r"Constraints violated|specializ|non-nested SymInt|Cannot create Dim"
    ),
}


DEFERRED = (
    "with `prefer_deferred_runtime_asserts_over_guards=True`: that its blocks fit is checked at each call, since torch "
    "cannot prove it of every length"
)


def tried(transform: Callable[..., None], name: str, causal: bool) -> str:
    """The cell of a table: ✓, or the number of the reason why not; what goes through without padding says so."""
    torch._dynamo.reset()
    logging.disable()
    found = ""
    for padded in (True, False):
        if not padded and found != "1":  # padding has no part in it
            break
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                transform(*made(name, causal, padded=padded))
        except Exception as error:  # of whatever kind torch raises
            numbers = [str(i) for i, known in enumerate(REASONS.values(), 1) if re.search(known, str(error))]
            if not numbers:
                raise
            found = found or numbers[0]
        else:
            return "✓" if padded else f"without padding ({found})"
    return f"– ({found})"


def row(name: str, causal: bool) -> str:
    """A line of the table."""
    cells = []
    for _, stronger, _, weaker in PAIRS:
        best = tried(stronger, name, causal)
        if best == "– (2)" and tried(partial(export_any, deferred=True), name, causal) == "✓":
            best = "✓ (3)"
        cells += ["✓" if best.startswith("✓") else tried(weaker, name, causal), best]
    return " | ".join([f"| `{name}`{', causal' if causal else ''}", *cells]) + " |"


def rows(names: list[str]) -> list[tuple[str, bool]]:
    return [(name, causal) for name in names for causal in (False, True) if describe(name).traits.causal or not causal]


def document(lines: list[str]) -> str:
    """The whole page."""
    head = f"""# Compilers and transforms

What goes through `torch.compile(fullgraph=True)`, `torch.export` and `torch.func`, and gives what eager code gives.
`python -m tests.transforms` wrote this page with torch {torch.__version__.split("+")[0]}; a test compares it.

| attention | {" | ".join(COLUMNS)} |
|---|{"---|" * len(COLUMNS)}
"""
    notes = [f"({number}) {reason}.  " for number, reason in enumerate([*REASONS, DEFERRED], 1)]
    return head + "\n".join([*lines, "", "✓ with and without padding. Notes:  ", *notes]) + "\n"


def line_of(page: str, name: str, causal: bool) -> str | None:
    """The line of the page about a backend."""
    start = f"| `{name}`{', causal' if causal else ''} |"
    return next((line for line in page.splitlines() if line.startswith(start)), None)


def main(names: list[str]) -> None:
    """Write the lines of these backends, and of those that the page does not have; without names, all lines."""
    page = TABLE.read_text() if names else ""
    kept = {each: line_of(page, *each) for each in rows(available()) if each[0] not in names}
    new = [each for each in rows(available()) if not kept.get(each)]
    with ProcessPoolExecutor(cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        written = dict(zip(new, pool.map(row, *zip(*new, strict=True)), strict=True))
    TABLE.write_text(document([kept.get(each) or written[each] for each in rows(available())]))


if __name__ == "__main__":
    main([describe(name).name for name in sys.argv[1:]])
