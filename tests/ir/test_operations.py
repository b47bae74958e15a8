"""What an operation is: one name in every dialect, traits that implement what they say, and layers' weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import elastic_ir as eir
from elastic_ir.errors import EmitError
from elastic_ir.ir.functions import resolve_function
from elastic_ir.ir.graph import Argument, Node, TensorType, Value, WeightRef
from elastic_ir.ir.operations import (
    _NAMES,
    BatchNorm,
    Layer,
    Trait,
    has,
    is_product,
    is_sum,
    kind_of,
    known_kind,
    layer_of,
    norm_of,
    operation_of,
    reads_form_only,
    written,
)


def node(op: str, *args: Argument, kind: str = "", **kwargs: Argument) -> Node:
    if not kind:
        kind = {"nn": "module", "method": "method", "onnx": "onnx"}.get(op.split(".")[0], "function")
    return Node("n", op, args, kwargs, kind=kind)


def tensor() -> Value:
    value = Node("x", "input", kind="input").output
    value.type = TensorType((2, 3), "float32")
    return value


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("relu", "nn.ReLU torch.relu torch.relu_ torch.nn.functional.relu method.relu_ aten.relu_.default onnx.Relu"),
        ("add", "operator.add operator.iadd torch.add method.add_ aten.add.Tensor aten.add_.Tensor onnx.Add onnx.Sum"),
        ("mul", "operator.mul operator.imul torch.multiply method.mul_ aten.mul.Scalar onnx.Mul"),
        ("div", "operator.truediv operator.itruediv torch.div method.divide onnx.Div"),
        ("cat", "torch.cat torch.concat torch.concatenate aten.cat.default onnx.Concat"),
        ("linear", "nn.Linear torch.nn.functional.linear torch._C._nn.linear aten.linear.default onnx.Gemm"),
        ("conv2d", "nn.Conv2d torch.conv2d torch.nn.functional.conv2d aten.conv2d.default"),
        ("batchnorm", "torch.nn.functional.batch_norm aten.batch_norm.default onnx.BatchNormalization"),
        ("matmul", "operator.matmul operator.imatmul torch.matmul method.matmul aten.matmul.default onnx.MatMul"),
        ("identity", "nn.Identity onnx.Identity"),
    ],
)  # fmt: skip
def test_one_name_in_every_dialect(name: str, ops: str) -> None:
    assert {op: kind_of(node(op)) for op in ops.split()} == dict.fromkeys(ops.split(), name)
    assert {known_kind(node(op)) for op in ops.split()} == {name}


@pytest.mark.parametrize(
    ("op", "family"),
    [("nn.Conv2d", "conv"), ("nn.ConvTranspose1d", "convtranspose"), ("nn.BatchNorm3d", "batchnorm"),
     ("onnx.BatchNormalization", "batchnorm"), ("onnx.GlobalAveragePool", "adaptiveavgpool"),
     ("nn.AdaptiveAvgPool2d", "adaptiveavgpool"), ("torch.add", "add")],
)  # fmt: skip
def test_families_have_no_number_of_axes(op: str, family: str) -> None:
    assert operation_of(node(op)).family == family


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        ("my.net.Add", "module"),
        ("my.net.add", "function"),
        ("onnx.my.domain.Add", "onnx"),
        ("x.mul", "function"),
    ],
)
def test_somebody_elses_operation_of_the_same_name_is_not_known(op: str, kind: str) -> None:
    other = node(op, kind=kind)
    assert kind_of(other) in ("add", "mul")
    assert known_kind(other) == ""
    assert not is_sum(other)
    assert not is_product(other)


@pytest.mark.parametrize("kind", ["input", "output", "weight", "constant"])
def test_what_is_no_operation_has_no_known_kind(kind: str) -> None:
    assert known_kind(Node("n", kind, kind=kind)) == ""


def test_sums_and_products() -> None:
    sums = [
        op for op in ("torch.add", "onnx.Sum", "operator.sub", "torch.sum", "onnx.Mul") if is_sum(node(op))
    ]
    products = [op for op in ("torch.mul", "onnx.Mul", "torch.matmul", "torch.add") if is_product(node(op))]
    assert sums == ["torch.add", "onnx.Sum"]
    assert products == ["torch.mul", "onnx.Mul"]


def functions(trait: Trait) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Each function of one tensor with a trait that torch has by that name, with an input and its result."""
    torch.manual_seed(0)
    given = torch.randn(2, 3, 4)
    for place in ("torch", "torch.nn.functional"):
        for name in sorted(set(_NAMES[trait].split())):
            spellings = {name, *(o for o in dir(torch) if o.replace("_", "") == name and not o.endswith("_"))}
            for spelling in sorted(spellings):
                try:
                    function = resolve_function(f"{place}.{spelling}")
                    result = function(given.clone())
                except (EmitError, TypeError, RuntimeError, ValueError):
                    continue
                if isinstance(result, torch.Tensor):
                    yield spelling, given, result


def test_pointwise_operations_work_on_each_element_alone() -> None:
    found = dict.fromkeys(name for name, _, _ in functions(Trait.POINTWISE))
    assert {"relu", "gelu", "tanh", "exp", "hardswish"} <= set(found)
    for name, given, result in functions(Trait.POINTWISE):
        for place in ("torch", "torch.nn.functional"):
            try:
                alone = resolve_function(f"{place}.{name}")(given[1, 2, 3].clone())
            except (EmitError, TypeError, RuntimeError):
                continue
            assert torch.allclose(alone, result[1, 2, 3], atol=1e-6, equal_nan=True), name


def test_nonnegative_results() -> None:
    for name, _, result in functions(Trait.NONNEGATIVE):
        assert (result >= 0).all(), name


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_results_that_share_no_memory() -> None:
    for name, given, result in functions(Trait.FRESH):
        assert result.untyped_storage().data_ptr() != given.untyped_storage().data_ptr(), name


def test_random_operations_by_family_and_implied() -> None:
    assert has(node("nn.Dropout2d"), Trait.DROPOUT)
    assert has(node("nn.Dropout2d"), Trait.RANDOM)
    assert has(node("onnx.RandomNormalLike"), Trait.RANDOM)
    assert has(node("method.bernoulli_"), Trait.RANDOM)
    assert not has(node("torch.relu"), Trait.RANDOM)


@pytest.mark.parametrize(
    ("op", "writes"),
    [("method.add_", True), ("operator.iadd", True), ("operator.setitem", True), ("torch.relu_", True),
     ("aten.mul_.Tensor", True), ("method.add", False), ("operator.add", False), ("operator.index", False),
     ("onnx.Add", False), ("method.__getitem__", False)],
)  # fmt: skip
def test_what_writes_by_its_name(op: str, writes: bool) -> None:
    value = tensor()
    assert written(node(op, value, 1)) == ([value] if writes else [])


def test_what_writes_by_an_option() -> None:
    value, other = tensor(), tensor()
    assert written(node("torch.nn.functional.relu", value, True)) == [value]
    assert written(node("torch.nn.functional.relu", value, inplace=True)) == [value]
    assert written(node("torch.nn.functional.dropout", value, 0.5, True, True)) == [value]
    assert written(node("torch.nn.functional.dropout2d", value, 0.5, True, True)) == [value]
    assert written(node("torch.nn.functional.dropout", value, 0.5, True)) == []
    assert written(node("torch.add", value, 1, out=other)) == [other]
    module = Node("n", "nn.ReLU", (value,), kind="module", attributes={"inplace": True})
    assert written(module) == [value]


def test_what_reads_a_form_only() -> None:
    value = tensor()
    assert reads_form_only(node("getattr", value, "shape"))
    assert not reads_form_only(node("getattr", value, "T"))
    assert reads_form_only(node("method.size", value, 0))
    assert not reads_form_only(node("method.sum", value))


# -- layers ------------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Every kind of layer, the same weights as modules and as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
        self.linear = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.free = nn.Parameter(torch.randn(5, 8))
        self.filters = nn.Parameter(torch.randn(4, 2, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(self.conv(torch.nn.functional.conv2d(x, self.filters, padding=1, groups=2)))
        return torch.nn.functional.linear(self.norm(self.linear(y.mean((2, 3)))), self.free)


def test_layers_of_a_network() -> None:
    graph = eir.trace(Layers().eval(), (torch.randn(2, 4, 8, 8),))
    found = [layer for each in graph if (layer := layer_of(each)) is not None]
    assert found == [
        Layer("filters", None, 0, 1, 2, matrix=False),
        Layer("conv.weight", "conv.bias", 0, 1, 2, matrix=False),
        Layer("up.weight", None, 1, 0, 2, matrix=False, transposed=True),
        Layer("linear.weight", "linear.bias", 0, 1, 1, matrix=True),
        Layer("free", None, 0, 1, 1, matrix=True),
    ]
    # the axes are those along which the numbers of channels lie, in and out
    channels = [
        (graph.weights[str(layer.weight)].shape[axis])
        for layer in found
        for axis in (layer.inputs, layer.outputs)
    ]
    assert channels == [2, 4, 2, 6, 6, 2, 4, 8, 8, 5]


def test_a_weight_that_is_computed_has_no_name() -> None:
    with pytest.warns(FutureWarning):  # the older form keeps the class nn.Linear
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.ReLU()).eval()
    graph = eir.trace(net, (torch.randn(2, 4),))
    layers = [layer for each in graph if (layer := layer_of(each)) is not None]
    assert [(layer.weight, layer.bias, layer.matrix) for layer in layers] == [(None, "0.bias", True)]


def test_atens_convolutions_may_be_transposed() -> None:
    weight, bias = WeightRef("w"), WeightRef("b")
    plain = node("aten.convolution.default", tensor(), weight, bias, [1], [0], [1], False, [0], 3)
    turned = node("aten.convolution.default", tensor(), weight, None, [1], [0], [1], True, [0], 1)
    assert layer_of(plain) == Layer("w", "b", 0, 1, 3, matrix=False)
    assert layer_of(turned) == Layer("w", None, 1, 0, 1, matrix=False, transposed=True)


@pytest.mark.parametrize("op", ["nn.LayerNorm", "torch.matmul", "my.Linear", "nn.Bilinear", "nn.Embedding"])
def test_what_is_no_layer_of_a_known_form(op: str) -> None:
    weights = {"weight": "w"} if op[:2] in ("nn", "my") else {}
    kind = "module" if weights else "function"
    assert layer_of(Node("n", op, (tensor(), WeightRef("w")), kind=kind, weights=weights)) is None


@pytest.mark.parametrize(
    ("op", "places", "attributes", "shape", "inputs"),
    [
        ("MatMul", "xw", {}, (3, 5), 0),
        ("MatMul", "wx", {}, (5, 2), 1),
        ("Gemm", "xw", {}, (3, 5), 0),
        ("Gemm", "xw", {"transB": 1}, (5, 3), 1),
        ("Gemm", "wx", {}, (5, 2), 1),
        ("Gemm", "wx", {"transA": 1}, (2, 5), 0),
        ("Conv", "xw", {}, (5, 3, 1, 1), 1),
        ("ConvTranspose", "xw", {}, (3, 5, 1, 1), 0),
        ("Transpose", "xw", {}, (5, 3), 1),
    ],
)
def test_onnx_axes_are_those_along_which_products_are_summed(
    op: str, places: str, attributes: dict[str, Any], shape: tuple[int, ...], inputs: int, tmp_path: object
) -> None:
    """The file runs with the extents swapped in only one way, so a wrong axis would not fit."""
    spatial = (2, 3, 4, 4) if op.startswith("Conv") else (2, 3)
    nodes = [helper.make_node("MatMul" if op == "Transpose" else op, list(places), ["y"], **attributes)]
    if op == "Transpose":
        nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, spatial)],
            [helper.make_empty_tensor_value_info("y")],
            [helper.make_tensor("w", TensorProto.FLOAT, shape, torch.randn(shape).flatten().tolist())],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    path = f"{tmp_path}/m.onnx"
    onnx.save(model, path)
    graph = eir.load(path)
    layers = [layer for each in graph if (layer := layer_of(each)) is not None]
    assert [(layer.weight, layer.inputs, layer.outputs) for layer in layers] == [("w", inputs, 1 - inputs)]
    assert [layer.weight_first for layer in layers] == [places == "wx"]
    summed = 2 if places == "wx" else 3
    assert shape[inputs] == summed
    assert shape[1 - inputs] == 5


# -- norms -------------------------------------------------------------------------------------------------------------


def test_batch_norms_of_modules() -> None:
    net = nn.Sequential(
        nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3, track_running_stats=False)
    )
    graph = eir.trace(net.eval(), (torch.randn(2, 3),))
    found = [norm_of(each) for each in graph if each.kind == "module"]
    assert found == [
        BatchNorm("0.weight", "0.bias", "0.running_mean", "0.running_var", 1e-5),
        BatchNorm(None, None, "1.running_mean", "1.running_var", 1e-5),
        None,
    ]


def test_a_batch_norm_whose_scale_is_computed_is_none() -> None:
    roles = {role: role for role in ("weight_g", "weight_v", "bias", "running_mean", "running_var")}
    made = Node("n", "nn.BatchNorm1d", (tensor(),), kind="module", weights=roles, attributes={"eps": 1e-5})
    assert norm_of(made) is None


def test_batch_norms_of_onnx() -> None:
    held = [WeightRef(name) for name in "sbmv"]
    plain = node("onnx.BatchNormalization", tensor(), *held)
    assert norm_of(plain) == BatchNorm("s", "b", "m", "v", 1e-5)
    plain.attributes["training_mode"] = 1
    assert norm_of(plain) is None
    assert norm_of(node("onnx.BatchNormalization", tensor(), *held[:2], tensor(), held[3])) is None
    assert norm_of(node("onnx.LayerNormalization", tensor(), *held)) is None
