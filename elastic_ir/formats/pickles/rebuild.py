"""Building a module again from its description, without unpickling anything.

No constructor is called, but of models and configurations of transformers, by :mod:`elastic_ir.safety.registered`.

Where its class may not be built, a tree of stand-ins carries what the file states of it
(:mod:`elastic_ir.formats.pickles.description`).
"""

from __future__ import annotations

import argparse
import copy
import enum
import functools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from elastic_ir.errors import ElasticError, EmitError, SourceError
from elastic_ir.formats.pickles.allow_list import find, is_pure, resolve_class, within
from elastic_ir.formats.pickles.description import MARK, TOLD, Configuration, Instance, Unread
from elastic_ir.formats.pickles.outline import known_as, undescribed
from elastic_ir.ir.example_inputs import read_tensor
from elastic_ir.ir.functions import resolve_function, resolve_symbol
from elastic_ir.safety.registered import configuration, is_config, network

_INTERNAL = frozenset(vars(nn.Module()))  #: what every module has, hooks among it


def rebuild_module(
    data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], trust: Sequence[str]
) -> nn.Module:
    """The described module over the given tensors (parameters and buffers by full name).

    Raises SourceError where a class cannot be imported or is not trusted, or where the description was impossible.
    """
    if "pretrained" in data:
        return _from_config(data, trust, len(tensors))
    if "opaque" in data:
        raise SourceError(undescribed(data["opaque"]))
    return _Reader(data, trust, stand_ins=False).module(tensors)


def stand_in_module(data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The described module as a tree of stand-ins, where its class cannot be built: it holds data, and never runs.

    Layers of the known packages are themselves in it. Raises SourceError where the description is damaged.
    """
    made = _Reader(data, (), stand_ins=True).module(tensors)
    vars(made)[TOLD] = {"pretrained": "pretrained" in data, "script": str(data.get("script", ""))}
    return made


class StandIn(nn.Module):
    """A module without a forward: parameters, buffers, children and attributes under their names."""


def stand_in(stands_for: str) -> nn.Module:
    """An empty module that stands for one of a class that is not at hand."""
    made = StandIn()
    vars(made)[MARK] = stands_for
    return made


class _Reader:
    """Reads one description; with ``stand_ins``, what may not be built is kept as data in its place."""

    def __init__(self, data: Mapping[str, Any], trust: Sequence[str], *, stand_ins: bool) -> None:
        self.data = data
        self.trust = trust
        self.stand_ins = stand_ins
        self.parts: dict[str, nn.Module] = {}
        self._objects: dict[int, Any] = {}

    def module(self, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
        parts = self.parts
        parameters: dict[int, nn.Parameter] = {}
        described = [item for item in self.data["parts"] if "same" not in item]
        for item in self.data["parts"]:
            path = item["path"]
            part = parts[item["same"]] if "same" in item else self._empty(item)
            if "same" not in item:
                for name, there in item["children"].items():
                    if not there:
                        part._modules[name] = None
                _fill(part, item, f"{path}." if path else "", tensors, parameters)
            parts[path] = part
            if path:
                parent, _, name = path.rpartition(".")
                parts[parent]._modules[name] = part
        for item in described:  # what they hold may be another part
            for name, value in item["attributes"].items():
                if name in _INTERNAL:
                    raise SourceError(f"the description: {name!r} is not an attribute of a module's own")
                parts[item["path"]].__dict__[name] = self.value(value)
            table = parts[item["path"]]._modules  # children in their registered order, absent ones included
            ordered = {name: table[name] for name in item["children"]}
            table.clear()
            table.update(ordered)
        return parts[""]

    def _empty(self, item: Mapping[str, Any]) -> nn.Module:
        name = self._known_as(item["class"])
        try:
            kind = resolve_class(name, self.trust)
        except SourceError:
            if not self.stand_ins:
                raise
            part = stand_in(item["class"])
        else:
            part = kind.__new__(kind)
            nn.Module.__init__(part)
        part.training = bool(item["training"])
        return part

    def _known_as(self, name: str) -> str:
        return known_as(self.data, name, self.trust)

    def value(self, item: Any) -> Any:
        """A described value; one that may not be built is kept as data, or refused."""
        if isinstance(item, list):
            return [self.value(part) for part in item]
        if not isinstance(item, dict):
            return item
        ((kind, content),) = item.items()
        if kind == "object":
            return self._object(content)
        if kind == "module":
            return self.parts[content]
        if kind == "tuple":
            return tuple(self.value(part) for part in content)
        if kind == "set":
            return {self.value(part) for part in content}
        if kind == "dict":
            return {self.value(k): self.value(v) for k, v in content}
        try:
            return self._leaf(kind, content)
        except ElasticError:
            if self.stand_ins:
                return Unread(item)
            raise

    def _leaf(self, kind: str, content: Any) -> Any:
        if kind == "float":
            return float(content)
        if kind == "symbol":
            return resolve_symbol(content)
        if kind == "tensor":
            return read_tensor(content)[0]
        if kind == "class":
            found = resolve_class(self._known_as(content), self.trust)
            if not is_pure(found, self.trust):  # the network's own code may call it
                raise SourceError(f"the class {content} is not a layer; pass --trust to allow its package")
            return found
        if kind == "partial":
            function, args, keywords = (self.value(part) for part in content)
            if not is_pure(function, self.trust):
                raise SourceError(
                    f"a partial of {function} is not part of a network; pass --trust to allow its package"
                )
            return functools.partial(function, *args, **keywords)
        if kind == "function":
            try:
                return resolve_function(content)
            except EmitError as error:
                raise SourceError(str(error)) from error
        if kind == "enum":
            owner, name = content
            module, _, qualname = self._known_as(owner).partition(":")
            found = find(module, qualname, self.trust, "the description")
            if isinstance(found, type) and issubclass(found, enum.Enum):
                return found[name]
        if kind == "opaque":
            raise SourceError(undescribed(content))
        raise SourceError(f"the module's description holds an unknown kind of value, {kind!r}")

    def _object(self, place: int) -> Any:
        """An object that several modules may hold, made once."""
        if place in self._objects:
            return self._objects[place]
        item = self.data["objects"][place]
        if "config" in item:
            try:
                self._objects[place] = _config(item, self.trust)
            except SourceError:
                if not self.stand_ins:
                    raise
                self._objects[place] = Configuration(item["config"], copy.deepcopy(item["data"]))
            return self._objects[place]
        name, attributes = str(item["instance"]), item["attributes"]
        made: Any
        if name == "types:SimpleNamespace":
            made = types.SimpleNamespace()
        else:
            module, _, qualname = self._known_as(name).partition(":")
            try:
                kind = find(module, qualname, self.trust, "the description")
                if not (within(kind.__module__, self.trust) or kind is argparse.Namespace):
                    raise SourceError(
                        f"the description: {name} is not a class whose objects are their attributes"
                    )
                made = object.__new__(kind)
            except (SourceError, TypeError) as error:
                if not self.stand_ins:
                    raise SourceError(str(error)) from error
                made = Instance(name, {})
        self._objects[place] = made  # before what it holds, which may hold it
        vars(made).update({role: self.value(part) for role, part in attributes.items()})
        return made


def _from_config(data: Mapping[str, Any], trust: Sequence[str], tensors: int) -> nn.Module:
    """A transformers model made on the meta device from its configuration; its tensors come at emission."""
    kind = resolve_class(data["pretrained"], trust)
    vouched = within(kind.__module__, trust)
    module = network(kind, _config(data, trust), "the description", vouched, tensors=tensors)
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
        raise SourceError(f"{item['config']} is not a configuration class")
    return configuration(kind, item["data"], "the description")
