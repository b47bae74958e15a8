"""Masks beside a folder's weights: packed to bits, read when they are used, and those of others."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.checkpoints.write import plan_checkpoint
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.frontends.masks import read_masks
from elastic_ir.tensors.lazy import Mask, MaskedData
from tests.checkpoints.folders import State, config, llama, run, write

MASKS = "model.masks.safetensors"
NAME, TWIN = "model.layers.1.mlp.up_proj.weight", "model.layers.4.mlp.up_proj.weight"
ODD = "lm_head.weight"  # of 31 x 7, which is no whole number of bytes


@pytest.fixture
def masks() -> dict[str, Any]:
    dice = np.random.default_rng(0)
    return {NAME: dice.random((16, 8)) < 0.5, ODD: dice.random((31, 7)) < 0.5}


@pytest.fixture
def source(tmp_path: Path, masks: dict[str, Any]) -> Path:
    """A folder with masks as others write them: a boolean for each weight."""
    state = llama()
    state[ODD] = np.ones((31, 7), np.float16)
    folder = write(tmp_path / "source", state, config(4))
    save_file(masks, folder / MASKS)
    return folder


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    """A folder that ElasticIR has written."""
    assert run("stretch", source, "--plan", "0-3,1", "-o", tmp_path / "packed").exit_code == 0
    return tmp_path / "packed"


def test_a_bit_for_each_weight(source: Path, packed: Path, masks: dict[str, Any]) -> None:
    bits = load_file(packed / MASKS)
    assert {name: array.shape for name, array in bits.items()} == {
        f"{NAME}:mask": (16,), f"{TWIN}:mask": (16,), f"{ODD}:mask": (28,),
    }  # fmt: skip
    assert bits[f"{TWIN}:mask"].tobytes() == np.packbits(masks[NAME]).tobytes()
    with safe_open(packed / MASKS, "numpy") as file:
        index = json.loads(file.metadata()["elastic_ir.masks"])
    assert index["version"] == 1 and index["masks"][ODD] == {"shape": [31, 7], "mask": "bool"}
    plan = plan_checkpoint(eir.load(packed, headers_only=True))
    assert plan.files[MASKS] == 16 + 16 + 28  # what the disk is asked for
    weights = load_file(packed / "model.safetensors")
    assert (weights[TWIN] == np.where(masks[NAME], llama()[NAME], 0)).all()


def test_they_come_back(packed: Path, tmp_path: Path, masks: dict[str, Any]) -> None:
    graph = eir.load(packed, headers_only=True)
    found = {name: weight.mask for name, weight in graph.weights.items() if weight.mask is not None}
    wanted = {NAME: masks[NAME], TWIN: masks[NAME], ODD: masks[ODD]}
    assert {name: mask.array().tolist() for name, mask in found.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }
    assert found[ODD] == Mask.from_array(masks[ODD]) != found[NAME]
    assert found[NAME].zeros == (~masks[NAME]).sum()
    pruned, prunable = sum(int((~array).sum()) for array in wanted.values()), graph.weights.values()
    assert graph.sparsity() == pruned / sum(prod(w.shape) for w in prunable if w.prunable)
    run("squeeze", packed, "--plan", "0-3", "-o", tmp_path / "back")
    again = eir.load(tmp_path / "back", headers_only=True)
    assert again.masks()[NAME].numpy().tolist() == masks[NAME].tolist()
    # the same file, given for a folder without masks of its own
    (tmp_path / "back" / MASKS).rename(tmp_path / "m.safetensors")
    given = eir.load(tmp_path / "back", headers_only=True, masks=tmp_path / "m.safetensors")
    assert given.masks()[ODD].numpy().tolist() == masks[ODD].tolist()


def test_the_dtype_that_the_owner_gave(source: Path, tmp_path: Path, masks: dict[str, Any]) -> None:
    save_file({NAME: masks[NAME].astype(np.float32)}, source / MASKS)
    run("stretch", source, "--plan", "0-3,1", "-o", tmp_path / "out")
    assert {mask.dtype for mask in read_masks(tmp_path / "out" / MASKS).values()} == {"float32"}


def test_they_are_read_when_they_are_used(tmp_path: Path) -> None:
    """Reading takes no memory of the masks' size, and writing that of one of them."""
    layers, width = 12, 1024
    state: State = {
        f"model.layers.{i}.proj.weight": np.zeros((width, width), np.float16) for i in range(layers)
    }
    folder = write(tmp_path / "source", state, config(layers))
    save_file({name: np.zeros((width, width), bool) for name in state}, folder / MASKS)
    graph = eir.load(folder, headers_only=True)
    eir.save(graph, tmp_path / "packed", check=False)
    one = width * width // 8
    assert (tmp_path / "packed" / MASKS).stat().st_size < layers * one + 5000
    tracemalloc.start()
    graph = eir.load(tmp_path / "packed", headers_only=True)
    assert tracemalloc.get_traced_memory()[1] < one
    tracemalloc.reset_peak()
    for weight in graph.weights.values():  # the masks alone: what they mask goes by chunks of 16 MiB
        assert weight.mask is not None and weight.mask.zeros == width * width
    assert tracemalloc.get_traced_memory()[1] < 4 * one < layers * one
    tracemalloc.stop()
    before, _, after = (tmp_path / "packed" / MASKS).read_bytes().partition(b"elastic_ir.masks")
    assert before and after
    eir.save(graph, tmp_path / "again", check=False)
    assert (tmp_path / "again" / MASKS).read_bytes() == (tmp_path / "packed" / MASKS).read_bytes()


def test_masked_values_go_by_chunks() -> None:
    """The bits of a chunk may begin within a byte."""

    class Odd:
        shape, dtype = (31,), "int16"

        def chunks(self) -> Any:
            raw = np.arange(1, 32, dtype="<i2").tobytes()
            for begin, end in ((0, 5), (5, 6), (6, 19), (19, 31)):
                yield memoryview(raw[2 * begin : 2 * end])

    keep = np.random.default_rng(0).random(31) < 0.5
    found = b"".join(MaskedData(Odd(), Mask.from_array(keep)).chunks())
    assert np.frombuffer(found, "<i2").tolist() == np.where(keep, np.arange(1, 32), 0).tolist()


def rewrite(path: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    with safe_open(path, "numpy") as file:
        index = json.loads(file.metadata()["elastic_ir.masks"])
    tensors = load_file(path)
    edit(index, tensors)
    save_file(tensors, path, {"elastic_ir.masks": json.dumps(index)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda i, t: i.update(version=2), "has version 2 of packed masks; this ElasticIR reads version 1"),
        (lambda i, t: i.pop("version"), "its index cannot be read ('version')"),
        (lambda i, t: i.update(masks=[]), "its index cannot be read (no version, or no table"),
        (lambda i, t: i["masks"][ODD].update(shape=[-1]), f"the index entry of {ODD!r} has no shape"),
        (
            lambda i, t: i["masks"][ODD].update(mask="x"),
            f"the index entry of {ODD!r} has no shape, or no dtype",
        ),
        (lambda i, t: i["masks"][ODD].update(shape=[1 << 60]), f"the mask of {ODD!r} is missing, or not of"),
        (lambda i, t: t.pop(f"{ODD}:mask"), f"the mask of {ODD!r} is missing, or not of 217 bits"),
        (lambda i, t: i["masks"].pop(ODD), f"it holds '{ODD}:mask', which its index of masks does not name"),
    ],
)
def test_damage(packed: Path, edit: Callable[[dict[str, Any], dict[str, Any]], None], message: str) -> None:
    rewrite(packed / MASKS, edit)
    with pytest.raises(SourceError, match=re.escape(message)):
        eir.load(packed, headers_only=True)


def test_ones_behind_the_end(packed: Path, tmp_path: Path) -> None:
    def edit(index: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[f"{ODD}:mask"][-1] |= 1

    rewrite(packed / MASKS, edit)
    with pytest.raises(SourceError, match="has ones behind its end"):
        eir.save(eir.load(packed, headers_only=True), tmp_path / "out", check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "source"]


def test_a_mask_that_does_not_fit(packed: Path) -> None:
    rewrite(packed / MASKS, lambda i, t: i["masks"][ODD].update(shape=[217]))
    with pytest.raises(MaskError, match=re.escape(f"{ODD!r} has shape [217], its weight [31, 7]")):
        eir.load(packed, headers_only=True)


def test_masks_that_change_while_they_are_read(packed: Path, tmp_path: Path) -> None:
    graph = eir.load(packed, headers_only=True)
    rewrite(packed / MASKS, lambda i, t: None)
    with pytest.raises(SourceError, match=f"{MASKS} was changed after it was read"):
        eir.save(graph, tmp_path / "out", check=False)
