"""Confidence intervals over seeds: of a mean, of a difference of two, and how many seeds a narrower one would take."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from statistics import variance

from elastic_ir.extras import import_extra

MOST = 9999  #: the most seeds that are considered


def half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of the confidence interval of a mean, by Student's t; infinite for one value."""
    if len(values) < 2:
        return math.inf
    return _quantile(level, len(values) - 1) * math.sqrt(variance(values) / len(values))


def welch(one: Sequence[float], two: Sequence[float], level: float = 0.95) -> float:
    """Half the width of the confidence interval of a difference of means (Welch 1947, unequal variances)."""
    if min(len(one), len(two)) < 2:
        return math.inf
    return _welch((variance(one), variance(two)), (len(one), len(two)), level)


def seeds_needed(one: Sequence[float], two: Sequence[float], distance: float, level: float = 0.95) -> int:
    """How many seeds of each would make Welch's interval narrower than ``distance``, at most MOST.

    An estimate: it takes means and variances for what they are now. Needs two values of each.
    """
    spread = variance(one), variance(two)
    return 2 + bisect_left(
        range(2, MOST), True, key=lambda seeds: _welch(spread, (seeds, seeds), level) < distance
    )


def _welch(variances: tuple[float, float], counts: tuple[int, int], level: float) -> float:
    parts = [spread / count for spread, count in zip(variances, counts, strict=True)]
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, counts, strict=True))
    return _quantile(level, freedom) * math.sqrt(sum(parts))


def _quantile(level: float, freedom: float) -> float:
    stats = import_extra("scipy.stats", "train", "a confidence interval")
    return float(stats.t.ppf((1 + level) / 2, freedom))
