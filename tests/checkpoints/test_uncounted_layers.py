"""DeepSeek-V3's form: dense layers first, then experts, and one layer more than the configuration counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import elastic_ir as eir
from elastic_ir.checkpoints.record import read_record
from elastic_ir.errors import PlanError, SourceError
from tests.checkpoints.folders import State, config, llama, write


def deepseek(layers: int, dense: int, extra: int = 1) -> State:
    state = {
        name: array
        for name, array in llama(layers + extra).items()
        if "layers" not in name or "mlp" not in name or int(name.split(".")[2]) < dense
    }
    rng = np.random.default_rng(0)
    for layer in range(dense, layers + extra):
        head = f"model.layers.{layer}"
        for expert in ("experts.0", "experts.1", "shared_experts"):
            for name in ("gate", "up", "down"):
                state[f"{head}.mlp.{expert}.{name}_proj.weight"] = rng.standard_normal((8, 8)).astype(
                    np.float16
                )
        state[f"{head}.mlp.gate.weight"] = rng.standard_normal((2, 8)).astype(np.float16)
    for layer in range(layers, layers + extra):
        for name in ("enorm", "hnorm", "shared_head.norm"):
            state[f"model.layers.{layer}.{name}.weight"] = rng.standard_normal(8).astype(np.float16)
        state[f"model.layers.{layer}.eh_proj.weight"] = rng.standard_normal((8, 16)).astype(np.float16)
        state[f"model.layers.{layer}.embed_tokens.weight"] = state["model.embed_tokens.weight"]
    return state


def folder(path: Path, layers: int = 6, dense: int = 2, extra: int = 1, **more: object) -> Path:
    told = config(layers, first_k_dense_replace=dense, num_nextn_predict_layers=extra, **more)
    return write(path, deepseek(layers, dense, extra), told, shards=3)


@pytest.mark.parametrize("dense", [1, 2, 3])
@pytest.mark.parametrize(("plan", "order"), [("0-5,4,5", [0, 1, 2, 3, 4, 5, 4, 5]), ("0-4", [0, 1, 2, 3, 4])])
def test_the_extra_layer_stays_last(tmp_path: Path, dense: int, plan: str, order: list[int]) -> None:
    source = folder(
        tmp_path / "source", dense=dense, modules_to_not_convert=["model.layers.6.eh_proj", "lm_head"]
    )
    graph = eir.load(source, headers_only=True)
    assert [len(stage) for stage in graph.stages] == [6]
    assert graph.structure.note.startswith(
        "model.layers.6 is not counted by config.json: it stays the last layer"
    )
    eir.save(eir.stretch(graph, plan=plan), tmp_path / "out", check=False)
    for against in ([], [source]):
        found = eir.verify_checkpoint(tmp_path / "out", against, check=False)
        assert found.sources == (source,) and not found.differences
    state, made = deepseek(6, dense), load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: array for name, array in state.items() if "layers" not in name}
    for at, layer in enumerate([*order, 6]):
        head = f"model.layers.{layer}."
        expected |= {f"model.layers.{at}.{n[len(head) :]}": a for n, a in state.items() if n.startswith(head)}
    assert {n: a.tobytes() for n, a in made.items()} == {n: a.tobytes() for n, a in expected.items()}
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (told["num_hidden_layers"], told["num_nextn_predict_layers"]) == (len(order), 1)
    assert told["first_k_dense_replace"] == dense
    assert told["modules_to_not_convert"] == [f"model.layers.{len(order)}.eh_proj", "lm_head"]
    (step,) = read_record(tmp_path / "out")
    assert step.origin(f"model.layers.{len(order)}.enorm.weight").name == "model.layers.6.enorm.weight"
    again = eir.load(tmp_path / "out", headers_only=True)  # and is read again in the same way
    assert [len(stage) for stage in again.stages] == [len(order)]


def test_it_cannot_be_cloned_and_kinds_keep_their_places(tmp_path: Path) -> None:
    graph = eir.load(folder(tmp_path / "source"), headers_only=True)
    with pytest.raises(PlanError, match="has no block 6: its blocks are 0 to 5"):
        eir.stretch(graph, plan="0-5,6")
    with pytest.raises(PlanError, match=r"layer 6 of the target, a copy of layer 0, holds other weights"):
        eir.save(eir.stretch(graph, to_units=7), tmp_path / "out", check=False)


@pytest.mark.slow
def test_a_layer_too_many_of_the_usual_kind_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "source", llama(7), config(6))
    with pytest.raises(SourceError, match="states num_hidden_layers = 6, but the weights hold 7 layers"):
        eir.load(source, headers_only=True)
