"""GGUF files: read by their headers; whatever else a file claims is refused in a line that says what is wrong."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.formats.gguf.header import read_header
from elastic_ir.formats.gguf.parts import part_name, read_parts, stem_of
from tests.networks.gguf_files import TEMPLATE, TOKENS, Type, llama

Bytes = bytes | bytearray


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def info(name: str, extents: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)


def made(
    entries: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: int = 0,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts, and so many bytes of tensors."""
    entries, infos = entries or [], infos or []
    tensor_count, entry_count = counts or (len(infos), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, entry_count) + b"".join([*entries, *infos])
    return head + bytes(-len(head) % alignment) + bytes(data)


def nested(levels: int) -> bytes:
    """A list in a list in a list, each of one."""
    return struct.pack("<IQ", 9, 1) * levels + struct.pack("<IQ", 0, 1) + b"\0"


ALIGNMENT = "general.alignment"
BAD: dict[str, tuple[Callable[[], Bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "magic": (lambda: b"GGML" + made()[4:], "does not begin with GGUF"),
    "three bytes": (lambda: b"GGU", "does not begin with GGUF"),
    "no version": (lambda: b"GGUF\3", "truncated"),
    "version 1": (lambda: made(version=1), "version 1 of GGUF, and versions 2 and 3 are read"),
    "version 9": (lambda: made(version=9), "version 9 of GGUF"),
    "big-endian": (lambda: b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(8), "is big-endian"),
    "no counts": (lambda: made()[:20], "truncated"),
    "tensors without end": (lambda: made(counts=(2**60, 0)), "should hold 1152921504606846976 tensors"),
    "entries without end": (lambda: made(counts=(0, 2**63)), "should hold 9223372036854775808 entries"),
    "a key of 2^60 bytes": (lambda: made([struct.pack("<Q", 2**60) + bytes(40)]), "should go on for 11529215"),
    "a long key": (lambda: made([entry("k" * 70_000, 0, b"\0")]), "has 70000 bytes, and up to 65535"),
    "a key that is no text": (lambda: made([struct.pack("<Q", 2) + b"\xff\xfe" + bytes(20)]), "is not text"),
    "a text of 2^60 bytes": (lambda: made([entry("k", 8, struct.pack("<Q", 2**60))]), "a text of 11529215"),
    "texts without end": (
        lambda: made([entry("k", 9, struct.pack("<IQ", 8, 2**50))]), "should be a list of 1125899906842624"
    ),
    "numbers without end": (lambda: made([entry("k", 9, struct.pack("<IQ", 6, 2**61))]), "are left"),
    "lists in lists": (lambda: made([entry("k", 9, nested(9))]), "lists in lists, more than 8 deep"),
    "lists without end": (lambda: made([entry("k", 9, struct.pack("<IQ", 9, 2**40))]), "should be a list of"),
    "a type of value": (lambda: made([entry("k", 77, bytes(8))]), "is of the type 77"),
    "a key twice": (lambda: made([entry("k", 0, b"\1"), entry("k", 0, b"\2")]), "'k' stands twice"),
    "alignment 0": (lambda: made([entry(ALIGNMENT, 4, bytes(4))]), "is 0, and has to be a power of two"),
    "alignment 24": (lambda: made([entry(ALIGNMENT, 4, struct.pack("<I", 24))]), "is 24"),
    "alignment 2^31": (lambda: made([entry(ALIGNMENT, 4, struct.pack("<I", 2**31))]), "is 2147483648"),
    "alignment as text": (lambda: made([entry(ALIGNMENT, 8, text("32"))]), "is not a count"),
    "a tensor twice": (
        lambda: made(None, [info("a", (8,), 0, 0), info("a", (8,), 0, 32)], 64), "'a' stands twice"
    ),
    "five axes": (lambda: made(None, [info("a", (1,) * 5, 0, 0)], 32), "has 5 axes"),
    "axes without end": (lambda: made(None, [text("a") + struct.pack("<IIQ", 2**31, 0, 0)], 32), "axes"),
    "a type": (lambda: made(None, [info("a", (8,), 999, 0)], 32), "of type 999"),
    "a type that was taken out": (lambda: made(None, [info("a", (32,), 4, 0)], 32), "of type 4"),
    "half a block": (lambda: made(None, [info("a", (40,), 8, 0)], 64), "no multiple of the 32 in a block"),
    "extents that overflow": (lambda: made(None, [info("a", (2**40, 2**40), 0, 0)], 32), "truncated"),
    "beyond the end": (lambda: made(None, [info("a", (64,), 0, 0)], 32), "should end at byte"),
    "far beyond the end": (lambda: made(None, [info("a", (8,), 0, 2**62)], 32), "belong to no tensor"),
    "not aligned": (lambda: made(None, [info("a", (8,), 0, 16)], 64), "no multiple of the alignment 32"),
    "overlapping": (
        lambda: made(None, [info("a", (16,), 0, 0), info("b", (8,), 0, 32)], 64), "'b' and 'a' overlap"
    ),
    "a gap": (lambda: made(None, [info("a", (8,), 0, 0), info("b", (8,), 0, 96)], 128), "64 bytes before 'b'"),
    "bytes at the end": (lambda: made(None, [info("a", (8,), 0, 0)], 96), "64 bytes at its end"),
    "no text as a name": (
        lambda: made(None, [struct.pack("<Q", 1) + b"\xff" + info("", (8,), 0, 0)[8:]], 32), "is not text"
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", list(BAD))
def test_what_is_wrong_is_said(which: str, tmp_path: Path) -> None:
    content, message = BAD[which]
    path = tmp_path / "m.gguf"
    path.write_bytes(content())
    with pytest.raises(SourceError) as caught:
        read_header(path)
    assert message in str(caught.value)
    assert "m.gguf" in str(caught.value)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole.gguf", 2, types=Type.Q8_0).read_bytes()
    path = tmp_path / "m.gguf"
    for size in [*range(0, 200), *range(200, len(whole), 997), len(whole) - 32]:
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError):
            read_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_is_read_and_long_lists_are_not_kept(tmp_path: Path, version: int) -> None:
    more = {"attention.head_count_kv": [2, 1, 2, 1], "rope.scaling.type": "none", "flag": True, "half": 0.5}
    path = llama(tmp_path / "m.gguf", 4, more)
    path.write_bytes(b"GGUF" + struct.pack("<I", version) + path.read_bytes()[8:])
    head = read_header(path)
    assert head.version == version
    assert head.count("llama.block_count") == 4
    assert head.text("general.architecture") == "llama"
    assert head.value("llama.attention.head_count_kv") == [2, 1, 2, 1]
    assert (head.value("llama.flag"), head.value("llama.half")) == (True, 0.5)
    tokens = head.entries["tokenizer.ggml.tokens"]
    assert (tokens.count, tokens.value) == (TOKENS, None)
    assert head.read(head.entries["tokenizer.chat_template"])[8:].decode() == TEMPLATE
    assert head.value("no.such") is None
    assert head.count("no.such") is None


@pytest.mark.parametrize("kind", list(gguf.GGML_QUANT_SIZES))
def test_tensors_of_every_type_lie_where_the_package_finds_them(tmp_path: Path, kind: Type) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    noise = np.random.default_rng(0).integers(0, 256, (3, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("a", np.ones((5,), np.float32))
    writer.add_tensor("b", noise, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = read_header(tmp_path / "m.gguf").tensors["b"]
    assert data.shape == (3, 2 * elements)
    assert b"".join(data.chunks()) == noise.tobytes()


def test_an_alignment_of_its_own(tmp_path: Path) -> None:
    path = llama(tmp_path / "m.gguf", 2, alignment=256, types=Type.Q8_0)
    head = read_header(path)
    read = {one.name: one.data.tobytes() for one in gguf.GGUFReader(path).tensors}
    assert head.alignment == 256
    assert {name: b"".join(data.chunks()) for name, data in head.tensors.items()} == read


def test_parts_are_read_by_the_first(tmp_path: Path) -> None:
    whole = llama(tmp_path / "whole.gguf", 3)
    llama(tmp_path / "m.gguf", 3, split=10)
    parts = read_parts(tmp_path / "m-00001-of-00003.gguf")
    assert len(parts) == 3
    held = {name: b"".join(data.chunks()) for part in parts for name, data in part.tensors.items()}
    assert held == {name: b"".join(data.chunks()) for name, data in read_header(whole).tensors.items()}


def _parts(folder: Path) -> list[Path]:
    llama(folder / "m.gguf", 3, split=10)
    return [folder / part_name("m", number, 3) for number in range(3)]


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    first, second, third = _parts(tmp_path)
    with pytest.raises(
        SourceError, match=r"is one of 3 parts, and the metadata is in the first; give .*00001-of-00003"
    ):
        read_parts(second)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(SourceError, match=r"00003-of-00003.gguf is not part 3 of 3 .*split.no = 1"):
        read_parts(first)
    raw = bytearray(second.read_bytes())
    at = raw.index(b"split.no") + 12
    raw[at] = 2
    third.write_bytes(raw)
    with pytest.raises(SourceError, match=r"lies in both m-00002-of-00003.gguf and m-00003-of-00003.gguf"):
        read_parts(first)
    third.unlink()
    with pytest.raises(
        SourceError, match=r"the first of 3 parts, and m-00003-of-00003.gguf is not beside it"
    ):
        read_parts(first)
    third.write_bytes(kept)
    raw = bytearray(first.read_bytes())
    at = raw.index(b"split.tensors.count") + len("split.tensors.count") + 4
    raw[at] += 1
    first.write_bytes(raw)
    with pytest.raises(SourceError, match="states 31 tensors in all"):
        read_parts(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(SourceError, match=r"its name has to end in -00001-of-00003.gguf"):
        read_parts(tmp_path / "renamed.gguf")


def test_names_of_parts() -> None:
    assert part_name("m", 0, 1) == "m.gguf"
    assert part_name("m", 1, 12) == "m-00002-of-00012.gguf"
    assert stem_of(Path("a/m-00002-of-00012.gguf")) == "m"
    assert stem_of(Path("a/m-2-of-12.gguf")) == "m-2-of-12"


def test_types_are_those_of_the_package() -> None:
    from elastic_ir.formats.gguf.types import dtype_of, type_name, type_number
    from elastic_ir.tensors.lazy import size_of

    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        dtype = dtype_of(int(kind))
        assert dtype is not None
        assert (type_name(dtype), size_of((3, elements), dtype)) == (kind.name, 3 * size)
        assert type_number(dtype) == int(kind)
    with pytest.raises(EmitError, match="cannot hold tensors of complex64"):
        type_number("complex64")


def test_types_of_a_later_package_are_known_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elastic_ir.formats.gguf import types

    path = tmp_path / "m.gguf"
    path.write_bytes(made(None, [info("a", (64,), 43, 0)], 32))
    monkeypatch.setattr(types, "_BLOCKS", {2: types._BLOCKS[2]})  # an older table than the package's
    monkeypatch.setattr(
        gguf.constants, "GGML_QUANT_SIZES", {type("Kind", (int,), {"name": "Q9_9"})(43): (64, 20)}
    )
    types._later.cache_clear()
    try:
        data = read_header(path).tensors["a"]
        assert (data.dtype, len(b"".join(data.chunks()))) == ("Q9_9", 20)
        assert types.type_number("Q9_9") == 43
        types._later.cache_clear()
        monkeypatch.setitem(sys.modules, "gguf.constants", None)
        with pytest.raises(
            SourceError, match=r"is of type 43, which neither ElasticIR nor an installed.*pip install -U gguf"
        ):
            read_header(path)
    finally:
        types._later.cache_clear()
