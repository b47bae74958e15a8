"""How a depth is spread over stages that differ, and what is said where no spreading reaches it."""

from __future__ import annotations

import pytest

from elastic_ir.errors import PlanError
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure
from elastic_ir.plans.families import counts_for_depth, nearest_depths


def stage(name: str, blocks: int, layers: int = 2, entry: bool = True, period: int | None = 1) -> Stage:
    """A stage of blocks with so many weight layers each."""
    box = Container(name, "", 0)
    made = []
    for number in range(blocks):
        box.children.append(Child(f"{name}.{number}", f"{name}.{number}"))
        made.append(Block([box.children[-1]], layers=layers))
    return Stage(name, (box,), made[0] if entry else None, made[entry:], period)


def network(*stages: Stage) -> Structure:
    """Stages between a stem and a head of one layer each."""
    return Structure(list(stages), 2 + sum(b.layers or 0 for s in stages for b in s.all_blocks), "graph")


def four(layers: int, *counts: int) -> Structure:
    return network(*(stage(f"layer{n + 1}", count, layers) for n, count in enumerate(counts)))


@pytest.mark.parametrize(
    ("layers", "depth", "counts"),
    [
        (2, 18, (2, 2, 2, 2)),
        (2, 26, (2, 3, 4, 3)),
        (2, 34, (3, 4, 6, 3)),
        (3, 26, (2, 2, 2, 2)),
        (3, 50, (3, 4, 6, 3)),
        (3, 101, (3, 4, 23, 3)),
        (3, 152, (3, 8, 36, 3)),
        (3, 200, (3, 24, 36, 3)),
    ],
)
def test_published_layouts_hold_from_any_source(layers: int, depth: int, counts: tuple[int, ...]) -> None:
    """The published layout wins over equal stages and over proportion, stretching and squeezing alike."""
    for start in [(2, 2, 2, 2), (3, 4, 6, 3), (5, 2, 9, 4)]:
        assert counts_for_depth(four(layers, *start), depth) == counts


def test_equal_stages_stay_equal_before_proportion() -> None:
    assert counts_for_depth(network(*(stage(n, 3) for n in "abc")), 56) == (9, 9, 9)
    assert counts_for_depth(network(*(stage(n, 4, entry=False, period=2) for n in "abc")), 38) == (6, 6, 6)


def test_the_largest_remainder_goes_first_and_ties_to_the_earlier_stage() -> None:
    """Free units 1, 2, 5 of 8 become shares of 10: 1.25, 2.5, 6.25."""
    three = network(stage("a", 2), stage("b", 3), stage("c", 6))
    assert three.depth == 24
    assert counts_for_depth(three, 28) == (2, 4, 7)
    even = network(stage("a", 3, entry=False), stage("b", 3, entry=False))
    assert counts_for_depth(even, 16) == (4, 3)


def test_stages_without_free_units_keep_their_entry() -> None:
    assert counts_for_depth(network(stage("a", 1), stage("b", 3), stage("c", 3)), 20) == (1, 4, 4)


def test_units_that_differ_in_layers() -> None:
    """Only the depth that the network has already is reached, and it is named."""
    mixed = network(stage("a", 3, 1), stage("b", 4, 2))
    assert mixed.depth == 13
    assert counts_for_depth(mixed, 13) == (3, 4)
    with pytest.raises(
        PlanError, match=r"depth 14 is not possible for this family: the nearest depth is 13; or state"
    ):
        counts_for_depth(mixed, 14)


def test_the_nearest_depths_are_possible_ones() -> None:
    """Every depth that a refusal names is accepted, from far below to far above."""
    three = network(*(stage(n, 3, 3) for n in "abc"))
    for depth in (-500, 0, 1, 10, 12, 30, 301):
        near = nearest_depths(three, depth)
        assert near
        for value in near:
            assert len(counts_for_depth(three, value)) == 3
    assert nearest_depths(three, -500) == [11]  # the entries alone
    with pytest.raises(PlanError, match="depth 5 is not possible for this family: the nearest depth is 11;"):
        counts_for_depth(three, 5)


def test_one_stage_of_free_blocks_is_counted_in_units() -> None:
    with pytest.raises(
        PlanError, match=r"a unit of 'h' has 4 weight layers; .* Count its 3 units instead: --to-units N"
    ):
        counts_for_depth(network(stage("h", 3, 4, entry=False)), 15)


def test_a_depth_that_names_do_not_show() -> None:
    unknown = network(stage("a", 3))
    unknown.depth = None
    with pytest.raises(PlanError, match="so --to-depth cannot be used; give --to-stages"):
        counts_for_depth(unknown, 20)
