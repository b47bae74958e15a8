"""config.json of another depth: which entries follow, which are kept, and what cannot be said."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_ir.checkpoints.config.depth import Stack, check_depth, reindexed
from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.errors import PlanError, SourceError

LAYERS = Stack("model.layers", "", 0, 4, (0, 1, 2, 3, 1, 2))
ENCODER = Stack("model.encoder.layers", "", 0, 3, (0, 1, 2, 1))
DECODER = Stack("model.decoder.layers", "", 0, 3, (0, 1))
NAMES = ["model.layers.0.weight", "lm_head.weight"]


def changed(config: dict[str, Any], *stacks: Stack, names: list[str] = NAMES) -> dict[str, Any]:
    """The entries that are another after the change."""
    made, _ = reindexed(config, stacks, names)
    made = followed(made, "config.json", stacks, names).document
    assert list(made) == list(config)
    return {key: value for key, value in made.items() if value != config[key]}


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_blocks", "n_block"]
)
def test_counts(name: str) -> None:
    assert changed({name: 4, "num_attention_heads": 4, "num_experts": 4}, LAYERS) == {name: 6}


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("layer_types", ["a", "b", "c", "d"], ["a", "b", "c", "d", "b", "c"]),
        ("block_configs", [{"n": i} for i in range(4)], [{"n": i} for i in (0, 1, 2, 3, 1, 2)]),
        ("mlp_only_layers", [1, 3], [1, 3, 4]),
        ("full_attn_layer_idxs", [0, 2], [0, 2, 5]),
        ("attention_types", [[["a", "b"], 2]], [[["a", "b", "a", "b", "b", "a"], 1]]),
        ("attention_types", [[["a"], 4]], [[["a"], 6]]),
    ],
)
def test_lists_of_layers(name: str, before: list[Any], after: list[Any]) -> None:
    assert changed({"num_hidden_layers": 4, name: before}, LAYERS) == {"num_hidden_layers": 6, name: after}


def test_lists_that_are_none_of_layers() -> None:
    config = {
        "num_hidden_layers": 4, "eos_token_id": [1, 2, 3, 4], "out_features": ["a", "b", "c", "d"],
        "rope_scaling": {"short_factor": [1.0, 2.0, 3.0, 4.0]}, "architectures": ["A"],
        "stage_num_blocks": [1, 1, 3, 1],
    }  # fmt: skip
    assert changed(config, LAYERS) == {"num_hidden_layers": 6}


def test_a_long_list_needs_no_name() -> None:
    stack = Stack("model.layers", "", 0, 12, (*range(12), 5))
    config = {
        "num_hidden_layers": 12,
        "intermediate_size": list(range(100, 112)),
        "eos_token_id": list(range(12)),
    }
    assert changed(config, stack) == {"num_hidden_layers": 13, "intermediate_size": [*range(100, 112), 105]}


def test_texts_that_hold_a_path() -> None:
    quantized = {"ignore": ["lm_head", "model.layers.1.mlp", "model.layers.11.mlp", "other.model.layers.1"]}
    config = {"num_hidden_layers": 4, "quantization_config": quantized, "map": {"model.layers.2": 1, "x": 2}}
    assert changed(config, LAYERS) == {
        "num_hidden_layers": 6,
        "quantization_config": {
            "ignore": [
                "lm_head", "model.layers.1.mlp", "model.layers.4.mlp", "model.layers.11.mlp", "other.model.layers.1",
            ]
        },
        "map": {"model.layers.2": 1, "model.layers.5": 1, "x": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"encoder_layers": 3, "decoder_layers": 3}, {"encoder_layers": 4, "decoder_layers": 2}),
        ({"num_layers": 3, "num_decoder_layers": 3}, {"num_layers": 4, "num_decoder_layers": 2}),
        (
            {"encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3},
            {"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4},
        ),
    ],
)
def test_encoder_and_decoder_are_told_apart(config: dict[str, int], expected: dict[str, int]) -> None:
    assert changed(config, ENCODER, DECODER) == expected


def test_one_count_for_two_depths() -> None:
    with pytest.raises(PlanError) as error:
        reindexed({"num_layers": 3}, [ENCODER, DECODER], NAMES)
    assert str(error.value) == (
        "config.json's num_layers applies to both model.encoder.layers and model.decoder.layers, which would become "
        "different; change them alike, or give config.json an entry for each"
    )


def test_towers_have_tables_of_their_own() -> None:
    language = Stack("language_model.model.layers", "", 0, 4, (0, 1, 2, 3, 3))
    names = ["vision_tower.layers.0.weight", "language_model.model.layers.0.weight"]
    config = {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}}
    assert changed(config, language, names=names) == {"text_config": {"num_hidden_layers": 5}}
    vision = Stack("vision_tower.layers", "", 0, 4, (0, 1, 2))
    assert changed(config, language, vision, names=names) == {
        "text_config": {"num_hidden_layers": 5}, "vision_config": {"num_hidden_layers": 3},
    }  # fmt: skip


def test_depths_of_all_stages() -> None:
    stages = [Stack(f"layers.{i}.blocks", "", 0, 2 + 2 * i, (*range(2 + 2 * i), 1)) for i in range(2)]
    config = {"depths": [2, 4], "num_heads": [2, 4], "num_layers": 2}
    assert changed(config, *stages) == {"depths": [3, 5]}


def test_what_is_kept_is_told() -> None:
    config = {
        "num_hidden_layers": 4,
        "first_k_dense_replace": 1,
        "sliding_window_pattern": 2,
        "hidden_size": 8,
    }
    assert reindexed(config, [LAYERS], NAMES)[1] == [
        "first_k_dense_replace = 1",
        "sliding_window_pattern = 2",
    ]
    untouched = Stack("model.layers", "", 0, 4, (0, 1, 2, 3))
    assert reindexed(config, [untouched], NAMES) == (config, [])


def test_an_order_alone_needs_no_count() -> None:
    moved = Stack("model.layers", "", 0, 2, (1, 0))
    assert changed({"layer_types": ["a", "b"]}, moved) == {"layer_types": ["b", "a"]}


def test_counts_of_another_model() -> None:
    check_depth({"num_hidden_layers": 4}, [LAYERS], NAMES, "config.json")
    check_depth({"hidden_size": 4}, [LAYERS], NAMES, "config.json")
    front = Stack("feature_extractor.convs", "", 0, 7, tuple(range(7)))
    check_depth({"num_hidden_layers": 4}, [front, LAYERS], NAMES, "config.json")  # speaks of the other stack
    with pytest.raises(SourceError, match="states num_hidden_layers = 6, but the weights hold 4 layers"):
        check_depth({"num_hidden_layers": 6}, [LAYERS], NAMES, "config.json")


@pytest.mark.parametrize(
    ("kinds", "order", "fits"),
    [
        ([0, 1, 1, 1], (0, 1, 2, 3, 1, 2), True),  # the first is another
        ([0, 1, 1, 1], (0, 1, 2, 3, 0), False),
        ([0, 1, 1, 1], (1, 2, 3), False),
        ([0, 1, 0, 1], (0, 1, 2, 3, 0, 1), True),  # every second is
        ([0, 1, 0, 1], (0, 1, 2, 3, 1), False),
        ([0, 0, 0, 0], (3, 0), True),
    ],
)
def test_kinds_that_numbers_tell(kinds: list[int], order: tuple[int, ...], fits: bool) -> None:
    stack = Stack("model.layers", "", 0, 4, order)
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 1}
    if fits:
        assert reindexed(config, [stack], NAMES, {"model.layers": kinds})[0]["num_hidden_layers"] == len(
            order
        )
    else:
        with pytest.raises(PlanError, match="holds other weights than the network builds there"):
            reindexed(config, [stack], NAMES, {"model.layers": kinds})
        alike = config | {"layer_types": ["a", "a", "a", "a"]}
        with pytest.raises(PlanError, match="holds other weights"):
            reindexed(alike, [stack], NAMES, {"model.layers": kinds})
        listed = config | {"layer_types": [str(kind) for kind in kinds]}  # says itself which is which
        assert reindexed(listed, [stack], NAMES, {"model.layers": kinds})[0]["num_hidden_layers"] == len(
            order
        )
