"""Path-X: Pathfinder in pictures of 128 x 128 pixels, 16,384 tokens.

Tay et al., "Long Range Arena" (arXiv 2011.04006), in which no model scores above chance. The pictures and the options
are those of `tasks.pathfinder`:

>>> from tasks import get
>>> pathx = get("pathx")(16_384)
>>> pathx.config
PathXConfig(samples=16000, contour=14, data='')

Departures from LRA: those of `tasks.pathfinder`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from tasks.base import register
from tasks.pathfinder import Pathfinder, PathfinderConfig


@dataclass(frozen=True, kw_only=True)
class PathXConfig(PathfinderConfig):
    __doc__ = PathfinderConfig.__doc__

    task: ClassVar[str] = "pathx"


@register
class PathX(Pathfinder):
    """Pathfinder at 128 x 128 pixels; see the module's docstring."""

    name = "pathx"
    summary = "do two discs lie on one dashed curve? 128 pixels square"
    min_len = 128 * 128
    lengths = ()  # max_len alone
    defaults = replace(Pathfinder.defaults, seq_len=16_384)
    config_type: ClassVar[type] = PathXConfig
