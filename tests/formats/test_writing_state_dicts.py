"""State dicts written without torch, read by torch: every dtype and shape, ties, places, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats.bin import read_bin, read_saved
from elastic_ir.formats.parts import Part, write_parts
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.torch_zip import archive_of, places_of, write_state
from elastic_ir.tensors.lazy import InlineData, TensorData
from elastic_ir.tensors.torch_bridge import TorchData, dtype_name
from elastic_ir.zoo import cifar_resnet

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.uint32, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def saved(path: Path) -> Any:
    """What a file holds, by the reader without torch."""
    with path.open("rb") as file:
        return read_saved(file, path, archive_of(file, path.name))[0]


def raw(tensor: torch.Tensor) -> bytes:
    return b"".join(TorchData(tensor).chunks())


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_every_dtype(tmp_path: Path, dtype: torch.dtype, mmap: bool) -> None:
    wanted = {
        name: torch.randint(0, 255, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=torch.uint8).view(dtype)
        for name, shape in (("one", (1,)), ("table", (3, 5)), ("empty", (0, 4)), ("deep", (2, 1, 3, 2)))
    }
    if dtype == torch.bool:
        wanted = {name: tensor.view(torch.uint8).fmod(2).bool() for name, tensor in wanted.items()}
    write_state(tmp_path / "a.pt", {name: TorchData(tensor) for name, tensor in wanted.items()})
    read = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
    assert list(read) == list(wanted)
    for name, tensor in wanted.items():
        assert (read[name].dtype, read[name].shape) == (dtype, tensor.shape)
        assert read[name].is_contiguous() and raw(read[name]) == raw(tensor)


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
        unique_by=lambda p: p[0],
    )
)
def test_both_readers_find_what_was_written(tensors: list[tuple[str, list[int]]]) -> None:
    import tempfile

    wanted = {name: torch.randn(shape) for name, shape in tensors}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        write_state(path, {name: TorchData(tensor) for name, tensor in wanted.items()})
        read, here = torch.load(path, weights_only=True), read_bin(path)
        assert list(read) == list(here) == list(wanted)
        for name, tensor in wanted.items():
            assert torch.equal(read[name], tensor)
            assert b"".join(here[name].chunks()) == raw(tensor)


def test_names_of_one_tensor_share_it(tmp_path: Path) -> None:
    one = TorchData(torch.randn(4, 4))
    write_state(tmp_path / "a.pt", {"a": one, "b": TorchData(torch.randn(4, 4)), "c": one})
    read = torch.load(tmp_path / "a.pt")
    assert read["a"].data_ptr() == read["c"].data_ptr() != read["b"].data_ptr()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 2


def test_the_same_tensors_give_the_same_bytes_at_aligned_places(tmp_path: Path) -> None:
    state = {f"layer.{n}": TorchData(torch.full((n,), 1.0)) for n in range(1, 20)}
    for name in ("a.pt", "b.pt"):
        write_state(tmp_path / name, state)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    with (tmp_path / "a.pt").open("rb") as file, zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert {place.offset % 64 for name, place in places_of(file, "a.pt").items() if "data/" in name} == {
            0
        }


@dataclass(frozen=True)
class Short:
    """A tensor that yields less than it says."""

    shape: tuple[int, ...] = (4,)
    dtype: str = "float32"

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(b"1234")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Short(), "the tensor 'w' gave 4 bytes where its shape and dtype need 16"),
        (
            InlineData((2,), "uint4", b"1"),
            "the tensor 'w' is uint4, which torch cannot hold; write .safetensors",
        ),
    ],
)
def test_refusals(tmp_path: Path, data: TensorData, reason: str) -> None:
    with pytest.raises(EmitError, match=reason):
        write_state(tmp_path / "a.pt", {"w": data})


def test_dictionaries_that_hold_one_another_twice_are_entered_once(tmp_path: Path) -> None:
    """Sixty levels of two: each way to the tensor would be walked for ever."""
    held: dict[str, object] = {"weight": torch.randn(3, 3)}
    for _ in range(60):
        held = {"a": held, "b": held}
    torch.save(held, tmp_path / "a.pt")
    item: Any = saved(tmp_path / "a.pt")
    for _ in range(60):
        item = item["b"]
    assert item["weight"].shape == (3, 3)


def test_the_commands_on_bare_state_dicts_import_no_torch(tmp_path: Path) -> None:
    """A training checkpoint with an optimizer beside the state dict is plain data too."""
    network = cifar_resnet(14)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    saved = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": 0.1}
    torch.save(saved, tmp_path / "a.pt")
    code = """
import sys
from elastic_ir.cli import main
for arguments in (
    ["stretch", "a.pt", "--to-depth", "20", "-o", "b.pt"], ["inspect", "b.pt"], ["diff", "a.pt", "b.pt"],
    ["squeeze", "b.pt", "--to-depth", "14", "-o", "c.pt"],
):
    sys.argv = ["elastic-ir", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code or arguments[0] == "diff", arguments
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    deeper, again = torch.load(tmp_path / "b.pt"), torch.load(tmp_path / "c.pt")
    cifar_resnet(20).load_state_dict(deeper, strict=True)
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_checksums_are_carried_along_and_otherwise_computed(tmp_path: Path) -> None:
    """A damaged record stays one that torch refuses: it is not given a checksum that fits."""
    whole = torch.arange(64.0)
    torch.save({"a": torch.ones(1000), "b": whole[:32], "c": whole}, tmp_path / "a.pt")
    held = read_bin(tmp_path / "a.pt")
    write_state(tmp_path / "b.pt", held)
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() is None
    read = torch.load(tmp_path / "b.pt")
    assert torch.equal(read["a"], torch.ones(1000)) and torch.equal(read["b"], whole[:32])
    with (tmp_path / "a.pt").open("r+b") as file:
        file.seek(places_of(file, "a.pt")["data/0"].offset)
        file.write(b"\1")
    write_state(tmp_path / "b.pt", read_bin(tmp_path / "a.pt"))
    with zipfile.ZipFile(tmp_path / "b.pt") as archive:
        assert archive.testzip() == "archive/data/0"
    with pytest.raises(SourceError, match="the record 'data/0' is not what was written, by its checksum"):
        saved(tmp_path / "b.pt")


def test_records_and_places_beyond_4_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both need the wider fields of a zip; the bytes of the large tensors are left out, so that nothing takes room."""

    def with_holes(path: Path, parts: list[Part]) -> None:
        write_parts(path, (part for part in parts if not isinstance(part.data, FileTensor)))

    held: dict[str, TensorData] = {
        name: FileTensor(tmp_path / "none", 0, (size,), "uint8", crc=1)
        for name, size in (("large", 5 << 30), ("behind", 16))
    }
    monkeypatch.setattr("elastic_ir.formats.parts.write_parts", with_holes)
    write_state(tmp_path / "b.pt", {**held, "last": InlineData((2,), "uint8", b"12")})
    read = torch.load(tmp_path / "b.pt", mmap=True)
    assert [tuple(tensor.shape) for tensor in read.values()] == [(5 << 30,), (16,), (2,)]
    assert bytes(read["last"].tolist()) == b"12" and read["large"][-1] == 0
    assert list(read_bin(tmp_path / "b.pt")) == ["large", "behind", "last"]
