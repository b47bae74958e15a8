"""The text of a source file: imports, helpers, the classes of the blocks, and the network last."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from torch import nn

from elastic_ir.emit.source.alike import offer_identities, roll_loops
from elastic_ir.emit.source.classes import Builder, Definition, class_name, define_network
from elastic_ir.emit.source.expr import Expr, raw
from elastic_ir.emit.source.forward import Forward, input_name
from elastic_ir.emit.source.merge import MISSING, unused
from elastic_ir.emit.source.reading.calls import identifier
from elastic_ir.emit.source.reading.sizes import following_sizes
from elastic_ir.emit.source.reading.tree import Tree, read_tree
from elastic_ir.emit.source.reading.values import RELATIVE_POSITIONS
from elastic_ir.emit.source.signatures import REQUIRED, parameters
from elastic_ir.emit.source.stages import stages_of
from elastic_ir.emit.source.text import Printer, attribute, tidy, wrap
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph
from elastic_ir.ir.numbering import is_index
from elastic_ir.ir.recurrent import fold
from elastic_ir.tensors.weights import ties_of

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
    graph = fold(graph)
    sizes, fixed = following_sizes(graph)
    notes = [*notes, *([_EXPORTED] if graph.info.frontend == "export" else ()), *([fixed] if fixed else ())]
    tree = read_tree(graph, sizes)
    _check_names(tree)
    plan = stages_of(tree)
    roll_loops(tree)
    offer_identities(tree)
    builder = Builder(tree, plan)
    row = builder.build()
    name = class_name(re.sub(r"\W+", "", graph.name), "Network")
    name = unused([name, f"{name}Network"], builder.names | {"Sequential", "Module"})
    network = define_network(name, tree.parts[()], row)
    network.lines += [*_ties(tree), *_dtype_lines(tree)]
    definitions = [*builder.definitions, network]
    known = {
        each.name: {p.name: REQUIRED if p.default is MISSING else p.default for p in each.parameters}
        for each in definitions
    }
    printer = Printer(defaults=lambda name: known.get(name) or parameters(name))
    body = "\n\n\n".join("\n".join(_definition(each, printer)) for each in definitions)
    helpers = [text.strip("\n") for name, text in _HELPERS.items() if f" {name}(" in body]
    text = "\n\n\n".join([*helpers, body]) + "\n"
    return _head(graph, network, weights, notes, text) + "\n\n\n" + text


_HEAD = '''"""{name}{depth}: a definition {signature}

Load its weights, a state dict, with

    model = {name}()
    model.load_state_dict(torch.load({weights}))
{notes}"""

from __future__ import annotations

{imports}'''
_FAMILY = "Other values of ``{name}`` give the deeper and shallower networks of the family."
#: Imports by what in the text needs them, in the order of the file.
_IMPORTS = {
    r"\bmath\.": "import math",
    r"\bOrderedDict\(": "from collections import OrderedDict",
    r"\bSequence\[": "from collections.abc import Sequence",
    r"\btorch\.": "import torch",
    r"\bF\.": "import torch.nn.functional as F",
}


def _head(graph: Graph, network: Definition, weights: str, notes: Sequence[str], text: str) -> str:
    depth = graph._structure.depth if graph._structure is not None else None
    family = [_FAMILY.format(name=p.name) for p in network.parameters if p.forced == "count"][:1]
    imports = [line for pattern, line in _IMPORTS.items() if re.search(pattern, text)]
    standard = [line for line in imports if "torch" not in line]
    names = ", ".join(name for name in ("Tensor", "nn") if re.search(rf"\b{name}\b", text))
    imports = [*standard, *[""] * bool(standard), *imports[len(standard) :], f"from torch import {names}"]
    return _HEAD.format(
        name=network.name, depth=f", depth {depth}" if depth is not None else "", signature=SIGNATURE,
        weights=tidy(repr(weights)), imports="\n".join(imports),
        notes="".join(f"\n{textwrap.fill(note, 98)}\n" for note in [*family, *notes]),
    )  # fmt: skip


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
        identifier(input_name(node), "the input")


def _ties(tree: Tree) -> list[Expr]:
    """Lines that make one tensor of names that share one."""
    ties = ties_of(tree.graph.weights).items()
    paths = [(attribute(name.split(".")), tuple(first.split("."))) for name, first in ties]
    return [Expr("field", path.removeprefix("self."), (Expr("attr", first),)) for path, first in paths]


def _dtype_lines(tree: Tree) -> list[Expr]:
    kinds = {w.dtype for w in tree.weights.values() if w.dtype.startswith(("float", "bfloat", "complex"))}
    if kinds <= {"float32"}:
        return []
    if len(kinds) > 1:
        raise EmitError(
            f"the weights have different floating dtypes ({', '.join(sorted(kinds))}); cast the network to one"
        )
    return [Expr("field", "", (raw(f"self.to(torch.{kinds.pop()})"),))]


# -- definitions -------------------------------------------------------------------------------------------------------


def _definition(made: Definition, printer: Printer) -> list[str]:
    """The lines of a class or a function."""
    part, lines = made.part, [_line(line, printer) for line in made.lines]
    defaults = [f" = {tidy(repr(p.default))}" if p.default is not MISSING else "" for p in made.parameters]
    given = [
        f"{p.name}: {p.annotation}{default}" for p, default in zip(made.parameters, defaults, strict=True)
    ]
    if part is None:
        return _block(f"def {made.name}({', '.join(given)}) -> list[nn.Module]:", lines, 0)
    base = "nn.Sequential" if part.kind == "sequential" else part.base.value if part.base else "nn.Module"
    if base == "nn.Module":
        lines.insert(0, "super().__init__()")
    head = f"def __init__({', '.join(['self', *given])}) -> None:"
    found = [f"class {made.name}({base}):", *_block(head, lines, 4)]
    if made.forward:
        forward = Forward(part, made.forward)
        found += ["", *_block(forward.head, forward.lines(), 4)]
    return found


def _line(line: Expr, printer: Printer) -> str:
    """A line of a constructor, or what a function returns."""
    text = printer.text(line.parts[0])
    if line.kind == "return":
        return f"return {text}"
    if line.value:
        return f"self.{line.value} = {text}" if line.kind == "field" else f"{line.value[0]} = {text}"
    base = line.parts[0].kind == "new"  # of the class that this one derives from
    return "super().__init__" + text.removeprefix(line.parts[0].value) if base else text


def _block(head: str, lines: Sequence[str], indent: int) -> list[str]:
    """A function's lines, indented and split."""
    pad = " " * indent
    return [*wrap(pad + head), *(each for line in lines for each in wrap(f"{pad}    {line}"))]
