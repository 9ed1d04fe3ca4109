"""Turns the arguments of the command line into runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import tasks
import zoo
from compare.choice import (
    asked_variants,
    choose_tasks,
    find,
    is_causal,
    left_out,
    split,
    typed_variants,
)
from compare.errors import UsageError
from compare.parallel import takers, unable
from compare.runs.kept import find_model, read_run
from compare.runs.model import Sizes, per_position
from compare.runs.rate_search import At, GridPoint, make_grid
from compare.schedule import default_lengths, in_words, shortest_length
from compare.settings import (
    Options,
    Settings,
    Sweep,
    choose_forms,
    choose_task_forms,
    read_grid_at,
    read_settings,
    read_sweeps,
)
from compare.spec import FLAGS, RunSpec
from compare.splits import check_splits
from tasks import LengthSchedule, Task
from zoo import Encoder
from zoo.contract import Dims

LEAST_MEMORY = 64 * 2**20  # bytes
SIZES = ("vocab_size", "n_features", "n_classes")  # sizes of a task that a model is built for


class Planned(NamedTuple):
    """The runs that the arguments describe.

    Attributes:
        specs: every run, with seeds as the outer loop, so that an interrupted comparison is balanced.
        grid: rates and weight decays that the search tries for each variant; empty = no search.
        grid_at: task -> its swept option, and the value at which one search serves all values.
    """

    specs: list[RunSpec]
    grid: list[GridPoint]
    grid_at: At


def plan_runs(options: argparse.Namespace, device: str, threads: int) -> Planned:
    """Plan the runs that the arguments describe, and the search for their rates.

    Raises:
        UsageError: the arguments contradict one another, or name something that does not exist.
    """
    check_flags(options)
    if options.dtype == "float16" and device == "cpu":
        raise UsageError("--dtype float16: expected a GPU, got a CPU: take bfloat16 or float32")
    variants = asked_variants(options)
    for name in left_out(options):
        del variants[name]
    chosen = choose_tasks(options)
    settings = read_settings(options.set)
    sweeps, task_sweeps = read_sweeps(options.sweep)
    grid_at = read_grid_at(options.grid_at, task_sweeps)
    if grid_at and not options.lr_grid:
        raise UsageError("--grid-at needs --lr-grid R,S: it sets the task option at which the rate is chosen")
    check_causal(options, sweeps)
    compared = [*dict.fromkeys([*variants, *(sweep.name for sweep in sweeps)])]
    unused = set(settings) - set(compared) - {name for name, _, _ in chosen}
    if unused:
        among = ", ".join([*compared, *dict.fromkeys(name for name, _, _ in chosen)])
        raise UsageError(
            f"--set {min(unused)}.…: expected a variant or task of this comparison ({among}), got {min(unused)!r}"
        )
    for name in task_sweeps:
        if name not in {task for task, _, _ in chosen}:
            among = ", ".join(dict.fromkeys(task for task, _, _ in chosen))
            raise UsageError(f"--sweep {name}.…: expected a task of this comparison ({among}), got {name!r}")
    add_data(options, settings, list(dict.fromkeys(name for name, _, _ in chosen)))
    forms = choose_forms(variants, settings, sweeps)
    specs: list[RunSpec] = []
    for (task_name, seq_len, budget), task_options in choose_task_forms(chosen, settings, task_sweeps):
        task = open_task(task_name, seq_len, task_options)
        common = common_fields(options, task, budget)
        check_models(options, task)
        planned = [
            RunSpec(
                variant=typed,
                options=variant_options,
                task=task_name,
                task_options=task_options,
                seq_len=seq_len,
                seed=seed,
                device=device,
                threads=threads,
                **common,
            )
            for seed in range(options.seeds)
            for typed, variant_options in forms
            if not common["causal"] or find(typed, "--variants").traits.causal
        ]
        for why in filter(None, map(unable, planned)):
            raise UsageError(why)
        check_splits(planned, task, typed_variants(options))
        specs += testable(planned, [*typed_variants(options), *(sweep.typed for sweep in sweeps)])
    grid = make_grid(options.lr_grid, options.weight_decay_grid)
    return Planned(sorted(specs, key=lambda spec: spec.seed), grid, grid_at)


def check_flags(options: argparse.Namespace) -> None:
    """Raise UsageError where flags contradict one another."""
    if options.lr_grid and options.steps == 0:
        raise UsageError("--lr-grid cannot be combined with --steps 0: choosing a rate needs training")
    if options.weight_decay_grid and not options.lr_grid:
        raise UsageError("--weight-decay-grid needs --lr-grid R,S: one search chooses both")
    if options.test_len and options.steps == 0:
        raise UsageError("--test-len cannot be combined with --steps 0: it tests trained models")
    if options.tune and not (options.start or options.pretrain):
        raise UsageError(f"--tune {options.tune} needs --start DIR or --pretrain SHARE: it fixes the encoder's weights")
    if options.distill != "answers" and not options.teacher:
        raise UsageError(f"--distill {options.distill} needs --teacher DIR: the model to learn from")
    if options.batch_size == 0 and options.accumulate > 1:
        raise UsageError("--accumulate cannot be combined with --batch-size auto, which chooses it")
    if options.batch_size == 0 and options.parallel:
        raise UsageError(f"--batch-size auto cannot be combined with --parallel {options.parallel}: type a batch size")
    if options.batch_size == 0 and options.steps == 0:
        raise UsageError(
            "--batch-size auto cannot be combined with --steps 0: costs are measured at a given batch size"
        )
    for flag in ("early_stopping", "quantize", "pretrain", "tune", "start", "teacher"):
        if options.steps == 0 and getattr(options, flag):
            raise UsageError(f"--{flag.replace('_', '-')} cannot be combined with --steps 0, which trains nothing")
    if options.tips and options.steps == 0:
        raise UsageError("ablate cannot be combined with --steps 0: it scores trained models")
    if options.memory_limit is not None and options.memory_limit < LEAST_MEMORY:
        raise UsageError(
            f"--memory-limit: expected a size with its unit such as 500MB or 16GB, at least {LEAST_MEMORY >> 20}MB "
            f"(loading torch alone takes more), got {options.memory_limit} bytes"
        )


def check_models(options: argparse.Namespace, task: Task) -> None:
    """Raise UsageError where --start or --teacher names no kept model, or one that a run of this task cannot use."""
    for flag in ("start", "teacher"):
        folder = getattr(options, flag)
        if folder is None:
            continue
        try:
            spec, sizes, _ = read_run(find_model(folder, None if options.out is None else str(options.out)))
        except (ValueError, OSError) as error:
            raise UsageError(f"--{flag}: {error}") from error
        mine = Sizes.of(task)
        if flag == "teacher" and (spec.task != task.name or sizes != mine):
            raise UsageError(
                f"--teacher: expected a model of {task.name} with {mine.n_classes} classes and the inputs of this run, "
                f"got one of {spec.task}: {sizes}"
            )
        wanted, got = ((each.vocab_size, each.n_features) for each in (mine, sizes))
        if got != wanted:
            mine_said, theirs_said = (f"vocab_size {ids} and n_features {features}" for ids, features in (wanted, got))
            raise UsageError(
                f"--start: expected a model with the inputs of {task.name} ({mine_said}), got one with {theirs_said}"
            )


def check_causal(options: argparse.Namespace, sweeps: list[Sweep]) -> None:
    """Raise UsageError where --causal or a typed task needs a causal form and a typed variant has none."""
    typed = [*typed_variants(options), *(sweep.typed for sweep in sweeps)]
    unable = [name for name in typed if name != "all" and not find(name, "--variants").traits.causal]
    causes = ["--causal"] * options.causal
    causes += [name for name in split(options.tasks, "task", []) if name in tasks.available()]
    causes = [name for name in causes if name == "--causal" or is_causal(options, tasks.get(name))]
    if unable and causes and not options.decode:
        able = ", ".join(name for name in zoo.available() if zoo.describe(name).traits.causal)
        verb = "has" if len(unable) == 1 else "have"
        raise UsageError(f"{causes[0]}: {', '.join(unable)} {verb} no causal form; variants that have one: {able}")


def open_task(name: str, seq_len: int, options: Options) -> Task:
    """Make a task with these options."""
    kind = tasks.get(name)
    try:
        return kind(seq_len, kind.config_type(**dict(options)))
    except ValueError as error:
        raise UsageError(str(error)) from error


def common_fields(options: argparse.Namespace, task: Task, budget: float) -> dict[str, Any]:
    """The fields that all specs of a task share. A flag that was not typed takes the task's default.

    budget: seconds of training, where neither --budget nor --steps was typed.
    """
    defaults = task.defaults
    typed = {name: getattr(options, name) for name in FLAGS}
    common: dict[str, Any] = {
        name: getattr(defaults, name, None) if value is None else value for name, value in typed.items()
    }
    try:
        Dims(d_model=common["d_model"], n_heads=common["n_heads"], max_len=task.seq_len)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if common["lr_schedule"] == "inverse-square-root" and options.warmup == 0:
        raise UsageError(
            "--warmup 0 cannot be combined with --lr-schedule inverse-square-root, which peaks at the end of the "
            "warm-up: take a share above 0"
        )
    if common["pool"] == "cls" and task.kind not in ("sequence", "value"):
        raise UsageError(
            f"--pool cls: {task.name} asks about positions or pairs; only tasks of one answer have a class token"
        )
    if options.label_smoothing and task.kind == "value":
        raise UsageError(f"--label-smoothing: {task.name} has numbers as answers, not classes")
    if common["positions"].endswith("-2d") and not task.picture:
        raise UsageError(f"--positions {common['positions']}: {task.name} has no pictures")
    if options.test_len and common["positions"].endswith("-2d"):
        raise UsageError(f"--test-len: positions of a picture ({common['positions']}) have one length")
    check_test_lengths(task, sorted(options.test_len))
    return common | {
        "budget": None if options.steps is not None else options.budget or budget,
        "steps": options.steps,
        "batch_size": options.batch_size or default_batch(task, takers(options.parallel)),
        "conv_width": defaults.conv_width,
        "embedding_std": defaults.embedding_std,
        "length_schedule": choose_lengths(options.length_schedule, task),
        "test_lens": tuple(sorted(options.test_len)),
        "causal": is_causal(options, type(task)),
        "decode": options.decode,
        "dtype": options.dtype,
    }


def default_batch(task: Task, takers: int) -> int:
    """The samples in a task's micro-batch, rounded up so that each of the processes that take samples gets as many."""
    samples = max(1, task.defaults.tokens_per_step // task.seq_len)
    return -(-samples // takers) * takers


def choose_lengths(name: LengthSchedule | None, task: Task) -> LengthSchedule:
    """The typed schedule of lengths, if the task has samples that short; the task's default where none was typed."""
    if name is None:
        return default_lengths(task.defaults.length_schedule, task.seq_len, task.shortest_train)
    if (shortest := shortest_length(name, task.seq_len)) < task.shortest_train:
        least = (
            f"has training samples of {task.shortest_train} tokens or more"
            if task.shortest_train < task.seq_len
            else "has training samples of full length only"
        )
        raise UsageError(
            f"--length-schedule {name} ({in_words(name)}) trains at {max(1, shortest)} of {task.seq_len} tokens, "
            f"but {task.name} {least}: take another schedule or a longer --seq-len"
        )
    return name


def add_data(options: argparse.Namespace, settings: Settings, chosen: list[str]) -> None:
    """Add ``--data`` and its companion flags to the options of the one task that takes them."""
    for option in ("data", "text_column", "label_column", "test_split", "tokenizer"):
        value = getattr(options, option)
        if value is None:
            continue
        flag = f"--{option.replace('_', '-')}"
        takers = [name for name in chosen if option in tasks.options(name)]
        if not takers:
            known = ", ".join(name for name in tasks.available() if option in tasks.options(name))
            raise UsageError(f"{flag}: expected a task that takes it ({known}), got {', '.join(chosen)}")
        if len(takers) > 1:
            raise UsageError(f"{flag}: several tasks take it; name one, such as --set {takers[0]}.{option}={value}")
        task_options = dict(settings.get(takers[0], ())) | {option: value}
        settings[takers[0]] = tuple(sorted(task_options.items()))


def check_test_lengths(task: Task, test_lens: Sequence[int]) -> None:
    """Raise UsageError where a model built for the task's own length cannot take one of these lengths."""
    for length in test_lens:
        try:
            there = type(task)(length, task.config)
            sizes = [(what, getattr(task, what), getattr(there, what)) for what in SIZES]
        except (ValueError, OSError) as error:  # sizes may come from the user's data, which may be unreadable
            raise UsageError(f"--test-len {length}: {' '.join(str(error).split())}") from error
        for what, here, other in sizes:
            if here != other:
                raise UsageError(
                    f"--test-len {length}: {task.name} has {what} {other} at this length and {here} at the training "
                    f"length {task.seq_len}: take lengths with the same {what}"
                )


def testable(planned: list[RunSpec], named: list[str]) -> list[RunSpec]:
    """Drop the runs of variants that cannot be tested beyond their training length.

    Raises:
        UsageError: one of these variants is among the ``named`` ones.
    """
    unreached = {spec.label: unreached_parameters(spec) for spec in planned if spec.seed == 0}
    for spec in planned:
        if (names := unreached[spec.label]) and spec.variant in named:
            raise UsageError(
                f"--test-len {spec.max_len}: {spec.label} cannot be tested beyond its training length {spec.seq_len}: "
                f"it has parameters for each position ({', '.join(names)}), and those beyond would stay untrained"
            )
    return [spec for spec in planned if not unreached[spec.label]]


def unreached_parameters(spec: RunSpec) -> list[str]:
    """Names of parameters with rows for positions beyond the training length: their shapes depend on ``max_len``."""
    if spec.max_len == spec.seq_len:
        return []

    def build(max_len: int) -> Encoder:
        return Encoder(
            find(spec.variant, "--variants").config(**dict(spec.options)),
            d_model=spec.d_model,
            n_heads=spec.n_heads,
            n_layers=1,
            max_len=max_len,
            positions=spec.positions,  # type: ignore[arg-type]
        )

    try:
        return per_position(build, spec.seq_len, spec.max_len)
    except ValueError as error:
        raise UsageError(f"--test-len {spec.max_len}: {spec.label}: {error}") from error
