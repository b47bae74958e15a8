"""``elastic-ir export``: a network as an ONNX model, as Python source, or as any other file that can be written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from elastic_ir.cli import output, tables
from elastic_ir.cli.app import COMMANDS, FORCE_OPTION
from elastic_ir.cli.kinds import as_path
from elastic_ir.cli.options import SOURCE, Reading, note_source, source_options
from elastic_ir.cli.resize import Wanted
from elastic_ir.formats import ONNX, PYTHON, PYTORCH

if TYPE_CHECKING:
    from elastic_ir.emit.onnx.save import OnnxReport
    from elastic_ir.ir.graph import Graph

EPILOG = """\
\b
Examples:
  elastic-ir export model.pt -o model.onnx
  elastic-ir export ticket.pt -o ticket.onnx --sparse
  elastic-ir export timm:convnext_tiny -o convnext.onnx --opset 18
  elastic-ir export weights.safetensors --arch torchvision:resnet50 -o resnet50.onnx
  elastic-ir export model.onnx -o smaller.onnx --sparse
  elastic-ir export model.pt -o resnet56.py
  elastic-ir export timm:vit_tiny_patch16_224 -o vit.py --weights

Sparse initializers save space on disk only: onnxruntime makes them dense when it loads them. Where a runtime refuses
them (TensorRT and OpenVINO read none), export without --sparse.
"""


@click.command("export", short_help=COMMANDS["export"], epilog=EPILOG)
@click.argument("source", type=SOURCE)
@click.option(
    "-o", "--out", type=click.Path(), metavar="OUT",
    help=f"The file to write. Without it, the source's name with {ONNX.suffixes[0]}. Another extension of "
    f"{output.WITH_WEIGHTS} writes that kind of file; {PYTHON.suffixes[0]} a definition in plain PyTorch.",
)  # fmt: skip
@click.option(
    "--sparse", is_flag=True,
    help="Write each pruned weight as a sparse initializer where that is smaller; what survives is taken from the "
    "mask, or else from exact zeros.",
)  # fmt: skip
@click.option(
    "--opset", type=click.IntRange(min=18), metavar="N",
    help="The ONNX opset to write, 18 or later; 20 without it. A source that is ONNX already keeps its own.",
)  # fmt: skip
@click.option(
    "--static", is_flag=True, help="Fix the batch to that of the example input; without it the batch is open."
)
@click.option(
    "--fold-batchnorm", is_flag=True,
    help="Fold batch norms into the convolutions before them. Names and structure change, so that the result cannot be "
    "stretched again; pruned weights stay zero.",
)  # fmt: skip
@click.option(
    "--weights",
    is_flag=True,
    help="Beside a .py file, write the state dict that it loads, as .pt of the same name.",
)
@click.option("--no-check", is_flag=True, help="Do not run the result against PyTorch.")
@FORCE_OPTION
@source_options
def export(
    source: str, out: str | None, sparse: bool, opset: int | None, static: bool, fold_batchnorm: bool, weights: bool,
    no_check: bool, reading: Reading,
) -> None:  # fmt: skip
    """Write SOURCE as an ONNX model: initializers named as the state dict, pruned weights exactly zero.

    The result is checked by ONNX's checker and run in onnxruntime against PyTorch. With -o NET.py, SOURCE is written
    as readable Python instead: a module that loads the state dict strictly and gives the same outputs.
    """
    wanted = Wanted(out=out)
    wanted.check_remote(folder=False)
    path = as_path(out) if out is not None else output.beside(source, ONNX.suffixes[0])
    if out is None:
        output.refuse_cache(path)
    if not ONNX.names(path) and (sparse or opset or static or fold_batchnorm):
        raise click.UsageError("--sparse, --opset, --static and --fold-batchnorm are for .onnx files")
    if weights and not PYTHON.names(path):
        raise click.UsageError("--weights is for .py files; all others hold their weights")
    inputs = reading.inputs(source)
    wanted.refuse_overwriting(path, inputs, streamed=False)
    if weights:
        _refuse_weights(path, wanted, inputs)
    graph = reading.load(source)
    if weights or not PYTHON.names(path):  # Python source alone holds none
        note_source(source, graph, reading.pretrained)
    made: list[_Exported] = []

    def write(to: Path) -> Sequence[Path]:
        if PYTHON.names(to):
            made.append(_source(graph, source, to, weights, not no_check))
        elif not ONNX.names(to):
            made.append(_Exported(output.save(graph, to, check=not no_check)))
        else:
            from elastic_ir.emit.onnx.save import save_onnx

            report = save_onnx(
                graph, to, check=not no_check, sparse=sparse, opset=opset, dynamic=not static,
                fold_batchnorm=fold_batchnorm,
            )  # fmt: skip
            made.append(_Exported(report.paths, _facts(report, static)))
        return made[-1].paths

    if out is not None and wanted.remote:
        from elastic_ir.cli.remote import uploaded

        files = [*output.files_of(path)[1:], *([_weights_of(path)] if weights else [])]
        wrote, data = uploaded(out, write, [file.name for file in files])
    else:
        with tables.status(f"writing {path}"):
            written = write(path)
        wrote, data = output.wrote(written), output.written_data(written)
    tables.show_facts([*made[0].facts, *wrote, *made[0].after])
    tables.say_result({"source": source, **data})


@dataclass(frozen=True)
class _Exported:
    """What was written, and what there is to say of it, before the files and after them."""

    paths: Sequence[Path]
    facts: Sequence[tuple[str, str]] = ()
    after: Sequence[tuple[str, str]] = ()


def _weights_of(path: Path) -> Path:
    """The file of weights beside Python source."""
    return path.with_suffix(PYTORCH.suffixes[0])


def _refuse_weights(path: Path, wanted: Wanted, inputs: dict[str, str | None]) -> None:
    """OutputError where the weights beside Python source would be written over something."""
    beside = _weights_of(path)
    out = None
    if wanted.out is not None and wanted.remote:
        from elastic_ir.formats.remote import url_beside

        out = url_beside(wanted.out, beside.name)
    Wanted(out=out).refuse_overwriting(beside, inputs, streamed=False)


def _source(graph: Graph, source: str, path: Path, weights: bool, check: bool) -> _Exported:
    """Write Python source, and the weights beside it if wanted; said is how to load them."""
    from elastic_ir import api
    from elastic_ir.emit.source.file import save_source

    beside = _weights_of(path)
    ours = PYTORCH.names(Path(source)) and not weights
    written = [save_source(graph, path, check=check, weights=Path(source).name if ours else beside.name)]
    if weights:
        written += api.save(graph, beside, check=check)
    checked = [("checked", "strict load, and equal outputs")] if check else []
    left = f"not written; --weights writes {beside.name} beside it"
    return _Exported(written, checked, [("weights", left)] if not weights and not ours else [])


def _facts(report: OnnxReport, static: bool) -> list[tuple[str, str]]:
    facts = [("opset", str(report.opset))]
    if report.dynamic is not None:
        fixed = "fixed" if static else "fixed (the network allows no other)"
        facts.append(("batch", "open" if report.dynamic else fixed))
    facts.append(("checked", "by onnx.checker"))
    if report.difference is not None:
        other = "PyTorch" if report.dynamic is not None else "the dense model"
        facts.append(("difference", f"{report.difference} in onnxruntime, from {other}"))
    if report.dense_size is not None:
        share = report.size / report.dense_size
        dense = tables.file_size(report.dense_size)
        facts.append(("sparse", f"{report.sparse_weights} weights; {share:.3f} of the dense file's {dense}"))
    return facts
