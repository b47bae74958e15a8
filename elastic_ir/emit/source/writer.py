"""The text of a source file: imports, helpers, the classes of the blocks, and the network last."""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from torch import nn

from elastic_ir.emit.source.classes import Builder, Definition
from elastic_ir.emit.source.containers import listed, printable, stage_items
from elastic_ir.emit.source.expressions.expr import Expr
from elastic_ir.emit.source.expressions.print import Printer, attribute, number, wrap
from elastic_ir.emit.source.expressions.signatures import REQUIRED, parameters
from elastic_ir.emit.source.forward import Forward
from elastic_ir.emit.source.merge import MISSING, Parameter, unused
from elastic_ir.emit.source.network import define_network
from elastic_ir.emit.source.reading.calls import identifier
from elastic_ir.emit.source.reading.read import read_tree
from elastic_ir.emit.source.reading.sizes import following_sizes
from elastic_ir.emit.source.reading.tree import Body, Part, Tree
from elastic_ir.emit.source.stages import offer_identities, roll_loops, stages_of
from elastic_ir.emit.source.values import RELATIVE_POSITIONS
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph, Node, Value
from elastic_ir.ir.numbering import is_index

#: What the first line of every file says, by which a file is known for one of ours.
SIGNATURE = "in plain PyTorch, written by ElasticIR."

_EXPORTED = (
    "It was read by torch.export in evaluation mode: what only training does, such as stochastic depth, is not part of "
    "it."
)
#: Functions that a file defines where it calls them.
_HELPERS = {
    "stochastic_depth": '''
def stochastic_depth(x: Tensor, p: float, mode: str, training: bool) -> Tensor:
    """Drop the residual branch of whole samples ("row") or of the batch (Huang et al. 2016)."""
    if not training or p == 0.0:
        return x
    size = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
    noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * noise / (1.0 - p) if p < 1.0 else x * noise
''',
    "relative_positions": RELATIVE_POSITIONS,
}


def write_source(graph: Graph, weights: str, notes: Sequence[str] = ()) -> str:
    """The text of a module that defines the graph's network; ``weights`` is the file its docstring loads.

    Raises EmitError for what cannot be written: see :func:`elastic_ir.emit.source.file.save_source`.
    """
    sizes, fixed = following_sizes(graph)
    notes = [*notes, *([_EXPORTED] if graph.info.frontend == "export" else ()), *([fixed] if fixed else ())]
    tree = read_tree(graph, sizes)
    _check_names(tree)
    plan = stages_of(tree)
    roll_loops(tree)
    offer_identities(tree)
    builder = Builder(tree, plan)
    entries = builder.build()
    network = define_network(_root_name(graph, builder.names), tree.parts[()], entries)
    definitions = [*builder.definitions, network]
    known = {
        d.name: {p.name: REQUIRED if p.default is MISSING else p.default for p in d.parameters}
        for d in definitions
    }
    printer = Printer(defaults=lambda name: known.get(name) or parameters(name))
    texts = [_definition(each, printer) for each in builder.definitions]
    texts.append(_definition(network, printer, [*_ties(tree), *_dtype_lines(tree)]))
    body = "\n\n\n".join(texts)
    helpers = [text.strip("\n") for name, text in _HELPERS.items() if f" {name}(" in body]
    text = "\n\n\n".join([*helpers, body]) + "\n"
    return _head(graph, network, weights, notes, text) + "\n\n\n" + text


#: Imports by what in the text needs them, in the order of the file.
_IMPORTS = (
    (r"\bmath\.", "import math"),
    (r"\bOrderedDict\(", "from collections import OrderedDict"),
    (r"\bSequence\[", "from collections.abc import Sequence"),
    (r"\btorch\.", "import torch"),
    (r"\bF\.", "import torch.nn.functional as F"),
)


def _head(graph: Graph, network: Definition, weights: str, notes: Sequence[str], text: str) -> str:
    depth = graph._structure.depth if graph._structure is not None else None
    what = f"{network.name}, depth {depth}" if depth is not None else network.name
    counts = [p.name for p in network.parameters if p.forced == "count"][:1]
    family = [
        f"Other values of ``{name}`` give the deeper and shallower networks of the family." for name in counts
    ]
    lines = [f'"""{what}: a definition {SIGNATURE}', "", "Load its weights, a state dict, with", ""]
    lines += [f"    model = {network.name}()", f"    model.load_state_dict(torch.load({number(weights)}))"]
    for note in [*family, *notes]:
        lines += ["", *textwrap.wrap(note, 98)]
    lines += ['"""', "", "from __future__ import annotations", ""]
    imports = [line for pattern, line in _IMPORTS if re.search(pattern, text)]
    standard = [line for line in imports if "torch" not in line]
    names = ", ".join(name for name in ("Tensor", "nn") if re.search(rf"\b{name}\b", text))
    lines += [*standard, ""] if standard else []
    return "\n".join([*lines, *imports[len(standard) :], f"from torch import {names}"])


def _root_name(graph: Graph, taken: set[str]) -> str:
    name = re.sub(r"\W+", "", graph.name, flags=re.ASCII)
    name = name if name.isidentifier() and not keyword.iskeyword(name) else "Network"
    name = name[:1].upper() + name[1:]
    while name in taken or name in ("Sequential", "Module"):
        name = f"{name}Network" if not name.endswith("Network") else f"{name}_"
    return name


def _check_names(tree: Tree) -> None:
    """EmitError for attributes that no class could have; names from a file end up in source text that is run."""
    reserved = set(dir(nn.Module())) | {"super"}
    for part in tree.parts.values():
        sequence = part.kind in ("sequential", "list", "dict")
        for name in (*part.children, *part.weights):
            if is_index(name) or (sequence and re.fullmatch(r"[A-Za-z0-9_\-]+", name)):
                continue
            if identifier(name, "the attribute") in reserved:
                raise EmitError(
                    f"the attribute {name!r} is one of torch.nn.Module's own, so it cannot be written"
                )
        if part.kind == "class" and part.base is None and any(map(is_index, part.children)):
            where = ".".join(part.path) or "the network"
            raise EmitError(
                f"{where} runs its numbered children in a way of its own, which cannot be written as source"
            )
    for node in tree.inputs:
        identifier(_input_name(node), "the input")


def _ties(tree: Tree) -> list[str]:
    """Statements that make one tensor of names that share one."""
    first: dict[int, tuple[str, ...]] = {}
    lines = []
    for path, weight in tree.weights.items():
        earliest = first.setdefault(id(weight.storage), path)
        if earliest != path:
            lines.append(f"{attribute(path)} = {attribute(earliest)}")
    return lines


def _dtype_lines(tree: Tree) -> list[str]:
    kinds = {w.dtype for w in tree.weights.values() if w.dtype.startswith(("float", "bfloat", "complex"))}
    if kinds <= {"float32"}:
        return []
    if len(kinds) > 1:
        raise EmitError(
            f"the weights have different floating dtypes ({', '.join(sorted(kinds))}); cast the network to one"
        )
    return [f"self.to(torch.{kinds.pop()})"]


# -- definitions -------------------------------------------------------------------------------------------------------


def _definition(made: Definition, printer: Printer, last: Sequence[str] = ()) -> str:
    """A class or a function as text; ``last`` are more lines of the constructor."""
    part = made.part
    if part is None:
        lines = signature(f"def {made.name}(", [], ") -> list[nn.Module]:", made.parameters)
        return "\n".join([*lines, *printer.lines("return ", listed(stage_items(made.entries[0].expr)), 4)])
    sequence = part.kind == "sequential"
    base = "nn.Sequential" if sequence else part.base.value if part.base is not None else "nn.Module"
    lines = [f"class {made.name}({base}):"]
    lines += signature("    def __init__(", ["self"], ") -> None:", made.parameters)
    if base == "nn.Module":
        lines.append("        super().__init__()")
    for entry in made.entries:
        expr = printable(entry.expr)
        if entry.alone and expr.kind == "new":  # of the class that this one derives from
            lines += wrap(f"        super().__init__{printer.flat(expr).removeprefix(expr.value)}")
        else:
            lines += printer.lines("" if entry.alone else f"self.{entry.name} = ", expr, 8)
    lines += [f"        {line}" for line in last]
    if not sequence and part.body is not None:
        lines += ["", *_forward(made, part, part.body)]
    return "\n".join(lines)


def _forward(made: Definition, part: Part, body: Body) -> list[str]:
    inputs = _inputs(part, body)
    shapes = dict(enumerate(map(_shape, body.values)))
    named = [(index, name) for index, (name, _) in enumerate(inputs)]
    forward = Forward(named, made.statements, made.returns, shapes.get)
    head = ["self", *(f"{name}: {kind}" for name, kind in inputs)]
    lines = signature("    def forward(", head, f") -> {_returned(made.returns, body.values)}:")
    return lines + forward.lines(8)


def _inputs(part: Part, body: Body) -> list[tuple[str, str]]:
    """The names of a forward's inputs, and their types."""
    found: dict[str, str] = {}
    for key in body.inputs:
        kind = "Tensor" if not isinstance(key, Value) or key.is_tensor or key.type is not None else "int"
        if not isinstance(key, Value):  # a weight of another module
            wanted = str(key[-1]) if str(key[-1]).isidentifier() else "weight"
            wanted = "index" if wanted.startswith("_tensor_constant") else wanted
        elif key.node.kind == "input" and (found or not part.path):
            wanted = _input_name(key.node)
        elif not found:
            wanted = "x"
        elif key.type is not None and key.type.dtype == "bool":
            wanted = "mask"
        else:
            wanted = "size" if kind == "int" else "y"
        found[unused([wanted], {*found, "F", "nn", "torch", "self"})] = kind
    return list(found.items())


def _input_name(node: Node) -> str:
    return node.op if node.op != "input" else node.name


def _shape(key: Any) -> tuple[int, ...] | None:
    """The shape of a value; empty where it is not known, None for what is not a tensor."""
    if isinstance(key, Value) and key.type is None:
        return () if key.is_tensor else None
    return key.type.shape if isinstance(key, Value) and key.type is not None else ()


def _returned(expr: Expr, values: Sequence[Any]) -> str:
    """The type that a forward returns."""
    if expr.kind in ("tuple", "list", "dict"):
        kinds = {_returned(part, values) for part in expr.parts}
        inner = kinds.pop() if len(kinds) == 1 else "object"
        return {"tuple": f"tuple[{inner}, ...]", "list": f"list[{inner}]", "dict": f"dict[str, {inner}]"}[
            expr.kind
        ]
    key = values[expr.value] if expr.kind == "local" else None
    if not isinstance(key, Value) or key.type is not None or key.is_tensor:
        return "Tensor"
    return "int" if key.node.kind == "function" and "getattr" in key.node.op else "tuple[Tensor, ...]"


def signature(head: str, names: Sequence[str], tail: str, parameters: Sequence[Parameter] = ()) -> list[str]:
    """The lines of a ``def``."""
    given = list(names)
    for p in parameters:
        default = f" = {number(p.default)}" if p.default not in (None, MISSING) else ""
        given.append(f"{p.name}: {p.annotation}{default}")
    return wrap(head + ", ".join(given) + tail)
