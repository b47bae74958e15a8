"""Plans: the arithmetic of stretching and squeezing, the notations, and every message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.errors import PlanError
from elastic_ir.plans.plan import (
    StageShape,
    check_plan,
    drop_exactly,
    grow,
    parse_indices,
    parse_plan,
    plan_of_mapping,
    shrink,
)

FREE = StageShape("s", 3, 0, 1)
ENTRY = StageShape("s", 3, 1, 1)  # B0 | B1 B2
PAIRS = StageShape("s", 4, 0, 2)


def test_append_repeats_the_free_blocks_as_a_group() -> None:
    assert grow(ENTRY, 5) == (0, 1, 2, 1, 2)
    assert grow(ENTRY, 4) == (0, 1, 2, 1)
    assert grow(FREE, 7) == (0, 1, 2, 0, 1, 2, 0)


def test_interpolate_puts_copies_beside_their_source() -> None:
    assert grow(ENTRY, 5, "interpolate") == (0, 1, 1, 2, 2)
    assert grow(ENTRY, 4, "interpolate") == (0, 1, 1, 2)
    assert grow(FREE, 7, "interpolate") == (0, 0, 0, 1, 1, 2, 2)


def test_replicate_limits_the_copying() -> None:
    five = StageShape("s", 5, 1, 1)
    assert grow(five, 9, "append", [1, 2]) == (0, 1, 2, 3, 4, 1, 2, 1, 2)
    assert grow(five, 9, "interpolate", [1, 2]) == (0, 1, 1, 1, 2, 2, 2, 3, 4)
    assert grow(five, 9, "append", [1]) == grow(five, 9, "append", [1])
    assert grow(five, 9, "append", [1]) == (0, 1, 2, 3, 4, 1, 1, 1, 1)
    assert grow(five, 8, "append", [3, 4]) == (0, 1, 2, 3, 4, 3, 4, 3)


def test_units_of_two_blocks_stay_together() -> None:
    assert grow(PAIRS, 8) == (0, 1, 2, 3, 0, 1, 2, 3)
    assert grow(PAIRS, 6, "interpolate") == (0, 1, 0, 1, 2, 3)
    assert shrink(PAIRS, 2) == (0, 1)


def test_tail_and_even() -> None:
    nine = StageShape("s", 9, 1, 1)
    assert shrink(nine, 5) == (0, 1, 2, 3, 4)
    assert shrink(nine, 5, "even") == (0, 1, 3, 5, 7)
    assert shrink(nine, 1, "even") == (0,)
    assert shrink(nine, 7, [3, 4]) == (0, 1, 2, 5, 6, 7, 8)
    assert drop_exactly(nine, [8]) == (0, 1, 2, 3, 4, 5, 6, 7)


shapes = st.builds(
    lambda free, pinned, period: StageShape("s", pinned + free * period, pinned, period),
    st.integers(1, 6),
    st.integers(0, 1),
    st.integers(1, 3),
)


@given(shapes, st.integers(0, 9), st.sampled_from(["append", "interpolate"]))
def test_the_matching_drop_undoes_an_order(stage: StageShape, more: int, order: str) -> None:
    """Tail undoes append, even undoes interpolate: the composition is the identity."""
    target = stage.blocks + more * stage.period
    plan = grow(stage, target, order)
    longer = StageShape("s", target, stage.pinned, stage.period)
    back = shrink(longer, stage.blocks, "tail" if order == "append" else "even")
    assert [plan[index] for index in back] == list(range(stage.blocks))


@given(shapes, st.integers(0, 9), st.sampled_from(["append", "interpolate"]))
def test_every_block_occurs_as_often_as_the_others_or_once_more(
    stage: StageShape, more: int, order: str
) -> None:
    plan = grow(stage, stage.blocks + more * stage.period, order)
    assert check_plan(stage, plan) == plan
    counts = [plan.count(index) for index in range(stage.pinned, stage.blocks)]
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_notations() -> None:
    assert parse_plan("0,1,1|0,1") == [[0, 1, 1], [0, 1]]
    assert parse_plan("0-3,2-5") == [[0, 1, 2, 3, 2, 3, 4, 5]]
    mapping = parse_plan("0:0;1:1,2;2:3,4")
    assert mapping == [{0: [0], 1: [1, 2], 2: [3, 4]}]
    assert isinstance(mapping[0], dict)
    assert plan_of_mapping(mapping[0], "s") == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,x", "'x' in '0,x' is not a block index"),
        ("3-1", "runs backwards"),
        ("0:0;1", "is not a mapping"),
        ("0:0;0:1", "mapped twice"),
    ],
)
def test_bad_notations(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        parse_plan(text)


def test_bad_mappings() -> None:
    with pytest.raises(PlanError, match="target block 1 is given two sources"):
        plan_of_mapping({0: [0, 1], 1: [1]}, "s")
    with pytest.raises(PlanError, match="leaves target block 1 without a source"):
        plan_of_mapping({0: [0], 1: [2]}, "s")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((0, 1, 5), "stage 's' has no block 5: its blocks are 0 to 2"),
        ((1, 2), "the plan drops block 0, its entry"),
        ((0, 1, 0), "clones block 0, the entry"),
        ((), "drops block 0"),
    ],
)
def test_bad_plans(plan: tuple[int, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(ENTRY, plan)


def test_a_plan_keeps_units_whole() -> None:
    assert check_plan(PAIRS, (2, 3, 0, 1)) == (2, 3, 0, 1)
    for plan in [(0, 1, 2), (1, 0, 2, 3), (0, 3)]:
        with pytest.raises(PlanError, match="2 blocks make a unit"):
            check_plan(PAIRS, plan)
    with pytest.raises(PlanError, match="cannot have 5 blocks: 2 blocks make a unit; 4 or 6"):
        grow(PAIRS, 5)
    with pytest.raises(PlanError, match="whole units of 2 blocks"):
        grow(PAIRS, 6, "append", [0])


def test_other_refusals() -> None:
    with pytest.raises(PlanError, match="no free block to clone"):
        grow(StageShape("s", 1, 1, 1), 2)
    with pytest.raises(PlanError, match="order is append or interpolate, not 'both'"):
        grow(FREE, 4, "both")
    with pytest.raises(PlanError, match="drop is tail, even or a list"):
        shrink(FREE, 2, "head")
    with pytest.raises(PlanError, match="block 0 of stage 's' is its entry"):
        grow(ENTRY, 4, "append", [0])
    with pytest.raises(PlanError, match="drop: stage 's' has no block 7"):
        drop_exactly(ENTRY, [7])
    with pytest.raises(PlanError, match="leaves 2 blocks, the target has 1"):
        shrink(ENTRY, 1, [2])
    with pytest.raises(PlanError, match="replicate names no block"):
        grow(ENTRY, 4, "append", [])
    with pytest.raises(PlanError, match="at least one"):
        shrink(ENTRY, 0)
    with pytest.raises(PlanError, match="stage 's' cannot have 0 blocks: at least one has to stay"):
        check_plan(FREE, ())
    with pytest.raises(PlanError, match="stage 's' cannot have 0 blocks"):
        drop_exactly(FREE, [0, 1, 2])
    assert parse_indices("4-6,1") == [4, 5, 6, 1]
