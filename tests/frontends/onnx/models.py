"""Small ONNX models of every kind that the reader tells apart: what tests of bad input damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.1).astype(np.float32)


def tensor(name: str, array: NDArray[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def model(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    inputs: dict[str, Sequence[int | str]] | None = None,
    outputs: dict[str, Sequence[int | str]] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model over float inputs (``x`` [1, 8] where none is given) with one output (``y`` [1, 8])."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (inputs or {"x": (1, 8)}).items()
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (outputs or {"y": (1, 8)}).items()
        ],
        list(initializers),
    )
    return helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", opset)])


def residual(blocks: int = 3, channels: int = 8, *, style: str = "weights") -> onnx.ModelProto:
    """Residual blocks over images; ``style`` says where modules show: weights, nodes (older export), metadata."""
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []

    def add(kind: str, path: str, inputs: list[str], output: str, **options: Any) -> None:
        name = f"/{path.replace('.', '/')}/{kind}" if style == "nodes" else f"n{len(nodes)}"
        node = helper.make_node(kind, inputs, [output], name=name, **options)
        if style == "metadata":
            prefixes = [".".join(path.split(".")[: i + 1]) for i in range(len(path.split(".")))]
            entry = node.metadata_props.add()
            entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(["", *prefixes, name])
        nodes.append(node)

    def conv(path: str, before: str, wide: int) -> str:
        stored.append(tensor(f"{path}.weight", weights(channels, wide, 3, 3, seed=len(stored))))
        add("Conv", path, [before, f"{path}.weight"], f"{path}_out", pads=[1, 1, 1, 1])
        return f"{path}_out"

    at = conv("stem", "x", 3)
    for index in range(blocks):
        path = f"layers.{index}"
        inner = conv(f"{path}.conv1", at, channels)
        norms = [f"{path}.bn.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        stored += [tensor(name, np.abs(weights(channels, seed=7))) for name in norms]
        add("BatchNormalization", f"{path}.bn", [inner, *norms], f"{path}_bn")
        add("Relu", f"{path}.act", [f"{path}_bn"], f"{path}_act")
        inner = conv(f"{path}.conv2", f"{path}_act", channels)
        add("Add", path, [at, inner], f"{path}_sum")
        add("Relu", f"{path}.last", [f"{path}_sum"], f"{path}_done")
        at = f"{path}_done"
    add("GlobalAveragePool", "pool", [at], "pooled")
    add("Flatten", "flatten", ["pooled"], "flat")
    stored.append(tensor("head.weight", weights(5, channels)))
    add("Gemm", "head", ["flat", "head.weight"], "y", transB=1)
    return model(nodes, stored, inputs={"x": ("batch", 3, 8, 8)}, outputs={"y": ("batch", 5)})


def transformer(blocks: int = 3, width: int = 32) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    stored = [
        tensor("heads", np.array([0, 0, 4, width // 4], np.int64)),
        tensor("merged", np.array([0, 0, width], np.int64)),
        tensor("scale", np.array(0.3, np.float32)),
        tensor("norm.weight", np.ones(width, np.float32)),  # shared, as an exporter leaves equal tensors
    ]
    at = "x"
    for index in range(blocks):
        at_block = f"b{index}_"
        parts = {}
        nodes.append(helper.make_node("LayerNormalization", [at, "norm.weight"], [at_block + "n"], axis=-1))
        for role in ("q", "k", "v"):
            stored.append(tensor(f"w{index}{role}", weights(width, width, seed=index)))
            turned = [0, 2, 3, 1] if role == "k" else [0, 2, 1, 3]
            nodes += [
                helper.make_node("MatMul", [at_block + "n", f"w{index}{role}"], [at_block + role]),
                helper.make_node("Reshape", [at_block + role, "heads"], [at_block + role + "r"]),
                helper.make_node("Transpose", [at_block + role + "r"], [at_block + role + "t"], perm=turned),
            ]
            parts[role] = at_block + role + "t"
        stored.append(tensor(f"w{index}o", weights(width, width, seed=index)))
        nodes += [
            helper.make_node("MatMul", [parts["q"], parts["k"]], [at_block + "s"]),
            helper.make_node("Mul", [at_block + "s", "scale"], [at_block + "m"]),
            helper.make_node("Softmax", [at_block + "m"], [at_block + "p"], axis=-1),
            helper.make_node("MatMul", [at_block + "p", parts["v"]], [at_block + "a"]),
            helper.make_node("Transpose", [at_block + "a"], [at_block + "at"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [at_block + "at", "merged"], [at_block + "ar"]),
            helper.make_node("MatMul", [at_block + "ar", f"w{index}o"], [at_block + "o"]),
            helper.make_node("Add", [at, at_block + "o"], [at_block + "y"]),
        ]
        at = at_block + "y"
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    shape = ("batch", "tokens", width)
    return model(nodes, stored, inputs={"x": shape}, outputs={"y": shape})


def chain(kind: str = "plain", blocks: int = 3, width: int = 24) -> onnx.ModelProto:
    """Linear layers with a shortcut; ``kind`` says how the weights are kept, or what stands between the blocks."""
    nodes: list[onnx.NodeProto] = []
    stored: list[onnx.TensorProto] = []
    sparse: list[onnx.SparseTensorProto] = []
    at = "x"
    for index in range(blocks):
        name, array = f"layers.{index}.weight", weights(width, width, seed=index)
        if kind == "constants":
            nodes.append(helper.make_node("Constant", [], [name], value=tensor("", array)))
        elif kind == "sparse":
            flat = array.reshape(-1)
            places = np.arange(index, flat.size, 7, dtype=np.int64)
            sparse.append(
                helper.make_sparse_tensor(
                    tensor(name, flat[places]), tensor(f"{name}.at", places), [width, width]
                )
            )
        elif kind == "quantised":
            stored += [
                tensor(f"{name}_q", (array * 100).astype(np.int8)),
                tensor(f"{name}_scale", np.array(0.01, np.float32)),
                tensor(f"{name}_zero", np.array(0, np.int8)),
            ]
            quantised = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
            nodes.append(helper.make_node("DequantizeLinear", quantised, [name]))
        else:
            stored.append(tensor(name, array))
        nodes.append(helper.make_node("MatMul", [at, name], [f"m{index}"], name=f"matmul{index}"))
        nodes += _between(kind, index, f"m{index}", f"r{index}", stored, width)
        nodes.append(helper.make_node("Add", [at, f"r{index}"], [f"a{index}"], name=f"add{index}"))
        at = f"a{index}"
    nodes.append(helper.make_node("Identity", [at], ["y"]))
    made = model(nodes, stored, inputs={"x": (2, width)}, outputs={"y": (2, width)})
    made.graph.sparse_initializer.extend(sparse)
    if kind == "functions":
        body = [helper.make_node("Relu", ["a"], ["b"])]
        imports = [helper.make_opsetid("", OPSET)]
        made.functions.append(helper.make_function("local", "Act", ["a"], ["b"], body, imports))
        made.opset_import.append(helper.make_opsetid("local", 1))
    elif kind == "unknown":
        made.opset_import.append(helper.make_opsetid("com.example", 1))
    return made


def _between(
    kind: str, index: int, before: str, after: str, stored: list[onnx.TensorProto], width: int
) -> list[onnx.NodeProto]:
    if kind == "functions":
        return [helper.make_node("Act", [before], [after], domain="local")]
    if kind == "unknown":
        return [helper.make_node("Sorcery", [before], [after], domain="com.example", power=3)]
    if kind == "filled":
        stored.append(tensor(f"shape{index}", np.array([width], np.int64)))
        value = tensor("", np.array([0.5], np.float32))
        return [
            helper.make_node("ConstantOfShape", [f"shape{index}"], [f"fill{index}"], value=value),
            helper.make_node("Add", [before, f"fill{index}"], [after]),
        ]
    if kind == "bodies":
        arms = [
            helper.make_graph(
                [helper.make_node("Mul", [before, factor], [f"arm{index}{arm}"])],
                arm,
                [],
                [helper.make_tensor_value_info(f"arm{index}{arm}", TensorProto.FLOAT, None)],
                [tensor(factor, weights(width, seed=index))],
            )
            for arm, factor in (("then", f"f{index}t"), ("else", f"f{index}e"))
        ]
        stored.append(tensor(f"cond{index}", np.array(True)))
        return [
            helper.make_node(
                "If",
                [f"cond{index}"],
                [after],
                name=f"if{index}",
                then_branch=arms[0],
                else_branch=arms[1],
            )
        ]
    return [helper.make_node("Relu", [before], [after])]


SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual,
    "older export": lambda: residual(style="nodes"),
    "newer export": lambda: residual(style="metadata"),
    "transformer": transformer,
    **{
        kind: (lambda kind=kind: chain(kind))  # type: ignore[misc]
        for kind in (
            "plain", "constants", "sparse", "quantised", "functions", "unknown", "filled", "bodies"
        )
    },
}  # fmt: skip
