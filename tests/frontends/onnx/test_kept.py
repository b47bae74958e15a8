"""What is unknown in an ONNX file but sound is kept; what does not fit, or cannot be written, changes nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from elastic_ir.cli.app import elastic_ir
from elastic_ir.emit.onnx.save import save_onnx
from elastic_ir.errors import EmitError, OutputError
from elastic_ir.frontends.onnx.graph import load_onnx
from elastic_ir.ir.graph import Graph
from elastic_ir.passes.depth.stretch import Stretch
from tests.frontends.onnx.models import chain, model, residual

Node = helper.make_node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "a.onnx"


# -- what is unknown but sound -----------------------------------------------------------------------------------------


def _stretched(path: Path) -> Graph:
    graph = load_onnx(path)
    count = len(graph.stages[0].blocks)
    return Stretch(to_stages=[count + 1]).run(graph)


def test_operators_that_nobody_knows_are_kept(path: Path) -> None:
    made = chain("unknown")
    path.write_bytes(made.SerializeToString())
    graph = load_onnx(path)
    assert sum(node.op == "onnx.com.example.Sorcery" for node in graph) == 3
    report = save_onnx(graph, path.with_name("b.onnx"))
    again = onnx.load(report.paths[0])
    assert again.graph.node == made.graph.node
    assert again.opset_import == made.opset_import


def test_an_operator_of_the_default_domain_that_nobody_knows_is_kept(path: Path) -> None:
    path.write_bytes(model([Node("Sorcery", ["x"], ["y"], power=3)]).SerializeToString())
    graph = load_onnx(path)
    assert "onnx.Sorcery" in {node.op for node in graph}
    with pytest.raises(
        EmitError, match=r"b\.onnx is not what ONNX's checker accepts: No Op registered for Sorcery"
    ):
        save_onnx(graph, path.with_name("b.onnx"))
    assert not path.with_name("b.onnx").exists()


def test_functions_are_kept(path: Path) -> None:
    made = chain("functions")
    path.write_bytes(made.SerializeToString())
    report = save_onnx(_stretched(path), path.with_name("b.onnx"))
    again = onnx.load(report.paths[0])
    assert again.functions == made.functions
    assert sum(node.op_type == "Act" for node in again.graph.node) == 4


def test_sparse_initializers_whose_names_are_no_paths_are_stretched_and_made_dense(path: Path) -> None:
    made = chain("sparse")
    for index, sparse in enumerate(made.graph.sparse_initializer):
        sparse.values.name = made.graph.node[3 * index].input[1] = f"w{index}"
    path.write_bytes(made.SerializeToString())
    graph = _stretched(path)
    assert sum(weight.mask is not None for weight in graph.weights.values()) == 4
    save_onnx(graph, path.with_name("sparse.onnx"))
    save_onnx(graph, path.with_name("dense.onnx"), sparse=False)
    kept, dense = (
        onnx.load(path.with_name("sparse.onnx")).graph,
        onnx.load(path.with_name("dense.onnx")).graph,
    )
    assert (len(kept.sparse_initializer), len(kept.initializer)) == (4, 0)
    assert (len(dense.sparse_initializer), len(dense.initializer)) == (0, 4)
    first = onnx.numpy_helper.to_array(dense.initializer[0]).reshape(-1)
    assert np.flatnonzero(first).tolist() == list(range(0, 24 * 24, 7))


def test_a_weight_that_is_an_output_too(path: Path) -> None:
    made = chain("quantised")
    made.graph.output.append(helper.make_tensor_value_info("layers.0.weight_q", TensorProto.INT8, [24, 24]))
    path.write_bytes(made.SerializeToString())
    report = save_onnx(_stretched(path), path.with_name("b.onnx"))
    assert [entry.name for entry in onnx.load(report.paths[0]).graph.output] == ["y", "layers.0.weight_q"]


# -- the command line --------------------------------------------------------------------------------------------------


def _run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(elastic_ir, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (["1,3,8"], "the input 'x' has 4 extents, not 3"),
        (["1,4,8,8"], "the input 'x' has 3 at axis 1, not 4"),
        (["1,3,8,8", "1,3"], "1 inputs, and --input-shape gives 2 shapes"),
    ],
)
def test_an_input_shape_that_does_not_fit(path: Path, shapes: list[str], text: str) -> None:
    path.write_bytes(residual().SerializeToString())
    code, output = _run("inspect", path, *(word for shape in shapes for word in ("--input-shape", shape)))
    assert code == 1
    assert text in " ".join(output.split())


def test_damage_on_the_command_line_is_one_line(path: Path) -> None:
    path.write_bytes(b"no model")
    code, output = _run("inspect", path)
    assert code == 1
    assert "a.onnx is not an ONNX model" in output
    assert "Traceback" not in output


# -- writing -----------------------------------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _with_external(path: Path) -> Graph:
    """A graph whose tensors lie in a file beside it, and are written so again."""
    made = residual()
    onnx.save(made, path, save_as_external_data=True, location="a.bin", size_threshold=0)
    return _stretched(path)


def _inside(path: Path) -> Graph:
    path.write_bytes(residual().SerializeToString())
    return _stretched(path)


FORMS = pytest.mark.parametrize("form", [_inside, _with_external])


@FORMS
def test_writing_into_a_folder_that_is_missing(path: Path, form: Callable[[Path], Graph]) -> None:
    graph = form(path)
    target = path.parent / "none" / "b.onnx"
    with pytest.raises(OutputError) as caught:
        save_onnx(graph, target)
    assert str(caught.value) == f"{target} cannot be written: the folder {target.parent} does not exist"
    with pytest.raises(OutputError) as caught:
        save_onnx(graph, path.parent)
    assert str(caught.value) == f"{path.parent} is a folder; give the name of a file"


@FORMS
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, form: Callable[[Path], Graph], where: str, call: int
) -> None:
    graph = form(path)
    target = path.with_name("b.onnx")
    target.write_bytes(b"old")
    target.with_name("b.onnx.data").write_bytes(b"old data")
    before = _contents(path.parent)
    genuine, calls = getattr(os, where), 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(*arguments)

    if form is _inside and call == 2:
        pytest.skip("there is one file only")
    monkeypatch.setattr(os, where, full)
    with pytest.raises(OutputError) as caught:
        save_onnx(graph, target)
    monkeypatch.undo()
    assert "b.onnx could not be written: no space left on device" in str(caught.value)
    assert _contents(path.parent) == before
