"""A restricted unpickler for whole modules: a pickle makes empty instances and fills them; it calls nothing else.

A pickle is a program. Its dangerous instructions are REDUCE, which calls whatever is on the stack, and BUILD, which may
call a ``__setstate__``. Looking at names only, as ``find_class`` can, does not distinguish a function that is kept from
one that is called, so the instructions themselves are replaced (:mod:`elastic_ir.formats.pickles.unpickler`; the graphs
of objects are small, tensors lie outside the pickle):

- REDUCE calls only *makers*: tensor rebuilding, containers and numbers, each with its arguments checked. A maker is
  not callable by anybody else, so it does no harm where a pickle keeps it as an attribute.
- NEWOBJ makes an empty instance of an allowed class by ``object.__new__``; no constructor runs.
- What is made takes memory for what the pickle holds: no list of a range, no tensor of more bytes than its storage
  has, and no storage of more bytes than the file has for it.
- Classes that a network's own code could call later on are handed out only where their constructors are pure
  (:data:`elastic_ir.formats.pickles.allow_list.PURE_PACKAGES`); any other class is an inert token.
"""

from __future__ import annotations

import codecs
import datetime
import enum
import functools
import pathlib
import pickle
import types
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from elastic_ir.errors import SourceError
from elastic_ir.formats.pickles.allow_list import find, is_pure
from elastic_ir.formats.pickles.unpickler import GuardedUnpickler
from elastic_ir.safety.guard import guarded
from elastic_ir.safety.limits import PICKLE_STEPS, REPEATED

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}
_DICTS = (dict, OrderedDict, defaultdict, Counter)


@dataclass(frozen=True)
class Maker:
    """What REDUCE may call, and only REDUCE."""

    name: str
    make: Callable[..., Any]
    result: type | None = None  #: the builtin type that it stands for, as a defaultdict's factory


@dataclass(frozen=True)
class Token:
    """A class of which a pickle may make instances, and that nobody can call."""

    cls: type


class Refused(Exception):
    """A maker's arguments are not what an honest pickle gives it."""


def _partial(trust: Sequence[str]) -> Callable[..., Any]:
    def make(function: Any, *rest: Any) -> Any:
        if rest or not is_pure(function, trust):
            raise Refused
        return functools.partial(function)

    return make


def _attribute(trust: Sequence[str], where: str) -> Callable[..., Any]:
    def make(owner: Any, name: str) -> Any:
        """Nested classes and members of enums; nothing else."""
        cls = owner.cls if isinstance(owner, Token) else owner
        if not isinstance(cls, type) or type(name) is not str:
            raise Refused
        if issubclass(cls, enum.Enum):
            return cls[name]
        return handed_out(find(cls.__module__, f"{cls.__qualname__}.{name}", trust, where), trust)

    return make


def handed_out(found: Any, trust: Sequence[str]) -> Any:
    """The object itself where calling it would be harmless, else a token for its class."""
    if not isinstance(found, type) or issubclass(found, enum.Enum) or is_pure(found, trust):
        return found
    return Token(found)


def _key(item: Any, depth: int = 4) -> Any:
    """The item itself if it may be a key or in a set: hashing what is nested without end never comes back."""
    if isinstance(item, tuple | frozenset):
        if depth == 0:
            raise Refused
        for part in item:
            _key(part, depth - 1)
    return item


def _held(kind: type, keys: bool = False) -> Callable[..., Any]:
    """A builtin container of what another one holds already: a number or a range would ask for more than is there."""

    def make(*args: Any) -> Any:
        if len(args) > 1 or not all(
            type(arg) in (list, tuple, set, frozenset, str, bytes, *_DICTS) for arg in args
        ):
            raise Refused
        if keys:
            for item in args[0] if args else ():
                _key(item[0] if issubclass(kind, dict) and type(args[0]) in (list, tuple) else item)
        return kind(*args)

    return make


def _range(*args: Any) -> range:
    made = range(*args)
    if max(map(abs, args)) > PICKLE_STEPS:
        raise Refused
    return made


def _tensor(name: str) -> Callable[..., Any]:
    """A tensor over a storage that has its numbers; a view may repeat them (``expand``), but not without end."""
    rebuild: Callable[..., Any] = getattr(torch._utils, name)

    def make(storage: Any, offset: Any, size: Any, *rest: Any) -> Any:
        if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
            raise Refused
        numbers = prod(size)
        if numbers > max(REPEATED, len(storage)):
            raise SourceError(
                f"it holds a tensor of {numbers} numbers over a storage of {len(storage)}; save it without expand"
            )
        return rebuild(storage, offset, size, *rest)

    return make


def _default(factory: Any = None, *rest: Any) -> Any:
    if rest or not (factory is None or (isinstance(factory, Maker) and factory.result)):
        raise Refused
    return defaultdict(factory.result if factory else None)


def _encode(text: str, encoding: str) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused
    return codecs.encode(text, encoding)


def _with_state(make: Callable[..., Any], state: Any) -> Any:
    """Attributes of a tensor: a plain dictionary, or with an empty second part for slots."""
    if isinstance(state, tuple):
        state, slots = state
        if slots:
            raise Refused
    if state is not None and type(state) is not dict:
        raise Refused
    tensor = make()
    if state:
        tensor.__dict__.update(state)
    return tensor


def _parameter_with_state(data: Any, requires_grad: bool, hooks: Any, state: Any) -> Any:
    rebuild: Callable[..., Any] = torch._utils._rebuild_parameter
    return _with_state(lambda: rebuild(data, requires_grad, hooks), state)


def _typed(function: Any, kind: Any, args: tuple[Any, ...], state: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``, which calls what it is given: only makers here."""
    if not isinstance(function, Maker) or kind not in (torch.Tensor, nn.Parameter):
        raise Refused
    return _with_state(lambda: function.make(*args), state)


def _numeric(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc" and dtype.names is None


def _numpy_scalar(dtype: Any, content: Any) -> Any:
    if not _numeric(dtype) or type(content) is not bytes or len(content) != dtype.itemsize:
        raise Refused
    return np.frombuffer(content, dtype)[0]


def _numpy_dtype(code: Any, *rest: Any) -> Any:
    dtype = np.dtype(code, copy=True) if type(code) is str else None  # its own, as BUILD sets its byte order
    if not _numeric(dtype):
        raise Refused
    return dtype


def _numpy_array(kind: Any, shape: Any, code: Any) -> Any:
    if not (isinstance(kind, Maker) and kind.name == "numpy.ndarray"):
        raise Refused
    return np.ndarray((0,), np.uint8)


def _path(kind: type[pathlib.PurePath]) -> Callable[..., Any]:
    def make(*parts: str) -> Any:
        if not all(type(part) is str for part in parts):
            raise Refused
        return kind(*parts)

    return make


def _plain(make: Callable[..., Any], kind: type) -> Callable[..., Any]:
    """What its arguments, all of one type, say, and no more."""

    def made(*args: Any) -> Any:
        if not all(type(arg) is kind for arg in args):
            raise Refused
        return make(*args)

    return made


def _never(*args: Any) -> Any:
    raise Refused


def _makers() -> dict[str, Maker]:
    table: dict[str, Callable[..., Any]] = {
        "collections.defaultdict": _default,
        "_codecs.encode": _encode,
        "types.SimpleNamespace": types.SimpleNamespace,
        "datetime.timedelta": _plain(datetime.timedelta, int),  # Composer's clock, and the version beside it
        "torch.torch_version.TorchVersion": _plain(torch.torch_version.TorchVersion, str),
        "torch.Size": _held(torch.Size),
        "torch.device": torch.device,
        "torch.serialization._get_layout": torch.serialization._get_layout,
        "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
        "torch._tensor._rebuild_from_type_v2": _typed,
        "numpy.ndarray": _never,
        "numpy.dtype": _numpy_dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        table[f"{core}.multiarray.scalar"] = _numpy_scalar
        table[f"{core}.multiarray._reconstruct"] = _numpy_array
    for module in ("pathlib", "pathlib._local"):
        for posix in ("PosixPath", "PurePosixPath"):
            table[f"{module}.{posix}"] = _path(pathlib.PurePosixPath)
        for windows in ("WindowsPath", "PureWindowsPath"):
            table[f"{module}.{windows}"] = _path(pathlib.PureWindowsPath)
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        table[f"torch._utils.{name}"] = _tensor(name)
    for name in (
        "qtensor", "sparse_tensor", "parameter", "meta_tensor_no_storage",
        "device_tensor_from_cpu_tensor",
    ):  # fmt: skip
        function = getattr(torch._utils, f"_rebuild_{name}", None)
        if function is not None:
            table[f"torch._utils._rebuild_{name}"] = function
    makers = {name: Maker(name, make) for name, make in table.items()}
    kind: Any
    for kind in (complex, slice, int, float, bool, str):
        makers[f"builtins.{kind.__name__}"] = Maker(kind.__name__, kind, kind)
    for kind in (set, frozenset, bytearray, list, dict, tuple):
        keys = kind in (set, frozenset, dict)
        makers[f"builtins.{kind.__name__}"] = Maker(kind.__name__, _held(kind, keys), kind)
    makers["builtins.range"] = Maker("range", _range, range)
    for kind in (OrderedDict, Counter):
        makers[f"collections.{kind.__name__}"] = Maker(kind.__name__, _held(kind, keys=True), kind)
    return makers


_VALUES: dict[str, Any] = {
    "torch.Tensor": torch.Tensor,
    "torch._tensor.Tensor": torch.Tensor,
    "torch.nn.parameter.Parameter": nn.Parameter,
    "torch.storage.UntypedStorage": torch.UntypedStorage,
    "torch.storage.TypedStorage": torch.storage.TypedStorage,
}


class RestrictedUnpickler(GuardedUnpickler):
    """See the module; subclassed with ``trust``, ``where`` and ``sizes`` by :func:`restricted_pickle`."""

    unneeded = "a saved network does not; nothing of it was run"
    dicts = _DICTS
    replaced: ClassVar[Mapping[bytes, str]] = {
        pickle.REDUCE: "load_reduce", pickle.BUILD: "load_build", pickle.NEWOBJ: "load_newobj",
        pickle.ADDITEMS: "load_additems", pickle.FROZENSET: "load_frozenset",
        pickle.BINPERSID: "load_binpersid",
    }  # fmt: skip
    as_python = {bytes([code]) for code in pickle._Unpickler.dispatch} - {
        pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
        pickle.NEXT_BUFFER,
    }  # fmt: skip
    trust: ClassVar[tuple[str, ...]] = ()
    where: str = "the file"
    sizes: ClassVar[Mapping[str, int] | int] = 0

    def __init__(self, file: Any, **options: Any) -> None:
        size = self.sizes if isinstance(self.sizes, int) else sum(self.sizes.values())
        super().__init__(file, self.where, size, **options)
        self.made: dict[int, Any] = {}  #: instances that NEWOBJ made, by identity
        self.makers = _makers()
        self.makers["functools.partial"] = Maker("functools.partial", _partial(self.trust))
        self.makers["builtins.getattr"] = Maker("getattr", _attribute(self.trust, self.where))

    def find_class(self, module: str, name: str) -> Any:
        """The only way from a name to an object."""
        module = _RENAMED.get(module, module)
        full = f"{module}.{name}"
        if full in self.makers:
            return self.makers[full]
        if full in _VALUES:
            return _VALUES[full]
        return handed_out(find(module, name, self.trust, self.where), self.trust)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        name = getattr(function, "name", None) if isinstance(function, Maker) else None
        if isinstance(function, type) and issubclass(function, enum.Enum):
            if type(args) is not tuple or len(args) != 1:
                raise self.refuse(f"calls the enum {function.__qualname__} with {str(args)[:80]}")
            self.stack[-1] = function(args[0])
        elif name is None or type(args) is not tuple:
            cls = function.cls if isinstance(function, Token) else function
            shown = f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', type(cls).__name__)}"
            raise self.refuse(f"calls {shown}")
        else:
            try:
                self.stack[-1] = function.make(*args)
            except SourceError as error:
                raise error if self.where in str(error) else SourceError(f"{self.where}: {error}") from None
            except Refused:
                raise self.refuse(f"calls {name} with other arguments than saved networks do") from None

    def load_newobj(self) -> None:
        if isinstance(self.stack[-2], Maker):  # a text or number of a class of its own
            self.load_reduce()
            return
        args = self.stack.pop()
        cls = self.stack[-1]
        cls = cls.cls if isinstance(cls, Token) else cls
        if not isinstance(cls, type) or args != () or issubclass(cls, enum.Enum):
            raise self.refuse("makes an instance with arguments for its class")
        made = object.__new__(cls)
        self.made[id(made)] = made
        self.stack[-1] = made

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        known = id(made) in self.made or type(made) is types.SimpleNamespace
        if type(made) is functools.partial:
            self._build_partial(made, state)
        elif type(made) is OrderedDict and type(state) is dict:
            made.__dict__.update(state)  # the versions of a state dict
        elif _plain_numpy_state(made, state):
            made.__setstate__(state)
        elif not known or type(state) is not dict or not all(type(key) is str for key in state):
            raise self.refuse(f"sets the state of a {type(made).__name__} in an unusual way")
        elif isinstance(made, nn.Module) or type(made).__name__ == "_WrappedHook":
            with guarded(f"{self.where}: the class {type(made).__name__}"):
                type(made).__setstate__(made, state)  # it copies, and fills in what older ones lack
        else:
            made.__dict__.update(state)

    def _build_partial(self, made: Any, state: Any) -> None:
        if not (type(state) is tuple and len(state) == 4):
            raise self.refuse("sets the state of a partial in an unusual way")
        function, args, keywords, attributes = state
        plain = type(args) is tuple and type(keywords) is dict and not attributes
        if function is not made.func or not plain:
            raise self.refuse("changes what a partial calls")
        made.__setstate__((function, args, keywords, None))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.onto(self.stack[-1], set)
        self.stack[-1].update(map(self.checked_key, items))

    def checked_key(self, item: Any) -> Any:
        try:
            return _key(item)
        except Refused:
            raise self.refuse("has deeply nested keys") from None

    def load_frozenset(self) -> None:
        self.append(frozenset(map(self.checked_key, self.pop_mark())))

    def load_binpersid(self) -> None:
        reference = self.stack.pop()
        if type(reference) is tuple and reference and reference[0] == "module":
            # Old files keep a class's source beside it; torch would compare it, and may write a patch file.
            self.append(reference[1])
        else:
            self._check_storage(reference)
            self.append(self.persistent_load(reference))

    def _check_storage(self, reference: Any) -> None:
        """SourceError where a storage would have more bytes than the file has for it."""
        kind, key, count = self.storage_of(reference)
        dtype = torch.uint8 if kind is torch.UntypedStorage else getattr(kind, "dtype", None)
        if not isinstance(dtype, torch.dtype):
            raise self.refuse("refers to a storage in an unusual way")
        there = self.sizes if isinstance(self.sizes, int) else self.sizes.get(f"data/{key}")
        if there is None:
            raise SourceError(f"{self.where} is damaged: the storage {key!r} is missing")
        if count * dtype.itemsize > there:
            raise SourceError(
                f"{self.where} is damaged: the storage {key!r} needs {count * dtype.itemsize} bytes, and the file "
                f"has {there} for it"
            )


def _plain_numpy_state(made: Any, state: Any) -> bool:
    """Whether it is the state of a numeric dtype, or of an array of numbers."""
    if type(state) is not tuple:
        return False
    if _numeric(made):
        return len(state) == 8 and state[2:5] == (None, None, None) and state[1] in ("<", ">", "|")
    return type(made) is np.ndarray and len(state) == 5 and _numeric(state[2]) and type(state[4]) is bytes


def restricted_pickle(trust: Sequence[str], where: str, sizes: Mapping[str, int] | int) -> Any:
    """What ``torch.load(pickle_module=...)`` wants: a module-like object with this unpickler.

    ``sizes`` has the bytes of each record of the file's zip by name, or is those of the whole file.
    """
    given: dict[str, Any] = {"trust": tuple(trust), "where": where, "sizes": sizes}
    Unpickler: Any = type("Unpickler", (RestrictedUnpickler,), given)

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return types.SimpleNamespace(__name__="elastic_ir.formats.pickles.module", Unpickler=Unpickler, load=load)
