"""From the command line's arguments to the runs they ask for."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from compare.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compare.runs.rate_search import At, Setting
    from compare.spec import Option, RunSpec
    from tasks import LengthSchedule, Task
    from zoo.registry import Entry

    Options = tuple[tuple[str, Option], ...]
    Settings = dict[str, Options]
    Chosen = tuple[str, int, float]  # task, length, seconds of training

CONTROL = "none"
DEFAULT_VARIANTS = "full,linformer,linear"
DEFAULT_TASK = "noisy_recall"
DEFAULT_BUDGET = 100.0  # seconds
LEAST_MEMORY = 64 * 2**20  # bytes
SIZES = ("vocab_size", "n_features", "n_classes")  # of a task, that a model is built for


class Planned(NamedTuple):
    """What the arguments ask for.

    Attributes:
        specs: every run, the seeds outermost, so that an interrupted comparison is balanced.
        grid: the settings to choose each variant's from; empty = as they are.
        grid_at: task -> its swept option, and the value of it at which settings are chosen for all values.
    """

    specs: list[RunSpec]
    grid: list[Setting]
    grid_at: At


def plan_runs(options: argparse.Namespace, device: str, threads: int) -> Planned:
    """The runs that the arguments ask for, and how their rates are chosen.

    Raises:
        UsageError: the arguments are at odds with one another, or with what there is.
    """
    import tasks
    from compare.runs.rate_search import make_grid
    from compare.spec import RunSpec
    from zoo.contract import Dims

    if options.lr_grid and options.steps == 0:
        raise UsageError("--lr-grid: with --steps 0 nothing is trained that could choose a rate")
    if options.weight_decay_grid and not options.lr_grid:
        raise UsageError("--weight-decay-grid: expected --lr-grid with it: both are chosen together")
    if options.test_len and options.steps == 0:
        raise UsageError("--test-len: with --steps 0 nothing is trained that could be tested")
    if options.memory_limit is not None and options.memory_limit < LEAST_MEMORY:
        raise UsageError(
            f"--memory-limit: expected a size with its unit, as 500MB or 16GB, and at least {LEAST_MEMORY >> 20}MB, "
            f"less than loading torch takes; got {options.memory_limit} bytes"
        )
    variants = asked_variants(options)
    for name in left_out(options):
        del variants[name]
    chosen = choose_tasks(options)
    settings = read_settings(options.set)
    sweeps, task_sweeps = read_sweeps(options.sweep)
    grid_at = read_grid_at(options.grid_at, task_sweeps)
    if grid_at and not options.lr_grid:
        raise UsageError("--grid-at: expected --lr-grid with it: it says where that chooses")
    check_causal(options, sweeps)
    compared = [*dict.fromkeys([*variants, *(sweep.name for sweep in sweeps)])]
    unused = set(settings) - set(compared) - {name for name, _, _ in chosen}
    if unused:
        among = ", ".join([*compared, *dict.fromkeys(name for name, _, _ in chosen)])
        raise UsageError(f"--set {min(unused)}.…: {min(unused)!r} is not among what is compared: {among}")
    for name in task_sweeps:
        if name not in {task for task, _, _ in chosen}:
            among = ", ".join(dict.fromkeys(task for task, _, _ in chosen))
            raise UsageError(f"--sweep {name}.…: expected one of the tasks that are run, {among}, got {name!r}")
    add_data(options, settings, list(dict.fromkeys(name for name, _, _ in chosen)))
    forms = choose_forms(variants, settings, sweeps)
    specs: list[RunSpec] = []
    for (task_name, seq_len, budget), task_options in choose_task_forms(chosen, settings, task_sweeps):
        kind = tasks.get(task_name)
        defaults = kind.defaults
        try:
            task = kind(seq_len, kind.config_type(**dict(task_options)))
            d_model, n_heads = options.d_model or defaults.d_model, options.n_heads or defaults.n_heads
            Dims(d_model=d_model, n_heads=n_heads, max_len=seq_len)
        except ValueError as error:
            raise UsageError(str(error)) from error
        lr_schedule = options.lr_schedule or defaults.lr_schedule
        if lr_schedule == "inverse-square-root" and options.warmup == 0:
            raise UsageError("--warmup 0: expected a share above 0 with --lr-schedule inverse-square-root, its peak")
        test_lens = tuple(sorted(options.test_len))
        check_test_lengths(task, test_lens)
        causal = is_causal(options, kind)
        planned = [
            RunSpec(
                variant=typed,
                options=variant_options,
                task=task_name,
                task_options=task_options,
                seq_len=seq_len,
                seed=seed,
                budget=None if options.steps is not None else options.budget or budget,
                steps=options.steps,
                batch_size=options.batch_size or max(1, defaults.tokens_per_step // seq_len),
                accumulate=options.accumulate,
                d_model=d_model,
                n_heads=n_heads,
                n_layers=options.n_layers or defaults.n_layers,
                conv_width=defaults.conv_width,
                embedding_std=defaults.embedding_std,
                positions=options.positions or defaults.positions,
                activation=options.activation,
                lr=options.lr or defaults.lr,
                lr_schedule=lr_schedule,
                warmup=options.warmup,
                weight_decay=options.weight_decay,
                length_schedule=choose_lengths(options.length_schedule, task),
                test_lens=test_lens,
                checkpointing=options.checkpointing,
                reversible=options.reversible,
                compile=options.compile,
                causal=causal,
                decode=options.decode,
                memory_limit=options.memory_limit,
                device=device,
                dtype=options.dtype,
                threads=threads,
            )
            for seed in range(options.seeds)
            for typed, variant_options in forms
            if not causal or find(typed, "--variants").traits.causal
        ]
        specs += testable(planned, [*typed_variants(options), *(sweep.typed for sweep in sweeps)])
    grid = make_grid(options.lr_grid, options.weight_decay_grid)
    return Planned(sorted(specs, key=lambda spec: spec.seed), grid, grid_at)


def choose_lengths(name: LengthSchedule | None, task: Task) -> LengthSchedule:
    """The schedule of lengths that is asked for, if the task has samples that short; its default where none is."""
    from compare.schedule import default_lengths, in_words, shortest_length

    if name is None:
        return default_lengths(task.defaults.length_schedule, task.seq_len, task.shortest_train)
    if (shortest := shortest_length(name, task.seq_len)) < task.shortest_train:
        least = (
            f"has training samples of {task.shortest_train} tokens and more"
            if task.shortest_train < task.seq_len
            else "has training samples of its own length alone"
        )
        raise UsageError(
            f"--length-schedule {name} ({in_words(name)}) trains at {shortest} of {task.seq_len} tokens, "
            f"and {task.name} {least}: take another schedule or a longer --seq-len"
        )
    return name


def choose_tasks(options: argparse.Namespace) -> list[Chosen]:
    """The tasks and lengths that ``--tasks`` and ``--seq-len`` ask for, each once."""
    import tasks

    chosen: dict[tuple[str, int], float] = {}
    budget: float | None
    known = ["all", *tasks.SUITES, *tasks.available()]
    for word in split(options.tasks, "task", known):
        if word in tasks.SUITES:
            wanted, budget = tasks.SUITES[word].tasks, tasks.SUITES[word].budget
        elif word in known:
            names = [n for n in tasks.available() if not tasks.get(n).own_data] if word == "all" else [word]
            wanted, budget = dict.fromkeys(names), None
        else:
            raise UsageError(f"unknown task {word!r}{closest(word, known)}; known: {', '.join(known)}")
        read = {name: reading_of(name) if options.causal else name for name in wanted}
        if not any(read.values()):
            able = ", ".join(name for name in tasks.available() if reading_of(name))
            raise UsageError(f"--causal: {word} has no causal reading; these tasks have: {able}")
        for name, length in wanted.items():
            if task := read[name]:
                defaults = tasks.get(task).defaults
                for seq_len in options.seq_len or [length or defaults.seq_len]:
                    chosen.setdefault((task, seq_len), budget or defaults.budget or DEFAULT_BUDGET)
    return [(name, seq_len, budget) for (name, seq_len), budget in chosen.items()]


def reading_of(name: str) -> str:
    """The task that a causal encoder is trained on in place of this one, mostly itself; "" = there is none."""
    import tasks

    kind = tasks.get(name)
    return kind.causal_form or name * kind.causal


def is_causal(options: argparse.Namespace, kind: type[Task]) -> bool:
    """Whether runs of a task are of the causal encoder; those that decode are so without being told."""
    return (options.causal or kind.causal_only) and not options.decode


def check_causal(options: argparse.Namespace, sweeps: list[Sweep]) -> None:
    """Raise UsageError where a variant that was typed has no causal form, and --causal or a task that was typed asks
    for one."""
    import tasks
    import zoo

    typed = [*typed_variants(options), *(sweep.typed for sweep in sweeps)]
    unable = [name for name in typed if name != "all" and not find(name, "--variants").traits.causal]
    asking = ["--causal"] * options.causal
    asking += [name for name in split(options.tasks, "task", []) if name in tasks.available()]
    asking = [name for name in asking if name == "--causal" or is_causal(options, tasks.get(name))]
    if unable and asking and not options.decode:
        able = ", ".join(name for name in zoo.available() if zoo.describe(name).traits.causal)
        verb = "has" if len(unable) == 1 else "have"
        raise UsageError(f"{asking[0]}: {', '.join(unable)} {verb} no causal form; leave out, these have one: {able}")


def add_data(options: argparse.Namespace, settings: Settings, chosen: list[str]) -> None:
    """Put ``--data`` and what goes with it among the options of the one task that takes them."""
    import tasks

    for option in ("data", "text_column", "label_column", "test_split", "tokenizer"):
        value = getattr(options, option)
        if value is None:
            continue
        flag = f"--{option.replace('_', '-')}"
        takers = [name for name in chosen if option in tasks.options(name)]
        if not takers:
            known = ", ".join(name for name in tasks.available() if option in tasks.options(name))
            raise UsageError(f"{flag}: no task among {', '.join(chosen)} takes it; these do: {known}")
        if len(takers) > 1:
            raise UsageError(f"{flag}: several tasks take it; say which: --set {takers[0]}.{option}={value}")
        given = dict(settings.get(takers[0], ())) | {option: value}
        settings[takers[0]] = tuple(sorted(given.items()))


def asked_variants(options: argparse.Namespace) -> dict[str, str]:
    """As ``choose_variants``, and the control unless it is not wanted."""
    variants = choose_variants(options.variants)
    if not options.no_control:
        variants.setdefault(CONTROL, CONTROL)
    return variants


def typed_variants(options: argparse.Namespace) -> list[str]:
    """The words of --variants; none where it holds its default."""
    return split(options.variants, "variant", []) if options.named else []


def left_out(options: argparse.Namespace) -> list[str]:
    """Names that nobody typed and that cannot be run, as they have no step form, to decode, or no causal form."""
    if not (options.decode or options.causal):
        return []
    typed = typed_variants(options)
    asked = {name: find(word, "--variants") for name, word in asked_variants(options).items() if word not in typed}
    return [name for name, entry in asked.items() if not (entry.steps if options.decode else entry.traits.causal)]


def remarks(options: argparse.Namespace) -> list[str]:
    """Lines on what is not run, though it was among all that was asked for, and on what is run in its place."""
    import tasks

    lines = []
    if absent := left_out(options):
        lines.append(f"left out, for want of a {'step' if options.decode else 'causal'} form: {', '.join(absent)}")
    words = split(options.tasks, "task", [])
    if options.causal:
        names = [n for n in tasks.available() if not tasks.get(n).own_data] if "all" in words else []
        names += [name for word in words if word in tasks.SUITES for name in tasks.SUITES[word].tasks]
        if unread := [name for name in dict.fromkeys(names) if not reading_of(name)]:
            lines.append(f"left out, for want of a causal reading: {', '.join(unread)}")
        forms = {form: name for name in tasks.available() if (form := tasks.get(name).causal_form)}
        chosen = dict.fromkeys(name for name, _, _ in choose_tasks(options) if name in forms and name not in words)
        return lines + [f"{forms[name]} becomes {name}, its causal reading" for name in chosen]
    asked = asked_variants(options)
    if unable := [name for name, word in asked.items() if not find(word, "--variants").traits.causal]:
        chosen = dict.fromkeys(name for name, _, _ in choose_tasks(options) if is_causal(options, tasks.get(name)))
        lines += [f"left out of {name}, for want of a causal form: {', '.join(unable)}" for name in chosen]
    return lines


def check_test_lengths(task: Task, test_lens: Sequence[int]) -> None:
    """Raise UsageError where the task at one of these lengths is none that a model of its own length can take."""
    for length in test_lens:
        try:
            there = type(task)(length, task.config)
            sizes = [(what, getattr(task, what), getattr(there, what)) for what in SIZES]
        except (ValueError, OSError) as error:  # where the user's own data tells them, it may be unreadable
            raise UsageError(f"--test-len {length}: {' '.join(str(error).split())}") from error
        for what, here, other in sizes:
            if here != other:
                raise UsageError(
                    f"--test-len {length}: {task.name} has {what} {other} there and {here} at the training length "
                    f"{task.seq_len}: take lengths that share it"
                )


def testable(planned: list[RunSpec], named: list[str]) -> list[RunSpec]:
    """Without the runs of variants that cannot be tested beyond their training length, which are left out of all.

    Raises:
        UsageError: one of them was named.
    """
    unreached = {spec.label: unreached_parameters(spec) for spec in planned if spec.seed == 0}
    for spec in planned:
        if (names := unreached[spec.label]) and spec.variant in named:
            raise UsageError(
                f"--test-len {spec.max_len}: {spec.label} cannot be tested beyond its training length {spec.seq_len}: "
                f"it has parameters for each position ({', '.join(names)}), and training would not reach those beyond"
            )
    return [spec for spec in planned if not unreached[spec.label]]


def unreached_parameters(spec: RunSpec) -> list[str]:
    """Names of parameters that have rows for places beyond the training length: their shapes follow ``max_len``."""
    if spec.max_len == spec.seq_len:
        return []
    import torch

    from zoo import Encoder

    def shapes(max_len: int) -> dict[str, torch.Size]:
        with torch.device("meta"):
            encoder = Encoder(
                find(spec.variant, "--variants").config(**dict(spec.options)),
                d_model=spec.d_model,
                n_heads=spec.n_heads,
                n_layers=1,
                max_len=max_len,
                positions=spec.positions,  # type: ignore[arg-type]
            )
        return {name: parameter.shape for name, parameter in encoder.named_parameters()}

    try:
        own, longer = shapes(spec.seq_len), shapes(spec.max_len)
    except ValueError as error:
        raise UsageError(f"--test-len {spec.max_len}: {spec.label}: {error}") from error
    grown = [name for name in own if own[name] != longer[name]]
    return ["learned positions" if name.startswith("positions.") else name.rpartition(".")[2] for name in grown]


def choose_variants(text: str) -> dict[str, str]:
    """Registered name -> what was typed for it, the name or ``module:Class``; in order, each once."""
    import zoo

    chosen: dict[str, str] = {}
    for typed in split(text, "variant", ["all", *zoo.available()]):
        for name in zoo.available() if typed == "all" else [typed]:
            chosen.setdefault(find(name, "--variants").name, name)
    return chosen


def find(name: str, where: str) -> Entry:
    """The backend of that name or ``module:Class``, found from the current folder as a worker finds it."""
    import zoo

    if ":" in name and os.getcwd() not in sys.path:  # the console script leaves it out
        sys.path.append(os.getcwd())
    try:
        return zoo.describe(name)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def split(text: str, kind: str, known: list[str]) -> list[str]:
    names = list(dict.fromkeys(name for name in (part.strip() for part in text.split(",")) if name))
    if not names:
        raise UsageError(f"expected at least one {kind}, got {text!r}; known: {', '.join(known)}")
    return names


def closest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def choose_forms(variants: dict[str, str], settings: Settings, sweeps: list[Sweep]) -> list[tuple[str, Options]]:
    """What was typed for a variant, and its options: each variant as it is set, then each value of each sweep.

    What comes twice, as a variant whose own options are among the values of its sweep, runs once, as swept.
    """
    swept: dict[tuple[str, Options], object] = {}  # and the config: what is equal is one
    for sweep in sweeps:
        for value in sweep.values:
            options = tuple(sorted((dict(settings.get(sweep.name, ())) | {sweep.option: value}).items()))
            try:
                config = find(sweep.typed, "--sweep").config(**dict(options))
            except ValueError as error:
                raise UsageError(f"--sweep: {error}") from error
            if config not in swept.values():
                swept[variants.get(sweep.name, sweep.typed), options] = config
    plain = [(typed, settings.get(name, ())) for name, typed in variants.items()]
    return [
        *(form for form in plain if find(form[0], "--variants").config(**dict(form[1])) not in swept.values()),
        *swept,
    ]


def choose_task_forms(
    chosen: list[Chosen], settings: Settings, sweeps: dict[str, Sweep]
) -> list[tuple[Chosen, Options]]:
    """Each chosen task with its options: as they are set, or with each value of its sweep."""
    forms = []
    for each in chosen:
        options = dict(settings.get(each[0], ()))
        sweep = sweeps.get(each[0])
        swept = [{sweep.option: value} for value in sweep.values] if sweep else [{}]
        forms += [(each, tuple(sorted((options | value).items()))) for value in swept]
    return forms


def read_settings(words: list[str]) -> Settings:
    """``--set linformer.rank=128`` -> {"linformer": (("rank", 128),)}, checked against the options there are."""
    settings: dict[str, dict[str, Option]] = {}
    for word in words:
        flag = f"--set {word}"
        typed, option, value = split_setting(flag, word, "VALUE, for example linformer.rank=128")
        name, _, known = configurable(typed, "--set")
        check_option(flag, typed, option, known)
        settings.setdefault(name, {})[option] = read_value(flag, value, known[option])
    for name, chosen in settings.items():
        try:
            configurable(name, "--set")[1](**chosen)
        except ValueError as error:
            raise UsageError(f"--set: {error}") from error
    return {name: tuple(sorted(chosen.items())) for name, chosen in settings.items()}


class Sweep(NamedTuple):
    """One option of a variant or a task at several values. name: as registered; typed: that, or ``module:Class``."""

    name: str
    typed: str
    option: str
    values: list[Option]


def read_sweeps(words: list[str]) -> tuple[list[Sweep], dict[str, Sweep]]:
    """``--sweep performer.features=16:64`` -> performer's features at 16, 32 and 64.

    Returns:
        The sweeps of variants, and those of tasks by the name of the task.
    """
    import tasks

    sweeps: list[Sweep] = []
    task_sweeps: dict[str, Sweep] = {}
    for word in words:
        flag = f"--sweep {word}"
        typed, option, values = split_setting(flag, word, "A:B or A,B,C, for example performer.features=16:1024")
        name, _, known = configurable(typed, "--sweep")
        check_option(flag, typed, option, known)
        sweep = Sweep(name, typed, option, read_values(flag, values, known[option]))
        if name not in tasks.available():
            sweeps.append(sweep)
        elif (swept := task_sweeps.get(name, sweep).option) != option:
            raise UsageError(f"{flag}: expected one swept option of a task, but {name}.{swept} is swept too")
        else:  # of the same option the last counts, as of any flag: a plan's can be changed
            task_sweeps[name] = sweep
    return sweeps, task_sweeps


def read_grid_at(words: list[str], sweeps: dict[str, Sweep]) -> At:
    """``--grid-at noisy_recall.pairs=16`` -> {"noisy_recall": ("pairs", 16)}, of sweeps of tasks."""
    found = {}
    for word in words:
        flag = f"--grid-at {word}"
        task, option, text = split_setting(flag, word, "VALUE, one that --sweep has of a task")
        if task not in sweeps or sweeps[task].option != option:
            swept = ", ".join(f"{name}.{sweep.option}" for name, sweep in sweeps.items()) or "nothing"
            raise UsageError(f"{flag}: expected an option of a task that --sweep names ({swept}), got {task}.{option}")
        values = sweeps[task].values
        value = read_value(flag, text, values[0])
        if value not in values:
            raise UsageError(f"{flag}: expected one of the swept values {', '.join(map(str, values))}, got {text}")
        found[task] = (option, value)
    return found


def split_setting(flag: str, word: str, form: str) -> tuple[str, str, str]:
    """The name, the option and what is asked of it, of NAME.OPTION=…"""
    path, equals, value = word.partition("=")
    typed, dot, option = path.rpartition(".")
    if not (equals and dot):
        raise UsageError(f"{flag}: expected NAME.OPTION={form}")
    return typed, option, value


def check_option(flag: str, typed: str, option: str, known: dict[str, Option]) -> None:
    if option not in known:
        listed = f"its options: {', '.join(known)}" if known else "it has no options"
        raise UsageError(f"{flag}: {typed} has no option {option!r}{closest(option, list(known))}; {listed}")


def configurable(name: str, where: str) -> tuple[str, Callable[..., object], dict[str, Option]]:
    """The task or backend of that name: its name, its config class, the options that take a plain value."""
    import tasks

    if name in tasks.available():
        options = tasks.options(name)
        return name, tasks.get(name).config_type, options
    entry = find(name, where)
    plain = {option: default for option, default in entry.options.items() if isinstance(default, int | float | str)}
    return entry.name, entry.config, plain


def read_values(flag: str, text: str, default: Option) -> list[Option]:
    """``A:B``, doubling from A up to B where the option is a number, or a list; each value once."""
    first, colon, last = text.partition(":")
    if not colon or isinstance(default, bool | str):
        return list(dict.fromkeys(read_value(flag, part.strip(), default) for part in text.split(",")))
    low, high = read_number(flag, first, default), read_number(flag, last, default)
    if not 0 < low <= high < float("inf"):
        raise UsageError(f"{flag}: expected A:B with 0 < A <= B, got {text!r}")
    values = [low]
    while values[-1] * 2 <= high:
        values.append(values[-1] * 2)
    return list(values)


def read_value(flag: str, text: str, default: Option) -> Option:
    """``text`` as the type of the option's default."""
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise UsageError(f"{flag}: expected true or false, got {text!r}")
    return text if isinstance(default, str) else read_number(flag, text, default)


def read_number(flag: str, text: str, default: float) -> float:
    try:
        return type(default)(text)
    except ValueError:
        kind = {int: "an integer", float: "a number"}[type(default)]
        raise UsageError(f"{flag}: expected {kind}, got {text!r}") from None
