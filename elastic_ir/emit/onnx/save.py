"""Saving to ``.onnx``: built anew from an ONNX source, or exported as a module; made sparse if wanted, checked, run."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.emit import refuse_without_values
from elastic_ir.emit.onnx.check import Expected, check_file, compare_runs, feeds_of, run_file
from elastic_ir.emit.onnx.file import LIMIT, size_of, write_external, write_onnx
from elastic_ir.emit.onnx.model import build_onnx
from elastic_ir.errors import EmitError, OutputError, reason
from elastic_ir.formats.files import atomic_output, existing_mode, refuse_long_name, sync, temporary
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import UNKNOWN
from elastic_ir.onnx_model import OnnxSource, is_external, mark_of, opsets_of
from elastic_ir.tensors.lazy import TensorData

if TYPE_CHECKING:
    import onnx

    from elastic_ir.emit.comparison import Difference
    from elastic_ir.emit.onnx.export import Exported


@dataclass(frozen=True)
class OnnxReport:
    """What was written, and what the checks found."""

    paths: tuple[Path, ...]
    opset: int
    size: int  #: bytes, external data included
    dense_size: int | None = None  #: bytes of the dense form, where a sparse one was written
    sparse_weights: int = 0
    dynamic: bool | None = None  #: whether the batch is open; None for a graph that was ONNX before
    #: from the module's outputs; None where there was no module or no run
    difference: Difference | None = None


def save_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    check: bool = True,
    sparse: bool | None = None,
    opset: int | None = None,
    dynamic: bool = True,
    fold_batchnorm: bool = False,
) -> OnnxReport:
    """Write a graph to ONNX, with initializers named as the state dict and pruned weights exactly zero.

    A graph from an ONNX file is written as such again; any other is exported as the module it is emitted as, and run in
    onnxruntime against PyTorch (``check=False`` leaves that out; the checker always runs). ``sparse`` writes sparse
    initializers where they are smaller, or none; None keeps what a source has. ``dynamic`` opens the batch axis.
    Above 2 GiB the tensors go to ``NAME.onnx.data`` beside it. Raises EmitError and OutputError, and then nothing is
    written.
    """
    path = Path(path)
    refuse_without_values(graph)
    exported = None
    source = graph.origin if isinstance(graph.origin, OnnxSource) else None
    if source is not None:
        model, tensors = build_onnx(graph, sparse=sparse is not False)
        _refuse_changes(source, opset, fold_batchnorm=fold_batchnorm)
        external = any(map(is_external, source.model.graph.initializer))
    else:
        exported = _export(graph, check=check, opset=opset, dynamic=dynamic, fold_batchnorm=fold_batchnorm)
        model, tensors = exported.model, exported.tensors
        external = False
    expected = exported.expected if exported is not None else None
    turned, dense = 0, None
    if sparse:
        from elastic_ir.emit.onnx.sparse import dense_size, sparsify

        if source is not None and check:
            before = copy.deepcopy(model), dict(tensors)
        dense = dense_size(model, tensors)
        sparsify(model, tensors)
        turned = len(model.graph.sparse_initializer)
        if source is not None and check and turned:
            expected = _dense_runs(source, *before)
    expected = expected if check else None
    report = OnnxReport(
        (path,), opsets_of(model).get("", 0), 0, dense, turned,
        exported.dynamic if exported is not None else None,
    )  # fmt: skip
    external = external and any(map(mark_of, model.graph.initializer))
    if external or size_of(model, tensors) > LIMIT:
        return _save_external(path, model, tensors, expected, report)
    with atomic_output(path) as temporary:
        write_onnx(temporary, model, tensors)
        difference = _checked(temporary, path, model, expected)
        report = replace(report, size=temporary.stat().st_size, difference=difference)
    return report


def _refuse_changes(source: OnnxSource, opset: int | None, *, fold_batchnorm: bool) -> None:
    have = opsets_of(source.model)[""]
    if opset is not None and opset != have:
        raise EmitError(
            f"{source.path.name} has opset {have} and keeps it; convert it with onnx.version_converter to get {opset}"
        )
    if fold_batchnorm:
        raise EmitError(
            f"batch norms are folded on export from PyTorch; {source.path.name} is ONNX already, and keeps its nodes"
        )


def _export(graph: Graph, *, check: bool, opset: int | None, dynamic: bool, fold_batchnorm: bool) -> Exported:
    from elastic_ir.emit.module import to_module

    if graph.origin is UNKNOWN and not graph.is_program:
        raise EmitError(
            f"{graph.name} is a state dict without a network; say with --arch SOURCE what it belongs to"
        )
    from elastic_ir.emit.onnx.export import export_module

    module = to_module(graph, check=check)
    return export_module(
        module, graph, opset=opset, dynamic=dynamic, fold_batchnorm=fold_batchnorm, compare=check
    )


def _dense_runs(
    source: OnnxSource, model: onnx.ModelProto, tensors: dict[str, TensorData]
) -> Expected | None:
    """What the dense form of a model returns in onnxruntime; None where that does not run it on made-up inputs."""
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder) / "dense.onnx", Path(folder) / "dense.onnx.data"
        if size_of(model, tensors) > LIMIT:
            write_external(path, data, data.name, model, tensors)
        else:
            write_onnx(path, model, tensors)
        try:
            feeds = [feeds_of(source, seed) for seed in (0, 1)]
            return Expected(feeds, run_file(path, feeds), "the dense model's")
        except EmitError:  # an operator that it lacks, or inputs that only the user knows
            return None


def _checked(file: Path, name: Path, model: onnx.ModelProto, expected: Expected | None) -> Difference | None:
    try:
        check_file(file, model)
    except EmitError as error:
        raise EmitError(str(error).replace(file.name, name.name)) from error
    try:
        return compare_runs(file, expected) if expected is not None else None
    except EmitError as error:
        from elastic_ir.emit.comparison import SKIP

        raise EmitError(f"{str(error).replace(file.name, name.name)}; nothing was written; {SKIP}") from error


def _save_external(
    path: Path,
    model: onnx.ModelProto,
    tensors: dict[str, TensorData],
    expected: Expected | None,
    report: OnnxReport,
) -> OnnxReport:
    """Both files are made in a folder of their own beside the target, checked there, and then renamed."""
    existing_mode(path, path)
    data = path.with_name(f"{path.name}.data")
    refuse_long_name(data, "the file of tensors")
    try:
        with temporary(path, folder=True) as folder:
            made, bytes_of = folder / path.name, folder / data.name
            write_external(made, bytes_of, data.name, model, tensors)
            difference = _checked(made, path, model, expected)
            size = made.stat().st_size + bytes_of.stat().st_size
            sync(bytes_of)
            sync(made)
            _replace_both((bytes_of, data), (made, path), folder / "before")
    except OSError as error:
        raise OutputError(
            f"{path} could not be written: {reason(error)}; what was there is unchanged"
        ) from error
    return replace(report, paths=(path, data), size=size, difference=difference)


def _replace_both(data: tuple[Path, Path], model: tuple[Path, Path], before: Path) -> None:
    """Give two files their names; where the second cannot have its own, the first name is what it was before."""
    kept = data[1].exists()
    if kept:
        try:
            os.link(data[1], before)
        except OSError:  # some file systems have no second names
            shutil.copyfile(data[1], before)
    os.replace(*data)
    try:
        os.replace(*model)
    except BaseException:
        if kept:
            os.replace(before, data[1])
        else:
            data[1].unlink()
        raise
