"""Split over processes, an encoder computes and learns what it does in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.parallel import context, pipeline, tensor, together
from tests.parallel.processes import run


def on_two() -> Iterator[tuple[str, Callable[[], None]]]:
    yield from context.checks()
    yield from tensor.checks()
    yield from pipeline.checks()


def on_four() -> Iterator[tuple[str, Callable[[], None]]]:
    yield from on_two()
    yield from context.trainings()
    yield from together.checks()


def on_eight() -> Iterator[tuple[str, Callable[[], None]]]:
    yield "data=2,tensor=2,pipeline=2", together.data_tensor_and_pipeline


def test_on_two_processes() -> None:
    run(2, on_two, seconds=240)


@pytest.mark.long
def test_every_split_backend_trains_on_two_processes() -> None:
    run(2, context.trainings, seconds=900)


@pytest.mark.long
def test_on_four_processes() -> None:
    run(4, on_four, seconds=1800)


@pytest.mark.long
def test_on_eight_processes() -> None:
    run(8, on_eight, seconds=900)
