"""The file ``.metadata`` of a torch.distributed checkpoint, read as data and written again. No torch here.

Nothing is imported and nothing is called: the names in the pickle are compared with those of the few plain classes that
describe entries, and any other name, and any instruction that such a description has no need of, is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from elastic_ir.errors import SourceError, first_line
from elastic_ir.formats.files import opened
from elastic_ir.formats.pickles.state import Name
from elastic_ir.formats.pickles.unpickler import GuardedUnpickler, is_count
from elastic_ir.formats.pickles.writing import PickleWriter, plain
from elastic_ir.safety.limits import BYTES_A_STEP, RECORD_BYTES, check_names

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint.metadata"
_OLDER = "torch.distributed._shard.sharded_tensor.metadata"  #: where properties were defined before torch 2.2
_METADATA, _INDEX = f"{_MODULE}.Metadata", f"{_MODULE}.MetadataIndex"
_TENSOR, _BYTES = f"{_MODULE}.TensorStorageMetadata", f"{_MODULE}.BytesStorageMetadata"
_CHUNK, _PROPERTIES = f"{_MODULE}.ChunkStorageMetadata", f"{_MODULE}.TensorProperties"
_ENCODING, _META = f"{_MODULE}._MEM_FORMAT_ENCODING", f"{_MODULE}.StorageMeta"
_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_SIZE, _LAYOUT = "torch.Size", "torch.serialization._get_layout"
_INSTANCES = {
    _METADATA, _INDEX, _TENSOR, _BYTES, _CHUNK, _PROPERTIES, _META, _INFO, f"{_OLDER}.TensorProperties",
}  # fmt: skip
#: What is called with plain values; of all but sizes the result is not looked at.
_CALLED = {_SIZE, _LAYOUT, _ENCODING, f"{_OLDER}.MEM_FORMAT_ENCODING"} | {
    f"{module}.{kind}"
    for module in ("pathlib", "pathlib._local")
    for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
}
_BYTES_EACH = 4  #: bytes of the pickle for each instruction in it, at the least
_UNCOUNTED = 2 << 20  #: bytes of a pickle whose instructions need not be counted, however small each is
_AXES = 64  #: that a tensor of torch has, at the most

Key: TypeAlias = "str | int"


@dataclass(frozen=True)
class Place:
    """Where the bytes of a box lie: a range of a file of the folder."""

    file: str
    offset: int
    length: int
    transforms: tuple[str, ...] = ()  #: by which the bytes were changed, such as compression


@dataclass(frozen=True)
class Box:
    """A part of a tensor, by its first element and its extents; of an entry that is no tensor both are empty."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class Entry:
    """What a checkpoint holds under a name: a tensor in boxes that fill it, or, without a dtype, anything else."""

    name: str
    path: tuple[Key, ...]  #: the keys of the dictionaries that it was in, of which the name is made
    dtype: str | None
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Metadata:
    """All entries, and what the file states beside them."""

    entries: tuple[Entry, ...]
    nested: bool  #: whether it states the keys of dictionaries
    version: str | None = None


def read_metadata(folder: Path) -> Metadata:
    """The metadata of a folder.

    Raises SourceError for a file that is missing or damaged, and for boxes that do not fill their tensor;
    UntrustedError for a pickle that names or does anything that a description has no need of.
    """
    path = folder / METADATA
    with opened(path, METADATA) as file:
        raw = file.read(RECORD_BYTES + 1)
    if len(raw) > RECORD_BYTES:
        raise SourceError(
            f"{path} has more than {RECORD_BYTES >> 20} MiB; save the checkpoint of fewer ranks"
        )
    try:
        found = _Reader(raw, str(path)).load()
        return _metadata(found, str(path))
    except SourceError:
        raise
    except Exception as error:  # on damaged bytes Python's unpickler raises nearly anything
        raise SourceError(f"{path} is damaged: it cannot be read ({first_line(error)[:120]})") from error


# -- the pickle --------------------------------------------------------------------------------------------------------


class Size(tuple[int, ...]):
    """What was a ``torch.Size``."""


@dataclass(eq=False)
class _Made:
    """An instance of one of the classes, by its name, with its state."""

    kind: str
    state: Any = None


@dataclass(frozen=True)
class _Index:
    """The key of a box: its entry's name and its first element."""

    name: str
    offsets: tuple[int, ...] | None


class _Reader(GuardedUnpickler):
    """See the module."""

    replaced: ClassVar[Mapping[bytes, str]] = {
        pickle.PROTO: "load_protocol", pickle.FRAME: "load_frame_at_once", pickle.REDUCE: "load_reduce",
        pickle.BUILD: "load_build", pickle.NEWOBJ: "load_newobj",
    }  # fmt: skip
    unneeded = "the metadata of a checkpoint has no need of; nothing of it was run"
    as_python = (
        pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.NONE,
        pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
        pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.EMPTY_TUPLE, pickle.TUPLE,
        pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.BINPUT,
        pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.MEMOIZE,
    )  # fmt: skip

    def __init__(self, raw: bytes, where: str) -> None:
        size = len(raw)  # and no more instructions
        self.file, self.begun = BytesIO(raw), False
        super().__init__(self.file, where, size * BYTES_A_STEP // _BYTES_EACH, size > _UNCOUNTED)

    def load_protocol(self) -> None:
        """The first instruction, and all that follow: read without Python's layer for frames, in half of the time."""
        if self.file.read(1)[0] > pickle.HIGHEST_PROTOCOL or self.begun:
            raise self.refuse("states its protocol in an unusual way")
        self.begun = True
        read, dispatch = self.file.read, self.dispatch
        self.read, self.readline = read, self.file.readline
        while True:  # the last instruction leaves it, and at an early end there is no first byte
            dispatch[read(1)[0]](self)

    def load_frame_at_once(self) -> None:
        """A frame says how much may be read at once; all of it is here."""
        self.file.read(8)

    def find_class(self, module: str, name: str) -> Any:
        """The name itself, if it is one that a description needs."""
        full = f"{module}.{name}"
        dtype = module == "torch" and name.isidentifier() and name.islower()  # it is never looked up
        if dtype or full in _INSTANCES or full in _CALLED:
            return Name(full)
        raise self.refuse(f"names {full}")

    def load_newobj(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Name or kind.full not in _INSTANCES or args != ():
            raise self.refuse("makes something in an unusual way")
        self.append(_Made(kind.full))

    def load_reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if type(kind) is not Name or kind.full not in _CALLED or type(args) is not tuple:
            raise self.refuse("calls something that is no part of a description")
        if kind.full != _SIZE:
            self.append(kind)
            return
        sizes = args[0] if len(args) == 1 else ()
        if type(sizes) is not tuple or len(sizes) > _AXES or not all(map(is_count, sizes)):
            raise self.refuse("makes a size in an unusual way")
        self.append(Size(sizes))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is not _Made or target.state is not None:
            raise self.refuse(f"sets the state of a {type(target).__name__}")
        target.state = state

    def checked_key(self, key: Any) -> Any:
        if type(key) is _Made and key.kind == _INDEX and type(key.state) is dict:
            name, offsets = key.state.get("fqn"), key.state.get("offset")
            if type(name) is str and (offsets is None or type(offsets) is Size):
                return _Index(name, None if offsets is None else tuple(offsets))
        if type(key) not in (str, int):
            raise self.refuse(f"has a {type(key).__name__} as a key")
        return key


# -- what it describes -------------------------------------------------------------------------------------------------


def _state(item: object, kinds: Iterable[str], where: str) -> dict[str, Any]:
    """The state of an instance; SourceError where it is none of these classes."""
    if type(item) is not _Made or item.kind not in kinds or type(item.state) not in (dict, type(None)):
        raise SourceError(f"{where} is damaged: it does not describe entries as torch writes them")
    return item.state or {}


def _metadata(found: object, where: str) -> Metadata:
    table = _state(found, (_METADATA,), where)
    described, stored = table.get("state_dict_metadata"), table.get("storage_data")
    paths: Any
    paths, version = table.get("planner_data"), table.get("version")
    if type(described) is not dict or type(stored) is not dict:
        raise SourceError(f"{where} is damaged: it lists no entries, or not where they lie")
    nested = type(paths) is dict
    entries = []
    for name, item in described.items():
        path = paths.get(name) if nested else None
        if type(name) is not str:
            raise SourceError(f"{where} is damaged: {name!r} is not the name of an entry")
        if type(path) is not tuple or not path or not all(type(key) in (str, int) for key in path):
            path = (name,)
        texts = [name, *(key for key in path if type(key) is str)]
        check_names(texts, where)
        "".join(texts).encode()  # half a character (a surrogate) is none that a record can be written with
        entries.append(_entry(name, path, item, stored, where))
    return Metadata(tuple(entries), nested, version if type(version) is str else None)


def _entry(name: str, path: tuple[Key, ...], item: object, stored: Mapping[Any, object], where: str) -> Entry:
    state = _state(item, (_TENSOR, _BYTES), where)
    if type(item) is _Made and item.kind == _BYTES:
        return Entry(name, path, None, (), (Box((), (), _place(stored, _Index(name, None), where)),))
    properties, shape, chunks = state.get("properties"), state.get("size"), state.get("chunks")
    dtype: Any = (
        properties.state[0] if type(properties) is _Made and type(properties.state) is tuple else None
    )
    if type(dtype) is not Name or type(shape) is not Size or type(chunks) is not list:
        raise SourceError(f"{where} is damaged: {name!r} has no dtype, no shape, or no parts")
    boxes = []
    for chunk in chunks:
        part = _state(chunk, (_CHUNK,), where)
        offsets, sizes = part.get("offsets"), part.get("sizes")
        if type(offsets) is not Size or type(sizes) is not Size:
            raise SourceError(f"{where} is damaged: a part of {name!r} has no place")
        boxes.append(Box(tuple(offsets), tuple(sizes), _place(stored, _Index(name, tuple(offsets)), where)))
    if not fills(tuple(shape), boxes):
        raise SourceError(
            f"{where}: the parts of {name!r} do not fill its shape {list(shape)}, or overlap; the checkpoint of a rank "
            "is missing, or the file is damaged"
        )
    return Entry(name, path, dtype.full.removeprefix("torch."), tuple(shape), tuple(boxes))


def _place(stored: Mapping[Any, object], index: _Index, where: str) -> Place:
    if index not in stored:
        at = "" if index.offsets is None else f" at {list(index.offsets)}"
        raise SourceError(f"{where}: nothing says where {index.name!r}{at} lies; the file is damaged")
    state = _state(stored[index], (_INFO,), where)
    file: Any = state.get("relative_path")
    offset: Any = state.get("offset")
    length: Any = state.get("length")
    transforms = state.get("transform_descriptors") or ()
    plain = type(file) is str and is_count(offset) and is_count(length)
    if not plain or not all(type(one) is str for one in transforms):
        raise SourceError(f"{where} is damaged: the place of {index.name!r} is not a range of a file")
    inside = _inside(file)
    if inside is None:
        raise SourceError(f"{where}: {index.name!r} lies in {file!r}, outside of the folder; it is not read")
    return Place(inside, offset, length, tuple(transforms))


@lru_cache(maxsize=1024)  # of a few files there are thousands of places
def _inside(file: str) -> str | None:
    """A file's path in one spelling; None where it may be outside of the folder."""
    path = Path(file)
    outside = not file or "\0" in file or path.is_absolute() or ".." in path.parts
    return None if outside else path.as_posix()


def fills(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether boxes fill a shape, each element once."""
    inside = all(
        len(box.offsets) == len(box.sizes) == len(shape)
        and all(at + size <= whole for at, size, whole in zip(box.offsets, box.sizes, shape, strict=True))
        for box in boxes
    )
    if not inside or sum(prod(box.sizes) for box in boxes) != prod(shape):
        return False
    held = [box for box in boxes if prod(box.sizes)]
    if len(held) < 2:
        return True
    # along the axis that is cut most often, each has the fewest beside it
    axis = max(range(len(shape)), key=lambda axis: len({box.offsets[axis] for box in held}))
    held.sort(key=lambda box: box.offsets[axis])
    return not any(_overlap(one, other) for at, one in enumerate(held) for other in _near(held, at, axis))


def _near(boxes: list[Box], at: int, axis: int) -> Iterable[Box]:
    """The boxes behind one, in order of their places along an axis, that may overlap it there."""
    one = boxes[at]
    for place in range(at + 1, len(boxes)):
        other = boxes[place]
        if other.offsets[axis] < one.offsets[axis] + one.sizes[axis]:
            yield other
        else:
            return


def _overlap(one: Box, other: Box) -> bool:
    return all(
        a < b + size_b and b < a + size_a
        for a, size_a, b, size_b in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    )


# -- writing -----------------------------------------------------------------------------------------------------------


def metadata_bytes(metadata: Metadata) -> bytes:
    """The content of a file ``.metadata``, as torch reads it."""
    out = PickleWriter()
    with out.instance(_METADATA):
        with out.entry("state_dict_metadata"), out.table():
            for entry in metadata.entries:
                with out.entry(entry.name):
                    _write_entry(out, entry)
        with out.entry("planner_data"):
            if metadata.nested:
                out.plain({entry.name: entry.path for entry in metadata.entries})
            else:
                out.plain(None)
        with out.entry("storage_data"), out.table():
            for entry in metadata.entries:
                for number, box in enumerate(entry.boxes):
                    _write_place(out, entry, number, box)
        out.plain_entry("storage_meta", None)
        out.plain_entry("version", metadata.version)
    return out.finished()


def _write_entry(out: PickleWriter, entry: Entry) -> None:
    if entry.dtype is None:
        with out.instance(_BYTES):
            pass
        return
    with out.instance(_TENSOR):
        with out.entry("properties"), out.instance(_PROPERTIES, table=False), out.tuple():
            out.name(f"torch.{entry.dtype}")
            out.call(_LAYOUT, "torch.strided")
            out.plain(False)  # requires_grad; what follows says "contiguous", and not pinned
            out.call(_ENCODING, 0)
            out.plain(False)
        with out.entry("size"):
            out.call(_SIZE, entry.shape)
        with out.entry("chunks"), out.list():
            for box in entry.boxes:
                _begin(out, _CHUNK)
                _write_size(out, "offsets", box.offsets)
                _write_size(out, "sizes", box.sizes)
                out.parts.append(_END)


def _write_place(out: PickleWriter, entry: Entry, number: int, box: Box) -> None:
    _begin(out, _INDEX)
    out.parts += (_text("fqn"), _text(entry.name))
    if entry.dtype is None:
        out.parts += (_text("offset"), plain(None), _text("index"), plain(None), _END)
    else:
        _write_size(out, "offset", box.offsets)
        out.parts += (_text("index"), plain(number), _END)
    _begin(out, _INFO)
    place = box.place
    out.parts += (
        _text("relative_path"), _text(place.file), _text("offset"), plain(place.offset), _text("length"),
        plain(place.length),
    )  # fmt: skip
    if place.transforms:
        out.plain_entry("transform_descriptors", list(place.transforms))
    out.parts.append(_END)


# of these there are thousands: instances with a table without a context for each

_END = pickle.SETITEMS + pickle.BUILD
_text = lru_cache(maxsize=4096)(plain)


def _begin(out: PickleWriter, full: str) -> None:
    out.name(full)
    out.parts.append(pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.EMPTY_DICT + pickle.MARK)


def _write_size(out: PickleWriter, key: str, size: tuple[int, ...]) -> None:
    out.parts.append(_text(key))
    out.name(_SIZE)
    out.parts.append(_given(size))


@lru_cache(maxsize=4096)
def _given(size: tuple[int, ...]) -> bytes:
    """The call of a size, behind its name."""
    return plain((size,)) + pickle.REDUCE
