"""Changes to what JSON and YAML say: entries of odd types, missing, renamed, vast, deep."""

from __future__ import annotations

import json
import random
from typing import Any

#: Names that no terminal, no file system and no regular expression should stumble over.
ODD_NAMES = (
    "", ".", "..", "a..b", "\x1b[31mred\x1b[0m", "\u202egnp.thgiew", "\x9b2J", "a\nb", "a\rb", "\x00", "[red]x[/red]",
    "<script>", "layers.00.0.weight", "layers.\u0661.0.weight", "layers.\u00b2.0.weight", f"layers.{10**9}.0.weight",
    "layers.-1.0.weight", f"layers.{'9' * 5000}.weight", ".".join("a" * 1200), "n" * 5000, "../../etc/passwd", "%s{x}",
    "layers.0.0.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.up_proj.weight", "\ud800",
    "__metadata__",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 7, 2**31, 2**40, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "0", "1", "x", "none",
    [], {}, [[]], [0], [-1], [2**40], [1] * 100, ["x"], {"": None}, {"a": {"b": [1, {}]}}, *ODD_NAMES,
)  # fmt: skip


def paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a tree, as the keys that lead there."""
    found = [path]
    if isinstance(tree, dict):
        found += [place for key, part in tree.items() for place in paths(part, (*path, key))]
    elif isinstance(tree, list):
        found += [place for key, part in enumerate(tree) for place in paths(part, (*path, key))]
    return found


def changed(tree: Any, chance: random.Random) -> Any:
    """The tree with one thing odd; the tree itself is changed, too."""
    path = chance.choice(paths(tree))
    if not path:
        return chance.choice(ODD_VALUES) if chance.random() < 0.1 else tree
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    key = path[-1]
    which = chance.randrange(8)
    if which == 0:
        del holder[key]
    elif which == 1 and isinstance(holder, dict):
        holder[chance.choice(ODD_NAMES)] = holder.pop(key)
    elif which == 2:
        holder[key] = deep(chance.choice((3, 60, 900)), chance.random() < 0.5)
    elif which == 3 and len(holder) > 1:
        other = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    elif which == 4 and type(holder[key]) is int:
        holder[key] += chance.choice((-1, 1, 4, -(2**31), 2**31))
    elif which == 5 and isinstance(holder[key], list):
        holder[key] = holder[key] * chance.choice((0, 2, 3))
    else:
        holder[key] = chance.choice(ODD_VALUES)
    return tree


def deep(levels: int, tables: bool) -> Any:
    """Lists in lists, or tables in tables."""
    made: Any = 0
    for _ in range(levels):
        made = {"a": made} if tables else [made]
    return made


def json_text(text: bytes, chance: random.Random) -> bytes:
    """A JSON text that says something else, or is deeper than a parser goes."""
    which = chance.randrange(20)
    if which == 0:
        levels = chance.choice((2000, 100_000))
        return b"[" * levels + b"]" * levels
    if which == 1:
        at = text.find(b'"')
        return text[:at] + b'"deep":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"," + text[at:]
    if which == 2:  # a key twice
        at = text.find(b'"')
        return text[: at if at >= 0 else 0] + b'"version":1,"version":2,' + text[max(at, 0) :]
    if which == 3:  # a number that int refuses
        return text.replace(b"1", b"1" + b"0" * 5000, 1)
    tree = json.loads(text)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        tree = changed(tree, chance)
    return json.dumps(tree, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
