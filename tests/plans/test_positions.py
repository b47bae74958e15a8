"""The rules by which constants follow from positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.plans.positions import Place, respread


def places(counts: list[int], entries: bool = True) -> list[Place]:
    return [
        Place(stage, entries and index == 0) for stage, count in enumerate(counts) for index in range(count)
    ]


def rates(last: float, count: int) -> list[float]:
    return [last * index / (count - 1) for index in range(count)]


def variances(counts: list[int], step: float = 0.04) -> list[float]:
    """NFNet's factors: the variance grows by a step in each block and starts anew behind each entry."""
    found, variance = [], 1.0
    for count in counts:
        for index in range(count):
            found.append(variance**-0.5)
            variance = (1.0 if index == 0 else variance) + step
    return found


@given(st.floats(0.01, 0.9), st.integers(3, 40), st.integers(1, 60))
def test_a_rate_keeps_its_ends(last: float, before: int, after: int) -> None:
    found = respread(rates(last, before), places([before], False), places([after], False))
    assert found is not None
    values, rule = found
    assert rule == "evenly from first to last"
    assert values[0] == 0.0
    assert len(values) == after
    if after > 1:
        assert values == pytest.approx(rates(last, after))


@given(st.lists(st.integers(2, 6), min_size=2, max_size=4), st.data())
def test_a_variance_goes_on_growing(before: list[int], data: st.DataObject) -> None:
    after = [data.draw(st.integers(1, 9)) for _ in before]
    found = respread(variances(before), places(before), places(after))
    if len(set(variances(before))) < 4:
        return  # two steps in a row are the least that shows a rule
    assert found is not None
    assert found[1] == "by the variance since the last entry"
    assert found[0] == pytest.approx(variances(after))


def test_what_is_equal_stays_and_what_shows_no_rule_is_left() -> None:
    here, there = places([3]), places([5])
    assert respread([0.2] * 3, here, there) == ([0.2] * 5, "the same everywhere")
    assert respread([0.1, 0.5, 0.2], here, there) is None
    assert respread([0.1, 0.2], places([2]), there) is None  # any two values lie on a line


def test_single_precision_is_even_enough() -> None:
    values = [0.0, 0.006666666828095913, 0.013333333656191826, 0.019999999552965164]
    found = respread(values, places([4]), places([7]))
    assert found is not None
    assert found[0][3] == pytest.approx(values[3] / 2)
