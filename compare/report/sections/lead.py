"""What a newcomer reads first: what was asked of the models, who can do it, and at what cost."""

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
        sentences: three, and, where there is more to report, one on which of it they are about.
        remarks: why variants cannot solve the task, where they did not.
        stem: of the chart that shows it.
    """

    sentences: list[str]
    remarks: list[str]
    stem: str


def lead_of(overview: Overview) -> Lead | None:
    """The first words on what was run at the greatest length, a sweep before others; None where nothing was scored."""
    subjects: list[Group | TaskSweep] = [*overview.sweeps, *(g for g in overview.unswept if not g.decodes)]
    subjects = [subject for subject in subjects if any(scores_of(group) for group in groups_of(subject))]
    if not subjects:
        return None
    longest = max(subjects, key=lambda subject: subject.seq_len)
    others = len(subjects) - 1
    more = [f"This is about {longest.title}; {others} other {plural(others, 'comparison')} below."] if others else []
    if isinstance(longest, TaskSweep):
        group = longest.groups[-1]
        told = [asked(group), held(longest), kept_state(longest)]
        stem = longest.stem
    else:
        group, told = longest, [asked(longest), solved(longest), cost(longest), disturbed(longest)]
        stem = f"{SPEED.stem}_{longest.slug}"
    return Lead([*filter(None, told), *more], remarks(group), stem)


def groups_of(subject: Group | TaskSweep) -> list[Group]:
    return subject.groups if isinstance(subject, TaskSweep) else [subject]


def asked(group: Group) -> str:
    """What the models had to do, and after how much training."""
    record = group.records[0]
    spec = as_mapping(record.get("spec"))
    budget, steps = as_number(spec.get("budget")), as_number(spec.get("steps"))
    taught = f"{seconds(budget)} of training" if budget else f"{plain(steps)} training steps" if steps else "training"
    inputs = f"with inputs of {plain(group.seq_len)} tokens"
    if not (task := str(record.get("task_summary") or "")):
        return f"After {taught} each model was tested on {group.task}, {inputs}."
    return f"After {taught} each model was asked, {inputs}: {task}{'' if task.endswith('?') else '.'}"


def cost(group: Group) -> str:
    """Time and memory of a training step of full, and what part of them others take: all of a few, else the fastest
    and the lightest of those that keep its score, where there are such."""
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
    told = [
        f"{in_words(row, group)} takes {times(steps[row.name] / steps[full.name])} the time and "
        f"{times(memories[row.name] / memories[full.name])} the memory"
        for row in rows
    ]
    own = f"{seconds(steps[full.name])} ({memory.told} {size(memories[full.name])})"
    return f"{'; '.join([f'A training step of {in_words(full, group)} takes {own}', *told])}."


def times(ratio: float) -> str:
    """Two digits: 0.34, 1.0, 3.1 or 12 times."""
    return f"{ratio:.2g} times" if ratio < 0.95 else f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:.0f} times"


def disturbed(group: Group) -> str:
    """Whose numbers something else on the machine may have changed."""
    names = [row.name for row in group.rows if row.disturbed]
    if not names:
        return ""
    what = "times and scores" if group.rows[0].by_budget and any(row.slowed for row in group.rows) else "times"
    return f"The machine was not quiet while {joined(names, FEW)} ran: take these {what} as rough."
