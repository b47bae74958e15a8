"""A module as plain data: classes by name, plain attributes, configurations; never a pickle.

Together with a state dict this is enough to build the module again without calling its constructor, wherever its
class can be imported. What is not plain data is kept as the reason why, and then the class is not built again; the rest
of the description serves all the same.

A network of one's own is read where its class is not at hand, changed, and written again. What the file states of its
modules is then carried through as a tree of stand-ins, data and no code, which emission lays out as it would the
modules themselves; so a later reader who trusts the class gets what it would have got from the class all along. Such
a tree needs no torch, nor does this file: what has no module at hand describes none.
"""

from __future__ import annotations

import argparse
import copy
import enum
import functools
import inspect
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from elastic_ir.ir.example_inputs import describe_tensor

if TYPE_CHECKING:
    from torch import nn

#: The attribute of a stand-in module that holds its class's name, ``package.module:Class``.
MARK = "_stands_for"
#: The attribute of a root that holds what else its file stated: by which name the script that defines ``__main__``'s
#: classes is imported, and whether the network is made of a configuration, as transformers does it.
TOLD = "_told"
#: The class of what was a GraphModule when it was written.
GRAPH_MODULE = "torch.fx.graph_module:GraphModule"

_TENSOR_BYTES = 1 << 16  #: of a plain tensor among a module's attributes


def describe_module(module: nn.Module | Outline) -> dict[str, Any]:
    """A description for :func:`elastic_ir.formats.pickles.rebuild.rebuild_module`.

    Its ``opaque`` states what it lacks.
    """
    describer = _Describer(module)
    parts = []
    seen: dict[int, str] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if id(part) in seen:
            parts.append({"path": path, "same": seen[id(part)]})
            continue
        seen[id(part)] = path
        parts.append(
            {
                "path": path,
                "class": GRAPH_MODULE if is_graph_module(part) else class_of(part),
                "training": part.training,
                "attributes": describer.attributes(part, path),
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
    made: dict[str, Any] = {"parts": parts, "objects": describer.objects}
    read: dict[str, Any] | None = vars(module).get(TOLD)
    if any(str(part.get("class")).startswith("__main__:") for part in parts):
        made["script"] = _script() if read is None else read["script"]
    config: Any = getattr(module, "config", None)
    pretrained = hasattr(module, "save_pretrained") or bool(read and read["pretrained"])
    if describer.opaque and pretrained and hasattr(config, "to_dict"):
        # a transformers model is made again from its configuration, as from_pretrained does it
        made |= {
            "pretrained": class_of(module),
            "config": class_of(config),
            "data": _json_safe(config.to_dict()),
            "training": module.training,
        }
    elif describer.opaque:
        made["opaque"] = describer.opaque
    return made


def _script() -> str:
    """The name by which others import what the running script defines, or nothing."""
    main: Any = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = str(getattr(main, "__file__", None) or "").replace("\\", "/").rpartition("/")[2]
    name = file.removesuffix(".py")
    return name if file.endswith(".py") and name.isidentifier() else ""


def _torch() -> Any:
    """torch where it is at hand; whoever has a module of it has imported it."""
    return sys.modules.get("torch")


def _is_module(value: object) -> bool:
    torch = _torch()
    return isinstance(value, Outline) or (torch is not None and isinstance(value, torch.nn.Module))


def is_graph_module(part: object) -> bool:
    """Whether it is a GraphModule of torch; without torch there is none."""
    torch = _torch()
    return torch is not None and isinstance(part, torch.fx.GraphModule)


def _internal(part: nn.Module | Outline) -> set[str]:
    """The attributes that every module has, for itself and not of its class."""
    own: Any = Outline("") if isinstance(part, Outline) else _torch().nn.Module()
    return {*vars(own), MARK, TOLD}


def _is_flattened(part: nn.Module | Outline, name: str) -> bool:
    """RNNs keep lists of their own weights, which they make again."""
    flat = name in ("_flat_weights", "_flat_weight_refs")
    return flat and not isinstance(part, Outline) and isinstance(part, _torch().nn.RNNBase)


class _Describer:
    """Values as plain data; objects that several modules hold in common are described once."""

    def __init__(self, root: nn.Module | Outline) -> None:
        self.internal = _internal(root)
        self.objects: list[Any] = []
        self.opaque = ""  #: the first reason why the class cannot be built again
        self._places: dict[int, int] = {}
        self._paths = {id(part): path for path, part in root.named_modules()}
        self._held: list[Any] = []  # so that no id is given twice

    def attributes(self, part: nn.Module | Outline, path: str) -> dict[str, Any]:
        """A module's attributes, but for what every module has, and what a GraphModule has of its graph."""
        if is_graph_module(part):
            return {}
        return {
            name: self.value(value, f"{path}.{name}".lstrip("."))
            for name, value in vars(part).items()
            if name not in self.internal and not _is_flattened(part, name)
        }

    def value(self, value: Any, where: str) -> Any:
        if isinstance(value, Unread):
            return self._unread(value.item)
        if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
            return value
        if isinstance(value, float):
            return {"float": repr(value)}
        if isinstance(value, enum.Enum):
            return {"enum": [class_of(value), value.name]}
        torch = _torch()
        if torch is not None and isinstance(value, (torch.dtype, torch.memory_format)):
            return {"symbol": str(value)}
        if torch is not None and isinstance(value, torch.device):
            return {"symbol": f"device.{value}"}
        if type(value) is tuple or (torch is not None and type(value) is torch.Size):
            return {"tuple": [self.value(part, where) for part in value]}
        if type(value) is list:
            return [self.value(part, where) for part in value]
        if type(value) in (set, frozenset):
            return {"set": [self.value(part, where) for part in sorted(value, key=repr)]}
        if type(value) in (dict, OrderedDict):
            return {"dict": [[self.value(k, where), self.value(v, where)] for k, v in value.items()]}
        if torch is not None and isinstance(value, type) and issubclass(value, torch.nn.Module):
            return {"class": f"{value.__module__}:{value.__qualname__}"}
        if isinstance(value, functools.partial) and isinstance(value.func, type):
            return {
                "partial": [
                    self.value(part, where) for part in (value.func, list(value.args), value.keywords)
                ]
            }
        if inspect.isroutine(value) and getattr(value, "__module__", None) in _FUNCTIONAL:
            return {"function": f"{value.__module__}.{value.__name__}"}
        if _is_module(value) and id(value) in self._paths:
            return {"module": self._paths[id(value)]}
        if (
            torch is not None
            and type(value) is torch.Tensor
            and value.numel() * value.itemsize <= _TENSOR_BYTES
            and not value.is_meta
        ):
            return {"tensor": describe_tensor(value, whole=True)}
        if _is_configuration(value) or _is_plain_object(value):
            return self._object(value, where)
        return self._unread({"opaque": f"{where} holds a {type(value).__name__}, which is not plain data"})

    def _unread(self, item: Any) -> Any:
        if isinstance(item, dict) and "opaque" in item:
            self.opaque = self.opaque or str(item["opaque"])
        return item

    def _object(self, value: Any, where: str) -> Any:
        if id(value) not in self._places:
            place = self._places[id(value)] = len(self.objects)
            self._held.append(value)
            self.objects.append(None)  # what it holds may hold it
            if _is_configuration(value):
                self.objects[place] = {"config": class_of(value), "data": _json_safe(value.to_dict())}
            else:
                attributes = {name: self.value(part, f"{where}.{name}") for name, part in vars(value).items()}
                self.objects[place] = {"instance": class_of(value), "attributes": attributes}
        return {"object": self._places[id(value)]}


_FUNCTIONAL = ("torch.nn.functional", "torch._C._nn")
#: Whose objects are more than their attributes, or are made again by the library itself.
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "numpy")


def _is_configuration(value: Any) -> bool:
    """Whether it is a configuration of transformers, which gives its content as a dictionary and is made from one."""
    if isinstance(value, Configuration):
        return True
    return hasattr(value, "to_dict") and hasattr(type(value), "from_dict") and hasattr(value, "model_type")


def _is_plain_object(value: Any) -> bool:
    """Whether all that an object of somebody's class is lies in its attributes (a dataclass, a namespace)."""
    kind = type(value)
    if kind is types.SimpleNamespace or isinstance(value, Instance):
        return True
    top = kind.__module__.partition(".")[0]
    foreign = (top in sys.stdlib_module_names and kind is not argparse.Namespace) or top in _LIBRARIES
    if foreign or isinstance(value, type) or _is_module(value) or callable(value):
        return False
    if hasattr(kind, "__setstate__") or any(vars(base).get("__slots__") for base in kind.__mro__):
        return False
    own = ("__reduce_ex__", "__reduce__", "__getstate__", "__new__")  # how its content is stored, and made
    usual: Any = object
    return hasattr(value, "__dict__") and all(getattr(kind, name) is getattr(usual, name) for name in own)


def _json_safe(item: Any) -> Any:
    if isinstance(item, dict):
        return {str(key): _json_safe(part) for key, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [_json_safe(part) for part in item]
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    return str(item).removeprefix("torch.")


# -- stand-ins ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unread:
    """A value in its described form (a function, a class, an enum's member), written again as it was read."""

    item: Any


class Instance:
    """The attributes of an object whose class is not at hand."""

    __slots__ = ("__dict__", MARK)

    def __init__(self, stands_for: str, attributes: dict[str, Any]) -> None:
        setattr(self, MARK, stands_for)
        vars(self).update(attributes)


class Configuration(Instance):
    """A configuration of transformers whose class is not at hand."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Its content, as the class's own method gives it."""
        return copy.deepcopy(vars(self))


@dataclass(eq=False)
class OutlineTensor:
    """A parameter or a buffer of an outline, which has no values."""

    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = False


Tensors: TypeAlias = "dict[str, OutlineTensor | None]"


class Outline:
    """A module without a forward, as a file describes it: parameters, buffers, children and attributes by name.

    It has what emission asks of a module: the tables of one, and the ways to walk it.
    """

    def __init__(self, stands_for: str) -> None:
        self.training = True
        self._modules: dict[str, Outline | None] = {}
        self._parameters: Tensors = {}
        self._buffers: Tensors = {}
        self._non_persistent_buffers_set: set[str] = set()
        vars(self)[MARK] = stands_for

    def named_modules(
        self, remove_duplicate: bool = True, prefix: str = "", seen: set[int] | None = None
    ) -> Iterator[tuple[str, Outline]]:
        """It and all below it with their paths, each once unless duplicates are wanted."""
        seen = set() if seen is None else seen
        if id(self) in seen:
            return
        if remove_duplicate:
            seen.add(id(self))
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child.named_modules(remove_duplicate, f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Outline]:
        """It and all below it, each once."""
        return (part for _, part in self.named_modules())

    def children(self) -> Iterator[Outline]:
        """What lies directly below it."""
        return iter({id(part): part for part in self._modules.values() if part is not None}.values())

    def get_submodule(self, path: str) -> Outline:
        """What lies under a path; AttributeError where nothing does."""
        part: Outline | None = self
        for name in path.split(".") if path else ():
            part = part._modules.get(name) if part is not None else None
        if part is None:
            raise AttributeError(f"there is no module {path!r}")
        return part

    def train(self, mode: bool = True) -> Outline:
        """Set the mode of it and of all below it."""
        for part in self.modules():
            part.training = mode
        return self

    def named_parameters(self, remove_duplicate: bool = True) -> Iterator[tuple[str, OutlineTensor]]:
        """Its parameters by their full names."""
        return self._named("_parameters", remove_duplicate)

    def named_buffers(self, remove_duplicate: bool = True) -> Iterator[tuple[str, OutlineTensor]]:
        """Its buffers by their full names."""
        return self._named("_buffers", remove_duplicate)

    def parameters(self) -> Iterator[OutlineTensor]:
        """Its parameters, each once."""
        return (tensor for _, tensor in self.named_parameters())

    def buffers(self) -> Iterator[OutlineTensor]:
        """Its buffers, each once."""
        return (tensor for _, tensor in self.named_buffers())

    def _named(self, table: str, remove_duplicate: bool) -> Iterator[tuple[str, OutlineTensor]]:
        seen: set[int] = set()
        for path, part in self.named_modules(remove_duplicate):
            for role, tensor in getattr(part, table).items():
                if tensor is not None and not (remove_duplicate and id(tensor) in seen):
                    seen.add(id(tensor))
                    yield f"{path}.{role}" if path else role, tensor

    def state_dict(self) -> dict[str, OutlineTensor]:
        """The tensors that a state dict has, in its order."""
        return {
            f"{path}.{role}" if path else role: tensor
            for path, part in self.named_modules(remove_duplicate=False)
            for role, tensor in (*part._parameters.items(), *part._buffers.items())
            if tensor is not None and role not in part._non_persistent_buffers_set
        }


def class_of(item: Any) -> str:
    """The class of a module or an object, ``package.module:Class``; of a stand-in the class that it stands for."""
    if isinstance(item, (Instance, Outline)):
        return str(getattr(item, MARK))
    kind = type(item)
    stands_for = vars(item).get(MARK) if _is_module(item) else None
    return stands_for if stands_for is not None else f"{kind.__module__}:{kind.__qualname__}"


def is_layer(module: object, *names: str) -> bool:
    """Whether a module is one of these layers of ``torch.nn``, or an outline stands for one."""
    if isinstance(module, Outline):
        home, _, name = class_of(module).partition(":")
        return home.startswith("torch.nn.") and name in names
    torch = _torch()
    return torch is not None and isinstance(module, tuple(getattr(torch.nn, name) for name in names))
