"""The text of a source file: imports, helpers, the classes of the blocks, and the network last."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from typing import Any

from elastic_ir.emit.source.classes import Builder, Definition, Entry, without_empty
from elastic_ir.emit.source.containers import listed, printable, stage_items
from elastic_ir.emit.source.expressions.expr import Expr, change, lit, raw, walk
from elastic_ir.emit.source.expressions.print import Printer, attribute, number, wrap
from elastic_ir.emit.source.forward import Forward
from elastic_ir.emit.source.merge import MISSING, Hole, Parameter
from elastic_ir.emit.source.reading.calls import identifier
from elastic_ir.emit.source.reading.layers import defaults
from elastic_ir.emit.source.reading.read import read_tree
from elastic_ir.emit.source.reading.sizes import following_sizes
from elastic_ir.emit.source.reading.tree import Part, Tree
from elastic_ir.emit.source.stages import offer_identities, roll_loops, stages_of
from elastic_ir.errors import EmitError
from elastic_ir.ir.graph import Graph, Value
from elastic_ir.ir.numbering import is_index

#: What the first line of every file says, by which a file is known for one of ours.
SIGNATURE = "in plain PyTorch, written by ElasticIR."

_STOCHASTIC_DEPTH = '''
def stochastic_depth(x: Tensor, p: float, mode: str, training: bool) -> Tensor:
    """Drop the residual branch of whole samples ("row") or of the batch (Huang et al. 2016)."""
    if not training or p == 0.0:
        return x
    size = [x.shape[0] if mode == "row" else 1] + [1] * (x.ndim - 1)
    noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * noise / (1.0 - p) if p < 1.0 else x * noise
'''


_RELATIVE_POSITIONS = '''
def relative_positions(side: int) -> Tensor:
    """For each pair of places in a square window the row of its table (Swin, Liu et al. 2021)."""
    rows = torch.arange(side).repeat_interleave(side)
    columns = torch.arange(side).repeat(side)
    down, right = (steps[:, None] - steps[None, :] + side - 1 for steps in (rows, columns))
    return down * (2 * side - 1) + right
'''


def write_source(graph: Graph, weights: str, notes: Sequence[str] = ()) -> str:
    """The text of a module that defines the graph's network; ``weights`` is the file its docstring loads.

    Raises EmitError for what cannot be written: see :func:`elastic_ir.emit.source.file.save_source`.
    """
    sizes, fixed = following_sizes(graph)
    notes = [*notes, fixed] if fixed else notes
    tree = read_tree(graph, sizes)
    _check_names(tree)
    plan = stages_of(tree)
    roll_loops(tree)
    offer_identities(tree)
    builder = Builder(tree, plan)
    entries = builder.build()
    root = tree.parts[()]
    name = _root_name(graph, builder.names)
    definition = _network(name, root, entries, tree)
    texts: dict[str, dict[str, Any]] = {
        d.name: {p.name: p.default for p in d.parameters if p.default is not MISSING}
        for d in builder.definitions
    }
    writer = _Writer(tree, texts)
    blocks = [writer.definition(each) for each in builder.definitions]
    blocks.append(writer.definition(definition, _ties(tree), _dtype_lines(tree)))
    body = "\n\n\n".join(blocks)
    helpers = [("stochastic_depth", _STOCHASTIC_DEPTH), ("relative_positions", _RELATIVE_POSITIONS)]
    parts = [*(text.strip("\n") for name, text in helpers if f" {name}(" in body), body]
    text = "\n\n\n".join(parts) + "\n"
    return _head(graph, definition, weights, notes, text) + "\n\n\n" + text


def _head(graph: Graph, network: Definition, weights: str, notes: Sequence[str], text: str) -> str:
    depth = graph._structure.depth if graph._structure is not None else None
    what = f"{network.name}, depth {depth}" if depth is not None else network.name
    lines = [f'"""{what}: a definition {SIGNATURE}', ""]
    lines += ["Load its weights, a state dict, with", ""]
    lines += [f"    model = {network.name}()", f"    model.load_state_dict(torch.load({number(weights)}))"]
    counts = [p.name for p in network.parameters if p.hole.forced == "count"]
    if counts:
        lines += [
            "",
            f"Other values of ``{counts[0]}`` give the deeper and shallower networks of the family.",
        ]
    for note in notes:
        lines += ["", *_wrapped(note)]
    lines += ['"""', "", "from __future__ import annotations", ""]
    standard = []
    if "OrderedDict(" in text:
        standard.append("from collections import OrderedDict")
    if "Sequence[" in text:
        standard.append("from collections.abc import Sequence")
    if re.search(r"\bmath\.", text):
        standard.insert(0, "import math")
    if standard:
        lines += [*standard, ""]
    lines += ["import torch"]
    if re.search(r"\bF\.", text):
        lines.append("import torch.nn.functional as F")
    names = [name for name in ("Tensor", "nn") if re.search(rf"\b{name}\b", text)]
    lines.append(f"from torch import {', '.join(names)}")
    if not re.search(r"\btorch\.", text):
        lines.remove("import torch")
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 98)


def _root_name(graph: Graph, taken: set[str]) -> str:
    name = re.sub(r"\W+", "", graph.name, flags=re.ASCII)
    name = name if name.isidentifier() and not keyword.iskeyword(name) else "Network"
    name = name[:1].upper() + name[1:] if not name[:1].isupper() else name
    while name in taken or name in ("Sequential", "Module"):
        name = f"{name}Network" if not name.endswith("Network") else f"{name}_"
    return name


def _check_names(tree: Tree) -> None:
    """EmitError for attributes that no class could have; names from a file end up in source text that is run."""
    from torch import nn

    reserved = set(dir(nn.Module())) | {"super"}
    for part in tree.parts.values():
        sequence = part.kind in ("sequential", "list", "dict")
        for name in (*part.children, *part.weights):
            if is_index(name) or (sequence and re.fullmatch(r"[A-Za-z0-9_\-]+", name)):
                continue
            identifier(name, "the attribute")
            if name in reserved:
                raise EmitError(
                    f"the attribute {name!r} is one of torch.nn.Module's own, so it cannot be written"
                )
        if part.kind == "class" and any(is_index(name) for name in part.children) and part.base is None:
            where = ".".join(part.path) or "the network"
            raise EmitError(
                f"{where} runs its numbered children in a way of its own, which cannot be written as source"
            )
    for node in tree.inputs:
        identifier(node.op if node.op != "input" else node.name, "the input")


# -- the network itself ------------------------------------------------------------------------------------------------


def _network(name: str, root: Part, entries: list[Entry], tree: Tree) -> Definition:
    """The definition of the network: counts, series and the number of classes become its arguments."""
    counts = [node for entry in entries for node in walk(entry.expr) if node.kind == "count"]
    found: list[Parameter] = []
    place = iter(range(len(counts)))
    listed_rates = [node for entry in entries for node in walk(entry.expr) if node.kind == "series"]
    even = _even_rates(listed_rates, counts)
    slices = iter(range(len(listed_rates)))

    def named(node: Expr) -> Expr | None:
        if node.kind == "count":
            return raw(f"depths[{next(place)}]") if len(counts) > 1 else raw("depth")
        if node.kind == "series" and even is not None:
            return raw(
                f"rates[sum(depths[:{(at := next(slices))}]) : sum(depths[:{at + 1}])]"
                if len(counts) > 1
                else "rates"
            )
        if node.kind == "series":
            known = next((p for p in found if p.values == [node.value] and p.hole.forced == "series"), None)
            if known is None:
                label = f"rates{sum(p.hole.forced == 'series' for p in found) + 1}"
                known = Parameter(label, [node.value], Hole("", "", [], "series"), default=node.value)
                found.append(known)
            return raw(known.name)
        return None

    if counts:
        value = tuple(node.value for node in counts) if len(counts) > 1 else counts[0].value
        label = "depths" if len(counts) > 1 else "depth"
        found.append(Parameter(label, [value], Hole("", "", [], "count"), default=value))
    entries = [Entry(entry.name, entry.kind, change(entry.expr, named)) for entry in entries]
    if even is not None:
        found.append(Parameter("drop_rate", [even], Hole("", "", []), default=even))
        total = "sum(depths)" if len(counts) > 1 else "depth"
        text = f"rates = [drop_rate * i / max({total} - 1, 1) for i in range({total})]"
        entries.insert(0, Entry("", "code", raw(text)))
    classes = _classes(entries, root)
    if classes is not None:
        entry, head = classes
        size = head.parts[head.names.index("out_features")].value
        found.insert(bool(counts), Parameter("num_classes", [size], Hole("", "", []), default=size))
        index = head.names.index("out_features")
        fresh = Expr(
            head.kind,
            head.value,
            (*head.parts[:index], raw("num_classes"), *head.parts[index + 1 :]),
            head.names,
        )
        entry.expr = fresh if entry.expr == head else _replace_last(entry.expr, head, fresh)
    body = root.body
    assert body is not None
    kind = "sequence" if root.kind == "sequential" else "class"
    entries, exprs = without_empty(entries, [expr for _, expr in body.statements])
    statements = [(results, expr) for (results, _), expr in zip(body.statements, exprs, strict=True)]
    return Definition(name, kind, found, entries, root, statements, body.returns)


def _even_rates(series: list[Expr], counts: list[Expr]) -> float | None:
    """The last of the blocks' rates where they rise evenly from 0 over all stages (Huang et al. 2016, section 3)."""
    values = [float(value) for node in series for value in node.value if isinstance(value, float)]
    lengths = [len(node.value) for node in series]
    if (
        len(values) < 3
        or lengths != [node.value for node in counts]
        or len(values) != sum(lengths)
        or values[0] != 0
    ):
        return None
    step = values[-1] / (len(values) - 1)
    even = all(abs(value - index * step) <= 1e-6 * values[-1] for index, value in enumerate(values))
    return values[-1] if even and step > 0 else None


def _classes(entries: list[Entry], root: Part) -> tuple[Entry, Expr] | None:
    """The network's last layer, where it is linear: its outputs are the classes."""
    if not entries:
        return None
    last = entries[-1]
    lines = root.body.statements if root.body is not None else ()
    called = [node.value[:1] for _, expr in lines for node in walk(expr) if node.kind == "self"]
    if root.kind != "sequential" and (
        not called or called[-1] != (last.name,) or called.count((last.name,)) > 1
    ):
        return None
    layers = [node for node in walk(last.expr) if node.kind == "new" and node.value.startswith("nn.")]
    weighted = [
        node for node in layers if node.value in ("nn.Linear", "nn.Conv2d", "nn.LayerNorm", "nn.BatchNorm2d")
    ]
    if not weighted or weighted[-1].value != "nn.Linear" or any(n.kind == "stage" for n in walk(last.expr)):
        return None
    plain = last.expr == weighted[-1] or (last.expr.kind == "container" and weighted[-1] in last.expr.parts)
    if not plain or weighted[-1].parts[weighted[-1].names.index("out_features")].kind != "lit":
        return None
    return last, weighted[-1]


def _replace_last(expr: Expr, old: Expr, new: Expr) -> Expr:
    index = len(expr.parts) - 1 - list(reversed(expr.parts)).index(old)
    return Expr(expr.kind, expr.value, (*expr.parts[:index], new, *expr.parts[index + 1 :]), expr.names)


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


class _Writer:
    def __init__(self, tree: Tree, known: dict[str, dict[str, Any]]) -> None:
        self.tree, self.known = tree, known
        self.printer = Printer(defaults=lambda name: known.get(name, defaults(name)))

    def definition(self, made: Definition, ties: Sequence[str] = (), last: Sequence[str] = ()) -> str:
        """A class or a function as text."""
        if made.kind == "function":
            return self._function(made)
        base = (
            "nn.Sequential"
            if made.kind == "sequence"
            else made.base.value
            if made.base is not None
            else "nn.Module"
        )
        lines = [f"class {made.name}({base}):"]
        lines += signature("    def __init__(", ["self"], ") -> None:", made.parameters)
        if not made.entries or made.entries[0].kind not in ("base", "sequence"):
            lines.append("        super().__init__()")
        for entry in made.entries:
            lines += self._entry(entry)
        lines += [f"        {line}" for line in (*ties, *last)]
        if made.kind != "sequence" and made.part is not None and made.part.body is not None:
            lines += ["", *self._forward(made)]
        return "\n".join(lines)

    def _function(self, made: Definition) -> str:
        lines = signature(f"def {made.name}(", [], ") -> list[nn.Module]:", made.parameters)
        items = stage_items(made.entries[0].expr)
        lines += self.printer.lines("return ", listed(items), 4)
        return "\n".join(lines)

    def _entry(self, entry: Entry) -> list[str]:
        expr = printable(entry.expr)
        if entry.kind == "code":
            return [f"        {entry.expr.value}"]
        if entry.kind == "base":
            return wrap(f"        super().__init__{self.printer.flat(expr).removeprefix(expr.value)}")
        if entry.kind == "sequence":
            return self.printer.lines("", expr, 8)
        if entry.kind in ("buffer", "transient"):
            extra = () if entry.kind == "buffer" else (lit(False),)
            names = ("", "") if entry.kind == "buffer" else ("", "", "persistent")
            call = Expr("call", "self.register_buffer", (lit(entry.name), expr, *extra), names)
            return self.printer.lines("", call, 8)
        return self.printer.lines(f"self.{entry.name} = ", expr, 8)

    def _forward(self, made: Definition) -> list[str]:
        part = made.part
        assert part is not None and part.body is not None
        body = part.body
        inputs = self._inputs(part)
        types = {index: _type(key) for index, key in enumerate(body.values)}
        forward = Forward(
            [(i, n) for i, (n, _) in enumerate(inputs)], made.statements, made.returns, types.get
        )
        head = ["self", *(f"{name}: {kind}" for name, kind in inputs)]
        lines = signature("    def forward(", head, f") -> {_returned(made.returns, body.values)}:")
        return lines + forward.lines(8)

    def _inputs(self, part: Part) -> list[tuple[str, str]]:
        body = part.body
        assert body is not None
        found: list[tuple[str, str]] = []
        taken: set[str] = set()
        for key in body.inputs:
            if isinstance(key, Value):
                kind = "Tensor" if key.is_tensor or key.type is not None else "int"
                wanted = "x" if part.path and not found else "size" if kind == "int" else "y"
                if not part.path:
                    wanted = key.node.op if key.node.op != "input" else key.node.name
                elif found:
                    wanted = _wanted(key, wanted)
            else:
                kind, wanted = "Tensor", str(key[-1]) if str(key[-1]).isidentifier() else "weight"
                wanted = "index" if wanted.startswith("_tensor_constant") else wanted
            name, count = wanted, 2
            while name in taken or name in ("F", "nn", "torch", "self"):
                name, count = f"{wanted}{count}", count + 1
            taken.add(name)
            found.append((name, kind))
        return found


def _wanted(value: Value, default: str) -> str:
    """What an argument besides the first is called: a mask or a bias by its type, an input by its name."""
    if value.node.kind == "input":
        name = value.node.op if value.node.op != "input" else value.node.name
        return name
    if value.type is not None and value.type.dtype == "bool":
        return "mask"
    return default


def _type(key: Any) -> tuple[int, ...] | None:
    """The shape of a value; empty where it is not known, None for what is no tensor."""
    if isinstance(key, Value):
        return key.type.shape if key.type is not None else (() if key.is_tensor else None)
    return ()


def _returned(expr: Expr, values: Sequence[Any]) -> str:
    if expr.kind == "local":
        key = values[expr.value]
        if isinstance(key, Value) and key.type is None and not key.is_tensor:
            return (
                "tuple[Tensor, ...]" if key.node.kind != "function" or "getattr" not in key.node.op else "int"
            )
        return "Tensor"
    if expr.kind in ("tuple", "list"):
        kinds = {_returned(part, values) for part in expr.parts}
        inner = kinds.pop() if len(kinds) == 1 else "object"
        return f"tuple[{inner}, ...]" if expr.kind == "tuple" else f"list[{inner}]"
    if expr.kind == "dict":
        kinds = {_returned(part, values) for part in expr.parts}
        return f"dict[str, {kinds.pop() if len(kinds) == 1 else 'object'}]"
    return "Tensor"


def signature(head: str, names: Sequence[str], tail: str, parameters: Sequence[Parameter] = ()) -> list[str]:
    """The lines of a ``def``."""
    heads = [(name, None) for name in names] + [(f"{p.name}: {p.annotation}", p.default) for p in parameters]
    given = [text + (f" = {number(value)}" if value not in (None, MISSING) else "") for text, value in heads]
    return wrap(head + ", ".join(given) + tail)
