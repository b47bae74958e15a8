"""Names of an ONNX model that is built from its source: of weights, of values, of what a pass has added.

What no pass touched keeps the file's name. A clone's weights have the names that the exporter would have given where
the file names things after modules, else the source's with the block's path behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import RESULTS, Argument, Graph, Literal, Node, Symbol, Value, WeightRef
from elastic_ir.ir.naming import head_in
from elastic_ir.onnx_model import SCOPES, Constant, OnnxSource, bodies, module_scopes, path_step
from elastic_ir.tensors.weights import Weight

if TYPE_CHECKING:
    import onnx


class Names:
    """What everything in a graph is called in the model that is being built."""

    def __init__(self, graph: Graph, source: OnnxSource) -> None:
        self.graph = graph
        self.source = source
        self.old = source.model.graph
        containers = graph._structure.containers if graph._structure is not None else ()
        self.blocks = {child.path for box in containers for child in box.children}
        self.values: dict[Value, str] = {}
        #: a value's name in the source -> its names here, and the values that they are
        self.copies: dict[str, dict[str, Value | None]] = {}
        self.known = frozenset(self._source_names())  #: of all values and weights of the source
        self.taken = {*self.known, *(entry.name for entry in self.old.value_info)}
        #: what a weight is called here, by its storage's identity and its name in the file: of tensors that an Identity
        #: gives several names each keeps its own
        self.weights: dict[tuple[int, str], str] = {}
        self.bases: dict[
            int, str
        ] = {}  #: of the names of one tensor the one that holds it; the others are copies
        self.holders: dict[str, tuple[Constant, Weight]] = {}  #: constants by the names they have here
        self.literals: dict[str, Literal] = {}
        #: inputs and outputs in order, each with its name here and that of the source's that it is or is like
        self.inputs: list[tuple[str, str]] = []
        self.outputs: list[tuple[str, str]] = []
        self._name_ends()
        self._ends = {entry.name for entry in self.old.output} | {name for name, _ in self.outputs}
        self._name_weights()
        self._name_results()

    def _source_names(self) -> set[str]:
        names = {name for node in self.old.node for name in node.output}
        names |= {entry.name for entry in self.old.input} | self.source.constants.keys()
        for node in self.old.node:
            for body in bodies(node):
                names |= {name for inner in body.node for name in inner.output}
        return names

    def fresh(self, name: str, scope: str = "") -> str:
        """A name that nothing has yet, after another one."""
        place = self.block_of(scope)
        base = f"{name}__{place}" if place else name
        new, count = base, 1
        while new in self.taken:
            count += 1
            new = f"{base}_{count}"
        self.taken.add(new)
        return new

    def block_of(self, scope: str) -> str:
        """The path of the block that a scope lies in."""
        return head_in(scope, self.blocks) or ""

    def _name_weights(self) -> None:
        """One name for each tensor: the file's where it is the first of its kind, the path's where it has one."""
        kept: set[str] = set()
        later: list[Weight] = []
        for name, weight in self.graph.weights.items():
            file_name = self._file_name(weight)
            if self._key(weight) in self.weights:
                continue
            if file_name == weight.origin and name != file_name:  # a path of modules, and it has moved
                later.append(weight)
                continue
            if file_name in kept:
                later.append(weight)
                continue
            kept.add(file_name)
            self._hold(file_name, weight)
        for weight in later:
            if self._key(weight) in self.weights:
                continue
            file_name = self._file_name(weight)
            path = file_name == weight.origin
            if path and weight.name not in kept and self._is_free(weight.name):
                kept.add(weight.name)
                self.taken.add(weight.name)
                self._hold(weight.name, weight)
            else:
                self._hold(
                    self.fresh(weight.name if path else file_name, "" if path else weight.name), weight
                )

    def _file_name(self, weight: Weight) -> str:
        """What the tensor that a weight came from is called in the source file."""
        return self.source.initializer_of.get(weight.origin, weight.origin)

    def _key(self, weight: Weight) -> tuple[int, str]:
        return id(weight.storage), self._file_name(weight)

    def _is_free(self, name: str) -> bool:
        """Whether nothing in the source but a weight of a block has this name."""
        return name not in self.taken or name in self.source.initializer_of

    def _hold(self, name: str, weight: Weight) -> None:
        self.weights[self._key(weight)] = name
        file_name = self._file_name(weight)
        constant = self.source.constants.get(file_name) or Constant(file_name, None, weight.storage.data)
        self.holders[name] = (constant, weight)
        base = self.bases.setdefault(id(weight.storage), name)
        if constant.alias is None and self.holders[base][0].alias is not None:
            self.bases[id(weight.storage)] = name

    def base_of(self, name: str) -> str:
        """The name that holds a weight's tensor: its own, unless an Identity is what gives it this one."""
        constant, weight = self.holders[name]
        return self.bases[id(weight.storage)] if constant.alias is not None else name

    def one_tensor(self, name: str, other: str) -> bool:
        """Whether two names stand for one tensor, the first of them under the name it has in the source."""
        if name not in self.holders or name != self.holders[name][0].name:
            return False
        return self.holders[name][1].storage is self.holders[other][1].storage

    def lineage(self) -> dict[str, str]:
        """For each weight's name here the name in the source file of the tensor that it holds."""
        return {name: self._file_name(weight) for name, (_, weight) in self.holders.items()}

    def _name_ends(self) -> None:
        """The network's inputs and outputs keep their names; of those that blocks have each the numbers go on."""
        before = [entry.name for entry in self.old.input if entry.name not in self.source.constants]
        nodes = [node for node in self.graph if node.kind == "input"]
        now = [node.origin or node.name for node in nodes]
        self.inputs = list(zip(self._renumbered(before, now), now, strict=True))
        for node, (name, _) in zip(nodes, self.inputs, strict=True):
            self.values[node.output] = name
        before = [entry.name for entry in self.old.output]
        labels = self._result_labels()
        self.outputs = list(zip(self._renumbered(before, labels), labels, strict=True))

    def _renumbered(self, before: list[str], now: list[str]) -> list[str]:
        names = now
        if now != before:
            from elastic_ir.emit.onnx.ends import renumber  # few networks have ends of each block

            names = renumber(before, now, self.fresh)
        if names != before:
            others = self.taken.difference(before)
            names = [self.fresh(name) if name in others else name for name in names]
        self.taken.update(names)
        return names

    def _result_labels(self) -> list[str]:
        """For each result the name of the source's output that it is, or is like."""
        for node in self.graph:
            if node.kind == "output":
                labels = node.attributes.get(RESULTS)
                if isinstance(labels, tuple) and len(labels) == len(self.results()):
                    return [str(label) for label in labels]
        return [entry.name for entry in self.old.output]

    def _name_results(self) -> None:
        """Values that are results have the names of the outputs, whatever computes them now."""
        taken = set()
        for value, (name, _) in zip(self.results(), self.outputs, strict=True):
            if isinstance(value, Value) and value not in self.values and name not in taken:
                self.values[value] = name
                taken.add(name)

    def results(self) -> tuple[Argument, ...]:
        """What the network returns; EmitError where it has no output."""
        for node in self.graph:
            if node.kind == "output":
                results = node.args[0]
                assert isinstance(results, tuple)
                return results
        raise EmitError(f"{self.graph.name} has no output")

    def result(self, name: str, value: Value | None, node: Node, *, clone: bool) -> str:
        """Name a node's result that has a name in the source: a clone's, and what an output was called, is new."""
        if value is not None and value in self.values:
            new = self.values[value]
        elif clone or name in self._ends:
            new = self.fresh(name, node.scope)
        else:
            new = name
        if value is not None:
            self.values[value] = new
        self.copies.setdefault(name, {})[new] = value
        return new

    def operand(self, item: Argument, old: onnx.NodeProto | None, place: int) -> str:
        """What a node reads, by name; a literal of the source keeps its constant, a new one becomes an initializer."""
        if item is None:
            return ""
        if isinstance(item, Value):
            return self.values[item]
        if isinstance(item, WeightRef):
            return self.weights[self._key(self.graph.weights[item.name])]
        if isinstance(item, (Literal, Symbol)):
            name = old.input[place] if old is not None and place < len(old.input) else None
            constant = self.source.constants.get(name) if name else None
            if constant is not None and (isinstance(item, Symbol) or constant.literal == item):
                return constant.name
            if isinstance(item, Literal):
                return self._literal(item)
        raise EmitError(f"an operand {item!r} cannot be written to ONNX")

    def _literal(self, item: Literal) -> str:
        for name, known in self.literals.items():
            if known == item:
                return name
        name = self.fresh("literal")
        self.literals[name] = item
        return name


# -- names within a message: of the modules around it, and of what its bodies read -------------------------------------


def relocate(proto: onnx.NodeProto, before: str, after: str) -> None:
    """Names after modules follow the block to its new place."""
    old, new = before.split("."), after.split(".")
    place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
    if place is None or len(old) != len(new):
        return
    head, tail = ".".join(old[: place + 1]), ".".join(new[: place + 1])
    for entry in proto.metadata_props:
        scopes = module_scopes(proto) if entry.key == SCOPES else None
        if scopes is not None:
            entry.value = repr([_moved(scope, head, tail) for scope in scopes])
    if proto.name.startswith("/"):
        proto.name = _moved_name(proto.name, old[: place + 1], new[place])


def rename_inside(body: onnx.GraphProto, renames: dict[str, str]) -> None:
    """Let a body read names of the outer graph under their new ones, where it does not hide them."""
    own = {entry.name for entry in body.input} | {tensor.name for tensor in body.initializer}
    own |= {name for node in body.node for name in node.output}
    outer = {old: new for old, new in renames.items() if old not in own}
    for node in body.node:
        for place, name in enumerate(node.input):
            if name in outer:
                node.input[place] = outer[name]
        for inner in bodies(node):
            rename_inside(inner, outer)
    for entry in body.output:
        if entry.name in outer:
            entry.name = outer[entry.name]


def _moved(scope: str, head: str, tail: str) -> str:
    return tail + scope[len(head) :] if scope == head or scope.startswith(head + ".") else scope


def _moved_name(name: str, head: list[str], number: str) -> str:
    """``/layer1/layer1.2/conv1/Conv`` with the block's number replaced."""
    path: list[str] = []
    parts = name.split("/")
    for place, part in enumerate(parts[1:-1], 1):
        names = part.split(".")
        before = len(path)
        path += path_step(path, part)
        if path[: len(head)] == head and before < len(head) <= len(path):
            names[len(names) - (len(path) - len(head)) - 1] = number
            parts[place] = ".".join(names)
            for inside in range(place + 1, len(parts) - 1):  # a container's children carry its name
                if not parts[inside].startswith(part + "."):
                    break
                parts[inside] = parts[place] + parts[inside][len(part) :]
            break
    return "/".join(parts)
