"""Exported programs from files (``.pt2``) as graphs: ATen's operations with the scopes and names of their network.

Everything is read as data; which operations a file may name is decided where a module is built from the graph.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError, VerifyError
from elastic_ir.formats import ReadOptions
from elastic_ir.formats.exported_program import DAMAGE, DTYPES, ExportedFile, read_exported
from elastic_ir.formats.files import parse_json
from elastic_ir.frontends.graph_modules import PrivateSizes, with_prunable
from elastic_ir.ir.graph import Graph, Node, Symbol, TensorType, WeightRef
from elastic_ir.ir.info import GraphInfo
from elastic_ir.ir.naming import module_order, name_nodes
from elastic_ir.ir.verifier import verify
from elastic_ir.tensors.weights import Storage, Weight, Weights, ties_of

_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7  #: the number of the one layout that is read
_PLAIN = {"as_int", "as_bool", "as_string", "as_ints", "as_bools", "as_strings", "as_int_lists"}


def read_pt2(path: Path, options: ReadOptions) -> Graph:
    """A file of ``torch.export.save``. Raises SourceError."""
    if options.arch is not None:
        raise SourceError(f"{path.name} says itself what network it holds; leave out --arch (arch=)")
    found = read_exported(path)
    try:
        return _Reader(found, path).read()
    except (*DAMAGE, VerifyError) as error:
        raise SourceError(
            f"{path.name} is damaged, or of a version that is not known ({type(error).__name__}: {error})"
        ) from error


class _Reader:
    def __init__(self, found: ExportedFile, path: Path) -> None:
        self.found, self.path = found, path
        self.module: Mapping[str, Any] = found.program["graph_module"]
        self.program: Mapping[str, Any] = self.module["graph"]
        self.graph = Graph(self._class(), GraphInfo("export", file=path.name))
        self.values = PrivateSizes(self.graph)  #: what stands for each name of the program

    def read(self) -> Graph:
        from elastic_ir.frontends.trace import LiveSource

        self._weights()
        (call,) = (one for one in self.module["module_call_graph"] if one["fqn"] == "")
        self._inputs(call["signature"])
        for entry in self.program["nodes"]:
            self._node(entry)
        self._output(call["signature"])
        graph = self.graph
        name_nodes(graph)
        graph.weights = Weights(with_prunable(graph.weights, graph))
        graph.info = GraphInfo(
            "export", source_names=tuple(graph.weights), ties=ties_of(graph.weights), file=self.path.name
        )
        verify(graph)
        graph.origin = LiveSource(inputs=self._examples(), from_file=True)
        return graph

    def _class(self) -> str:
        """The name of the network's class, for messages."""
        for entry in self.program["nodes"]:
            for _, path, kind in _stack(entry):
                if not path and kind.rpartition(".")[2].isidentifier():
                    return kind.rpartition(".")[2]
        return "ExportedProgram"

    # -- what the program is given ---------------------------------------------------------------------------------

    def _weights(self) -> None:
        """The weights in the order of the state dict, then what it leaves out; and their names in the program."""
        held: dict[str, tuple[bool, bool]] = {}  # whether a parameter, whether in the state dict
        for spec in self.module["signature"]["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "parameter":
                name = content["parameter_name"]
                held[name] = True, True
            elif kind == "buffer":
                name = content["buffer_name"]
                held[name] = False, bool(content["persistent"])
            elif kind == "tensor_constant":
                name = content["tensor_constant_name"]
                held[name] = False, False
            elif kind in ("user_input", "constant_input"):
                continue
            else:
                raise SourceError(f"{self.path.name} takes a {kind}, which is not read")
            self.values[content["arg"]["name"]] = WeightRef(name)
        order = list(held)  # of the parameters, then of the buffers: each module's in their order
        missing = [name for name in held if name not in self.found.tensors]
        if missing:
            raise SourceError(f"{self.path.name} has no tensor {missing[0]!r}, which its program uses")
        storages: dict[str, Storage] = {}
        kept = module_order(name for name in order if held[name][1])
        for name in (*kept, *(name for name in order if not held[name][1])):
            tensor = self.found.tensors[name]
            storage = storages.setdefault(tensor.place, Storage(tensor.data))
            self.graph.weights[name] = Weight(name, storage, name, *held[name])

    def _inputs(self, signature: Mapping[str, Any]) -> None:
        """The network's arguments, and what is taken out of those that are nests of tensors."""
        leaves: list[str | None] = []  # of the program's names; None for what is no tensor
        for spec in self.module["signature"]["input_specs"]:
            ((kind, content),) = spec.items()
            if kind == "user_input":
                leaves.append(next(iter(content["arg"].values()))["name"])
            elif kind == "constant_input":
                leaves.append(None)
        args, kwargs = _unflattened(_spec(signature["in_spec"]), iter(leaves))
        known = signature.get("forward_arg_names") or []
        names = [known[place] if place < len(known) else f"args_{place}" for place in range(len(args))]
        inner: list[tuple[Any, Node]] = []
        for name, item in [*zip(names, args, strict=True), *kwargs.items()]:
            node = self.graph.append(Node(str(name), "input", kind="input"))
            inner.append((item, node))
        for item, node in inner:
            self._take_out(item, node)

    def _take_out(self, item: Any, node: Node) -> None:
        if isinstance(item, str):
            self.values[item] = node.output
            self._type(node, item)
            return
        node.output.is_tensor = False
        for key, part in item.items() if isinstance(item, dict) else enumerate(item or ()):
            taken = Node(f"{node.name}_{key}", "operator.getitem", (node.output, key), kind="function")
            self._take_out(part, self.graph.append(taken))

    def _examples(self) -> Any:
        from elastic_ir.ir.example_inputs import Inputs

        if self.found.inputs is None:
            return None
        import torch

        try:
            args, kwargs = torch.load(io.BytesIO(self.found.inputs), weights_only=True)
        except Exception as error:  # whatever the file makes torch's reader raise
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise SourceError(f"{self.path}: its example inputs cannot be read: {text[0]}") from error
        return Inputs(tuple(args), dict(kwargs))

    # -- what it computes ------------------------------------------------------------------------------------------

    def _node(self, entry: Mapping[str, Any]) -> None:
        outputs = entry["outputs"]
        if str(entry["target"]).startswith("_operator.") and len(outputs) == 1:
            ((kind, made),) = outputs[0].items()
            if kind in ("as_sym_int", "as_sym_bool", "as_sym_float") and "as_name" in made:
                self.values.put_off(made["as_name"], functools.partial(self._made, entry))
                return
        self.values.scope = _scope(entry)
        node = self.graph.append(self._made(entry))
        self._outputs(node, outputs)

    def _made(self, entry: Mapping[str, Any]) -> Node:
        args, kwargs = [], {}
        for given in entry["inputs"]:
            value = self._argument(given["arg"])
            if given.get("kind") == 2:
                kwargs[str(given["name"])] = value
            else:
                args.append(value)
        target = str(entry["target"]).removeprefix("torch.ops.").replace("_operator.", "operator.", 1)
        name = str(entry.get("name") or target)
        return Node(name, target, tuple(args), kwargs, kind="function", scope=_scope(entry))

    def _outputs(self, node: Node, outputs: Any) -> None:
        """Enter what a node computes by its names, several things as items of it."""
        if len(outputs) == 1 and next(iter(outputs[0])) in (
            "as_tensor",
            "as_sym_int",
            "as_sym_bool",
            "as_sym_float",
        ):
            ((_, made),) = outputs[0].items()
            label = made.get("name", made.get("as_name"))
            self._type(node, label)
            self.values[label] = node.output
            return
        node.output.is_tensor = False
        if len(outputs) == 1 and next(iter(outputs[0])) in ("as_tensors", "as_optional_tensors"):
            outputs = [_optional(made) for made in next(iter(outputs[0].values()))]
        for place, output in enumerate(outputs):
            ((kind, made),) = output.items()
            if kind == "as_none":
                continue
            label = made.get("name", made.get("as_name"))
            taken = Node(label, "operator.getitem", (node.output, place), kind="function", scope=node.scope)
            self._type(taken, label)
            self.values[label] = self.graph.append(taken).output

    def _type(self, node: Node, label: str) -> None:
        meta = self.program["tensor_values"].get(label)
        if meta is None:
            node.output.is_tensor = False
            return
        node.output.type = TensorType(tuple(map(_extent, meta["sizes"])), DTYPES[meta["dtype"]])

    def _argument(self, item: Mapping[str, Any]) -> Any:
        ((kind, content),) = item.items()
        if kind == "as_none":
            return None
        if kind in ("as_tensor", "as_optional_tensor"):
            return self._argument(content) if kind == "as_optional_tensor" else self.values[content["name"]]
        if kind == "as_tensors":
            return [self.values[one["name"]] for one in content]
        if kind == "as_optional_tensors":
            return [self._argument(_optional(one)) for one in content]
        if kind in _PLAIN:
            return content
        if kind in ("as_float", "as_floats"):
            return [float(one) for one in content] if kind == "as_floats" else float(content)
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            ((form, held),) = content.items()
            return self.values[held] if form == "as_name" else held
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._argument({kind[:-1]: one}) for one in content]
        if kind == "as_scalar_type":
            return Symbol(f"torch.{DTYPES[content]}")
        if kind == "as_memory_format":
            return Symbol(f"torch.{_MEMORY_FORMATS[content]}")
        if kind == "as_layout" and content == _STRIDED:
            return Symbol("torch.strided")
        if kind == "as_device":
            index = content["index"]
            return Symbol(f"device.{content['type']}" + ("" if index is None else f":{int(index)}"))
        if kind == "as_complex":
            return complex(content["real"], content["imag"])
        raise SourceError(
            f"{self.path.name} holds {kind.removeprefix('as_').replace('_', ' ')} arguments (control flow, or an "
            "object of a class), which are not read"
        )

    def _output(self, signature: Mapping[str, Any]) -> None:
        flat = []
        for spec in self.module["signature"]["output_specs"]:
            ((kind, content),) = spec.items()
            if kind != "user_output":
                raise SourceError(
                    f"{self.path.name} writes into what it is given ({kind.replace('_', ' ')}); export the network "
                    "in evaluation, without run_decompositions"
                )
            flat.append(self._argument(content["arg"]))
        spec = _spec(signature["out_spec"])
        made = (
            _unflattened(spec, iter(flat)) if _is_plain(spec) else flat[0] if len(flat) == 1 else tuple(flat)
        )
        self.graph.append(Node("output", "output", (made,), kind="output"))


def _stack(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The modules that a node ran in, the outermost first: key, path and class."""
    for part in str(entry["metadata"].get("nn_module_stack", "")).split(";"):
        fields = part.split(",")
        if len(fields) == 3 and not fields[0].startswith("_empty_nn_module_stack"):
            yield fields[0], fields[1].partition("@")[0], fields[2]


def _scope(entry: Mapping[str, Any]) -> str:
    """The path of the module that a node ran in."""
    return next((path for _, path, _ in reversed(list(_stack(entry)))), "")


def _optional(item: Mapping[str, Any]) -> dict[str, Any]:
    """An output or argument that may be a tensor or None in the form of any other."""
    return dict(item) if next(iter(item)).startswith("as_") else {"as_tensor": item}


def _extent(size: Mapping[str, Any]) -> int:
    """An extent; of one that is open the example's."""
    if "as_int" in size:
        return int(size["as_int"])
    hint = size["as_expr"].get("hint")
    return int(hint["as_int"]) if hint else -1


def _spec(text: str) -> Any:
    """The nest that arguments or outputs have."""
    return parse_json(text)[1]


def _is_plain(spec: Mapping[str, Any]) -> bool:
    known = spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
    return known and all(map(_is_plain, spec["children_spec"]))


def _unflattened(spec: Mapping[str, Any], leaves: Iterator[Any]) -> Any:
    """A nest of tuples, lists and dictionaries; ValueError for another one."""
    if spec["type"] is None:
        return next(leaves)
    if not _is_plain(spec):
        raise ValueError(f"arguments are nested in a {spec['type']}")
    children = [_unflattened(child, leaves) for child in spec["children_spec"]]
    if spec["type"] == "builtins.dict":
        return dict(zip(parse_json(spec["context"]), children, strict=True))
    return tuple(children) if spec["type"] == "builtins.tuple" else children
