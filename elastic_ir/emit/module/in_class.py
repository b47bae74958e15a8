"""The source's own class with re-filled containers, or why its forward cannot follow the plan.

It serves live modules and outlines of modules (:mod:`elastic_ir.emit.module.outlines`), which need no torch.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from elastic_ir.emit.module.attributes import (
    KEPT,
    copied,
    is_parameter_list,
    refill_parameters,
    renumber_indices,
    respread_constants,
    set_layers,
    update_configuration,
    update_counts,
    update_stage_counts,
)
from elastic_ir.formats.pickles.description import MARK, is_graph_module, is_layer
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.naming import head_in
from elastic_ir.ir.structure import Container

if TYPE_CHECKING:
    from torch import nn

_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict", "RNNBase", "RNN", "LSTM", "GRU")
_PLAIN = (int, float, str, bytes, bool, type(None), type)
PROOFS = ("", "wiring", "exact")  #: what may remain to be proven of a class, the most last


def levels_of(graph: Graph) -> list[Sequence[Container]]:
    """The containers of each level at which the depth was changed, in that order; the last is the structure's.

    A network in which nothing repeats has none.
    """
    return [*graph.earlier, graph._structure.containers if graph._structure is not None else ()]


class InClass(NamedTuple):
    """The source's class with re-filled containers, or why its forward cannot follow the plan."""

    module: nn.Module | None
    unproven: str  #: what remains to be proven
    why: str
    placed: bool = False  #: whether constants were set to what their new places have


def in_its_class(graph: Graph, source: nn.Module) -> InClass:
    """The source's class for a graph.

    ``source`` is the live module, or the stand-ins for it.
    """
    levels = [level for level in levels_of(graph) if any(container.changed for container in level)]
    touched = [container for level in levels for container in level if container.changed]
    names = ", ".join(dict.fromkeys(repr(container.label) for container in touched))
    rewired = graph.edits.rewired
    why = f"names the units of {names} one by one"
    module: nn.Module | None = source
    placed = False
    for level in levels or [()]:  # without a change a copy is made all the same
        try:
            module, moved = _refill(graph, module, level) if module is not None else (None, False)
        except TypeError as error:  # deepcopy's, of a lock or an open file
            return InClass(None, "", f"is of a module that cannot be copied ({error})")
        placed |= moved
    if module is not None:
        why = f"gets a skip from one of the units of {names}, and would take it from another one now"
    if rewired:
        why = "computes something else than the graph does, which a pass has rewired"
    if module is None or (rewired and not (len(levels) < 2 and _same_weights(graph, source, touched))):
        return InClass(None, "", why)
    skips = bool(graph.earlier) or (bool(touched) and len(graph) > 0 and has_long_skips(graph, touched))
    unproven = "exact" if rewired else "wiring" if skips else ""
    unproven = max(unproven, graph.origin.unproven, key=PROOFS.index)
    return InClass(module, unproven, why, placed)


def has_long_skips(graph: Graph, touched: list[Container]) -> bool:
    """Whether a block of one of these containers is read by anything besides the block after it.

    The last block of a stage may be read by one module outside, and by the network's output.
    """
    owner: dict[Node, int] = {}
    stages = graph.structure.stages
    for number, block in enumerate(block for stage in stages for block in stage.all_blocks):
        owner.update(dict.fromkeys(block.nodes, number))
    users = graph.users()
    for stage in stages:
        if stage.container not in touched or not all(block.nodes for block in stage.all_blocks):
            continue
        if stage.container.parameters:  # the module itself gives the states of all its layers
            continue
        for block in stage.all_blocks:
            number = owner[block.nodes[0]]
            last = block is stage.all_blocks[-1]
            places: set[int | str] = set()
            for node in block.nodes:
                for reader in users.get(node.output, ()) if node.output.is_tensor else ():
                    if owner.get(reader) != number and not (last and reader.kind == "output"):
                        places.add(owner.get(reader, reader.scope if reader.kind != "output" else "output"))
            if len(places) > 1:
                return True
    return False


def _same_weights(graph: Graph, live: nn.Module, touched: list[Container]) -> bool:
    """Whether the source's class, its containers re-filled, has the graph's weights: none new, none gone."""
    copies: dict[str, list[str]] = {}
    for container in touched:
        for child in container.children:
            copies.setdefault(child.origin, []).append(child.path)
    expected: set[str] = set()
    heads = set(copies)
    names = (live.named_parameters(remove_duplicate=False), live.named_buffers(remove_duplicate=False))
    for name, _ in itertools.chain(*names):
        head = head_in(name, heads)
        if head is not None:
            expected.update(path + name[len(head) :] for path in copies[head])
        elif not any(_in_series(name, container) for container in touched):
            expected.add(name)
    return expected == graph.weights.keys()


def _in_series(name: str, container: Container) -> bool:
    """Whether a weight lies in one of a container's numbered children, of those that are gone too."""
    return container.series.number(name) is not None


def _runs_all(container: Container, live: nn.Module) -> bool:
    """Whether a container's series is all that it has, or stands in one piece in a Sequential, which runs all."""
    if container.native:
        return True
    module = live.get_submodule(container.path)
    head = f"{container.path}." if container.path else ""
    members = [_in_series(head + name, container) for name in module._modules]
    if not (is_layer(module, "Sequential") and sum(1 for one, _ in itertools.groupby(members) if one) == 1):
        return False
    forward = getattr(type(module), "forward", None)
    if forward is None:  # an outline, which stands for one of torch's own
        return True
    from torch import nn

    return forward is nn.Sequential.forward


def _iterates(container: Container, live: nn.Module) -> bool:
    """Whether a container's own forward runs its children by iteration, so that new ones run too.

    A Sequential does, and so does a recurrent module; a ModuleList leaves it to its parent. Any other class (RegNet's
    stages) is tried: a copy with its last child twice, traced, must run both.
    """
    module = live.get_submodule(container.path)
    if is_plain_container(module) or MARK in vars(module):
        return True  # of a stand-in it is to be proven by whoever builds the class
    from torch import fx, nn

    probe = copy.copy(module)
    probe._modules = dict(module._modules)
    extra = container.child_path(container.source_count).rpartition(".")[2]
    probe._modules[extra] = nn.Identity()
    try:
        traced = fx.Tracer().trace(probe)
    except Exception:  # tracing may raise anything; then the run before writing has the last word
        return True
    ran = {str(node.target).partition(".")[0] for node in traced.nodes if node.op == "call_module"}
    return extra in ran


def is_plain_container(module: object) -> bool:
    """Whether it is one of torch's own, which run their children, or leave that to who holds them."""
    return is_layer(module, *_CONTAINERS) or is_parameter_list(module)


def _refill(graph: Graph, live: nn.Module, containers: Sequence[Container]) -> tuple[nn.Module | None, bool]:
    """The source's class with re-filled containers, and whether constants were set to what their new places have.

    None where its forward would not run what they are filled with.
    """
    touched = [container for container in containers if container.changed]
    if touched and is_graph_module(live):  # its forward is its nodes, written out
        return None, False
    if not all(_runs_all(container, live) and _iterates(container, live) for container in touched):
        return None, False
    tensors = itertools.chain(live.parameters(), live.buffers())
    shared: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    memo = dict(shared)
    target = copied(live, memo)
    inside = {id(m) for c in touched for m in live.get_submodule(c.path).modules()}
    for module in live.modules():  # what blocks hold in common with the rest (a configuration) stays common
        if id(module) in inside:
            continue
        for value in vars(module).values():
            if not isinstance(value, (*_PLAIN, dict, list, tuple, set)) and id(value) in memo:
                shared[id(value)] = memo[id(value)]
    known = update_configuration(target, containers) if touched else set()
    placed = False
    filled: set[nn.Module] = set()
    owner = {child: block for block in graph.blocks for child in block.children}
    copied_by_block: dict[Any, dict[int, Any]] = {}  # a block in two lists is one module in both
    for path in dict.fromkeys(container.path for container in touched if container.parameters):
        set_layers(target.get_submodule(path), path, graph)
        update_counts(target, next(box for box in touched if box.path == path), known)
    for container in touched:
        if container.parameters:
            continue
        source, place = live.get_submodule(container.path), target.get_submodule(container.path)
        if place in filled:
            continue
        filled.add(place)
        head = f"{container.path}." if container.path else ""
        if is_parameter_list(source):
            refill_parameters(
                source, place, {c.path[len(head) :]: c.origin[len(head) :] for c in container.children}
            )
            update_counts(target, container, known)
            continue
        used: set[str] = set()
        children: dict[str, nn.Module | None] = {}
        for child in container.children:
            origin = child.origin[len(head) :]
            if origin not in source._modules:  # a number that none of its children has
                continue
            if origin not in used:
                used.add(origin)
                twin = place._modules[origin]
            else:
                twin = source._modules[origin]
                assert twin is not None
                twin = copied(twin, copied_by_block.setdefault(owner.get(child, child), dict(shared)))
            children[child.path[len(head) :]] = twin
        others = [
            (name, part) for name, part in place._modules.items() if not _in_series(head + name, container)
        ]
        at = next((at for at, name in enumerate(source._modules) if _in_series(head + name, container)), 0)
        place._modules.clear()
        place._modules.update([*others[:at], *children.items(), *others[at:]])
        placed |= bool(renumber_indices(source, place))
        update_counts(target, container, known)
    update_stage_counts(target, containers, known)
    if touched and graph.reference is None and touched[0] in graph.structure.containers:
        # blocks that add nothing yet leave the variances as they were
        constants = {} if graph.edits.keep_constants else respread_constants(live, target, graph)
        graph.emitted = replace(graph.emitted, constants=constants)
        placed |= any(how != KEPT for how in constants.values())
    return target, placed
