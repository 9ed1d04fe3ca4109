"""Whether the variants of a comparison can be split as ``--parallel`` says, asked before any run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compare.errors import UsageError
from compare.parallel import split_sizes
from compare.runs.model import Model, Sizes
from compare.spec import RunSpec
from tasks import Task
from zoo.contract import UnsupportedError


def check_splits(planned: Sequence[RunSpec], task: Task, named: Sequence[str]) -> None:
    """Raise UsageError where sizes cannot be split, or none of the ``named`` variants; its reason is one line.

    Among variants that can be split, the run of one that cannot gets status ``unsupported``.
    """
    asked = {spec.label: spec for spec in planned if spec.variant in named and split_sizes(spec.parallel)}
    reasons = {label: why_whole(spec, Sizes.of(task)) for label, spec in asked.items()}
    if reasons and all(reasons.values()):
        raise UsageError(f"--parallel {planned[0].parallel}: {'; '.join(dict.fromkeys(reasons.values()))}")


def why_whole(spec: RunSpec, sizes: Sizes) -> str:
    """Why the model of a run cannot be split, in the words of ``zoo.parallel``; "" where it can.

    Raises:
        UsageError: the model could be split in other sizes.
    """
    from zoo.parallel.context import check_sequence  # take a second
    from zoo.parallel.pipeline import check_layers
    from zoo.parallel.tensor import check_heads

    splits = split_sizes(spec.parallel)
    try:
        with torch.device("meta"):
            model = Model(spec, sizes)
    except Exception:  # the run says so itself
        return ""
    try:
        if "tensor" in splits:
            check_heads(model, splits["tensor"])
        if "context" in splits:
            check_sequence(model.encoder)
        if "pipeline" in splits:
            check_layers(model.encoder, splits["pipeline"])
    except UnsupportedError as error:
        return str(error)
    except ValueError as error:
        raise UsageError(f"--parallel {spec.parallel}: {error}") from error
    return ""
