"""Texts, patterns, tables and pairs that speak of layers by number: followed, or refused with file and entry."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import elastic_ir as eir
from elastic_ir.checkpoints.config.depth import Stack, beside_reindexed
from elastic_ir.checkpoints.config.entries import followed
from elastic_ir.checkpoints.write import plan_checkpoint
from elastic_ir.errors import PlanError
from tests.checkpoints.folders import config, llama, run, write

#: Layer 0 goes, layer 2 comes twice.
PLAN = (1, 2, 2, 3)
STACK = Stack("model.layers", "", 0, 4, PLAN)
ENCODER, DECODER = (
    Stack("model.encoder.layers", "", 0, 4, (0, 1)),
    Stack("model.decoder.layers", "", 0, 4, (0, 1, 2, 3)),
)
NAMES = [
    f"model.layers.{i}.{part}.weight" for i in range(4) for part in ("mlp.up", "mlp.down", "attn.q", "attn.o")
]
BOTH = [name.replace("model", f"model.{side}") for name in NAMES for side in ("encoder", "decoder")]


def made(
    document: Any, *stacks: Stack, file: str = "config.json", names: list[str] = NAMES, keep: Any = ()
) -> Any:
    return followed(document, file, stacks or (STACK,), names, keep).document


# -- what is followed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # paths, whole or the last parts of them
        (["model.layers.0.mlp", "lm_head"], ["lm_head"]),
        (["model.layers.2.mlp"], ["model.layers.1.mlp", "model.layers.2.mlp"]),
        (["layers.1.mlp.up"], ["layers.0.mlp.up"]),
        ({"model.layers.2.mlp": {"bits": 8}}, {"model.layers.1.mlp": {"bits": 8}, "model.layers.2.mlp": {"bits": 8}}),
        ({"skip": "model.layers.1"}, {"skip": "model.layers.0"}),
        # not these layers
        (["vision.layers.2", "x.model.layers.2", "layers", "Llama-3.1", "xmodel.layers.2", "model.layers.9"], None),
        # patterns that mean the same before and after, in the ways of the libraries
        (["re:.*mlp.*", "*.attn.q*", r"re:model\.layers\.\d+\.mlp\.(up|down)$", "model.layers.*.attn"], None),
        ({"-:.*attn.*": {}, "+:.*\\.mlp\\..*": {"bits": 4}, r"layers\.[0-3]\.mlp": 1}, None),
        # patterns that write a path out
        (["re:.*layers\\.0\\..*"], []),
        (["re:.*layers\\.2\\..*"], ["re:.*layers\\.1\\..*", "re:.*layers\\.2\\..*"]),
        ({"-:model.layers.2.*": {}}, {"-:model.layers.1.*": {}, "-:model.layers.2.*": {}}),
        ({r"^model\.layers\.1\.mlp\.(up|down)$": 1}, {r"^model\.layers\.0\.mlp\.(up|down)$": 1}),
        # tables of layers
        ({"layer_bits": {"0": 2, "1": 3, "2": 4, "3": 5}}, {"layer_bits": {"0": 3, "1": 4, "2": 4, "3": 5}}),
        ({"layer_bits": {"1": 2, "2": 4}}, {"layer_bits": {"0": 2, "1": 4, "2": 4}}),
        ({"pruned_heads": {"0": [1], "2": [3]}}, {"pruned_heads": {"1": [3], "2": [3]}}),
        ({"bits": {f"layer_{i}": i for i in range(4)}}, {"bits": {f"layer_{i}": at for i, at in enumerate(PLAN)}}),
        ({"layer_bits": {str(i): i for i in range(1, 5)}}, {"layer_bits": {"1": 2, "2": 3, "3": 3, "4": 4}}),
        # tables of other things
        ({"id2label": {"0": "a", "1": "b", "2": "c", "3": "d"}, "languages": {"0": 1, "1": 2, "2": 3, "3": 4}}, None),
        ({"a": {"0": 1}, "b": {"7": 1, "9": 2}, "c": {"x0": 1, "x1": 2, "x2": 3, "x3": 4}}, None),
        # pairs
        ({"alignment_heads": [[0, 1], [2, 5], [3, 0]]}, {"alignment_heads": [[1, 5], [2, 5], [3, 0]]}),
        ({"sizes": [[1, 2], [3, 4]]}, None),
        # nested
        ({"a": [{"b": {"modules": ["model.layers.1.x"]}}]}, {"a": [{"b": {"modules": ["model.layers.0.x"]}}]}),
    ],
)  # fmt: skip
def test_followed(before: Any, after: Any) -> None:
    document = before if isinstance(before, dict) else {"ignore": before}
    wanted = document if after is None else after if isinstance(before, dict) else {"ignore": after}
    found = made(document)
    assert found == wanted
    assert json.dumps(found) == json.dumps(wanted)  # the order too
    assert made(document, Stack("model.layers", "", 0, 4, (0, 1, 2, 3))) is document


def test_pairs_are_of_what_generates() -> None:
    heads = {"alignment_heads": [[0, 1], [1, 2]]}
    shorter = Stack("model.decoder.layers", "", 0, 4, (1, 2))
    assert made(heads, ENCODER, DECODER, file="generation_config.json", names=BOTH) == heads
    found = made(heads, ENCODER, shorter, file="generation_config.json", names=BOTH)
    assert found == {"alignment_heads": [[0, 2]]}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sets(st.integers(0, 3)))
def test_each_layer_has_what_its_source_has(order: list[int], chosen: set[int]) -> None:
    """Whatever the form, a place is named where its source is."""
    stack = Stack("model.layers", "", 0, 4, tuple(order))
    wanted = {at for at, source in enumerate(order) if source in chosen}
    document = {
        "paths": [f"model.layers.{i}.mlp.up" for i in chosen],
        "patterns": [rf"re:.*layers\.{i}\.attn\..*" for i in chosen],
        "layer_bits": {str(i): i for i in chosen},
    }
    found = made(document, stack)
    for path in found["paths"], found["patterns"]:
        assert {int(re.findall(r"\d+", text)[0]) for text in path} == wanted
    assert {int(key): value for key, value in found["layer_bits"].items()} == {at: order[at] for at in wanted}


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"ignore": [r"re:.*layers\.[01]\..*"]},
            r"'s q\.ignore chooses layers by a pattern of their numbers",
        ),
        ({"ignore": [r"re:.*\.0\.mlp"]}, "chooses layers by a pattern of their numbers"),
        ({"ignore": ["model.layers.0*"]}, "chooses layers by a pattern of their numbers"),
        ({"dynamic": {r"+:.*\.(2|3)\..*": {}}}, "q.dynamic chooses layers by a pattern"),
        ({"ignore": [r"re:(.*\.)+2\.mlp"]}, "repeats a group"),
        ({"skip": "model.layers.2"}, "q.skip names one layer .*, which has 2 places in the result"),
        ({"skip": "model.layers.0"}, "names one layer .*, which has 0 places in the result"),
        (
            {"odd": {"0": 1, "1": 1, "2": 1, "3": 1}},
            "q.odd is a table of 4 numbers, which may be layers or not",
        ),
        ({"alignment_heads": [[0, 3]]}, "names heads of layers of which none is left"),
    ],
)
def test_refused(entry: dict[str, Any], said: str) -> None:
    document = {"q": entry}
    with pytest.raises(PlanError, match=said) as failed:
        made(document, file="quantize_config.json")
    (name,) = entry
    assert str(failed.value).startswith(f"quantize_config.json's q.{name} ")
    assert f"--keep-beside quantize_config.json.q.{name} (keep_beside=)" in str(failed.value)
    for keep in (f"q.{name}", f"quantize_config.json.q.{name}", "quantize_config.json"):
        found = followed(document, "quantize_config.json", [STACK], NAMES, [keep])
        assert found.document == document
        assert len(found.kept) == 1
    with pytest.raises(PlanError):
        made(document, keep=["ignored"])


def test_what_several_stacks_may_mean() -> None:
    for document in ({"ignore": ["layers.1.mlp"]}, {"layer_bits": {"0": 1, "1": 2, "2": 3, "3": 4}}):
        changed = Stack("model.decoder.layers", "", 0, 4, (2, 3))
        with pytest.raises(PlanError, match="several stacks"):
            made(document, ENCODER, changed, names=BOTH)
    told = {"ignore": ["encoder.layers.1.mlp"], "decoder_layer_bits": {"0": 1, "1": 2, "2": 3, "3": 4}}
    assert made(told, ENCODER, DECODER, names=BOTH) == told


def test_a_pattern_that_takes_for_ever_is_refused_soon() -> None:
    names = [f"model.layers.{i}.{'a' * 80}.{part}.weight" for i in range(4) for part in "xyz"]
    begun = time.monotonic()
    for pattern, said in (
        (r"re:(a|a)*\.5$", "repeats a group"),
        (r"re:((a+)+)+5", "repeats a group"),
        (".*" * 12 + "layers.[01].*x", "by a pattern of their numbers"),  # no more than one .*
        (".*a" * 12 + "layers.[01].b", "repeats more than is tried"),
        ("re:" + "a?" * 40 + "a" * 40 + "0", "repeats more than is tried"),
        ("re:" + "(a|a)" * 40 + "layers.0.b", "repeats more than is tried"),
    ):
        with pytest.raises(PlanError, match=said):
            made({"ignore": [pattern]}, names=names)
    assert time.monotonic() - begun < 10


# -- files beside the weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "after"),
    [
        ({"dim": 8, "n_layers": 4, "n_heads": 4}, {"dim": 8, "n_layers": 4 + 1, "n_heads": 4}),
        ({"r": 4, "layers_to_transform": [0, 2]}, {"r": 4, "layers_to_transform": [0, 2, 4]}),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, None),
        ({"num_beams": 4, "eos_token_id": [0, 1, 2, 3]}, None),
    ],
)
def test_counts_and_lists_of_other_files(document: dict[str, Any], after: Any) -> None:
    stack = Stack("model.layers", "", 0, 4, (0, 1, 2, 3, 2))
    assert beside_reindexed(document, "params.json", [stack], NAMES) == (document if after is None else after)
    assert beside_reindexed(document, "params.json", [stack], NAMES, ["params.json"]) == document


@pytest.mark.parametrize(
    ("document", "entry", "said"),
    [
        ({"layers_to_transform": 2}, "layers_to_transform", "chooses one layer, which has several places"),
        ({"layers_to_transform": 0}, "layers_to_transform", "chooses one layer, which has several places"),
    ],
)
def test_one_layer_that_is_not_one(document: dict[str, Any], entry: str, said: str) -> None:
    with pytest.raises(PlanError, match=f"adapter_config.json's {entry} {said}"):
        beside_reindexed(document, "adapter_config.json", [STACK], NAMES)
    kept = beside_reindexed(document, "adapter_config.json", [STACK], NAMES, [f"adapter_config.json.{entry}"])
    assert kept == document


def test_a_count_of_two_stacks() -> None:
    with pytest.raises(PlanError, match=r"params.json's n_layers applies to several stacks"):
        beside_reindexed(
            {"n_layers": 4}, "params.json", [ENCODER, Stack("model.x.layers", "", 0, 4, (0,))], BOTH
        )


FILES: dict[str, Any] = {
    "generation_config.json": {"alignment_heads": [[0, 1], [2, 0]], "max_length": 4},
    "quantize_config.json": {"bits": 4, "dynamic": {r"-:.*layers\.2\..*": {}}},
    "hf_quant_config.json": {"quantization": {"exclude_modules": ["lm_head", "model.layers.3.mlp*"]}},
    "params.json": {"n_layers": 4},
    "adapter_config.json": {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"]},
    "tokenizer_config.json": {"added": {"0": "model.layers.0", "1": "b", "2": "c", "3": "d"}},
    "tokenizer.json": {"vocab": {"layers.0": 0}},
    "notes.json": ["model", 4],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write(
        tmp_path / "source", llama(), config(4, quantization_config={"ignore": [r"re:.*layers\.2\..*"]})
    )
    for name, document in FILES.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "broken.json").write_text("{")
    return folder


def test_a_folder(source: Path, tmp_path: Path) -> None:
    done = run("stretch", source, "--plan", "0-3,2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    told = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.json")}
    found = {name: json.loads(text) for name, text in told.items() if name in FILES}
    assert found == {
        **FILES,
        "generation_config.json": {"alignment_heads": [[0, 1], [2, 0], [4, 0]], "max_length": 4},
        "quantize_config.json": {"bits": 4, "dynamic": {r"-:.*layers\.2\..*": {}, r"-:.*layers\.4\..*": {}}},
        "params.json": {"n_layers": 5},
    }
    assert json.loads(told["config.json"])["quantization_config"]["ignore"] == [
        r"re:.*layers\.2\..*",
        r"re:.*layers\.4\..*",
    ]
    for name in (
        "tokenizer.json",
        "notes.json",
        "tokenizer_config.json",
    ):  # what says nothing of layers, byte for byte
        assert told[name] == json.dumps(FILES[name])
    assert told["broken.json"] == "{"


def test_a_refusal_names_file_and_entry_and_the_summary_what_is_kept(source: Path, tmp_path: Path) -> None:
    pattern: dict[str, Any] = {"dynamic": {r"-:.*layers\.(0|2)\..*": {}}}
    (source / "quantize_config.json").write_text(json.dumps(pattern))
    done = run("squeeze", source, "--drop", 1, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "error: quantize_config.json's dynamic chooses layers by a pattern of their numbers" in done.output
    assert not (tmp_path / "out").exists()
    done = run(
        "squeeze",
        source,
        "--drop",
        1,
        "-o",
        tmp_path / "out",
        "--keep-beside",
        "quantize_config.json.dynamic",
    )
    assert done.exit_code == 0, done.output
    assert "kept:       quantize_config.json.dynamic, as --keep-beside states" in done.output
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == pattern


def test_nothing_changed_nothing_followed(source: Path) -> None:
    plan = plan_checkpoint(eir.load(source, headers_only=True))
    assert {file.name for file in plan.side} == {*FILES, "broken.json"}


def test_names_of_a_towers_stages_are_no_layers() -> None:
    """timm calls the stages of a Swin ``layers.0``, as the end of a layer's path in two stacks."""
    table = {
        "stage_names": ["layers.0", "layers.1", "norm"],
        "out_features": ["layers.1"],
        "skip": ["norm", "x"],
    }
    config = {"backbone_config": table, "other": ["layers.3"]}
    stacks = (ENCODER, DECODER)

    def of(document: Any) -> Any:
        return followed(document, "config.json", stacks, BOTH, is_config=True).document

    assert of({"backbone_config": table}) == {"backbone_config": table}
    with pytest.raises(
        PlanError, match="other names a layer by a part of its path, which several stacks have"
    ):
        of(config)
    with pytest.raises(PlanError, match="stage_names names a layer by a part of its path"):
        made({"stage_names": ["layers.3"]}, *stacks, file="adapter_config.json", names=BOTH)
    whole = {"stage_modules": ["model.encoder.layers.1", "model.encoder.layers.3"]}
    assert of(whole) == {"stage_modules": ["model.encoder.layers.1"]}


def test_keys_padded_with_zeros_stay_so() -> None:
    """Gemma 4 writes ``05`` beside ``11``."""
    stack = Stack("model.layers", "", 0, 12, (*range(12), 5, 11))
    config = {"per_layer_config": {"05": {"head_dim": 512}, "11": {"head_dim": 256}}}
    made = followed(config, "config.json", [stack], ["model.layers.0.weight"], is_config=True).document
    assert made == {
        "per_layer_config": {
            "05": {"head_dim": 512}, "11": {"head_dim": 256}, "12": {"head_dim": 512}, "13": {"head_dim": 256},
        }
    }  # fmt: skip
