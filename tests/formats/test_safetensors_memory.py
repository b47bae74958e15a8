"""Small safetensors files in memory: what the library wrote is read as it is, and damage is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from elastic_ir.formats.safetensors_memory import tensors_of_file


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    tensors = {
        "x": torch.randn(3, 4), "half": torch.randn(2, 2).bfloat16(), "labels": torch.arange(5),
        "none": torch.empty(0, 3), "flag": torch.tensor(True),
    }  # fmt: skip
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", {"made": "here"})
    found = tensors_of_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize(
    ("offsets", "body", "message"),
    [
        ([[0, 4], [4, 8]], 8, ""),
        ([[0, 4], [0, 4]], 4, "its tensors overlap or leave gaps"),
        ([[0, 4], [8, 12]], 12, "its tensors overlap or leave gaps"),
        ([[0, 4], [4, 8]], 12, "its tensors overlap or leave gaps"),
        ([[0, 4], [4, 8]], 6, "'t1' lies outside of it"),
        ([[0, 4], [4, 7]], 8, "'t1' lies outside of it"),
    ],
)
def test_offsets_are_checked(tmp_path: Path, offsets: list[list[int]], body: int, message: str) -> None:
    header = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": span} for i, span in enumerate(offsets)}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(body))
    if not message:
        assert {name: tensor.tolist() for name, tensor in tensors_of_file(path).items()} == {
            "t0": [0.0],
            "t1": [0.0],
        }
        return
    with pytest.raises(ValueError, match=message):
        tensors_of_file(path)
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(ValueError, match="its header is cut short"):
        tensors_of_file(path)
