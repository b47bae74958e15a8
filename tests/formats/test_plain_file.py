"""What torch loads whole: damaged, empty and truncated files are told apart from those that hold more than data."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from elastic_ir.errors import SourceError
from elastic_ir.formats.plain_file import load_plain

STATE = {"state": {0: {"exp_avg": torch.ones(64, 64)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_plain_data_is_loaded(zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    found = load_plain(tmp_path / "a.bin", "do this")
    assert torch.equal(found["state"][0]["exp_avg"], torch.ones(64, 64))
    assert found["param_groups"] == STATE["param_groups"]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def halved_older(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:150])


def changed(path: Path) -> None:
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    at = content.index(b"param_groups")
    content[at - 6 : at] = b"\xff" * 6
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text("no pickle at all")


def absent(path: Path) -> None:
    """Nothing is written."""


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, "is empty; do this"),
        (halved, "is truncated or damaged: the zip's directory at its end is missing; do this"),
        (halved_older, "is (truncated|damaged).*; do this"),
        (changed, "is damaged.*; do this"),
        (text, "is not a file of torch.save: it begins with b'no pickl'; do this"),
        (absent, "does not exist; do this"),
    ],
)
def test_what_is_damaged_is_said_to_be(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    damage(tmp_path / "a.bin")
    with pytest.raises(SourceError, match=f"a.bin {said}$"):
        load_plain(tmp_path / "a.bin", "do this")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_other_objects_are_named(zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE | {"lr": Fraction(1, 2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SourceError, match=r"a.bin holds more than tensors and plain data, and .*; do this$"):
        load_plain(tmp_path / "a.bin", "do this")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
def test_what_trainings_keep_beside_is_loaded_as_it_was(zipped: bool, tmp_path: Path) -> None:
    """The clock, the random state and the version in a file of Composer, none of which torch takes alone."""
    beside: dict[str, Any] = {
        "time": timedelta(seconds=3),
        "numpy": np.random.default_rng(0).integers(9, size=5),
        "step": np.float32(2),
        "metadata": {"torch_version": torch.__version__},
    }
    torch.save(STATE | beside, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    found = load_plain(tmp_path / "a.pt", "do this")
    assert found["time"] == beside["time"] and np.array_equal(found["numpy"], beside["numpy"])
    assert {name: type(found[name]) for name in beside} == {name: type(item) for name, item in beside.items()}
    assert type(found["metadata"]["torch_version"]) is type(torch.__version__)
    torch.save(STATE | beside | {"path": PurePosixPath("a")}, tmp_path / "a.pt")
    with pytest.raises(SourceError, match="holds more than tensors and plain data"):
        load_plain(tmp_path / "a.pt", "do this")  # of a path the class is not kept
