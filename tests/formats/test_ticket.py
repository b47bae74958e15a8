"""Ticket files that are damaged, cut short, newer, or claim what is not there: one line each, and no memory for it."""

from __future__ import annotations

import base64
import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import elastic_ir as eir
from elastic_ir.errors import MaskError, SourceError
from elastic_ir.formats.safetensors import read_safetensors, write_safetensors
from elastic_ir.formats.ticket import GRAPH, INDEX, pack_graph, read_ticket, unpack_graph, write_ticket
from elastic_ir.frontends.masks import read_masks
from elastic_ir.tensors.lazy import InlineData, Mask, TensorData
from elastic_ir.tensors.weights import Storage
from tests.emit.nets import IMAGE, network, same_tensors, some_masks, ticket

Tensors = dict[str, TensorData]
Masked = dict[str, Any]


def damaged(path: Path, change: Callable[[Tensors, Masked], None]) -> str:
    """Write a small ticket with its parts or its index changed; what both readers say of it."""
    keep = Mask.from_array(np.array([[1, 0, 1], [0, 1, 0]]))
    data = InlineData((2, 3), "float32", np.arange(6, dtype=np.float32).tobytes())
    full = Mask.from_array(np.ones((2, 3)))
    write_ticket(path, {"a.weight": Storage(data, keep), "b.weight": Storage(data, full), "c": Storage(data)})
    tensors, metadata = read_safetensors(path)
    inline: Tensors = {n: InlineData(t.shape, t.dtype, b"".join(t.chunks())) for n, t in tensors.items()}
    index = json.loads(metadata[INDEX])
    change(inline, index["masked"])
    write_safetensors(path, inline, {INDEX: json.dumps(index)})
    return said(path)


def read_all(path: Path) -> None:
    read = read_ticket(path)
    for tensor in read.tensors.values():
        for _ in tensor.chunks():
            pass
    read.read_masks()  # a weight that is stored whole does not look at its mask


def said(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_all(path)
    with pytest.raises(SourceError, match=re.escape(str(caught.value))):
        eir.load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text.removeprefix(f"{path} ").removeprefix("is damaged: ")


def put(name: str, shape: tuple[int, ...], dtype: str, raw: bytes) -> Callable[[Tensors, Masked], None]:
    return lambda tensors, _: tensors.update({name: InlineData(shape, dtype, raw)})


def drop(*names: str) -> Callable[[Tensors, Masked], None]:
    def change(tensors: Tensors, _: Masked) -> None:
        for name in names:
            del tensors[name]

    return change


def claim(name: str, **entry: Any) -> Callable[[Tensors, Masked], None]:
    return lambda _, masked: masked[name].update(entry)


SIX = bytes(24)
DAMAGES: dict[str, tuple[Callable[[Tensors, Masked], None], str]] = {
    "fewer values than ones": (
        put("a.weight:kept", (2,), "float32", bytes(8)),
        "the mask of 'a.weight' keeps 3 values, the file holds 2",
    ),
    "more values than ones": (
        put("a.weight:kept", (4,), "float32", bytes(16)),
        "the mask of 'a.weight' keeps 3 values, the file holds 4",
    ),
    "a whole weight under a mask that prunes": (
        put("b.weight:mask", (1,), "uint8", b"\xf8"),
        "the mask of 'b.weight' keeps 5 values, the file holds 6",
    ),
    "padding": (
        put("a.weight:mask", (1,), "uint8", b"\xa9"),
        "the mask of 'a.weight' has ones behind its end",
    ),
    "no mask": (drop("a.weight:mask"), "the mask of 'a.weight' is missing"),
    "no values": (drop("a.weight:kept"), "the values of 'a.weight' are missing"),
    "no whole values": (drop("b.weight"), "the values of 'b.weight' are missing"),
    "nothing": (drop("a.weight:kept", "a.weight:mask"), "the mask and the values of 'a.weight' are missing"),
    "both": (
        put("a.weight", (2, 3), "float32", SIX),
        "it holds 'a.weight' twice, whole and packed",
    ),
    "not in the index": (
        lambda _, masked: masked.pop("a.weight"),
        "it holds 'a.weight:mask', but its index has no weight 'a.weight'",
    ),
    "a stray mask of a plain weight": (
        put("c:mask", (1,), "uint8", b"\xfc"),
        "it holds 'c:mask', but its index has no weight 'c'",
    ),
    "parts of parts": (
        put("a.weight:kept:mask", (1,), "uint8", b"\xfc"),
        "it holds 'a.weight:kept:mask', but its index has no weight 'a.weight:kept'",
    ),
    "a long mask": (
        put("a.weight:mask", (2,), "uint8", b"\xa8\0"),
        "the mask of 'a.weight' is uint8 [2], shape [2, 3] needs 1 bytes of uint8",
    ),
    "a mask of another dtype": (
        put("a.weight:mask", (1,), "int8", b"\xa8"),
        "the mask of 'a.weight' is int8 [1], shape [2, 3] needs 1 bytes of uint8",
    ),
    "values in a table": (
        put("a.weight:kept", (1, 3), "float32", bytes(12)),
        "the values of 'a.weight' have 2 dimensions, not one",
    ),
    "another whole shape": (
        claim("b.weight", shape=[3, 2]),
        "'b.weight' has the shape [2, 3], its index entry [3, 2]",
    ),
    "a huge shape": (
        claim("a.weight", shape=[1 << 30, 1 << 20]),
        "the mask of 'a.weight' is uint8 [1], shape [1073741824, 1048576] needs 140737488355328 bytes of uint8",
    ),
    "a shape that overflows": (
        claim("a.weight", shape=[1 << 32, 1 << 32]),
        "the shape of 'a.weight' is beyond any tensor: [4294967296, 4294967296]",
    ),
    "a shape that overflows beside a zero": (
        claim("a.weight", shape=[0, 1 << 70]),
        "the shape of 'a.weight' is beyond any tensor: [0, 1180591620717411303424]",
    ),
    "too many dimensions": (
        claim("a.weight", shape=[1] * 65),
        "the shape of 'a.weight' is beyond any tensor: [1, 1, 1, 1, 1",
    ),
    "a negative extent": (claim("a.weight", shape=[-2, -3]), "the index entry of 'a.weight' has no shape"),
    "an extent that is a truth": (claim("a.weight", shape=[True, 6]), "the index entry of 'a.weight' has no"),
    "a broken extent": (claim("a.weight", shape=[2.0, 3]), "the index entry of 'a.weight' has no shape"),
    "no shape": (claim("a.weight", shape=None), "the index entry of 'a.weight' has no shape"),
    "an unknown mask dtype": (
        claim("a.weight", mask="float7"),
        "the index entry of 'a.weight' has no shape,",
    ),
    "a list for a dtype": (
        claim("a.weight", mask=["bool"]),
        "the index entry of 'a.weight' has no shape, or",
    ),
    "no entry": (
        lambda _, masked: masked.update({"a.weight": None}),
        "the index entry of 'a.weight' has no shape, or no dtype of a mask: None",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_parts_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    change, expected = DAMAGES[kind]
    tracemalloc.start()
    text = damaged(tmp_path / "a.ticket", change)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.startswith(expected)
    assert peak < 20_000_000  # a claim costs nothing


def test_what_the_helper_changes_is_whole_without_a_change(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        damaged(tmp_path / "a.ticket", lambda *_: None)


# -- the index and the graph -------------------------------------------------------------------------------------------


def metadata_said(path: Path, metadata: dict[str, str]) -> str:
    write_safetensors(path, {"c": InlineData((2,), "uint8", b"ab")}, metadata)
    return said(path)


def test_versions(tmp_path: Path) -> None:
    text = metadata_said(tmp_path / "a.ticket", {INDEX: '{"version": 2, "shapes": []}'})
    assert text == "has version 2 of the ticket format; this ElasticIR reads version 1"


@pytest.mark.parametrize(
    "index",
    ["", "[]", "{}", "null", '{"version": "1"}', '{"version": 0, "masked": {}}', '{"version": true, "masked": {}}',
     '{"version": 1}', '{"version": 1, "masked": []}', "[" * 100_000],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, index: str) -> None:
    assert metadata_said(tmp_path / "a.ticket", {INDEX: index}).startswith("its index cannot be read (")


def test_another_safetensors_file_under_this_name(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.ticket")
    assert said(tmp_path / "a.ticket") == "is not a ticket file: its metadata has no 'elastic_ir.ticket'"


GOOD = '{"version":1,"masked":{}}'


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        ("!", "base64"),
        (base64.b64encode(b"no zlib").decode(), "incorrect header"),
        (base64.b64encode(zlib.compress(b"{}" * 99)[:-5]).decode(), "cut short"),
        (base64.b64encode(zlib.compress(b"{}") + b"more").decode(), "bytes follow its end"),
        (base64.b64encode(zlib.compress(b"\xff\xfe")).decode(), "utf-8"),
        (pack_graph("{"), "Expecting property name"),
        (pack_graph("[" * 100_000), "nested too deeply"),
    ],
)
def test_a_graph_that_is_damaged(tmp_path: Path, packed: str, reason: str) -> None:
    write_safetensors(tmp_path / "a.ticket", {}, {INDEX: GOOD, GRAPH: packed})
    with pytest.raises(SourceError, match=r"a\.ticket: the graph in its metadata is damaged") as caught:
        eir.load(tmp_path / "a.ticket")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_expands_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_graph(" " * 50_000_000)
    assert len(packed) < 100_000
    monkeypatch.setattr("elastic_ir.formats.ticket.MAX_GRAPH", 1_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match="it expands to more than 1000000 bytes"):
        unpack_graph(packed)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ticket"
    eir.save(ticket(), path)
    whole = path.read_bytes()
    for cut in [*(len(whole) * tenths // 10 for tenths in range(1, 10)), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert "truncated" in said(path)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage!" * 999])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ticket").write_bytes(content)
    assert said(tmp_path / "a.ticket").startswith(
        ("is empty", "is not a .ticket file: its first 8", "is not a .ticket")
    )


def test_a_missing_file(tmp_path: Path) -> None:
    assert said(tmp_path / "a.ticket") == "does not exist"


def test_a_file_that_was_replaced_is_told(tmp_path: Path) -> None:
    eir.save(ticket(), tmp_path / "a.ticket")
    read = eir.load(tmp_path / "a.ticket")
    eir.save(ticket(20), tmp_path / "a.ticket")
    with pytest.raises(SourceError, match="was changed after it was read; read it again"):
        read.state_dict()


# -- other ways in -----------------------------------------------------------------------------------------------------


def test_a_ticket_as_a_mask_file(tmp_path: Path) -> None:
    eir.save(ticket(), tmp_path / "a.ticket")
    graph = eir.load(tmp_path / "a.ticket")
    assert read_masks(tmp_path / "a.ticket") == {
        name: weight.mask for name, weight in graph.weights.items() if weight.mask is not None
    }
    other = eir.trace(network(seed=1), input_shape=IMAGE)
    torch.save(other.state_dict(), tmp_path / "b.pt")
    same_tensors(eir.load(tmp_path / "b.pt", masks=tmp_path / "a.ticket").masks(), some_masks(network()))
    eir.save(other, tmp_path / "none.ticket")
    with pytest.raises(MaskError, match=r"none\.ticket holds no masks"):
        read_masks(tmp_path / "none.ticket")


@pytest.mark.slow
def test_without_a_graph_names_and_shapes_tell(tmp_path: Path) -> None:
    weights = {n: w.storage for n, w in ticket().weights.items() if w.persistent}
    write_ticket(tmp_path / "a.ticket", weights)
    read = eir.load(tmp_path / "a.ticket")
    assert [len(stage) for stage in read.stages] == [2, 2, 2]
    same_tensors(read.state_dict(), ticket().state_dict())
    with_class = eir.load(tmp_path / "a.ticket", arch=network())
    same_tensors(with_class.state_dict(), ticket().state_dict())
    same_tensors(with_class.masks(), ticket().masks())
