"""Building a module again from its description, without unpickling anything.

No constructor is called, but of models and configurations of transformers, by :mod:`elastic_ir.registered`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from elastic_ir.errors import EmitError, SourceError
from elastic_ir.frontends.pickle_names import find, is_pure, resolve_class, within
from elastic_ir.functions import resolve_function, resolve_symbol
from elastic_ir.registered import configuration, is_config, network


def rebuild_module(
    data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], trust: Sequence[str]
) -> nn.Module:
    """The described module over the given tensors (parameters and buffers by full name).

    Raises SourceError where a class cannot be imported or is not trusted, or where the description was impossible.
    """
    if "opaque" in data:
        raise SourceError(f"the module could not be described when it was written: {data['opaque']}")
    if "pretrained" in data:
        return _from_config(data, trust)
    objects = [_config(item, trust) for item in data["objects"]]
    parts: dict[str, nn.Module] = {}
    parameters: dict[int, nn.Parameter] = {}
    for item in data["parts"]:
        path = item["path"]
        if "same" in item:
            part = parts[item["same"]]
        else:
            kind = resolve_class(item["class"], trust)
            part = kind.__new__(kind)
            nn.Module.__init__(part)
            for name, value in item["attributes"].items():
                part.__dict__[name] = _value(value, objects, trust)
            part.training = bool(item["training"])
            for name, there in item["children"].items():
                if not there:
                    part._modules[name] = None
            _fill(part, item, f"{path}." if path else "", tensors, parameters)
        parts[path] = part
        if path:
            parent, _, name = path.rpartition(".")
            parts[parent]._modules[name] = part
    for item in data["parts"]:  # children in their registered order, absent ones included
        if "children" in item:
            table = parts[item["path"]]._modules
            ordered = {name: table[name] for name in item["children"]}
            table.clear()
            table.update(ordered)
    return parts[""]


def _from_config(data: Mapping[str, Any], trust: Sequence[str]) -> nn.Module:
    """A transformers model made on the meta device from its configuration; its tensors come at emission."""
    kind = resolve_class(data["pretrained"], trust)
    module = network(kind, _config(data, trust), "the description", vouched=within(kind.__module__, trust))
    module.train(bool(data["training"]))
    return module


def _fill(
    part: nn.Module,
    item: Mapping[str, Any],
    head: str,
    tensors: Mapping[str, torch.Tensor],
    parameters: dict[int, nn.Parameter],
) -> None:
    for role, requires_grad in item["parameters"].items():
        if requires_grad is None:
            part._parameters[role] = None
            continue
        tensor = _tensor(head + role, tensors)
        if id(tensor) not in parameters:  # one parameter for tied names
            parameters[id(tensor)] = nn.Parameter(tensor, requires_grad=requires_grad)
        part._parameters[role] = parameters[id(tensor)]
    for role, persistent in item["buffers"].items():
        part._buffers[role] = None if persistent is None else _tensor(head + role, tensors)
        if persistent is False:
            part._non_persistent_buffers_set.add(role)


def _tensor(name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise SourceError(f"the described module has a tensor {name!r} that the file lacks")
    return tensors[name]


def _config(item: Mapping[str, Any], trust: Sequence[str]) -> Any:
    """A configuration object of transformers, from its own dictionary form."""
    module, _, name = item["config"].partition(":")
    kind = find(module, name, trust, "the description")
    if not is_config(kind) and not within(kind.__module__, trust):
        raise SourceError(f"{item['config']} is no configuration class")
    return configuration(kind, item["data"], "the description")


def _value(item: Any, objects: list[Any], trust: Sequence[str]) -> Any:
    if isinstance(item, list):
        return [_value(part, objects, trust) for part in item]
    if not isinstance(item, dict):
        return item
    ((kind, content),) = item.items()
    if kind == "float":
        return float(content)
    if kind == "symbol":
        return resolve_symbol(content)
    if kind == "tuple":
        return tuple(_value(part, objects, trust) for part in content)
    if kind == "set":
        return {_value(part, objects, trust) for part in content}
    if kind == "dict":
        return {_value(k, objects, trust): _value(v, objects, trust) for k, v in content}
    if kind == "object":
        return objects[content]
    if kind == "class":
        found = resolve_class(content, trust)
        if not is_pure(found, trust):  # the network's own code may call it
            raise SourceError(f"the class {content} is no layer; pass --trust to allow its package")
        return found
    if kind == "partial":
        function, args, keywords = (_value(part, objects, trust) for part in content)
        if not is_pure(function, trust):
            raise SourceError(
                f"a partial of {function} is no part of a network; pass --trust to allow its package"
            )
        return functools.partial(function, *args, **keywords)
    if kind == "function":
        try:
            return resolve_function(content)
        except EmitError as error:
            raise SourceError(str(error)) from error
    if kind == "enum":
        owner, name = content
        module, _, qualname = owner.partition(":")
        found = find(module, qualname, trust, "the description")
        if isinstance(found, type) and issubclass(found, enum.Enum):
            return found[name]
    raise SourceError(f"the module's description holds an unknown kind of value, {kind!r}")
