"""The description of a module read without torch: as an outline of the module, and whether its classes are at hand.

An outline is what a file states, as data (:mod:`elastic_ir.formats.pickles.description`). Commands that build no module
go by it. Whether the module could be built is seen here as far as text shows it: each class has to be one that a file
may name, and has to stand in the source of its module, which is found without importing it. Where anything is less than
evident, whoever asks has the module built, and that says what is wrong.
"""

from __future__ import annotations

import base64
import copy
import importlib.machinery
import importlib.util
import math
import re
import sys
import types
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.formats.pickles.allow_list import FUNCTIONS, PURE_PACKAGES, defines, within
from elastic_ir.formats.pickles.description import (
    TOLD,
    Configuration,
    Instance,
    Outline,
    OutlineTensor,
    Unread,
)
from elastic_ir.safety.limits import INPUT_NUMBERS
from elastic_ir.tensors.lazy import ITEM_SIZES
from elastic_ir.tensors.weights import Weight

#: The attributes that a module of torch has for itself, which no description names.
_OF_MODULES = re.compile(
    r"training|_parameters|_buffers|_non_persistent_buffers_set|_modules|_is_full_backward_hook|call_super_init|"
    r"_\w*(hooks|hooks_with_kwargs|hooks_always_called|compiled_call_impl)"
)
#: Constants of torch that stand for a dtype, a memory format or a device.
_SYMBOL = re.compile(
    r"(torch\.)?(\w*_format|strided|" + "|".join(ITEM_SIZES) + r")|device\.(cpu|meta|cuda(:\d+)?)"
)
_SOURCE_BYTES = 1 << 24  #: of a Python file; none is larger


def outline_of(data: Mapping[str, Any], weights: Mapping[str, Weight]) -> Outline:
    """The described module as an outline over a graph's weights. Raises SourceError where it lacks one of them.

    A damaged description makes it raise what reading damaged data raises.
    """
    made = _Reader(data).module(weights)
    vars(made)[TOLD] = {"pretrained": "pretrained" in data, "script": str(data.get("script", ""))}
    return made


class _Reader:
    """Reads one description; what is not plain data is kept in its described form."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = data
        self.parts: dict[str, Outline] = {}
        self._objects: dict[int, Any] = {}

    def module(self, weights: Mapping[str, Weight]) -> Outline:
        parts = self.parts
        tensors: dict[tuple[int, bool], OutlineTensor] = {}

        def tensor(name: str, trained: bool | None) -> OutlineTensor:
            if name not in weights:
                raise SourceError(f"the described module has a tensor {name!r} that the file lacks")
            weight = weights[name]
            floating = weight.dtype.startswith(("float", "bfloat", "complex"))
            if trained is not None and (type(trained) is not bool or (trained and not floating)):
                raise SourceError(f"the description: {name!r} of {weight.dtype} is trained: {trained!r}")
            key = (id(weight.storage), trained is not None)  # one parameter for tied names
            return tensors.setdefault(key, OutlineTensor(weight.shape, weight.dtype, bool(trained)))

        described = [item for item in self.data["parts"] if "same" not in item]
        for item in self.data["parts"]:
            path = item["path"]
            head = f"{path}." if path else ""
            if "same" in item:
                part = parts[item["same"]]
            else:
                part = Outline(str(item["class"]))
                part.training = bool(item["training"])
                part._modules = {name: None for name, there in item["children"].items() if not there}
                for role, trained in item["parameters"].items():
                    part._parameters[role] = None if trained is None else tensor(head + role, trained)
                for role, persistent in item["buffers"].items():
                    part._buffers[role] = None if persistent is None else tensor(head + role, None)
                    if persistent is False:
                        part._non_persistent_buffers_set.add(role)
            parts[path] = part
            if path:
                parent, _, name = path.rpartition(".")
                parts[parent]._modules[name] = part
        for item in described:  # what they hold may be another part
            part = parts[item["path"]]
            for name, value in item["attributes"].items():
                if _OF_MODULES.fullmatch(name):
                    raise SourceError(f"the description: {name!r} is not an attribute of a module's own")
                vars(part)[name] = self.value(value)
            # children in their registered order, absent ones included
            part._modules = {name: part._modules[name] for name in item["children"]}
        return parts[""]

    def value(self, item: Any) -> Any:
        """A described value; one that takes more than plain data is kept as it is described."""
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
        return float(content) if kind == "float" else Unread(item)

    def _object(self, place: int) -> Any:
        """An object that several modules may hold, made once."""
        if place in self._objects:
            return self._objects[place]
        item = self.data["objects"][place]
        if "config" in item:
            self._objects[place] = Configuration(str(item["config"]), copy.deepcopy(item["data"]))
            return self._objects[place]
        name = str(item["instance"])
        made: Any = types.SimpleNamespace() if name == "types:SimpleNamespace" else Instance(name, {})
        self._objects[place] = made  # before what it holds, which may hold it
        vars(made).update({role: self.value(part) for role, part in item["attributes"].items()})
        return made


# -- whether a module can be built, as far as text shows it ------------------------------------------------------------


def is_evident(data: Mapping[str, Any], trust: Sequence[str]) -> bool:
    """Whether the described module's classes are ones that a file may name, and stand in the modules that they name."""
    return _Evidence(data, trust).of_module()


class _Evidence:
    """What text shows of one description."""

    def __init__(self, data: Mapping[str, Any], trust: Sequence[str]) -> None:
        self.data = data
        self.trust = trust
        self._texts: dict[str, str] = {}

    def of_module(self) -> bool:
        data = self.data
        if "pretrained" in data:
            return all(map(self.of_class, (data["pretrained"], data["config"])))
        names = {item["class"] for item in data["parts"] if "same" not in item}
        values = [value for item in data["parts"] for value in item.get("attributes", {}).values()]
        for item in data["objects"]:
            if "config" in item:
                names.add(item["config"])
            elif item["instance"] not in ("types:SimpleNamespace", "argparse:Namespace"):
                if not within(self.known_as(item["instance"]).partition(":")[0], self.trust):
                    return False
                names.add(item["instance"])
            values += item.get("attributes", {}).values()
        return all(map(self.of_class, names)) and all(map(self.of_value, values))

    def of_value(self, value: Any) -> bool:
        """Whether a described value is plain, or names what may be had."""
        if isinstance(value, list):
            return all(map(self.of_value, value))
        if not isinstance(value, dict):
            return True
        ((kind, content),) = value.items()
        if kind in ("tuple", "set", "dict"):
            return all(map(self.of_value, content))
        if kind == "partial":
            return isinstance(content[0], dict) and "class" in content[0] and all(map(self.of_value, content))
        if kind == "class":
            module = self.known_as(content).partition(":")[0]
            return within(module, (*PURE_PACKAGES, *self.trust)) and self.of_class(content)
        if kind == "symbol":
            return bool(_SYMBOL.fullmatch(content))
        if kind == "tensor":
            return is_evident_tensor(content)
        if kind == "function":
            return content in FUNCTIONS
        if kind == "enum":
            return self.of_class(content[0])
        return kind in ("float", "object", "module")

    def of_class(self, name: str) -> bool:
        """Whether a file may name a class, and its module's source defines one of that name."""
        module, _, qualname = self.known_as(name).partition(":")
        steps = qualname.split(".")
        plain = all(step.isidentifier() and not step.startswith("__") for step in steps)
        if not plain or not defines(module, self.trust):
            return False
        found: Any = sys.modules.get(module)
        if found is not None:
            for step in steps:
                found = getattr(found, step, None)
            return isinstance(found, type)
        if module not in self._texts:
            self._texts[module] = _text_of(module, within(module, self.trust))
        return all(re.search(rf"^\s*class {step}\b", self._texts[module], re.MULTILINE) for step in steps)

    def known_as(self, name: str) -> str:
        """A class's name where the file is read; see :mod:`elastic_ir.formats.pickles.rebuild`."""
        return known_as(self.data, name, self.trust)


def undescribed(why: object) -> str:
    """Why a class is not built again of whose attributes one is no plain data."""
    return f"the module could not be described when it was written: {why}"


def known_as(data: Mapping[str, Any], name: str, trust: Sequence[str]) -> str:
    """A class's name; of the script that described it, where the script's own name is the one that is trusted."""
    module, _, rest = str(name).partition(":")
    script = str(data.get("script", ""))
    if module == "__main__" and script and "__main__" not in trust:
        return f"{script}:{rest}"
    return str(name)


def is_evident_input(item: Any) -> bool:
    """Whether described example inputs are tensors of known dtypes and plain data."""
    if isinstance(item, list):
        return all(map(is_evident_input, item))
    if not isinstance(item, dict):
        return True
    ((kind, content),) = item.items()
    if kind == "tensor":
        return is_evident_tensor(content)
    if kind == "symbol":
        return bool(_SYMBOL.fullmatch(content))
    if kind == "dict":
        return all(is_evident_input(part) for _, part in content)
    return kind == "float" or (kind == "tuple" and all(map(is_evident_input, content)))


def is_made_up(item: Any) -> bool:
    """Whether values of tensors in described example inputs are missing, so that noise will stand for them."""
    if isinstance(item, list):
        return any(map(is_made_up, item))
    if not isinstance(item, dict):
        return False
    ((kind, content),) = item.items()
    return len(content) == 2 if kind == "tensor" else is_made_up(content)


def is_evident_tensor(record: Any) -> bool:
    """Whether a described tensor is of a known dtype, of no more numbers than an example, and has all its bytes."""
    numbers: int = math.prod(record[0])
    if record[1] not in ITEM_SIZES or not 0 <= numbers <= INPUT_NUMBERS or min(record[0], default=0) < 0:
        return False
    if len(record) == 2:
        return True
    wanted: int = numbers * ITEM_SIZES[record[1]]
    stream = zlib.decompressobj()
    try:
        return len(stream.decompress(base64.b64decode(record[2]), wanted + 1)) == wanted
    except zlib.error:
        return False


def _text_of(module: str, vouched: bool) -> str:
    """The source of a module, found by the folders of its packages and not by importing them; "" where there is none.

    One that the user vouches for is looked for in the working folder too.
    """
    from elastic_ir.user_functions import working_folder_on_path

    path = _path_of(module)
    if path is None and vouched:
        with working_folder_on_path():
            path = _path_of(module)
    if path is None or path.suffix != ".py":
        return ""
    with path.open("rb") as file:
        return file.read(_SOURCE_BYTES).decode(errors="replace")


def _path_of(module: str) -> Path | None:
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    for depth in range(len(inner)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join((top, *inner[: depth + 1]))
        spec = importlib.machinery.PathFinder.find_spec(name, [*spec.submodule_search_locations])
    return Path(spec.origin) if spec is not None and spec.origin and spec.has_location else None
