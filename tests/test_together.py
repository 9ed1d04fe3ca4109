"""Several processes train one model: what they learn, test and store is what one process does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compare.runs.options import RunOptions
from compare.runs.ranks import ALONE, Ranks
from compare.spec import RunSpec
from tasks import Batch
from tests.here import run_here
from tests.learning import small_spec
from tests.together import Case, train, train_alone, train_together

SMALL: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2}
SPEC = replace(small_spec("mqar", 32, steps=20, batch_size=9), **SMALL)
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "linear": {"variant": "linear"},
    "accumulated": {"accumulate": 2, "clip_norm": 0.1, "label_smoothing": 0.1, "steps": 8},
    "pretrained": {"pretrain": 0.5, "causal": True, "steps": 10},
    "checkpointed": {"checkpointing": True, "steps": 8},
    "lengthened": {"length_schedule": "from-16th", "seq_len": 512, "batch_size": 3, "steps": 8},
    "listops": {"task": "listops", "seq_len": 32, "batch_size": 6, "steps": 6},
}
PARALLEL = ("data", "shard")
CASES = [
    (name, kind) for name in SETTINGS for kind in PARALLEL if kind == "data" or name not in ("lengthened", "listops")
]
AT = 8  # the step after which a training leaves a checkpoint


def spec_of(setting: str, parallel: str | None = None) -> RunSpec:
    return replace(SPEC, **SETTINGS[setting], parallel=parallel)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="session")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """What one process learns in each setting; it leaves a checkpoint of the first one."""
    leave = {"full": str(folder / "one")}
    return train_alone({name: Case(spec_of(name), leave=leave.get(name), leave_after=AT) for name in SETTINGS})


@pytest.fixture(scope="session")
def taught(folder: Path) -> RunSpec:
    """A run that learns from a kept model."""
    record = run_here(replace(SPEC, steps=3), run_options=RunOptions(out=str(folder), save=True))
    return replace(SPEC, teacher=str(folder / record["model"]), variant="linear")


@pytest.fixture(scope="session")
def two(folder: Path, alone: dict[str, Any], taught: RunSpec) -> dict[str, list[dict[str, Any]]]:
    """What two processes learn, of each a result, by the name of the case."""
    cases = {f"{name} {kind}": Case(spec_of(name, f"{kind}=2")) for name, kind in CASES}
    for kind in PARALLEL:
        spec = spec_of("full", f"{kind}=2")
        cases[f"full {kind}"] = Case(spec, leave=str(folder / kind), leave_after=AT)
        cases[f"resumed {kind}"] = Case(spec, begin=str(folder / "one"))
        for variant, options in (("routing", {}), ("performer", {"redraw_interval": 3})):
            changed = {"variant": variant, "options": tuple(options.items()), "dropout": 0.1, "steps": 7}
            cases[f"{variant} {kind}"] = Case(replace(spec, **changed))
        cases[f"taught {kind}"] = Case(replace(taught, parallel=f"{kind}=2"))
        cases[f"stopping {kind}"] = Case(replace(spec, early_stopping=2, steps=15))
    cases["reversible data"] = Case(replace(spec_of("full", "data=2"), reversible=True))
    first, second = train_together(list(cases.values()), 2)
    return {name: [a, b] for name, a, b in zip(cases, first, second, strict=True)}


def agree(mine: dict[str, Any], theirs: dict[str, Any], *, since: int = 0) -> None:
    """Losses, scores and norms of two results agree at every step, and so do their tests."""
    for point, other in zip(mine["curve"][since:], theirs["curve"][since:], strict=True):
        for name in ("step", "tokens", "train_loss", "train_score", "grad_norm", "restoring_loss", "seq_len"):
            assert point.get(name) == pytest.approx(other.get(name), abs=1e-4), (name, point["step"])
    assert mine["test"] == pytest.approx(theirs["test"], abs=1e-4)
    assert mine["weights"] == pytest.approx(theirs["weights"], rel=1e-3)


@pytest.mark.parametrize(("setting", "kind"), CASES)
def test_two_processes_learn_what_one_does(
    setting: str, kind: str, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    for rank in two[f"{setting} {kind}"]:
        agree(rank, alone[setting])


@pytest.mark.parametrize("kind", PARALLEL)
def test_two_processes_learn_from_a_teacher(kind: str, taught: RunSpec, two: dict[str, list[dict[str, Any]]]) -> None:
    agree(two[f"taught {kind}"][0], train(Case(taught)))


def test_reversible_layers_learn_together(two: dict[str, list[dict[str, Any]]]) -> None:
    agree(two["reversible data"][0], train(Case(replace(spec_of("full"), reversible=True))))


@pytest.mark.parametrize("kind", PARALLEL)
def test_two_processes_go_on_from_the_checkpoint_of_one(
    kind: str, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    agree(two[f"resumed {kind}"][1], alone["full"])


@pytest.mark.parametrize("kind", PARALLEL)
def test_one_process_goes_on_from_the_checkpoint_of_two(
    kind: str, folder: Path, alone: dict[str, Any], two: dict[str, list[dict[str, Any]]]
) -> None:
    assert two
    agree(train(Case(spec_of("full"), begin=str(folder / kind))), alone["full"])


@pytest.mark.parametrize("kind", PARALLEL)
@pytest.mark.parametrize("variant", ["routing", "performer"])
def test_buffers_are_the_same_in_every_process(variant: str, kind: str, two: dict[str, list[dict[str, Any]]]) -> None:
    """Routing moves its centroids in forward, by other samples in each process; performer draws its features again."""
    first, second = two[f"{variant} {kind}"]
    assert first["buffers"] == second["buffers"]
    assert any("centroids" in name or "projection" in name for name in first["buffers"])
    assert first["weights"] == second["weights"]


@pytest.mark.parametrize("kind", PARALLEL)
def test_all_processes_stop_at_once(kind: str, two: dict[str, list[dict[str, Any]]]) -> None:
    first, second = two[f"stopping {kind}"]
    validated = [[point.get("val_score") for point in each["curve"]] for each in (first, second)]
    assert validated[0] == validated[1]
    assert (first["weights"], first["test"]) == (second["weights"], second["test"])


def test_a_sharded_process_holds_half(two: dict[str, list[dict[str, Any]]]) -> None:
    (data, _), (shard, _) = two["full data"], two["full shard"]
    assert 0.4 * data["held"] < shard["held"] < 0.6 * data["held"]


@pytest.mark.long
def test_four_processes_learn_what_one_does() -> None:
    cases = {f"{name} {kind}": Case(spec_of(name, f"{kind}=4")) for name in ("full", "linear") for kind in PARALLEL}
    results = dict(zip(cases, train_together(list(cases.values()), 4)[3], strict=True))
    for name, result in results.items():
        agree(result, train(Case(spec_of(name.split()[0]))))


@pytest.mark.parametrize(("size", "lengths"), [(2, [4, 5]), (4, [2, 2, 2, 3]), (3, [3, 3, 3])])
def test_every_sample_of_a_batch_is_in_one_share(size: int, lengths: list[int]) -> None:
    batch = Batch(np.arange(18).reshape(9, 2), np.arange(9), None, np.arange(9) % 3)
    shares = [Ranks(rank, size).rows(batch) for rank in range(size)]
    assert [len(share.inputs) for share in shares] == lengths
    for field in ("inputs", "targets", "slices"):
        joined = np.concatenate([getattr(share, field) for share in shares])
        assert (joined == getattr(batch, field)).all()
    assert shares[0].padding is None
    assert ALONE.rows(batch) is batch
