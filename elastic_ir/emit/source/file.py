"""Writing a network as Python source: one readable file that needs nothing but torch, run before it is written."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from elastic_ir.emit.comparison import compare_outputs
from elastic_ir.emit.example_runs import message, run_module, with_another
from elastic_ir.emit.module import build_module
from elastic_ir.emit.source.calls import Unwritable
from elastic_ir.emit.source.classes import Builder, Definition, class_name, define_network, offer_identities
from elastic_ir.emit.source.expr import Expr, raw
from elastic_ir.emit.source.forward import Forward, input_name
from elastic_ir.emit.source.layers import RELATIVE_POSITIONS
from elastic_ir.emit.source.merge import MISSING, unused
from elastic_ir.emit.source.signatures import REQUIRED, parameters
from elastic_ir.emit.source.sizes import following_sizes
from elastic_ir.emit.source.stages import stages_of
from elastic_ir.emit.source.text import Printer, attribute, identifier, tidy, wrap
from elastic_ir.emit.source.tree import Tree, read_tree
from elastic_ir.errors import EmitError
from elastic_ir.formats import PYTORCH
from elastic_ir.formats.files import atomic_output
from elastic_ir.ir.example_inputs import Inputs, read_tensor
from elastic_ir.ir.graph import Graph, Node
from elastic_ir.ir.numbering import is_index
from elastic_ir.ir.recurrent import fold
from elastic_ir.onnx_model import OnnxSource
from elastic_ir.tensors.weights import ties_of


def save_source(graph: Graph, path: str | os.PathLike[str], *, check: bool = True, weights: str = "") -> Path:
    """Write a network as a ``.py`` file: classes of ``torch.nn`` whose ``state_dict`` has the graph's names.

    The stages' counts are arguments, so that the file defines the whole family. ``weights`` is the name that its
    docstring loads the state dict from; without it the file's own with ``.pt``. ``check`` runs the source in a fresh
    namespace, loads the state dict strictly and compares the outputs with those of ``graph.to_module()``. Raises
    EmitError, and writes nothing, for what source cannot express: operations that are not functions of torch, transient
    buffers whose numbers show no rule, names that are not identifiers, ONNX graphs, bare state dicts.
    """
    path = Path(path)
    file = weights or path.with_suffix(PYTORCH.suffixes[0]).name
    if not re.fullmatch(r"[\w.+() -]+", file):
        file = "model.pt"  # whatever the name holds, it may not end the docstring
    text = source_of(graph, file, check=check)
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def source_of(graph: Graph, weights: str = "model.pt", *, check: bool = True) -> str:
    """The text that :func:`save_source` writes."""
    if isinstance(graph.origin, OnnxSource) or graph.info.frontend == "onnx":
        raise EmitError(
            "Python source is written for networks from PyTorch; this graph is ONNX's, whose operators have no modules"
        )
    if not len(graph):
        raise EmitError(
            f"{graph.name} was read without its network, so there is no forward to write; pass --arch SOURCE (arch=...)"
        )
    notes = []
    if any(weight.mask is not None for weight in graph.weights.values()):
        notes.append(
            "The network is a ticket: the source is of the dense architecture, and the pruned weights are the zeros of "
            "the state dict, which training would fill unless the masks are enforced."
        )
    try:
        text = write_source(graph, weights, notes)
    except Unwritable as error:
        text = write_source(_exported(graph, error), weights, notes)
    if check:
        check_source(text, network_of(text), graph)
    return text


def network_of(text: str) -> str:
    """The name of the network's class, which a source file defines last."""
    *_, last = re.finditer(r"^class (\w+)\(", text, re.MULTILINE)
    return last[1]


def _exported(graph: Graph, error: Unwritable) -> Graph:
    """The network read anew by torch.export, for what calls functions that torch does not have."""
    live = graph.origin.module
    if live is None or graph.info.frontend == "export":
        raise error
    module = build_module(graph)
    again = graph.origin.retrace(module, "export")
    again.origin = dataclasses.replace(graph.origin, module=module)
    again.name = graph.name
    return again


# -- the text ----------------------------------------------------------------------------------------------------------

#: What the first line of every file says, by which a file is known for one of ours.
SIGNATURE = "in plain PyTorch, written by ElasticIR."

_EXPORTED = (
    "It was read by torch.export in evaluation mode: what only training does, such as stochastic depth, is not part of "
    "it."
)
_RESERVED = frozenset(dir(nn.Module()))  #: names that no attribute of a module may have
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
    family = [_FAMILY.format(name=p.name) for p in network.parameters if p.kind == "count"][:1]
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
    for part in tree.parts.values():
        for name in (*part.children, *part.weights):
            if part.kind in ("sequential", "list", "dict") and re.fullmatch(r"[A-Za-z0-9_\-]+", name):
                continue
            if is_index(name) and part.kind == "class":
                where = ".".join(part.path) or "the network"
                raise EmitError(
                    f"{where} runs its numbered children in a way of its own, which cannot be written as source"
                )
            if not is_index(name) and identifier(name, "the attribute") in _RESERVED:
                raise EmitError(
                    f"the attribute {name!r} is one of torch.nn.Module's own, so it cannot be written"
                )
    for node in tree.inputs:
        input_name(node)


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


# -- the check ---------------------------------------------------------------------------------------------------------


def run_source(text: str, name: str) -> nn.Module:
    """The network that a source file defines, with its default arguments. Raises EmitError."""
    namespace = types.ModuleType("emitted")
    try:
        exec(compile(text, "<emitted source>", "exec"), namespace.__dict__)
        made = namespace.__dict__[name]()
    except Exception as error:
        raise EmitError(
            f"the written source does not run: {type(error).__name__}: {message(error)}"
        ) from error
    assert isinstance(made, nn.Module)
    return made


def check_source(text: str, name: str, graph: Graph) -> None:
    """EmitError unless the source runs, loads the state dict strictly, and computes what the graph's module does."""
    made = run_source(text, name)
    wanted = {n: w.shape for n, w in graph.weights.items() if w.persistent}
    found = {n: tuple(t.shape) for n, t in made.state_dict().items()}
    if found != wanted:
        odd = [n for n in (*wanted, *found) if found.get(n) != wanted.get(n)]
        raise EmitError(
            f"the written source does not have the state dict's names and shapes: {', '.join(odd[:3])}"
        )
    reference = build_module(graph).eval()
    shapes_only = any(tensor.is_meta for tensor in reference.state_dict().values())
    if shapes_only:
        made = made.to("meta")
    else:
        made.load_state_dict(graph.state_dict(), strict=True)
    nodes = [node for node in graph if node.kind == "input"]
    inputs = graph.origin.inputs or Inputs(tuple(map(_made_up, nodes)))
    inputs = inputs.to("meta" if shapes_only else "cpu")
    first = (inputs.args, dict(inputs.kwargs))
    calls = [first] if shapes_only else with_another(reference, first)
    names = list(map(input_name, nodes))
    given = [dict(zip(names, args, strict=False)) | {key: kwargs[key] for key in names if key in kwargs}
             for args, kwargs in calls]  # fmt: skip
    theirs = run_module(reference, calls, "the graph's module")
    ours = run_module(made.eval(), [((), options) for options in given], "the written source")
    if ours.dtypes != theirs.dtypes:
        dtypes = " not ".join(", ".join(each.dtypes) for each in (ours, theirs))
        raise EmitError(f"the written source gives {dtypes}")
    try:
        compare_outputs(ours, theirs, "the written source", "the graph's module's")
    except EmitError as error:
        raise EmitError(
            f"the written source computes other outputs than the graph's module: {error}"
        ) from error


def _made_up(node: Node) -> torch.Tensor:
    """Noise, or ones, of the type that is recorded for an input."""
    kind = node.output.type
    if kind is None:
        raise EmitError(
            f"the type of the input {node.op!r} is not known, so the source cannot be checked; "
            "--no-check writes it unchecked"
        )
    return read_tensor((kind.shape, kind.dtype))[0]
