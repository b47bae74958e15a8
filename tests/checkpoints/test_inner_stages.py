"""Swin2SR's form: equal groups of equal blocks, of which the configuration has the depth of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import elastic_ir as eir
from tests.checkpoints.folders import State, write


def groups(depths: list[int], width: int = 8) -> State:
    rng = np.random.default_rng(0)
    state: State = {"first.weight": rng.standard_normal((width, 3)).astype(np.float32)}
    for group, depth in enumerate(depths):
        head = f"encoder.stages.{group}"
        for layer in range(depth):
            for name in ("query", "key", "value", "output"):
                state[f"{head}.layers.{layer}.{name}.weight"] = rng.standard_normal((width, width)).astype(
                    np.float32
                )
        state[f"{head}.conv.weight"] = rng.standard_normal((width, width)).astype(np.float32)
    return state


def folder(path: Path, blocks: list[int], **more: Any) -> Path:
    return write(path, groups(blocks), {"model_type": "none_such", **more})


@pytest.mark.slow
def test_lists_inside_of_groups_are_stages_where_depths_count_them(tmp_path: Path) -> None:
    graph = eir.load(
        folder(tmp_path / "source", [3, 3, 3], depths=[3, 3, 3], num_layers=3), headers_only=True
    )
    assert [(stage.name, len(stage)) for stage in graph.stages] == [
        (f"encoder.stages.{group}.layers", 3) for group in range(3)
    ]
    deeper = eir.stretch(graph, to_stages={"encoder.stages.1.layers": 5})
    eir.save(deeper, tmp_path / "out", check=False)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["depths"] == [3, 5, 3]
    again = eir.load(tmp_path / "out", headers_only=True)
    assert [len(stage) for stage in again.stages] == [3, 5, 3]
    assert [stage.name for stage in graph.at("encoder.stages").stages] == ["encoder.stages"]


@pytest.mark.parametrize(
    "more", [{}, {"depths": [2, 3, 3]}, {"depths": [3, 3]}, {"num_blocks": [3, 3, 3]}, {"depths": "333"}]
)
def test_groups_are_the_stage_where_nothing_counts_what_they_hold(
    more: dict[str, Any], tmp_path: Path
) -> None:
    graph = eir.load(folder(tmp_path / "source", [3, 3, 3], **more), headers_only=True)
    assert [(stage.name, len(stage)) for stage in graph.stages] == [("encoder.stages", 3)]
