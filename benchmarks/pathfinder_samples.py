"""``python -m benchmarks.pathfinder_samples``: pictures of the task pathfinder, and their answers."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np

from tasks.contours import SCALES, Scale, Scene, draw, paint, sketch

COLUMNS = 4
COLOURS = ((1.0, 0.55, 0.1), (0.3, 0.65, 1.0))  # of the two targets


def main(arguments: list[str] | None = None) -> None:
    """Write one file for each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pathfinder_samples", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("results/tasks"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument("--contour", type=int, default=14, choices=(6, 9, 14), help="paddles in a target, %(default)s")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for scale in SCALES.values():
        file = options.out / f"pathfinder_{scale.pixels}.png"
        show(scale, options.contour, file)
        print(file)


def show(scale: Scale, contour: int, file: Path) -> None:
    """Pictures of both labels: the input of the model above the answer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rng = random.Random(scale.pixels)
    by_label: dict[int, list[Scene]] = {0: [], 1: []}
    while min(map(len, by_label.values())) < COLUMNS:
        scene = sketch(rng, scale, contour)
        by_label[scene.label].append(scene)

    figure, axes = pyplot.subplots(4, COLUMNS, figsize=(2.2 * COLUMNS, 9.6), layout="constrained")
    for row, label in ((0, 1), (2, 0)):
        for column, scene in enumerate(by_label[label][:COLUMNS]):
            seen, answer = axes[row, column], axes[row + 1, column]
            seen.imshow(draw(scene), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            answer.imshow(coloured(scene), interpolation="nearest")
            seen.set_title(f"label {label}", fontsize=9)
    for each in axes.flat:
        each.set_axis_off()
    figure.suptitle(
        f"pathfinder, {scale.pixels} x {scale.pixels} pixels, targets of {contour} paddles\n"
        "below each picture the same with its two targets in colour",
        fontsize=10,
    )
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def coloured(scene: Scene) -> np.ndarray:
    """(pixels, pixels, 3), 0 to 1: the targets in colour, distractors grey, discs white."""
    layers = [
        paint(scene.paddles, [snake])[..., None] / 255 * colour
        for snake, colour in zip(scene.targets, COLOURS, strict=True)
    ]
    layers.append(0.45 * paint(scene.paddles, scene.distractors)[..., None] / 255 * np.ones(3))
    layers.append(paint(scene.paddles, [], scene.discs)[..., None] / 255 * np.ones(3))
    brightest = 0.5 if scene.paddles.scale.thickness < 1 else 1.0
    layers[:3] = [layer / brightest for layer in layers[:3]]
    return np.clip(np.maximum.reduce(layers), 0, 1)


if __name__ == "__main__":
    main()
