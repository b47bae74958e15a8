"""The check of a module before it is handed out: it runs every unit of the plan, and computes what the graph says.

A forward that returns proves nothing: it may skip new blocks (a count in a configuration), or do something at every
third one. The graph's nodes are therefore run too, with the module's own tensors, and the outputs compared. What runs
is a twin that shares the parameters, so that the module keeps its buffers, caches and counters.

A forward may also take a skip by a block's number (``if i == 3: skips.append(x)``). Cloned blocks shift the numbers,
and it would then read another block than the plan says. Where something besides the next block reads a block, the
module is therefore traced again, and its wiring compared with the graph's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from elastic_ir.emit.comparison import SKIP, Outputs, compare_outputs, refuse_not_finite, wide
from elastic_ir.emit.example_runs import Call, calls_of, run_module
from elastic_ir.emit.module.attributes import copied, refresh
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Argument, Graph, Value, map_argument
from elastic_ir.ir.structure import Block
from elastic_ir.tensors.torch_bridge import device_of, to_torch


class RunsOtherwiseError(EmitError):
    """A module of the source's class that does not compute what its graph says; the graph's nodes run by themselves."""

    def __init__(self, message: str, *, finite: bool = True) -> None:
        super().__init__(message)
        self.finite = finite  #: whether what it returned, if anything, is without NaN


def check_runs(module: nn.Module, graph: Graph) -> int:
    """Run a module once, in evaluation mode without gradients; hooks see which blocks were executed.

    Returns how many blocks ran. Raises EmitError that names the blocks which did not (Llama iterates
    ``layers[:num_hidden_layers]`` and silently skips the rest), or the error that the forward raised. The module stays
    as it was. One on the meta device is run without arithmetic.
    """
    inputs = graph.origin.inputs
    if inputs is None or graph._structure is None:
        return 0
    twin = _twin(module)
    _watched(twin, graph, calls_of(inputs, device_of(module))[:1])
    return len(graph.blocks)


def check_module(module: nn.Module, graph: Graph) -> str:
    """Check a module against the graph it was emitted from, on its example inputs and a second set of such.

    Returns "", or why the outputs were not compared (no example inputs, nodes that cannot be run). Raises EmitError as
    :func:`check_runs` does, and where outputs are NaN, or infinite where the source's are not. Where the graph's nodes
    do better than the module, it is a :class:`RunsOtherwiseError`: the module does not run, leaves a block out, or
    returns something else.
    """
    inputs = graph.origin.inputs
    if inputs is None:
        return "it was read without example inputs"
    calls = calls_of(inputs, device_of(module))
    twin, nodes, why = _twin(module), None, ""
    if not isinstance(module, fx.GraphModule):  # one is the graph's nodes already
        try:
            nodes = _nodes(graph, twin).eval()
            expected = run_module(nodes, calls[:1], "the graph")
            if _holds_nan(expected):
                nodes = None  # a constant of a reference on the meta device has no values; the module has
        except EmitError as error:
            nodes, why = None, f"the graph's nodes cannot be run by themselves: {error}"
    if nodes is None:
        try:
            found = _watched(twin, graph, calls[:1])
        except EmitError as error:
            raise EmitError(f"{error}; {why}" if why else str(error)) from error
        _finite(found, graph, calls[:1])
        return why
    _finite(expected, graph, calls[:1])
    try:
        found = _watched(twin, graph, calls[:1])
    except EmitError as error:
        raise RunsOtherwiseError(f"{error}; {SKIP}") from error
    _compare(found, expected, graph)
    for second in calls[1:]:
        noise = _noise_for_zeros(twin)
        _replace(twin, noise)
        _replace(nodes, noise)
        try:
            expected = run_module(nodes, [second], "the graph")
            refuse_not_finite(expected, None)
        except EmitError:
            break  # these inputs are made up, and the network need not take them
        _compare(run_module(twin, [second]), expected, graph)
    return ""


def _compare(found: Outputs, expected: Outputs, graph: Graph) -> None:
    try:
        compare_outputs(found, expected, "the module made", "the graph's")
    except EmitError as error:
        raise RunsOtherwiseError(
            f"{graph.name}.forward does something else with so many blocks than the plan says: {error}; {SKIP}",
            finite=not _holds_nan(found),
        ) from error


def _holds_nan(found: Outputs) -> bool:
    return any(np.isnan(wide(array)).any() for run in found.runs for array in run)


def _finite(found: Outputs, graph: Graph, calls: Sequence[Call]) -> None:
    """EmitError for NaN, and for infinities where the source's outputs, run on the same inputs, have none."""
    live: nn.Module | None = graph.origin.module
    before = None
    if live is not None and any(np.isinf(wide(array)).any() for array in found.runs[0]):
        before = run_module(_twin(live).eval(), calls, "the source")
    try:
        refuse_not_finite(found, before, "the module made", "the source's")
    except EmitError as error:
        raise EmitError(f"{error}; {SKIP}") from error


def _twin(module: nn.Module) -> nn.Module:
    """A copy that shares the parameters and has everything else for itself."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in module.parameters()}
    return copied(module, memo)


def _nodes(graph: Graph, twin: nn.Module) -> nn.Module:
    """The graph's nodes as a module with the twin's parameters and buffers of its own. Raises EmitError."""
    tensors: dict[str, torch.Tensor] = dict(twin.named_parameters(remove_duplicate=False))
    tensors |= {name: buffer.clone() for name, buffer in twin.named_buffers(remove_duplicate=False)}
    from elastic_ir.emit.module.from_torch import build_graph_module

    made = build_graph_module(graph, graph.origin.module)
    if graph.reference is not None:
        from elastic_ir.emit.module.adopt import adopt

        adopt(made, graph, graph.structure.containers)
    if graph.edits.edited_layers:
        from elastic_ir.emit.module.layers import conform_layers

        conform_layers(made, graph)
    for name, table, role in _places(made):
        if name in tensors:
            table[role] = tensors[name]
        elif table[role].is_meta and name in graph.weights:
            # a constant that a tracer has met, and no module has; by a reference blocks may be wired as their new place
            # has it (a shifted window), which the constants of the source's blocks do not know
            if graph.reference is not None:
                raise EmitError(f"the module made has no {name}")
            table[role] = to_torch(graph.weights[name].storage.data)
    refresh(made)
    return made


def _places(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Each tensor's name, with the table and the role in it under which its module holds it."""
    for path, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for role, tensor in list(table.items()):
                if tensor is not None:
                    yield (f"{path}.{role}" if path else role), table, role


def _noise_for_zeros(module: nn.Module) -> dict[str, nn.Parameter]:
    """Noise for parameters that are zero throughout: behind a last layer of zeros all networks are equal."""
    generator = torch.Generator().manual_seed(2)
    made: dict[int, nn.Parameter] = {}
    found: dict[str, nn.Parameter] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if p.is_floating_point() and p.element_size() > 1 and p.numel() and not bool(p.any()):
            noise = (torch.randn(p.shape, generator=generator) * 0.05).to(p)
            found[name] = made.setdefault(id(p), nn.Parameter(noise, requires_grad=False))
    return found


def _replace(module: nn.Module, filled: dict[str, nn.Parameter]) -> None:
    for name, table, role in _places(module):
        if name in filled:
            table[role] = filled[name]
    refresh(module)


def _module_of(module: nn.Module, path: str) -> nn.Module:
    """The module of a block, or the one that runs it: a recurrent module, whose layers are parameters of it."""
    parent, _, name = path.rpartition(".")
    owner = module.get_submodule(parent)
    return owner if name in owner._parameters else module.get_submodule(path)


def _lead(block: Block, module: nn.Module) -> str:
    """The path of a block's first child that has tensors; one without them may be but a function of its caller's."""
    paths = (child.path for child in block.children)
    return next(
        (path for path in paths if any(True for _ in _module_of(module, path).parameters())), block.path
    )


def _watched(module: nn.Module, graph: Graph, calls: Sequence[Call]) -> Outputs:
    """Run a module in evaluation; EmitError where a block did not run."""
    ran = dict.fromkeys((_lead(block, module) for block in graph.blocks), False)
    if isinstance(module, fx.GraphModule):
        # a straight-line program of leaf calls: a block runs if it stands in it, and containers are never called
        named = [str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")]
        for path in ran:
            ran[path] = any(name == path or name.startswith(f"{path}.") for name in named)
    handles = []
    for path, done in ran.items():
        # a parameter is never called; that one of a list is read shows in the outputs alone
        ran[path] = done or isinstance(_module_of(module, path), (nn.ParameterList, nn.ParameterDict))
    waiting = {path: list(_module_of(module, path).modules()) for path, done in ran.items() if not done}
    owners = Counter(part for parts in waiting.values() for part in parts)
    for path, parts in waiting.items():

        def note(*_: object, path: str = path) -> None:
            ran[path] = True

        # its own layers count too, for the caller may run them itself; an activation that many blocks share does not,
        # but a recurrent module runs all its layers
        handles += [
            part.register_forward_hook(note)
            for part in parts
            if owners[part] == 1 or isinstance(part, nn.RNNBase)
        ]
    module.eval()
    try:
        outputs = run_module(module, calls)
    finally:
        for handle in handles:
            handle.remove()
    idle = [path for path, done in ran.items() if not done]
    if idle:
        raise EmitError(
            f"{len(idle)} of {len(ran)} blocks would never run, {idle[0]!r} first: {graph.name}.forward does not "
            "follow the number of its blocks (a count in its configuration was not updated)"
        )
    return outputs


# -- wiring ------------------------------------------------------------------------------------------------------------


def follows_plan(module: nn.Module, graph: Graph, *, exact: bool = False) -> bool:
    """Whether a module, traced as its source was, computes its outputs from the same weights in the same way.

    ``exact`` compares the constants in the calls too. Where it cannot be traced again, it is not known to follow the
    plan.
    """
    try:
        found = graph.origin.retrace(module, graph.info.frontend)
    except Exception:  # a tracer may raise anything
        return False
    return _wiring(found, exact) == _wiring(graph, exact)


def _wiring(graph: Graph, exact: bool) -> list[str]:
    """A hash of each output's history: operations, weights by name, and what reads what; literals if wanted."""
    digests: dict[Value, str] = {}
    ends = []
    for node in graph:
        text = [node.name if node.kind == "input" else node.op, *node.weight_names()]
        text += [digests[value] for value in node.operands()]
        if exact:
            text.append(repr(map_argument((node.args, node.kwargs), _plain)))
        digests[node.output] = hashlib.sha256("\n".join(text).encode()).hexdigest()
        if node.kind == "output":
            ends.append(digests[node.output])
    return ends


def _plain(leaf: Argument) -> Argument:
    return "value" if isinstance(leaf, Value) else leaf


def check_names(module: nn.Module, graph: Graph) -> None:
    """EmitError unless the module's state dict has exactly the graph's names and shapes, in order."""
    made = {
        n: tuple(t.shape) for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)
    }
    planned = {name: weight.shape for name, weight in graph.weights.items() if weight.persistent}
    if made == planned:
        return
    missing = [name for name in planned if name not in made][:3]
    extra = [name for name in made if name not in planned][:3]
    other = [f"{n} {list(made[n])} instead of {list(s)}" for n, s in planned.items() if made.get(n, s) != s][
        :3
    ]
    parts = [("missing", missing), ("unplanned", extra), ("of another shape", other)]
    listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
    raise EmitError(f"the module made is not what a strict load expects ({listed})")
