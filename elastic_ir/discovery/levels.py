"""Layers of recurrent modules, whose parameters are numbered alike: ``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``.

Each kind of parameter is a container of its own, with a slot for each layer, and a layer has a slot in each of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elastic_ir.discovery.parts import Group, Part
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.operations import Trait, has, recurrent_layers
from elastic_ir.ir.recurrent import numbered
from elastic_ir.ir.structure import Child, Container
from elastic_ir.tensors.weights import applied_shape

_MATRIX = re.compile(r"weight_(ih|hh|hr)(_l[0-9]+)?(_reverse)?")


@dataclass(frozen=True)
class Levels:
    """The layers of one module: the containers of its parameters, and for each layer the parts, one in each of them."""

    containers: tuple[Container, ...]
    rows: list[list[Part]]

    @property
    def lead(self) -> tuple[Container, list[Part]]:
        """The first of the containers with its parts, which stands for all."""
        return self.containers[0], [row[0] for row in self.rows]

    def groups(self) -> list[Group]:
        """A group for each layer."""
        return [Group(list(row)) for row in self.rows]


def levels_of(part: Part, readers: Mapping[str, Sequence[Node]] | None = None) -> Levels | None:
    """The layers of the recurrent module that a part is; None where it is none, or has one layer.

    ``readers`` are the nodes that read each weight, where the graph has nodes; None also where one of them reads
    several layers at once, for these then cannot be parted.
    """
    kinds: dict[tuple[str, str], dict[int, str]] = {}
    for name in part.weights:
        path, _, role = name.rpartition(".")
        found = numbered(role) if path == part.path else None
        if found is not None and found.number == str(int(found.number)):
            kinds.setdefault((found.prefix, found.suffix), {})[int(found.number)] = name
    count = max((len(names) for names in kinds.values()), default=0)
    whole = all(sorted(names) == list(range(count)) for names in kinds.values())
    if count < 2 or not whole or ("weight_hh_l", "") not in kinds:
        return None
    containers = []
    rows: list[list[Part]] = [[] for _ in range(count)]
    for (prefix, suffix), names in kinds.items():
        box = Container(part.path, prefix, 0, suffix=suffix, parameters=True)
        box.children = [Child(names[number], names[number]) for number in range(count)]
        containers.append(box)
        for number, row in enumerate(rows):
            row.append(Part(names[number], names[number].rpartition(".")[2], weights=[names[number]]))
    if readers is not None and not _share_nodes(part, rows, readers):
        return None
    return Levels(tuple(containers), rows)


def _share_nodes(part: Part, rows: list[list[Part]], readers: Mapping[str, Sequence[Node]]) -> bool:
    """Give each layer's nodes to its first part: those that read its weights, and what is taken out of the results."""
    owner: dict[Value, int] = {}
    for number, row in enumerate(rows):
        for piece in row:
            for node in readers.get(piece.path, ()):
                if owner.setdefault(node.output, number) != number:
                    return False
    if set(owner.values()) != set(range(len(rows))):
        return False
    for node in part.nodes:
        taken = node.args[0] if node.op == "operator.getitem" else None
        if isinstance(taken, Value) and taken in owner and not taken.is_tensor:
            owner[node.output] = owner[taken]
        if node.output in owner:
            rows[owner[node.output]][0].nodes.append(node)
    return all(row[0].nodes for row in rows)


def start_others(levels: Levels, users: Mapping[Value, Sequence[Node]]) -> bool:
    """Whether the states of all layers, put together, are what another recurrent module starts from (a decoder)."""
    nodes = [node for row in levels.rows for node in row[0].nodes]
    inside = set(nodes)
    seen = {reader for node in nodes for reader in users.get(node.output, ()) if reader not in inside}
    waiting = [node for node in seen if node.op in ("torch.cat", "aten.cat.default")]
    while waiting:
        for reader in users.get(waiting.pop().output, ()):
            if recurrent_layers(reader) and reader not in inside:
                return True
            if reader not in seen and has(reader, Trait.SAME | Trait.CAST):
                seen.add(reader)
                waiting.append(reader)
    return False


def kept_whole(graph: Graph) -> list[str]:
    """For each recurrent module that runs several layers in one node: why these cannot be parted."""
    found: dict[str, str] = {}
    for node in graph:
        count = recurrent_layers(node)
        path = node.scope or node.name
        if count > 1 and "parametrizations" in node.attributes:
            found[path] = (
                f"the layers of {path!r} have weights that a parametrization computes, which stay as they are"
            )
        if node.op == "onnx.Concat" and len(joined := _states_of(node)) > 1:
            found[node.name] = (
                f"the final states of {len(joined)} recurrent layers ({joined[0].op.removeprefix('onnx.')}) are joined "
                f"in one result, %{node.name}, of which a change would make more; export the network without it"
            )
        if count < 2 or node.kind == "onnx":
            continue
        if len(node.args) > 1 or "hx" in node.kwargs:
            why = (
                "start from states that the network is given, learns or computes, one for each of them; as many would "
                "be there after a change. Leave the initial states out, or make them of zeros"
            )
        elif any(value.is_tensor for value in node.operands()[:1]):
            why = "have weights that something else computes (weight norm of a recurrent layer), and stay as they are"
        else:
            why = "read a packed sequence, which is no tensor; trace the network on padded inputs"
        found.setdefault(path, f"the {count} layers of {path!r} ({node.op}) {why}")
    return list(found.values())


def _states_of(node: Node) -> list[Node]:
    """The recurrent layers whose final states a node joins; none where it joins anything else."""
    made = [value.node for value in node.operands()]
    if not all(part.op == "operator.getitem" and part.args[1] != 0 for part in made):
        return []
    layers = [value.node for part in made for value in part.operands()[:1]]
    return layers if all(recurrent_layers(layer) for layer in layers) else []


def layer_shapes(names: Sequence[str], graph: Graph) -> list[tuple[int, ...]]:
    """The shapes of weights, those of one recurrent layer, of both directions, as one matrix.

    Its columns are what the layer takes, its rows what it gives, whatever the gates in between.
    """
    found: dict[str, tuple[int, ...]] = {}
    width: dict[str, dict[str, int]] = {}
    for name in names:
        shape = applied_shape(name, graph.weights[name].shape)
        path, _, role = name.rpartition(".")
        match = _MATRIX.fullmatch(role)
        if match is None:
            found[name] = shape
            continue
        layer = f"{path}.{match[2] or ''}"
        found.setdefault(layer, (0, 0))
        if match[1] == "ih":
            found[layer] = (0, shape[1])
        else:  # a projection's rows are what the next step and the next layer read; so are the columns of the states'
            width.setdefault(layer, {})[match[3] or ""] = shape[1] if match[1] == "hh" else shape[0]
    for layer, widths in width.items():
        found[layer] = (sum(widths.values()), found[layer][1])
    return list(found.values())
