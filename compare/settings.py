"""Options of variants and tasks that are set (``--set``), swept (``--sweep``) or searched at (``--grid-at``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tasks
from compare.choice import Chosen, find
from compare.errors import UsageError, closest
from compare.runs.rate_search import At
from compare.spec import Option

Options = tuple[tuple[str, Option], ...]
Settings = dict[str, Options]


def choose_forms(variants: dict[str, str], settings: Settings, sweeps: list[Sweep]) -> list[tuple[str, Options]]:
    """The forms to run, as (typed variant, options): each variant with its set options, then each value of each sweep.

    A form that occurs twice, such as a variant whose own options are a value of its sweep, runs once, as swept.
    """
    swept: dict[tuple[str, Options], object] = {}  # form -> config: equal configs are one form
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
    """Each chosen task with its set options, or with each value of its sweep."""
    forms = []
    for each in chosen:
        options = dict(settings.get(each[0], ()))
        sweep = sweeps.get(each[0])
        swept = [{sweep.option: value} for value in sweep.values] if sweep else [{}]
        forms += [(each, tuple(sorted((options | value).items()))) for value in swept]
    return forms


def read_settings(words: list[str]) -> Settings:
    """``--set linformer.rank=128`` -> {"linformer": (("rank", 128),)}, checked against the existing options."""
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
    """One option of a variant or a task at several values. name: as registered. typed: name or ``module:Class``."""

    name: str
    typed: str
    option: str
    values: list[Option]


def read_sweeps(words: list[str]) -> tuple[list[Sweep], dict[str, Sweep]]:
    """``--sweep performer.features=16:64`` -> performer's features at 16, 32 and 64.

    Returns:
        The sweeps of variants, and those of tasks by the name of the task.
    """
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
            raise UsageError(f"{flag}: expected one swept option for each task, but {name}.{swept} is swept too")
        else:  # of two sweeps of one option the last counts, so that a plan can be changed
            task_sweeps[name] = sweep
    return sweeps, task_sweeps


def read_grid_at(words: list[str], sweeps: dict[str, Sweep]) -> At:
    """``--grid-at noisy_recall.pairs=16`` -> {"noisy_recall": ("pairs", 16)}, checked against the sweeps of tasks."""
    chosen: At = {}
    for word in words:
        flag = f"--grid-at {word}"
        task, option, text = split_setting(flag, word, "VALUE, a task option that --sweep varies and one of its values")
        if task not in sweeps or sweeps[task].option != option:
            swept = ", ".join(f"{name}.{sweep.option}" for name, sweep in sweeps.items()) or "nothing"
            raise UsageError(f"{flag}: expected a task option that --sweep varies ({swept}), got {task}.{option}")
        values = sweeps[task].values
        value = read_value(flag, text, values[0])
        if value not in values:
            raise UsageError(f"{flag}: expected one of the swept values {', '.join(map(str, values))}, got {text}")
        chosen[task] = (option, value)
    return chosen


def split_setting(flag: str, word: str, form: str) -> tuple[str, str, str]:
    """Split NAME.OPTION=VALUE into name, option and value."""
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
    """The registered name, the config class and the options with plain values of a task or backend."""
    if name in tasks.available():
        options = tasks.options(name)
        return name, tasks.get(name).config_type, options
    entry = find(name, where)
    plain = {option: default for option, default in entry.options.items() if isinstance(default, int | float | str)}
    return entry.name, entry.config, plain


def read_values(flag: str, text: str, default: Option) -> list[Option]:
    """Read ``A:B``, which doubles from A up to B if the option is a number, or a list; each value once."""
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
    """Read ``text`` as the type of the option's default."""
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
