"""``python -m benchmarks.initialisation``: trains from several initial sizes of queries and keys.

For each variance of queries and keys it trains the runs of ``python -m compare``, one after another:

    python -m benchmarks.initialisation --variances 1 0.333 -- --variants full,linear --tasks mqar --steps 500 --seeds 3
"""

from __future__ import annotations

import argparse
import json
from itertools import product

import torch

from compare.arguments import run_parser
from compare.plan import plan_runs
from compare.runs.data import make_task
from compare.runs.train import Trainer
from zoo import Encoder
from zoo.shell import Shell


def main(arguments: list[str] | None = None) -> None:
    """Print one line of JSON a run: its settings, its curve on the validation set, and its score on the test set."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.initialisation", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--variances", type=float, nargs="+", default=[1.0, 1 / 3], metavar="V", help="default: 1 and ⅓"
    )
    parser.add_argument("words", nargs="*", metavar="-- OPTION …", help="options of python -m compare")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    specs = plan_runs(run_parser().parse_args(options.words), "cpu", threads=1).specs
    for spec, variance in product(specs, options.variances):
        trainer = Trainer(spec, make_task(spec))
        start_with(trainer.encoder, variance)
        points = trainer.train(lambda *_: None)["curve"]
        curve = {point["step"]: round(point["val_score"], 3) for point in points if point["val_score"] is not None}
        line = {"variant": spec.variant, **dict(spec.options), "task": spec.task, "seed": spec.seed, "lr": spec.lr}
        print(
            json.dumps(line | {"variance": variance, "curve": curve, "test": trainer.evaluate("test").score}),
            flush=True,
        )


@torch.no_grad()
def start_with(encoder: Encoder, variance: float) -> None:
    """Give queries and keys this variance, for layer inputs of variance 1. A ``Mixer`` keeps its own initialisation."""
    for mixer in encoder.modules():
        if isinstance(mixer, Shell):
            weights = mixer.qkv.weight[: -encoder.d_model]
            weights.mul_((variance / encoder.d_model) ** 0.5 / weights.square().mean().sqrt())


if __name__ == "__main__":
    main()
