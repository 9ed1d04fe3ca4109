"""What a newcomer reads first: what was asked of the models, who can do it, and at what cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compare.quantities import STEP
from compare.report.facts.groups import Group, measured
from compare.report.facts.memory import memory_of
from compare.report.facts.task_sweeps import TaskSweep, unswept
from compare.report.facts.values import as_mapping, as_number
from compare.report.sections.accuracy import SPEED
from compare.report.sections.flags import in_words
from compare.report.sections.task_sweeps import held, kept_state
from compare.units import joined, plain, plural, seconds, size

DIGITS = 6  # of a difference of scores
NEAR = 0.05  # a score within so many points of another, or such a share of it, is told as being at its level
FEW = 3  # variants that are told one by one
Scores = dict[str, float]


@dataclass(frozen=True)
class Lead:
    """What a report begins with.

    Attributes:
        of: the group or sweep that it is about.
        sentences: three, and, where there is more to report, one on which of it they are about.
        remarks: why variants cannot solve the task, where they did not.
        stem: of the chart that shows it.
    """

    of: Group | TaskSweep
    sentences: list[str]
    remarks: list[str]
    stem: str


def lead_of(groups: Sequence[Group], sweeps: Sequence[TaskSweep]) -> Lead | None:
    """The first words on what was run at the greatest length, a sweep before others; None where nothing was scored."""
    subjects: list[Group | TaskSweep] = [*sweeps, *(g for g in unswept(groups, sweeps) if not g.decodes)]
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
    return Lead(longest, [*filter(None, told), *more], remarks(group), stem)


def groups_of(subject: Group | TaskSweep) -> list[Group]:
    return subject.groups if isinstance(subject, TaskSweep) else [subject]


def scores_of(group: Group) -> Scores:
    """The mean score of each variant that attends, the best first."""
    found = {row.name: score.mean for row in group.rows if row.attends and (score := group.score(row))}
    return dict(sorted(found.items(), key=lambda item: -group.scale.better(item[1])))


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


def floor_of(group: Group) -> tuple[float, str] | None:
    """What the control reaches, and it in words beside the best trivial predictor, which stands for it where there is
    no control."""
    level = group.scale.level
    name, value = max(group.baselines.items(), key=lambda item: group.scale.better(item[1]), default=("", 0.0))
    if group.control and (alone := group.score(group.control)):
        control = alone.mean
        beside = f"; {name} {level(value)}" if name else ""
        return control, f"the control without attention ({level(control)}{beside})"
    return (value, f"the best trivial predictor ({name} {level(value)})") if name else None


def near(group: Group) -> str:
    """`NEAR` in words."""
    return f"{100 * NEAR:g} points" if group.scale.is_fraction else f"{100 * NEAR:g} %"


def unsolved(group: Group) -> list[str]:
    """The variants that are at the level of what needs no attention, or below it."""
    floor = floor_of(group)
    return [name for name, score in scores_of(group).items() if floor and group.scale.lead(score, floor[0]) <= NEAR]


def solved(group: Group) -> str:
    """Who keeps the score of full and who does not. It tells the numbers of this report, and ranks nobody."""
    scores, floor, failed = scores_of(group), floor_of(group), unsolved(group)
    n = max(score.n for row in group.rows if (score := group.score(row)))
    where = "In this run" if n == 1 else f"On the mean of {n} seeds"
    what, scale = group.basis.words(group.metric), group.scale
    step = near(group)
    above = f"{step} {'better than' if scale.lower_is_better else 'above'}"
    needs = floor[1] if floor else ""
    if len(failed) == len(scores):
        return f"{where} no model solves it: none is more than {above} {needs}: {listed(group, failed)} {what}."
    if floor and scale.lead(next(iter(scores.values())), floor[0]) <= 2 * NEAR:
        return f"{where} all models are too near {needs} to say who solves it: {listed(group, scores)} {what}."
    full = group.reference.name if group.reference else ""
    others = [name for name in scores if name not in failed and name != full]
    parts = [f"full has no score ({group.reference.status})"] if group.reference and full not in scores else []
    if full in scores and full not in failed:
        parts.append(f"full reaches {scale.level(scores[full])} {what}")
        differences = {name: round(scale.lead(scores[name], scores[full]), DIGITS) for name in others}
        for names, words in (
            ([name for name in others if differences[name] > NEAR], ("is more", "are more", f"than {above} it")),
            (
                [name for name in others if abs(differences[name]) <= NEAR],
                ("stays", "stay", f"within {step} of it"),
            ),
            ([name for name in others if differences[name] < -NEAR], ("falls", "fall", "behind")),
        ):
            parts += [f"{listed(group, names)} {verb(names, *words)}"] if names else []
    elif floor:
        parts.append(f"{listed(group, others)} {verb(others, 'reaches', 'reach', what)}")
    else:
        parts.append(f"the {what} is {listed(group, others)}")
    if failed:
        level = f"not solve it, at most {above} {needs}"
        parts.append(f"{listed(group, failed)} {verb(failed, 'does', 'do', level)}")
    return f"{where} {'; '.join(parts)}."


def listed(group: Group, names: Iterable[str]) -> str:
    """ "linear (97.5 %) and luna (66.9 %)"."""
    scores = scores_of(group)
    return joined([f"{name} ({group.scale.level(scores[name])})" for name in names], FEW)


def verb(names: Sequence[str], one: str, many: str, rest: str) -> str:
    return f"{one if len(names) == 1 else many} {rest}"


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


def remarks(group: Group) -> list[str]:
    """Why variants cannot solve the task, as the task says it, of those that did not where another did."""
    failed = unsolved(group)
    if len(failed) == len(scores_of(group)):
        return []
    found = {
        f"Why {row.variant} cannot: {remark}."
        for row in group.rows
        for record in row.records
        if row.name in failed and (remark := record.get("remark"))
    }
    return sorted(found)
