"""A checkpoint of torch.distributed as a graph without nodes, and which of its entries are the network. No torch here.

A checkpoint is nested dictionaries: the network's state dict is in one of them, beside it are those of optimizers,
averages, schedulers and data loaders. Where more than one could be meant none is chosen, and a key says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from elastic_ir.checkpoints.names import graph_of_tensors
from elastic_ir.checkpoints.record import key_of, read_record
from elastic_ir.errors import SourceError
from elastic_ir.formats import ReadOptions, Stored
from elastic_ir.formats.dcp.folder import DcpSource, read_folder
from elastic_ir.formats.dcp.metadata import Entry, Key
from elastic_ir.formats.model_folder import name_of
from elastic_ir.ir.graph import Graph
from elastic_ir.tensors.lazy import ITEM_SIZES

TOP = "."  #: the key of what is in no dictionary
_OPTIMIZERS = ("state", "param_groups")  #: the keys in an optimizer's dictionary
_SHOWN = 6

Path_ = tuple[Key, ...]


def read_dcp(path: Path, options: ReadOptions) -> Graph | Stored:
    """A checkpoint's network: a graph of names and shapes, or for an architecture that is given the tensors.

    Raises SourceError as :func:`elastic_ir.formats.dcp.folder.read_folder` does, and where none or several of its
    dictionaries could be the network.
    """
    source = load_source(path, options.key)
    if options.arch is not None:
        return Stored(source.tensors)
    return graph_of(source)


def load_source(path: Path, key: str | None = None) -> DcpSource:
    """A checkpoint with its network chosen; what ElasticIR wrote states itself which one was meant."""
    source = read_folder(path)
    source.asked = key if key is not None else key_of(read_record(path))
    source.key, source.network = _network(source.metadata.entries, source.asked, str(path))
    for name, entry in source.network.items():
        if entry.dtype not in ITEM_SIZES:
            raise SourceError(f"{path}: {name!r} has the dtype {entry.dtype}, which is not known here")
    return source


def graph_of(source: DcpSource) -> Graph:
    """The graph of a checkpoint's network."""
    graph = graph_of_tensors(name_of(source.folder), source.tensors)
    graph.origin = source
    return graph


def optimizer_roots(entries: Sequence[Entry]) -> set[Path_]:
    """The keys of the dictionaries that are optimizers' state: those with groups of parameters."""
    return {
        entry.path[:at]
        for entry in entries
        for at, key in enumerate(entry.path)
        if str(key).partition(".")[0] == _OPTIMIZERS[1]
    }


def of_optimizer(path: Path_, roots: set[Path_]) -> bool:
    """Whether an entry is a part of one of these optimizers' state."""
    return any(
        path[:at] in roots and str(path[at]).partition(".")[0] in _OPTIMIZERS for at in range(len(path))
    )


def tables_of(entries: Sequence[Entry]) -> dict[Path_, dict[str, Entry]]:
    """The tensors that are in one dictionary, for each that is not an optimizer's."""
    roots = optimizer_roots(entries)
    tables: dict[Path_, dict[str, Entry]] = {}
    for entry in entries:
        if entry.dtype is not None and not of_optimizer(entry.path, roots):
            tables.setdefault(entry.path[:-1], {})[str(entry.path[-1])] = entry
    return tables


def _network(entries: Sequence[Entry], key: str | None, where: str) -> tuple[str, dict[str, Entry]]:
    tables = tables_of(entries)
    if key is not None and key != TOP:
        named = dict(_under(entries, key))
        if not named:
            raise SourceError(
                f"{where} has nothing under the key {key!r}; it holds {_listed(tables) or 'no tensors'}"
            )
        return key, named
    if key == TOP:
        tables = {(): tables.get((), {})}
    weighty = {path: table for path, table in tables.items() if any(len(e.shape) > 1 for e in table.values())}
    if len(weighty) > 1:
        first = ".".join(map(str, next(iter(weighty)))) or TOP
        raise SourceError(
            f"{where} holds several state dicts: {_listed(weighty)}; say which one is meant, for example by --key "
            f"{first} (in Python key={first!r})"
        )
    if not weighty:
        raise SourceError(f"{where} holds no network: {_listed(tables) or 'there are no tensors in it'}")
    ((path, table),) = weighty.items()
    return ".".join(map(str, path)), table


def _under(entries: Sequence[Entry], key: str) -> Iterator[tuple[str, Entry]]:
    """The tensors below a key, by the rest of their names."""
    for entry in entries:
        whole = ".".join(map(str, entry.path))
        if entry.dtype is not None and whole.startswith(f"{key}."):
            yield whole[len(key) + 1 :], entry


def _listed(tables: Mapping[Path_, Mapping[str, Entry]]) -> str:
    shown = [
        f"{'.'.join(map(str, path)) or TOP} ({len(table)} tensors)"
        for path, table in list(tables.items())[:_SHOWN]
    ]
    more = f" and {len(tables) - _SHOWN} more" if len(tables) > _SHOWN else ""
    return ", ".join(shown) + more
