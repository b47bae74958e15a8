"""What a file of ours tells beside its graph: the network's module, and the inputs that it runs on.

Where the module's class may be built, it is; else its description is carried along as stand-ins. Either way the example
inputs come back, so that a network whose class is not at hand can be run, measured and exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from elastic_ir.errors import ElasticError, SourceError
from elastic_ir.example_inputs import read_input
from elastic_ir.frontends.module_data import rebuild_module, stand_in_module
from elastic_ir.frontends.shapes import Inputs
from elastic_ir.frontends.trace import LiveSource
from elastic_ir.graph import Graph

_T = TypeVar("_T")
#: What reading damaged data may raise.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError)


def origin_of_file(
    data: Mapping[str, Any], graph: Graph, trust: Sequence[str]
) -> tuple[LiveSource | None, str]:
    """The source of a graph that was read from a file, and why its class was not built, if it was not."""
    notes: list[str] = []

    def tried(what: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except ElasticError as error:
            notes.append(str(error))
        except _DAMAGE as error:
            notes.append(f"the {what} is damaged ({type(error).__name__}: {error})")
        return None

    told, tensors = data["module"], _placeholders(graph)
    module = described = None
    if not _is_graph_module(told):
        module = tried("module's description", lambda: rebuild_module(told, tensors, trust))
    if module is None and isinstance(told, Mapping) and "parts" in told:
        before = len(notes)
        described = tried("module's description", lambda: stand_in_module(told, tensors))
        del notes[max(before, 1) :]  # the first reason is the one to be told
    inputs = tried("record of the example inputs", lambda: read_inputs(data.get("inputs")))
    if module is None and described is None and inputs is None:
        return None, "; ".join(notes)
    unproven = str(told.get("unproven", ""))
    return LiveSource(module, inputs, from_file=True, described=described, unproven=unproven), "; ".join(
        notes
    )


def _is_graph_module(told: Any) -> bool:
    """Whether it was a GraphModule that was written, so that no class is missed."""
    parts = told.get("parts") if isinstance(told, Mapping) else None
    return (
        isinstance(parts, list)
        and bool(parts)
        and parts[0].get("class") == "torch.fx.graph_module:GraphModule"
    )


def _placeholders(graph: Graph) -> dict[str, torch.Tensor]:
    """Tensors without values for all weights, tied ones the same."""
    made: dict[int, torch.Tensor] = {}
    with torch.device("meta"):
        return {
            name: made.setdefault(
                id(weight.storage), torch.empty(weight.shape, dtype=getattr(torch, weight.dtype))
            )
            for name, weight in graph.weights.items()
        }


def read_inputs(told: Any) -> Inputs | None:
    """The example inputs that a file describes; SourceError where one of them is nothing that a file can hold."""
    if told is None:
        return None
    args, args_made_up = read_input(told["args"])
    kwargs, kwargs_made_up = read_input(told["kwargs"])
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise SourceError("the record of the example inputs is damaged: it holds no arguments")
    return Inputs(
        args,
        kwargs,
        bool(told.get("guessed")),
        noise=args_made_up or kwargs_made_up or bool(told.get("noise")),
    )
