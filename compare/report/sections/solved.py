"""Which variants solve a task, which do not, and why some cannot."""

from collections.abc import Iterable, Sequence

from compare.report.facts.groups import Group
from compare.units import joined

DIGITS = 6  # of a difference of scores
NEAR = 0.05  # scores this near to each other count as one level: in points, or as a share of the score
FEW = 3  # variants that a sentence names one by one
Scores = dict[str, float]


def scores_of(group: Group) -> Scores:
    """The mean score of each variant that attends, the best first."""
    means = {row.name: score.mean for row in group.rows if row.attends and (score := group.score(row))}
    return dict(sorted(means.items(), key=lambda item: -group.scale.better(item[1])))


def floor_of(group: Group) -> tuple[float, str] | None:
    """The score of the control, else of the best trivial predictor, and both in words; None without either."""
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
    """The variants that score no more than `NEAR` above `floor_of`, which needs no attention."""
    floor = floor_of(group)
    return [name for name, score in scores_of(group).items() if floor and group.scale.lead(score, floor[0]) <= NEAR]


def solved(group: Group) -> str:
    """Which variants keep the score of full and which do not: the report's numbers, without a ranking."""
    scores, floor, failed = scores_of(group), floor_of(group), unsolved(group)
    n = max(score.n for row in group.rows if (score := group.score(row)))
    where = "In this run" if n == 1 else f"On the mean of {n} seeds"
    what, scale = group.basis.words(group.metric), group.scale
    step = near(group)
    above = f"{step} {'better than' if scale.lower_is_better else 'above'}"
    needs = floor[1] if floor else ""
    if len(failed) == len(scores):
        return f"{where} no model solves the task: none is more than {above} {needs}; {what}: {listed(group, failed)}."
    if floor and scale.lead(next(iter(scores.values())), floor[0]) <= 2 * NEAR:
        unclear = "to say which of them solve the task"
        return f"{where} all models are too near {needs} {unclear}; {what}: {listed(group, scores)}."
    full = group.reference.name if group.reference else ""
    others = [name for name in scores if name not in failed and name != full]
    parts = [f"full has no score ({group.reference.status})"] if group.reference and full not in scores else []
    if full in scores and full not in failed:
        parts.append(f"full reaches {scale.level(scores[full])} {what}")
        differences = {name: round(scale.lead(scores[name], scores[full]), DIGITS) for name in others}
        for names, words in (
            ([name for name in others if differences[name] > NEAR], ("is more", "are more", f"than {above} full")),
            (
                [name for name in others if abs(differences[name]) <= NEAR],
                ("stays", "stay", f"within {step} of full"),
            ),
            ([name for name in others if differences[name] < -NEAR], ("falls", "fall", "behind full")),
        ):
            parts += [f"{listed(group, names)} {verb(names, *words)}"] if names else []
    elif floor:
        beaten = f"{needs.partition(' (')[0] if failed else needs} by more than {step} in {what}"
        parts.append(f"{listed(group, others)} {verb(others, 'beats', 'beat', beaten)}")
    else:
        parts.append(f"the {what} is {listed(group, others)}")
    if failed:
        level = f"not solve the task: at most {above} {needs}"
        parts.append(f"{listed(group, failed)} {verb(failed, 'does', 'do', level)}")
    return f"{where} {'; '.join(parts)}."


def listed(group: Group, names: Iterable[str]) -> str:
    """ "linear (97.5 %) and luna (66.9 %)"."""
    scores = scores_of(group)
    return joined([f"{name} ({group.scale.level(scores[name])})" for name in names], FEW)


def verb(names: Sequence[str], one: str, many: str, rest: str) -> str:
    return f"{one if len(names) == 1 else many} {rest}"


def remarks(group: Group) -> list[str]:
    """The task's own words on why a variant cannot solve it, for each variant that did not while another did."""
    failed = unsolved(group)
    if len(failed) == len(scores_of(group)):
        return []
    reasons = {
        f"Why {row.variant} cannot: {remark}."
        for row in group.rows
        for record in row.records
        if row.name in failed and (remark := record.get("remark"))
    }
    return sorted(reasons)
