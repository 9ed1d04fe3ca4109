"""What a newcomer reads first: the task, which variants solve it, and at what cost."""

from dataclasses import dataclass

from compare.quantities import STEP
from compare.report.facts.groups import Group, measured
from compare.report.facts.memory import memory_of
from compare.report.facts.overview import Overview
from compare.report.facts.task_sweeps import TaskSweep
from compare.report.facts.values import as_mapping, as_number
from compare.report.sections.accuracy import SPEED
from compare.report.sections.flags import in_words
from compare.report.sections.solved import FEW, NEAR, remarks, scores_of, solved
from compare.report.sections.task_sweeps import held, kept_state
from compare.units import joined, plain, plural, seconds, size


@dataclass(frozen=True)
class Lead:
    """What a report begins with.

    Attributes:
        sentences: three; a fourth names the comparison they describe where the report has several.
        remarks: for variants that did not solve the task, why they cannot.
        stem: file name, without ending, of the chart of that comparison.
    """

    sentences: list[str]
    remarks: list[str]
    stem: str


def lead_of(overview: Overview) -> Lead | None:
    """The first words, on the comparison with the longest inputs, a sweep before one group; None without scores."""
    subjects: list[Group | TaskSweep] = [*overview.sweeps, *(g for g in overview.unswept if not g.decodes)]
    subjects = [subject for subject in subjects if any(scores_of(group) for group in groups_of(subject))]
    if not subjects:
        return None
    longest = max(subjects, key=lambda subject: subject.seq_len)
    others = len(subjects) - 1
    more = [f"These lines describe {longest.title}; {others} other {plural(others, 'comparison')} below."]
    if isinstance(longest, TaskSweep):
        group = longest.groups[-1]
        sentences = [task_and_training(group), held(longest), kept_state(longest)]
        stem = longest.stem
    else:
        group = longest
        sentences = [task_and_training(longest), solved(longest), cost(longest), disturbed(longest)]
        stem = f"{SPEED.stem}_{longest.slug}"
    return Lead([*filter(None, sentences), *(more if others else [])], remarks(group), stem)


def groups_of(subject: Group | TaskSweep) -> list[Group]:
    return subject.groups if isinstance(subject, TaskSweep) else [subject]


def task_and_training(group: Group) -> str:
    """The task, how long the models trained, and how long the inputs are."""
    record = group.records[0]
    spec = as_mapping(record.get("spec"))
    budget, steps = as_number(spec.get("budget")), as_number(spec.get("steps"))
    training = f" for {seconds(budget)}" if budget else f" for {plain(steps)} steps" if steps else ""
    task = str(record.get("task_summary") or group.task)
    end = "" if task.endswith("?") else "."
    return f"Task: {task}{end} Each model trained{training}; inputs have {plain(group.seq_len)} tokens."


def cost(group: Group) -> str:
    """Time and memory of a training step of full, and the ratio to them of other variants: of every variant where they
    are few, else of the fastest and the lightest, where possible among those that keep the score of full."""
    full, scores, memory = group.reference, scores_of(group), memory_of(group.rows)
    steps, memories = (
        {row.name: it.mean for row, it in measured(group, quantity) if it.mean > 0} for quantity in (STEP, memory)
    )
    if full is None or full.name not in steps or full.name not in memories:
        return ""
    rows = [row for row in group.rows if row is not full and row.name in steps and row.name in memories]
    if len(rows) > FEW:
        kept = {name for name in scores if group.scale.lead(scores[name], scores.get(full.name, scores[name])) >= -NEAR}
        rows = [row for row in rows if row.name in kept] or rows
        best = {min(rows, key=lambda row: values[row.name]).name for values in (steps, memories)}
        rows = [row for row in rows if row.name in best]
    ratios = [
        f"{in_words(row, group)} takes {times(steps[row.name] / steps[full.name])} the time and "
        f"{times(memories[row.name] / memories[full.name])} the memory"
        for row in rows
    ]
    own = f"{seconds(steps[full.name])} ({memory.told} {size(memories[full.name])})"
    return f"{'; '.join([f'A training step of {in_words(full, group)} takes {own}', *ratios])}."


def times(ratio: float) -> str:
    """Two digits: 0.34, 1.0, 3.1 or 12 times."""
    return f"{ratio:.2g} times" if ratio < 0.95 else f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def disturbed(group: Group) -> str:
    """The variants whose numbers something else on the machine may have changed."""
    names = [row.name for row in group.rows if row.disturbed]
    if not names:
        return ""
    what = "times and scores" if group.rows[0].by_budget and any(row.slowed for row in group.rows) else "times"
    return f"The machine was busy while {joined(names, FEW)} ran: take these {what} as rough."
