"""Formats: bytes on disk, one format a file, reader and writer together, and here the registry of all. No graphs.

Who reads and who writes each is named as text and imported when it is used, so front ends and emission need not import
each other; a suffix is stated once. Further formats come from the entry-point group ``elastic_ir.formats`` or from
:func:`register`; docs/writing-formats.md builds one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_ir.errors import ElasticError, EmitError, OutputError, SourceError
from elastic_ir.safety.limits import open_plain

if TYPE_CHECKING:
    from elastic_ir.formats.distant import DistantFile, Elsewhere
    from elastic_ir.ir.graph import Graph
    from elastic_ir.tensors.lazy import Mask, TensorData

GROUP = "elastic_ir.formats"
HEAD = 64  #: bytes of a file's beginning that a format may recognise it by


@dataclass(frozen=True)
class Stored:
    """What a file holds of a network: weights and buffers by their names in the state dict, unread.

    ``masks`` are those of weights among them; ``graph`` is the JSON that ElasticIR describes the network by, as the
    writer was given it, and None in files of others: structure is then found from names and shapes.
    """

    tensors: Mapping[str, TensorData]
    masks: Mapping[str, Mask] = field(default_factory=dict)
    graph: str | bytes | None = None


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read, for readers that make the graph themselves; others leave it alone."""

    arch: object = None  #: the network that a bare state dict belongs to: a source, a module or a graph
    trust: Sequence[str] = ()  #: packages whose classes a file may name
    input_shape: Sequence[Sequence[int]] | None = None  #: of the inputs that the network is traced with
    masks_beside: bool = True  #: whether masks in a file beside the weights are taken
    key: str | None = None  #: which of several networks in the file is meant
    component: str | None = None  #: which of the networks of a folder of several is meant
    variant: str | None = None  #: which of a folder's weights are meant, as fp16 in model.fp16.safetensors
    headers_only: bool = False  #: whether a folder is read without its network, by the headers of its files
    #: the file that a path stands for where it is not here; only formats that are read by ranges of bytes get it
    elsewhere: Elsewhere | None = None
    url: str = ""  #: where the source lies, without credentials, if it is not here

    def distant(self, path: Path) -> DistantFile | None:
        """What a path stands for that is not here."""
        return self.elsewhere(path) if self.elsewhere is not None else None


Reader = Callable[[Path, ReadOptions], "Graph | Stored"]
#: Writes a graph to a path, runs it first if the flag is set, and returns all paths that were written.
Writer = Callable[["Graph", Path, bool], Sequence[Path]]


@dataclass(frozen=True)
class Format:
    """A format of files: its name, its suffixes, and its reader and writer, each as ``package.module:function``.

    ``read(path, options)`` returns what the file holds or a graph, ``write(graph, path, check)`` the paths written;
    None where a format is only written, or only read. ``recognises`` is asked, with the first 64 bytes, of files
    whose suffix is nobody's. ``several`` means that a file may hold several networks, of which a key chooses.
    """

    name: str
    suffixes: tuple[str, ...]  #: lower case, with the dot; the first is the one that is recommended
    read: str | None = None
    write: str | None = None
    recognises: Callable[[bytes], bool] | None = None
    several: bool = False
    ranged: bool = (
        False  #: whether its reader takes ``options.elsewhere``, and asks that for no more than it needs
    )
    #: Whether a folder is of this format; for formats of folders, which have no suffix.
    holds: Callable[[Path], bool] | None = None

    def names(self, path: Path) -> bool:
        """Whether a file's name ends as this format's do."""
        return path.suffix.lower() in self.suffixes


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


PYTORCH = Format(
    "pytorch", (".pt", ".pth"), "elastic_ir.frontends.saved_state:read_pt", "elastic_ir.emit.files:save_pt",
    recognises=lambda head: head.startswith((b"PK", b"\x80")), several=True, ranged=True,
)  # fmt: skip
SAFETENSORS = Format(
    "safetensors", (".safetensors",), "elastic_ir.frontends.sources:read_safetensors_file",
    "elastic_ir.emit.files:save_safetensors", recognises=_is_safetensors, ranged=True,
)  # fmt: skip
ONNX = Format(
    "onnx", (".onnx",), "elastic_ir.frontends.sources:read_onnx", "elastic_ir.emit.files:save_onnx_file"
)
TICKET = Format(
    "ticket", (".ticket",), "elastic_ir.frontends.sources:read_ticket_file",
    "elastic_ir.emit.files:save_ticket", ranged=True,
)  # fmt: skip
EXPORTED = Format("exported", (".pt2",), "elastic_ir.frontends.exported_program:read_pt2")
GGUF = Format(
    "gguf", (".gguf",), "elastic_ir.checkpoints.gguf.read:read_gguf",
    "elastic_ir.checkpoints.gguf.write:write_gguf", recognises=lambda head: head.startswith(b"GGUF"),
    ranged=True,
)  # fmt: skip
PYTHON = Format("python", (".py",), None, "elastic_ir.emit.files:save_python")


def _is_dcp(path: Path) -> bool:
    from elastic_ir.formats.dcp.folder import is_dcp

    return is_dcp(path)


#: A checkpoint of torch.distributed: one file for each rank, and ``.metadata``.
DCP = Format(
    "dcp", (), "elastic_ir.checkpoints.dcp.read:read_dcp", "elastic_ir.checkpoints.dcp.write:write_dcp",
    several=True, holds=_is_dcp,
)  # fmt: skip


def _is_training_folder(path: Path) -> bool:
    from elastic_ir.formats.training_folder import is_training_folder

    return is_training_folder(path)


#: What Accelerate's ``save_state`` leaves of a training.
ACCELERATE = Format(
    "accelerate", (), "elastic_ir.checkpoints.training_folder:read_training_folder",
    "elastic_ir.emit.training_folder:write_training_folder", several=True, holds=_is_training_folder,
)  # fmt: skip


def _has_shards(path: Path) -> bool:
    from elastic_ir.formats.dcp.shards import holds_shards

    return holds_shards(path)


#: What each rank of a training has saved as safetensors for itself; put together it is weights alone.
SHARDS = Format("shards", (), "elastic_ir.formats.dcp.shards:read_shards", holds=_has_shards)
#: A model folder of Hugging Face's; an existing folder, and any name that is to be written and has no suffix.
FOLDER = Format("folder", (), "elastic_ir.frontends.sources:read_folder", "elastic_ir.emit.files:save_folder")

#: Our own formats of files, in the order in which messages list them.
OWN = (PYTORCH, SAFETENSORS, ONNX, TICKET, EXPORTED, GGUF, PYTHON)
#: Our own formats of folders, in the order in which they are asked; the last one is every other folder's.
FOLDERS = (DCP, ACCELERATE, SHARDS, FOLDER)
_registered: list[Format] = []


def register(form: Format) -> None:
    """Make a format known to this process; SourceError where its name or a suffix is taken, or is not one.

    A package does this by an entry point instead, which holds for the command line too.
    """
    if form not in _registered:
        _add({each.name: each for each in (*OWN, *_registered)}, form, "register()")
        _registered.append(form)


def registered() -> tuple[Format, ...]:
    """All formats: our own, those that were registered, and those of the entry points.

    Raises SourceError where an entry point cannot be imported or is not a format, and where two formats claim one name
    or one suffix.
    """
    found = {form.name: form for form in (*OWN, *_registered)}
    from elastic_ir.user_functions import offered

    for where, form in offered(GROUP, "format", SourceError):
        if found.get(getattr(form, "name", "")) is not form:
            _add(found, form, where)
    return tuple(found.values())


def _add(found: dict[str, Format], form: object, where: str) -> None:
    """Add a format to the known ones, once it is one."""
    if not isinstance(form, Format):
        raise SourceError(f"{where} is a {type(form).__name__}, not a Format; see docs/writing-formats.md")
    if not form.suffixes or not all(
        end.startswith(".") and end.count(".") == 1 and len(end) > 1 and end == end.lower()
        for end in form.suffixes
    ):
        raise SourceError(
            f"the format {form.name!r} ({where}) has the suffixes {form.suffixes!r}; give a tuple of lower-case ones "
            "with one dot, such as ('.npz',)"
        )
    if form.name in found:
        raise SourceError(
            f"two formats are named {form.name!r}: {where} may not replace the one that is there"
        )
    for other in found.values():
        shared = [end for end in form.suffixes if end in other.suffixes]
        if shared:
            raise SourceError(
                f"the format {form.name!r} ({where}) claims {shared[0]}, which the format {other.name!r} has already"
            )
    found[form.name] = form


def format_named(path: Path) -> Format | None:
    """The format of a file by the suffix of its name; None for one that is nobody's.

    Plug-ins are imported only where the suffix is none of our own.
    """
    own = next((form for form in OWN if form.names(path)), None)
    if own is not None or not path.suffix:
        return own
    return next((form for form in registered() if form.names(path)), None)


def format_of(path: Path) -> Format | None:
    """The format of what lies at a path: a folder, else by its suffix, else by its first bytes; None if none fits."""
    return folder_format(path) if path.is_dir() else format_named(path) or _format_recognised(path)


def folder_format(path: Path) -> Format:
    """The format of a folder by what lies in it."""
    return next((form for form in FOLDERS if form.holds is not None and form.holds(path)), FOLDER)


def _format_recognised(path: Path) -> Format | None:
    """The first format that recognises a file by its first bytes; None where none does, or it cannot be read."""
    try:
        with open_plain(path) as file:
            head = file.read(HEAD)
    except (OSError, ValueError):
        return None
    return next((form for form in registered() if _recognises(form, head, path)), None)


def _recognises(form: Format, head: bytes, path: Path) -> bool:
    try:
        return form.recognises is not None and form.recognises(head)
    except Exception as error:  # code of others
        raise SourceError(
            f"whether {path} is of the format {form.name!r} could not be found out: {type(error).__name__}: {error}"
        ) from error


def writable(path: Path) -> bool:
    """Whether a file of that name can be written; any other name is a folder's, where the source was one."""
    form = format_named(path)
    return form is not None and form.write is not None


def readable_and_writable(path: Path) -> bool:
    """Whether what is made of a source of that name may keep its suffix."""
    form = format_named(path)
    return form is not None and None not in (form.read, form.write)


def suffixes(forms: Sequence[Format], *, written: bool) -> list[str]:
    """The suffixes to recommend: the first one of each format that is written, or that is read."""
    return [form.suffixes[0] for form in forms if (form.write if written else form.read) is not None]


def read(form: Format, path: Path, options: ReadOptions) -> Graph | Stored:
    """Have a format's reader read a file; SourceError, and what the reader raises of our errors.

    Anything else that the reader of a plug-in raises is taken for the file's fault, and becomes one line.
    """
    if form.read is None:
        raise SourceError(
            f"{path.name} is of the format {form.name!r}, which is written and not read; files are read from "
            f"{', '.join(suffixes(registered(), written=False))}"
        )
    found: Graph | Stored = _called(form, form.read, SourceError, f"{path} cannot be read", path, options)
    return found


def write(form: Format, graph: Graph, path: Path, check: bool) -> list[Path]:
    """Have a format's writer write a graph; the paths written. Raises EmitError, and what the writer raises of ours."""
    if form.write is None:
        raise OutputError(
            f"{path.name}: the format {form.name!r} is read and not written; use "
            f"{', '.join(suffixes(registered(), written=True))} or a folder name"
        )
    return list(_called(form, form.write, EmitError, f"{path} cannot be written", graph, path, check))


def _called(form: Format, reference: str, kind: type[ElasticError], refusal: str, *given: object) -> Any:
    """What the function of a reference, imported now, returns; other errors of a plug-in than ours become ``kind``."""
    where = f"the format {form.name!r} names {reference!r}, which cannot be imported"
    try:
        function = pkgutil.resolve_name(reference)
        where = f"{refusal} as {form.name!r}"
        return function(*given)
    except ElasticError:
        raise
    except Exception as error:
        if form in (*OWN, *FOLDERS):
            raise
        raise kind(f"{where}: {type(error).__name__}: {error}") from error
