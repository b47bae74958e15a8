"""What a file of ours describes beside its graph: the network's module, and the inputs that it runs on.

Where the module's class may be built, it is; else its description is carried along as stand-ins. Either way the example
inputs come back, so that a network whose class is not at hand can be run, measured and exported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from elastic_ir.errors import ElasticError, SourceError, UntrustedError
from elastic_ir.formats.pickles.allow_list import defines
from elastic_ir.formats.pickles.description import GRAPH_MODULE
from elastic_ir.formats.pickles.rebuild import rebuild_module, stand_in_module
from elastic_ir.frontends.trace import LiveSource
from elastic_ir.ir.example_inputs import Inputs, read_input
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import UNKNOWN, Origin

_T = TypeVar("_T")
#: What reading damaged data may raise.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError)


def origin_of_file(data: Mapping[str, Any], graph: Graph, trust: Sequence[str]) -> tuple[Origin, str]:
    """The source of a graph that was read from a file, and why its class was not built, if it was not."""
    record = data["module"]
    if not isinstance(record, Mapping):
        return UNKNOWN, "the module's description is damaged: it is not a record"
    notes: list[str] = []

    def tried(what: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except ElasticError as error:
            notes.append(_own_package(record, trust) if isinstance(error, UntrustedError) else "")
            notes[-1] = notes[-1] or str(error)
        except _DAMAGE as error:
            notes.append(f"the {what} is damaged ({type(error).__name__}: {error})")
        return None

    tensors = _placeholders(graph)
    module = described = None
    if _class_name(record) != GRAPH_MODULE:  # one that was a GraphModule when it was written misses nothing
        module = tried("module's description", lambda: rebuild_module(record, tensors, trust))
    if module is None and "parts" in record:
        first = len(notes)
        described = tried("module's description", lambda: stand_in_module(record, tensors))
        del notes[max(first, 1) :]  # only the reason why the class is not built is kept
    inputs = tried("record of the example inputs", lambda: read_inputs(data.get("inputs")))
    note = "; ".join(dict.fromkeys(notes))
    if module is None and described is None and inputs is None:
        return UNKNOWN, note
    unproven = "exact" if record.get("unproven") == "exact" else "wiring" if record.get("unproven") else ""
    return LiveSource(
        module=module, inputs=inputs, from_file=True, described=described, unproven=unproven
    ), note


def _class_name(record: Mapping[str, Any]) -> str:
    """The class that a description names for the whole network; "" where that is damaged."""
    parts = record.get("parts")
    first = parts[0] if isinstance(parts, list) and parts else None
    return str(first.get("class", "")) if isinstance(first, Mapping) else ""


def _own_package(record: Mapping[str, Any], trust: Sequence[str]) -> str:
    """What to do where the network's own class is in a package that is not trusted; "" where it is in another."""
    module, _, name = _class_name(record).partition(":")
    if module == "__main__":
        module = str(record.get("script") or module)
    top = module.partition(".")[0]
    if not name or defines(module, trust) or top in sys.stdlib_module_names or top in ("torch", "numpy"):
        return ""
    return (
        f"its class {module}.{name} is in no trusted package, so none of its code was run: the network is emitted as a "
        f'GraphModule, and what the file says of the class is kept; pass --trust {top} (in Python: trust=["{top}"]) '
        f"where {top} can be imported, to have it in its class"
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


def read_inputs(record: Any) -> Inputs | None:
    """The example inputs that a file describes; SourceError where one of them is nothing that a file can hold."""
    if record is None:
        return None
    args, args_made_up = read_input(record["args"])
    kwargs, kwargs_made_up = read_input(record["kwargs"])
    if not isinstance(args, tuple) or not isinstance(kwargs, dict):
        raise SourceError("the record of the example inputs is damaged: it holds no arguments")
    return Inputs(
        args,
        kwargs,
        bool(record.get("guessed")),
        noise=args_made_up or kwargs_made_up or bool(record.get("noise")),
    )
