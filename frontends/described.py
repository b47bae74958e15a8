"""What a file of ours describes beside its graph: the network's module, and the inputs that it runs on.

Where the module's class may be built, it is; else its description is carried along as stand-ins. Either way the example
inputs come back, so that a network whose class is not at hand can be run, measured and exported.

Building takes torch, and most commands build nothing: where the description is evidently sound, it is built when
somebody asks for the module, and else at once, so that what is wrong with it is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from elastic_ir.errors import ElasticError, SourceError, UntrustedError
from elastic_ir.formats.pickles.allow_list import defines
from elastic_ir.formats.pickles.description import GRAPH_MODULE
from elastic_ir.formats.pickles.outline import (
    is_evident,
    is_evident_input,
    is_made_up,
    outline_of,
    undescribed,
)
from elastic_ir.ir.example_inputs import Inputs, read_input
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.info import UNKNOWN, Origin, Stated
from elastic_ir.tensors.weights import Weight

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
#: What reading damaged data may raise.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError)


class FileSource(Origin):
    """What a file describes, its module and inputs made when they are asked for."""

    def __init__(self, late: Callable[[], Mapping[str, Any]] | None = None, **given: Any) -> None:
        super().__init__(**given)
        if late is not None:
            for name in ("module", "described", "inputs"):
                del vars(self)[name]
        self._late = late

    def __getattr__(self, name: str) -> Any:
        if name in ("module", "described", "inputs") and self._late is not None:
            late, self._late = self._late, None
            vars(self).update(late())
            return vars(self)[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def retrace(self, module: Any, frontend: str) -> Graph:
        """Another module of the kind as a graph, read in the same way on the same inputs."""
        from elastic_ir.frontends.trace import LiveSource

        return LiveSource(inputs=self.inputs).retrace(module, frontend)


def origin_of_file(data: Mapping[str, Any], graph: Graph, trust: Sequence[str]) -> tuple[Origin, str]:
    """The source of a graph that was read from a file, and why its class was not built, if it was not."""
    record = data["module"]
    if not isinstance(record, Mapping):
        return UNKNOWN, "the module's description is damaged: it is not a record"
    unproven = "exact" if record.get("unproven") == "exact" else "wiring" if record.get("unproven") else ""
    weights = dict(graph.weights)  # as the file has them
    evident = _evident(data, weights, trust)
    if evident is not None:
        stated, note = evident

        def late() -> Mapping[str, Any]:
            return _built(data, weights, trust)[0]

        return FileSource(late, stated=stated, from_file=True, unproven=unproven), note
    built, note = _built(data, weights, trust)
    if not any(part is not None for part in built.values()):
        return UNKNOWN, note
    return FileSource(from_file=True, unproven=unproven, **built), note


def _evident(
    data: Mapping[str, Any], weights: Mapping[str, Weight], trust: Sequence[str]
) -> tuple[Stated, str] | None:
    """What a sound file states, and why the class will not be built, if not; None where only building it shows that."""
    record, inputs = data["module"], data.get("inputs")
    try:
        if inputs is not None:
            nests = [inputs["args"], inputs["kwargs"]]
            if not ("tuple" in nests[0] and "dict" in nests[1] and is_evident_input(nests)):
                return None
            noise = is_made_up(nests) or bool(inputs.get("noise"))
            inputs = {
                "args": nests[0], "kwargs": nests[1], "guessed": bool(inputs.get("guessed")), "noise": noise
            }  # fmt: skip
        outline = outline_of(record, weights)  # it raises where the description is damaged
        if _class_name(record) == GRAPH_MODULE:
            return Stated(outline, False, inputs), ""
        if "opaque" in record and "pretrained" not in record:
            return Stated(outline, False, inputs), undescribed(record["opaque"])
        if is_evident(record, trust):
            return Stated(outline, True, inputs), ""
        note = _own_package(record, trust)
        return (Stated(outline, False, inputs), note) if note else None
    except (*_DAMAGE, ElasticError, OSError):
        return None


def _built(
    data: Mapping[str, Any], weights: Mapping[str, Weight], trust: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """The module, else the stand-ins for it, and the example inputs; and why any of them could not be made."""
    from elastic_ir.formats.pickles.rebuild import rebuild_module, stand_in_module

    record = data["module"]
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

    tensors = _placeholders(weights)
    module = described = None
    if _class_name(record) != GRAPH_MODULE:  # one that was a GraphModule when it was written misses nothing
        module = tried("module's description", lambda: rebuild_module(record, tensors, trust))
    if module is None and "parts" in record:
        first = len(notes)
        described = tried("module's description", lambda: stand_in_module(record, tensors))
        del notes[max(first, 1) :]  # only the reason why the class is not built is kept
    inputs = tried("record of the example inputs", lambda: read_inputs(data.get("inputs")))
    made = {"module": module, "described": described, "inputs": inputs}
    return made, "; ".join(dict.fromkeys(notes))


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


def _placeholders(weights: Mapping[str, Weight]) -> dict[str, torch.Tensor]:
    """Tensors without values for all weights, tied ones the same."""
    import torch

    made: dict[int, torch.Tensor] = {}
    with torch.device("meta"):
        return {
            name: made.setdefault(
                id(weight.storage), torch.empty(weight.shape, dtype=getattr(torch, weight.dtype))
            )
            for name, weight in weights.items()
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
