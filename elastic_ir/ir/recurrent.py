"""Recurrent layers: an LSTM, GRU or RNN of several layers as one node a layer, and put together again.

PyTorch runs all layers of an ``nn.LSTM`` in one call, over parameters whose names end in the layer's number. A graph
has a node for each of them instead, an LSTM of one layer, so that a layer is cloned and deleted as any block is; the
states that a call returns are the layers' states behind one another. :func:`fold` makes the calls again for emission.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from elastic_ir.errors import EmitError
from elastic_ir.ir.cloner import copy_node
from elastic_ir.ir.graph import Graph, Node, Value

#: The modules of PyTorch that run several recurrent layers.
MODULES = ("nn.LSTM", "nn.GRU", "nn.RNN")
#: What their constructors take, with the defaults; they take anything as Python sees it.
_OPTIONS: dict[str, bool | int | float | str | None] = {
    "input_size": None, "hidden_size": None, "num_layers": 1, "nonlinearity": "tanh", "bias": True,
    "batch_first": False, "dropout": 0.0, "bidirectional": False, "proj_size": 0,
}  # fmt: skip
_ONLY = {"nonlinearity": "nn.RNN", "proj_size": "nn.LSTM"}
_PARAMETER = re.compile(r"(weight_ih|weight_hh|weight_hr|bias_ih|bias_hh)_l([0-9]{1,6})(_reverse)?")


@dataclass(frozen=True)
class Numbered:
    """The name of a parameter, taken apart around the number of its layer."""

    prefix: str
    number: str
    suffix: str


def options(op: str) -> dict[str, bool | int | float | str | None]:
    """What the constructor of a recurrent module takes, with the defaults, None where there is none; {} of others."""
    return {name: value for name, value in _OPTIONS.items() if op in MODULES and _ONLY.get(name, op) == op}


def numbered(role: str) -> Numbered | None:
    """A recurrent module's parameter, by its name there; None for any other name."""
    match = _PARAMETER.fullmatch(role)
    return Numbered(f"{match[1]}_l", match[2], match[3] or "") if match else None


def renumbered(role: str, number: int) -> str:
    """The parameter of the same kind of another layer."""
    found = numbered(role)
    return role if found is None else f"{found.prefix}{number}{found.suffix}"


def fold(graph: Graph) -> Graph:
    """A graph in which each call of a recurrent module is one node again; the graph itself where it has none.

    EmitError where something reads what the module does not give: a state of a layer by itself, or what passes between
    two layers.
    """
    runs = _runs(graph)
    if not runs:
        return graph
    users = graph.users()
    made = Graph(graph.name, graph.info)
    made.edits, made.modules, made.origin, made.reference = (
        graph.edits, graph.modules, graph.origin, graph.reference,
    )  # fmt: skip
    made.weights = graph.weights
    made._structure = graph._structure
    values: dict[Value, Value] = {}
    first = {run[0]: run for run in runs}
    inside = {node for run in runs for node in run}
    skipped: set[Node] = set()
    for node in graph:
        if node in first:
            _one_call(first[node], made, values, users, skipped)
        elif node not in skipped and node not in inside:
            missing = next((value for value in node.operands() if value not in values), None)
            if missing is not None:
                raise EmitError(
                    f"%{node.name} reads what {missing.node.scope!r} computes in one of its layers, which "
                    "PyTorch's module does not give"
                )
            made.append(copy_node(node, values))
    return made


def _runs(graph: Graph) -> list[list[Node]]:
    """The layers of each call, in order."""
    runs: list[list[Node]] = []
    behind: dict[Value, list[Node]] = {}  # what the last layer of a run gives, and the run
    for node in graph:
        if node.kind == "module" and node.op in MODULES and node.attributes.get("num_layers") == 1:
            before = next((behind.get(value) for value in node.operands()[:1]), None)
            names = set(node.weights.values())
            again = before is not None and any(names & set(one.weights.values()) for one in before)
            if before is not None and before[0].scope == node.scope and not again:
                before.append(node)
                run = before
            else:
                run = [node]
                runs.append(run)
            behind = {value: one for value, one in behind.items() if one is not run}
            behind[node.output] = run
        elif node.op == "operator.getitem" and node.args[1:] == (0,) and node.args[0] in behind:
            behind[node.output] = behind[node.args[0]]
    return runs


def _one_call(
    run: list[Node],
    made: Graph,
    values: dict[Value, Value],
    users: Mapping[Value, list[Node]],
    skipped: set[Node],
) -> None:
    """Put one call in the place of a run of layers, and what its last layer gives in place of what the call does."""
    call = copy_node(run[0], values)
    call.attributes = {**run[0].attributes, "num_layers": len(run)}
    call.weights = {
        renumbered(role, place): name for place, node in enumerate(run) for role, name in node.weights.items()
    }
    made.append(call)
    results = [_results(node, users, skipped) for node in run]

    def take(source: Value, *index: int) -> Value:
        for at in index:
            node = made.append(
                Node("getitem", "operator.getitem", (source, at), kind="function", scope=call.scope)
            )
            node.output.is_tensor = False
            source = node.output
        return source

    for value in results[-1].get((0,), ()):
        out = take(call.output, 0)
        out.type, out.is_tensor = value.type, True
        values[value] = out
    for index in sorted({index for found in results for index in found if index != (0,)}):
        columns = [found.get(index, []) for found in results]
        collectors = [node for value in columns[-1] for node in users.get(value, ())]
        if len(run) == 1:  # its state is the call's
            for value in columns[0]:
                values[value] = take(call.output, *index)
                values[value].type, values[value].is_tensor = value.type, True
            continue
        for node in dict.fromkeys(collectors):
            states = node.args[0] if node.args else None
            if node.op == "torch.cat" and isinstance(states, list) and len(states) == len(run):
                whole = all(state in column for state, column in zip(states, columns, strict=True))
                if whole:
                    skipped.add(node)
                    values[node.output] = take(call.output, *index)
                    values[node.output].type, values[node.output].is_tensor = node.output.type, True


def _results(
    node: Node, users: Mapping[Value, list[Node]], skipped: set[Node]
) -> dict[tuple[int, ...], list[Value]]:
    """What is taken out of a layer's result: tensors by their indices in it."""
    found: dict[tuple[int, ...], list[Value]] = {}
    waiting: list[tuple[tuple[int, ...], Value]] = [((), node.output)]
    while waiting:
        index, value = waiting.pop()
        for reader in users.get(value, ()):
            at = reader.args[1] if len(reader.args) > 1 else None
            if (
                reader.op == "operator.getitem"
                and reader.args[0] is value
                and type(at) is int
                and not value.is_tensor
            ):
                skipped.add(reader)
                if reader.output.is_tensor:
                    found.setdefault((*index, at), []).append(reader.output)
                else:
                    waiting.append(((*index, at), reader.output))
    return found
