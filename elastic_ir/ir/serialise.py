"""A graph as plain data (JSON) and back: no pickle, so reading one can run nothing.

Structure is not stored: it is discovered again from what is stored, so a file cannot claim another one. The format
is versioned; a newer one is refused.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

from elastic_ir.errors import SourceError, VerifyError
from elastic_ir.ir.graph import Graph, Literal, Node, Symbol, TensorType, Value, WeightRef
from elastic_ir.ir.info import Edits, GraphInfo, History
from elastic_ir.ir.verifier import verify
from elastic_ir.safety.limits import check_names
from elastic_ir.tensors.lazy import ITEM_SIZES, InlineData, TensorData, nbytes
from elastic_ir.tensors.weights import Storage, Weight
from elastic_ir.version import __version__

VERSION = 1
_TRANSIENT_LIMIT = 64 << 20  # bytes of buffers outside the state dict that are worth carrying in text


def graph_to_data(graph: Graph) -> dict[str, Any]:
    """A graph without its tensors, as JSON-ready data; transient buffers are carried along."""
    place = {node: index for index, node in enumerate(graph)}
    ties: dict[int, int] = {}
    weights, buffers, carried = [], {}, 0
    for name, weight in graph.weights.items():
        tie = ties.setdefault(id(weight.storage), len(ties))
        weights.append([name, weight.origin, weight.is_parameter, weight.persistent, weight.prunable, tie])
        if not weight.persistent:
            data = weight.storage.data
            carried += nbytes(data)
            held = type(data).__name__ != "ShapeOnly" and getattr(data, "dense", True)
            if carried <= _TRANSIENT_LIMIT and held:
                raw = b"".join(bytes(chunk) for chunk in data.chunks())
                buffers[name] = [list(data.shape), data.dtype, base64.b64encode(raw).decode()]
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "kind": node.kind,
            "args": _encode(node.args, place),
            "kwargs": _encode(node.kwargs, place),
            "attributes": _encode(node.attributes, place),
            "weights": node.weights,
            "scope": node.scope,
            "type": [list(node.output.type.shape), node.output.type.dtype] if node.output.type else None,
            "tensor": node.output.is_tensor,
            **({"origin": node.origin} if node.origin else {}),
        }
        for node in graph
    ]
    metadata = {
        "frontend": graph.info.frontend,
        # what is prunable is a layer, and a layer prunable, unless it is said here
        "differ": [weight.name for weight in graph.weights.values() if weight.layer != weight.prunable],
        "plan": [list(stage) for stage in graph.resequenced.plan or graph.info.plan],
        "lineage": graph.lineage(),
        "steps": steps_data(graph),
        "modules": graph.modules,
        "pipeline": list(graph.history.pipeline),
        "ghosts": graph.edits.ghosts,
        # the class that is described beside the graph is that of the network without ghosts
        "rewired": graph.edits.ghosts and graph.edits.rewired,
        "edited_layers": graph.edits.ghosts and graph.edits.edited_layers,
    }
    return {
        "version": VERSION,
        "name": graph.name,
        "metadata": {key: value for key, value in metadata.items() if value},
        "weights": weights,
        "buffers": buffers,
        "nodes": nodes,
    }


def steps_data(graph: Graph) -> list[object]:
    """The changes that led to a graph, in the form of a folder's record; one less where the last one was undone."""
    before = list(graph.info.steps)
    lineage: dict[str, object] = {}
    computed, kept = [], set()
    for name, weight in graph.weights.items():
        data: object = weight.storage.data
        gathering = getattr(data, "gathering", None)
        entries = {"gathered": gathering.data()} if gathering is not None else {}
        further = {"source": weight.source} if weight.source else {}
        if getattr(getattr(data, "data", None) if gathering is not None else data, "computed", False):
            computed.append(name)
        elif not weight.source:
            kept.add(weight.origin)
        if entries or further or weight.origin != name:
            lineage[name] = (
                {"name": weight.origin, **further, **entries} if entries or further else weight.origin
            )
    gone = [name for name in graph.info.source_names if name not in kept]
    rewired = graph.edits.rewired or graph.edits.edited_layers
    if graph.edits.undone and before and not computed and not rewired and _is_back(graph, before[-1]):
        return before[:-1]
    if not (lineage or gone or computed or rewired):
        return before
    step: dict[str, object] = {
        "elastic_ir": __version__, "sources": list(graph.edits.sources) or [graph.info.file or graph.name],
        "plan": {}, "lineage": lineage, "gone": gone, "computed": computed, "rewired": rewired,
    }  # fmt: skip
    return [*before, step]


def _is_back(graph: Graph, step: object) -> bool:
    """Whether every tensor is again what had its name before a step."""
    moved = step["lineage"] if isinstance(step, dict) else {}
    origins = {name: origin["name"] if isinstance(origin, dict) else origin for name, origin in moved.items()}
    return all(origins.get(weight.origin, weight.origin) == name for name, weight in graph.weights.items())


def graph_from_data(data: Mapping[str, Any], tensors: Mapping[str, TensorData]) -> Graph:
    """The graph that was written, over the tensors of its file; SourceError where the two do not fit.

    Origins start anew: the network read is the source now.
    """
    if not isinstance(data, Mapping) or type(data.get("version")) is not int:
        raise SourceError("the graph in this file is not an ElasticIR graph")
    if data["version"] > VERSION:
        raise SourceError(
            f"the graph in this file has format version {data['version']}; this ElasticIR reads up to {VERSION}"
        )
    try:
        _check(data, _FORM, "the graph")
        return _from_data(data, tensors)
    except VerifyError as error:
        raise SourceError(f"the graph in this file is damaged: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SourceError(f"the graph in this file is damaged ({type(error).__name__}: {error})") from error


def _check(item: Any, form: Any, where: str) -> None:
    """ValueError where plain data has another form than a file's: types, lists and tables of one form, fixed lists."""
    if isinstance(form, type):
        if type(item) is not form and form is not object:
            raise ValueError(f"{where} is not of type {form.__name__}")
    elif isinstance(form, tuple):
        if not isinstance(item, list) or len(item) != len(form):
            raise ValueError(f"{where} is not a list of {len(form)} items")
        for part, inner in zip(item, form, strict=True):
            _check(part, inner, where)
    elif isinstance(form, list):
        if not isinstance(item, list):
            raise ValueError(f"{where} is not a list")
        for part in item:
            _check(part, form[0], where)
    elif not isinstance(item, dict):
        raise ValueError(f"{where} is not a table")
    elif str in form:
        for key, part in item.items():
            _check(part, form[str], f"{where}[{key!r}]")
    else:
        for key, inner in form.items():
            name = key.removesuffix("?")
            if name in item and not (key.endswith("?") and item[name] is None):
                _check(item[name], inner, f"{name!r} of {where}")
            elif name not in item and not key.endswith("?"):
                raise ValueError(f"{where} lacks {name!r}")


#: What a file's graph looks like. A question mark behind a key says that it may be missing, or null.
_FORM = {
    "name": str,
    "weights": [(str, str, bool, bool, bool, int)],
    "buffers": {str: ([int], str, str)},
    "metadata": {
        "frontend?": str, "differ?": [str], "modules?": {str: [str]}, "plan?": [[object]], "pipeline?": [str],
        "steps?": [object], "lineage?": {str: str}, "rewired?": bool, "edited_layers?": bool,
    },
    "nodes": [
        {
            "name": str, "op": str, "kind": str, "args": object, "kwargs": object, "attributes": object,
            "weights": {str: str}, "scope": str, "type?": ([int], str), "tensor": bool, "origin?": str,
        }
    ],
}  # fmt: skip


def _from_data(data: Mapping[str, Any], tensors: Mapping[str, TensorData]) -> Graph:
    graph, stated = Graph(data["name"]), data["metadata"]
    check_names((item[0] for item in data["weights"]), "the graph in this file")
    storages: dict[int, Storage] = {}
    differ = set(stated.get("differ") or ())
    for name, _origin, is_parameter, persistent, prunable, tie in data["weights"]:
        if tie not in storages:
            if name in tensors:
                storages[tie] = Storage(tensors[name])
            elif not persistent and name in data["buffers"]:
                shape, dtype, text = data["buffers"][name]
                buffer = InlineData(tuple(shape), dtype, base64.b64decode(text, validate=True))
                if dtype not in ITEM_SIZES or min(shape, default=0) < 0 or nbytes(buffer) != len(buffer.raw):
                    raise ValueError(f"the buffer {name!r} has other bytes than its shape and dtype need")
                storages[tie] = Storage(buffer)
            elif not persistent:
                continue
            else:
                raise SourceError(f"the file's graph has a weight {name!r} that its state dict lacks")
        graph.weights[name] = Weight(
            name, storages[tie], name, is_parameter, persistent, prunable, layer=prunable != (name in differ)
        )
    unknown = [name for name in tensors if name not in graph.weights]
    if unknown:
        raise SourceError(f"the file's state dict has {unknown[0]!r}, which its graph lacks")
    graph.info = GraphInfo(
        frontend=stated.get("frontend") or "", source_names=tuple(graph.weights), lineage=stated.get("lineage") or {},
        plan=stated.get("plan") or (), steps=tuple(stated.get("steps") or ()),
    )  # fmt: skip
    graph.edits = Edits(
        bool(stated.get("rewired")), bool(stated.get("edited_layers")), ghosts=stated.get("ghosts") or {}
    )
    graph.modules = stated.get("modules") or {}
    graph.history = History(tuple(stated.get("pipeline") or ()))
    values: list[Value] = []
    for item in data["nodes"]:
        node = Node(
            item["name"], item["op"], _decode(item["args"], values), _decode(item["kwargs"], values),
            kind=item["kind"], attributes=_decode(item["attributes"], values), weights=item["weights"],
            scope=item["scope"], origin=item.get("origin", ""),
        )  # fmt: skip
        if item["type"] is not None:
            node.output.type = TensorType(tuple(item["type"][0]), item["type"][1])
        node.output.is_tensor = item["tensor"]
        if not (
            isinstance(node.args, tuple | list)
            and isinstance(node.kwargs, dict)
            and isinstance(node.attributes, dict)
        ):
            raise ValueError(f"the arguments of {node.name!r} are not arguments")
        node.args = tuple(node.args)
        values.append(graph.append(node).output)
    verify(graph)
    return graph


def _encode(item: Any, place: Mapping[Node, int]) -> Any:
    if item is None or isinstance(item, (bool, int, str)):
        return item
    if isinstance(item, float):
        return item if math.isfinite(item) else {"float": repr(item)}
    if isinstance(item, complex):
        return {"complex": [item.real, item.imag]}
    if isinstance(item, Value):
        return {"value": place[item.node]}
    if isinstance(item, WeightRef):
        return {"weight": item.name}
    if isinstance(item, Symbol):
        return {"symbol": item.name}
    if isinstance(item, Literal):
        return {"literal": [item.dtype, list(item.shape), [_encode(value, place) for value in item.values]]}
    if isinstance(item, tuple):
        return {"tuple": [_encode(part, place) for part in item]}
    if isinstance(item, list):
        return [_encode(part, place) for part in item]
    if isinstance(item, dict):
        return {"dict": [[key, _encode(part, place)] for key, part in item.items()]}
    if isinstance(item, slice):
        return {"slice": [_encode(part, place) for part in (item.start, item.stop, item.step)]}
    raise TypeError(f"{type(item).__name__} cannot be an argument of a node")


def _decode(item: Any, values: list[Value]) -> Any:
    if isinstance(item, list):
        return [_decode(part, values) for part in item]
    if not isinstance(item, dict):
        return item
    ((kind, content),) = item.items()
    if kind == "value":
        if type(content) is not int or content < 0:
            raise ValueError(f"{content!r} is the number of no value")
        return values[content]
    if kind in ("weight", "symbol"):
        if not isinstance(content, str):
            raise ValueError(f"{content!r} is the name of no {kind}")
        return WeightRef(content) if kind == "weight" else Symbol(content)
    if kind == "literal":
        dtype, shape, numbers = content
        return Literal(dtype, tuple(shape), tuple(_decode(number, values) for number in numbers))
    if kind == "tuple":
        return tuple(_decode(part, values) for part in content)
    if kind == "dict":
        return {key: _decode(part, values) for key, part in content}
    if kind == "slice":
        return slice(*(_decode(part, values) for part in content))
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(*content)
    raise ValueError(f"unknown argument kind {kind!r}")
