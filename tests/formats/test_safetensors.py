"""``.safetensors`` files: written without torch and read back by the library, and the other way round; bad headers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats import ranges
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.safetensors import (
    DTYPES,
    read_safetensors,
    tensors_of_file,
    write_safetensors,
)
from elastic_ir.tensors.lazy import ShapeOnly, TensorData
from elastic_ir.tensors.torch_bridge import TorchData, to_torch


def tensor_of(dtype: str, *shape: int) -> torch.Tensor:
    item = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    raw = torch.randint(0, 2 if dtype == "bool" else 60, (*shape, item), dtype=torch.uint8)
    return raw.view(getattr(torch, dtype)).reshape(shape)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_both_ways(tmp_path: Path, dtype: str) -> None:
    tensors = {
        "b": tensor_of(dtype, 3, 5),
        "odd": tensor_of("bool", 3),
        "scalar": tensor_of(dtype),
        "none": tensor_of(dtype, 0, 4),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: TorchData(tensor) for name, tensor in tensors.items()})
    theirs = load_file(path)
    ours, _ = read_safetensors(path)
    assert list(ours) == list(tensors)
    for name, tensor in tensors.items():
        assert theirs[name].dtype == tensor.dtype
        assert theirs[name].shape == tensor.shape == ours[name].shape
        assert raw(theirs[name]) == raw(tensor) == raw(to_torch(ours[name]))
        assert ours[name].offset % tensor.element_size() == 0, "aligned"
    save_file(tensors, path, {"format": "pt"})
    again, metadata = read_safetensors(path)
    assert metadata == {"format": "pt"}
    assert {name: raw(to_torch(data)) for name, data in again.items()} == {
        n: raw(t) for n, t in tensors.items()
    }


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.sampled_from([*DTYPES]), max_size=6
    )
)
def test_any_names_in_their_order(tmp_path_factory: pytest.TempPathFactory, names: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("t") / "a.safetensors"
    tensors = {name: tensor_of(dtype, 3) for name, dtype in names.items() if name != "__metadata__"}
    metadata = {"key": '"\n\0é'}
    write_safetensors(path, {name: TorchData(tensor) for name, tensor in tensors.items()}, metadata)
    read, found = read_safetensors(path)
    assert (list(read), found) == (list(tensors), metadata)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == metadata
    assert {name: raw(t) for name, t in load_file(path).items()} == {
        name: raw(t) for name, t in tensors.items()
    }


def test_reading_is_lazy_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    data = read_safetensors(path)[0]["a"]
    assert isinstance(data, TensorData)
    monkeypatch.setattr(ranges, "CHUNK", 160)
    assert [len(chunk) for chunk in data.chunks()] == [160, 160, 80]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match="was changed after it was read; read it again"):
        list(data.chunks())
    path.unlink()
    with pytest.raises(SourceError, match="could not be read: no such file"):
        list(data.chunks())


def test_a_copy_holds_one_chunk_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a": torch.zeros(1 << 24)}, source)
    tensors: dict[str, TensorData] = dict(read_safetensors(source)[0])
    tracemalloc.start()
    write_safetensors(target, {**tensors, "b": tensors["a"]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * ranges.CHUNK
    assert target.stat().st_size > 2 * (1 << 26)


def test_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, path)
    code = """
import sys
from elastic_ir.formats.files import atomic_output
from elastic_ir.formats.safetensors import write_safetensors
from elastic_ir.frontends.masks import read_masks
from elastic_ir.formats.safetensors import read_safetensors
tensors, metadata = read_safetensors(sys.argv[1])
with atomic_output(sys.argv[2]) as temporary:
    write_safetensors(temporary, tensors, metadata)
assert read_masks(sys.argv[2])["w"].zeros == 0
assert "torch" not in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "b.safetensors")], check=True, timeout=120
    )


# -- what the writer refuses -------------------------------------------------------------------------------------------


class Short(ShapeOnly):
    def chunks(self) -> Any:
        yield memoryview(b"1234")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "a",
            ShapeOnly((2,), "complex128"),
            "the tensor 'a' is complex128, which .safetensors cannot hold; write a .pt",
        ),
        ("__metadata__", Short((1,), "float32"), "cannot be named '__metadata__'"),
        ("a", Short((2,), "float32"), "the tensor 'a' gave 4 bytes where its shape and dtype need 8"),
        ("a", Short((0,), "float32"), "the tensor 'a' gave 4 bytes where its shape and dtype need 0"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, data: TensorData, said: str) -> None:
    with pytest.raises(EmitError) as caught:
        write_safetensors(tmp_path / "a", {name: data})
    assert said in str(caught.value)


def test_a_header_beyond_what_readers_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic_ir.formats.safetensors.MAX_HEADER", 100)
    with pytest.raises(EmitError, match=r"and readers refuse more than 100; write a \.pt"):
        write_safetensors(tmp_path / "a", {}, {"graph": "x" * 100})


# -- bad files ---------------------------------------------------------------------------------------------------------


def file_of(path: Path, header: Any, size: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


def entry(begin: int, end: int, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size", "said"),
    [
        ({"a": entry(0, 4)}, 3, "is truncated: 'a' should end at byte 4 of the data, which has 3"),
        ({"a": entry(0, 4)}, 5, "is damaged: 1 bytes at its end belong to no tensor"),
        (
            {"a": entry(0, 4), "b": entry(3, 6)},
            6,
            "is damaged: the bytes of 'b' and 'a' overlap in the header's offsets",
        ),
        ({"a": entry(0, 4), "b": entry(5, 6)}, 6, "is damaged: 1 bytes before 'b' belong to no tensor"),
        ({"a": entry(0, 1, "F5")}, 1, "the tensor 'a' has the dtype 'F5', which ElasticIR does not know"),
        ({"a": entry(0, 1, ["F4"])}, 1, "the tensor 'a' has the dtype ['F4'], which ElasticIR does not know"),
        ({"a": entry(0, 4, "F32", [2])}, 4, "has offsets [0, 4], but F32 of shape [2] takes 8 bytes"),
        ({"a": entry(0, 4, "F32", [-1])}, 4, "has a shape or offsets that are not counts: [-1], [0, 4]"),
        ({"a": entry(0, 4, "F32", [True])}, 4, "has a shape or offsets that are not counts"),
        ({"a": entry(0, 4, "F32", 3)}, 4, "has a shape or offsets that are not counts"),
        ({"a": {"dtype": "F32"}}, 4, "the header's entry for 'a' lacks dtype, shape or data_offsets"),
        ({"a": 3}, 4, "the header's entry for 'a' lacks dtype, shape or data_offsets"),
        ([1, 2], 0, "is damaged: its header is not a table of tensors"),
        ({"__metadata__": {"a": 1}}, 0, "is damaged: its metadata is not a table of texts"),
        (b'{"a": 1, "a": 2}', 0, "is damaged: a name stands twice in its header"),
        (b"{garbage", 0, "is not a .safetensors file, or damaged: its header is not JSON ("),
        (b"\xff\xfe\x00", 0, "is not a .safetensors file, or damaged: its header is not JSON ("),
    ],
)
def test_bad_headers(tmp_path: Path, header: Any, size: int, said: str) -> None:
    path = file_of(tmp_path / "a.safetensors", header, size)
    with pytest.raises(SourceError) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"1234", "is not a .safetensors file: it has only 4 bytes"),
        (
            b"PK\x03\x04" + bytes(range(60)),
            "is not a .safetensors file: its first 8 bytes ask for a header of",
        ),
        (
            (500).to_bytes(8, "little") + b"{}",
            "is truncated: the header should have 500 bytes, the file has 10",
        ),
    ],
)
def test_bad_beginnings(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_safetensors(path)
    assert str(caught.value).startswith(f"{path} {said}")


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(SourceError, match=r"is a folder, not a \.safetensors file"):
        read_safetensors(tmp_path)


def test_a_file_tensor_is_told_by_its_place() -> None:
    assert FileTensor(Path("a"), 8, (2,), "float32") == FileTensor(Path("a"), 8, (2,), "float32")


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
        ([[0, 4], [0, 4]], 4, "the bytes of 't1' and 't0' overlap"),
        ([[0, 4], [8, 12]], 12, "4 bytes before 't1' belong to no tensor"),
        ([[0, 4], [4, 8]], 12, "4 bytes at its end belong to no tensor"),
        ([[0, 4], [4, 8]], 6, "'t1' should end at byte 8 of the data, which has 6"),
        ([[0, 4], [4, 7]], 8, "takes 4 bytes"),
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
    with pytest.raises(SourceError, match=message):
        tensors_of_file(path)
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(SourceError, match="is truncated: the header should have"):
        tensors_of_file(path)
