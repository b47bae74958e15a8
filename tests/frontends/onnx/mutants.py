"""Damaged ONNX files, the same ones for the same number: bytes that were changed, and messages that make no sense."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.frontends.onnx.byte_changes import BYTE_CHANGES, seed_bytes
from tests.frontends.onnx.models import SEEDS, model, tensor, weights

HUGE = (0, -1, -(2**63), 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
GARBAGE = ("", "[", "['a'", "[1, 2]", "['', None, 'x']", "{}", "[" * 3000, "['']", "['a.0', '']", "9" * 5000,
           "['']*9", "['..', '.', 'x']", "\x00", "[b'a', 'b']", "['', 'layers.0.0.0.0.1', 'z']")  # fmt: skip


def mutant(number: int) -> bytes:
    """The damaged file of that number; every third one only has its bytes changed."""
    chance = random.Random(number)
    name = chance.choice(list(SEEDS))
    if number % 3 == 0:
        data = bytearray(seed_bytes(name))
        for _ in range(chance.choice((1, 1, 2, 8))):
            chance.choice(BYTE_CHANGES)(data, chance)
        return bytes(data)
    made = onnx.ModelProto.FromString(seed_bytes(name))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(MESSAGE_CHANGES)(made, chance)
    return made.SerializeToString()


# -- messages ----------------------------------------------------------------------------------------------------------


def _node(made: onnx.ModelProto, chance: random.Random) -> onnx.NodeProto:
    if not made.graph.node:
        made.graph.node.add(op_type="Relu", input=["x"], output=["y"])
    return chance.choice(list(made.graph.node))


def _stored(made: onnx.ModelProto, chance: random.Random) -> onnx.TensorProto:
    found = list(made.graph.initializer)
    found += [a.t for node in made.graph.node for a in node.attribute if a.type == 4]
    for sparse in made.graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    return chance.choice(found) if found else made.graph.initializer.add()


def dims(made: onnx.ModelProto, chance: random.Random) -> None:
    found = _stored(made, chance)
    if found.dims and chance.random() < 0.6:
        found.dims[chance.randrange(len(found.dims))] = chance.choice(HUGE)
    else:
        found.ClearField("dims")
        found.dims.extend(chance.choice(HUGE) for _ in range(chance.choice((0, 1, 2, 5, 100))))


def dtype(made: onnx.ModelProto, chance: random.Random) -> None:
    _stored(made, chance).data_type = chance.choice((*range(27), 99, -1, 2**31 - 1))


def raw(made: onnx.ModelProto, chance: random.Random) -> None:
    found = _stored(made, chance)
    found.raw_data = chance.choice((b"", found.raw_data[1:], found.raw_data * 2, chance.randbytes(3000)))


def typed(made: onnx.ModelProto, chance: random.Random) -> None:
    """Values in one of the other fields, instead of or beside the bytes."""
    found = _stored(made, chance)
    if chance.random() < 0.7:
        found.ClearField("raw_data")
    count = chance.choice((0, 1, 3, 900))
    field = chance.choice(
        ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    )
    value: Any = {"f": -1.5, "d": 1e300, "s": b"\xff", "u": 2**64 - 1}.get(
        field[0], chance.choice((-1, 7, 2**31 - 1))
    )
    getattr(found, field).extend([value] * count)


def external(made: onnx.ModelProto, chance: random.Random) -> None:
    found = _stored(made, chance)
    found.data_location = chance.choice((1, 1, 0))  # type: ignore[assignment]
    locations = ("", "w.bin", "../w.bin", "/etc/hostname", ".", "..", "link.bin", "a\x00b", "x" * 5000, "\n")
    for key, value in (
        ("location", chance.choice(locations)),
        ("offset", chance.choice(("0", "-1", "x", "4096", str(2**70), "9" * 5000, ""))),
        ("length", chance.choice(("0", "-5", "y", "64", str(2**70)))),
        ("elastic-ir", chance.choice(("0:9", "0", ":", "x:y", "999:9"))),
    ):
        if chance.random() < 0.6:
            found.external_data.add(key=key, value=value)


def names(made: onnx.ModelProto, chance: random.Random) -> None:
    """A name that is another's, missing, long, or of odd characters."""
    node = _node(made, chance)
    known = [name for item in made.graph.node for name in (*item.input, *item.output)] or [""]
    new = chance.choice(
        (*known[:3], chance.choice(known), "", "nobody", "n" * 3000, "a.0.weight", "\n", "..", "é\x00")
    )
    which = chance.randrange(5)
    if which == 0 and node.input:
        node.input[chance.randrange(len(node.input))] = new
    elif which == 1 and node.output:
        node.output[chance.randrange(len(node.output))] = new
    elif which == 2:
        _stored(made, chance).name = new
    elif which == 3:
        node.name = new
    else:
        chance.choice((made.graph.input, made.graph.output)).add(name=new)


def loop(made: onnx.ModelProto, chance: random.Random) -> None:
    """A node that reads what it computes, or what a later one does."""
    node = _node(made, chance)
    node.input.append(chance.choice((*node.output, *made.graph.node[-1].output, "x")))


def arity(made: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(made, chance)
    which = chance.randrange(5)
    if which == 0:
        node.ClearField("input")
    elif which == 1:
        node.ClearField("output")
    elif which == 2:
        node.input.extend(["x"] * chance.choice((1, 50, 3000)))
    elif which == 3:
        node.output.extend(f"more{i}" for i in range(chance.choice((1, 50))))
    else:
        del node.input[:1]


def kind(made: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(made, chance)
    kinds = ("Conv", "Gemm", "Reshape", "If", "Loop", "Scan", "Constant", "ConstantOfShape", "Expand", "Tile", "Range",
             "Resize", "Pad", "Split", "Concat", "Gather", "BatchNormalization", "Einsum", "OneHot", "NonZero", "Shape",
             "Sequence", "", "a.b", "SequenceConstruct", "Upsample", "DequantizeLinear", "LSTM", "Slice")  # fmt: skip
    node.op_type = chance.choice(kinds)
    if chance.random() < 0.2:
        node.domain = chance.choice(("ai.onnx", "ai.onnx.ml", "com.microsoft", "com.example", "a.b.c", " "))


def attributes(made: onnx.ModelProto, chance: random.Random) -> None:
    node = _node(made, chance)
    if node.attribute and chance.random() < 0.4:
        item = chance.choice(list(node.attribute))
        item.type = chance.choice((*range(15), item.type))
        return
    named = (
        "axis",
        "pads",
        "perm",
        "kernel_shape",
        "strides",
        "group",
        "value",
        "transB",
        "",
        "to",
        "dilations",
        "equation",
    )
    values: tuple[Any, ...] = (
        chance.choice(HUGE), [chance.choice(HUGE) for _ in range(chance.choice((1, 4, 50)))], 0.5, float("nan"),
        "text", b"\xff\xfe", [1.5], ["a"], tensor("", weights(2)),
    )  # fmt: skip
    node.attribute.append(helper.make_attribute(chance.choice(named), chance.choice(values)))


def filled(made: onnx.ModelProto, chance: random.Random) -> None:
    """ConstantOfShape with an absurd shape, whose result is read as if it were a weight."""
    count = chance.choice((1, 2, 6, 30))
    shape = np.array([chance.choice((2, 24, 2**20, 10**18, -1, 0)) for _ in range(count)], np.int64)
    made.graph.initializer.append(tensor("absurd", shape))
    value = chance.choice((None, tensor("", np.array([1], np.int64)), tensor("", weights(3)), TensorProto()))
    options: dict[str, Any] = {} if value is None else {"value": value}
    made.graph.node.insert(0, helper.make_node("ConstantOfShape", ["absurd"], ["vast"], **options))
    consumer = chance.choice(("MatMul", "Add", "Reshape", "Expand", "Tile", "Concat", "Shape", "Gather"))
    node = _node(made, chance)
    made.graph.node.append(helper.make_node(consumer, [*node.output[:1], "vast"], ["vaster"]))
    made.graph.output.add(name="vaster")


def constants(made: onnx.ModelProto, chance: random.Random) -> None:
    """A Constant without a value, or with one of each odd kind."""
    node = helper.make_node("Constant", chance.choice(([], ["x"])), ["odd"])
    odd: tuple[Any, ...] = (
        None, ("value", TensorProto()), ("value_ints", [1] * 3000), ("value_string", "a"), ("value_float", 1.0),
        ("value_strings", ["a", "b"]), ("value_floats", [1.0] * 900), ("value", 3), ("value_int", 2),
        ("sparse_value", helper.make_sparse_tensor(tensor("", weights(1)), tensor("", np.array([5])), [2])),
    )  # fmt: skip
    chosen = chance.choice(odd)
    if chosen is not None:
        node.attribute.append(helper.make_attribute(*chosen))
    made.graph.node.insert(0, node)
    _node(made, chance).input.append("odd")


def sparse(made: onnx.ModelProto, chance: random.Random) -> None:
    places: list[Any] = chance.choice(
        ([0, 1], [1, 0], [0, 0], [-1, 3], [0, 10**9], [[0, 0], [1, 1]], [[0, 9], [9, 0]], [], [[]])
    )
    extents = chance.choice(([2, 2], [2**33, 8], [-2, -2], [], [0], [4], [2**31, 2**31], [2**16, 2**16]))
    kinds = chance.choice((np.int64, np.int64, np.int32, np.float32))
    made.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            values=tensor(chance.choice(("thin", "x", "", "stem.weight")), weights(chance.choice((0, 1, 2)))),
            indices=tensor("", np.array(places, kinds)),
            dims=extents,
        )
    )
    if chance.random() < 0.5:
        _node(made, chance).input.append("thin")


def scopes(made: onnx.ModelProto, chance: random.Random) -> None:
    """What an exporter would have noted of modules, as garbage."""
    share = chance.random()
    for node in made.graph.node:
        if chance.random() < share:
            node.name = chance.choice(
                ("", "/", "//", "/a", "/a.0/a.0/b", "/.0/..1/x", "/layers.0/" + "z." * 400, node.name)
            )
        if chance.random() < share:
            del node.metadata_props[:]
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=chance.choice(GARBAGE))


def inputs(made: onnx.ModelProto, chance: random.Random) -> None:
    """Inputs and outputs with odd shapes and types."""
    entry = chance.choice([*made.graph.input, *made.graph.output] or [made.graph.input.add(name="x")])
    which = chance.randrange(5)
    if which == 0:
        entry.type.ClearField("tensor_type")
    elif which == 1:
        entry.type.tensor_type.elem_type = chance.choice((*range(25), -1, 999))
    elif which == 2:
        entry.type.tensor_type.ClearField("shape")
    elif which == 3:
        entry.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        for dim in entry.type.tensor_type.shape.dim:
            if chance.random() < 0.6:
                dim.dim_value = chance.choice(HUGE)
        if chance.random() < 0.3:
            for _ in range(chance.choice((1, 200))):
                entry.type.tensor_type.shape.dim.add(dim_param=chance.choice(("", "?", "n", "batch")))


def versions(made: onnx.ModelProto, chance: random.Random) -> None:
    which = chance.randrange(4)
    if which == 0:
        made.ClearField("opset_import")
    elif which == 1:
        made.opset_import.add(
            domain=chance.choice(("", "ai.onnx", "x")), version=chance.choice((*HUGE, 5, 7, 12, 21, 99))
        )
    elif which == 2:
        made.ir_version = chance.choice((*HUGE, 1, 3, 11))
    else:
        made.opset_import[0].version = chance.choice((7, 9, 11, 13, 18, 21, 26))


def removed(made: onnx.ModelProto, chance: random.Random) -> None:
    table = chance.choice(("node", "initializer", "input", "output", "sparse_initializer", "name"))
    rows = getattr(made.graph, table)
    if chance.random() < 0.5 or not rows or isinstance(rows, str):
        made.graph.ClearField(table)
    else:
        del rows[chance.randrange(len(rows))]


def repeated(made: onnx.ModelProto, chance: random.Random) -> None:
    table = chance.choice((made.graph.node, made.graph.initializer, made.graph.input, made.graph.output))
    rows: list[Any] = list(table)
    if rows:
        chosen = chance.choice(rows)
        for _ in range(chance.choice((1, 3))):
            table.add().CopyFrom(chosen)


def shuffled(made: onnx.ModelProto, chance: random.Random) -> None:
    nodes = list(made.graph.node)
    chance.shuffle(nodes)
    del made.graph.node[:]
    made.graph.node.extend(nodes)


def nested(made: onnx.ModelProto, chance: random.Random) -> None:
    """Bodies in bodies, down to where a parser nearly gives up."""
    wanted = chance.choice((2, 10, 20, 28))
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["deepest"])], "b", [], [])
    body.output.add(name="deepest")
    if chance.random() < 0.4:
        body.initializer.append(tensor("ballast", weights(40, 40)))
    for depth in range(wanted):
        node = helper.make_node("If", ["x"], [f"d{depth}"], then_branch=body, else_branch=onnx.GraphProto())
        body = helper.make_graph([node], "b", [], [])
        body.output.add(name=f"d{depth}")
    made.graph.node.append(helper.make_node("If", ["x"], ["nest"], then_branch=body))


def functions(made: onnx.ModelProto, chance: random.Random) -> None:
    """Functions that call themselves, one another, or nobody."""
    name = chance.choice(("Relu", "Act", "Own"))
    domain = chance.choice(("", "local"))
    body = [
        helper.make_node(name, ["a"], ["b"], domain=domain),
        helper.make_node("Act", ["b"], ["c"], domain="local"),
    ]
    made.functions.append(
        helper.make_function(
            domain, name, ["a"], ["c"], body[: chance.randrange(3)], list(made.opset_import)[:1]
        )
    )
    node = _node(made, chance)
    node.op_type, node.domain = name, domain


def explosive(made: onnx.ModelProto, chance: random.Random) -> None:
    """Constants that make shape inference compute something vast."""
    size = chance.choice((2**20, 2**33, 2**62))
    made.graph.initializer.extend(
        [tensor("many", np.array([size], np.int64)), tensor("one", np.array([1], np.int64))]
    )
    made.graph.initializer.extend(
        [tensor("zero", np.array(0, np.int64)), tensor("end", np.array(size, np.int64))]
    )
    steps = {
        "Expand": ["one", "many"], "Tile": ["many", "many"], "Range": ["zero", "end", "one"],
        "ConstantOfShape": ["many"], "OneHot": ["one", "end", "many"], "Gather": ["many", "many"],
    }  # fmt: skip
    chosen = chance.choice(list(steps))
    made.graph.node.append(helper.make_node(chosen, steps[chosen], ["burst0"]))
    for index in range(chance.choice((1, 20, 40))):  # doubles each time where the contents are followed
        made.graph.node.append(
            helper.make_node("Concat", [f"burst{index}"] * 2, [f"burst{index + 1}"], axis=0)
        )
    made.graph.node.append(helper.make_node("ConstantOfShape", ["burst1"], ["burst"]))
    made.graph.output.add(name="burst")


def replaced(made: onnx.ModelProto, chance: random.Random) -> None:
    """Another model's graph, or hardly any."""
    small = model([helper.make_node("Relu", ["x"], ["y"])])
    made.graph.CopyFrom(
        chance.choice((small.graph, onnx.GraphProto(), SEEDS[chance.choice(list(SEEDS))]().graph))
    )


MESSAGE_CHANGES: list[Callable[[onnx.ModelProto, random.Random], None]] = [
    dims, dims, dtype, raw, typed, external, names, names, loop, arity, kind, attributes, attributes, filled, constants,
    sparse, scopes, inputs, versions, removed, repeated, shuffled, nested, functions, explosive, replaced,
]  # fmt: skip
