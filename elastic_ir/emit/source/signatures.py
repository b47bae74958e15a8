"""What functions and layers of torch take: their parameters with their defaults, which calls leave out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from elastic_ir.ir.recurrent import options

#: Arguments of ATen by the names that torch.nn.functional has for them.
RENAMED = {"self": "input", "indices": "input", "train": "training"}
REQUIRED = inspect.Parameter.empty


@cache
def parameters(text: str) -> Mapping[str, Any]:
    """The parameters of ``F.x`` or ``nn.X`` with their defaults, REQUIRED where there is none; empty if not known.

    Those of a function are of Python's signature, or of ATen's schema under the names that Python has for them.
    """
    home, _, name = text.partition(".")
    owner: Any = {"F": functional, "nn": nn}.get(home)
    if not hasattr(owner, name):
        return {}
    recurrent = options(text)
    if recurrent:
        return {key: REQUIRED if value is None else value for key, value in recurrent.items()}
    target = getattr(owner, name)
    try:
        found = list(inspect.signature(target.__init__ if home == "nn" else target).parameters.values())
    except (ValueError, TypeError):
        found = []  # a function that is not written in Python
    if found and (home == "nn" or all(item.kind is item.POSITIONAL_OR_KEYWORD for item in found)):
        return {item.name: item.default for item in found if item.name != "self"}
    return {
        RENAMED.get(item.name, item.name): item.default_value if item.has_default_value() else REQUIRED
        for item in schema(name, "default")
    }


def schema(name: str, overload: str) -> Sequence[Any]:
    """The arguments of an operation of ATen, none where there is no such operation."""
    operation = getattr(getattr(torch.ops.aten, name, None), overload, None)
    return operation._schema.arguments if operation is not None else ()


def positional(kind: str, text: str, index: int) -> str:
    """What a positional argument of a method or of one of torch's functions is called; "" if that is not known."""
    if kind == "method":
        return "axis" if text in ("permute", "transpose", "flatten") else ""
    names = [item.name for item in schema(text.removeprefix("torch."), "default")]
    return names[index] if index < len(names) else ""


def is_default(value: Any, default: Any) -> bool:
    """Whether a value is the default; a size may be given for every axis where the default is one number."""
    return same(_uniform(value), _uniform(default))


def _uniform(value: Any) -> Any:
    return value[0] if isinstance(value, (tuple, list)) and len(set(map(repr, value))) == 1 else value


def same(left: Any, right: Any) -> bool:
    """Equal, and of one type: True is not 1."""
    return type(left) is type(right) and bool(left == right)
