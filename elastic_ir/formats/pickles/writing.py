"""Writing pickles of plain data, of tensors and of instances by their names, without what they name. No torch here.

The instructions are those of Python's :mod:`pickle`, protocol 2, so that every Python reads them.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
from collections.abc import Iterator
from typing import Any

from elastic_ir.formats.torch_zip import integer, named, text, tuple_of


def plain(item: Any) -> bytes:
    """Plain data: None, booleans, numbers, texts, and tuples, lists and dictionaries of such; TypeError for others."""
    if item is None or isinstance(item, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[item]
    if isinstance(item, int):
        return integer(item)
    if isinstance(item, float):
        return pickle.BINFLOAT + struct.pack(">d", item)
    if isinstance(item, str):
        return text(item)
    if isinstance(item, tuple):
        return tuple_of(*map(plain, item))
    if isinstance(item, list):
        return b"".join((pickle.EMPTY_LIST, pickle.MARK, *map(plain, item), pickle.APPENDS))
    if isinstance(item, dict):
        pairs = (plain(part) for pair in item.items() for part in pair)
        return b"".join((pickle.EMPTY_DICT, pickle.MARK, *pairs, pickle.SETITEMS))
    raise TypeError(f"a {type(item).__name__} is not plain data")


class PickleWriter:
    """A pickle that is written from the outside to the inside; a name occurs once in it, and then by its number."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [pickle.PROTO + b"\2"]
        self.numbers: dict[str, int] = {}

    def finished(self) -> bytes:
        """All of it."""
        return b"".join((*self.parts, pickle.STOP))

    def plain(self, item: Any) -> None:
        """Plain data, as :func:`plain` takes it."""
        self.parts.append(plain(item))

    def name(self, full: str) -> None:
        """What a dotted name stands for."""
        if full in self.numbers:
            self.parts.append(pickle.LONG_BINGET + struct.pack("<I", self.numbers[full]))
            return
        self.numbers[full] = len(self.numbers)
        self.parts.append(named(full) + pickle.LONG_BINPUT + struct.pack("<I", self.numbers[full]))

    def call(self, full: str, *given: Any) -> None:
        """What a function or class gives for plain data."""
        self.name(full)
        self.parts.append(plain(given) + pickle.REDUCE)

    @contextlib.contextmanager
    def instance(self, full: str, table: bool = True) -> Iterator[None]:
        """An instance whose state is what is written inside: entries of a table, or else one item."""
        self.name(full)
        self.parts.append(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        with self.table() if table else contextlib.nullcontext():
            yield
        self.parts.append(pickle.BUILD)

    @contextlib.contextmanager
    def _between(self, begin: bytes, end: bytes) -> Iterator[None]:
        self.parts.append(begin)
        yield
        self.parts.append(end)

    def table(self) -> contextlib.AbstractContextManager[None]:
        """A dictionary of the entries that are written inside, each a key and a value."""
        return self._between(pickle.EMPTY_DICT + pickle.MARK, pickle.SETITEMS)

    def list(self) -> contextlib.AbstractContextManager[None]:
        """A list of what is written inside."""
        return self._between(pickle.EMPTY_LIST + pickle.MARK, pickle.APPENDS)

    def tuple(self) -> contextlib.AbstractContextManager[None]:
        """A tuple of what is written inside."""
        return self._between(pickle.MARK, pickle.TUPLE)

    def entry(self, key: str) -> contextlib.AbstractContextManager[None]:
        """An entry of a table whose value is written inside."""
        return self._between(text(key), b"")

    def plain_entry(self, key: str, item: Any) -> None:
        """An entry of a table with plain data."""
        self.parts += (text(key), plain(item))
