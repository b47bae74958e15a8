"""Bad ONNX files: one test for each kind, with its message."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import SourceError
from elastic_ir.formats.protobuf import field
from elastic_ir.frontends.onnx.graph import load_onnx
from elastic_ir.ir.graph import TensorType
from tests.frontends.onnx.models import model, residual, tensor, weights

Node = helper.make_node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "a.onnx"


def said_of(path: Path, made: onnx.ModelProto | bytes | None = None) -> str:
    """The one line that reading it is refused with."""
    if made is not None:
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    with pytest.raises(SourceError) as caught:
        load_onnx(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# -- no ONNX files -----------------------------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_a_folder(path: Path) -> None:
    assert said_of(path) == f"{path} could not be read: no such file or directory"
    assert said_of(path.parent) == f"{path.parent} could not be read: is a directory"


def test_an_empty_file(path: Path) -> None:
    assert said_of(path, b"") == f"{path} is empty"


def test_a_text(path: Path) -> None:
    assert said_of(path, b"version https://git-lfs.github.com/spec/v1\n") == (
        "a.onnx is not an ONNX model, or was cut short: a field at byte 0 has the wire type 6"
    )


def test_a_checkpoint_of_another_name(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)
    assert re.fullmatch(
        r"a\.onnx is not an ONNX model, or was cut short: a field at byte \d+ .*", said_of(path)
    )


def test_a_message_that_is_no_model(path: Path) -> None:
    assert said_of(path, onnx.ModelProto(producer_name="nobody")) == (
        "a.onnx is not an ONNX model: it holds no graph"
    )


def test_a_file_that_was_cut_short(path: Path) -> None:
    whole = residual().SerializeToString()
    said = said_of(path, whole[:-2000])
    assert re.fullmatch(
        r"a\.onnx is not an ONNX model, or was cut short: a field at byte \d+ reaches \d+ bytes beyond its message",
        said,
    )


def test_bodies_without_end(path: Path) -> None:
    body = field(5, tensor("ballast", weights(40, 40)).SerializeToString())
    for _ in range(70):
        body = field(1, field(5, field(6, body)))
    assert said_of(path, field(7, body)).startswith(
        "a.onnx is not an ONNX model, or was cut short: bodies lie more than 64 deep in one another at byte "
    )


# -- versions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [1, 6, 99])
def test_an_opset_that_is_not_read(path: Path, opset: int) -> None:
    assert said_of(path, model([Node("Relu", ["x"], ["y"])], opset=opset)) == (
        f"a.onnx uses opset {opset}; opsets 7 to {onnx.defs.onnx_opset_version()} are read (convert it with "
        "onnx.version_converter)"
    )


def test_no_opset(path: Path) -> None:
    made = model([Node("Relu", ["x"], ["y"])])
    made.ClearField("opset_import")
    assert said_of(path, made) == "a.onnx does not state which opset it uses"


def test_a_newer_format(path: Path) -> None:
    made = model([Node("Relu", ["x"], ["y"])])
    made.ir_version = 99
    assert said_of(path, made) == f"a.onnx has IR version 99; up to {onnx.IR_VERSION} are read"


# -- graphs ------------------------------------------------------------------------------------------------------------

GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "cyclic": (
        lambda: model([Node("Add", ["x", "b"], ["a"], name="first"), Node("Relu", ["a"], ["b"]),
                       Node("Relu", ["b"], ["y"])]),
        "node 'first' reads 'b', which is computed later: the nodes are cyclic or not in the order they run",
    ),
    "reads itself": (
        lambda: model([Node("Add", ["x", "y"], ["y"])]),
        "node 'Add' reads 'y', which is computed later: the nodes are cyclic or not in the order they run",
    ),
    "dangling": (
        lambda: model([Node("Relu", ["nobody"], ["y"])]),
        "node 'Relu' reads 'nobody', which nothing computes",
    ),
    "computed twice": (
        lambda: model([Node("Relu", ["x"], ["y"]), Node("Tanh", ["x"], ["y"])]),
        "'y' is computed twice",
    ),
    "output of nothing": (lambda: model([Node("Relu", ["x"], ["z"])]), "the output 'y' is computed by nothing"),
    "no output": (lambda: _without(model([Node("Relu", ["x"], ["y"])]), "output"), "the graph has no output"),
    "two of a name": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [tensor("w", weights(8)), tensor("w", weights(8))]),
        "two constants are named 'w'",
    ),
    "no name": (
        lambda: model([Node("Relu", ["x"], ["y"])], [tensor("", weights(8))]),
        "an initializer has no name",
    ),
    "too few bytes": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [_changed(raw_data=b"1234")]),
        "the initializer 'w' has 4 bytes where its shape [8, 8] needs 256",
    ),
    "a negative extent": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [_changed(dims=[-8, 8])]),
        "the initializer 'w' has the shape [-8, 8]",
    ),
    "absurd extents": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [_changed(dims=[2**62, 2**62])]),
        f"the initializer 'w' has 256 bytes where its shape [{2**62}, {2**62}] needs {2**126}",
    ),
    "a hundred extents": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [_changed(dims=[1] * 100)]),
        "the initializer 'w' has 100 extents; up to 64 are read",
    ),
    "a forged mark": (
        lambda: model([Node("Add", ["x", "w"], ["y"])], [_external(tensor("w", weights(8)), **{"elastic-ir": "0:9"})]),
        "its tensors do not lie where they seem to",
    ),
}  # fmt: skip


def _without(made: onnx.ModelProto, table: Any) -> onnx.ModelProto:
    made.graph.ClearField(table)
    return made


def _changed(**changes: Any) -> onnx.TensorProto:
    proto = tensor("w", weights(8, 8))
    for name, value in changes.items():
        proto.ClearField(name)
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return proto


def _external(proto: onnx.TensorProto, **entries: str) -> onnx.TensorProto:
    proto.ClearField("raw_data")
    proto.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        proto.external_data.add(key=key, value=value)
    return proto


@pytest.mark.parametrize("kind", list(GRAPHS))
def test_graphs_that_cannot_be(path: Path, kind: str) -> None:
    make, text = GRAPHS[kind]
    assert said_of(path, make()) in (f"a.onnx: {text}", f"a.onnx is damaged: {text}")


def test_names_of_thousands_of_characters_are_cut_out_of_the_message(path: Path) -> None:
    said = said_of(path, model([Node("Relu", ["n" * 9000], ["y"])]))
    assert said.startswith("a.onnx: node 'Relu' reads 'nnn")
    assert said.endswith("nnn', which nothing computes")
    assert len(said) < 700


# -- functions and shape inference -------------------------------------------------------------------------------------


def _calls(*bodies: list[onnx.NodeProto]) -> onnx.ModelProto:
    made = model([Node("F0", ["x"], ["y"], domain="local")])
    made.opset_import.append(helper.make_opsetid("local", 1))
    for index, body in enumerate(bodies):
        made.functions.append(
            helper.make_function("local", f"F{index}", ["a"], ["c"], body, list(made.opset_import))
        )
    return made


def test_a_function_that_calls_itself(path: Path) -> None:
    assert said_of(path, _calls([Node("F0", ["a"], ["c"], domain="local")])) == (
        "a.onnx: functions call themselves, or one another more than 100 deep"
    )


def test_functions_that_double_forty_times(path: Path) -> None:
    twice = [
        [Node(f"F{i + 1}", ["a"], ["b"], domain="local"), Node(f"F{i + 1}", ["b"], ["c"], domain="local")]
        for i in range(40)
    ]
    assert said_of(path, _calls(*twice, [Node("Relu", ["a"], ["c"])])) == (
        "a.onnx: with the functions that its nodes call it has 3298534883327 nodes; up to 262144 are read"
    )


def test_contents_that_double_forty_times_are_not_followed(path: Path) -> None:
    """Shape inference, which follows small integers, would fill any memory; shapes stay open then."""
    nodes = [Node("Concat", [f"b{i}"] * 2, [f"b{i + 1}"], axis=0) for i in range(40)]
    nodes += [Node("ConstantOfShape", ["b40"], ["vast"]), Node("Relu", ["x"], ["y"])]
    path.write_bytes(model(nodes, [tensor("b0", np.array([1], np.int64))]).SerializeToString())
    types = {node.op: node.output.type for node in load_onnx(path)}
    assert types["onnx.Relu"] is not None
    assert types["onnx.ConstantOfShape"] is None


@pytest.mark.parametrize(
    "kind", ["Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Reshape", "Size", "Squeeze"]
)
def test_a_list_of_eight_milliards_is_not_followed(path: Path, kind: str) -> None:
    options: dict[str, Any] = {"Cast": {"to": 7}, "Concat": {"axis": 0}}.get(kind, {})
    operands = ["x"] * (1 if kind in ("Cast", "ConstantOfShape", "Size") else 2)
    made = model(
        [Node(kind, operands, ["z"], **options), Node("Neg", ["x"], ["y"])],
        inputs={"x": [1 << 33]},
        outputs={"y": ["n"]},
    )
    for entry in (made.graph.input[0], made.graph.output[0]):
        entry.type.tensor_type.elem_type = TensorProto.INT64
    path.write_bytes(made.SerializeToString())
    types = {node.op: node.output.type for node in load_onnx(path)}
    assert types["onnx.Neg"] == TensorType((1 << 33,), "int64")


# -- external data -----------------------------------------------------------------------------------------------------


def _elsewhere(**entries: str) -> onnx.ModelProto:
    return model([Node("MatMul", ["x", "w"], ["y"])], [_external(tensor("w", weights(8, 8)), **entries)])


def test_external_data_is_read_from_the_folder_and_below(path: Path) -> None:
    (path.parent / "below").mkdir()
    (path.parent / "below" / "w.bin").write_bytes(b"\0" * 64 + weights(8, 8).tobytes())
    path.write_bytes(_elsewhere(location="below/w.bin", offset="64").SerializeToString())
    data = load_onnx(path).weights["w"].storage.data
    assert b"".join(map(bytes, data.chunks())) == weights(8, 8).tobytes()


@pytest.mark.parametrize(
    "way", ["..", "absolute", "link", "linked folder", "", ".", "a\0b", "a\nb", "circle"]
)
def test_external_data_outside_the_folder(path: Path, way: str) -> None:
    secret = path.parent.parent / "secret.bin"
    secret.write_bytes(weights(8, 8).tobytes())
    (path.parent / "link.bin").symlink_to(secret)
    (path.parent / "linked").symlink_to(path.parent.parent)
    (path.parent / "circle").symlink_to(path.parent / "circle")
    location = {
        "..": "../secret.bin",
        "absolute": str(secret),
        "link": "link.bin",
        "linked folder": "linked/secret.bin",
    }
    given = location.get(way, way)
    assert said_of(path, _elsewhere(location=given)) == (
        f"a.onnx: the initializer 'w' wants its data from {given!r}, which is outside the model's folder"
    )


def test_external_data_that_is_missing(path: Path) -> None:
    assert said_of(path, _elsewhere(location="w.bin")) == (
        "a.onnx: the file w.bin with the data of the initializer 'w' cannot be read: no such file or directory"
    )
    (path.parent / "w.bin").mkdir()
    assert said_of(path) == "a.onnx: w.bin, with the data of the initializer 'w', is not a regular file"


def test_external_data_that_is_too_short(path: Path) -> None:
    (path.parent / "w.bin").write_bytes(b"\0" * 200)
    assert said_of(path, _elsewhere(location="w.bin")) == (
        "a.onnx: w.bin has 200 bytes, and the initializer 'w' should end at 256"
    )
    assert said_of(path, _elsewhere(location="w.bin", offset="64", length="100")) == (
        "a.onnx: the initializer 'w' has 100 bytes where its shape [8, 8] needs 256"
    )


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"offset": "-4"}, "offset -4, length 256"),
        ({"length": "-4"}, "offset 0, length -4"),
        ({"offset": "far"}, "invalid literal for int() with base 10: 'far'"),
    ],
)
def test_external_data_at_a_place_that_is_none(path: Path, entries: dict[str, str], text: str) -> None:
    (path.parent / "w.bin").write_bytes(b"\0" * 300)
    assert said_of(path, _elsewhere(location="w.bin", **entries)) == (
        f"a.onnx: the initializer 'w' has a damaged place in w.bin ({text})"
    )


def test_a_file_that_changes_after_it_was_read(path: Path) -> None:
    path.write_bytes(residual().SerializeToString())
    graph = load_onnx(path)
    path.write_bytes(residual(2).SerializeToString())
    with pytest.raises(SourceError, match=r"a\.onnx was changed after it was read; read it again"):
        save_onnx(graph, path.with_name("b.onnx"))
    assert not path.with_name("b.onnx").exists()


# -- sparse initializers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "places", "dims", "text"),
    [
        (2, [3, 3], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [3, 1], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [3, 16], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [-1, 3], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [1], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [], [4, 4], "has indices that do not rise within its 16 elements"),
        (2, [[0, 1], [0, 4]], [4, 4], "has an index outside its shape [4, 4]"),
        (2, [[0, 1, 2]], [4, 4], "has 2 values and indices [1, 3]"),
        (1, [[]], [], "has 1 values and indices [1, 0]"),
        (2, [0, 1], [-4, 4], "has the shape [-4, 4]"),
        (2, [0.0, 1.0], [4, 4], "has values or indices of a type that is not read"),
        (
            2, [0, 1], [2**20, 2**20],
            f"has the shape [{2**20}, {2**20}], and with it 2 values are stored of {2**40}; "
            "so few of so many are not read",
        ),
    ],
)  # fmt: skip
def test_sparse_initializers_that_do_not_fit(
    path: Path, values: int, places: list[Any], dims: list[int], text: str
) -> None:
    made = model([Node("MatMul", ["x", "w"], ["y"])])
    array = np.array(places)
    indices = tensor(
        "", array if array.dtype.kind == "i" else array.astype(np.int64 if not array.size else float)
    )
    made.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=tensor("w", weights(values)), indices=indices, dims=dims)
    )
    assert said_of(path, made) == f"a.onnx: the sparse initializer 'w' {text}"
