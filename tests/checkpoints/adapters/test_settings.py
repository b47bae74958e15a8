"""An adapter's settings: each entry in the first form that means of the new modules what it meant of the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import elastic_ir as eir
from elastic_ir.errors import PlanError
from tests.checkpoints.adapters.test_follow import adapter, changed, followed, layer_of, lora

ALL = range(4)
Q, DOWN = "self_attn.q_proj", "mlp.down_proj"
#: Settings as they are, the layers that have tensors, and the settings for the plan 1,0,1,3.
CASES: dict[str, tuple[dict[str, Any], Sequence[int], dict[str, Any]]] = {
    "ends": ({}, ALL, {}),
    "all": ({"target_modules": "all-linear"}, ALL, {}),
    "list of layers": ({"layers_to_transform": [1, 2]}, [1, 2], {"layers_to_transform": [0, 2]}),
    "one layer": ({"layers_to_transform": 1, "layers_pattern": "layers"}, [1], {"layers_to_transform": [0, 2]}),
    "unsorted": ({"layers_to_transform": [3, 0]}, [0, 3], {"layers_to_transform": [1, 3]}),
    "names": (
        {"target_modules": ["model.layers.1.self_attn.q_proj", "layers.2.mlp.down_proj", "layers.3.mlp.down_proj"]},
        [],
        {
            "target_modules": [
                "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj", "layers.3.mlp.down_proj"
            ]
        },
    ),
    "expression without numbers": (
        {"target_modules": r".*\.(self_attn|mlp)\.(q_proj|down_proj)"}, ALL, {},
    ),
    "expression of many": (
        {"target_modules": r"(?:.*?(?:language|text|model).*?(?:self_attn|mlp|ffn).*?(?:q_proj|fc1|down_proj).*?)"},
        ALL,
        {},
    ),
    "expression with numbers": (
        {"target_modules": r"model\.layers\.[12]\..*(q_proj|down_proj)"},
        [1, 2],
        {"target_modules": [f"model.layers.{n}.{module}" for n in (0, 2) for module in (DOWN, Q)]},
    ),
    "excluded": (
        {"exclude_modules": ["layers.1.self_attn.q_proj"]},
        [],
        {"exclude_modules": ["layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj"]},
    ),
    "ranks": (
        {
            "rank_pattern": {"model.layers.1.self_attn.q_proj": 2, "down_proj": 2},
            "alpha_pattern": {"layers.3.mlp.down_proj": 8},
        },
        ALL,
        {
            "rank_pattern": {
                "model.layers.0.self_attn.q_proj": 2, "model.layers.2.self_attn.q_proj": 2, "down_proj": 2
            },
        },
    ),
    "ranks by an expression": (
        {"alpha_pattern": {r"layers\.[12]\..*q_proj": 16}},
        ALL,
        {"alpha_pattern": {rf"model\.layers\.{n}\.self_attn\.q_proj": 16 for n in (0, 2)}},
    ),
    "AdaLoRA": (
        {"rank_pattern": {f"model.layers.{n}.{Q}.lora_E": [True, n > 1] for n in ALL}},
        ALL,
        {"rank_pattern": {f"model.layers.{at}.{Q}.lora_E": [True, n > 1] for at, n in enumerate((1, 0, 1, 3))}},
    ),
    "feed-forward": (
        {"feedforward_modules": r".*layers\.(1|3)\.mlp\.down_proj"},
        ALL,
        {"feedforward_modules": [f"model.layers.{n}.mlp.down_proj" for n in (0, 2, 3)]},
    ),
    "tokens": ({"trainable_token_indices": {"embed_tokens": [1, 2, 3, 0]}, "modules_to_save": ["lm_head"]}, ALL, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tmp_path_factory.mktemp("base"), "1,0,1,3")


@pytest.mark.parametrize("name", CASES)
def test_an_entry(name: str, base: Path, tmp_path: Path) -> None:
    given, layers, after = CASES[name]
    state = lora(layers or ALL)
    if name in ("names", "excluded"):
        kept = {
            "names": [(1, Q), (2, DOWN), (3, DOWN)],
            "excluded": [(n, m) for n in ALL for m in (Q, DOWN) if (n, m) != (1, Q)],
        }
        state = {key: array for n, m in kept[name] for key, array in lora([n], [m]).items()}
    folder = adapter(tmp_path / "a", state, **given)
    _, before = followed(folder)
    made, settings = followed(eir.follow(folder, base, tmp_path / "out"))
    wanted = {**before, **after, "base_model_name_or_path": str(base)}
    if "target_modules" in after and name == "expression with numbers":
        wanted["layers_to_transform"] = None
    assert settings == wanted
    assert all(layer_of(made, at).keys() == layer_of(state, n).keys() for at, n in enumerate((1, 0, 1, 3)))


def test_an_expression_that_is_not_tried(base: Path, tmp_path: Path) -> None:
    """Of modules with tensors the names are known; of what ranks there are only the expression is."""
    slow = r"(a|a)*.*layers\.1\..*"
    folder = adapter(tmp_path / "a", lora(ALL), target_modules=slow)
    _, settings = followed(eir.follow(folder, base, tmp_path / "out"))
    assert settings["target_modules"] == [f"model.layers.{n}.{module}" for n in ALL for module in (DOWN, Q)]
    folder = adapter(tmp_path / "b", lora(ALL), rank_pattern={slow: 4})
    with pytest.raises(
        PlanError, match=r"adapter_config.json's rank_pattern repeats a group, which is not tried"
    ):
        eir.follow(folder, base, tmp_path / "no")
