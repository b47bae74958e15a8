"""The pickle in a file of ``torch.save``, read as data: where each tensor of a state dict lies. No torch here.

Nothing is imported and nothing is called. A name in the pickle becomes a :class:`Name`, which is text; of what REDUCE
would call, a handful of names is understood here (an ordered dictionary, a tensor over a storage), and every other
name, and every instruction that ``torch.save`` does not write for a state dict, is refused.
:mod:`elastic_ir.formats.pickles.module` rebuilds whole networks.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

from elastic_ir.errors import SourceError, first_line
from elastic_ir.formats.pickles.unpickler import GuardedUnpickler, is_count
from elastic_ir.formats.torch_zip import STORAGES
from elastic_ir.tensors.lazy import ITEM_SIZES

_UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
_ORDERED = "collections.OrderedDict"
_REBUILD = "torch._utils._rebuild_"
_CALLED = (_ORDERED, *(f"{_REBUILD}{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")))


@dataclass(frozen=True)
class Name:
    """What the pickle names: text, and nothing that could be called."""

    full: str


@dataclass(frozen=True)
class StorageReference:
    """Bytes that lie outside the pickle; ``dtype`` is None where the tensor has it."""

    key: str
    dtype: str | None
    count: int  #: of elements; of bytes where there is no dtype

    @property
    def nbytes(self) -> int:
        return self.count * (1 if self.dtype is None else ITEM_SIZES[self.dtype])


@dataclass(frozen=True)
class StoredTensor:
    """A tensor over a storage, all counts in elements of its dtype."""

    storage: StorageReference
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """From its first element to the last one that it reaches, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in order without gaps; where an extent is 1, its stride does not matter."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return 0 in self.shape
            expected *= size
        return True


def read_state_pickle(file: BinaryIO, where: str, size: int = 0) -> Any:
    """What a pickle of plain data and tensors holds, from where the file stands to behind the pickle.

    ``size`` is the whole file's: a large one may have a longer pickle. Raises UntrustedError, one line, for a pickle
    that names or does anything else, SourceError for a damaged one.
    """
    try:
        return _Reader(file, where, size).load()
    except SourceError:
        raise
    except Exception as error:  # on damaged bytes Python's unpickler raises nearly anything
        raise SourceError(
            f"{where} is damaged: its pickle cannot be read ({first_line(error)[:120]})"
        ) from error


class _Reader(GuardedUnpickler):
    """See the module."""

    replaced: ClassVar[Mapping[bytes, str]] = {pickle.REDUCE: "load_reduce", pickle.BUILD: "load_build"}
    unneeded = "plain weights have no need of; nothing of it was run. Ask for the weights as safetensors"
    as_python = (
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID,
        pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1,
        pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.EMPTY_TUPLE,
        pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.EMPTY_DICT,
        pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.MEMOIZE,
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """The name itself, if it is one that a state dict needs."""
        full = f"{module}.{name}"
        dtype = module == "torch" and name in ITEM_SIZES
        if full in _CALLED or full in STORAGES or full in _UNTYPED or dtype:
            return Name(full)
        raise self.refuse(f"names {full}")

    def persistent_load(self, reference: Any) -> StorageReference:
        """A storage by its key."""
        kind, key, count = self.storage_of(reference)
        if len(reference) == 6 and reference[5] is not None:
            raise SourceError(
                f"{self.where} holds a view of a storage, as torch wrote them before 0.4; load it with torch and save "
                "it again"
            )
        if type(kind) is not Name or (kind.full not in STORAGES and kind.full not in _UNTYPED):
            raise self.refuse("refers to a storage in an unusual way")
        return StorageReference(key, STORAGES.get(kind.full), count)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        name = self.stack[-1]
        if type(name) is not Name or type(args) is not tuple:
            raise self.refuse("calls something that is not a name")
        if name.full == _ORDERED:
            self.stack[-1] = self._ordered(args)
        elif name.full == f"{_REBUILD}parameter":
            if len(args) != 3 or type(args[0]) is not StoredTensor or args[2]:
                raise self.refuse("makes a parameter of something that is not a tensor")
            self.stack[-1] = args[0]
        elif name.full in _CALLED:
            self.stack[-1] = self._tensor(name.full, args)
        else:
            raise self.refuse(f"calls {name.full}")

    def _ordered(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """An ordered dictionary, empty or, as Python 2 pickled it, of a list of pairs."""
        pairs = args[0] if len(args) == 1 else []
        if len(args) > 1 or type(pairs) is not list:
            raise self.refuse("makes an OrderedDict in an unusual way")
        table: dict[Any, Any] = {}
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise self.refuse("makes an OrderedDict in an unusual way")
            table[self.checked_key(pair[0])] = pair[1]
        return table

    def _tensor(self, name: str, args: tuple[Any, ...]) -> StoredTensor:
        """``(storage, offset, shape, stride)``, and then, as they come: requires_grad, hooks, the dtype, metadata."""
        if len(args) < 4 or type(args[0]) is not StorageReference:
            raise self.refuse("makes a tensor of something that is not a storage")
        storage, offset, shape, stride, *rest = args
        if name.endswith("_v3"):
            kind = rest[2] if len(rest) > 2 else None
            dtype = kind.full.removeprefix("torch.") if type(kind) is Name else None
        else:
            dtype = storage.dtype
        plain = (
            type(shape) is tuple and type(stride) is tuple and all(map(is_count, (offset, *shape, *stride)))
        )
        if (
            dtype not in ITEM_SIZES
            or not plain
            or len(shape) != len(stride)
            or any(rest[1:2])
            or any(rest[3:] if name.endswith("_v3") else rest[2:])  # a negative or conjugate view
        ):
            raise self.refuse("makes a tensor in an unusual way")
        return StoredTensor(storage, dtype, offset, shape, stride)

    def load_build(self) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is not dict or type(state) is not dict:  # the versions of a state dict
            raise self.refuse(f"sets the state of a {type(self.stack[-1]).__name__}")

    def checked_key(self, key: Any) -> Any:
        if type(key) not in (str, int, float, bool, type(None)):  # hashing anything nested may take for ever
            raise self.refuse(f"has a {type(key).__name__} as a key")
        return key
