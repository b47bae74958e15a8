"""Masks beside weights belong to these weights, or they are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import elastic_ir as eir
from elastic_ir.errors import MaskError
from elastic_ir.formats.mask_tie import TIE, tie_of
from tests.checkpoints.folders import config, llama, write

MASKS = "model.masks.safetensors"
Arrays = dict[str, Any]


def arrays(seed: int = 0) -> Arrays:
    dice = np.random.default_rng(seed)
    return {f"layers.{i}.{n}.weight": dice.random((8, 8), np.float32) for i in range(3) for n in "ab"}


def keep(seed: int = 1) -> Arrays:
    dice = np.random.default_rng(seed)
    return {name: dice.random(array.shape) < 0.3 for name, array in arrays().items()}


@pytest.fixture
def ticket(tmp_path: Path) -> Path:
    """A file that ElasticIR has written, with masks beside it."""
    save_file(arrays(), tmp_path / "source.safetensors")
    graph = eir.load(tmp_path / "source.safetensors", masks=keep())
    eir.save(graph, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.masks.safetensors")


def test_they_fit_wherever_both_are_moved(ticket: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for file in (ticket, beside(ticket)):
        shutil.copy(file, tmp_path / "there")
    assert set(eir.load(tmp_path / "there" / ticket.name).masks()) == set(keep())
    save_file(load_file(ticket), ticket, {"format": "pt"})  # the same weights, written by another tool
    assert set(eir.load(ticket).masks()) == set(keep())


CHANGES: dict[str, Callable[[Arrays], Arrays]] = {
    "trained on": lambda a: {n: np.where(w == 0, 0, w + 1e-3).astype(np.float32) for n, w in a.items()},
    "dense": lambda a: arrays(7),
    "another ticket": lambda a: {n: arrays(8)[n] * keep(9)[n] for n in a},
    "one tensor": lambda a: a | {"layers.2.b.weight": arrays(7)["layers.2.b.weight"]},
    "more tensors": lambda a: a | {"head.weight": np.ones((2, 8), np.float32)},
    "another dtype": lambda a: {n: w.astype(np.float16) for n, w in a.items()},
    "another shape": lambda a: a | {"layers.2.b.weight": a["layers.2.b.weight"].reshape(4, 16)},
    "names exchanged": lambda a: dict(zip(a, reversed(a.values()), strict=True)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_weights_under_the_same_name_are_refused(ticket: Path, change: str) -> None:
    save_file(CHANGES[change](load_file(ticket)), ticket)
    with pytest.raises(MaskError) as caught:
        eir.load(ticket)
    assert str(caught.value) == (
        f"{beside(ticket)} holds masks of other weights than lie beside it now; delete it, or, if these masks are "
        f"meant, give them by --mask {beside(ticket)} (in Python masks=)"
    )


def test_both_ways_out_of_the_message_lead_on(ticket: Path) -> None:
    save_file(CHANGES["trained on"](load_file(ticket)), ticket)
    given = eir.load(ticket, masks=beside(ticket))
    assert {n: m.numpy().tolist() for n, m in given.masks().items()} == {
        n: k.tolist() for n, k in keep().items()
    }
    beside(ticket).unlink()
    assert eir.load(ticket).masks() == {}


def test_a_save_without_masks_takes_the_old_ones_away(ticket: Path, tmp_path: Path) -> None:
    eir.save(eir.load(tmp_path / "source.safetensors"), ticket)
    assert not beside(ticket).exists()
    assert eir.load(ticket).masks() == {}


def test_a_run_that_died_between_the_two_files_leaves_no_mix(ticket: Path, tmp_path: Path) -> None:
    """The masks get their name first; the weights of before are then not theirs."""
    eir.save(eir.load(tmp_path / "source.safetensors", masks=keep(5)), tmp_path / "other.safetensors")
    shutil.move(beside(tmp_path / "other.safetensors"), beside(ticket))
    with pytest.raises(MaskError, match="masks of other weights"):
        eir.load(ticket)


# -- without a digest ----------------------------------------------------------------------------------------------


def without_digest(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
    del metadata[TIE]
    save_file(load_file(path), path, metadata)


def test_masks_of_version_0_1_are_taken_where_weights_are_zero(ticket: Path) -> None:
    without_digest(beside(ticket))
    assert set(eir.load(ticket).masks()) == set(keep())
    save_file(CHANGES["trained on"](load_file(ticket)), ticket)  # nothing speaks against it
    assert set(eir.load(ticket).masks()) == set(keep())
    save_file(CHANGES["another ticket"](load_file(ticket)), ticket)
    with pytest.raises(MaskError, match="masks of other weights"):
        eir.load(ticket)


def test_masks_that_a_user_put_there_are_taken(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "a.safetensors")
    save_file(keep(), tmp_path / "a.masks.safetensors")
    assert set(eir.load(tmp_path / "a.safetensors").masks()) == set(keep())


# -- folders -------------------------------------------------------------------------------------------------------

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mask = np.random.default_rng(0).random((16, 8)) < 0.5
    graph = eir.load(write(tmp_path / "source", llama(), config(4)), headers_only=True, masks={NAME: mask})
    eir.save(graph, tmp_path / "folder", check=False)
    return tmp_path / "folder"


def test_a_folders_masks_are_tied_however_its_weights_are_cut(folder: Path) -> None:
    assert set(eir.load(folder, headers_only=True).masks()) == {NAME}
    state = load_file(folder / "model.safetensors")
    halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    places: dict[str, str] = {}
    for i, half in enumerate(halves, 1):
        name = f"model-{i:05}-of-00002.safetensors"
        save_file(half, folder / name)
        places |= dict.fromkeys(half, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "model.safetensors").unlink()
    assert set(eir.load(folder, headers_only=True).masks()) == {NAME}
    save_file(
        {n: a + np.float16(1) for n, a in halves[1].items()}, folder / "model-00002-of-00002.safetensors"
    )
    with pytest.raises(MaskError, match=r"model\.masks\.safetensors holds masks of other weights"):
        eir.load(folder, headers_only=True)
    assert eir.load(folder, headers_only=True, masks=folder / MASKS).masks()


@pytest.mark.slow
def test_a_traced_folders_masks_are_tied_too(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(
        {n: a + np.float16(1) for n, a in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(MaskError, match="holds masks of other weights"):
        eir.load(folder)


def test_little_is_read_of_large_tensors(tmp_path: Path) -> None:
    """A hole of a file is as large as is wanted, and takes no room."""
    size = 1 << 36
    head = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)
    before = tie_of([path])
    with path.open("rb+") as file:
        file.seek(8 + len(head) + size - 70)
        file.write(b"x" * 70)
    assert tie_of([path]) != before


@given(st.integers(0, 300), st.sampled_from(["u1", "<f2", "<f4", "<f8"]), st.data())
def test_small_tensors_are_looked_at_whole(
    tmp_path_factory: pytest.TempPathFactory, size: int, dtype: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "small.safetensors"
    array = np.zeros(size, dtype)
    save_file({"w": array}, path)
    before = tie_of([path])
    if 0 < array.nbytes <= 512 and array.nbytes % 64 == 0:
        array[data.draw(st.integers(0, size - 1))] = 1
        save_file({"w": array}, path)
        assert tie_of([path]) != before
