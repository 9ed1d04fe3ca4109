"""Processes that split heads or sequences train one model: they learn, test and store what one process does."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.errors import UsageError
from compare.parallel import read_parallel, split_sizes, unable
from compare.runs.data import make_task
from compare.runs.kept import read_run
from compare.runs.options import RunOptions
from compare.spec import RunSpec
from compare.splits import check_splits
from tests.here import run_whole
from tests.learning import small_spec
from tests.test_launch import TINY, read_records, torchrun
from tests.test_together import agree
from tests.together import Case, train, train_alone, train_together

SPEC = replace(small_spec("mqar", 32, steps=20, batch_size=6), d_model=16, n_heads=2, n_layers=1)
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"qk_norm": True},  # its norms are shared by all heads
    "linear": {"variant": "linear", "accumulate": 2, "clip_norm": 0.1},
    "hedgehog": {"variant": "hedgehog", "steps": 12},  # parameters of each head
    "pretrained": {"pretrain": 0.5, "steps": 6},  # tokens are hidden alike, as in one process
    "listops": {"task": "listops", "seq_len": 32, "steps": 4},  # samples of any length
}
CASES = [("full", "tensor"), ("linear", "tensor"), ("pretrained", "tensor")]
CASES += [("full", "context"), ("linear", "context"), ("listops", "context")]
RESUMED = [("hedgehog", "tensor"), ("full", "context")]
AT = 8  # the step after which a training leaves a checkpoint


def spec_of(setting: str, parallel: str | None = None) -> RunSpec:
    return replace(SPEC, **SETTINGS[setting], parallel=parallel)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="session")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """What one process learns in each setting, and the checkpoint that it leaves."""
    return train_alone({name: Case(spec_of(name), leave=str(folder / name), leave_after=AT) for name in SETTINGS})


@pytest.fixture(scope="session")
def two(folder: Path, alone: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What two processes learn, of each a result, by the name of the case."""
    cases = {
        f"{name} {kind}": Case(spec_of(name, f"{kind}=2"), leave=str(folder / f"{name} {kind}"), leave_after=AT)
        for name, kind in CASES
    }
    for name, kind in RESUMED:
        cases[f"resumed {name} {kind}"] = Case(spec_of(name, f"{kind}=2"), begin=str(folder / name))
    first, second = train_together(list(cases.values()), 2)
    return {name: [a, b] for name, a, b in zip(cases, first, second, strict=True)}


@pytest.mark.parametrize(("setting", "kind"), CASES)
def test_two_processes_learn_what_one_does(
    setting: str, kind: str, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    for rank in two[f"{setting} {kind}"]:
        agree(rank, alone[setting])


@pytest.mark.parametrize(("setting", "kind"), RESUMED)
def test_two_processes_go_on_from_the_checkpoint_of_one(
    setting: str, kind: str, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    agree(two[f"resumed {setting} {kind}"][1], alone[setting])


@pytest.mark.parametrize("kind", ["tensor", "context"])
def test_one_process_goes_on_from_the_checkpoint_of_two(
    kind: str, folder: Path, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    assert two
    agree(train(Case(spec_of("full"), begin=str(folder / f"full {kind}"))), alone["full"])


def test_a_process_of_split_heads_holds_less(alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]) -> None:
    layer = 12 * SPEC.d_model**2  # the matrices of a layer; each has two averages in the optimizer
    assert alone["full"]["held"] - two["full tensor"][0]["held"] >= 4 * 3 * layer / 2


def test_bytes_are_those_of_the_page_on_scale(folder: Path, two: dict[str, list[dict[str, Any]]]) -> None:
    """One layer, float32, and a count of targets; the split of heads also sums squares of six gradients."""
    numbers = SPEC.batch_size * SPEC.seq_len * SPEC.d_model
    reduced = 2 * 2 * numbers + 2 * 8  # two of a layer, forward and backward; gradients of the norms
    assert two["full tensor"][0]["sent"] == 4 * (reduced + 1 + 6)
    ring = 2 * (numbers // 2) * (1 + 1 + 2)  # keys and values, again in backward, and their gradients
    gathered = 2 * (numbers // 2)
    neighbours = 2 * SPEC.batch_size * SPEC.d_model  # one position of the convolution, and its gradient
    weights = torch.load(folder / "full context", weights_only=True)["model"].values()
    parameters = sum(x.numel() for x in weights)
    assert two["full context"][0]["sent"] == 4 * (ring + gathered + neighbours + parameters + 1)


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["data=2,tensor=2", "data=2,context=2", "context=2,tensor=2"])
def test_four_processes_learn_what_one_does(parallel: str) -> None:
    cases = [Case(spec_of(name, parallel)) for name in ("full", "linear")]
    for rank in train_together(cases, 4):
        for result, case in zip(rank, cases, strict=True):
            agree(result, train(Case(replace(case.spec, parallel=None))))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "unable"), [("tensor", "mamba2"), ("context", "performer")])
def test_torchrun_records_and_keeps_what_it_split(kind: str, unable: str, tmp_path: Path) -> None:
    """A variant that cannot be split has its reason; the others go on, and what they keep is whole."""
    words = ["--variants", f"{unable},full", "--save", "--parallel", f"{kind}=2", "--out", str(tmp_path / "out")]
    done = torchrun(*TINY, *words, site=tmp_path)
    refused, record = read_records(tmp_path / "out/records.jsonl")[0]
    assert refused["status"] == "unsupported", done.stdout + done.stderr
    assert refused["reason"].startswith(f"{unable} cannot split ")
    assert record["status"] == "ok", record["reason"]
    assert record["trained_params"] == record["params"]
    assert record["communicated_bytes"] > 0
    assert record["test_size"] == 6000
    spec, _, _ = read_run(tmp_path / "out" / record["model"])
    assert spec.parallel == f"{kind}=2"
    alone = run_whole(replace(spec, parallel=None), run_options=RunOptions(machine=record["machine"]))
    losses = [[point["train_loss"] for point in each["curve"]] for each in (alone, record)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert alone["test_score"] == record["test_score"]
    assert alone["flops"] < record["flops"] < 1.5 * alone["flops"], "the head is repeated"


def test_kinds_have_one_order() -> None:
    assert read_parallel("tensor=2, data=4") == "data=4,tensor=2"
    assert split_sizes("data=4,context=3,tensor=2") == {"context": 3, "tensor": 2}
    for text, why in (("shard=2,tensor=2", "expected shard=N alone"), ("pipeline=2", "zoo.parallel.pipeline")):
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            read_parallel(text)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"parallel": "tensor=2", "batch_size": 1}, ""),
        ({"parallel": "data=2,tensor=2", "batch_size": 1}, "batches of 1: expected a sample for each of 2 processes"),
        ({"parallel": "tensor=4"}, "--n-heads 2: expected heads that 4 processes divide"),
        ({"parallel": "tensor=2", "dtype": "float16"}, "--dtype float16"),
        ({"parallel": "context=3"}, "samples of 32 tokens: expected a length that 3 processes divide"),
        ({"parallel": "context=2", "test_lens": (33,)}, "samples of 33 tokens"),
        ({"parallel": "context=4", "length_schedule": "from-16th"}, "samples of 2 tokens"),
        ({"parallel": "context=2", "pretrain": 0.5}, "--pretrain"),
        ({"parallel": "tensor=2", "pretrain": 0.5}, ""),
    ],
)
def test_sizes_that_cannot_be_split_are_refused(changed: dict[str, Any], why: str) -> None:
    spec = replace(SPEC, **changed)
    found = unable(spec)
    assert found.startswith(f"--parallel {spec.parallel} cannot be combined with {why}") if why else found == ""


@pytest.mark.parametrize(
    ("variants", "changed", "why"),
    [
        (["mamba2"], {}, "tensor=2: mamba2 cannot split its heads over processes: it has its own projections"),
        (["mamba2", "full"], {}, ""),
        (["full"], {"activation": "swiglu", "d_model": 8}, "expected features (d_ff) that 2 processes divide, got 21"),
        (["performer"], {"parallel": "context=2"}, "performer cannot split a sequence over processes; these can: full"),
        (["performer", "full"], {"parallel": "context=2"}, ""),
        (["performer"], {"parallel": "data=2"}, ""),
    ],
)
def test_variants_that_cannot_be_split_are_refused_if_no_other_can(
    variants: list[str], changed: dict[str, Any], why: str
) -> None:
    specs = [replace(SPEC, **{"parallel": "tensor=2", "variant": name} | changed) for name in variants]
    if not why:
        check_splits(specs, make_task(SPEC), variants)
        return
    with pytest.raises(UsageError) as refusal:
        check_splits(specs, make_task(SPEC), variants)
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)
