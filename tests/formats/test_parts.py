"""Files written from ranges of others: the same bytes by every way and by two threads, few calls, and errors."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats import ranges
from elastic_ir.formats.files import stamp_of
from elastic_ir.formats.parts import Part, write_parts
from elastic_ir.formats.ranges import FileTensor
from elastic_ir.formats.safetensors import read_safetensors, write_safetensors
from elastic_ir.tensors.lazy import InlineData, TensorData

PAGE = 4096
WAYS = ("copied and mapped", "no mapping", "no copying", "neither")


def refuse(*_: Any) -> None:
    raise OSError(errno.EXDEV, "not here")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads for everything, and blocks of two pages, of which few bytes are read at once."""
    monkeypatch.setattr("elastic_ir.formats.parts.LARGE", 1)
    monkeypatch.setattr("elastic_ir.formats.parts.BLOCK", 2 * PAGE)
    monkeypatch.setattr("elastic_ir.formats.parts.BUFFER", 100)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def source(path: Path, size: int, seed: int = 0) -> bytes:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path.read_bytes()


def piece(path: Path, offset: int, size: int) -> FileTensor:
    return FileTensor(path, offset, (size,), "uint8", stamp_of(path.stat()))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_writes_the_same(
    tmp_path: Path, way: str, synced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges at odd places between bytes and computed tensors, of several files, with gaps and empty ones."""
    if way in ("no mapping", "neither"):
        monkeypatch.setattr("elastic_ir.formats.parts._mapped", refuse)
    if way in ("no copying", "neither"):
        monkeypatch.delattr(os, "copy_file_range")
    files = [tmp_path / f"source{number}" for number in range(3)]
    held = [source(path, 9 * PAGE + 77, seed) for seed, path in enumerate(files)]
    generator = random.Random(1)
    parts: list[Part] = []
    expected = bytearray()
    for number in range(60):
        expected += bytes(generator.choice((0, 0, 1, 13)))
        which, offset = generator.randrange(3), generator.randrange(5 * PAGE)
        size = generator.choice((0, 1, 100, PAGE, 3 * PAGE + 5))
        content = held[which][offset : offset + size]
        data: bytes | TensorData = piece(files[which], offset, size)
        if number % 5 == 0:
            data = content
        elif number % 5 == 1:
            data = InlineData((size,), "uint8", content)
        parts.append(Part(len(expected), data))
        expected += content
    told: list[int] = []
    write_parts(tmp_path / "target", parts, told.append, synced)
    assert (tmp_path / "target").read_bytes() == expected
    assert sum(told) == sum(len(p.data.raw) for p in parts if isinstance(p.data, InlineData)) + sum(
        p.data.shape[0] for p in parts if isinstance(p.data, FileTensor)
    )


def test_a_stretched_stack_is_two_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of the names: first copies lie as in the source, and second ones behind them."""
    layers = {
        f"layers.{n}.{part}": InlineData((4,), "int32", bytes([n] * 16)) for n in range(8) for part in "ba"
    }
    write_safetensors(tmp_path / "source.safetensors", layers)
    stored, _ = read_safetensors(tmp_path / "source.safetensors")
    plan = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    target: dict[str, TensorData] = {
        f"layers.{new}.{part}": stored[f"layers.{old}.{part}"]
        for new, old in enumerate(plan)
        for part in "ab"
    }
    calls: list[int] = []
    genuine = os.copy_file_range

    def counted(one: int, other: int, size: int, *places: int) -> int:
        calls.append(size)
        return genuine(one, other, size, *places)

    monkeypatch.setattr(os, "copy_file_range", counted)
    write_safetensors(tmp_path / "target.safetensors", target)
    assert calls == [16 * 16, 4 * 2 * 16]
    read, _ = read_safetensors(tmp_path / "target.safetensors")
    assert list(read) == list(target)
    for name, data in target.items():
        assert b"".join(read[name].chunks()) == b"".join(data.chunks())


def test_each_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than are open at once, each of which is read at several places."""
    monkeypatch.setattr(ranges, "_OPEN", 3)
    held = {tmp_path / f"source{n}": source(tmp_path / f"source{n}", 64, n) for n in range(10)}
    opened: list[str] = []
    genuine = Path.open

    def counted(path: Path, *rest: Any, **options: Any) -> Any:
        opened.append(path.name)
        return genuine(path, *rest, **options)

    tensors = [piece(path, offset, 16) for path in held for offset in (32, 0)]
    monkeypatch.setattr(Path, "open", counted)
    write_parts(tmp_path / "target", (Part(16 * n, tensor) for n, tensor in enumerate(tensors)))
    monkeypatch.undo()
    assert sorted(opened) == sorted(path.name for path in held)
    assert (tmp_path / "target").read_bytes() == b"".join(raw[32:48] + raw[:16] for raw in held.values())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("way", WAYS)
def test_a_source_that_is_cut_short(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way in ("no mapping", "neither"):
        monkeypatch.setattr("elastic_ir.formats.parts._mapped", refuse)
    if way in ("no copying", "neither"):
        monkeypatch.delattr(os, "copy_file_range")
    source(tmp_path / "source", 20 * PAGE)
    tensor = FileTensor(tmp_path / "source", 10, (20 * PAGE,), "uint8")  # without a stamp it is noticed last
    with pytest.raises(SourceError, match="was cut short while it was being read"):
        write_parts(tmp_path / "target", [Part(0, tensor)], synced=False)


@pytest.mark.usefixtures("small")
def test_a_mapping_that_fails_is_written_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk, where a page of a mapping cannot be had: the write then states the true reason."""

    def full(*_: Any) -> None:
        raise OSError(errno.EFAULT, "bad address")

    def no_room(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    raw = source(tmp_path / "source", 20 * PAGE)
    parts = [Part(0, piece(tmp_path / "source", 0, len(raw)))]
    monkeypatch.setattr("elastic_ir.formats.parts._mapped", full)
    write_parts(tmp_path / "target", parts, synced=False)
    assert (tmp_path / "target").read_bytes() == raw
    monkeypatch.setattr(os, "copy_file_range", no_room)
    for synced in (False, True):
        with pytest.raises(OSError, match="no space left"):
            write_parts(tmp_path / "target", parts, synced=synced)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_stops_one_thread_stops_the_other(
    tmp_path: Path, error: type[BaseException], synced: bool
) -> None:
    raw = source(tmp_path / "source", 600 * PAGE)
    told: list[int] = []

    def tell(size: int) -> None:
        told.append(size)
        raise error

    with pytest.raises(error):
        write_parts(tmp_path / "target", [Part(0, piece(tmp_path / "source", 0, len(raw)))], tell, synced)
    assert len(told) <= 2


@dataclass(frozen=True)
class Long:
    """A tensor that yields more than it says."""

    shape: tuple[int, ...] = (4,)
    dtype: str = "uint8"

    def chunks(self) -> Iterator[memoryview]:
        yield memoryview(b"1234")
        yield memoryview(b"5678")


def test_a_tensor_that_is_too_long(tmp_path: Path) -> None:
    """It does not reach into the next one's place."""
    with pytest.raises(EmitError, match="the tensor 'a' gave 8 bytes where its shape and dtype need 4"):
        write_parts(tmp_path / "target", [Part(0, Long(), "a"), Part(4, b"next")])
    with pytest.raises(EmitError, match=r"a tensor of shape \[4\] gave 8 bytes"):
        write_parts(tmp_path / "target", [Part(0, Long())])


def test_a_large_file_has_its_pages_where_its_source_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such ranges are copied page by page, and shared where a file system can do that."""
    monkeypatch.setattr("elastic_ir.formats.parts.LARGE", 1 << 30)
    first: dict[str, TensorData] = {"a": InlineData((PAGE,), "uint8", bytes(PAGE))}
    write_safetensors(tmp_path / "source", first, {"of": "the source"})
    stored, _ = read_safetensors(tmp_path / "source")
    monkeypatch.setattr("elastic_ir.formats.safetensors.LARGE", PAGE)
    write_safetensors(
        tmp_path / "target", {f"a longer name {n}": stored["a"] for n in range(3)}, {"b": "c" * 5000}
    )
    read, metadata = read_safetensors(tmp_path / "target")
    assert {data.offset % PAGE for data in read.values()} == {stored["a"].offset % PAGE}
    assert metadata == {"b": "c" * 5000}
