"""``python -m benchmarks.initialisation``: trains from several initialisations.

For each start it trains the runs of ``python -m compare``, one after another:

    python -m benchmarks.initialisation --starts 1 0.333 -- --variants full,linear --tasks mqar --steps 500 --seeds 3

A start is the variance of queries and keys; ``ours``, the initialisation of the zoo; or ``authors``, for gated_deltanet
and mamba2 that of their authors' codes.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product

import torch
from torch import nn

from compare.arguments import run_parser
from compare.plan import plan_runs
from compare.runs.data import make_task
from compare.runs.train import Trainer
from zoo import Encoder
from zoo.attention.gated_deltanet import GatedDeltaNet
from zoo.attention.mamba2 import Mamba2
from zoo.shell import Shell


def main(arguments: list[str] | None = None) -> None:
    """Print one line of JSON a run: its settings, its curve on the validation set, and its score on the test set."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.initialisation", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--starts",
        type=read_start,
        nargs="+",
        default=[1.0, 1 / 3],
        metavar="START",
        help="variances of queries and keys, ours or authors (default: 1 and ⅓)",
    )
    parser.add_argument("words", nargs="*", metavar="-- OPTION …", help="options of python -m compare")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    specs = plan_runs(run_parser().parse_args(options.words), "cpu", threads=1).specs
    for spec, chosen in product(specs, options.starts):
        trainer = Trainer(spec, make_task(spec))
        if chosen == "authors":
            trainer.encoder.apply(as_authors)
        elif chosen != "ours":
            start_with(trainer.encoder, chosen)
        points = trainer.train(lambda *_: None)["curve"]
        curve = {point["step"]: round(point["val_score"], 3) for point in points if "val_score" in point}
        line = {"variant": spec.variant, **dict(spec.options), "task": spec.task, "seed": spec.seed, "lr": spec.lr}
        print(
            json.dumps(line | {"start": chosen, "curve": curve, "test": trainer.evaluate("test").score}),
            flush=True,
        )


def read_start(text: str) -> float | str:
    """A variance, ``ours`` or ``authors``."""
    return text if text in ("ours", "authors") else float(text)


@torch.no_grad()
def start_with(encoder: Encoder, variance: float) -> None:
    """Give queries and keys this variance, for layer inputs of variance 1. A ``Mixer`` keeps its own initialisation."""
    for mixer in encoder.modules():
        if isinstance(mixer, Shell):
            weights = mixer.qkv.weight[: -encoder.d_model]
            weights.mul_((variance / encoder.d_model) ** 0.5 / weights.square().mean().sqrt())


@torch.no_grad()
def as_authors(module: nn.Module) -> None:
    """Initialise gated_deltanet and mamba2 as their authors do; leave other modules as they are.

    Taps and maps are uniform, as ``nn.Conv1d`` and ``nn.Linear`` draw them; β has no offset.
    """
    if isinstance(module, GatedDeltaNet):
        maps, taps = (module.qkv, module.rates, module.gate, module.out), (module.conv,)
        module.strength.zero_()
        module.log_rate.uniform_(0.01, 16).log_()
        module.offset.uniform_(math.log(1e-3), math.log(0.1)).exp_().expm1_().log_()
    elif isinstance(module, Mamba2):
        maps, taps = (module.project, module.out), (module.taps, module.taps_bias)
    else:
        return
    for linear in maps:
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
    for each in taps:
        nn.init.uniform_(each, -(len(taps[0]) ** -0.5), len(taps[0]) ** -0.5)


if __name__ == "__main__":
    main()
