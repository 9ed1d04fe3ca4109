"""Suites: several tasks under one name for ``--tasks``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A named set of tasks.

    Attributes:
        summary: purpose of the suite.
        tasks: name -> length; None = the task's own default.
        budget: default seconds of training of each run.
    """

    summary: str
    tasks: dict[str, int | None]
    budget: float


SUITES = {
    "quick": Suite(
        summary="what two CPU cores learn in minutes",
        tasks={"mqar": 64, "selective_copy": None, "digits": 64, "bytes": 256},
        budget=50,
    ),
    "lra": Suite(
        summary="Long Range Arena",
        tasks=dict.fromkeys(("listops", "text", "retrieval", "image", "pathfinder", "pathx")),
        budget=600,
    ),
    "diagnostics": Suite(
        summary="why a mechanism fails",
        tasks=dict.fromkeys(
            ("mqar", "noisy_recall", "selective_copy", "needle", "adding", "duplicate", "digits", "matching", "bytes")
        ),
        budget=100,
    ),
    "mad": Suite(
        summary="the token manipulations of MAD (arXiv:2403.17844), causal",
        tasks=dict.fromkeys(
            (
                "mad_compress",
                "mad_fuzzy_recall",
                "mad_memorize",
                "mad_noisy_recall",
                "mad_recall",
                "mad_selective_copy",
            )
        ),
        budget=300,
    ),
}
