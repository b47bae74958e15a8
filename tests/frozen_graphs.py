"""Built graphs are frozen while the tests run: only ``elastic_ir/rewrite/`` edits them.

A graph is built once a front end has handed it out, or a copy or a rewriter was made of it. From then on its nodes,
values, weights and structure are of subclasses that refuse to be changed by any other code of ours, or of a pass's.
Tests may, since a verifier is tested on graphs that somebody has damaged. The product has none of this, and users pay
nothing for it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.structure import Block, Child, Container, Stage, Structure
from elastic_ir.rewrite.rewriter import Rewriter
from elastic_ir.tensors.weights import Storage, Weights

TESTS = str(Path(__file__).parent)
#: What is no edit of the network: what emission needs, and what a reader is shown.
NOTES = {"origin", "resequenced", "name", "history", "emitted"}
#: The edits that were refused, in case somebody caught the error.
REFUSED: list[str] = []


def refuse_others(what: str) -> None:
    """AssertionError unless the code that is changing something, outside of the IR itself, may do so."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("elastic_ir.rewrite.") or frame.f_code.co_filename.startswith(TESTS):
            if module != __name__:
                return
        elif not module.startswith("elastic_ir.ir."):
            break
        frame = frame.f_back
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "nowhere"
    REFUSED.append(f"{where} changes {what} of a built graph; let elastic_ir/rewrite/ do it")
    raise AssertionError(REFUSED[-1])


def _frozen(base: type) -> type:
    """A class of equal layout and name whose attributes only the rewriter sets."""

    def set_attribute(self: object, name: str, value: object) -> None:
        found_now = name == "_structure" and sys._getframe(1).f_code is FIND
        if name not in NOTES and not found_now:
            refuse_others(f"{base.__name__}.{name}")
        object.__setattr__(self, name, value)

    return type(
        base.__name__, (base,), {"__slots__": (), "__setattr__": set_attribute, "__module__": __name__}
    )


def _guarded(base: type, methods: tuple[str, ...]) -> type:
    """A list or dict that only the rewriter changes."""

    def guard(name: str) -> Callable[..., Any]:
        method = getattr(base, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            refuse_others(f"a {base.__name__}")
            return method(self, *args, **kwargs)

        return call

    return type(base.__name__, (base,), {name: guard(name) for name in methods})


FIND = Graph.structure.fget.__code__  # type: ignore[attr-defined]  # it keeps what it finds, which is no edit
FROZEN = {
    base: _frozen(base) for base in (Graph, Node, Value, Storage, Structure, Stage, Block, Container, Child)
}
ITEMS = ("__setitem__", "__delitem__", "pop", "clear")
FrozenList = _guarded(list, (*ITEMS, "append", "extend", "insert", "remove", "sort", "reverse", "__iadd__"))
DICT_EDITS = (*ITEMS, "popitem", "update", "setdefault", "__ior__")
FrozenDict = _guarded(dict, DICT_EDITS)
FrozenWeights = _guarded(Weights, DICT_EDITS)


#: The lists and dicts that an object holds.
HOLDS = {
    Graph: ("weights", "modules"),
    Node: ("attributes", "kwargs", "weights"),
    Structure: ("stages",),
    Stage: ("blocks",),
    Block: ("children", "nodes"),
    Container: ("children",),
}


def _freeze(item: Any) -> bool:
    """Freeze one object; whether it was not frozen before."""
    base = next(base for base in (type(item), *type(item).__bases__) if base in FROZEN)
    for name in HOLDS.get(base, ()):
        held = getattr(item, name)
        if type(held) is list:
            object.__setattr__(item, name, FrozenList(held))
        elif type(held) is dict:
            object.__setattr__(item, name, FrozenDict(held))
        elif type(held) is Weights:
            object.__setattr__(item, name, FrozenWeights(held))
    if type(item) is not base:
        return False
    object.__setattr__(item, "__class__", FROZEN[base])
    return True


def freeze(graph: Graph) -> Graph:
    """Freeze a built graph: what it holds and is not frozen yet."""
    _freeze(graph)
    for node in graph:
        _freeze(node)
        _freeze(node.output)
    for weight in graph.weights.values():
        _freeze(weight.storage)
    structure = graph._structure
    if structure is not None:
        _freeze(structure)
        for stage in structure.stages:
            _freeze(stage)
            for block in stage.all_blocks:
                _freeze(block)
        for container in structure.containers:
            _freeze(container)
            for child in container.children:
                _freeze(child)
    return graph


def freeze_built_graphs() -> None:
    """From now on freeze what front ends hand out, what is copied, and what a rewriter is made of or has edited."""
    import elastic_ir.frontends.sources
    import elastic_ir.frontends.trace

    for module, name in ((elastic_ir.frontends.sources, "load"), (elastic_ir.frontends.trace, "trace")):
        setattr(module, name, _freezing(getattr(module, name), reads=True))
    for owner, method in ((Graph, "copy"), (Rewriter, "_read"), (Rewriter, "commit")):
        setattr(owner, method, _freezing(getattr(owner, method)))


#: How many front ends are at work: reading a file may trace its network first, which is building yet.
_reading = 0


def _freezing(function: Callable[..., Any], *, reads: bool = False) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _reading
        _reading += reads
        try:
            made = function(*args, **kwargs)
        finally:
            _reading -= reads
        if not _reading:
            freeze(made if isinstance(made, Graph) else args[0].graph)
        return made

    return call
