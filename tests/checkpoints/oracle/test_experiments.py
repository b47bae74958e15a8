"""What an entry means is found by giving it what it would be; the trials here are plain functions, no networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.checkpoints.oracle.experiments import settled
from elastic_ir.checkpoints.stacks import Stack


def stack(order: Sequence[int], before: int = 6) -> Stack:
    return Stack("layers", "", 0, before, tuple(order))


def wanted(**entries: Any) -> Any:
    """A trial that wants some entries: the names of those that are not so."""

    def trial(config: Mapping[str, Any]) -> list[str]:
        return [name for name, value in entries.items() if config[name] != value]

    return trial


@pytest.mark.parametrize(
    ("entry", "order", "becomes"),
    [
        (6, [0, 1, 2, 3, 4, 5, 4, 5], 8),  # a count
        (7, [0, 1, 2, 3, 4, 5, 4, 5], 9),  # a count with one layer that is no block
        (3, [0, 1, 2, 3, 4, 5, 4, 5], 4),  # a count of pairs of layers
        (2, [0, 1, 2, 3], 1),  # of pairs, with two layers behind them that are of none
        (2, [0, 1, 0, 1, 2, 3, 4, 5], 4),  # so many first layers
        (1, [0, 1, 2, 3, 4, 5, 5], 2),  # so many last ones
        (5, [0, 1, 2, 3, 4, 5, 4, 5], 7),  # the last layer of a kind
        (4, [0, 0, 1, 2, 3, 4, 5], 5),  # one layer
        ([1, 4], [0, 1, 1, 4, 5], [1, 2, 3]),  # some layers
        ([2, 5], [0, 1, 1, 4, 5], [2, 3, 4]),  # some layers, counted from one
        (list("abcdef"), [0, 5, 5], list("aff")),  # an entry for each layer
        (list("xabcdef"), [0, 5, 5], list("xaff")),  # and one before the first
        ([6, 3], [0, 1, 2, 3, 4, 5, 4, 5], [8, 3]),  # the counts of several stages
    ],
)  # fmt: skip
def test_an_entry_is_given_what_it_would_be(entry: Any, order: list[int], becomes: Any) -> None:
    config = {"other": 6, "table": {"entry": entry}}

    def trial(made: Mapping[str, Any]) -> list[str]:
        return [] if made["table"]["entry"] == becomes and made["other"] == 6 else ["not yet"]

    assert settled(config, config, [stack(order)], trial)["table"]["entry"] == becomes


def test_several_entries_one_after_the_other() -> None:
    config = {"depth": 6, "last": 5, "kinds": list("aabbaa"), "width": 6}
    order = [0, 1, 2, 3, 4, 5, 4, 5]
    trial = wanted(depth=8, last=7, kinds=list("aabbaaaa"), width=6)
    assert settled(config, config, [stack(order)], trial) == {
        "depth": 8, "last": 7, "kinds": list("aabbaaaa"), "width": 6,
    }  # fmt: skip


def test_a_count_goes_with_the_lists_of_its_table() -> None:
    """A class that refuses a list of another length lets neither be changed alone."""
    config = {"depth": 6, "kinds": [0, 1] * 3, "rates": [0.5] * 6}

    def trial(made: Mapping[str, Any]) -> list[str] | None:
        if not made["depth"] == len(made["kinds"]) == len(made["rates"]):
            return None
        return [] if made["depth"] == 4 else ["another depth"]

    found = settled(config, config, [stack([0, 1, 2, 3])], trial)
    assert found == {"depth": 4, "kinds": [0, 1, 0, 1], "rates": [0.5] * 4}


def test_entries_that_bound_each_other() -> None:
    config = {"first": 2, "count": 6}

    def trial(made: Mapping[str, Any]) -> list[str] | None:
        if made["count"] - made["first"] != 4:
            return None
        return [] if made["count"] == 8 else ["another count"]

    assert settled(config, config, [stack([0, 1, 0, 1, 2, 3, 4, 5])], trial) == {"first": 4, "count": 8}


def test_a_wrong_proposal_is_taken_back() -> None:
    config = {"text": {"layers": 6}, "image": {"layers": 6}}
    proposed = {"text": {"layers": 8}, "image": {"layers": 8}}

    def trial(made: Mapping[str, Any]) -> list[str]:
        return [name for name, count in (("text", 8), ("image", 6)) if made[name]["layers"] != count]

    assert settled(config, proposed, [stack([0, 1, 2, 3, 4, 5, 4, 5])], trial) == {
        **proposed,
        "image": {"layers": 6},
    }


def test_a_counts_other_name_states_the_same() -> None:
    """Of two names of a count the class reads one; a reader of the other has to find the same."""
    config = {"num_hidden_layers": 6, "n_layers": 6, "heads": 6}
    found = settled(config, config, [stack([0, 1, 2])], wanted(n_layers=3, heads=6))
    assert found == {"num_hidden_layers": 3, "n_layers": 3, "heads": 6}


def test_what_no_entry_explains_stays() -> None:
    """And it ends: an entry that helps in part is kept, those that do not are not."""
    config = {"depth": 6, "heads": 6, "pad_token_id": 3}
    found = settled(config, config, [stack([0, 1, 2])], wanted(depth=3, heads=7, pad_token_id=1))
    assert found == {"depth": 3, "heads": 6, "pad_token_id": 3}


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.integers(0, 9), st.lists(st.integers(0, 5)))),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_the_source_is_never_changed(config: dict[str, Any], order: list[int]) -> None:
    before = repr(config)
    settled(
        config, config, [stack(order)], lambda made: None if len(made) % 2 else list(map(str, made.values()))
    )
    assert repr(config) == before
