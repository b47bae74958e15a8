"""Reading ``.pt`` files without running what they say.

State dicts go through ``torch.load(weights_only=True)``. A pickled module goes through an unpickler of our own that
knows an allow-list of *classes* (never of functions: a pickle that calls a library's loader can make it load a
second pickle unsafely) and calls nothing but torch's tensor rebuilders and a few plain-data types. Modules are made
by ``__new__`` alone, as pickle does it, so no constructor runs.
"""

from __future__ import annotations

import _compat_pickle
import enum
import importlib
import importlib.util
import io
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from elastic_ir.errors import SourceError, UntrustedError

PACKAGES = ("torch", "torchvision", "timm", "transformers", "elastic_ir")

#: Functions that rebuild tensors, and types that hold plain data: all that a pickle may call.
_CALLABLE = {
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor_v3"), ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"), ("torch", "Size"), ("torch", "device"),
    ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"), ("builtins", "set"),
    ("builtins", "frozenset"), ("builtins", "slice"), ("builtins", "complex"), ("builtins", "bytearray"),
}  # fmt: skip
_PLAIN_CLASSES = {
    ("torchvision.models.mobilenetv3", "InvertedResidualConfig"),
    ("torchvision.models.efficientnet", "MBConvConfig"),
    ("torchvision.models.efficientnet", "FusedMBConvConfig"),
    ("torchvision.models.convnext", "CNBlockConfig"),
}
#: Pure functions that layers keep as attributes; they may be named, and are never called.
_NAMED = {"relu", "gelu", "silu", "tanh", "sigmoid", "softmax", "leaky_relu", "elu", "hardtanh", "relu6", "mish"}


class _Unpickler(pickle._Unpickler):  # type: ignore[misc, name-defined]  # the Python one: its opcodes can be overridden
    """Resolves and calls only what the allow-list has."""

    trust: Sequence[str] = ()

    def find_class(self, module: str, name: str) -> Any:
        # torch writes protocol 2, which spells some names as Python 2 did
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if (module, name) in _CALLABLE:
            return getattr(importlib.import_module(module), name)
        if module == "torch" and name.endswith(("Storage", "Tensor")) or module == "torch.storage":
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type):
                return found
        if module == "torch" and isinstance(getattr(torch, name, None), (torch.dtype, torch.memory_format)):
            return getattr(torch, name)
        if module in ("torch.nn.functional", "torch._C._nn") and name in _NAMED:
            return getattr(importlib.import_module(module), name)
        if (module, name) == ("functools", "partial"):
            return importlib.import_module(module).partial
        return resolve_class(f"{module}.{name}", self.trust, modules_only=False)

    def load_reduce(self) -> None:
        arguments, function = self.stack[-1], self.stack[-2]
        where = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
        known = where in _CALLABLE or function in (torch.Size, torch.device)
        listed = isinstance(function, type) and issubclass(function, enum.Enum)
        partial = where == ("functools", "partial") and arguments and isinstance(arguments[0], type)
        if not (known or listed or partial):
            raise UntrustedError(f"the file calls {'.'.join(where)}, which is not allowed; nothing of it was run")
        super().load_reduce()

    dispatch = {**pickle._Unpickler.dispatch, pickle.REDUCE[0]: load_reduce}  # type: ignore[attr-defined]


def class_allowed(kind: type, trust: Sequence[str] = ()) -> bool:
    """Whether a class may be rebuilt from a file: a module, enum or plain-data class of a trusted package."""
    package = kind.__module__.partition(".")[0]
    if package not in (*PACKAGES, *trust):
        return False
    if issubclass(kind, (nn.Module, enum.Enum)) or package in trust:
        return True
    if (kind.__module__, kind.__qualname__) in _PLAIN_CLASSES:
        return True
    if issubclass(kind, torch.nn.utils.prune.BasePruningMethod) or kind is nn.Parameter:
        return True
    if kind.__module__.startswith("elastic_ir.tickets."):
        return True
    transformers = sys.modules.get("transformers")
    config = getattr(transformers, "PretrainedConfig", None) if transformers is not None else None
    return config is not None and issubclass(kind, config)


def resolve_class(qualified: str, trust: Sequence[str] = (), *, modules_only: bool = True) -> type:
    """The class of that full name, if it may be rebuilt from a file.

    Raises UntrustedError for what is outside the allow-list (nothing is imported then, and nothing run), and
    SourceError for what cannot be imported here.
    """
    package = qualified.partition(".")[0]
    if package not in (*PACKAGES, *trust):
        if package != "__main__" and package not in sys.modules and importlib.util.find_spec(package) is None:
            raise SourceError(
                f"the file holds a {qualified}, and the package {package!r} cannot be imported here; install it and "
                f"pass --trust {package} (trust=[{package!r}]), or save a state dict and name the network with --arch"
            )
        raise UntrustedError(
            f"the file names {qualified}, which is not trusted; nothing of it was run. If you trust the package, "
            f"pass --trust {package} (trust=[{package!r}])"
        )
    found = _find(qualified)
    if found is None:
        raise SourceError(
            f"the file holds a {qualified}, which cannot be imported here; install the {package} that has it, or save "
            "a state dict and name the network with --arch"
        )
    fits = isinstance(found, type) and f"{found.__module__}.{found.__qualname__}" == qualified
    if not fits or not class_allowed(found, trust) or (modules_only and not issubclass(found, nn.Module)):
        raise UntrustedError(
            f"the file names {qualified}, which is no network class; functions and other objects are never taken "
            "from a file, and nothing of it was run"
        )
    return found  # type: ignore[no-any-return]


def _find(qualified: str) -> Any:
    """The object of a full name: the longest importable prefix is the module, the rest attributes."""
    parts = qualified.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            found: Any = sys.modules.get(name) or importlib.import_module(name)
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


def read_torch_file(path: Path, trust: Sequence[str] = ()) -> Any:
    """What a ``.pt`` file holds: a state dict, another plain container, or a module.

    Raises SourceError for a missing, empty, truncated or garbage file, UntrustedError for a pickle that names
    anything outside the allow-list.
    """
    _sniff(path)
    try:
        return torch.load(path, weights_only=True, mmap=_is_zip(path), map_location="cpu")
    except (pickle.UnpicklingError, AttributeError):
        pass  # a pickled module, or something worse: through the restricted unpickler
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnicodeDecodeError, IndexError) as error:
        raise SourceError(f"{path.name} is damaged or no PyTorch file ({_line(error)})") from error

    class Unpickler(_Unpickler):
        pass

    Unpickler.trust = tuple(trust)

    def read(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    substitute = SimpleNamespace(
        __name__="restricted", Unpickler=Unpickler, load=read, loads=lambda data, **o: read(io.BytesIO(data), **o)
    )
    try:
        return torch.load(path, weights_only=False, pickle_module=substitute, map_location="cpu")
    except (SourceError, UntrustedError):
        raise
    except Exception as error:  # a garbage pickle can fail in any way at all
        raise SourceError(f"{path.name} is damaged or no PyTorch file ({_line(error)})") from error


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _sniff(path: Path) -> None:
    try:
        if path.is_dir():
            raise SourceError(f"{path} is a folder, no file")
        if path.stat().st_size == 0:
            raise SourceError(f"{path.name} is empty")
        whole = not _is_zip(path) or zipfile.is_zipfile(path)
    except FileNotFoundError as error:
        raise SourceError(f"there is no file {path}") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
    if not whole:
        raise SourceError(f"{path.name} is cut off: its zip directory is missing; copy or download it again")


def state_dict_of(found: Any) -> dict[str, torch.Tensor] | None:
    """The state dict in what a file held: itself, or under a usual key; a uniform wrapper prefix is taken off."""
    if not isinstance(found, Mapping):
        return None
    for key in ("state_dict", "model_state_dict", "model", "net", "weights"):
        inner = found.get(key)
        if isinstance(inner, Mapping) and inner and all(isinstance(v, torch.Tensor) for v in inner.values()):
            found = inner
            break
    state = {str(name): tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    if not state:
        return None
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def read_zip_records(path: Path, folder: str = "elastic_ir/") -> dict[str, bytes]:
    """Our own records in a ``.pt``'s zip, by their names from ``folder`` on; {} where there are none."""
    if not _is_zip(path):
        return {}
    records = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            inner = name.partition("/")[2]
            if inner.startswith(folder):
                records[inner] = archive.read(name)
    return records
