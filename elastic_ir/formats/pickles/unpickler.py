"""What both unpicklers share: Python's own ``pickle._Unpickler``, where whatever could run something is replaced.

Elements go into builtin containers only, since the methods of any other class would run; keys are checked before they
are hashed; what no honest file does is refused; and a pickle has only so many instructions. No torch here.
"""

from __future__ import annotations

import contextlib
import gc
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

from elastic_ir.errors import SourceError, UntrustedError
from elastic_ir.safety.limits import BYTES_A_STEP, PICKLE_STEPS

_CONTAINERS = {
    pickle.APPEND: "load_append", pickle.APPENDS: "load_appends", pickle.SETITEM: "load_setitem",
    pickle.SETITEMS: "load_setitems",
}  # fmt: skip


class GuardedUnpickler(pickle._Unpickler):
    """An unpickler of the instructions that a subclass names; any other is refused.

    ``as_python`` are those that do what Python's own do, ``replaced`` further ones with their methods. ``dicts`` are
    the classes that keys and values may go into, ``unneeded`` is how a refusal ends. Only so many are run, unless they
    are not ``counted``, for a pickle that is too small to have many.
    """

    as_python: ClassVar[Collection[bytes]] = ()
    replaced: ClassVar[Mapping[bytes, str]] = {}
    dicts: ClassVar[tuple[type, ...]] = (dict,)
    unneeded: ClassVar[str] = ""
    stack: list[Any]
    append: Callable[[Any], None]  # onto the stack
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {}

    def __init_subclass__(cls) -> None:
        """Make the table of instructions."""
        python = pickle._Unpickler.dispatch
        methods = {**_CONTAINERS, **cls.replaced}
        cls.dispatch = dict.fromkeys(range(256), cls.load_denied)
        cls.dispatch.update({code[0]: python[code[0]] for code in cls.as_python})
        cls.dispatch.update({code[0]: getattr(cls, method) for code, method in methods.items()})

    def __init__(self, file: BinaryIO, where: str, size: int, counted: bool = True, **options: Any) -> None:
        super().__init__(file, **options)
        if counted:
            self.dispatch = _Steps(type(self).dispatch, where, size)  # type: ignore[misc]  # of this run
        self.where = where

    def load(self) -> Any:
        """As Python's own, in one go."""
        with _without_collection():
            return super().load()

    def refuse(self, what: str) -> UntrustedError:
        """The refusal of what a pickle does."""
        return UntrustedError(f"{self.where}: it {what}, which {self.unneeded}")

    def storage_of(self, reference: Any) -> tuple[Any, str, int]:
        """Class, key and number of elements of a storage that a pickle refers to; anything else is refused."""
        if not (type(reference) is tuple and len(reference) in (5, 6) and reference[0] == "storage"):
            raise self.refuse("refers to something that is not a storage")
        kind, key, count = reference[1], reference[2], reference[4]
        if type(key) is not str or not is_count(count):
            raise self.refuse("refers to a storage in an unusual way")
        return kind, key, count

    def checked_key(self, key: Any) -> Any:
        """The key itself; refused where hashing it may take for ever."""
        raise NotImplementedError

    def onto(self, target: Any, *kinds: type) -> None:
        """Refuse to put elements into anything but a builtin container."""
        if type(target) not in kinds:
            raise self.refuse(f"puts elements into a {type(target).__name__}")

    def load_append(self) -> None:
        """Append to a list."""
        self.onto(self.stack[-2], list)
        value = self.stack.pop()
        self.stack[-1].append(value)

    def load_appends(self) -> None:
        """Extend a list."""
        items = self.pop_mark()
        self.onto(self.stack[-1], list)
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        """Set one entry of a dictionary."""
        self.onto(self.stack[-3], *self.dicts)
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][self.checked_key(key)] = value

    def load_setitems(self) -> None:
        """Set entries of a dictionary, one by one: update() would add up in a Counter."""
        items = self.pop_mark()
        self.onto(self.stack[-1], *self.dicts)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][self.checked_key(key)] = value

    def load_denied(self) -> None:
        """Refuse an instruction."""
        raise self.refuse("uses an instruction that torch.save does not write")


def is_count(item: Any) -> bool:
    """Whether it is a plain integer of 0 or more, as a place or an extent can be."""
    return type(item) is int and 0 <= item < 1 << 63


class _Steps(dict[int, Callable[[Any], None]]):
    """An unpickler's table of instructions, which hands out only so many: each may take a hundred bytes."""

    def __init__(self, table: Mapping[int, Callable[[Any], None]], where: str, size: int) -> None:
        super().__init__(table)
        self.where = where
        self.allowed = self.left = PICKLE_STEPS + size // BYTES_A_STEP

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise SourceError(
                f"{self.where} has a pickle of more than {self.allowed:,} instructions, which no state dict needs"
            )
        return super().__getitem__(code)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without the search for cycles, which looks again and again at all that a pickle has made so far."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
