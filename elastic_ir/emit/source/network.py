"""The network's own class: the counts of its stages, rates and the number of classes are its arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from elastic_ir.emit.source.classes import Definition, Entry, without_empty
from elastic_ir.emit.source.expressions.expr import Expr, change, raw, walk
from elastic_ir.emit.source.merge import Join, Parameter, Parameters
from elastic_ir.emit.source.reading.tree import Part


def define_network(name: str, root: Part, entries: list[Entry]) -> Definition:
    """The definition of the network from the entries of its constructor."""
    found = Parameters(Join([[e.expr for e in entries]], [e.name or "base" for e in entries], set()))
    counts = [p for p in found.found if p.forced == "count"]
    series = [p for p in found.found if p.forced == "series"]
    for p in found.found:
        p.default = p.values[0]
    texts: dict[str, str] = {}
    given, first = list(counts), []
    total = "depth"
    if len(counts) > 1:
        total = "sum(depths)"
        texts = {p.name: f"depths[{place}]" for place, p in enumerate(counts)}
        given = [_argument("depths", tuple(p.default for p in counts), "count")]
    entries = [
        Entry(e.name, found.fill(t), e.alone) for e, t in zip(entries, found.joined.templates, strict=True)
    ]
    classes = _classes(entries, root)
    given += [classes] if classes is not None else []
    even = _even_rates([p.default for p in series], [p.default for p in counts])
    if even is not None:
        given.append(_argument("drop_rate", even))
        text = f"rates = [drop_rate * i / max({total} - 1, 1) for i in range({total})]"
        first = [Entry("", raw(text), alone=True)]
        for place, p in enumerate(series):
            cut = f"[sum(depths[:{place}]) : sum(depths[:{place + 1}])]" if len(counts) > 1 else ""
            texts[p.name] = f"rates{cut}"
    else:
        given += series

    def named(node: Expr) -> Expr | None:
        return raw(texts[node.value]) if node.kind == "param" and node.value in texts else None

    entries = [*first, *(Entry(e.name, change(e.expr, named), e.alone) for e in entries)]
    body = root.body
    assert body is not None
    entries, exprs = without_empty(entries, [expr for _, expr in body.statements])
    statements = [(results, expr) for (results, _), expr in zip(body.statements, exprs, strict=True)]
    return Definition(name, given, entries, root, statements, body.returns)


def _argument(name: str, value: Any, forced: str = "") -> Parameter:
    return Parameter("", "", [value], forced, name=name, default=value)


def _even_rates(series: list[Any], counts: list[int]) -> float | None:
    """The last of the blocks' rates where they rise evenly from 0 over all stages (Huang et al. 2016, section 3)."""
    values = [value for part in series for value in part]
    if (
        len(values) < 3
        or [len(part) for part in series] != counts
        or not all(isinstance(v, float) for v in values)
    ):
        return None
    last = float(values[-1])
    even = all(
        abs(value - last * place / (len(values) - 1)) <= 1e-6 * last for place, value in enumerate(values)
    )
    return last if even and last > 0 else None


def _classes(entries: list[Entry], root: Part) -> Parameter | None:
    """The outputs of the network's last layer as an argument, where that is a linear one."""
    if not entries or root.body is None:
        return None
    last = entries[-1]
    called = [node.value[0] for _, expr in root.body.statements for node in walk(expr) if node.kind == "self"]
    nodes = list(walk(last.expr))
    weighted = [
        node for node in nodes
        if node.kind == "new" and node.value in ("nn.Linear", "nn.Conv2d", "nn.LayerNorm", "nn.BatchNorm2d")
    ]  # fmt: skip
    ends = root.kind == "sequential" or (called[-1:] == [last.name] and called.count(last.name) == 1)
    if (
        not ends
        or not weighted
        or weighted[-1].value != "nn.Linear"
        or any(node.kind == "stage" for node in nodes)
    ):
        return None
    layer = weighted[-1]
    if last.expr is not layer and not (
        last.expr.kind == "container" and any(p is layer for p in last.expr.parts)
    ):
        return None
    at = layer.names.index("out_features")
    size = layer.parts[at].value
    fresh = replace(layer, parts=(*layer.parts[:at], raw("num_classes"), *layer.parts[at + 1 :]))
    last.expr = change(last.expr, lambda node: fresh if node is layer else None)
    return _argument("num_classes", size)
