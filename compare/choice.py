"""The variants and tasks that the arguments choose."""

from __future__ import annotations

import argparse
import os
import sys

import tasks
import zoo
from compare.arguments import DEFAULT_BUDGET
from compare.errors import UsageError, closest
from compare.flags import CONTROL
from tasks import Task
from zoo.entry import Entry

Chosen = tuple[str, int, float]
"""Name of a task, length, seconds of training."""


def asked_variants(options: argparse.Namespace) -> dict[str, str]:
    """The result of ``choose_variants``, plus the control unless ``--no-control`` is typed."""
    variants = choose_variants(options.variants)
    if not options.no_control:
        variants.setdefault(CONTROL, CONTROL)
    return variants


def typed_variants(options: argparse.Namespace) -> list[str]:
    """The words after --variants; empty where the flag was not typed."""
    return split(options.variants, "variant", []) if options.named else []


def left_out(options: argparse.Namespace) -> list[str]:
    """Variants to skip: not typed by name, and without the step form (--decode) or causal form (--causal) they need."""
    if not (options.decode or options.causal):
        return []
    typed = typed_variants(options)
    entries = {name: find(word, "--variants") for name, word in asked_variants(options).items() if word not in typed}
    return [name for name, entry in entries.items() if not (entry.steps if options.decode else entry.traits.causal)]


def remarks(options: argparse.Namespace) -> list[str]:
    """Lines that name the variants and tasks that are skipped or replaced."""
    lines = []
    if absent := left_out(options):
        reason = "cannot decode step by step" if options.decode else "no causal form"
        lines.append(f"skipped ({reason}): {', '.join(absent)}")
    words = split(options.tasks, "task", [])
    if options.causal:
        names = [n for n in tasks.available() if not tasks.get(n).own_data] if "all" in words else []
        names += [name for word in words if word in tasks.SUITES for name in tasks.SUITES[word].tasks]
        if skipped := [name for name in dict.fromkeys(names) if not causal_form_of(name)]:
            lines.append(f"skipped tasks (no causal form): {', '.join(skipped)}")
        forms = {form: name for name in tasks.available() if (form := tasks.get(name).causal_form)}
        chosen = dict.fromkeys(name for name, _, _ in choose_tasks(options) if name in forms and name not in words)
        return lines + [f"{forms[name]} becomes {name}, its causal form" for name in chosen]
    variants = asked_variants(options)
    if unable := [name for name, word in variants.items() if not find(word, "--variants").traits.causal]:
        chosen = dict.fromkeys(name for name, _, _ in choose_tasks(options) if is_causal(options, tasks.get(name)))
        lines += [f"skipped on {name} (no causal form): {', '.join(unable)}" for name in chosen]
    return lines


def choose_variants(text: str) -> dict[str, str]:
    """Registered name -> the typed word, either the name or ``module:Class``; in order, each once."""
    chosen: dict[str, str] = {}
    for typed in split(text, "variant", ["all", *zoo.available()]):
        for name in zoo.available() if typed == "all" else [typed]:
            chosen.setdefault(find(name, "--variants").name, name)
    return chosen


def find(name: str, where: str) -> Entry:
    """The backend of that name or ``module:Class``, also from the current folder, as in a worker."""
    if ":" in name and os.getcwd() not in sys.path:  # the console script does not add it
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


def choose_tasks(options: argparse.Namespace) -> list[Chosen]:
    """The tasks and lengths that ``--tasks`` and ``--seq-len`` choose, each once."""
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
        forms = {name: causal_form_of(name) if options.causal else name for name in wanted}
        if not any(forms.values()):
            able = ", ".join(name for name in tasks.available() if causal_form_of(name))
            raise UsageError(f"--causal: {word} has no causal form; tasks that have one: {able}")
        for name, length in wanted.items():
            if task := forms[name]:
                defaults = tasks.get(task).defaults
                for seq_len in options.seq_len or [length or defaults.seq_len]:
                    chosen.setdefault((task, seq_len), budget or defaults.budget or DEFAULT_BUDGET)
    return [(name, seq_len, budget) for (name, seq_len), budget in chosen.items()]


def causal_form_of(name: str) -> str:
    """The causal form of a task, mostly the task itself; "" = it has none."""
    kind = tasks.get(name)
    return kind.causal_form or name * kind.causal


def is_causal(options: argparse.Namespace, kind: type[Task]) -> bool:
    """Whether ``RunSpec.causal`` is set for the runs of a task. Decoding runs are causal without it."""
    return (options.causal or kind.causal_only) and not options.decode
