"""The same equation as ``full``, whichever kernel runs."""

from tests.oracles.full import oracle

__all__ = ["OPTIONS", "oracle"]

OPTIONS: list[dict[str, object]] = [{}]
