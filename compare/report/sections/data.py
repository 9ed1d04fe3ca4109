"""The data and the commands that the runs came from."""

from collections.abc import Sequence

from compare.report.facts.grouping import data_hashes
from compare.report.facts.groups import Group
from compare.report.facts.values import as_mapping


def mixed_data(groups: Sequence[Group]) -> list[str]:
    """A warning for each group whose runs used different data."""
    return [
        f"{group.title}: the runs do not share one {key} ({', '.join(sorted(value[:8] for value in values))}); "
        "their scores are not comparable."
        for group in groups
        for key, values in data_hashes(group.records).items()
        if len(values) > 1
    ]


def commands(groups: Sequence[Group]) -> list[str]:
    """The commands that a user typed, else those of the runs: each once, in order."""
    of_runs = [str(record["command"]) for group in groups for record in group.records if record.get("command")]
    stamps = [as_mapping(record.get("machine")) or group.environment for group in groups for record in group.records]
    typed = [str(stamp["command"]) for stamp in stamps if stamp.get("command")]
    return list(dict.fromkeys(typed or of_runs))
