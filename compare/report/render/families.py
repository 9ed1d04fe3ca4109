"""The colours of families, the same on every chart and page of every report."""

from zlib import crc32

from compare.report.facts.groups import CONTROL_FAMILY, UNKNOWN_FAMILY

# In the order of legends. Any two differ by 0.085 or more in OKLab, also for red-green colour blindness, and each
# contrasts with white. Black is the reference's family, grey the control's, slate an unknown one.
COLOURS = {
    "exact": "#000000",
    "fixed sparse": "#e0a000",
    "content sparse": "#ce1800",
    "learned pattern": "#a878c8",
    "low-rank": "#2f62b0",
    "kernel": "#007961",
    "recurrent": "#610049",
    "state space": "#310c92",
    "convolution": "#8fb4ff",
    "spectral": "#7a2800",
    UNKNOWN_FAMILY: "#395571",
    CONTROL_FAMILY: "#999999",
}
# For families of plug-ins. The name alone decides, so a family keeps its colour; two families may share one.
EXTERNAL = ("#3d00e7", "#9e61ff", "#c67b00", "#a6bd98")


def colour_of(family: str) -> str:
    return COLOURS.get(family) or EXTERNAL[crc32(family.encode()) % len(EXTERNAL)]


def in_order(families: set[str]) -> list[str]:
    """The order of legends and panels: built-in families, those of plug-ins by name, the unknown one, the control."""
    last = (UNKNOWN_FAMILY, CONTROL_FAMILY)
    known = [name for name in COLOURS if name in families and name not in last]
    return [*known, *sorted(families - set(COLOURS)), *(name for name in last if name in families)]
