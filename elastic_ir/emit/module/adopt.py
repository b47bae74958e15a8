"""What a block holds besides weights, taken from the reference: its position's constants, as the native network has.

The emitted blocks are the source's own, with its hooks and modes; where the reference's block at the same place has
another constant (a rate, a variance factor, a window's shift), or another layer without weights (stochastic depth,
an identity), it gets that.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from elastic_ir.emit.module.attributes import submodule
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.naming import outward
from elastic_ir.ir.structure import Container

_OWN = set(vars(nn.Module())) | {"training"}


def adopt(module: nn.Module, graph: Graph, containers: list[Container]) -> dict[str, int]:
    """Take over the reference's constants in the blocks of some containers.

    Returns how many modules changed, by attribute (``"drop_prob"``) or by ``"ClassName"`` for exchanged layers.
    Nothing happens without a reference that is a live network.
    """
    reference = graph.reference
    live = reference.origin.module if reference is not None else None
    changes: dict[str, int] = {}
    if reference is None or live is None:
        return changes
    held = set(graph.weights)
    rebuilt = isinstance(module, fx.GraphModule)  # it has only the layers that its graph calls
    for container in containers:
        for child in container.children:
            mine, theirs = submodule(module, child.path), submodule(live, child.path)
            if mine is not None and theirs is not None and rebuilt:
                _adopt_leaves(mine, theirs, changes)
            elif mine is not None and theirs is not None:
                _adopt(mine, theirs, child.path, held, changes)
        _adopt_lists(module, live, container.path, changes)
    _adopt_rates(module, live, containers, changes)
    _fill_buffers(module, live, reference, containers, graph.origin.module)
    return changes


def _adopt_rates(
    module: nn.Module, live: nn.Module, containers: list[Container], changes: dict[str, int]
) -> None:
    """Rates and epsilons of what is kept: numbers that no weight shows, and that may differ within a family."""
    inside = tuple(f"{child.path}." for container in containers for child in container.children)
    for path, part in module.named_modules():
        other = None if f"{path}.".startswith(inside) else submodule(live, path)
        if other is None or type(other) is not type(part):
            continue
        for name, value in vars(other).items():
            own = vars(part).get(name)
            if isinstance(value, float) and isinstance(own, float) and own != value:
                setattr(part, name, value)
                changes[name] = changes.get(name, 0) + 1


def _adopt_leaves(mine: nn.Module, theirs: nn.Module, changes: dict[str, int]) -> None:
    for path, part in mine.named_modules():
        other = submodule(theirs, path)
        if other is not None and type(other) is type(part) and type(part) is not nn.Module:
            _adopt_constants(part, other, changes)


def _adopt_constants(mine: nn.Module, theirs: nn.Module, changes: dict[str, int]) -> None:
    for name, value in vars(theirs).items():
        if name in _OWN or not _is_plain(value):
            continue
        if name in vars(mine) and not _is_plain(vars(mine)[name]):
            continue
        if name not in vars(mine) or vars(mine)[name] != value:
            setattr(mine, name, copy.deepcopy(value))
            changes[name] = changes.get(name, 0) + 1


def _adopt(mine: nn.Module, theirs: nn.Module, path: str, held: set[str], changes: dict[str, int]) -> None:
    for table in (mine._parameters, mine._buffers):
        others: dict[str, Any] = theirs._parameters if table is mine._parameters else theirs._buffers
        for role in list(table):
            if f"{path}.{role}" not in held and others.get(role) is None:
                if role in others:
                    table[role] = None
                else:
                    del table[role]
    children: dict[str, nn.Module | None] = {}
    for name, other in theirs._modules.items():
        own = mine._modules.get(name)
        inner = f"{path}.{name}"
        if other is None or own is None:
            children[name] = copy.deepcopy(other) if other is not None and _is_bare(other) else None
        elif type(own) is type(other):
            _adopt(own, other, inner, held, changes)
            children[name] = own
        elif _is_bare(other) and not any(weight.startswith(f"{inner}.") for weight in held):
            children[name] = copy.deepcopy(other).train(own.training)
            kind = type(other).__name__
            changes[kind] = changes.get(kind, 0) + 1
        else:
            children[name] = own
    # what the reference's block has not, and no weight is kept of, goes
    for name, own in mine._modules.items():
        if name not in children and any(weight.startswith(f"{path}.{name}.") for weight in held):
            children[name] = own
    mine._modules.clear()
    mine._modules.update(children)
    for name in children:  # what was a plain None there is a layer here
        vars(mine).pop(name, None)
    _adopt_constants(mine, theirs, changes)


def _is_bare(module: nn.Module) -> bool:
    """Whether it holds no tensor."""
    return next((t for t in (*module.parameters(), *module.buffers())), None) is None


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return True
    if type(value) in (tuple, list, torch.Size):
        return all(_is_plain(part) for part in value)
    if type(value) is dict:
        return all(_is_plain(part) for part in (*value.keys(), *value.values()))
    return False


def _adopt_lists(module: nn.Module, live: nn.Module, path: str, changes: dict[str, int]) -> None:
    """Per-block lists of the modules around a container (a description of features): those whose length differs."""
    for around in outward(path):
        mine, theirs = submodule(module, around), submodule(live, around)
        for name, value in vars(theirs).items() if mine is not None and theirs is not None else ():
            own = vars(mine).get(name)
            if name in _OWN or not isinstance(value, (list, tuple)) or not isinstance(own, (list, tuple)):
                continue
            if _is_plain(value) and _is_plain(own) and len(own) != len(value):
                setattr(mine, name, copy.deepcopy(value))
                changes[name] = changes.get(name, 0) + 1


def _fill_buffers(
    module: nn.Module,
    live: nn.Module,
    reference: Graph,
    containers: list[Container],
    origin: nn.Module | None,
) -> None:
    """Buffers that no state dict holds, and that the source's block has not or in another shape.

    A reference on the meta device has no values for them. Where it is known how to make it, it is made once more;
    else they are copied from a module of the source that is made alike, for no state dict holds them because they
    follow from what a module is made with.
    """
    wanting: list[tuple[nn.Module, str, str]] = []
    for container in containers:
        for child in container.children:
            mine, theirs = submodule(module, child.path), submodule(live, child.path)
            for inner, part in theirs.named_modules() if theirs is not None else ():
                own = submodule(mine, inner) if mine is not None else None
                for role in part._non_persistent_buffers_set if own is not None else ():
                    assert own is not None
                    value, old = part._buffers.get(role), own._buffers.get(role)
                    if value is None and old is not None:
                        own._buffers[role] = None
                    elif value is not None and (old is None or old.shape != value.shape):
                        wanting.append((own, role, ".".join(p for p in (child.path, inner, role) if p)))
    if not wanting:
        return
    rebuild = reference.origin.rebuild
    source = live
    if rebuild is not None and any(source.get_buffer(path).is_meta for *_, path in wanting):
        source = rebuild()
    for own, role, path in wanting:
        value = source.get_buffer(path)
        if value.is_meta:
            places = [origin, module] if origin is not None else [module]
            value = _alike(places, own, role, value)
            if value is None:
                value = _computed(live.get_submodule(path.rpartition(".")[0]), role)
        if value is None:
            raise EmitError(
                f"{path!r} has no values: the reference was read on the meta device, no state dict holds this tensor, "
                "and no block of the source has one that is made alike; give the reference with values, or by its name"
            )
        own._buffers[role] = value.clone()
        own._non_persistent_buffers_set.add(role)


def _alike(places: list[nn.Module], own: nn.Module, role: str, wanted: torch.Tensor) -> torch.Tensor | None:
    """The values of a buffer without any, from a module of the same class, made with the same constants.

    None where there is none, or where the constants that are known do not determine the values.
    """
    constants = _constants_of(own)
    found: list[torch.Tensor] = []
    for other in [part for place in places for part in place.modules()]:
        value = (
            other._buffers.get(role)
            if type(other) is type(own) and _constants_of(other) == constants
            else None
        )
        if (
            value is not None
            and not value.is_meta
            and (value.shape, value.dtype) == (wanted.shape, wanted.dtype)
        ):
            found.append(value)
    return found[0] if found and all(torch.equal(found[0], value) for value in found[1:]) else None


def _constants_of(module: nn.Module) -> dict[str, Any]:
    """What a module was made with, as far as it shows: its plain attributes."""
    return {name: value for name, value in vars(module).items() if name not in _OWN and _is_plain(value)}


def _computed(module: nn.Module, role: str) -> torch.Tensor | None:
    """The values that a module gives a buffer by ``reset_parameters``, as modules made on the meta device offer it.

    Computed twice, over different contents: what is left as it was is not computed.
    """
    reset = getattr(type(module), "reset_parameters", None)
    if reset is None:
        return None
    found: list[torch.Tensor] = []
    for content in (0, 1):
        twin = copy.deepcopy(module).to_empty(device="cpu")
        held = twin._buffers.get(role)
        if held is None:
            return None
        held.fill_(content)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                reset(twin)
        except Exception:  # a module's own code may raise anything
            return None
        made = twin._buffers.get(role)
        if made is None or made.is_meta:
            return None
        found.append(made)
    return found[0] if torch.equal(*found) else None
