"""Small samples of pathx."""

from pathlib import Path

from tests.task_cases.pathfinder import write_release


def cases(folder: Path) -> list[tuple[int, dict[str, object]]]:
    release = write_release(folder / "release", 128, 60)
    return [(16_384, {"samples": 64, "contour": 6}), (16_384, {"data": str(release)})]
