"""A module as plain data: classes by name, plain attributes, configurations; never a pickle.

Together with a state dict this is enough to build the module again without calling its constructor, wherever its
class can be imported. What is no plain data makes the description impossible, and the reason is kept instead.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

_INTERNAL = set(vars(nn.Module()))


class OpaqueError(Exception):
    """An attribute that is no plain data."""


def describe_module(module: nn.Module) -> dict[str, Any]:
    """A description for :func:`elastic_ir.frontends.module_data.rebuild_module`, or ``{"opaque": reason}``."""
    objects: list[Any] = []
    known: dict[int, int] = {}
    seen: dict[int, str] = {}
    parts = []
    try:
        for path, part in module.named_modules(remove_duplicate=False):
            if id(part) in seen:
                parts.append({"path": path, "same": seen[id(part)]})
                continue
            seen[id(part)] = path
            attributes = {
                name: _describe(value, f"{path}.{name}", objects, known)
                for name, value in vars(part).items()
                if name not in _INTERNAL and not _is_flattened(part, name)
            }
            parts.append(
                {
                    "path": path,
                    "class": qualified(type(part)),
                    "training": part.training,
                    "attributes": attributes,
                    "children": {name: child is not None for name, child in part._modules.items()},
                    "parameters": {
                        n: p.requires_grad if p is not None else None for n, p in part._parameters.items()
                    },
                    "buffers": {
                        n: n not in part._non_persistent_buffers_set if b is not None else None
                        for n, b in part._buffers.items()
                    },
                }
            )
    except OpaqueError as error:
        config: Any = getattr(module, "config", None)
        if hasattr(module, "save_pretrained") and hasattr(config, "to_dict"):
            # a transformers model is made again from its configuration, as from_pretrained does it
            return {
                "pretrained": qualified(type(module)),
                "config": qualified(type(config)),
                "data": _json_safe(config.to_dict()),
                "training": module.training,
            }
        return {"opaque": str(error)}
    return {"parts": parts, "objects": objects}


def _is_flattened(part: nn.Module, name: str) -> bool:
    """RNNs keep lists of their own weights, which they make again."""
    return isinstance(part, nn.RNNBase) and name in ("_flat_weights", "_flat_weight_refs")


def qualified(item: Any) -> str:
    return f"{item.__module__}:{item.__qualname__}"


def _describe(value: Any, where: str, objects: list[Any], known: dict[int, int]) -> Any:
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, enum.Enum):
        return {"enum": [qualified(type(value)), value.name]}
    if isinstance(value, (torch.dtype, torch.memory_format)):
        return {"symbol": str(value)}
    if isinstance(value, torch.device):
        return {"symbol": f"device.{value}"}
    if type(value) in (tuple, torch.Size):
        return {"tuple": [_describe(part, where, objects, known) for part in value]}
    if type(value) is list:
        return [_describe(part, where, objects, known) for part in value]
    if type(value) in (set, frozenset):
        return {"set": [_describe(part, where, objects, known) for part in sorted(value, key=repr)]}
    if type(value) in (dict, OrderedDict):
        pairs = [
            [_describe(k, where, objects, known), _describe(v, where, objects, known)]
            for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, type) and issubclass(value, nn.Module):
        return {"class": qualified(value)}
    if isinstance(value, functools.partial) and isinstance(value.func, type):
        inner = [
            _describe(part, where, objects, known) for part in (value.func, list(value.args), value.keywords)
        ]
        return {"partial": inner}
    if inspect.isroutine(value) and getattr(value, "__module__", None) in (
        "torch.nn.functional",
        "torch._C._nn",
    ):
        return {"function": f"{value.__module__}.{value.__name__}"}
    if hasattr(value, "to_dict") and hasattr(type(value), "from_dict") and hasattr(value, "model_type"):
        if id(value) not in known:
            known[id(value)] = len(objects)
            objects.append({"config": qualified(type(value)), "data": _json_safe(value.to_dict())})
        return {"object": known[id(value)]}
    raise OpaqueError(f"{where.lstrip('.')} holds a {type(value).__name__}, which is no plain data")


def _json_safe(item: Any) -> Any:
    if isinstance(item, dict):
        return {str(key): _json_safe(part) for key, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [_json_safe(part) for part in item]
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    return str(item).removeprefix("torch.")
