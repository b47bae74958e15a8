"""What a reader wants to know of a checkpoint folder beside its layers: class, sizes, types, bytes. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elastic_ir.checkpoints.config.depth import counting
from elastic_ir.checkpoints.stacks import Stack
from elastic_ir.tensors.lazy import TensorData, nbytes

#: Entries, by their names in the libraries' configurations, that state the width of the stream, and the heads.
_WIDTH = re.compile(
    r"hidden_size|hidden_dim|d_model|n_embd|embed_dim|dim|width|inner_dim|cross_attention_dim"
)
_HEADS = re.compile(r"num_attention_heads|n_heads?|num_heads|heads|(encoder|decoder)_attention_heads")
_SHARED = re.compile(r"num_key_value_heads|num_kv_heads|n_head_kv|multi_query_heads")
_LEVELS = 3  #: tables within tables that are looked into


def facts_of(
    config: Mapping[str, Any], stacks: Sequence[Stack], tensors: Mapping[str, TensorData], files: int
) -> list[tuple[str, str]]:
    """What each fact is called, and what it is; what a folder does not state is left out."""
    counts = [
        f"{stack.before} ({entry})" if len(stacks) == 1 else f"{stack.label} {stack.before} ({entry})"
        for stack, entry in counting(dict(config), stacks, tensors)
    ]
    width, heads, shared = (_stated(config, names) for names in (_WIDTH, _HEADS, _SHARED))
    types: dict[str, list[int]] = {}
    for data in tensors.values():
        types.setdefault(data.dtype, []).append(nbytes(data))
    ordered = sorted(types.items(), key=lambda item: -sum(item[1]))
    size = f"{sum(map(nbytes, tensors.values())):,} in {files} file{'s' if files > 1 else ''}"
    found = [
        ("class", _class(config)),
        ("layers", ", ".join(counts)),
        ("hidden size", width),
        ("heads", heads + (f"; {shared} for keys and values" if heads and shared else "")),
        ("tensors", ", ".join(f"{len(held)} of {name}" for name, held in ordered)),
        ("bytes", size),
    ]
    return [(name, text) for name, text in found if text]


def _class(config: Mapping[str, Any]) -> str:
    """The class, or else the architecture, that a configuration names."""
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    named = (first, *(config.get(key) for key in ("_class_name", "architecture", "model_type")))
    return next((name for name in named if isinstance(name, str) and name), "")


def _stated(config: Mapping[str, Any], names: re.Pattern[str]) -> str:
    """The numbers under such names: alone where there is one, else each with its own name."""
    found = list(_entries(config, names))
    if len({value for _, value in found}) == 1:
        return f"{found[0][1]:,}"
    return ", ".join(f"{value:,} ({name})" for name, value in found)


def _entries(table: Mapping[str, Any], names: re.Pattern[str], above: str = "") -> Iterator[tuple[str, int]]:
    for name, value in table.items():
        path = f"{above}{name}"
        if type(value) is int and names.fullmatch(name):
            yield path, value
        elif isinstance(value, dict) and path.count(".") < _LEVELS:
            yield from _entries(value, names, f"{path}.")
