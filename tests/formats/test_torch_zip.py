"""Zips of torch.save whose bytes do not stand where, or as, torch's mapped reading takes them from."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import elastic_ir as eir
from elastic_ir.errors import ElasticError, SourceError
from elastic_ir.formats.bin import read_bin
from elastic_ir.formats.torch_zip import append_zip_records, read_zip_records
from elastic_ir.frontends.masks import read_masks
from elastic_ir.frontends.torch_file import read_torch_file

STATE = {f"layers.{i}.weight": torch.randn(16, 16) for i in range(4)}


def rewritten(source: Path, target: Path, change: Callable[[zipfile.ZipInfo], int] | None = None) -> Path:
    """The same records in a zip written anew, each compressed as ``change`` says."""
    with zipfile.ZipFile(source) as read, zipfile.ZipFile(target, "w") as write:
        for item in read.infolist():
            how = zipfile.ZIP_DEFLATED if change is None else change(item)
            write.writestr(zipfile.ZipInfo(item.filename), read.read(item), compress_type=how)
    return target


READERS: dict[str, Callable[[Path], object]] = {"pt": read_torch_file, "bin": read_bin, "masks": read_masks}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("which", ["all", "data/2", "data.pkl", "byteorder"])
@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_records_are_refused(tmp_path: Path, reader: str, which: str, how: int) -> None:
    torch.save({name: (tensor > 0).float() for name, tensor in STATE.items()}, tmp_path / "a.pt")
    path = rewritten(
        tmp_path / "a.pt",
        tmp_path / "b.pt",
        lambda item: how if which == "all" or item.filename.endswith(which) else zipfile.ZIP_STORED,
    )
    with pytest.raises(
        ElasticError, match=r"b\.pt: the record '.*' is compressed or encrypted; load it with torch"
    ):
        READERS[reader](path)
    if how == zipfile.ZIP_DEFLATED:  # torch itself reads no other
        torch.save(torch.load(path), tmp_path / "c.pt")  # as the message says
        READERS[reader](tmp_path / "c.pt")


def test_stored_records_of_another_zip_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    path = rewritten(tmp_path / "a.pt", tmp_path / "b.pt", lambda item: zipfile.ZIP_STORED)
    read = eir.load(path).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_compressed_records_of_ours_are_refused(tmp_path: Path) -> None:
    graph = eir.load(saved(tmp_path / "a.pt"), masks={n: (t > 0) for n, t in STATE.items()})
    eir.save(graph, tmp_path / "ours.pt")
    for name in ("graph.json", "masks.json", "masks.bin"):
        path = rewritten(
            tmp_path / "ours.pt",
            tmp_path / "b.pt",
            lambda item, name=name: zipfile.ZIP_DEFLATED * item.filename.endswith(name),  # type: ignore[misc]
        )
        for read in (eir.load, read_zip_records):
            with pytest.raises(SourceError, match=rf"the record '.*/{name}' is compressed"):
                read(path)


def saved(path: Path) -> Path:
    torch.save(STATE, path)
    return path


def flipped(path: Path, at: int) -> None:
    with path.open("rb+") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x40]))


def place_of(path: Path, end: str) -> zipfile.ZipInfo:
    with zipfile.ZipFile(path) as archive:
        return next(item for item in archive.infolist() if item.filename.endswith(end))


def begin_of(path: Path, end: str) -> int:
    item = place_of(path, end)
    head = path.read_bytes()[item.header_offset : item.header_offset + 30]
    name, extra = struct.unpack("<2H", head[26:])
    return item.header_offset + 30 + int(name) + int(extra)


@pytest.mark.parametrize("record", ["data/0", "data/3", "data.pkl"])
def test_bytes_that_are_not_what_was_written_are_refused(tmp_path: Path, record: str) -> None:
    path = saved(tmp_path / "a.pt")
    flipped(path, begin_of(path, record) + 9)
    with pytest.raises(
        SourceError, match=rf"a\.pt is damaged: the record '{record}' is not what was written"
    ):
        read_torch_file(path)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert place_of(path, "data/0").CRC == 0
    assert torch.equal(read_torch_file(path)["layers.0.weight"], STATE["layers.0.weight"])


@pytest.mark.parametrize("read", [read_torch_file, read_bin])
def test_directories_that_disagree_with_the_file_are_refused(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    path = saved(tmp_path / "a.pt")
    whole = path.read_bytes()

    def said(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(SourceError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    item = place_of(path, "data/1")
    start = whole.index(b"PK\1\2")
    entry = whole.rindex(b"PK\1\2", start, whole.index(item.filename.encode(), start))
    local = item.header_offset

    def patched(at: int, content: bytes) -> bytes:
        return whole[:at] + content + whole[at + len(content) :]

    assert "is compressed or encrypted" in said(patched(entry + 8, b"\1\0"))
    assert "is compressed or encrypted" in said(patched(entry + 20, struct.pack("<I", 3)))
    other = place_of(path, "data/2")
    astray = r"is not where its directory says"
    assert astray in said(patched(local + 8, b"\x08\0"))  # deflated, by its own header
    assert astray in said(patched(local + 6, b"\1\0"))  # encrypted, by its own header
    assert astray in said(patched(local + 18, struct.pack("<2I", 99, 99)))
    assert astray in said(patched(entry + 42, struct.pack("<I", other.header_offset)))  # another one's bytes
    assert astray in said(patched(entry + 42, struct.pack("<I", other.header_offset + 1)))


@pytest.mark.filterwarnings("ignore")
def test_records_that_stand_twice_or_overlap_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/0", bytes(1024))
    for read in (read_torch_file, read_bin):
        with pytest.raises(SourceError, match="the record 'data/0' stands twice in it"):
            read(path)
    whole = saved(path).read_bytes()
    one, other = (place_of(path, f"data/{i}") for i in (0, 1))
    start = whole.index(b"PK\1\2")
    entry = whole.rindex(b"PK\1\2", start, whole.index(one.filename.encode(), start))
    longer = struct.pack(
        "<2I", *[one.file_size + other.file_size] * 2
    )  # it takes the next record for its own
    changed = whole[: entry + 20] + longer + whole[entry + 28 :]
    path.write_bytes(changed)
    for read in (read_torch_file, read_bin):
        with pytest.raises(SourceError, match="its records 'data/0' and 'data/1' overlap"):
            read(path)


def test_a_storage_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    """torch would take the bytes behind a record for its own."""
    path = saved(tmp_path / "a.pt")
    with zipfile.ZipFile(path) as read, zipfile.ZipFile(tmp_path / "b.pt", "w") as write:
        for item in read.infolist():
            content = read.read(item)
            write.writestr(item.filename, content[:1000] if item.filename.endswith("data/1") else content)
    for reader in (read_torch_file, read_bin):
        with pytest.raises(SourceError, match=r"is damaged: .*1024 bytes.*1000"):
            reader(tmp_path / "b.pt")


def test_our_records_are_found_behind_those_of_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt")
    append_zip_records(path, {"elastic_ir/masks.bin": b"\xff" * 10})
    assert read_zip_records(path) == {"elastic_ir/masks.bin": b"\xff" * 10}
