"""Processes that split heads, layers or sequences train one model: they learn, test and store what one process does."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.errors import UsageError
from compare.parallel import processes_of, read_parallel, split_sizes, unable
from compare.runs.data import make_task
from compare.runs.kept import load, read_run
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
    "deep": {"n_layers": 2, "batch_size": 12, "clip_norm": 0.1, "steps": 12},
}
LONG_SETTINGS: dict[str, dict[str, Any]] = {
    "deep listops": {"task": "listops", "seq_len": 32, "n_layers": 2, "batch_size": 8, "steps": 4, "accumulate": 2},
    "deep pairs": {"task": "matching", "seq_len": 64, "n_layers": 2, "batch_size": 8, "steps": 4},
}
CASES = [("full", "tensor"), ("linear", "tensor"), ("pretrained", "tensor")]
CASES += [("full", "context"), ("linear", "context"), ("listops", "context")]
CASES += [("deep", "pipeline")]
RESUMED = [("hedgehog", "tensor"), ("full", "context"), ("deep", "pipeline")]
STAGED = {"parallel": "pipeline=2", "n_layers": 2}
AT = 8  # the step after which a training leaves a checkpoint


def spec_of(setting: str, parallel: str | None = None) -> RunSpec:
    return replace(SPEC, **(SETTINGS | LONG_SETTINGS)[setting], parallel=parallel)


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


@pytest.mark.parametrize(("setting", "kind"), [("full", "tensor"), ("full", "context"), ("deep", "pipeline")])
def test_one_process_goes_on_from_the_checkpoint_of_two(
    setting: str, kind: str, folder: Path, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    assert two
    agree(train(Case(spec_of(setting), begin=str(folder / f"{setting} {kind}"))), alone[setting])


def test_a_process_of_a_split_model_holds_less(alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]) -> None:
    layer = 12 * SPEC.d_model**2  # the matrices of a layer; each has two averages in the optimizer
    assert alone["full"]["held"] - two["full tensor"][0]["held"] >= 4 * 3 * layer / 2
    for stage in two["deep pipeline"]:
        assert alone["deep"]["held"] - stage["held"] >= 4 * 3 * layer


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
    told = (4 + 5 * 8) / 2  # the loss, and the numbers of a tally, of which one of two stages sends all
    for stage in two["deep pipeline"]:  # encodings or their gradients, a count and a norm
        assert stage["sent"] == 4 * (12 * SPEC.seq_len * SPEC.d_model + 1 + 1) + told


@pytest.mark.long
@pytest.mark.parametrize(
    ("parallel", "settings"),
    [
        *((parallel, ("full", "linear")) for parallel in ("data=2,tensor=2", "data=2,context=2", "context=2,tensor=2")),
        *((parallel, ("deep", *LONG_SETTINGS)) for parallel in ("data=2,pipeline=2", "pipeline=2,tensor=2")),
        ("pipeline=2", tuple(LONG_SETTINGS)),
    ],
)
def test_more_processes_and_tasks_learn_what_one_does(parallel: str, settings: tuple[str, ...]) -> None:
    cases = [Case(spec_of(name, parallel)) for name in settings]
    for rank in train_together(cases, processes_of(parallel)):
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


@pytest.mark.long
def test_torchrun_records_and_keeps_the_layers_of_all_stages(tmp_path: Path) -> None:
    words = ["--variants", "full", "--n-layers", "2", "--save", "--parallel", "pipeline=2"]
    done = torchrun(*TINY, *words, "--out", str(tmp_path / "out"), site=tmp_path)
    (record,) = read_records(tmp_path / "out/records.jsonl")[0]
    assert record["status"] == "ok", record["reason"] + done.stderr
    assert record["trained_params"] == record["params"]
    spec, _, _ = read_run(tmp_path / "out" / record["model"])
    alone = run_whole(replace(spec, parallel=None), run_options=RunOptions(machine=record["machine"]))
    losses = [[point["train_loss"] for point in each["curve"]] for each in (alone, record)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert (alone["test_score"], alone["test_size"]) == (record["test_score"], record["test_size"])
    assert alone["flops"] == pytest.approx(record["flops"], rel=1e-6)
    assert record["weights_bytes"] < 0.7 * alone["weights_bytes"]
    kept = load(tmp_path / "out" / record["model"], spec.seq_len).model
    assert sum(p.numel() for p in kept.parameters()) == record["params"]


def test_kinds_have_one_order() -> None:
    assert read_parallel("tensor=2, data=4") == "data=4,tensor=2"
    assert split_sizes("data=4,context=3,tensor=2") == {"context": 3, "tensor": 2}
    assert read_parallel("tensor=2,pipeline=2,data=2") == "data=2,pipeline=2,tensor=2"
    for text, why in (("shard=2,tensor=2", "expected shard=N alone"), ("pipeline=2,context=2", "without context=N")):
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
        ({"parallel": "pipeline=2"}, "--n-layers 1: expected layers that 2 processes divide"),
        ({**STAGED, "batch_size": 9}, "batches of 9: expected samples that 2 divides"),
        ({**STAGED, "parallel": "data=2,pipeline=2"}, "batches of 6: expected samples that 4 divides"),
        ({**STAGED, "dtype": "float16"}, "--dtype float16"),
        ({**STAGED, "reversible": True}, "--reversible"),
        ({**STAGED, "pretrain": 0.5}, "--pretrain"),
        ({**STAGED, "teacher": "x"}, "--teacher"),
        ({**STAGED, "dtype": "bfloat16", "checkpointing": True, "dropout": 0.1}, ""),
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
        (["mamba2"], STAGED, ""),
        (["full"], STAGED | {"pool": "cls", "task": "listops"}, "a class token and reversible layers cannot pass"),
    ],
)
def test_variants_that_cannot_be_split_are_refused_if_no_other_can(
    variants: list[str], changed: dict[str, Any], why: str
) -> None:
    specs = [replace(SPEC, **{"parallel": "tensor=2", "variant": name} | changed) for name in variants]
    if not why:
        check_splits(specs, make_task(specs[0]), variants)
        return
    with pytest.raises(UsageError) as refusal:
        check_splits(specs, make_task(specs[0]), variants)
    assert why in str(refusal.value)
    assert "\n" not in str(refusal.value)
