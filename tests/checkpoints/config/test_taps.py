"""Features that a configuration takes between layers: at their layers' new places, as many as before."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_ir.checkpoints.config.tables import Reader
from elastic_ir.checkpoints.config.taps import taps_followed
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.errors import PlanError

NAMES = ["layer.0.weight", "visual.blocks.0.weight"]
TWICE = (0, 0, 1, 1, 2, 2, 3, 3)


def made(table: dict[str, Any], order: tuple[int, ...], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    """The entries that are others after a change of four layers."""
    config = {"num_hidden_layers": 4, **table}
    counted = {**config, "num_hidden_layers": len(order)}
    found, _ = taps_followed(counted, Reader(config, [Stack("layer", "", 0, 4, order)], NAMES), keep)
    return {name: value for name, value in found.items() if value != counted[name]}


@pytest.mark.parametrize(
    ("name", "before", "order", "after"),
    [
        ("out_indices", [1, 4], TWICE, [2, 8]),
        ("out_indices", [2, 4], (0, 1, 2), [2, 3]),
        ("out_indices", [0, 1, 2], (0, 1, 2, 3, 0, 1), None),  # copies behind all change nothing before them
        ("out_indices", [3, 4], (0, 1, 2, 3, 0, 1), [3, 6]),  # the last state stays the last
        ("out_indices", [-1], TWICE, None),
        ("out_indices", [5], TWICE, None),  # of something else
        ("backbone_out_indices", [0, 3], TWICE, [1, 7]),
        ("deepstack_visual_indexes", [1, 2], TWICE, [3, 5]),
        (
            "deepstack_visual_indexes",
            [1, 3],
            (0, 2, 3),
            [0, 2],
        ),  # without layer 1, its state is that before it
        ("vision_feature_layer", 2, TWICE, 4),
        ("vision_feature_layer", [1, -2], TWICE, [2, -2]),
        ("intermediate_layers_indices", [1, 2], TWICE, [2, 4]),
        ("unmasked_channel_indices", [1, 2], TWICE, None),
    ],
)
def test_numbers(name: str, before: Any, order: tuple[int, ...], after: Any) -> None:
    assert made({name: before}, order) == ({} if after is None else {name: after})


def test_names_follow_with_their_numbers() -> None:
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    table = {"stage_names": names, "out_features": ["stage2", "stage4"], "out_indices": [2, 4]}
    assert made(table, (0, 1, 2)) == {
        "stage_names": names[:4], "out_features": ["stage2", "stage3"], "out_indices": [2, 3],
    }  # fmt: skip
    assert made({"out_features": ["stage4"]}, TWICE) == {"out_features": ["stage8"]}, "names are left out"
    towers = {"stage_names": ["stem", "stage1", "stage2"], "out_features": ["stage2"]}
    assert made(towers, TWICE) == {}, "of a network of two stages"


def test_a_tower_has_entries_around_its_configuration() -> None:
    config = {
        "vision_feature_layer": [1, 2],
        "vision_config": {"depth": 4, "deepstack_visual_indexes": [0]},
        "text_config": {"num_hidden_layers": 4},
    }
    names = ["vision_tower.blocks.0.weight", "text_model.layers.0.weight"]
    tower, text = Stack("vision_tower.blocks", "", 0, 4, TWICE), Stack("text_model.layers", "", 0, 4, TWICE)
    same = Stack("text_model.layers", "", 0, 4, (0, 1, 2, 3))
    deeper = {**config, "vision_config": {"depth": 8, "deepstack_visual_indexes": [0]}}
    found, _ = taps_followed(deeper, Reader(config, [tower, same], names))
    assert found["vision_feature_layer"] == [2, 4]
    assert found["vision_config"]["deepstack_visual_indexes"] == [1]
    still = Stack("vision_tower.blocks", "", 0, 4, (0, 1, 2, 3))
    assert taps_followed(config, Reader(config, [still, text], names))[0] == config


def test_two_features_that_would_be_one_are_refused() -> None:
    with pytest.raises(
        PlanError, match=r"json's out_indices = \[3, 4\] takes features between layers of layer"
    ):
        made({"out_indices": [3, 4]}, (0, 1, 2))
    assert made({"out_indices": [3, 4]}, (0, 1, 2), keep=("out_indices",)) == {}
    with pytest.raises(PlanError, match="of which too few are left"):
        made({"deepstack_visual_indexes": [0]}, (1, 2, 3))
