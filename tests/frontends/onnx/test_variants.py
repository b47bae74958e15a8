"""What optimisers, quantisers and converters make of a file: changed and run, or refused with the reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16

import elastic_ir as eir
from elastic_ir.errors import StructureError
from elastic_ir.zoo import cifar_resnet
from tests.discovery.nameless import export_older, write_nameless
from tests.networks.onnx_files import PATHS, feeds, run

LEVELS = onnxruntime.GraphOptimizationLevel
RESNET: tuple[list[int], int] = ([2, 2, 2], 14)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("variants")
    image = (torch.randn(1, 3, 32, 32),)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, embed_dim=48, num_heads=3
    )
    return {
        "resnet": export_older(cifar_resnet(14), image, folder / "resnet.onnx", 13),
        "vit": export_older(vit, image, folder / "vit.onnx"),
        "minilm": PATHS["minilm"],
    }


class Calibration(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Two images of noise."""

    def __init__(self, path: Path) -> None:
        name = onnx.load(path).graph.input[0].name
        images = np.random.default_rng(0).standard_normal((2, 1, 3, 32, 32)).astype(np.float32)
        self.left: Iterator[dict[str, Any]] = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def dynamic(source: Path, target: Path) -> None:
    quantize_dynamic(str(source), str(target))


def static(form: QuantFormat) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        quantize_static(str(source), str(target), Calibration(source), quant_format=form, per_channel=True)

    return make


def half(source: Path, target: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(source)), target)


def optimised(level: Any) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return make


def fused(kind: str, heads: int, width: int) -> Callable[[Path, Path], None]:
    def make(source: Path, target: Path) -> None:
        made = optimizer.optimize_model(
            str(source), model_type=kind, num_heads=heads, hidden_size=width, opt_level=0
        )
        made.save_model_to_file(str(target))

    return make


def third(source: Path, target: Path) -> None:
    """IR version 3 lists the weights as inputs too."""
    model = onnx.load(source)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    onnx.save(model, target)


#: The source, how it is made, blocks in each stage, and the depth.
CHANGED: dict[str, tuple[str, Callable[[Path, Path], None], list[int], int]] = {
    "resnet-qdq": ("resnet", static(QuantFormat.QDQ), *RESNET),
    "resnet-qoperator": ("resnet", static(QuantFormat.QOperator), *RESNET),
    "resnet-fp16": ("resnet", half, *RESNET),
    "resnet-extended": ("resnet", optimised(LEVELS.ORT_ENABLE_EXTENDED), *RESNET),
    "resnet-ir3": ("resnet", third, *RESNET),
    "vit-dynamic": ("vit", dynamic, [3], 14),
    "vit-basic": ("vit", optimised(LEVELS.ORT_ENABLE_BASIC), [3], 14),
    "minilm-dynamic": ("minilm", dynamic, [3], 12),
    "minilm-fused": ("minilm", fused("bert", 12, 384), [3], 12),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bare", [False, True], ids=["named", "nameless"])
@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.everyday(6)
def test_changed_and_run(name: str, bare: bool, sources: dict[str, Path], tmp_path: Path) -> None:
    source, make, counts, depth = CHANGED[name]
    path = tmp_path / "variant.onnx"
    logging.disable(logging.WARNING)
    try:
        make(sources[source], path)
    finally:
        logging.disable(logging.NOTSET)
    if bare:
        path = write_nameless(path, tmp_path / "nameless.onnx")
    check(path, counts, depth, tmp_path)


def check(path: Path, counts: list[int], depth: int, tmp_path: Path) -> None:
    graph = eir.load(path)
    assert [len(stage) for stage in graph.stages] == counts
    assert graph.depth == depth
    (same,) = eir.save(graph, tmp_path / "same.onnx")
    assert onnx.load(same) == onnx.load(path)
    deeper = eir.stretch(graph, to_stages=[count + 1 for count in counts])
    (made,) = eir.save(deeper, tmp_path / "deeper.onnx")
    given = feeds(graph)
    assert all(np.isfinite(found).all() for found in run(made, given))
    (back,) = eir.save(eir.squeeze(deeper, to_stages=counts), tmp_path / "back.onnx")
    assert onnx.load(back) == onnx.load(path)
    (again,) = eir.save(eir.squeeze(eir.load(made), to_stages=counts), tmp_path / "again.onnx")
    for ours, theirs in zip(run(again, given), run(path, given), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("source", "make", "reason"),
    [
        (
            "resnet",
            optimised(LEVELS.ORT_ENABLE_ALL),
            "onnxruntime's optimiser has put its layers into a layout of one machine (com.microsoft.nchwc); optimise "
            "it no further than the level 'extended', or change the file from before and optimise what comes out",
        ),
        (
            "vit",
            fused("vit", 3, 48),
            "an optimiser has fused each block's last sum with the next one's norm "
            "(com.microsoft.SkipLayerNormalization of two results), so that no block ends before the next begins; "
            "change the file from before and optimise what comes out",
        ),
    ],
    ids=["layout", "fused sums"],
)
def test_refused(
    source: str,
    make: Callable[[Path, Path], None],
    reason: str,
    sources: dict[str, Path],
    tmp_path: Path,
) -> None:
    make(sources[source], tmp_path / "variant.onnx")
    graph = eir.load(tmp_path / "variant.onnx")
    if "nchwc" in reason and not any("nchwc" in node.op for node in graph):
        pytest.skip("onnxruntime has no such layout on this machine")
    with pytest.raises(StructureError) as caught:
        graph.stages  # noqa: B018
    assert str(caught.value).endswith(f"repeats: {reason}")


# -- made by hand ------------------------------------------------------------------------------------------------------


def chain(block: Callable[[str, int], list[onnx.NodeProto]], **more: Any) -> onnx.ModelProto:
    """Four blocks of a weight w0 .. w3 each, from h0 to h4, and a head."""
    generator = np.random.default_rng(0)
    nodes = [node for index in range(4) for node in block(f"h{index}", index)]
    shapes = {**{f"w{index}": (8, 8) for index in range(4)}, "head": (8, 3)}
    tensors = [
        numpy_helper.from_array((0.2 * generator.standard_normal(shape)).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes.append(helper.make_node("MatMul", ["h4", "head"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("h0", 1, ["n", 8]), *more.pop("inputs", ())],
        [helper.make_tensor_value_info("y", 1, ["n", 3]), *more.pop("outputs", ())],
        tensors,
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def residual(value: str, index: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]),
        helper.make_node("Relu", [f"m{index}"], [f"r{index}"]),
        helper.make_node("Add", [value, f"r{index}"], [f"h{index + 1}"]),
    ]


def test_calls_of_a_function_are_blocks(tmp_path: Path) -> None:
    body = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Relu", ["m"], ["r"]),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    function = helper.make_function("local", "Block", ["x", "w"], ["y"], body, [helper.make_opsetid("", 17)])

    def call(value: str, index: int) -> list[onnx.NodeProto]:
        return [helper.make_node("Block", [value, f"w{index}"], [f"h{index + 1}"], domain="local")]

    onnx.save(chain(call, functions=[function]), tmp_path / "calls.onnx")
    check(tmp_path / "calls.onnx", [4], 5, tmp_path)


def test_a_body_within_each_block(tmp_path: Path) -> None:
    def branch(value: str, index: int) -> list[onnx.NodeProto]:
        nodes = residual(value, index)
        bodies: dict[str, Any] = {
            name: helper.make_graph(
                [helper.make_node(kind, [f"m{index}"], [f"{name}{index}"])],
                name,
                [],
                [helper.make_tensor_value_info(f"{name}{index}", 1, None)],
            )
            for name, kind in (("then_branch", "Relu"), ("else_branch", "Tanh"))
        }
        nodes[1] = helper.make_node("If", ["choice"], [f"r{index}"], **bodies)
        return nodes

    onnx.save(
        chain(branch, inputs=[helper.make_tensor_value_info("choice", 9, [])]), tmp_path / "branches.onnx"
    )
    check(tmp_path / "branches.onnx", [4], 5, tmp_path)


class OneNorm(torch.nn.Module):
    """One norm before all layers, which the older exporter names anew at each call."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(count))
        self.second = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(count))
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + first(self.norm(x))
            x = x + torch.relu(second(self.norm(x)))
        return x


def test_what_gives_the_result_parts_no_activation_from_the_last_layer(tmp_path: Path) -> None:
    path = export_older(OneNorm(3).eval(), (torch.randn(2, 8),), tmp_path / "net.onnx")
    check(path, [3], 6, tmp_path)
